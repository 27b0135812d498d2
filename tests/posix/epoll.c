// epoll: level, edge, one-shot, exclusive, nested; over sockets and what the kernel has beside them.
#include "check.h"

static void show(const char *label, int ep, int ms) {
    struct epoll_event e[16];
    char text[512] = "";
    int n = epoll_wait(ep, e, 16, ms);
    // The order among different descriptors is nobody's promise.
    for (int a = 0; a < n; a++) {
        for (int b = a + 1; b < n; b++) {
            if (e[b].data.u64 < e[a].data.u64) {
                struct epoll_event t = e[a];
                e[a] = e[b];
                e[b] = t;
            }
        }
    }
    if (n < 0) {
        say(label, "%s", error_name(errno));
        return;
    }
    for (int i = 0; i < n; i++) {
        int at = strlen(text);
        snprintf(text + at, sizeof text - at, " %llu=%s", (unsigned long long)e[i].data.u64, bits(e[i].events));
    }
    say(label, "%d%s", n, text);
}

static int add(int ep, int fd, unsigned events, uint64_t data) {
    struct epoll_event e = {.events = events, .data.u64 = data};
    return epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
}

static int change(int ep, int fd, unsigned events, uint64_t data) {
    struct epoll_event e = {.events = events, .data.u64 = data};
    return epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e);
}

CHECK(errors) {
    DO("create_0", epoll_create(0));
    DO("create1_bad", epoll_create1(77));
    int ep = MUST(epoll_create1(EPOLL_CLOEXEC));
    DO("cloexec", fcntl(ep, F_GETFD));
    struct pair p = tcp_pair();
    struct epoll_event e = {.events = EPOLLIN};
    DO("add", add(ep, p.client, EPOLLIN, 1));
    DO("add_again", add(ep, p.client, EPOLLIN, 1));
    DO("mod_absent", change(ep, p.server, EPOLLIN, 1));
    DO("del_absent", epoll_ctl(ep, EPOLL_CTL_DEL, p.server, NULL));
    DO("add_null", epoll_ctl(ep, EPOLL_CTL_ADD, p.server, NULL));
    DO("del_null", epoll_ctl(ep, EPOLL_CTL_DEL, p.client, NULL));
    DO("bad_op", epoll_ctl(ep, 99, p.client, &e));
    DO("closed_fd", add(ep, 900, EPOLLIN, 1));
    DO("file", add(ep, file_of(3, 0), EPOLLIN, 1));
    DO("itself", add(ep, ep, EPOLLIN, 1));
    DO("not_epoll", add(p.client, p.server, EPOLLIN, 1));
    DO("bad_epfd", add(901, p.server, EPOLLIN, 1));
    DO("wait_not_epoll", epoll_wait(p.client, &e, 1, 0));
    DO("wait_zero", epoll_wait(ep, &e, 0, 0));
    DO("wait_negative", epoll_wait(ep, &e, -3, 0));
    DO("wait_closed", epoll_wait(902, &e, 1, 0));
    DO("add_after", add(ep, p.client, EPOLLIN, 1));
    DO("wait_null", epoll_wait(ep, NULL, 1, 0));
    DO("exclusive_mod", change(ep, p.client, EPOLLIN | EPOLLEXCLUSIVE, 1));
    DO("exclusive_oneshot", add(ep, p.server, EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT, 1));
    DO("exclusive", add(ep, p.server, EPOLLIN | EPOLLEXCLUSIVE, 1));
    DO("exclusive_then_mod", change(ep, p.server, EPOLLIN, 1));
    DO("exclusive_del", epoll_ctl(ep, EPOLL_CTL_DEL, p.server, NULL));
}

