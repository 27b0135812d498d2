// fork, exec, posix_spawn, vfork: who has which socket, and who gets the FIN when.
#include "check.h"

CHECK(fork_shares_a_connection) {
    struct pair p = tcp_pair();
    char b[16];
    pid_t child = fork();
    if (child == 0) {
        close(p.server);
        MUST(send(p.client, "child", 5, 0));
        _exit(0);
    }
    int n = DO("recv", recv(p.server, b, 16, 0));
    say("data", "%s", shown(b, n));
    reap("child", child);
    DO("no_fin_while_the_parent_has_it", recv(p.server, b, 16, MSG_DONTWAIT));
    DO("parent_sends", send(p.client, "parent", 6, 0));
    n = DO("recv_2", recv(p.server, b, 16, 0));
    say("data_2", "%s", shown(b, n));
    close(p.client);
    DO("fin", recv(p.server, b, 16, 0));
}

CHECK(fork_keeps_it_open) {
    struct pair p = tcp_pair();
    int go[2];
    MUST(pipe(go));
    char b[16];
    pid_t child = fork();
    if (child == 0) {
        close(p.server);
        close(go[1]);
        MUST(read(go[0], b, 1));
        _exit(0);
    }
    close(p.client);
    settle();
    DO("no_fin_while_the_child_has_it", recv(p.server, b, 16, MSG_DONTWAIT));
    MUST(write(go[1], "g", 1));
    reap("child", child);
    DO("fin_when_it_ends", recv(p.server, b, 16, 0));
}

CHECK(killed_child) {
    struct pair p = tcp_pair();
    char b[16];
    pid_t child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    close(p.client);
    settle();
    kill(child, SIGKILL);
    reap("child", child);
    DO("fin", recv(p.server, b, 16, 0));
}

CHECK(shutdown_in_the_child) {
    struct pair p = tcp_pair();
    char b[16];
    pid_t child = fork();
    if (child == 0) {
        shutdown(p.client, SHUT_WR);
        _exit(0);
    }
    reap("child", child);
    DO("fin_at_once", recv(p.server, b, 16, 0));
    DO("parent_can_not_send", send(p.client, "x", 1, MSG_NOSIGNAL));
}

CHECK(server_forks_per_connection) {
    int l = tcp_listener(own4, 8);
    pid_t server = fork();
    if (server == 0) {
        for (int i = 0; i < 3; i++) {
            int s = MUST(accept(l, NULL, NULL));
            pid_t worker = fork();
            if (worker == 0) {
                close(l);
                char b[16];
                int n = MUST(recv(s, b, 16, 0));
                for (int k = 0; k < n; k++) {
                    b[k] ^= 32;
                }
                MUST(send(s, b, n, 0));
                _exit(0);
            }
            close(s);
            waitpid(worker, NULL, 0);
        }
        _exit(0);
    }
    for (int i = 0; i < 3; i++) {
        int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(connect_to(c, own4, port_of(l)));
        MUST(send(c, "request", 7, 0));
        char b[16], label[16];
        snprintf(label, sizeof label, "answer_%d", i);
        int n = recv(c, b, 16, 0);
        say(label, "%s", shown(b, n));
        snprintf(label, sizeof label, "end_%d", i);
        say(label, "%ld", (long)recv(c, b, 16, 0));
        close(c);
    }
    reap("server", server);
}

CHECK(prefork) {
    int l = tcp_listener(own4, 16);
    pid_t workers[3];
    for (int i = 0; i < 3; i++) {
        workers[i] = fork();
        if (workers[i] == 0) {
            for (;;) {
                int s = accept(l, NULL, NULL);
                if (s < 0) {
                    _exit(7);
                }
                char b;
                if (recv(s, &b, 1, 0) == 1 && b == 'q') {
                    _exit(0);
                }
                send(s, "y", 1, 0);
                close(s);
            }
        }
    }
    int good = 0;
    for (int i = 0; i < 20; i++) {
        int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(connect_to(c, own4, port_of(l)));
        MUST(send(c, "r", 1, 0));
        char b;
        good += recv(c, &b, 1, 0) == 1 && b == 'y';
        close(c);
    }
    say("served", "%d", good);
    uint16_t port = port_of(l);
    close(l);
    int held[3];
    for (int i = 0; i < 3; i++) {
        // The listener lives on in the workers.
        held[i] = MUST(socket(AF_INET, SOCK_STREAM, 0));
        int r = connect_to(held[i], own4, port);
        MUST(send(held[i], "q", 1, 0));
        char label[16];
        snprintf(label, sizeof label, "quit_%d", i);
        say(label, "%d", r);
        settle();
    }
    int ended = 0;
    for (int i = 0; i < 3; i++) {
        int status;
        ended += waitpid(workers[i], &status, 0) == workers[i] && status == 0;
    }
    say("ended", "%d", ended);
    settle();
    int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("refused_after_the_last", connect_to(c, own4, port));
}

