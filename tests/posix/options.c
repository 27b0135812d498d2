// setsockopt and getsockopt: which options there are, their defaults, their lengths, their ranges.
#include "check.h"

static void look(const char *name, int fd, int level, int option) {
    char label[64];
    int value = 0x55555555;
    socklen_t len = sizeof value;
    int r = getsockopt(fd, level, option, &value, &len);
    snprintf(label, sizeof label, "%s_default", name);
    say(label, "%s (%u)", r < 0 ? error_name(errno) : ({
            static char text[16];
            snprintf(text, sizeof text, "%d", value);
            text;
        }), len);
}

static void try(const char *name, int fd, int level, int option, int value) {
    char label[64];
    int back = 0x55555555;
    socklen_t len = sizeof back;
    int r = setsockopt(fd, level, option, &value, sizeof value);
    int error = errno;
    getsockopt(fd, level, option, &back, &len);
    snprintf(label, sizeof label, "%s_%d", name, value);
    say(label, "%s, then %d", r < 0 ? error_name(error) : "ok", back);
}

// Every length from none to too much, of one option.
static void lengths(const char *name, int fd, int level, int option) {
    char label[64];
    for (socklen_t room = 0; room <= 8; room++) {
        unsigned char value[16];
        memset(value, 0xee, sizeof value);
        socklen_t len = room;
        int r = getsockopt(fd, level, option, value, &len);
        snprintf(label, sizeof label, "%s_get_%u", name, room);
        say(label, "%s (%u)%s", r < 0 ? error_name(errno) : "ok", len, value[len] == 0xee ? "" : " beyond");
    }
    int one = 1;
    for (socklen_t len = 0; len <= 8; len += len == 4 ? 4 : 1) {
        long value[2] = {one, 0};
        int r = setsockopt(fd, level, option, value, len);
        snprintf(label, sizeof label, "%s_set_%u", name, len);
        say(label, "%s", r < 0 ? error_name(errno) : "ok");
    }
    socklen_t negative = -1;
    int value;
    DO(({
           snprintf(label, sizeof label, "%s_get_negative", name);
           label;
       }),
       getsockopt(fd, level, option, &value, &negative));
    DO(({
           snprintf(label, sizeof label, "%s_set_negative", name);
           label;
       }),
       setsockopt(fd, level, option, &value, -1));
    DO(({
           snprintf(label, sizeof label, "%s_get_null", name);
           label;
       }),
       getsockopt(fd, level, option, NULL, &(socklen_t){4}));
    DO(({
           snprintf(label, sizeof label, "%s_get_null_len", name);
           label;
       }),
       getsockopt(fd, level, option, &value, NULL));
    DO(({
           snprintf(label, sizeof label, "%s_set_null", name);
           label;
       }),
       setsockopt(fd, level, option, NULL, 4));
}

// A socket that lives in the stack, if there is one.
static int bound(int type) {
    int fd = MUST(socket(AF_INET, type, 0));
    MUST(bind_to(fd, own4, 0));
    return fd;
}

CHECK(lengths_of_integers) {
    int fd = bound(SOCK_STREAM);
    lengths("reuseaddr", fd, SOL_SOCKET, SO_REUSEADDR);
    lengths("nodelay", fd, IPPROTO_TCP, TCP_NODELAY);
}

CHECK(lengths_of_ip) {
    int fd = bound(SOCK_STREAM);
    lengths("tos", fd, IPPROTO_IP, IP_TOS);
}

