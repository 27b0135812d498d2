// UDP: datagrams with and without a peer, errors that ICMP brings.
#include "check.h"

CHECK(fresh) {
    int fd = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    char b[8];
    say_name("name", fd);
    say_peer("peer", fd);
    DO("send", send(fd, "x", 1, 0));
    DO("write", write(fd, "x", 1));
    DO("recv", recv(fd, b, 1, MSG_DONTWAIT));
    DO("listen", listen(fd, 1));
    DO("accept", accept(fd, NULL, NULL));
    DO("shutdown_rd", shutdown(fd, SHUT_RD));
    say("poll", "%s", bits(ready(fd, POLLIN | POLLOUT, 0)));
    DO("recv_after_shutdown", recv(fd, b, 1, MSG_DONTWAIT));
    DO("sendto_port_0", send_to(fd, "x", 1, own4, 0));
    DO("sendto_short_address", ({
           union address a;
           socklen_t len = address_of(&a, own4, 9);
           sendto(fd, "x", 1, 0, &a.any, len - 1);
       }));
    DO("sendto_v6", send_to(fd, "x", 1, own6, 9));
}

CHECK(exchange) {
    int a = udp_bound(own4), b = udp_bound(own4);
    know_port(port_of(a), "a");
    know_port(port_of(b), "b");
    say_name("a_name", a);
    say_peer("a_peer", a);
    say("poll_empty", "%s", bits(ready(a, POLLIN | POLLOUT, 0)));
    DO("sendto", send_to(a, "datagram", 8, own4, port_of(b)));
    say("poll", "%s", bits(await(b, POLLIN)));
    int n = -1;
    DO("fionread", ioctl(b, FIONREAD, &n));
    say("fionread_is", "%d", n);
    union address from;
    socklen_t len = sizeof from;
    char buffer[64];
    n = DO("recvfrom", recvfrom(b, buffer, sizeof buffer, 0, &from.any, &len));
    say("data", "%s", shown(buffer, n));
    say("from", "%s", name_of(&from, len));
    DO("answer", sendto(b, "back", 4, 0, &from.any, len));
    n = DO("answer_read", read(a, buffer, sizeof buffer));
    say("answer_data", "%s", shown(buffer, n));
    DO("empty", send_to(a, "", 0, own4, port_of(b)));
    await(b, POLLIN);
    n = -1;
    ioctl(b, FIONREAD, &n);
    say("empty_fionread", "%d", n);
    DO("empty_read", recv(b, buffer, sizeof buffer, 0));
    DO("nothing", recv(b, buffer, sizeof buffer, MSG_DONTWAIT));
    for (int i = 0; i < 3; i++) {
        MUST(send_to(a, "0123456789" + i, 3 + i, own4, port_of(b)));
    }
    for (int i = 0; i < 3; i++) {
        n = recv(b, buffer, sizeof buffer, 0);
        char label[16];
        snprintf(label, sizeof label, "boundary_%d", i);
        say(label, "%s", shown(buffer, n));
    }
}

CHECK(truncation) {
    int a = udp_bound(own4), b = udp_bound(own4);
    char buffer[64];
    for (int i = 0; i < 6; i++) {
        MUST(send_to(a, "0123456789", 10, own4, port_of(b)));
    }
    await(b, POLLIN);
    DO("cut", recv(b, buffer, 4, 0));
    DO("cut_trunc", recv(b, buffer, 4, MSG_TRUNC));
    DO("peek_trunc", recv(b, buffer, 4, MSG_TRUNC | MSG_PEEK));
    DO("peek", recv(b, buffer, sizeof buffer, MSG_PEEK));
    DO("zero_room", recv(b, buffer, 0, 0));
    DO("zero_room_trunc", recv(b, NULL, 0, MSG_TRUNC));
    struct iovec iov = {buffer, 4};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    DO("recvmsg", recvmsg(b, &m, 0));
    say("flags", "%x", m.msg_flags);
    m.msg_flags = 0;
    iov.iov_len = 64;
    DO("recvmsg_whole", recvmsg(b, &m, MSG_TRUNC));
    say("flags_whole", "%x", m.msg_flags);
}

