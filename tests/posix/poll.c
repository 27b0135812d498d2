// poll, ppoll, select and pselect over sockets, pipes, eventfds, timerfds and files together.
#include "check.h"

#define ALL (POLLIN | POLLOUT | POLLPRI | POLLRDHUP | POLLRDNORM | POLLWRNORM | POLLRDBAND | POLLWRBAND)

CHECK(one_socket) {
    struct pair p = tcp_pair();
    say("idle", "%s", bits(ready(p.client, ALL, 0)));
    say("nothing_asked", "%s", bits(ready(p.client, 0, 0)));
    say("in_only", "%s", bits(ready(p.client, POLLIN, 0)));
    say("out_only", "%s", bits(ready(p.client, POLLOUT, 0)));
    say("wrnorm", "%s", bits(ready(p.client, POLLWRNORM, 0)));
    say("wrband", "%s", bits(ready(p.client, POLLWRBAND, 0)));
    MUST(send(p.server, "x", 1, 0));
    say("data", "%s", bits(await(p.client, POLLIN)));
    say("data_all", "%s", bits(ready(p.client, ALL, 0)));
    say("rdnorm", "%s", bits(ready(p.client, POLLRDNORM, 0)));
    say("rdband", "%s", bits(ready(p.client, POLLRDBAND, 0)));
    int u = udp_bound(own4);
    say("udp_idle", "%s", bits(ready(u, ALL, 0)));
    int l = tcp_listener(own4, 1);
    say("listener_idle", "%s", bits(ready(l, ALL, 0)));
}

CHECK(mixed_set) {
    struct pair p = tcp_pair();
    int u = udp_bound(own4), pipes[2], event = eventfd(0, 0), timer = timerfd_create(CLOCK_MONOTONIC, 0);
    MUST(pipe(pipes));
    int file = file_of(10, 0);
    struct pollfd set[9] = {
        {.fd = p.client, .events = POLLIN},  {.fd = pipes[0], .events = POLLIN},  {.fd = event, .events = POLLIN},
        {.fd = timer, .events = POLLIN},     {.fd = -1, .events = POLLIN},        {.fd = 900, .events = POLLIN},
        {.fd = u, .events = POLLIN},         {.fd = pipes[1], .events = POLLOUT}, {.fd = file, .events = POLLIN | POLLOUT},
    };
    static const char *names[9] = {"tcp", "pipe", "event", "timer", "negative", "closed", "udp", "pipe_out", "file"};
    for (int round = 0; round < 4; round++) {
        if (round == 1) {
            MUST(send(p.server, "x", 1, 0));
            await(p.client, POLLIN);
        } else if (round == 2) {
            MUST(write(pipes[1], "y", 1));
            uint64_t one = 1;
            MUST(write(event, &one, 8));
        } else if (round == 3) {
            MUST(send_to(u, "self", 4, own4, port_of(u)));
            await(u, POLLIN);
            struct itimerspec t = {.it_value = {0, 1}};
            MUST(timerfd_settime(timer, 0, &t, NULL));
            await(timer, POLLIN);
        }
        for (int i = 0; i < 9; i++) {
            set[i].revents = 0x7fff;
        }
        char label[32];
        snprintf(label, sizeof label, "round_%d", round);
        DO(label, poll(set, 9, 0));
        for (int i = 0; i < 9; i++) {
            snprintf(label, sizeof label, "round_%d_%s", round, names[i]);
            say(label, "%s", bits(set[i].revents));
        }
    }
}

CHECK(same_twice) {
    struct pair p = tcp_pair();
    MUST(send(p.server, "x", 1, 0));
    await(p.client, POLLIN);
    struct pollfd set[2] = {{.fd = p.client, .events = POLLIN}, {.fd = p.client, .events = POLLOUT}};
    DO("poll", poll(set, 2, -1));
    say("first", "%s", bits(set[0].revents));
    say("second", "%s", bits(set[1].revents));
}

CHECK(timeouts) {
    struct pair p = tcp_pair();
    struct pollfd one = {.fd = p.client, .events = POLLIN};
    double start = now_s();
    DO("poll_60ms", poll(&one, 1, 60));
    double took = now_s() - start;
    say("not_early", "%d", took >= 0.059);
    say("revents", "%s", bits(one.revents));
    start = now_s();
    struct timespec t = {0, 60000000};
    DO("ppoll_60ms", ppoll(&one, 1, &t, NULL));
    say("ppoll_not_early", "%d", now_s() - start >= 0.059);
    say("ppoll_keeps_time", "%ld", t.tv_nsec);
    t.tv_nsec = 1000000000;
    DO("ppoll_bad_time", ppoll(&one, 1, &t, NULL));
    t.tv_nsec = -1;
    DO("ppoll_negative", ppoll(&one, 1, &t, NULL));
    DO("poll_zero_fds", poll(NULL, 0, 1));
    DO("poll_null", poll(NULL, 1, 0));
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    DO("too_many", poll(&one, limit.rlim_cur + 1, 0));
}