CHECK(level) {
    struct pair p = tcp_pair();
    int ep = MUST(epoll_create1(0));
    MUST(add(ep, p.client, EPOLLIN, 7));
    show("idle", ep, 0);
    MUST(send(p.server, "ab", 2, 0));
    show("data", ep, 5000);
    show("still", ep, 0);
    char b[4];
    MUST(recv(p.client, b, 1, 0));
    show("half_read", ep, 0);
    MUST(recv(p.client, b, 1, 0));
    show("all_read", ep, 0);
    MUST(change(ep, p.client, EPOLLIN | EPOLLOUT, 8));
    show("mod_out", ep, 0);
    MUST(change(ep, p.client, 0, 9));
    show("mod_nothing", ep, 0);
    close(p.server);
    settle();
    show("mod_nothing_fin", ep, 0);
    MUST(change(ep, p.client, EPOLLIN | EPOLLRDHUP, 10));
    show("fin", ep, 0);
    MUST(epoll_ctl(ep, EPOLL_CTL_DEL, p.client, NULL));
    show("deleted", ep, 0);
}

CHECK(edge) {
    struct pair p = tcp_pair();
    int ep = MUST(epoll_create1(0));
    MUST(add(ep, p.client, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, 1));
    show("first", ep, 0);
    show("second", ep, 0);
    MUST(send(p.server, "ab", 2, 0));
    show("data", ep, 5000);
    show("data_once", ep, 0);
    MUST(send(p.server, "cd", 2, 0));
    show("more_data", ep, 5000);
    char b[8];
    MUST(recv(p.client, b, 1, 0));
    show("partial_read_is_no_news", ep, 0);
    MUST(change(ep, p.client, EPOLLIN | EPOLLET, 2));
    show("mod_reports_again", ep, 0);
    show("mod_once", ep, 0);
    shutdown(p.server, SHUT_WR);
    settle();
    show("fin", ep, 0);
    show("fin_once", ep, 0);
    close(p.server);
    settle();
    show("closed", ep, 0);
}

CHECK(edge_out) {
    struct pair p = tcp_pair();
    int ep = MUST(epoll_create1(0));
    nonblocking(p.client);
    MUST(add(ep, p.client, EPOLLOUT | EPOLLET, 1));
    show("first", ep, 0);
    show("second", ep, 0);
    static char block[65536];
    long total = 0, n;
    for (int round = 0; round < 2; round++) {
        while ((n = send(p.client, block, sizeof block, 0)) > 0) {
            total += n;
        }
        settle();
    }
    show("full", ep, 0);
    while (total > 0 && (n = recv(p.server, block, sizeof block, 0)) > 0) {
        total -= n;
    }
    show("room", ep, 5000);
    show("room_once", ep, 100);
}

CHECK(oneshot) {
    struct pair p = tcp_pair();
    int ep = MUST(epoll_create1(0));
    MUST(add(ep, p.client, EPOLLIN | EPOLLONESHOT, 1));
    MUST(send(p.server, "x", 1, 0));
    show("once", ep, 5000);
    show("no_more", ep, 0);
    MUST(send(p.server, "y", 1, 0));
    settle();
    show("not_even_news", ep, 0);
    close(p.server);
    settle();
    show("not_even_hup", ep, 0);
    MUST(change(ep, p.client, EPOLLIN | EPOLLRDHUP | EPOLLONESHOT, 2));
    show("armed_again", ep, 0);
    show("and_once", ep, 0);
}

CHECK(mixed) {
    struct pair p = tcp_pair();
    int ep = MUST(epoll_create1(0)), u = udp_bound(own4), pipes[2], event = eventfd(0, EFD_NONBLOCK);
    int timer = timerfd_create(CLOCK_MONOTONIC, 0), unix_pair[2];
    MUST(pipe(pipes));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, unix_pair));
    MUST(add(ep, p.client, EPOLLIN, 1));
    MUST(add(ep, u, EPOLLIN, 2));
    MUST(add(ep, pipes[0], EPOLLIN, 3));
    MUST(add(ep, event, EPOLLIN, 4));
    MUST(add(ep, timer, EPOLLIN, 5));
    MUST(add(ep, unix_pair[0], EPOLLIN, 6));
    show("idle", ep, 0);
    MUST(write(pipes[1], "x", 1));
    show("pipe", ep, 0);
    MUST(send(p.server, "x", 1, 0));
    await(p.client, POLLIN);
    settle();
    show("pipe_and_tcp", ep, 0);
    uint64_t one = 1;
    MUST(write(event, &one, 8));
    MUST(send_to(u, "x", 1, own4, port_of(u)));
    await(u, POLLIN);
    MUST(write(unix_pair[1], "x", 1));
    struct itimerspec t = {.it_value = {0, 1}};
    MUST(timerfd_settime(timer, 0, &t, NULL));
    await(timer, POLLIN);
    settle();
    show("all", ep, 0);
    char b[8];
    MUST(read(pipes[0], b, 1));
    MUST(recv(p.client, b, 1, 0));
    settle();
    show("rest", ep, 0);
    struct epoll_event few[2];
    settle();
    DO("two_at_a_time", epoll_wait(ep, few, 2, 0));
    close(u);
    close(event);
    show("closed_ones_are_gone", ep, 0);
}