CHECK(connected) {
    int a = udp_bound(own4), b = udp_bound(own4), c = udp_bound(own4);
    know_port(port_of(a), "a");
    know_port(port_of(b), "b");
    know_port(port_of(c), "c");
    DO("connect", connect_to(a, own4, port_of(b)));
    say_peer("peer", a);
    DO("send", send(a, "one", 3, 0));
    char buffer[16];
    DO("recv", recv(b, buffer, sizeof buffer, 0));
    MUST(send_to(c, "stranger", 8, own4, port_of(a)));
    settle();
    DO("stranger_filtered", recv(a, buffer, sizeof buffer, MSG_DONTWAIT));
    MUST(send_to(b, "friend", 6, own4, port_of(a)));
    DO("friend", recv(a, buffer, sizeof buffer, 0));
    DO("sendto_other", send_to(a, "two", 3, own4, port_of(c)));
    DO("other_got", recv(c, buffer, sizeof buffer, 0));
    DO("reconnect", connect_to(a, own4, port_of(c)));
    say_peer("peer_now", a);
    union address u = {0};
    u.any.sa_family = AF_UNSPEC;
    DO("disconnect", connect(a, &u.any, sizeof u.v4));
    say_peer("peer_gone", a);
    say_name("name_after", a);
    DO("send_without", send(a, "x", 1, 0));
    DO("connect_port_0", connect_to(a, own4, 0));
    say_peer("peer_port_0", a);
}

CHECK(connect_binds) {
    int b = udp_bound(own4);
    know_port(port_of(b), "b");
    int a = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    DO("connect", connect_to(a, own4, port_of(b)));
    say_name("name", a);
    say_peer("peer", a);
    int far = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    DO("connect_peer_host", connect_to(far, peer4, 9));
    say_name("name_far", far);
    union address u = {0};
    u.any.sa_family = AF_UNSPEC;
    DO("disconnect", connect(far, &u.any, sizeof u.v4));
    say_name("name_disconnected", far);
    int any = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    DO("sendto_binds", send_to(any, "x", 1, own4, port_of(b)));
    say_name("name_sent", any);
}

CHECK(refused) {
    int gone = udp_bound(own4), a = udp_bound(own4), u = udp_bound(own4);
    uint16_t port = port_of(gone);
    close(gone);
    MUST(connect_to(a, own4, port));
    DO("send", send(a, "x", 1, 0));
    say("poll", "%s", bits(await(a, POLLIN)));
    DO("recv", recv(a, &gone, 1, MSG_DONTWAIT));
    DO("recv_again", recv(a, &gone, 1, MSG_DONTWAIT));
    DO("send_2", send(a, "x", 1, 0));
    await(a, POLLERR);
    DO("send_gets_error", send(a, "x", 1, 0));
    settle();
    say("so_error", "%d", option_of(a, SOL_SOCKET, SO_ERROR));
    DO("unconnected", send_to(u, "x", 1, own4, port));
    settle();
    say("unconnected_poll", "%s", bits(ready(u, POLLIN, 0)));
    DO("unconnected_recv", recv(u, &gone, 1, MSG_DONTWAIT));
}

CHECK(refused_by_peer) {
    int a = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    MUST(connect_to(a, peer4, 9));
    DO("send", send(a, "x", 1, 0));
    say("poll", "%s", bits(await(a, POLLIN)));
    char b;
    DO("recv", recv(a, &b, 1, 0));
    int six = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
    MUST(connect_to(six, peer6, 9));
    DO("send6", send(six, "x", 1, 0));
    say("poll6", "%s", bits(await(six, POLLIN)));
    DO("recv6", recv(six, &b, 1, 0));
}

