// Calls that a signal interrupts: EINTR, SA_RESTART, timeouts.
#include "check.h"

static volatile sig_atomic_t came;
static void on_signal(int number) {
    (void)number;
    came++;
}

static void *poke_later(void *argument) {
    pause_ms(80);
    pthread_kill(*(pthread_t *)argument, SIGUSR1);
    return NULL;
}

struct later {
    pthread_t whom;
    int fd;
};

static void *poke_then_send(void *argument) {
    struct later *l = argument;
    pause_ms(60);
    pthread_kill(l->whom, SIGUSR1);
    pause_ms(60);
    MUST(send(l->fd, "after", 5, 0));
    return NULL;
}

static void install(int flags) {
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = flags};
    sigaction(SIGUSR1, &a, NULL);
    came = 0;
}

// Runs `call` while a signal comes.
#define INTERRUPTED(label, call)                                                                                       \
    do {                                                                                                               \
        pthread_t me_ = pthread_self(), poker_;                                                                        \
        pthread_create(&poker_, NULL, poke_later, &me_);                                                               \
        DO(label, call);                                                                                               \
        pthread_join(poker_, NULL);                                                                                    \
    } while (0)

CHECK(without_restart) {
    install(0);
    struct pair p = tcp_pair();
    int l = tcp_listener(own4, 1), u = udp_bound(own4);
    char b[8];
    INTERRUPTED("recv", recv(p.server, b, 8, 0));
    INTERRUPTED("read", read(p.server, b, 8));
    INTERRUPTED("accept", accept(l, NULL, NULL));
    INTERRUPTED("udp", recv(u, b, 8, 0));
    struct iovec iov = {b, 8};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    INTERRUPTED("recvmsg", recvmsg(p.server, &m, 0));
    struct pollfd one = {.fd = p.server, .events = POLLIN};
    INTERRUPTED("poll", poll(&one, 1, -1));
    fd_set r;
    FD_ZERO(&r);
    FD_SET(p.server, &r);
    INTERRUPTED("select", select(p.server + 1, &r, NULL, NULL, NULL));
    int ep = MUST(epoll_create1(0));
    struct epoll_event e = {.events = EPOLLIN};
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, p.server, &e));
    INTERRUPTED("epoll_wait", epoll_wait(ep, &e, 1, -1));
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    INTERRUPTED("connect", connect_to(fd, "10.77.0.201", 9));
    static char big[16 << 20];
    long n;
    pthread_t me = pthread_self(), poker;
    pthread_create(&poker, NULL, poke_later, &me);
    n = send(p.client, big, sizeof big, 0);
    say("send_partial", "%d", n > 0 && n < (long)sizeof big);
    pthread_join(poker, NULL);
    // Until the buffers have grown as far as they go.
    nonblocking(p.client);
    for (int i = 0; i < 5; i++) {
        while (send(p.client, big, sizeof big, 0) > 0) {
        }
        settle();
    }
    fcntl(p.client, F_SETFL, 0);
    INTERRUPTED("send_nothing", send(p.client, big, sizeof big, 0));
    say("signals", "%d", (int)came);
}

#define RESTARTED(label, call, sender)                                                                                 \
    do {                                                                                                               \
        struct later l_ = {pthread_self(), sender};                                                                    \
        pthread_t poker_;                                                                                              \
        pthread_create(&poker_, NULL, poke_then_send, &l_);                                                            \
        DO(label, call);                                                                                               \
        pthread_join(poker_, NULL);                                                                                    \
    } while (0)

CHECK(with_restart) {
    install(SA_RESTART);
    struct pair p = tcp_pair();
    int u = udp_bound(own4), v = udp_bound(own4);
    MUST(connect_to(v, own4, port_of(u)));
    char b[8];
    RESTARTED("recv", recv(p.server, b, 8, 0), p.client);
    RESTARTED("read", read(p.server, b, 8), p.client);
    RESTARTED("udp", recv(u, b, 8, 0), v);
    RESTARTED("waitall", recv(p.server, b, 5, MSG_WAITALL), p.client);
    struct pollfd one = {.fd = p.server, .events = POLLIN};
    INTERRUPTED("poll_never_restarts", poll(&one, 1, -1));
    int ep = MUST(epoll_create1(0));
    struct epoll_event e = {.events = EPOLLIN};
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, p.server, &e));
    INTERRUPTED("epoll_never_restarts", epoll_wait(ep, &e, 1, -1));
    fd_set r;
    FD_ZERO(&r);
    FD_SET(p.server, &r);
    INTERRUPTED("select_never_restarts", select(p.server + 1, &r, NULL, NULL, NULL));
    struct timeval tv = {5, 0};
    MUST(setsockopt(p.server, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv));
    INTERRUPTED("with_a_timeout_it_does_not", recv(p.server, b, 8, 0));
    say("signals", "%d", (int)came);
}

CHECK(ignored_signals_interrupt_nothing) {
    signal(SIGUSR1, SIG_IGN);
    struct pair p = tcp_pair();
    char b[8];
    RESTARTED("recv", recv(p.server, b, 8, 0), p.client);
    signal(SIGCHLD, SIG_DFL);
    pid_t child = fork();
    if (child == 0) {
        pause_ms(60);
        _exit(0);
    }
    struct timeval tv = {0, 200000};
    MUST(setsockopt(p.server, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv));
    DO("default_sigchld", recv(p.server, b, 8, 0));
}

static int waiting_fd;
static void reads_in_handler(int number) {
    (void)number;
    char b[8];
    ssize_t n = recv(waiting_fd, b, 8, MSG_DONTWAIT);
    came = n > 0 ? 100 : 1;
    if (send(waiting_fd, "handler", 7, MSG_DONTWAIT) == 7) {
        came += 1000;
    }
}

CHECK(calls_in_a_handler) {
    struct sigaction a = {.sa_handler = reads_in_handler, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &a, NULL);
    struct pair p = tcp_pair(), q = tcp_pair();
    waiting_fd = q.server;
    MUST(send(q.client, "data", 4, 0));
    await(q.server, POLLIN);
    char b[8];
    RESTARTED("recv", recv(p.server, b, 8, 0), p.client);
    say("handler_did", "%d", (int)came);
    int n = DO("from_handler", recv(q.client, b, 8, 0));
    say("data", "%s", shown(b, n < 0 ? 0 : n));
    // While this very thread holds what a call needs.
    came = 0;
    waiting_fd = p.server;
    struct itimerval fast = {{0, 500}, {0, 500}};
    struct sigaction fast_action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &fast_action, NULL);
    setitimer(ITIMER_REAL, &fast, NULL);
    static char block[4096], in[4096];
    int same = 0;
    for (int i = 0; i < 300; i++) {
        pattern(block, sizeof block, i);
        MUST(send(p.client, block, sizeof block, 0));
        int got = read_all(p.server, in, sizeof in);
        same += got == sizeof in && memcmp(in, block, sizeof in) == 0;
    }
    struct itimerval off = {0};
    setitimer(ITIMER_REAL, &off, NULL);
    say("storm", "%d", same);
}

CHECK(blocked) {
    install(0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    struct pair p = tcp_pair();
    char b[8];
    RESTARTED("recv", recv(p.server, b, 8, 0), p.client);
    say("came", "%d", (int)came);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    say("came_later", "%d", (int)came);
}