CHECK(socket_level) {
    int fd = bound(SOCK_STREAM);
    look("type", fd, SOL_SOCKET, SO_TYPE);
    look("domain", fd, SOL_SOCKET, SO_DOMAIN);
    look("protocol", fd, SOL_SOCKET, SO_PROTOCOL);
    look("error", fd, SOL_SOCKET, SO_ERROR);
    look("acceptconn", fd, SOL_SOCKET, SO_ACCEPTCONN);
    look("reuseaddr", fd, SOL_SOCKET, SO_REUSEADDR);
    look("reuseport", fd, SOL_SOCKET, SO_REUSEPORT);
    look("keepalive", fd, SOL_SOCKET, SO_KEEPALIVE);
    look("broadcast", fd, SOL_SOCKET, SO_BROADCAST);
    look("oobinline", fd, SOL_SOCKET, SO_OOBINLINE);
    look("rcvlowat", fd, SOL_SOCKET, SO_RCVLOWAT);
    look("sndlowat", fd, SOL_SOCKET, SO_SNDLOWAT);
    look("priority", fd, SOL_SOCKET, SO_PRIORITY);
    look("timestamp", fd, SOL_SOCKET, SO_TIMESTAMP);
    look("dontroute", fd, SOL_SOCKET, SO_DONTROUTE);
    look("passcred", fd, SOL_SOCKET, SO_PASSCRED);
    look("peek_off", fd, SOL_SOCKET, SO_PEEK_OFF);
    look("mark", fd, SOL_SOCKET, SO_MARK);
    look("busy_poll", fd, SOL_SOCKET, SO_BUSY_POLL);
    look("incoming_cpu", fd, SOL_SOCKET, SO_INCOMING_CPU);
    look("unknown", fd, SOL_SOCKET, 9999);
    try("keepalive", fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    try("keepalive", fd, SOL_SOCKET, SO_KEEPALIVE, 77);
    try("keepalive", fd, SOL_SOCKET, SO_KEEPALIVE, 0);
    try("reuseaddr", fd, SOL_SOCKET, SO_REUSEADDR, 5);
    try("reuseport", fd, SOL_SOCKET, SO_REUSEPORT, 1);
    try("broadcast", fd, SOL_SOCKET, SO_BROADCAST, 1);
    try("rcvlowat", fd, SOL_SOCKET, SO_RCVLOWAT, 4);
    try("sndlowat", fd, SOL_SOCKET, SO_SNDLOWAT, 4);
    try("priority", fd, SOL_SOCKET, SO_PRIORITY, 3);
    try("type", fd, SOL_SOCKET, SO_TYPE, 1);
    try("error", fd, SOL_SOCKET, SO_ERROR, 1);
    try("acceptconn", fd, SOL_SOCKET, SO_ACCEPTCONN, 1);
    try("unknown", fd, SOL_SOCKET, 9999, 1);
    try("timestamp", fd, SOL_SOCKET, SO_TIMESTAMP, 1);
}

CHECK(tcp_level) {
    int fd = bound(SOCK_STREAM);
    look("nodelay", fd, IPPROTO_TCP, TCP_NODELAY);
    look("cork", fd, IPPROTO_TCP, TCP_CORK);
    look("keepidle", fd, IPPROTO_TCP, TCP_KEEPIDLE);
    look("keepintvl", fd, IPPROTO_TCP, TCP_KEEPINTVL);
    look("keepcnt", fd, IPPROTO_TCP, TCP_KEEPCNT);
    look("syncnt", fd, IPPROTO_TCP, TCP_SYNCNT);
    look("linger2", fd, IPPROTO_TCP, TCP_LINGER2);
    look("quickack", fd, IPPROTO_TCP, TCP_QUICKACK);
    look("user_timeout", fd, IPPROTO_TCP, TCP_USER_TIMEOUT);
    look("defer_accept", fd, IPPROTO_TCP, TCP_DEFER_ACCEPT);
    look("fastopen", fd, IPPROTO_TCP, TCP_FASTOPEN);
    look("window_clamp", fd, IPPROTO_TCP, TCP_WINDOW_CLAMP);
    look("maxseg", fd, IPPROTO_TCP, TCP_MAXSEG);
    look("unknown", fd, IPPROTO_TCP, 9999);
    try("nodelay", fd, IPPROTO_TCP, TCP_NODELAY, 1);
    try("nodelay", fd, IPPROTO_TCP, TCP_NODELAY, 9);
    try("cork", fd, IPPROTO_TCP, TCP_CORK, 1);
    try("keepidle", fd, IPPROTO_TCP, TCP_KEEPIDLE, 60);
    try("keepidle", fd, IPPROTO_TCP, TCP_KEEPIDLE, 0);
    try("keepidle", fd, IPPROTO_TCP, TCP_KEEPIDLE, 32768);
    try("keepintvl", fd, IPPROTO_TCP, TCP_KEEPINTVL, 5);
    try("keepintvl", fd, IPPROTO_TCP, TCP_KEEPINTVL, 40000);
    try("keepcnt", fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
    try("keepcnt", fd, IPPROTO_TCP, TCP_KEEPCNT, 128);
    try("syncnt", fd, IPPROTO_TCP, TCP_SYNCNT, 2);
    try("syncnt", fd, IPPROTO_TCP, TCP_SYNCNT, 300);
    try("user_timeout", fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 1000);
    try("user_timeout", fd, IPPROTO_TCP, TCP_USER_TIMEOUT, -1);
    try("quickack", fd, IPPROTO_TCP, TCP_QUICKACK, 0);
    try("defer_accept", fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, 5);
    try("linger2", fd, IPPROTO_TCP, TCP_LINGER2, 30);
    try("linger2", fd, IPPROTO_TCP, TCP_LINGER2, -1);
    try("maxseg", fd, IPPROTO_TCP, TCP_MAXSEG, 1000);
    try("maxseg", fd, IPPROTO_TCP, TCP_MAXSEG, 10);
    try("notsent_lowat", fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, 16384);
    try("unknown", fd, IPPROTO_TCP, 9999, 1);
    int u = bound(SOCK_DGRAM);
    look("on_udp", u, IPPROTO_TCP, TCP_NODELAY);
    try("on_udp", u, IPPROTO_TCP, TCP_NODELAY, 1);
    look("bad_level", fd, 12345, 1);
    try("bad_level", fd, 12345, 1, 1);
}

CHECK(congestion) {
    int fd = bound(SOCK_STREAM);
    char name[32] = "";
    socklen_t len = sizeof name;
    DO("get", getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &len));
    // Which one is the system's choice.
    say("default", "%d (%u)", name[0] != 0, len);
    DO("reno", setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
    len = sizeof name;
    getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &len);
    say("reno_is", "%s (%u)", name, len);
    DO("nonsense", setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "nonsense", 8));
    DO("empty", setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "", 0));
    DO("cubic", setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5));
    len = 3;
    DO("short_room", getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &len));
    say("short_len", "%u", len);
}