CHECK(fork_before_listen) {
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind_to(fd, own4, 0));
    uint16_t port = port_of(fd);
    int go[2];
    MUST(pipe(go));
    pid_t child = fork();
    if (child == 0) {
        char b;
        MUST(read(go[0], &b, 1));
        int s = MUST(accept(fd, NULL, NULL));
        MUST(send(s, "from child", 10, 0));
        _exit(0);
    }
    DO("listen_in_the_parent", listen(fd, 4));
    MUST(write(go[1], "g", 1));
    int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect_to(c, own4, port));
    char b[16];
    int n = DO("recv", recv(c, b, 16, 0));
    say("data", "%s", shown(b, n));
    reap("child", child);
}

CHECK(fork_before_bind) {
    // The socket is nobody's yet when it is shared.
    int l = tcp_listener(own4, 4);
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    pid_t child = fork();
    if (child == 0) {
        MUST(connect_to(fd, own4, port_of(l)));
        MUST(send(fd, "child", 5, 0));
        _exit(0);
    }
    reap("child", child);
    int s = MUST(accept(l, NULL, NULL));
    char b[16];
    DO("recv", recv(s, b, 16, 0));
    say_peer("parent_sees_the_connection", fd);
}

CHECK(fork_during_connect) {
    int l = tcp_listener(own4, 4);
    int fd = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    connect_to(fd, own4, port_of(l));
    pid_t child = fork();
    if (child == 0) {
        say("child_poll", "%s", bits(await(fd, POLLOUT)));
        say("child_error", "%d", option_of(fd, SOL_SOCKET, SO_ERROR));
        DO("child_send", send(fd, "c", 1, 0));
        _exit(0);
    }
    reap("child", child);
    say("parent_poll", "%s", bits(await(fd, POLLOUT)));
    DO("parent_send", send(fd, "p", 1, 0));
    int s = MUST(accept(l, NULL, NULL));
    settle();
    char b[8];
    int n = DO("recv", recv(s, b, 8, 0));
    say("data", "%s", shown(b, n));
}

CHECK(udp_in_both) {
    int u = udp_bound(own4), v = udp_bound(own4);
    know_port(port_of(u), "u");
    pid_t child = fork();
    if (child == 0) {
        union address from;
        socklen_t len = sizeof from;
        char b[16];
        int n = MUST(recvfrom(u, b, 16, 0, &from.any, &len));
        MUST(sendto(u, b, n, 0, &from.any, len));
        _exit(0);
    }
    MUST(send_to(v, "ping", 4, own4, port_of(u)));
    union address from;
    socklen_t len = sizeof from;
    char b[16];
    int n = DO("recv", recvfrom(v, b, 16, 0, &from.any, &len));
    say("data", "%s", shown(b, n));
    say("from", "%s", name_of(&from, len));
    reap("child", child);
    MUST(send_to(v, "parent", 6, own4, port_of(u)));
    DO("parent_receives", recv(u, b, 16, 0));
}

CHECK(grandchildren) {
    struct pair p = tcp_pair();
    char b[8];
    pid_t child = fork();
    if (child == 0) {
        pid_t grand = fork();
        if (grand == 0) {
            MUST(send(p.client, "grand", 5, 0));
            _exit(0);
        }
        waitpid(grand, NULL, 0);
        _exit(0);
    }
    reap("child", child);
    int n = DO("recv", recv(p.server, b, 8, 0));
    say("data", "%s", shown(b, n));
}

CHECK(vforks) {
    struct pair p = tcp_pair();
    pid_t child = vfork();
    if (child == 0) {
        _exit(5);
    }
    reap("child", child);
    char b;
    DO("send", send(p.client, "x", 1, 0));
    DO("recv", recv(p.server, &b, 1, 0));
}

// ---- exec ----------------------------------------------------------------------------------------------------------
// The program starts itself with the name of one of these functions and the number of a descriptor.

CHECK(exec_child) {
    // Runs in the list too, where it has nothing to do.
    const char *given = getenv("PARITY_FD");
    if (!given) {
        say("nothing_to_do", "1");
        return;
    }
    int fd = atoi(given);
    char b[16];
    say_peer("peer", fd);
    int n = DO("recv", recv(fd, b, 16, 0));
    say("data", "%s", shown(b, n));
    DO("send", send(fd, "from exec", 9, 0));
}