// Two calls, one right after the other, while a socket has something: is the pipe there in the second?
CHECK(busy) {
    struct pair p = tcp_pair();
    int ep = MUST(epoll_create1(0)), pipes[2];
    MUST(pipe(pipes));
    MUST(add(ep, p.client, EPOLLIN, 1));
    MUST(add(ep, pipes[0], EPOLLIN, 2));
    MUST(send(p.server, "x", 1, 0));
    await(p.client, POLLIN);
    struct epoll_event e[4];
    MUST(epoll_wait(ep, e, 4, 0));
    MUST(write(pipes[1], "x", 1));
    // In this call or, at the latest, in one of the next few.
    int calls = 1;
    while (epoll_wait(ep, e, 4, 0) < 2 && calls < 100) {
        calls++;
    }
    say("soon", "%d", calls <= 16);
}

CHECK(two_epolls) {
    struct pair p = tcp_pair();
    int a = MUST(epoll_create1(0)), b = MUST(epoll_create1(0));
    MUST(add(a, p.client, EPOLLIN, 1));
    MUST(add(b, p.client, EPOLLIN | EPOLLET, 2));
    MUST(send(p.server, "x", 1, 0));
    show("a", a, 5000);
    show("b", b, 5000);
    show("a_again", a, 0);
    show("b_again", b, 0);
    MUST(epoll_ctl(a, EPOLL_CTL_DEL, p.client, NULL));
    MUST(send(p.server, "y", 1, 0));
    show("b_news", b, 5000);
    show("a_gone", a, 0);
}

CHECK(nested) {
    struct pair p = tcp_pair();
    int inner = MUST(epoll_create1(0)), outer = MUST(epoll_create1(0)), top = MUST(epoll_create1(0));
    MUST(add(inner, p.client, EPOLLIN, 1));
    MUST(add(outer, inner, EPOLLIN, 2));
    MUST(add(top, outer, EPOLLIN, 3));
    show("idle", top, 0);
    MUST(send(p.server, "x", 1, 0));
    show("top", top, 5000);
    show("outer", outer, 0);
    show("inner", inner, 0);
    say("poll_outer", "%s", bits(ready(outer, POLLIN | POLLOUT, 0)));
    char b[2];
    MUST(recv(p.client, b, 1, 0));
    show("drained", top, 0);
    say("poll_drained", "%s", bits(ready(outer, POLLIN, 0)));
    DO("loop", add(inner, outer, EPOLLIN, 9));
}

static void *send_later(void *argument) {
    pause_ms(80);
    MUST(send(*(int *)argument, "late", 4, 0));
    return NULL;
}

CHECK(nested_wakes) {
    struct pair p = tcp_pair();
    int inner = MUST(epoll_create1(0)), outer = MUST(epoll_create1(0));
    MUST(add(inner, p.client, EPOLLIN, 1));
    MUST(add(outer, inner, EPOLLIN | EPOLLET, 2));
    pthread_t t;
    pthread_create(&t, NULL, send_later, &p.server);
    show("woken", outer, 10000);
    pthread_join(t, NULL);
    show("edge_once", outer, 0);
    show("inner", inner, 0);
    struct pollfd one = {.fd = inner, .events = POLLIN};
    DO("poll_inner", poll(&one, 1, 0));
}