CHECK(buffers) {
    int fd = bound(SOCK_STREAM);
    try("rcvbuf", fd, SOL_SOCKET, SO_RCVBUF, 50000);
    try("sndbuf", fd, SOL_SOCKET, SO_SNDBUF, 50000);
    try("rcvbuf", fd, SOL_SOCKET, SO_RCVBUF, 1);
    try("sndbuf", fd, SOL_SOCKET, SO_SNDBUF, 1);
    int u = bound(SOCK_DGRAM);
    try("udp_rcvbuf", u, SOL_SOCKET, SO_RCVBUF, 50000);
    try("udp_sndbuf", u, SOL_SOCKET, SO_SNDBUF, 50000);
}

CHECK(ip_level) {
    int fd = bound(SOCK_STREAM);
    look("tos", fd, IPPROTO_IP, IP_TOS);
    look("ttl", fd, IPPROTO_IP, IP_TTL);
    look("mtu_discover", fd, IPPROTO_IP, IP_MTU_DISCOVER);
    look("recverr", fd, IPPROTO_IP, IP_RECVERR);
    look("pktinfo", fd, IPPROTO_IP, IP_PKTINFO);
    look("freebind", fd, IPPROTO_IP, IP_FREEBIND);
    look("transparent", fd, IPPROTO_IP, IP_TRANSPARENT);
    look("mtu_unconnected", fd, IPPROTO_IP, IP_MTU);
    look("multicast_ttl", fd, IPPROTO_IP, IP_MULTICAST_TTL);
    look("multicast_loop", fd, IPPROTO_IP, IP_MULTICAST_LOOP);
    look("unknown", fd, IPPROTO_IP, 9999);
    try("tos", fd, IPPROTO_IP, IP_TOS, 0x10);
    try("tos", fd, IPPROTO_IP, IP_TOS, 0x113);
    try("ttl", fd, IPPROTO_IP, IP_TTL, 10);
    try("ttl", fd, IPPROTO_IP, IP_TTL, 0);
    try("ttl", fd, IPPROTO_IP, IP_TTL, 256);
    try("ttl", fd, IPPROTO_IP, IP_TTL, -1);
    try("recverr", fd, IPPROTO_IP, IP_RECVERR, 1);
    try("mtu_discover", fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO);
    try("mtu_discover", fd, IPPROTO_IP, IP_MTU_DISCOVER, 77);
    try("unknown", fd, IPPROTO_IP, 9999, 1);
    try("v6_on_v4", fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    int u = bound(SOCK_DGRAM);
    try("multicast_ttl", u, IPPROTO_IP, IP_MULTICAST_TTL, 4);
    try("multicast_loop", u, IPPROTO_IP, IP_MULTICAST_LOOP, 0);
    try("recvtos", u, IPPROTO_IP, IP_RECVTOS, 1);
    try("recvttl", u, IPPROTO_IP, IP_RECVTTL, 1);
}

CHECK(ipv6_level) {
    int fd = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    look("v6only_fresh", fd, IPPROTO_IPV6, IPV6_V6ONLY);
    try("v6only_fresh", fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    MUST(bind_to(fd, own6, 0));
    look("v6only", fd, IPPROTO_IPV6, IPV6_V6ONLY);
    try("v6only_bound", fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
    look("unicast_hops", fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS);
    look("tclass", fd, IPPROTO_IPV6, IPV6_TCLASS);
    look("multicast_hops", fd, IPPROTO_IPV6, IPV6_MULTICAST_HOPS);
    look("recvpktinfo", fd, IPPROTO_IPV6, IPV6_RECVPKTINFO);
    try("unicast_hops", fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 12);
    try("unicast_hops", fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, -1);
    try("unicast_hops", fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, 256);
    try("tclass", fd, IPPROTO_IPV6, IPV6_TCLASS, 0x28);
    try("tclass", fd, IPPROTO_IPV6, IPV6_TCLASS, 256);
    look("ip_tos_on_v6", fd, IPPROTO_IP, IP_TOS);
    try("unknown", fd, IPPROTO_IPV6, 9999, 1);
}

CHECK(inherited) {
    int l = MUST(socket(AF_INET, SOCK_STREAM, 0)), on = 1, idle = 77, tos = 0x20;
    struct linger linger = {1, 3};
    MUST(setsockopt(l, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
    MUST(setsockopt(l, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on));
    MUST(setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    MUST(setsockopt(l, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle));
    MUST(setsockopt(l, IPPROTO_IP, IP_TOS, &tos, sizeof tos));
    MUST(setsockopt(l, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    MUST(bind_to(l, own4, 0));
    MUST(listen(l, 4));
    int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect_to(c, own4, port_of(l)));
    int s = MUST(accept(l, NULL, NULL));
    say("nodelay", "%d", option_of(s, IPPROTO_TCP, TCP_NODELAY));
    say("keepalive", "%d", option_of(s, SOL_SOCKET, SO_KEEPALIVE));
    say("reuseaddr", "%d", option_of(s, SOL_SOCKET, SO_REUSEADDR));
    say("keepidle", "%d", option_of(s, IPPROTO_TCP, TCP_KEEPIDLE));
    say("tos", "%d", option_of(s, IPPROTO_IP, IP_TOS));
    say("acceptconn", "%d", option_of(s, SOL_SOCKET, SO_ACCEPTCONN));
    say("acceptconn_listener", "%d", option_of(l, SOL_SOCKET, SO_ACCEPTCONN));
    socklen_t len = sizeof linger;
    getsockopt(s, SOL_SOCKET, SO_LINGER, &linger, &len);
    say("linger", "%d %d", linger.l_onoff, linger.l_linger);
    say("client_nodelay", "%d", option_of(c, IPPROTO_TCP, TCP_NODELAY));
}

CHECK(tcp_info) {
    struct pair p = tcp_pair();
    struct tcp_info info;
    memset(&info, 0xee, sizeof info);
    socklen_t len = sizeof info;
    DO("get", getsockopt(p.client, IPPROTO_TCP, TCP_INFO, &info, &len));
    say("state", "%d", info.tcpi_state);
    say("mss_sane", "%d", info.tcpi_snd_mss > 500 && info.tcpi_snd_mss <= 65535);
    say("retransmits", "%d", info.tcpi_retransmits);
    len = 1;
    DO("one_byte", getsockopt(p.client, IPPROTO_TCP, TCP_INFO, &info, &len));
    say("one_byte_len", "%u", len);
    shutdown(p.client, SHUT_WR);
    settle();
    len = sizeof info;
    getsockopt(p.client, IPPROTO_TCP, TCP_INFO, &info, &len);
    say("state_fin", "%d", info.tcpi_state);
    len = sizeof info;
    getsockopt(p.server, IPPROTO_TCP, TCP_INFO, &info, &len);
    say("state_peer", "%d", info.tcpi_state);
    int l = tcp_listener(own4, 3);
    len = sizeof info;
    getsockopt(l, IPPROTO_TCP, TCP_INFO, &info, &len);
    say("state_listen", "%d", info.tcpi_state);
    int fresh = MUST(socket(AF_INET, SOCK_STREAM, 0));
    len = sizeof info;
    getsockopt(fresh, IPPROTO_TCP, TCP_INFO, &info, &len);
    say("state_fresh", "%d", info.tcpi_state);
    int u = bound(SOCK_DGRAM);
    len = sizeof info;
    DO("udp", getsockopt(u, IPPROTO_TCP, TCP_INFO, &info, &len));
}

CHECK(rcvlowat) {
    struct pair p = tcp_pair();
    int low = 5;
    MUST(setsockopt(p.server, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low));
    MUST(send(p.client, "abc", 3, 0));
    settle();
    say("below", "%s", bits(ready(p.server, POLLIN, 0)));
    MUST(send(p.client, "def", 3, 0));
    say("above", "%s", bits(ready(p.server, POLLIN, 5000)));
}

CHECK(get_after_passing) {
    // Options set before the socket has an address, read after.
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0)), v;
    v = 1;
    MUST(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &v, sizeof v));
    v = 33;
    MUST(setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &v, sizeof v));
    MUST(setsockopt(fd, IPPROTO_IP, IP_TTL, &v, sizeof v));
    int l = tcp_listener(own4, 2);
    MUST(connect_to(fd, own4, port_of(l)));
    say("nodelay", "%d", option_of(fd, IPPROTO_TCP, TCP_NODELAY));
    say("keepidle", "%d", option_of(fd, IPPROTO_TCP, TCP_KEEPIDLE));
    say("ttl", "%d", option_of(fd, IPPROTO_IP, IP_TTL));
}
