// IPv6, dual-stack sockets, v4-mapped addresses.
#include "check.h"

static char mapped[64];

CHECK(six) {
    int l = tcp_listener(own6, 4);
    know_port(port_of(l), "listener");
    say_name("name", l);
    int c = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    DO("connect", connect_to(c, own6, port_of(l)));
    know_port(port_of(c), "client");
    union address from;
    socklen_t len = sizeof from;
    int s = OK("accept", accept(l, &from.any, &len));
    say("from", "%s", name_of(&from, len));
    say_name("server_name", s);
    say_peer("client_peer", c);
    DO("send", send(c, "six", 3, 0));
    char b[8];
    DO("recv", recv(s, b, 8, 0));
    union address a;
    len = address_of(&a, own6, 0);
    int fd = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    DO("bind_rfc2133_length", bind(fd, &a.any, 24));
    int fe = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    DO("bind_short", bind(fe, &a.any, 23));
    DO("bind_v4_address", bind_to(fe, own4, 0));
    DO("bind_foreign", bind_to(fe, "2001:db8::77", 0));
    DO("connect_v4_address", connect_to(fe, own4, 9));
}

CHECK(dual_listener) {
    int l = tcp_listener("::", 4);
    know_port(port_of(l), "listener");
    say_name("name", l);
    int four = MUST(socket(AF_INET, SOCK_STREAM, 0)), six = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    DO("connect_4", connect_to(four, own4, port_of(l)));
    know_port(port_of(four), "four");
    union address from;
    socklen_t len = sizeof from;
    int s = OK("accept_4", accept(l, &from.any, &len));
    say("from_4", "%s", name_of(&from, len));
    say_name("name_4", s);
    say_peer("peer_4", s);
    say("domain_4", "%d", option_of(s, SOL_SOCKET, SO_DOMAIN));
    DO("send_4", send(s, "4", 1, 0));
    char b;
    DO("recv_4", recv(four, &b, 1, 0));
    DO("connect_6", connect_to(six, own6, port_of(l)));
    know_port(port_of(six), "six");
    len = sizeof from;
    s = OK("accept_6", accept(l, &from.any, &len));
    say("from_6", "%s", name_of(&from, len));
}

CHECK(v6only_listener) {
    int l = MUST(socket(AF_INET6, SOCK_STREAM, 0)), on = 1;
    DO("set", setsockopt(l, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on));
    MUST(bind_to(l, "::", 0));
    MUST(listen(l, 4));
    int four = MUST(socket(AF_INET, SOCK_STREAM, 0)), six = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    DO("connect_4", connect_to(four, own4, port_of(l)));
    DO("connect_6", connect_to(six, own6, port_of(l)));
    int beside = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("bind_4_beside", bind_to(beside, "0.0.0.0", port_of(l)));
    DO("listen_4_beside", listen(beside, 2));
    int off = 0;
    DO("unset_too_late", setsockopt(l, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off));
}

CHECK(conflicts) {
    int dual = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    MUST(bind_to(dual, "::", 0));
    int four = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("v4_any_under_dual", bind_to(four, "0.0.0.0", port_of(dual)));
    DO("v4_own_under_dual", bind_to(four, own4, port_of(dual)));
    int first = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind_to(first, "0.0.0.0", 0));
    int six = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    DO("dual_over_v4", bind_to(six, "::", port_of(first)));
    DO("v6_own_beside_v4", bind_to(six, own6, port_of(first)));
}

CHECK(mapped_addresses) {
    snprintf(mapped, sizeof mapped, "::ffff:%s", own4);
    int l = tcp_listener(own4, 4);
    know_port(port_of(l), "listener");
    int c = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    DO("connect_mapped", connect_to(c, mapped, port_of(l)));
    know_port(port_of(c), "client");
    say_name("client_name", c);
    say_peer("client_peer", c);
    union address from;
    socklen_t len = sizeof from;
    OK("accept", accept(l, &from.any, &len));
    say("from", "%s", name_of(&from, len));
    int b = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    DO("bind_mapped", bind_to(b, mapped, 0));
    know_port(port_of(b), "mapped");
    say_name("bound_name", b);
    MUST(listen(b, 2));
    int four = MUST(socket(AF_INET, SOCK_STREAM, 0));
    DO("v4_reaches_mapped", connect_to(four, own4, port_of(b)));
    int only = MUST(socket(AF_INET6, SOCK_STREAM, 0)), on = 1;
    MUST(setsockopt(only, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on));
    DO("connect_mapped_v6only", connect_to(only, mapped, port_of(l)));
    DO("bind_mapped_v6only", bind_to(only, mapped, 0));
    DO("refused_mapped", ({
           char m[64];
           snprintf(m, sizeof m, "::ffff:%s", peer4);
           int fd = MUST(socket(AF_INET6, SOCK_STREAM, 0));
           connect_to(fd, m, 9);
       }));
    DO("any_mapped", ({
           int fd = MUST(socket(AF_INET6, SOCK_STREAM, 0));
           bind_to(fd, "::ffff:0.0.0.0", 0);
       }));
}

CHECK(udp_six) {
    int a = udp_bound(own6), b = udp_bound(own6);
    know_port(port_of(a), "a");
    DO("sendto", send_to(a, "six", 3, own6, port_of(b)));
    union address from;
    socklen_t len = sizeof from;
    char buffer[16];
    DO("recvfrom", recvfrom(b, buffer, 16, 0, &from.any, &len));
    say("from", "%s", name_of(&from, len));
    snprintf(mapped, sizeof mapped, "::ffff:%s", own4);
    int dual = udp_bound("::"), four = udp_bound(own4);
    know_port(port_of(dual), "dual");
    know_port(port_of(four), "four");
    DO("dual_to_mapped", send_to(dual, "m", 1, mapped, port_of(four)));
    len = sizeof from;
    DO("four_gets", recvfrom(four, buffer, 16, 0, &from.any, &len));
    say("four_from", "%s", name_of(&from, len));
    DO("four_to_dual", send_to(four, "d", 1, own4, port_of(dual)));
    len = sizeof from;
    DO("dual_gets", recvfrom(dual, buffer, 16, 0, &from.any, &len));
    say("dual_from", "%s", name_of(&from, len));
    DO("dual_to_v4_address", send_to(dual, "v", 1, own4, port_of(four)));
    DO("arrives", recv(four, buffer, 16, MSG_DONTWAIT) < 0 ? ({
           settle();
           recv(four, buffer, 16, MSG_DONTWAIT);
       })
                                                            : 1);
    DO("connect_mapped", connect_to(dual, mapped, port_of(four)));
    say_peer("peer_mapped", dual);
    int only = MUST(socket(AF_INET6, SOCK_DGRAM, 0)), on = 1;
    MUST(setsockopt(only, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on));
    DO("v6only_to_mapped", send_to(only, "x", 1, mapped, port_of(four)));
    DO("v6only_to_v4", send_to(only, "x", 1, own4, port_of(four)));
    DO("unspec_destination", ({
           union address u = {0};
           sendto(only, "x", 1, 0, &u.any, 28);
       }));
}
