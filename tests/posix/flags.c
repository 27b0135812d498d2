// MSG_* flags, timeouts of calls, SO_LINGER, SIGPIPE.
#include "check.h"

CHECK(peek) {
    struct pair p = tcp_pair();
    char b[16];
    MUST(send(p.client, "abcdef", 6, 0));
    await(p.server, POLLIN);
    int n = DO("peek", recv(p.server, b, 3, MSG_PEEK));
    say("peeked", "%s", shown(b, n));
    n = DO("peek_again", recv(p.server, b, 16, MSG_PEEK));
    say("peeked_again", "%s", shown(b, n));
    n = DO("take", recv(p.server, b, 16, 0));
    say("taken", "%s", shown(b, n));
    DO("peek_empty", recv(p.server, b, 16, MSG_PEEK | MSG_DONTWAIT));
    close(p.client);
    await(p.server, POLLIN);
    DO("peek_eof", recv(p.server, b, 16, MSG_PEEK));
    DO("eof", recv(p.server, b, 16, 0));
}

static void *two_parts(void *argument) {
    int fd = *(int *)argument;
    MUST(send(fd, "first", 5, 0));
    pause_ms(60);
    MUST(send(fd, "second", 6, 0));
    return NULL;
}

CHECK(waitall) {
    struct pair p = tcp_pair();
    pthread_t t;
    char b[32];
    pthread_create(&t, NULL, two_parts, &p.client);
    int n = DO("waitall", recv(p.server, b, 11, MSG_WAITALL));
    say("data", "%s", shown(b, n));
    pthread_join(t, NULL);
    MUST(send(p.client, "short", 5, 0));
    shutdown(p.client, SHUT_WR);
    n = DO("waitall_cut_by_fin", recv(p.server, b, 20, MSG_WAITALL));
    say("cut", "%s", shown(b, n));
    struct pair q = tcp_pair();
    MUST(send(q.client, "abc", 3, 0));
    await(q.server, POLLIN);
    DO("waitall_dontwait", recv(q.server, b, 10, MSG_WAITALL | MSG_DONTWAIT));
    pthread_create(&t, NULL, two_parts, &q.client);
    n = DO("peek_waitall", recv(q.server, b, 11, MSG_PEEK | MSG_WAITALL));
    say("peek_waitall_data", "%s", shown(b, n));
    pthread_join(t, NULL);
    n = DO("read_waits_for_nothing", read(q.server, b, 32));
    struct timeval tv = {0, 80000};
    MUST(setsockopt(q.server, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv));
    MUST(send(q.client, "abc", 3, 0));
    DO("waitall_timeout", recv(q.server, b, 10, MSG_WAITALL));
}

CHECK(trunc) {
    struct pair p = tcp_pair();
    MUST(send(p.client, "0123456789", 10, 0));
    await(p.server, POLLIN);
    char b[4] = "zzz";
    DO("throw_away", recv(p.server, b, 4, MSG_TRUNC));
    say("buffer_untouched", "%s", shown(b, 3));
    DO("null_buffer", recv(p.server, NULL, 2, MSG_TRUNC));
    int n = DO("rest", recv(p.server, b, 4, 0));
    say("rest_is", "%s", shown(b, n));
}

CHECK(dontwait) {
    struct pair p = tcp_pair();
    char b[4];
    DO("recv", recv(p.server, b, 4, MSG_DONTWAIT));
    int u = udp_bound(own4);
    DO("udp", recv(u, b, 4, MSG_DONTWAIT));
    say("flags_unchanged", "%d", !!(fcntl(p.server, F_GETFL) & O_NONBLOCK));
    static char block[65536];
    long n;
    int calls = 0;
    while ((n = send(p.client, block, sizeof block, MSG_DONTWAIT)) > 0 && calls < 10000) {
        calls++;
    }
    say("send_full", "%ld %s", n, error_name(errno));
}

