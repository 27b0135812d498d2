// SO_REUSEPORT and SO_REUSEADDR: who may bind beside whom, and who gets what.
#include "check.h"

static int shared(int type, uint16_t port, int option) {
    int fd = MUST(socket(AF_INET, type, 0)), on = 1;
    MUST(setsockopt(fd, SOL_SOCKET, option, &on, sizeof on));
    if (bind_to(fd, own4, port) < 0) {
        return -1;
    }
    return fd;
}

CHECK(tcp_group) {
    int a = shared(SOCK_STREAM, 0, SO_REUSEPORT);
    int b = OK("second", shared(SOCK_STREAM, port_of(a), SO_REUSEPORT));
    OK("without", shared(SOCK_STREAM, port_of(a), SO_REUSEADDR));
    MUST(listen(a, 64));
    DO("listen_second", listen(b, 64));
    int c = OK("third_after_listen", shared(SOCK_STREAM, port_of(a), SO_REUSEPORT));
    MUST(listen(c, 64));
    int fds[3] = {a, b, c}, counts[3] = {0}, total = 0;
    for (int i = 0; i < 60; i++) {
        int k = MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(connect_to(k, own4, port_of(a)));
    }
    settle();
    for (int i = 0; i < 3; i++) {
        nonblocking(fds[i]);
        while (accept(fds[i], NULL, NULL) >= 0) {
            counts[i]++;
            total++;
        }
    }
    say("all_accepted", "%d", total);
    say("each_got_some", "%d", counts[0] > 5 && counts[1] > 5 && counts[2] > 5);
    close(a);
    int failed = 0;
    for (int i = 0; i < 20; i++) {
        int k = MUST(socket(AF_INET, SOCK_STREAM, 0));
        failed += connect_to(k, own4, port_of(b)) != 0;
    }
    say("the_others_take_over", "%d", failed);
}

CHECK(udp_group) {
    int a = shared(SOCK_DGRAM, 0, SO_REUSEPORT);
    int b = OK("second", shared(SOCK_DGRAM, port_of(a), SO_REUSEPORT));
    int got[2] = {0};
    for (int i = 0; i < 60; i++) {
        int s = udp_bound(own4);
        MUST(send_to(s, "x", 1, own4, port_of(a)));
        close(s);
    }
    settle();
    char c;
    while (recv(a, &c, 1, MSG_DONTWAIT) > 0) {
        got[0]++;
    }
    while (recv(b, &c, 1, MSG_DONTWAIT) > 0) {
        got[1]++;
    }
    say("all", "%d", got[0] + got[1]);
    say("both", "%d", got[0] > 5 && got[1] > 5);
    int s = udp_bound(own4);
    for (int i = 0; i < 20; i++) {
        MUST(send_to(s, "x", 1, own4, port_of(a)));
    }
    settle();
    got[0] = got[1] = 0;
    while (recv(a, &c, 1, MSG_DONTWAIT) > 0) {
        got[0]++;
    }
    while (recv(b, &c, 1, MSG_DONTWAIT) > 0) {
        got[1]++;
    }
    say("one_sender_one_socket", "%d", got[0] == 20 || got[1] == 20);
}

CHECK(udp_reuse_address) {
    int a = shared(SOCK_DGRAM, 0, SO_REUSEADDR);
    int b = OK("second", shared(SOCK_DGRAM, port_of(a), SO_REUSEADDR));
    int s = udp_bound(own4);
    for (int i = 0; i < 5; i++) {
        MUST(send_to(s, "x", 1, own4, port_of(a)));
    }
    settle();
    int got[2] = {0};
    char c;
    while (recv(a, &c, 1, MSG_DONTWAIT) > 0) {
        got[0]++;
    }
    while (recv(b, &c, 1, MSG_DONTWAIT) > 0) {
        got[1]++;
    }
    say("the_latest_gets_all", "%d %d", got[0], got[1]);
    close(b);
    MUST(send_to(s, "x", 1, own4, port_of(a)));
    settle();
    DO("then_the_first", recv(a, &c, 1, MSG_DONTWAIT));
}

CHECK(specific_beats_any) {
    int any = MUST(socket(AF_INET, SOCK_DGRAM, 0)), own, on = 1;
    MUST(setsockopt(any, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    MUST(bind_to(any, "0.0.0.0", 0));
    own = shared(SOCK_DGRAM, port_of(any), SO_REUSEADDR);
    int s = udp_bound(own4);
    MUST(send_to(s, "x", 1, own4, port_of(any)));
    settle();
    char c;
    DO("own", recv(own, &c, 1, MSG_DONTWAIT));
    DO("any", recv(any, &c, 1, MSG_DONTWAIT));
    int lany = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(setsockopt(lany, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    MUST(bind_to(lany, "0.0.0.0", 0));
    MUST(listen(lany, 4));
    OK("tcp_specific_beside_listening_any", shared(SOCK_STREAM, port_of(lany), SO_REUSEADDR));
}

CHECK(time_wait) {
    int l = tcp_listener(own4, 4);
    uint16_t port = port_of(l);
    int c = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect_to(c, own4, port));
    int s = MUST(accept(l, NULL, NULL));
    close(s);
    settle();
    close(c);
    close(l);
    settle();
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0)), on = 1;
    DO("without_reuse", bind_to(fd, own4, port));
    MUST(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    DO("with_reuse", bind_to(fd, own4, port));
    DO("listen", listen(fd, 1));
}