static void *later(void *argument) {
    pause_ms(60);
    MUST(send(*(int *)argument, "late", 4, 0));
    return NULL;
}

static void *later_pipe(void *argument) {
    pause_ms(60);
    MUST(write(*(int *)argument, "late", 4));
    return NULL;
}

CHECK(woken) {
    struct pair p = tcp_pair();
    int pipes[2];
    MUST(pipe(pipes));
    pthread_t thread;
    struct pollfd set[2] = {{.fd = p.client, .events = POLLIN}, {.fd = pipes[0], .events = POLLIN}};
    pthread_create(&thread, NULL, later, &p.server);
    DO("by_socket", poll(set, 2, -1));
    say("socket", "%s", bits(set[0].revents));
    say("pipe", "%s", bits(set[1].revents));
    pthread_join(thread, NULL);
    char b[8];
    MUST(recv(p.client, b, sizeof b, 0));
    pthread_create(&thread, NULL, later_pipe, &pipes[1]);
    DO("by_pipe", poll(set, 2, -1));
    say("socket_2", "%s", bits(set[0].revents));
    say("pipe_2", "%s", bits(set[1].revents));
    pthread_join(thread, NULL);
}

CHECK(select_sets) {
    struct pair p = tcp_pair();
    int u = udp_bound(own4), pipes[2];
    MUST(pipe(pipes));
    fd_set r, w, e;
#define RESET()                                                                                                        \
    do {                                                                                                               \
        FD_ZERO(&r);                                                                                                   \
        FD_ZERO(&w);                                                                                                   \
        FD_ZERO(&e);                                                                                                   \
        FD_SET(p.client, &r);                                                                                          \
        FD_SET(p.client, &w);                                                                                          \
        FD_SET(p.client, &e);                                                                                          \
        FD_SET(pipes[0], &r);                                                                                          \
        FD_SET(u, &r);                                                                                                 \
        FD_SET(u, &w);                                                                                                 \
    } while (0)
#define SHOW(label)                                                                                                    \
    say(label, "tcp %d%d%d pipe %d udp %d%d", !!FD_ISSET(p.client, &r), !!FD_ISSET(p.client, &w),                     \
        !!FD_ISSET(p.client, &e), !!FD_ISSET(pipes[0], &r), !!FD_ISSET(u, &r), !!FD_ISSET(u, &w))
    struct timeval zero = {0, 0};
    RESET();
    DO("idle", select(100, &r, &w, &e, &zero));
    SHOW("idle_sets");
    MUST(send(p.server, "x", 1, 0));
    await(p.client, POLLIN);
    MUST(write(pipes[1], "x", 1));
    RESET();
    DO("data", select(100, &r, &w, &e, &zero));
    SHOW("data_sets");
    RESET();
    DO("null_sets", select(100, &r, NULL, NULL, NULL));
    SHOW("null_sets_sets");
    RESET();
    DO("count_too_small", select(p.client, &r, NULL, NULL, &zero));
    close(p.server);
    await(p.client, POLLRDHUP);
    char b[4];
    MUST(recv(p.client, b, 1, 0));
    RESET();
    DO("eof", select(100, &r, &w, &e, &zero));
    SHOW("eof_sets");
    FD_ZERO(&r);
    FD_SET(p.client, &r);
    FD_SET(50, &r);
    DO("closed_member", select(60, &r, NULL, NULL, &zero));
    DO("negative_count", select(-1, NULL, NULL, NULL, &zero));
    struct timeval bad = {-1, 0};
    FD_ZERO(&r);
    FD_SET(u, &r);
    DO("bad_time", select(u + 1, &r, NULL, NULL, &bad));
    struct timeval short_time = {0, 50000};
    double start = now_s();
    DO("times_out", select(u + 1, &r, NULL, NULL, &short_time));
    say("not_early", "%d", now_s() - start >= 0.049);
    say("time_left", "%ld %ld", (long)short_time.tv_sec, (long)short_time.tv_usec);
    say("cleared", "%d", !!FD_ISSET(u, &r));
    struct timeval long_time = {100, 0};
    FD_SET(u, &r);
    MUST(send_to(u, "x", 1, own4, port_of(u)));
    DO("early", select(u + 1, &r, NULL, NULL, &long_time));
    say("most_time_left", "%d", long_time.tv_sec >= 90);
    struct timespec ts = {0, 0};
    DO("pselect", pselect(u + 1, &r, NULL, NULL, &ts, NULL));
    DO("pselect_sets", FD_ISSET(u, &r) ? 1 : 0);
    struct timespec bad_ts = {0, 1000000000};
    DO("pselect_bad_time", pselect(u + 1, &r, NULL, NULL, &bad_ts, NULL));
}