CHECK(oob) {
    struct pair p = tcp_pair();
    char b[8];
    DO("recv_none", recv(p.server, b, 1, MSG_OOB | MSG_DONTWAIT));
    int u = udp_bound(own4);
    DO("udp_send", send_to(u, "x", 1, own4, port_of(u)));
    DO("udp_oob_send", ({
           union address a;
           socklen_t len = address_of(&a, own4, 9);
           sendto(u, "x", 1, MSG_OOB, &a.any, len);
       }));
    await(u, POLLIN);
    DO("udp_oob_recv", recv(u, b, 1, MSG_OOB | MSG_DONTWAIT));
    int on = 1;
    DO("oobinline", setsockopt(p.server, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on));
    say("oobinline_is", "%d", option_of(p.server, SOL_SOCKET, SO_OOBINLINE));
    DO("sockatmark", ({
           int at = -1;
           int r = ioctl(p.server, SIOCATMARK, &at);
           r < 0 ? r : at;
       }));
}

CHECK(errqueue) {
    struct pair p = tcp_pair();
    char b[8];
    DO("tcp", recv(p.client, b, 8, MSG_ERRQUEUE));
    int u = udp_bound(own4);
    DO("udp", recv(u, b, 8, MSG_ERRQUEUE));
}

CHECK(more) {
    struct pair p = tcp_pair();
    char b[32];
    DO("more", send(p.client, "abc", 3, MSG_MORE));
    DO("end", send(p.client, "def", 3, 0));
    await(p.server, POLLIN);
    settle();
    int n = DO("together", recv(p.server, b, 32, 0));
    say("data", "%s", shown(b, n));
    int on = 1, off = 0;
    MUST(setsockopt(p.client, IPPROTO_TCP, TCP_CORK, &on, sizeof on));
    MUST(send(p.client, "12", 2, 0));
    MUST(send(p.client, "34", 2, 0));
    settle();
    DO("corked", recv(p.server, b, 32, MSG_DONTWAIT));
    MUST(setsockopt(p.client, IPPROTO_TCP, TCP_CORK, &off, sizeof off));
    n = DO("uncorked", recv(p.server, b, 32, 0));
    say("uncorked_data", "%s", shown(b, n));
    // UDP puts the pieces together into one datagram.
    int a = udp_bound(own4), u = udp_bound(own4);
    MUST(connect_to(a, own4, port_of(u)));
    DO("udp_more", send(a, "one", 3, MSG_MORE));
    DO("udp_end", send(a, "two", 3, 0));
    n = DO("udp_recv", recv(u, b, 32, 0));
    say("udp_data", "%s", shown(b, n));
}

CHECK(receive_timeout) {
    struct pair p = tcp_pair();
    struct timeval tv = {0, 60000};
    DO("set", setsockopt(p.server, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv));
    char b;
    double start = now_s();
    DO("recv", recv(p.server, &b, 1, 0));
    say("not_early", "%d", now_s() - start >= 0.055);
    start = now_s();
    DO("read", read(p.server, &b, 1));
    say("read_not_early", "%d", now_s() - start >= 0.055);
    int l = tcp_listener(own4, 1);
    MUST(setsockopt(l, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv));
    DO("accept", accept(l, NULL, NULL));
    int u = udp_bound(own4);
    MUST(setsockopt(u, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv));
    DO("udp", recv(u, &b, 1, 0));
    struct timeval back = {9, 9};
    socklen_t len = sizeof back;
    DO("get", getsockopt(u, SOL_SOCKET, SO_RCVTIMEO, &back, &len));
    say("value", "%ld.%06ld (%u)", (long)back.tv_sec, (long)back.tv_usec, len);
    tv.tv_usec = 1000000;
    DO("bad_microseconds", setsockopt(u, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv));
    tv.tv_usec = 0;
    DO("short", setsockopt(u, SOL_SOCKET, SO_RCVTIMEO, &tv, 4));
    DO("inherited", ({
           int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
           MUST(connect_to(c, own4, port_of(l)));
           int s = MUST(accept(l, NULL, NULL));
           struct timeval got;
           socklen_t n = sizeof got;
           getsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &got, &n);
           got.tv_usec;
       }));
}

CHECK(send_timeout) {
    struct pair p = tcp_pair();
    struct timeval tv = {0, 100000};
    MUST(setsockopt(p.client, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv));
    size_t len = 64 << 20;
    char *big = calloc(1, len);
    long n = send(p.client, big, len, 0);
    say("partial", "%d", n > 0 && n < (long)len);
    // Buffers grow as they please; at some time no byte fits.
    for (int i = 0; i < 20 && (n = send(p.client, big, len, 0)) > 0; i++) {
    }
    DO("then_nothing", n);
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    tv.tv_usec = 50000;
    MUST(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof tv));
    DO("connect_nobody_answers", connect_to(fd, "10.77.0.200", 9));
}

