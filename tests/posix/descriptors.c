// Descriptors as such: numbers, dup and its kin, close and its kin, fcntl, ioctl.
#include "check.h"
#include <linux/close_range.h>
#include <net/if.h>

CHECK(lowest_free) {
    int a = MUST(socket(AF_INET, SOCK_STREAM, 0));
    say("first_is_3", "%d", a);
    MUST(bind_to(a, own4, 0));
    int b = MUST(socket(AF_INET, SOCK_STREAM, 0));
    say("second", "%d", b - a);
    MUST(listen(a, 4));
    int c = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    say("third", "%d", c - a);
    close(b);
    int d = MUST(open("/dev/null", O_RDONLY));
    say("hole_is_filled", "%d", d - a);
    int client = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect_to(client, own4, port_of(a)));
    say("client", "%d", client - a);
    close(c);
    int s = MUST(accept(a, NULL, NULL));
    say("accepted_fills_hole", "%d", s - a);
    int pipes[2];
    MUST(pipe(pipes));
    say("pipe", "%d %d", pipes[0] - a, pipes[1] - a);
    int ep = MUST(epoll_create1(0));
    say("epoll", "%d", ep - a);
    struct epoll_event e = {.events = EPOLLIN};
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, a, &e));
    MUST(epoll_wait(ep, &e, 1, 1));
    ready(a, POLLIN, 1);
    int next = MUST(open("/dev/null", O_RDONLY));
    say("after_waiting", "%d", next - a);
    say("dup", "%d", (int)MUST(dup(s)) - a);
    say("fdupfd", "%d", (int)MUST(fcntl(s, F_DUPFD, a + 100)) - a);
}

CHECK(duplicates) {
    struct pair p = tcp_pair();
    char b[8];
    int copy = OK("dup", dup(p.client));
    DO("send_through_copy", send(copy, "copy", 4, 0));
    int n = DO("recv", recv(p.server, b, 8, 0));
    say("data", "%s", shown(b, n));
    close(p.client);
    DO("original_closed", send(p.client, "x", 1, 0));
    DO("copy_lives", send(copy, "still", 5, 0));
    DO("recv_2", recv(p.server, b, 8, 0));
    DO("no_fin_yet", recv(p.server, b, 8, MSG_DONTWAIT));
    say_peer("copy_peer", copy);
    close(copy);
    DO("fin_after_last", recv(p.server, b, 8, 0));
    struct pair q = tcp_pair(), r = tcp_pair();
    DO("dup2_onto_a_socket", dup2(q.client, r.client) == r.client ? 0 : -1);
    DO("old_one_sends_fin", recv(r.server, b, 8, 0));
    DO("new_one_works", send(r.client, "new", 3, 0));
    DO("new_one_arrives", recv(q.server, b, 8, 0));
    DO("dup2_same", dup2(q.client, q.client) == q.client ? 0 : -1);
    DO("dup2_bad_source", dup2(999, q.client));
    DO("after_bad_dup2", send(q.client, "x", 1, 0));
    DO("dup2_bad_target", dup2(q.client, -1));
    DO("dup3_same", dup3(q.client, q.client, 0));
    DO("dup3_bad_flag", dup3(q.client, 50, 0x5555));
    DO("dup3_cloexec", dup3(q.client, 50, O_CLOEXEC));
    DO("dup3_flags", fcntl(50, F_GETFD));
    int file = MUST(open("/dev/null", O_RDWR));
    struct pair s = tcp_pair();
    DO("file_onto_socket", dup2(file, s.client) == s.client ? 0 : -1);
    DO("fin_from_replaced", recv(s.server, b, 8, 0));
    DO("it_is_the_file_now", write(s.client, "to null", 7));
    struct pair t = tcp_pair();
    MUST(dup2(t.client, file));
    DO("socket_onto_file", send(file, "q", 1, 0));
    DO("arrives", recv(t.server, b, 8, 0));
}