CHECK(select_high_fd) {
    struct pair p = tcp_pair();
    int high = MUST(dup2(p.client, 1000));
    fd_set r, w;
    FD_ZERO(&r);
    FD_ZERO(&w);
    FD_SET(high, &r);
    FD_SET(high, &w);
    struct timeval zero = {0, 0};
    DO("select", select(1001, &r, &w, NULL, &zero));
    say("sets", "%d%d", !!FD_ISSET(high, &r), !!FD_ISSET(high, &w));
}

static volatile sig_atomic_t got;
static void on_signal(int number) { got = number; }

CHECK(masks) {
    struct pair p = tcp_pair();
    struct sigaction a = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &a, NULL);
    sigset_t block, none;
    sigemptyset(&none);
    sigemptyset(&block);
    sigaddset(&block, SIGUSR1);
    sigprocmask(SIG_BLOCK, &block, NULL);
    kill(getpid(), SIGUSR1);
    struct pollfd one = {.fd = p.client, .events = POLLIN};
    struct timespec t = {0, 1000000};
    DO("ppoll_blocked", ppoll(&one, 1, &t, NULL));
    say("not_yet", "%d", (int)got);
    DO("ppoll_unblocks", ppoll(&one, 1, NULL, &none));
    say("came", "%d", (int)got);
    got = 0;
    kill(getpid(), SIGUSR1);
    fd_set r;
    FD_ZERO(&r);
    FD_SET(p.client, &r);
    DO("pselect_unblocks", pselect(p.client + 1, &r, NULL, NULL, NULL, &none));
    say("came_2", "%d", (int)got);
    got = 0;
    kill(getpid(), SIGUSR1);
    MUST(send(p.server, "x", 1, 0));
    await(p.client, POLLIN);
    DO("ready_and_pending", ppoll(&one, 1, NULL, &none));
    settle();
    sigset_t pending;
    sigpending(&pending);
    say("came_3", "%d", got || sigismember(&pending, SIGUSR1));
}

CHECK(write_room) {
    struct pair p = tcp_pair();
    nonblocking(p.client);
    static char block[65536];
    long total = 0, n;
    while ((n = send(p.client, block, sizeof block, 0)) > 0) {
        total += n;
    }
    settle();
    while ((n = send(p.client, block, sizeof block, 0)) > 0) {
        total += n;
    }
    DO("full", n);
    say("some", "%d", total > 10000);
    say("poll_full", "%s", bits(ready(p.client, POLLOUT, 0)));
    long drained = 0;
    while (drained < total) {
        n = recv(p.server, block, sizeof block, 0);
        if (n <= 0) {
            break;
        }
        drained += n;
    }
    say("all_came", "%d", drained == total);
    say("poll_room", "%s", bits(await(p.client, POLLOUT)));
    DO("send_again", send(p.client, block, 100, 0));
}

CHECK(shutdown_bits) {
    struct pair p = tcp_pair();
    shutdown(p.client, SHUT_RD);
    say("rd", "%s", bits(ready(p.client, ALL, 0)));
    shutdown(p.client, SHUT_WR);
    say("rdwr", "%s", bits(ready(p.client, ALL, 0)));
    settle();
    say("rdwr_later", "%s", bits(ready(p.client, ALL, 0)));
    say("peer", "%s", bits(ready(p.server, ALL, 0)));
}

CHECK(eventfd_and_signalfd_with_socket) {
    struct pair p = tcp_pair();
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int s = MUST(signalfd(-1, &set, 0));
    struct pollfd fds[2] = {{.fd = p.client, .events = POLLIN}, {.fd = s, .events = POLLIN}};
    kill(getpid(), SIGUSR2);
    DO("poll", poll(fds, 2, 1000));
    say("signalfd", "%s", bits(fds[1].revents));
    say("socket", "%s", bits(fds[0].revents));
    struct signalfd_siginfo info;
    DO("read", read(s, &info, sizeof info));
    say("number", "%u", info.ssi_signo);
}

CHECK(unix_socket_with_ours) {
    struct pair p = tcp_pair();
    int u[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, u));
    MUST(write(u[0], "u", 1));
    struct pollfd fds[2] = {{.fd = p.client, .events = POLLIN}, {.fd = u[1], .events = POLLIN | POLLOUT}};
    DO("poll", poll(fds, 2, -1));
    say("unix", "%s", bits(fds[1].revents));
    say("tcp", "%s", bits(fds[0].revents));
}
