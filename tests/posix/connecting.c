// connect() without waiting, and what it finds.
#include "check.h"

static int fresh(void) { return MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)); }

CHECK(succeeds) {
    int l = tcp_listener(own4, 4);
    int fd = fresh();
    errno = 0;
    int r = connect_to(fd, own4, port_of(l));
    say("under_way_or_done", "%d", r == 0 || errno == EINPROGRESS);
    say("poll", "%s", bits(await(fd, POLLOUT)));
    say("so_error", "%d", option_of(fd, SOL_SOCKET, SO_ERROR));
    r = connect_to(fd, own4, port_of(l));
    int first = r < 0 ? errno : 0;
    say("then_done_or_connected", "%d", first == 0 || first == EISCONN);
    DO("again", connect_to(fd, own4, port_of(l)));
    say("server_poll", "%s", bits(await(l, POLLIN)));
    OK("accept", accept(l, NULL, NULL));
}

CHECK(refused) {
    int fd = fresh();
    DO("connect", connect_to(fd, peer4, 9));
    say("poll", "%s", bits(await(fd, POLLOUT)));
    pause_ms(50);
    say("poll_all", "%s", bits(ready(fd, POLLIN | POLLOUT | POLLRDHUP, 0)));
    say("so_error", "%d", option_of(fd, SOL_SOCKET, SO_ERROR));
    say("so_error_again", "%d", option_of(fd, SOL_SOCKET, SO_ERROR));
    say("poll_after", "%s", bits(ready(fd, POLLIN | POLLOUT | POLLRDHUP, 0)));
    say_peer("peer", fd);
    char b;
    DO("recv", recv(fd, &b, 1, 0));
    DO("send", send(fd, &b, 1, MSG_NOSIGNAL));
}

CHECK(refused_then_connect) {
    int fd = fresh();
    DO("connect", connect_to(fd, peer4, 9));
    await(fd, POLLOUT);
    pause_ms(50);
    DO("connect_tells", connect_to(fd, peer4, 9));
    DO("connect_starts_again", connect_to(fd, peer4, 9));
    await(fd, POLLOUT);
    pause_ms(50);
    char b;
    DO("recv_tells", recv(fd, &b, 1, 0));
    DO("recv_again", recv(fd, &b, 1, 0));
}

CHECK(refused_then_send) {
    int fd = fresh();
    DO("connect", connect_to(fd, peer4, 9));
    await(fd, POLLOUT);
    pause_ms(50);
    DO("send_tells", send(fd, "x", 1, MSG_NOSIGNAL));
    DO("send_again", send(fd, "x", 1, MSG_NOSIGNAL));
}

CHECK(under_way) {
    // Nobody answers for this address, so it stays under way until ARP gives up.
    int fd = fresh();
    DO("connect", connect_to(fd, "10.77.0.210", 9));
    DO("again", connect_to(fd, "10.77.0.210", 9));
    say("poll", "%s", bits(ready(fd, POLLIN | POLLOUT | POLLRDHUP, 0)));
    say("so_error", "%d", option_of(fd, SOL_SOCKET, SO_ERROR));
    char b;
    DO("recv", recv(fd, &b, 1, 0));
    DO("send", send(fd, "x", 1, MSG_NOSIGNAL));
    say_peer("peer", fd);
    say_name("name", fd);
    DO("listen", listen(fd, 1));
    DO("accept", accept(fd, NULL, NULL));
    DO("bind", bind_to(fd, own4, 0));
    DO("shutdown_wr", shutdown(fd, SHUT_WR));
    settle();
    say("poll_after_shutdown", "%s", bits(ready(fd, POLLIN | POLLOUT | POLLRDHUP, 0)));
}

CHECK(given_up) {
    int fd = fresh();
    DO("connect", connect_to(fd, "10.77.0.211", 9));
    union address u = {0};
    u.any.sa_family = AF_UNSPEC;
    DO("dissolve", connect(fd, &u.any, sizeof u.v4));
    say("poll", "%s", bits(ready(fd, POLLIN | POLLOUT | POLLRDHUP, 0)));
    int l = tcp_listener(own4, 4);
    int r = connect_to(fd, own4, port_of(l));
    say("connect_elsewhere", "%d", r == 0 || errno == EINPROGRESS);
    say("works", "%s", bits(await(fd, POLLOUT)));
    OK("accept", accept(l, NULL, NULL));
    DO("dissolve_connected", connect(fd, &u.any, sizeof u.v4));
    say_peer("peer_gone", fd);
    DO("close", close(fd));
}

CHECK(host_unreachable) {
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("blocking", connect_to(fd, "10.77.0.212", 9));
    int n = fresh();
    DO("nonblocking", connect_to(n, "10.77.0.213", 9));
    say("poll", "%s", bits(await(n, POLLOUT)));
    say("so_error", "%d", option_of(n, SOL_SOCKET, SO_ERROR));
    int six = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    DO("six", connect_to(six, "fd77::d00d", 9));
}

CHECK(no_route_at_once) {
    int fd = fresh();
    DO("nonblocking", connect_to(fd, "192.0.2.9", 9));
    say("poll", "%s", bits(ready(fd, POLLIN | POLLOUT | POLLRDHUP, 0)));
    say("so_error", "%d", option_of(fd, SOL_SOCKET, SO_ERROR));
}

CHECK(accept_nonblocking) {
    int l = tcp_listener(own4, 4);
    nonblocking(l);
    DO("none", accept(l, NULL, NULL));
    int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect_to(c, own4, port_of(l)));
    await(l, POLLIN);
    OK("one", accept(l, NULL, NULL));
    DO("no_more", accept(l, NULL, NULL));
}

CHECK(bound_then_connected) {
    int l = tcp_listener(own4, 4);
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0)), on = 1;
    MUST(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    MUST(bind_to(fd, own4, 0));
    know_port(port_of(fd), "bound");
    DO("connect", connect_to(fd, own4, port_of(l)));
    say_name("name", fd);
    union address from;
    socklen_t len = sizeof from;
    OK("accept", accept(l, &from.any, &len));
    say("from", "%s", name_of(&from, len));
    int second = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(setsockopt(second, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    DO("same_port_again", bind_to(second, own4, port_of(fd)));
    DO("same_four_numbers", connect_to(second, own4, port_of(l)));
}

CHECK(to_any) {
    int l = tcp_listener("0.0.0.0", 4);
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("connect", ({
           int r = connect_to(fd, own4, port_of(l));
           r;
       }));
    say_name("name", fd);
}