CHECK(sizes) {
    int a = udp_bound(own4), b = udp_bound(own4);
    static char big[70000], in[70000];
    pattern(big, sizeof big, 1);
    DO("too_long", send_to(a, big, 65508, own4, port_of(b)));
    DO("way_too_long", send_to(a, big, 70000, own4, port_of(b)));
    DO("fragmented", send_to(a, big, 20000, own4, port_of(b)));
    int n = DO("fragmented_recv", recv(b, in, sizeof in, 0));
    say("fragmented_same", "%d", n == 20000 && memcmp(in, big, 20000) == 0);
    int s6 = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
    DO("too_long_6", send_to(s6, big, 65528, own6, 9));
}

CHECK(bind_rules) {
    int a = udp_bound(own4);
    int b = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    DO("taken", bind_to(b, own4, port_of(a)));
    DO("taken_any", bind_to(b, "0.0.0.0", port_of(a)));
    int on = 1;
    MUST(setsockopt(b, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    DO("one_side", bind_to(b, own4, port_of(a)));
    MUST(setsockopt(a, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    DO("both", bind_to(b, own4, port_of(a)));
    int c = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    DO("foreign", bind_to(c, "192.0.2.7", 0));
    int t = tcp_listener(own4, 1);
    DO("tcp_has_the_port", bind_to(c, own4, port_of(t)));
    DO("bind_again", bind_to(c, own4, 0));
}

CHECK(broadcast) {
    int a = udp_bound(own4);
    DO("without", send_to(a, "x", 1, "255.255.255.255", 9));
    DO("subnet_without", send_to(a, "x", 1, "10.77.0.255", 9));
    int on = 1;
    MUST(setsockopt(a, SOL_SOCKET, SO_BROADCAST, &on, sizeof on));
    DO("subnet_with", send_to(a, "x", 1, "10.77.0.255", 9));
}

CHECK(shutdown_udp) {
    struct pair p = udp_pair();
    char b[8];
    DO("wr", shutdown(p.client, SHUT_WR));
    DO("send", send(p.client, "x", 1, MSG_NOSIGNAL));
    DO("rd", shutdown(p.client, SHUT_RD));
    DO("recv", recv(p.client, b, 1, 0));
    say("poll", "%s", bits(ready(p.client, POLLIN | POLLOUT | POLLRDHUP, 0)));
    DO("other_sends", send(p.server, "y", 1, 0));
    settle();
    DO("arrives_still", recv(p.client, b, 1, 0));
}

CHECK(no_route) {
    int a = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    DO("sendto", send_to(a, "x", 1, "192.0.2.1", 9));
    int six = MUST(socket(AF_INET6, SOCK_DGRAM, 0));
    DO("sendto6", send_to(six, "x", 1, "2001:db8::5", 9));
    int c = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    DO("connect", connect_to(c, "192.0.2.1", 9));
}

CHECK(connected_beats_bound) {
    int any = MUST(socket(AF_INET, SOCK_DGRAM, 0)), one = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    int on = 1;
    setsockopt(any, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(one, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    MUST(bind_to(any, own4, 0));
    MUST(bind_to(one, own4, port_of(any)));
    int sender = udp_bound(own4), other = udp_bound(own4);
    MUST(connect_to(one, own4, port_of(sender)));
    char b[8];
    MUST(send_to(sender, "s", 1, own4, port_of(any)));
    settle();
    DO("the_connected_one_gets_its_peer", recv(one, b, 1, MSG_DONTWAIT));
    DO("the_other_does_not", recv(any, b, 1, MSG_DONTWAIT));
    MUST(send_to(other, "o", 1, own4, port_of(any)));
    settle();
    DO("others_go_to_the_unconnected", recv(any, b, 1, MSG_DONTWAIT));
    DO("and_not_to_the_connected", recv(one, b, 1, MSG_DONTWAIT));
}