static void run_self(const char *function, int fd) {
    char number[16];
    snprintf(number, sizeof number, "%d", fd);
    setenv("PARITY_FD", number, 1);
    execl(self_path, self_path, own4, own6, peer4, peer6, function, NULL);
    _exit(97);
}

static char *const *self_arguments(const char *function) {
    static char *arguments[7];
    arguments[0] = (char *)self_path;
    arguments[1] = (char *)own4, arguments[2] = (char *)own6, arguments[3] = (char *)peer4, arguments[4] = (char *)peer6;
    arguments[5] = (char *)function;
    return arguments;
}

static void exec_with(const char *prefix, int how) {
    struct pair p = tcp_pair();
    int go[2];
    MUST(pipe(go));
    MUST(send(p.server, "to exec", 7, 0));
    pid_t child = fork();
    if (child == 0) {
        // Its lines go nowhere: they carry the child's own function name, once for each way to start it.
        MUST(dup2(MUST(open("/dev/null", O_WRONLY)), 1));
        char number[16];
        snprintf(number, sizeof number, "%d", p.client);
        setenv("PARITY_FD", number, 1);
        switch (how) {
        case 0:
            execv(self_path, self_arguments("exec_child"));
            break;
        case 1:
            execve(self_path, self_arguments("exec_child"), environ);
            break;
        case 2:
            execvp(self_path, self_arguments("exec_child"));
            break;
        case 3:
            run_self("exec_child", p.client);
            break;
        }
        _exit(96);
    }
    close(p.client);
    char b[16], label[64];
    int n = recv(p.server, b, 16, 0);
    snprintf(label, sizeof label, "%s_answer", prefix);
    say(label, "%s", shown(b, n < 0 ? 0 : n));
    snprintf(label, sizeof label, "%s_child", prefix);
    reap(label, child);
    snprintf(label, sizeof label, "%s_fin", prefix);
    DO(label, recv(p.server, b, 16, 0));
}

CHECK(exec_keeps_sockets) {
    exec_with("execv", 0);
    exec_with("execve", 1);
    exec_with("execvp", 2);
    exec_with("execl", 3);
}

CHECK(cloexec_closes) {
    struct pair p = tcp_pair();
    MUST(fcntl(p.client, F_SETFD, FD_CLOEXEC));
    pid_t child = fork();
    if (child == 0) {
        execl("/bin/sleep", "sleep", "0.3", NULL);
        _exit(96);
    }
    close(p.client);
    char b;
    double start = now_s();
    DO("fin", recv(p.server, &b, 1, 0));
    say("at_exec_not_at_exit", "%d", now_s() - start < 0.25);
    reap("child", child);
}

CHECK(exec_failure_changes_nothing) {
    struct pair p = tcp_pair();
    DO("execv", execv("/nonexistent", self_arguments("x")));
    DO("send", send(p.client, "x", 1, 0));
    char b;
    DO("recv", recv(p.server, &b, 1, 0));
}

CHECK(spawn) {
    struct pair p = tcp_pair();
    MUST(send(p.server, "to spawn", 8, 0));
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    char number[16];
    snprintf(number, sizeof number, "%d", p.client);
    setenv("PARITY_FD", number, 1);
    pid_t child;
    DO("spawn", posix_spawn(&child, self_path, &actions, NULL, self_arguments("exec_child"), environ));
    close(p.client);
    char b[16];
    int n = DO("answer", recv(p.server, b, 16, 0));
    say("data", "%s", shown(b, n < 0 ? 0 : n));
    reap("child", child);
    DO("fin", recv(p.server, b, 16, 0));
    DO("missing", posix_spawn(&child, "/nonexistent", NULL, NULL, self_arguments("x"), environ));
}

CHECK(spawn_as_standard_streams) {
    struct pair p = tcp_pair();
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, p.client, 0);
    posix_spawn_file_actions_adddup2(&actions, p.client, 1);
    char *arguments[] = {"/bin/cat", NULL};
    pid_t child;
    DO("spawn", posix_spawn(&child, "/bin/cat", &actions, NULL, arguments, environ));
    close(p.client);
    MUST(send(p.server, "through cat", 11, 0));
    shutdown(p.server, SHUT_WR);
    char b[16];
    int n = DO("answer", read_all(p.server, b, 16));
    say("data", "%s", shown(b, n < 0 ? 0 : n));
    reap("child", child);
}

CHECK(shell_on_a_socket) {
    struct pair p = tcp_pair();
    pid_t child = fork();
    if (child == 0) {
        dup2(p.client, 0);
        dup2(p.client, 1);
        close(p.client);
        close(p.server);
        char *arguments[] = {"sh", "-c", "read line; echo \"got $line\"; cat /proc/self/status | wc -c >/dev/null", NULL};
        execv("/bin/sh", arguments);
        _exit(96);
    }
    close(p.client);
    MUST(send(p.server, "a line\n", 7, 0));
    char b[32];
    int n = DO("answer", read_all(p.server, b, 32));
    say("data", "%s", shown(b, n < 0 ? 0 : n));
    reap("child", child);
}

