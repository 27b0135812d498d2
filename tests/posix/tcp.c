// TCP: the life of listeners and connections, one call after the other, blocking.
#include "check.h"

CHECK(socket_kinds) {
    DO("stream_family_0", socket(0, SOCK_STREAM, 0));
    DO("bad_family", socket(999, SOCK_STREAM, 0));
    DO("bad_type", socket(AF_INET, 77, 0));
    DO("udp_over_stream", socket(AF_INET, SOCK_STREAM, IPPROTO_UDP));
    DO("tcp_over_dgram", socket(AF_INET, SOCK_DGRAM, IPPROTO_TCP));
    DO("seqpacket", socket(AF_INET, SOCK_SEQPACKET, 0));
    OK("tcp_named", socket(AF_INET, SOCK_STREAM, IPPROTO_TCP));
    OK("udp_named", socket(AF_INET6, SOCK_DGRAM, IPPROTO_UDP));
    int fd = OK("flags", socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    DO("fd_flags", fcntl(fd, F_GETFD));
    say("status_flags", "%s", fcntl(fd, F_GETFL) & O_NONBLOCK ? "nonblock" : "block");
    say("domain", "%d", option_of(fd, SOL_SOCKET, SO_DOMAIN));
    say("type", "%d", option_of(fd, SOL_SOCKET, SO_TYPE));
    say("protocol", "%d", option_of(fd, SOL_SOCKET, SO_PROTOCOL));
    struct stat st;
    DO("fstat", fstat(fd, &st));
    say("is_socket", "%d", S_ISSOCK(st.st_mode));
}

CHECK(fresh) {
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    char c = 'x';
    signal(SIGPIPE, SIG_IGN);
    say_name("getsockname", fd);
    say_peer("getpeername", fd);
    DO("recv", recv(fd, &c, 1, 0));
    DO("read", read(fd, &c, 1));
    DO("send", send(fd, &c, 1, MSG_NOSIGNAL));
    DO("write", write(fd, &c, 1));
    DO("accept", accept(fd, NULL, NULL));
    DO("shutdown_rd", shutdown(fd, SHUT_RD));
    DO("shutdown_wr", shutdown(fd, SHUT_WR));
    DO("shutdown_bad", shutdown(fd, 9));
    say("poll", "%s", bits(ready(fd, POLLIN | POLLOUT | POLLRDHUP, 0)));
    say("so_error", "%d", option_of(fd, SOL_SOCKET, SO_ERROR));
    say("acceptconn", "%d", option_of(fd, SOL_SOCKET, SO_ACCEPTCONN));
    DO("connect_unspec", ({
           union address a = {0};
           connect(fd, &a.any, sizeof a.v4);
       }));
}

CHECK(bind_names) {
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("bind", bind_to(fd, own4, 0));
    know_port(port_of(fd), "mine");
    say_name("name", fd);
    DO("again", bind_to(fd, own4, 0));
    int other = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("taken", bind_to(other, own4, port_of(fd)));
    DO("taken_any", bind_to(other, "0.0.0.0", port_of(fd)));
    int on = 1;
    MUST(setsockopt(other, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    DO("taken_reuse_one_side", bind_to(other, own4, port_of(fd)));
    MUST(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    DO("taken_reuse_both", bind_to(other, own4, port_of(fd)));
    DO("listen_first", listen(fd, 1));
    DO("listen_second", listen(other, 1));
    close(fd);
    DO("listen_after_close", listen(other, 1));
    int third = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("foreign", bind_to(third, "192.0.2.55", 0));
    DO("peer", bind_to(third, peer4, 0));
    DO("family", bind_to(third, own6, 0));
    union address a;
    socklen_t len = address_of(&a, own4, 0);
    DO("short", bind(third, &a.any, len - 1));
    DO("zero", bind(third, &a.any, 0));
    DO("long", bind(third, &a.any, sizeof a));
    int fourth = MUST(socket(AF_INET, SOCK_STREAM, 0));
    a.any.sa_family = AF_UNSPEC;
    DO("unspec_address", bind(fourth, &a.any, len));
    memset(&a, 0, sizeof a);
    DO("unspec_any", bind(fourth, &a.any, len));
    say_name("unspec_name", fourth);
}

CHECK(any_address) {
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("bind", bind_to(fd, "0.0.0.0", 0));
    know_port(port_of(fd), "mine");
    say_name("name", fd);
    MUST(listen(fd, 4));
    say_name("listening", fd);
    int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("connect", connect_to(c, own4, port_of(fd)));
    int s = OK("accept", accept(fd, NULL, NULL));
    say_name("accepted_name", s);
    say_peer("client_peer", c);
}

CHECK(listen_unbound) {
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("listen", listen(fd, 3));
    say_name("name", fd);
    say("acceptconn", "%d", option_of(fd, SOL_SOCKET, SO_ACCEPTCONN));
    DO("again", listen(fd, 100));
    DO("negative", listen(fd, -1));
    DO("zero", listen(fd, 0));
    DO("bind_after", bind_to(fd, own4, 0));
    char c;
    DO("recv", recv(fd, &c, 1, 0));
    DO("send", send(fd, &c, 1, MSG_NOSIGNAL));
    say_peer("peer", fd);
    DO("connect", connect_to(fd, own4, 9));
    int n = -1;
    DO("fionread", ioctl(fd, FIONREAD, &n));
}

CHECK(exchange) {
    int listener = tcp_listener(own4, 8);
    know_port(port_of(listener), "listener");
    say("poll_idle", "%s", bits(ready(listener, POLLIN | POLLOUT, 0)));
    int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("connect", connect_to(c, own4, port_of(listener)));
    know_port(port_of(c), "client");
    say_name("client_name", c);
    say_peer("client_peer", c);
    DO("connect_again", connect_to(c, own4, port_of(listener)));
    DO("bind_connected", bind_to(c, own4, 0));
    DO("listen_connected", listen(c, 1));
    DO("accept_connected", accept(c, NULL, NULL));
    say("poll_queue", "%s", bits(await(listener, POLLIN)));
    union address from;
    socklen_t len = sizeof from;
    int s = OK("accept", accept(listener, &from.any, &len));
    say("accept_from", "%s", name_of(&from, len));
    say_name("server_name", s);
    say_peer("server_peer", s);
    DO("send", send(c, "hello", 5, 0));
    char buffer[64];
    say("poll_data", "%s", bits(await(s, POLLIN)));
    int n = DO("recv", recv(s, buffer, sizeof buffer, 0));
    say("data", "%s", shown(buffer, n));
    DO("write", write(s, "answer", 6));
    n = DO("read_part", read(c, buffer, 2));
    say("part", "%s", shown(buffer, n));
    n = DO("read_rest", read(c, buffer, sizeof buffer));
    say("rest", "%s", shown(buffer, n));
    DO("send_zero", send(c, buffer, 0, 0));
    DO("read_zero", read(s, buffer, 0));
    DO("recv_zero", recv(s, buffer, 0, MSG_DONTWAIT));
    DO("nothing", recv(s, buffer, 1, MSG_DONTWAIT));
    DO("sendto_ignores_address", send_to(c, "x", 1, peer4, 9));
    len = sizeof from;
    memset(&from, 0x55, sizeof from);
    n = DO("recvfrom", recvfrom(s, buffer, sizeof buffer, 0, &from.any, &len));
    say("recvfrom_address_len", "%u", len);
    DO("pread", pread(s, buffer, 1, 0));
    DO("pwrite", pwrite(s, buffer, 1, 0));
    DO("lseek", lseek(s, 0, SEEK_SET));
    struct iovec iov = {buffer, 1};
    DO("preadv", preadv(s, &iov, 1, 0));
    DO("pwritev", pwritev(s, &iov, 1, 0));
    DO("ftruncate", ftruncate(s, 0));
    DO("fsync", fsync(s));
    DO("close", close(s));
    DO("close_again", close(s));
    say("poll_fin", "%s", bits(await(c, POLLIN | POLLRDHUP)));
    DO("eof", recv(c, buffer, 1, 0));
    DO("eof_again", recv(c, buffer, 1, 0));
}

CHECK(half_close) {
    struct pair p = tcp_pair();
    char b[16];
    DO("shutdown_wr", shutdown(p.client, SHUT_WR));
    DO("send_after", send(p.client, "x", 1, MSG_NOSIGNAL));
    say("client_poll", "%s", bits(ready(p.client, POLLIN | POLLOUT | POLLRDHUP, 0)));
    say("server_poll", "%s", bits(await(p.server, POLLIN | POLLRDHUP)));
    say("server_poll_all", "%s", bits(ready(p.server, POLLIN | POLLOUT | POLLRDHUP, 0)));
    DO("server_eof", recv(p.server, b, 1, 0));
    DO("server_sends", send(p.server, "still", 5, 0));
    int n = DO("client_reads", recv(p.client, b, sizeof b, 0));
    say("client_data", "%s", shown(b, n));
    DO("shutdown_wr_again", shutdown(p.client, SHUT_WR));
    say_peer("peer_half_closed", p.client);
    DO("server_shutdown", shutdown(p.server, SHUT_WR));
    say("both_poll", "%s", bits(await(p.client, POLLIN | POLLHUP)));
    DO("client_eof", recv(p.client, b, 1, 0));
    settle();
    say("client_poll_end", "%s", bits(ready(p.client, POLLIN | POLLOUT | POLLRDHUP, 0)));
    say("server_poll_end", "%s", bits(ready(p.server, POLLIN | POLLOUT | POLLRDHUP, 0)));
    say_peer("peer_after_end", p.client);
    DO("shutdown_after_end", shutdown(p.client, SHUT_WR));
    DO("shutdown_after_end_server", shutdown(p.server, SHUT_RDWR));
}

CHECK(shutdown_read) {
    struct pair p = tcp_pair();
    char b[16];
    MUST(send(p.client, "early", 5, 0));
    await(p.server, POLLIN);
    DO("shutdown_rd", shutdown(p.server, SHUT_RD));
    say("poll", "%s", bits(ready(p.server, POLLIN | POLLOUT | POLLRDHUP, 0)));
    int n = DO("reads_what_was_there", recv(p.server, b, sizeof b, 0));
    say("data", "%s", shown(b, n));
    DO("then_eof", recv(p.server, b, sizeof b, 0));
    DO("peer_still_sends", send(p.client, "late", 4, MSG_NOSIGNAL));
    settle();
    n = DO("late_data", recv(p.server, b, sizeof b, MSG_DONTWAIT));
    say("late", "%s", shown(b, n < 0 ? 0 : n));
    DO("server_still_sends", send(p.server, "y", 1, 0));
    DO("client_reads", recv(p.client, b, 1, 0));
    DO("shutdown_rdwr", shutdown(p.server, SHUT_RDWR));
    say("poll_after", "%s", bits(ready(p.server, POLLIN | POLLOUT | POLLRDHUP, 0)));
}

CHECK(listener_shutdown) {
    int l = tcp_listener(own4, 4);
    DO("wr", shutdown(l, SHUT_WR));
    say("still_listening", "%d", option_of(l, SOL_SOCKET, SO_ACCEPTCONN));
    DO("rd", shutdown(l, SHUT_RD));
    say("listening_after_rd", "%d", option_of(l, SOL_SOCKET, SO_ACCEPTCONN));
    say("poll", "%s", bits(ready(l, POLLIN | POLLOUT | POLLRDHUP, 0)));
    DO("accept", accept(l, NULL, NULL));
    DO("listen_again", listen(l, 4));
    say_name("name", l);
}

CHECK(close_with_unread) {
    struct pair p = tcp_pair();
    char b[16];
    signal(SIGPIPE, SIG_IGN);
    MUST(send(p.client, "unread", 6, 0));
    await(p.server, POLLIN);
    close(p.server);
    say("poll", "%s", bits(await(p.client, POLLIN | POLLRDHUP)));
    settle();
    say("poll_all", "%s", bits(ready(p.client, POLLIN | POLLOUT | POLLRDHUP, 0)));
    say_peer("peer", p.client);
    DO("recv", recv(p.client, b, 1, 0));
    DO("recv_again", recv(p.client, b, 1, 0));
    DO("send", send(p.client, "x", 1, MSG_NOSIGNAL));
    say("poll_end", "%s", bits(ready(p.client, POLLIN | POLLOUT | POLLRDHUP, 0)));
}

CHECK(reset_then_send) {
    struct pair p = tcp_pair();
    signal(SIGPIPE, SIG_IGN);
    struct linger hard = {1, 0};
    MUST(setsockopt(p.server, SOL_SOCKET, SO_LINGER, &hard, sizeof hard));
    MUST(send(p.server, "data", 4, 0));
    await(p.client, POLLIN);
    close(p.server);
    settle();
    say("poll", "%s", bits(ready(p.client, POLLIN | POLLOUT | POLLRDHUP, 0)));
    say("so_error", "%d", option_of(p.client, SOL_SOCKET, SO_ERROR));
    say("so_error_again", "%d", option_of(p.client, SOL_SOCKET, SO_ERROR));
    DO("send", send(p.client, "x", 1, MSG_NOSIGNAL));
    char b[8];
    DO("recv", recv(p.client, b, sizeof b, 0));
    say("poll_after", "%s", bits(ready(p.client, POLLIN | POLLOUT | POLLRDHUP, 0)));
    DO("shutdown", shutdown(p.client, SHUT_RDWR));
    say_peer("peer", p.client);
}

CHECK(reset_data_then_error) {
    struct pair p = tcp_pair();
    struct linger hard = {1, 0};
    MUST(setsockopt(p.server, SOL_SOCKET, SO_LINGER, &hard, sizeof hard));
    close(p.server);
    say("poll", "%s", bits(await(p.client, POLLIN)));
    char b[8];
    DO("send", send(p.client, "x", 1, MSG_NOSIGNAL));
    DO("recv", recv(p.client, b, sizeof b, 0));
    DO("recv_again", recv(p.client, b, sizeof b, 0));
    DO("send_again", send(p.client, "x", 1, MSG_NOSIGNAL));
}

CHECK(send_to_closed) {
    struct pair p = tcp_pair();
    signal(SIGPIPE, SIG_IGN);
    close(p.server);
    await(p.client, POLLRDHUP | POLLIN);
    DO("first", send(p.client, "x", 1, 0));
    say("poll", "%s", bits(await(p.client, POLLERR)));
    settle();
    DO("second", send(p.client, "x", 1, 0));
    DO("third", send(p.client, "x", 1, 0));
    char b[4];
    DO("recv", recv(p.client, b, 1, 0));
    say("so_error", "%d", option_of(p.client, SOL_SOCKET, SO_ERROR));
}

CHECK(refused) {
    int l = tcp_listener(own4, 1);
    uint16_t port = port_of(l);
    close(l);
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("connect", connect_to(fd, own4, port));
    say("so_error", "%d", option_of(fd, SOL_SOCKET, SO_ERROR));
    say_peer("peer", fd);
    say("poll", "%s", bits(ready(fd, POLLIN | POLLOUT | POLLRDHUP, 0)));
    DO("again", connect_to(fd, own4, port));
    DO("send", send(fd, "x", 1, MSG_NOSIGNAL));
    l = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind_to(l, own4, 0));
    MUST(listen(l, 1));
    DO("then_works", connect_to(fd, own4, port_of(l)));
    int s = OK("accept", accept(l, NULL, NULL));
    DO("send_now", send(fd, "ok", 2, 0));
    char b[4];
    DO("recv_now", recv(s, b, 4, 0));
}

CHECK(peer_refused) {
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("connect", connect_to(fd, peer4, 9));
    int six = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    DO("connect6", connect_to(six, peer6, 9));
    int bound = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind_to(bound, own4, 0));
    know_port(port_of(bound), "bound");
    DO("connect_bound", connect_to(bound, peer4, 9));
    say_name("name_after", bound);
}

CHECK(connect_bad) {
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    union address a;
    socklen_t len = address_of(&a, own4, 9);
    DO("short", connect(fd, &a.any, len - 1));
    DO("tiny", connect(fd, &a.any, 1));
    DO("family", connect_to(fd, own6, 9));
    DO("port_0", connect_to(fd, own4, 0));
    DO("broadcast", connect_to(fd, "255.255.255.255", 9));
    DO("multicast", connect_to(fd, "224.0.0.1", 9));
    int six = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    DO("v4_on_v6", connect_to(six, own4, 9));
    DO("multicast6", connect_to(six, "ff02::1", 9));
}

CHECK(unreachable) {
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("no_route", connect_to(fd, "192.0.2.1", 9));
    int six = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    DO("no_route6", connect_to(six, "2001:db8::9", 9));
}

CHECK(self_connect) {
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind_to(fd, own4, 0));
    know_port(port_of(fd), "self");
    DO("connect", connect_to(fd, own4, port_of(fd)));
    say_name("name", fd);
    say_peer("peer", fd);
    DO("send", send(fd, "me", 2, 0));
    char b[8];
    int n = DO("recv", recv(fd, b, sizeof b, 0));
    say("data", "%s", shown(b, n < 0 ? 0 : n));
}

CHECK(bulk) {
    struct pair p = tcp_pair();
    size_t len = 3000000;
    char *out = malloc(len), *in = malloc(len);
    pattern(out, len, 3);
    pid_t child = fork();
    if (child == 0) {
        close(p.server);
        size_t done = 0;
        while (done < len) {
            ssize_t n = write(p.client, out + done, len - done);
            if (n <= 0) {
                _exit(1);
            }
            done += n;
        }
        _exit(0);
    }
    close(p.client);
    DO("read", read_all(p.server, in, len));
    say("same", "%d", memcmp(in, out, len) == 0);
    char b;
    DO("eof", read(p.server, &b, 1));
    reap("child", child);
}

CHECK(backlog_order) {
    int l = tcp_listener(own4, 8);
    int c[5];
    for (int i = 0; i < 5; i++) {
        c[i] = MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(connect_to(c[i], own4, port_of(l)));
        char d = 'a' + i;
        MUST(send(c[i], &d, 1, 0));
    }
    char order[6] = {0};
    for (int i = 0; i < 5; i++) {
        int s = MUST(accept(l, NULL, NULL));
        MUST(recv(s, order + i, 1, 0));
    }
    say("order", "%s", order);
    close(c[0]);
    int gone = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect_to(gone, own4, port_of(l)));
    close(gone);
    settle();
    int s = OK("accept_of_a_closed_one", accept(l, NULL, NULL));
    char b;
    DO("its_eof", recv(s, &b, 1, 0));
}