CHECK(shared_flags) {
    struct pair p = tcp_pair();
    int copy = MUST(dup(p.client));
    nonblocking(p.client);
    char b;
    DO("copy_is_nonblocking_too", recv(copy, &b, 1, 0));
    say("getfl", "%d", !!(fcntl(copy, F_GETFL) & O_NONBLOCK));
    int off = 0, on = 1;
    DO("fionbio_off", ioctl(copy, FIONBIO, &off));
    say("getfl_off", "%d", !!(fcntl(p.client, F_GETFL) & O_NONBLOCK));
    DO("fionbio_on", ioctl(p.client, FIONBIO, &on));
    DO("again", recv(copy, &b, 1, 0));
    DO("fd_cloexec_is_not_shared", ({
           fcntl(p.client, F_SETFD, FD_CLOEXEC);
           fcntl(copy, F_GETFD);
       }));
    DO("fdupfd_cloexec", ({
           int fd = MUST(fcntl(p.client, F_DUPFD_CLOEXEC, 60));
           fcntl(fd, F_GETFD);
       }));
    say("access_mode", "%d", fcntl(p.client, F_GETFL) & O_ACCMODE);
    DO("fioclex", ({
           ioctl(copy, FIOCLEX);
           fcntl(copy, F_GETFD);
       }));
    DO("fionclex", ({
           ioctl(copy, FIONCLEX);
           fcntl(copy, F_GETFD);
       }));
    DO("accept_does_not_inherit", ({
           int l = tcp_listener(own4, 2);
           nonblocking(l);
           int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
           MUST(connect_to(c, own4, port_of(l)));
           await(l, POLLIN);
           int s = MUST(accept(l, NULL, NULL));
           fcntl(s, F_GETFL) & O_NONBLOCK;
       }));
    DO("accept4_flags", ({
           int l = tcp_listener(own4, 2);
           int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
           MUST(connect_to(c, own4, port_of(l)));
           int s = MUST(accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC));
           (fcntl(s, F_GETFL) & O_NONBLOCK ? 1 : 0) + 2 * fcntl(s, F_GETFD);
       }));
    DO("accept4_bad", ({
           int l = tcp_listener(own4, 2);
           accept4(l, NULL, NULL, 0x123);
       }));
}

CHECK(bad_numbers) {
    char b;
    for (int i = 0; i < 3; i++) {
        int fd = i == 0 ? -1 : i == 1 ? 800 : 1 << 30;
        static const char *names[] = {"negative", "closed", "huge"};
        char label[64];
#define EACH(call, expression)                                                                                         \
    snprintf(label, sizeof label, "%s_%s", names[i], call);                                                            \
    DO(label, expression)
        EACH("read", read(fd, &b, 1));
        EACH("write", write(fd, &b, 1));
        EACH("recv", recv(fd, &b, 1, 0));
        EACH("send", send(fd, &b, 1, 0));
        EACH("bind", bind_to(fd, own4, 0));
        EACH("listen", listen(fd, 1));
        EACH("accept", accept(fd, NULL, NULL));
        EACH("connect", connect_to(fd, own4, 1));
        EACH("shutdown", shutdown(fd, SHUT_RD));
        EACH("getsockopt", option_of(fd, SOL_SOCKET, SO_ERROR));
        EACH("dup", dup(fd));
        EACH("dup2", dup2(fd, 70));
        EACH("fcntl", fcntl(fd, F_GETFL));
        EACH("close", close(fd));
        EACH("epoll_ctl", ({
                 struct epoll_event e = {0};
                 epoll_ctl(fd, EPOLL_CTL_ADD, 0, &e);
             }));
    }
    int file = file_of(4, 0);
    DO("file_bind", bind_to(file, own4, 0));
    DO("file_listen", listen(file, 1));
    DO("file_recv", recv(file, &b, 1, 0));
    DO("file_send", send(file, &b, 1, 0));
    DO("file_getsockopt", option_of(file, SOL_SOCKET, SO_TYPE));
    DO("file_shutdown", shutdown(file, SHUT_RD));
    union address a;
    socklen_t len = sizeof a;
    DO("file_getsockname", getsockname(file, &a.any, &len));
}

