// Pointers that are none: EFAULT, never a crash.
#include "check.h"

static char *nowhere(int kind) {
    static char *no_access, *read_only;
    if (!no_access) {
        no_access = mmap(NULL, 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        read_only = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    switch (kind) {
    case 0:
        return NULL;
    case 1:
        return (char *)8;
    case 2:
        return (char *)-8;
    case 3:
        return no_access;
    default:
        return read_only;
    }
}

static const char *kinds[] = {"null", "low", "high", "no_access", "read_only"};

CHECK(bytes_in) {
    struct pair p = tcp_pair();
    int u = udp_bound(own4), v = udp_bound(own4);
    MUST(connect_to(v, own4, port_of(u)));
    for (int k = 0; k < 5; k++) {
        char label[64], *bad = nowhere(k);
#define BAD(name, call)                                                                                                \
    snprintf(label, sizeof label, "%s_%s", name, kinds[k]);                                                            \
    DO(label, call)
        MUST(send(p.client, "x", 1, 0));
        await(p.server, POLLIN);
        BAD("recv", recv(p.server, bad, 1, 0));
        BAD("read", read(p.server, bad, 1));
        struct iovec iov = {bad, 1};
        BAD("readv", readv(p.server, &iov, 1));
        struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
        BAD("recvmsg", recvmsg(p.server, &m, 0));
        char b;
        BAD("still_there", recv(p.server, &b, 1, MSG_DONTWAIT));
        MUST(send(v, "d", 1, 0));
        await(u, POLLIN);
        BAD("udp_recv", recv(u, bad, 1, 0));
        recv(u, &b, 1, MSG_DONTWAIT);
    }
}

CHECK(bytes_out) {
    struct pair p = tcp_pair();
    int u = udp_bound(own4);
    MUST(connect_to(u, own4, port_of(u)));
    for (int k = 0; k < 4; k++) {
        char label[64], *bad = nowhere(k);
        BAD("send", send(p.client, bad, 1, 0));
        BAD("write", write(p.client, bad, 1));
        struct iovec iov = {bad, 1};
        BAD("writev", writev(p.client, &iov, 1));
        BAD("writev_list", writev(p.client, (struct iovec *)bad, 1));
        BAD("sendmsg", sendmsg(p.client, (struct msghdr *)bad, 0));
        BAD("udp_send", send(u, bad, 1, 0));
        BAD("sendto_name", sendto(u, "x", 1, 0, (struct sockaddr *)bad, bad ? 16 : 0) < 0 ? -1 : 0);
    }
}

CHECK(addresses) {
    int l = tcp_listener(own4, 4);
    struct pair p = tcp_pair();
    for (int k = 0; k < 5; k++) {
        char label[64], *bad = nowhere(k);
        int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
        if (k < 4) {
            BAD("bind", bind(fd, (struct sockaddr *)bad, 16));
            BAD("connect", connect(fd, (struct sockaddr *)bad, 16));
        }
        union address a;
        socklen_t len = sizeof a;
        BAD("getsockname", getsockname(p.client, (struct sockaddr *)bad, &len));
        BAD("getsockname_len", getsockname(p.client, &a.any, (socklen_t *)bad));
        BAD("getpeername", getpeername(p.client, (struct sockaddr *)bad, &len));
        int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(connect_to(c, own4, port_of(l)));
        await(l, POLLIN);
        if (k > 0) {
            BAD("accept", accept(l, (struct sockaddr *)bad, &len));
        }
        close(fd);
    }
    socklen_t negative = -1;
    union address a;
    DO("negative_len", getsockname(p.client, &a.any, &negative));
    socklen_t zero = 0;
    DO("zero_len", getsockname(p.client, &a.any, &zero));
    say("zero_len_is", "%u", zero);
    socklen_t four = 4;
    memset(&a, 0xee, sizeof a);
    DO("four_len", getsockname(p.client, &a.any, &four));
    say("four_len_is", "%u", four);
    say("not_beyond", "%d", ((unsigned char *)&a)[4] == 0xee);
}

CHECK(options_and_sets) {
    struct pair p = tcp_pair();
    int ep = MUST(epoll_create1(0));
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT};
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, p.client, &e));
    for (int k = 0; k < 5; k++) {
        char label[64], *bad = nowhere(k);
        int value = 1;
        socklen_t len = 4;
        BAD("getsockopt", getsockopt(p.client, SOL_SOCKET, SO_ERROR, bad, &len));
        BAD("getsockopt_len", getsockopt(p.client, SOL_SOCKET, SO_ERROR, &value, (socklen_t *)bad));
        if (k < 4) {
            BAD("setsockopt", setsockopt(p.client, SOL_SOCKET, SO_KEEPALIVE, bad, 4));
            BAD("epoll_ctl", epoll_ctl(ep, EPOLL_CTL_MOD, p.client, (struct epoll_event *)bad));
        }
        BAD("epoll_wait", epoll_wait(ep, (struct epoll_event *)bad, 1, 0));
        BAD("poll", poll((struct pollfd *)bad, 1, 0));
        if (k > 0) {
            BAD("select", select(p.client + 1, (fd_set *)bad, NULL, NULL, &(struct timeval){0, 0}));
        }
        BAD("fionread", ioctl(p.client, FIONREAD, bad));
    }
}

CHECK(boundary) {
    struct pair p = tcp_pair();
    char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(pages + 4096, 4096, PROT_NONE);
    DO("last_bytes_of_a_page", send(p.client, pages + 4092, 4, 0));
    MUST(send(p.client, "1234", 4, 0));
    settle();
    DO("into_the_last_bytes", recv(p.server, pages + 4092, 4, 0));
    DO("control_null_with_len", ({
           struct iovec iov = {"x", 1};
           struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_controllen = 24};
           int u = udp_bound(own4);
           MUST(connect_to(u, own4, port_of(u)));
           sendmsg(u, &m, 0);
       }));
    DO("control_bad", ({
           struct iovec iov = {"x", 1};
           struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = nowhere(1), .msg_controllen = 24};
           int u = udp_bound(own4);
           MUST(connect_to(u, own4, port_of(u)));
           sendmsg(u, &m, 0);
       }));
}
