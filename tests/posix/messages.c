// sendmsg, recvmsg and their plural forms; readv and writev; control messages.
#include "check.h"

CHECK(scatter_gather) {
    struct pair p = tcp_pair();
    char a[3], b[5], c[8];
    struct iovec out[4] = {{"one", 3}, {"", 0}, {"two", 3}, {"three", 5}};
    DO("writev", writev(p.client, out, 4));
    await(p.server, POLLIN);
    settle();
    struct iovec in[3] = {{a, 3}, {b, 5}, {c, 8}};
    DO("readv", readv(p.server, in, 3));
    say("first", "%s", shown(a, 3));
    say("second", "%s", shown(b, 5));
    say("third", "%s", shown(c, 3));
    DO("writev_none", writev(p.client, out, 0));
    DO("readv_none", readv(p.server, in, 0));
    DO("writev_negative", writev(p.client, out, -1));
    DO("readv_negative", readv(p.server, in, -1));
    DO("writev_1025", writev(p.client, out, 1025));
    struct iovec many[1024];
    static char bytes[1024];
    pattern(bytes, sizeof bytes, 5);
    for (int i = 0; i < 1024; i++) {
        many[i] = (struct iovec){bytes + i, 1};
    }
    DO("writev_1024", writev(p.client, many, 1024));
    static char got[1024];
    DO("read_1024", read_all(p.server, got, 1024));
    say("same", "%d", memcmp(got, bytes, 1024) == 0);
    struct iovec huge[2] = {{a, 1}, {b, (size_t)-1}};
    DO("writev_huge", writev(p.client, huge, 2));
}

CHECK(message_stream) {
    struct pair p = tcp_pair();
    struct iovec out[2] = {{"hello ", 6}, {"world", 5}};
    struct msghdr m = {.msg_iov = out, .msg_iovlen = 2};
    DO("sendmsg", sendmsg(p.client, &m, 0));
    await(p.server, POLLIN);
    char a[4], b[64], name[128], control[128];
    struct iovec in[2] = {{a, 4}, {b, 64}};
    struct msghdr r = {.msg_name = name,
                       .msg_namelen = sizeof name,
                       .msg_iov = in,
                       .msg_iovlen = 2,
                       .msg_control = control,
                       .msg_controllen = sizeof control,
                       .msg_flags = -1};
    int n = DO("recvmsg", recvmsg(p.server, &r, 0));
    say("data", "%s%s", shown(a, 4), "");
    say("rest", "%s", shown(b, n - 4));
    say("namelen", "%u", r.msg_namelen);
    say("controllen", "%zu", r.msg_controllen);
    say("flags", "%x", r.msg_flags);
    m.msg_iovlen = 1025;
    DO("too_many", sendmsg(p.client, &m, 0));
    r.msg_iovlen = 1025;
    DO("too_many_in", recvmsg(p.server, &r, MSG_DONTWAIT));
    m.msg_iovlen = 0;
    DO("none", sendmsg(p.client, &m, 0));
    r.msg_iovlen = 0;
    DO("none_in", recvmsg(p.server, &r, MSG_DONTWAIT));
    union address to;
    m.msg_iovlen = 1;
    m.msg_name = &to;
    m.msg_namelen = address_of(&to, peer4, 9);
    DO("name_ignored", sendmsg(p.client, &m, 0));
}

CHECK(message_datagram) {
    int u = udp_bound(own4), v = udp_bound(own4);
    know_port(port_of(u), "u");
    union address to, from;
    struct iovec out[3] = {{"a", 1}, {"bc", 2}, {"def", 3}};
    struct msghdr m = {.msg_name = &to, .msg_namelen = address_of(&to, own4, port_of(v)), .msg_iov = out, .msg_iovlen = 3};
    DO("sendmsg", sendmsg(u, &m, 0));
    char a[2], b[64];
    struct iovec in[2] = {{a, 2}, {b, 64}};
    struct msghdr r = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = in, .msg_iovlen = 2};
    int n = DO("recvmsg", recvmsg(v, &r, 0));
    say("from", "%s", name_of(&from, r.msg_namelen));
    say("data", "%s", shown(a, 2));
    say("rest", "%s", shown(b, n - 2));
    m.msg_name = NULL;
    m.msg_namelen = 0;
    DO("no_name", sendmsg(u, &m, 0));
    m.msg_name = &to;
    m.msg_namelen = 4;
    DO("short_name", sendmsg(u, &m, 0));
    m.msg_namelen = sizeof to.v4;
    r.msg_namelen = 5;
    DO("send", sendmsg(u, &m, 0));
    DO("short_room_for_name", recvmsg(v, &r, 0));
    say("full_length", "%u", r.msg_namelen);
    m.msg_iovlen = 1025;
    DO("too_many", sendmsg(u, &m, 0));
}

static int control_of(struct msghdr *r, int level, int type, void *to, size_t len) {
    for (struct cmsghdr *c = CMSG_FIRSTHDR(r); c; c = CMSG_NXTHDR(r, c)) {
        if (c->cmsg_level == level && c->cmsg_type == type) {
            memcpy(to, CMSG_DATA(c), len);
            return (int)(c->cmsg_len - CMSG_LEN(0));
        }
    }
    return -1;
}