CHECK(daemons) {
    struct pair p = tcp_pair();
    pid_t child = fork();
    if (child == 0) {
        if (daemon(1, 1) == 0) {
            MUST(send(p.client, "daemon", 6, 0));
        }
        _exit(0);
    }
    reap("child", child);
    close(p.client);
    char b[16];
    int n = DO("recv", recv(p.server, b, 16, 0));
    say("data", "%s", shown(b, n < 0 ? 0 : n));
    DO("fin", recv(p.server, b, 16, 0));
}

CHECK(environment) {
    // Nothing that a program looks at may be changed for it.
    say("no_surprise", "%d", getenv("PATH") != NULL);
    sigset_t set;
    sigprocmask(0, NULL, &set);
    int blocked = 0;
    for (int s = 1; s < 32; s++) {
        blocked += sigismember(&set, s);
    }
    say("blocked_signals", "%d", blocked);
    int handlers = 0;
    struct pair p = tcp_pair();
    for (int s = 1; s < 32; s++) {
        struct sigaction a;
        if (sigaction(s, NULL, &a) == 0 && a.sa_handler != SIG_DFL && a.sa_handler != SIG_IGN) {
            handlers++;
        }
    }
    say("handlers", "%d", handlers);
    say("errno_survives", "%d", ({
            errno = 77;
            send(p.client, "x", 1, 0);
            errno;
        }));
    char b;
    errno = 78;
    recv(p.server, &b, 1, 0);
    say("errno_survives_recv", "%d", errno);
    int threads = 0;
    FILE *status = fopen("/proc/self/status", "r");
    char line[256];
    while (fgets(line, sizeof line, status)) {
        sscanf(line, "Threads: %d", &threads);
    }
    say("threads", "%d", threads);
    DO("no_child", waitpid(-1, NULL, WNOHANG));
}

CHECK(nonblocking_set_by_a_child) {
    struct pair p = tcp_pair();
    char b[16];
    pid_t child = fork();
    if (child == 0) {
        MUST(fcntl(p.server, F_SETFL, MUST(fcntl(p.server, F_GETFL)) | O_NONBLOCK));
        _exit(0);
    }
    reap("child", child);
    DO("recv_does_not_wait", recv(p.server, b, 16, 0));
    say("flag", "%d", !!(MUST(fcntl(p.server, F_GETFL)) & O_NONBLOCK));
    child = fork();
    if (child == 0) {
        MUST(fcntl(p.server, F_SETFL, MUST(fcntl(p.server, F_GETFL)) & ~O_NONBLOCK));
        MUST(send(p.client, "late", 4, 0));
        _exit(0);
    }
    reap("child_2", child);
    DO("recv_waits_again", recv(p.server, b, 16, 0));
}

// What pthread_atfork's functions work with: an event loop that is built anew in the child, as uvloop does it.
static int loop_of_handlers = -1, socket_of_handlers = -1, handlers_armed;

static int loop_with_socket(void) {
    int epoll = MUST(epoll_create1(0));
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 7};
    MUST(epoll_ctl(epoll, EPOLL_CTL_ADD, socket_of_handlers, &event));
    return epoll;
}

static void handler_before(void) {
    if (handlers_armed) close(MUST(dup(socket_of_handlers)));
}

static void handler_parent(void) {
    if (handlers_armed) MUST(getsockname(socket_of_handlers, (struct sockaddr *)&(struct sockaddr_storage){0}, &(socklen_t){128}));
}

static void handler_child(void) {
    if (!handlers_armed) return;
    close(loop_of_handlers);
    loop_of_handlers = loop_with_socket();
}

CHECK(handlers_of_a_fork_use_sockets) {
    struct pair p = tcp_pair();
    socket_of_handlers = p.server;
    loop_of_handlers = loop_with_socket();
    MUST(pthread_atfork(handler_before, handler_parent, handler_child));
    handlers_armed = 1;
    pid_t child = fork();
    handlers_armed = 0;
    if (child == 0) {
        struct epoll_event event = {0};
        char b[16];
        int n = MUST(epoll_wait(loop_of_handlers, &event, 1, 10000));
        _exit(n == 1 && event.data.u64 == 7 && recv(p.server, b, 16, 0) == 5 ? 0 : 1);
    }
    DO("send", send(p.client, "hello", 5, 0));
    reap("child", child);
}