CHECK(accept_after_reset) {
    int l = tcp_listener(own4, 8);
    know_port(port_of(l), "listener");
    int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
    struct linger hard = {1, 0};
    MUST(setsockopt(c, SOL_SOCKET, SO_LINGER, &hard, sizeof hard));
    MUST(connect_to(c, own4, port_of(l)));
    MUST(send(c, "z", 1, 0));
    settle();
    close(c);
    settle();
    int s = OK("accept", accept(l, NULL, NULL));
    char b;
    say_name("name", s);
    DO("recv", recv(s, &b, 1, 0));
    DO("recv_again", recv(s, &b, 1, 0));
    say("poll", "%s", bits(ready(s, POLLIN | POLLOUT | POLLRDHUP, 0)));
}

CHECK(port_free_after_listener) {
    int l = tcp_listener(own4, 8);
    uint16_t port = port_of(l);
    int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect_to(c, own4, port));
    int s = MUST(accept(l, NULL, NULL));
    close(l);
    int again = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("bind_without_reuse", bind_to(again, own4, port));
    int on = 1;
    MUST(setsockopt(again, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    DO("bind_with_reuse", bind_to(again, own4, port));
    DO("listen", listen(again, 1));
    DO("old_connection_lives", send(c, "x", 1, 0));
    char b;
    DO("old_connection_reads", recv(s, &b, 1, 0));
    int c2 = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("new_connect", connect_to(c2, own4, port));
    OK("new_accept", accept(again, NULL, NULL));
}

CHECK(closed_listener_resets_queue) {
    int l = tcp_listener(own4, 8);
    int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect_to(c, own4, port_of(l)));
    settle();
    close(l);
    say("poll", "%s", bits(await(c, POLLIN)));
    char b;
    DO("recv", recv(c, &b, 1, 0));
}