CHECK(poll_on_epoll) {
    struct pair p = tcp_pair();
    int ep = MUST(epoll_create1(0));
    MUST(add(ep, p.client, EPOLLIN, 1));
    say("idle", "%s", bits(ready(ep, POLLIN | POLLOUT, 0)));
    pthread_t t;
    pthread_create(&t, NULL, send_later, &p.server);
    say("woken", "%s", bits(await(ep, POLLIN)));
    pthread_join(t, NULL);
    fd_set r;
    FD_ZERO(&r);
    FD_SET(ep, &r);
    struct timeval zero = {0, 0};
    DO("select", select(ep + 1, &r, NULL, NULL, &zero));
}

CHECK(dup_keys) {
    struct pair p = tcp_pair();
    int ep = MUST(epoll_create1(0)), copy = MUST(dup(p.client));
    MUST(add(ep, p.client, EPOLLIN, 1));
    DO("add_copy", add(ep, copy, EPOLLIN, 2));
    MUST(send(p.server, "x", 1, 0));
    await(p.client, POLLIN);
    show("both", ep, 0);
    close(p.client);
    // The socket lives on through its copy, and so does the interest made with the closed number.
    show("after_close", ep, 0);
    DO("del_closed_number", epoll_ctl(ep, EPOLL_CTL_DEL, p.client, NULL));
    close(copy);
    show("after_both", ep, 0);
    int copy_of_ep = MUST(dup(ep));
    struct pair q = tcp_pair();
    MUST(add(ep, q.client, EPOLLIN, 5));
    MUST(send(q.server, "x", 1, 0));
    await(q.client, POLLIN);
    show("through_a_copy_of_the_epoll", copy_of_ep, 0);
    close(ep);
    show("after_closing_the_first", copy_of_ep, 0);
}

CHECK(before_it_is_decided) {
    int ep = MUST(epoll_create1(0)), l = MUST(socket(AF_INET, SOCK_STREAM, 0)), u = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    DO("add_fresh_tcp", add(ep, l, EPOLLIN | EPOLLOUT, 1));
    DO("add_fresh_udp", add(ep, u, EPOLLIN, 2));
    show("fresh", ep, 0);
    MUST(bind_to(l, own4, 0));
    show("bound", ep, 0);
    MUST(listen(l, 4));
    show("listening", ep, 0);
    int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect_to(c, own4, port_of(l)));
    show("connection", ep, 5000);
    MUST(bind_to(u, own4, 0));
    MUST(send_to(u, "x", 1, own4, port_of(u)));
    await(u, POLLIN);
    show("both", ep, 0);
}

CHECK(nonblocking_connect) {
    int ep = MUST(epoll_create1(0)), l = tcp_listener(own4, 4);
    int c = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    MUST(add(ep, c, EPOLLIN | EPOLLOUT | EPOLLET, 1));
    show("fresh", ep, 0);
    connect_to(c, own4, port_of(l));
    show("connected", ep, 5000);
    int closed = tcp_listener(own4, 1);
    uint16_t port = port_of(closed);
    close(closed);
    int r = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
    DO("refused", connect_to(r, peer4, 9));
    MUST(add(ep, r, EPOLLIN | EPOLLOUT, 2));
    pause_ms(100);
    show("refused_events", ep, 5000);
    say("so_error", "%d", option_of(r, SOL_SOCKET, SO_ERROR));
    show("after_so_error", ep, 0);
    (void)port;
}

CHECK(listener_edge) {
    int ep = MUST(epoll_create1(0)), l = tcp_listener(own4, 8);
    nonblocking(l);
    MUST(add(ep, l, EPOLLIN | EPOLLET, 1));
    show("idle", ep, 0);
    int c[2];
    for (int i = 0; i < 2; i++) {
        c[i] = MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(connect_to(c[i], own4, port_of(l)));
    }
    show("two_waiting", ep, 5000);
    OK("accept", accept(l, NULL, NULL));
    show("no_news", ep, 0);
    OK("accept_2", accept(l, NULL, NULL));
    OK("accept_3", accept(l, NULL, NULL));
    int third = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect_to(third, own4, port_of(l)));
    show("third", ep, 5000);
}

struct waiting {
    int ep;
    int got;
};