CHECK(packet_info) {
    int u = MUST(socket(AF_INET, SOCK_DGRAM, 0)), v = udp_bound(own4), on = 1;
    MUST(bind_to(u, "0.0.0.0", 0));
    DO("set_pktinfo", setsockopt(u, IPPROTO_IP, IP_PKTINFO, &on, sizeof on));
    DO("set_ttl", setsockopt(u, IPPROTO_IP, IP_RECVTTL, &on, sizeof on));
    DO("set_tos", setsockopt(u, IPPROTO_IP, IP_RECVTOS, &on, sizeof on));
    int tos = 0x20, ttl = 33;
    MUST(setsockopt(v, IPPROTO_IP, IP_TOS, &tos, sizeof tos));
    MUST(setsockopt(v, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl));
    MUST(send_to(v, "x", 1, own4, port_of(u)));
    char b[8], control[256];
    struct iovec in = {b, 8};
    struct msghdr r = {.msg_iov = &in, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    DO("recvmsg", recvmsg(u, &r, 0));
    struct in_pktinfo info = {0};
    say("pktinfo_len", "%d", control_of(&r, IPPROTO_IP, IP_PKTINFO, &info, sizeof info));
    char text[32];
    say("destination", "%s", host_name(inet_ntop(AF_INET, &info.ipi_addr, text, sizeof text)));
    say("local", "%s", host_name(inet_ntop(AF_INET, &info.ipi_spec_dst, text, sizeof text)));
    unsigned char tos_got = 0;
    say("tos_len", "%d", control_of(&r, IPPROTO_IP, IP_TOS, &tos_got, 1));
    say("tos", "%x", tos_got);
    int ttl_got = 0;
    say("ttl_len", "%d", control_of(&r, IPPROTO_IP, IP_TTL, &ttl_got, 4));
    say("ttl", "%d", ttl_got);
    MUST(send_to(v, "x", 1, own4, port_of(u)));
    r.msg_controllen = 8;
    DO("no_room", recvmsg(u, &r, 0));
    say("no_room_flags", "%x", r.msg_flags);
    say("no_room_len", "%zu", r.msg_controllen);
    MUST(send_to(v, "x", 1, own4, port_of(u)));
    r.msg_control = NULL;
    r.msg_controllen = 0;
    r.msg_flags = 0;
    DO("without", recvmsg(u, &r, 0));
    say("without_flags", "%x", r.msg_flags);
}

CHECK(packet_info_6) {
    int u = MUST(socket(AF_INET6, SOCK_DGRAM, 0)), v = udp_bound(own6), on = 1;
    MUST(bind_to(u, "::", 0));
    DO("set_pktinfo", setsockopt(u, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof on));
    DO("set_hops", setsockopt(u, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, &on, sizeof on));
    DO("set_class", setsockopt(u, IPPROTO_IPV6, IPV6_RECVTCLASS, &on, sizeof on));
    MUST(send_to(v, "x", 1, own6, port_of(u)));
    char b[8], control[256];
    struct iovec in = {b, 8};
    struct msghdr r = {.msg_iov = &in, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    DO("recvmsg", recvmsg(u, &r, 0));
    struct in6_pktinfo info = {0};
    say("pktinfo_len", "%d", control_of(&r, IPPROTO_IPV6, IPV6_PKTINFO, &info, sizeof info));
    char text[64];
    say("destination", "%s", host_name(inet_ntop(AF_INET6, &info.ipi6_addr, text, sizeof text)));
    int hops = 0, class = -1;
    say("hops_len", "%d", control_of(&r, IPPROTO_IPV6, IPV6_HOPLIMIT, &hops, 4));
    say("hops", "%d", hops);
    say("class_len", "%d", control_of(&r, IPPROTO_IPV6, IPV6_TCLASS, &class, 4));
    say("class", "%d", class);
}

static int send_with(int fd, union address *to, socklen_t len, int level, int type, const void *data, size_t size) {
    char control[128] = {0};
    struct iovec out = {"c", 1};
    struct msghdr m = {.msg_name = to, .msg_namelen = len, .msg_iov = &out, .msg_iovlen = 1, .msg_control = control};
    m.msg_controllen = CMSG_SPACE(size);
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = level;
    c->cmsg_type = type;
    c->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(c), data, size);
    return sendmsg(fd, &m, 0);
}

CHECK(control_out) {
    int u = udp_bound(own4), v = MUST(socket(AF_INET, SOCK_DGRAM, 0)), on = 1;
    MUST(setsockopt(u, IPPROTO_IP, IP_RECVTTL, &on, sizeof on));
    MUST(setsockopt(u, IPPROTO_IP, IP_RECVTOS, &on, sizeof on));
    union address to;
    socklen_t len = address_of(&to, own4, port_of(u));
    struct in_pktinfo info = {0};
    inet_pton(AF_INET, own4, &info.ipi_spec_dst);
    DO("pktinfo", send_with(v, &to, len, IPPROTO_IP, IP_PKTINFO, &info, sizeof info));
    inet_pton(AF_INET, "192.0.2.77", &info.ipi_spec_dst);
    // A socket of its own: where the error comes later, it comes to whichever call is next.
    int w = MUST(socket(AF_INET, SOCK_DGRAM, 0));
    DO("pktinfo_foreign", send_with(w, &to, len, IPPROTO_IP, IP_PKTINFO, &info, sizeof info));
    int ttl = 9, tos = 0x10;
    DO("ttl", send_with(v, &to, len, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl));
    ttl = 0;
    DO("ttl_0", send_with(v, &to, len, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl));
    ttl = 256;
    DO("ttl_256", send_with(v, &to, len, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl));
    DO("ttl_short", send_with(v, &to, len, IPPROTO_IP, IP_TTL, &ttl, 2));
    DO("tos", send_with(v, &to, len, IPPROTO_IP, IP_TOS, &tos, sizeof tos));
    DO("unknown_ip", send_with(v, &to, len, IPPROTO_IP, 99, &tos, sizeof tos));
    DO("other_level", send_with(v, &to, len, IPPROTO_TCP, 1, &tos, sizeof tos));
    DO("socket_level_unknown", send_with(v, &to, len, SOL_SOCKET, 99, &tos, sizeof tos));
    struct pair p = tcp_pair();
    DO("tcp_ip_level", send_with(p.client, NULL, 0, IPPROTO_IP, IP_TTL, &ttl, sizeof ttl));
    DO("tcp_socket_level", send_with(p.client, NULL, 0, SOL_SOCKET, 99, &ttl, sizeof ttl));
    char b[8], control[128];
    struct iovec in = {b, 8};
    int seen = 0;
    for (int i = 0; i < 8; i++) {
        struct msghdr r = {.msg_iov = &in, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        if (recvmsg(u, &r, i ? MSG_DONTWAIT : 0) < 0) {
            break;
        }
        seen++;
        unsigned char t = 0;
        int hops = 0;
        control_of(&r, IPPROTO_IP, IP_TOS, &t, 1);
        control_of(&r, IPPROTO_IP, IP_TTL, &hops, 4);
        char label[32];
        snprintf(label, sizeof label, "arrived_%d", i);
        say(label, "ttl %d tos %x", hops, t);
        settle();
    }
    say("seen", "%d", seen);
}

CHECK(plural) {
    int u = udp_bound(own4), v = udp_bound(own4);
    MUST(connect_to(u, own4, port_of(v)));
    struct iovec out[4] = {{"a", 1}, {"bb", 2}, {"ccc", 3}, {"dddd", 4}};
    struct mmsghdr m[4] = {0};
    for (int i = 0; i < 4; i++) {
        m[i].msg_hdr.msg_iov = &out[i];
        m[i].msg_hdr.msg_iovlen = 1;
    }
    DO("sendmmsg", sendmmsg(u, m, 4, 0));
    for (int i = 0; i < 4; i++) {
        char label[16];
        snprintf(label, sizeof label, "sent_%d", i);
        say(label, "%u", m[i].msg_len);
    }
    await(v, POLLIN);
    settle();
    char b[4][8];
    struct iovec in[4];
    struct mmsghdr r[4] = {0};
    for (int i = 0; i < 4; i++) {
        in[i] = (struct iovec){b[i], 8};
        r[i].msg_hdr.msg_iov = &in[i];
        r[i].msg_hdr.msg_iovlen = 1;
    }
    DO("recvmmsg_2", recvmmsg(v, r, 2, 0, NULL));
    say("first", "%s", shown(b[0], r[0].msg_len));
    say("second", "%s", shown(b[1], r[1].msg_len));
    DO("recvmmsg_waitforone", recvmmsg(v, r, 4, MSG_WAITFORONE, NULL));
    say("third", "%s", shown(b[0], r[0].msg_len));
    DO("recvmmsg_empty", recvmmsg(v, r, 4, MSG_DONTWAIT, NULL));
    struct timespec t = {0, 0};
    MUST(send(u, "z", 1, 0));
    await(v, POLLIN);
    DO("recvmmsg_no_time", recvmmsg(v, r, 4, 0, &t));
    t.tv_nsec = 2000000000;
    DO("recvmmsg_bad_time", recvmmsg(v, r, 4, MSG_DONTWAIT, &t));
    DO("recvmmsg_none", recvmmsg(v, r, 0, MSG_DONTWAIT, NULL));
    DO("sendmmsg_none", sendmmsg(u, m, 0, 0));
    m[1].msg_hdr.msg_iovlen = 2000;
    DO("sendmmsg_second_bad", sendmmsg(u, m, 4, 0));
    struct pair p = tcp_pair();
    m[1].msg_hdr.msg_iovlen = 1;
    DO("sendmmsg_tcp", sendmmsg(p.client, m, 4, 0));
    await(p.server, POLLIN);
    settle();
    DO("recvmmsg_tcp", recvmmsg(p.server, r, 4, MSG_DONTWAIT, NULL));
}