CHECK(ranges) {
    struct pair p = tcp_pair(), q = tcp_pair();
    char b;
    int low = MUST(fcntl(p.client, F_DUPFD, 200));
    int high = MUST(fcntl(q.client, F_DUPFD, 201));
    close(p.client);
    close(q.client);
    DO("close_range", close_range(200, 210, 0));
    DO("first_gone", recv(p.server, &b, 1, 0));
    DO("second_gone", recv(q.server, &b, 1, 0));
    DO("numbers_free", fcntl(low, F_GETFD));
    DO("numbers_free_2", fcntl(high, F_GETFD));
    DO("bad_order", close_range(5, 4, 0));
    DO("bad_flag", close_range(200, 210, 0x77));
    struct pair r = tcp_pair();
    MUST(dup2(r.client, 220));
    DO("only_cloexec", close_range(220, 230, CLOSE_RANGE_CLOEXEC));
    DO("is_cloexec", fcntl(220, F_GETFD));
    DO("still_works", send(220, "x", 1, 0));
    closefrom(3);
    DO("all_gone", fcntl(220, F_GETFD));
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    say("lowest_again", "%d", fd);
    DO("sockets_still_work", bind_to(fd, own4, 0));
    DO("listen", listen(fd, 1));
}

CHECK(ioctls) {
    struct pair p = tcp_pair();
    int n = -1;
    DO("fionread_empty", ioctl(p.server, FIONREAD, &n));
    say("fionread_empty_is", "%d", n);
    MUST(send(p.client, "12345", 5, 0));
    await(p.server, POLLIN);
    ioctl(p.server, FIONREAD, &n);
    say("fionread_is", "%d", n);
    settle();
    DO("outq", ioctl(p.client, TIOCOUTQ, &n));
    say("outq_is", "%d", n);
    DO("outqnsd", ioctl(p.client, 0x894B, &n));
    say("outqnsd_is", "%d", n);
    DO("unknown", ioctl(p.client, 0x12345678, &n));
    DO("null", ioctl(p.client, FIONREAD, NULL));
    int u = udp_bound(own4);
    MUST(send_to(u, "abc", 3, own4, port_of(u)));
    MUST(send_to(u, "defgh", 5, own4, port_of(u)));
    await(u, POLLIN);
    settle();
    ioctl(u, FIONREAD, &n);
    say("udp_fionread_is_the_first", "%d", n);
    ioctl(u, TIOCOUTQ, &n);
    say("udp_outq", "%d", n);
    struct ifconf list = {.ifc_len = 0};
    DO("gifconf", ioctl(u, SIOCGIFCONF, &list));
    struct ifreq r = {.ifr_name = "lo"};
    DO("gifindex", ioctl(u, SIOCGIFINDEX, &r));
    DO("gifflags", ioctl(u, SIOCGIFFLAGS, &r));
}

CHECK(fcntls) {
    struct pair p = tcp_pair();
    DO("setown", fcntl(p.client, F_SETOWN, getpid()));
    say("getown", "%d", fcntl(p.client, F_GETOWN) == getpid());
    DO("dupfd_negative", fcntl(p.client, F_DUPFD, -1));
    DO("dupfd_huge", fcntl(p.client, F_DUPFD, 1 << 30));
    DO("unknown", fcntl(p.client, 9999));
    DO("setfl_append", fcntl(p.client, F_SETFL, O_APPEND));
    say("getfl", "%x", fcntl(p.client, F_GETFL) & (O_APPEND | O_NONBLOCK));
}

CHECK(stat_of_a_socket) {
    struct pair p = tcp_pair();
    struct stat a, b;
    MUST(fstat(p.client, &a));
    MUST(fstat(p.server, &b));
    say("is_socket", "%d%d", S_ISSOCK(a.st_mode), S_ISSOCK(b.st_mode));
    say("differ", "%d", a.st_ino != b.st_ino);
    char path[64], target[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", p.client);
    int n = readlink(path, target, sizeof target - 1);
    target[n < 0 ? 0 : n] = 0;
    say("link", "%.8s", target);
    say("isatty", "%d %s", isatty(p.client), error_name(errno));
}