static void *waits(void *argument) {
    struct waiting *w = argument;
    struct epoll_event e;
    w->got = epoll_wait(w->ep, &e, 1, 400);
    return NULL;
}

CHECK(threads_on_one) {
    struct pair p = tcp_pair();
    int ep = MUST(epoll_create1(0));
    MUST(add(ep, p.client, EPOLLIN | EPOLLET, 1));
    struct waiting w[3];
    pthread_t t[3];
    for (int i = 0; i < 3; i++) {
        w[i].ep = ep;
        pthread_create(&t[i], NULL, waits, &w[i]);
    }
    pause_ms(100);
    MUST(send(p.server, "x", 1, 0));
    int total = 0;
    for (int i = 0; i < 3; i++) {
        pthread_join(t[i], NULL);
        total += w[i].got;
    }
    say("one_of_three_gets_the_edge", "%d", total);
}

CHECK(added_while_waiting) {
    struct pair p = tcp_pair();
    int ep = MUST(epoll_create1(0));
    MUST(send(p.server, "x", 1, 0));
    await(p.client, POLLIN);
    struct waiting w = {ep, -1};
    pthread_t t;
    pthread_create(&t, NULL, waits, &w);
    pause_ms(100);
    MUST(add(ep, p.client, EPOLLIN, 1));
    pthread_join(t, NULL);
    say("got", "%d", w.got);
}

static volatile sig_atomic_t came;
static void on_signal(int number) { came = number; }

CHECK(pwait) {
    struct pair p = tcp_pair();
    int ep = MUST(epoll_create1(0));
    MUST(add(ep, p.client, EPOLLIN, 1));
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &a, NULL);
    sigset_t block, none;
    sigemptyset(&none);
    sigemptyset(&block);
    sigaddset(&block, SIGUSR1);
    sigprocmask(SIG_BLOCK, &block, NULL);
    kill(getpid(), SIGUSR1);
    struct epoll_event e;
    DO("blocked", epoll_wait(ep, &e, 1, 20));
    DO("unblocked", epoll_pwait(ep, &e, 1, 5000, &none));
    say("came", "%d", (int)came);
    struct timespec t = {0, 30000000};
    double start = now_s();
    DO("pwait2", epoll_pwait2(ep, &e, 1, &t, NULL));
    say("pwait2_not_early", "%d", now_s() - start >= 0.029);
    t.tv_nsec = 2000000000;
    DO("pwait2_bad", epoll_pwait2(ep, &e, 1, &t, NULL));
    MUST(send(p.server, "x", 1, 0));
    DO("pwait2_forever", epoll_pwait2(ep, &e, 1, NULL, NULL));
    alarm(30);
    start = now_s();
    char b;
    MUST(recv(p.client, &b, 1, 0));
    DO("times_out", epoll_wait(ep, &e, 1, 50));
    say("not_early", "%d", now_s() - start >= 0.049);
}

CHECK(reset_bits) {
    struct pair p = tcp_pair();
    int ep = MUST(epoll_create1(0));
    MUST(add(ep, p.client, 0, 1));
    struct linger hard = {1, 0};
    MUST(setsockopt(p.server, SOL_SOCKET, SO_LINGER, &hard, sizeof hard));
    close(p.server);
    show("unasked", ep, 5000);
    MUST(change(ep, p.client, EPOLLIN | EPOLLOUT | EPOLLRDHUP, 2));
    show("all", ep, 0);
    say("so_error", "%d", option_of(p.client, SOL_SOCKET, SO_ERROR));
    show("after_so_error", ep, 0);
}

CHECK(fork_shares) {
    struct pair p = tcp_pair();
    int ep = MUST(epoll_create1(0));
    MUST(add(ep, p.client, EPOLLIN, 1));
    MUST(send(p.server, "x", 1, 0));
    await(p.client, POLLIN);
    pid_t child = fork();
    if (child == 0) {
        show("child_sees", ep, 1000);
        char b;
        MUST(recv(p.client, &b, 1, 0));
        show("child_drained", ep, 0);
        _exit(0);
    }
    reap("child", child);
    show("parent_sees_drained", ep, 0);
    MUST(send(p.server, "y", 1, 0));
    show("parent_news", ep, 5000);
}