CHECK(linger) {
    struct linger l = {9, 9};
    socklen_t len = sizeof l;
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("get_default", getsockopt(fd, SOL_SOCKET, SO_LINGER, &l, &len));
    say("default", "%d %d (%u)", l.l_onoff, l.l_linger, len);
    l = (struct linger){1, 5};
    DO("set", setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l));
    l = (struct linger){0, 0};
    getsockopt(fd, SOL_SOCKET, SO_LINGER, &l, &len);
    say("is", "%d %d", l.l_onoff, l.l_linger);
    DO("short", setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, 4));
    struct pair p = tcp_pair();
    l = (struct linger){1, 10};
    MUST(setsockopt(p.client, SOL_SOCKET, SO_LINGER, &l, sizeof l));
    MUST(send(p.client, "last words", 10, 0));
    double start = now_s();
    DO("close_with_time", close(p.client));
    say("quick_when_the_peer_reads", "%d", now_s() - start < 5);
    char b[16];
    int n = DO("words", recv(p.server, b, 16, 0));
    say("words_are", "%s", shown(b, n));
    DO("then_eof", recv(p.server, b, 16, 0));
}

CHECK(linger_waits) {
    struct pair p = tcp_pair();
    struct linger l = {1, 1};
    nonblocking(p.client);
    static char block[65536];
    // More than the peer's window takes, so that the end can't be sent.
    for (int round = 0; round < 3; round++) {
        while (send(p.client, block, sizeof block, 0) > 0) {
        }
        settle();
    }
    fcntl(p.client, F_SETFL, 0);
    MUST(setsockopt(p.client, SOL_SOCKET, SO_LINGER, &l, sizeof l));
    double start = now_s();
    DO("close", close(p.client));
    double took = now_s() - start;
    say("waited_the_time", "%d", took > 0.8 && took < 5);
}

static volatile sig_atomic_t pipes_broken;
static void on_pipe(int number) {
    (void)number;
    pipes_broken++;
}

CHECK(sigpipe) {
    struct sigaction a = {.sa_handler = on_pipe};
    sigaction(SIGPIPE, &a, NULL);
    struct pair p = tcp_pair();
    shutdown(p.client, SHUT_WR);
    DO("send", send(p.client, "x", 1, 0));
    say("signals_send", "%d", (int)pipes_broken);
    DO("nosignal", send(p.client, "x", 1, MSG_NOSIGNAL));
    say("signals_nosignal", "%d", (int)pipes_broken);
    DO("write", write(p.client, "x", 1));
    say("signals_write", "%d", (int)pipes_broken);
    struct iovec iov = {"x", 1};
    DO("writev", writev(p.client, &iov, 1));
    say("signals_writev", "%d", (int)pipes_broken);
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    DO("sendmsg", sendmsg(p.client, &m, 0));
    say("signals_sendmsg", "%d", (int)pipes_broken);
    DO("sendmsg_nosignal", sendmsg(p.client, &m, MSG_NOSIGNAL));
    int file = file_of(100, 0);
    DO("sendfile", sendfile(p.client, file, NULL, 10));
    say("signals_end", "%d", (int)pipes_broken);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGPIPE, SIG_DFL);
        send(p.client, "x", 1, 0);
        _exit(0);
    }
    reap("default_kills", child);
    int u = udp_bound(own4);
    shutdown(u, SHUT_WR);
    pipes_broken = 0;
    DO("udp", send_to(u, "x", 1, own4, 9));
    say("udp_signals", "%d", (int)pipes_broken);
}

CHECK(unknown_flags) {
    struct pair p = tcp_pair();
    DO("send_confirm", send(p.client, "x", 1, MSG_CONFIRM));
    DO("send_dontroute", send(p.client, "x", 1, MSG_DONTROUTE));
    DO("send_eor", send(p.client, "x", 1, MSG_EOR));
    char b[8];
    await(p.server, POLLIN);
    settle();
    DO("recv_cmsg_cloexec", recv(p.server, b, 8, MSG_CMSG_CLOEXEC));
}
