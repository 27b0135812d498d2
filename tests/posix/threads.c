// Several threads on one socket, and closing under each other's feet.
#include "check.h"

struct job {
    int fd;
    long result;
    int error;
    double took;
    char data[32];
};

static void *receives(void *argument) {
    struct job *j = argument;
    double start = now_s();
    j->result = recv(j->fd, j->data, sizeof j->data, 0);
    j->error = errno;
    j->took = now_s() - start;
    return NULL;
}

static void *accepts(void *argument) {
    struct job *j = argument;
    j->result = accept(j->fd, NULL, NULL);
    j->error = errno;
    return NULL;
}

static void *polls(void *argument) {
    struct job *j = argument;
    struct pollfd p = {.fd = j->fd, .events = POLLIN};
    j->result = poll(&p, 1, 400);
    j->error = p.revents;
    return NULL;
}

static void tell(const char *label, struct job *j) {
    if (j->result < 0) {
        say(label, "%s", error_name(j->error));
    } else {
        say(label, "%ld", j->result);
    }
}

CHECK(shutdown_wakes_recv) {
    struct pair p = tcp_pair();
    struct job j = {.fd = p.server};
    pthread_t t;
    pthread_create(&t, NULL, receives, &j);
    pause_ms(80);
    shutdown(p.server, SHUT_RD);
    pthread_join(t, NULL);
    tell("recv", &j);
}

CHECK(shutdown_wakes_accept) {
    int l = tcp_listener(own4, 2);
    struct job j = {.fd = l};
    pthread_t t;
    pthread_create(&t, NULL, accepts, &j);
    pause_ms(80);
    shutdown(l, SHUT_RDWR);
    pthread_join(t, NULL);
    tell("accept", &j);
}

CHECK(shutdown_wakes_udp) {
    int u = udp_bound(own4);
    struct job j = {.fd = u};
    pthread_t t;
    pthread_create(&t, NULL, receives, &j);
    pause_ms(80);
    DO("shutdown", shutdown(u, SHUT_RD));
    pthread_join(t, NULL);
    tell("recv", &j);
}

CHECK(shutdown_wakes_poll) {
    struct pair p = tcp_pair();
    struct job j = {.fd = p.server};
    pthread_t t;
    pthread_create(&t, NULL, polls, &j);
    pause_ms(80);
    shutdown(p.server, SHUT_RDWR);
    pthread_join(t, NULL);
    say("count", "%ld", j.result);
    say("events", "%s", bits(j.error));
}

CHECK(peer_closes_while_waiting) {
    struct pair p = tcp_pair();
    struct job j = {.fd = p.server};
    pthread_t t;
    pthread_create(&t, NULL, receives, &j);
    pause_ms(80);
    close(p.client);
    pthread_join(t, NULL);
    tell("fin", &j);
    struct pair q = tcp_pair();
    struct linger hard = {1, 0};
    MUST(setsockopt(q.client, SOL_SOCKET, SO_LINGER, &hard, sizeof hard));
    j.fd = q.server;
    pthread_create(&t, NULL, receives, &j);
    pause_ms(80);
    close(q.client);
    pthread_join(t, NULL);
    tell("reset", &j);
}

CHECK(two_accept) {
    int l = tcp_listener(own4, 4);
    struct job j[2] = {{.fd = l}, {.fd = l}};
    pthread_t t[2];
    for (int i = 0; i < 2; i++) {
        pthread_create(&t[i], NULL, accepts, &j[i]);
    }
    pause_ms(60);
    int c[2];
    for (int i = 0; i < 2; i++) {
        c[i] = MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(connect_to(c[i], own4, port_of(l)));
    }
    int good = 0;
    for (int i = 0; i < 2; i++) {
        pthread_join(t[i], NULL);
        good += j[i].result >= 0;
    }
    say("accepted", "%d", good);
    say("different", "%d", j[0].result != j[1].result);
}

static void *sends_numbers(void *argument) {
    struct job *j = argument;
    for (int i = 0; i < 2000; i++) {
        char line[16];
        memset(line, 'a' + (int)j->result, sizeof line);
        if (send(j->fd, line, sizeof line, 0) != sizeof line) {
            j->error = errno;
        }
    }
    return NULL;
}

CHECK(two_write) {
    struct pair p = tcp_pair();
    struct job j[3] = {{.fd = p.client, .result = 0}, {.fd = p.client, .result = 1}, {.fd = p.client, .result = 2}};
    pthread_t t[3];
    for (int i = 0; i < 3; i++) {
        pthread_create(&t[i], NULL, sends_numbers, &j[i]);
    }
    int whole = 0, counts[3] = {0};
    char line[16];
    for (int i = 0; i < 6000; i++) {
        if (read_all(p.server, line, 16) != 16) {
            break;
        }
        bool same = true;
        for (int k = 1; k < 16; k++) {
            same &= line[k] == line[0];
        }
        whole += same;
        if (line[0] >= 'a' && line[0] <= 'c') {
            counts[line[0] - 'a']++;
        }
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(t[i], NULL);
    }
    say("pieces_stay_whole", "%d", whole);
    say("counts", "%d %d %d", counts[0], counts[1], counts[2]);
}

static void *echoes(void *argument) {
    int fd = *(int *)argument;
    char b[4096];
    ssize_t n;
    while ((n = recv(fd, b, sizeof b, 0)) > 0) {
        if (send(fd, b, n, 0) != n) {
            break;
        }
    }
    return NULL;
}

CHECK(read_and_write_at_once) {
    struct pair p = tcp_pair();
    pthread_t echo, writer;
    pthread_create(&echo, NULL, echoes, &p.server);
    struct job j = {.fd = p.client, .result = 0};
    pthread_create(&writer, NULL, sends_numbers, &j);
    static char in[32000];
    DO("echoed", read_all(p.client, in, sizeof in));
    pthread_join(writer, NULL);
    shutdown(p.client, SHUT_WR);
    pthread_join(echo, NULL);
    char b;
    DO("nothing_more", recv(p.client, &b, 1, MSG_DONTWAIT));
}

static void *closes_later(void *argument) {
    pause_ms(80);
    close(*(int *)argument);
    return NULL;
}

// What a call says whose descriptor another thread closes: on Linux it goes on until something happens to the socket.
CHECK(close_while_epoll_waits) {
    struct pair p = tcp_pair();
    int ep = MUST(epoll_create1(0));
    struct epoll_event e = {.events = EPOLLIN};
    MUST(epoll_ctl(ep, EPOLL_CTL_ADD, p.server, &e));
    pthread_t t;
    pthread_create(&t, NULL, closes_later, &p.server);
    DO("epoll_wait", epoll_wait(ep, &e, 1, 250));
    pthread_join(t, NULL);
    char b;
    DO("the_peer_has_its_fin", recv(p.client, &b, 1, 0));
}

CHECK(close_of_a_copy_wakes_nobody) {
    struct pair p = tcp_pair();
    int copy = MUST(dup(p.server));
    struct job j = {.fd = p.server};
    pthread_t t;
    pthread_create(&t, NULL, receives, &j);
    pause_ms(60);
    close(copy);
    pause_ms(60);
    MUST(send(p.client, "data", 4, 0));
    pthread_join(t, NULL);
    tell("recv", &j);
}

CHECK(close_while_recv_waits) {
    struct pair p = tcp_pair();
    struct job j = {.fd = p.server};
    pthread_t t;
    pthread_create(&t, NULL, receives, &j);
    pause_ms(80);
    close(p.server);
    pause_ms(80);
    send(p.client, "late", 4, MSG_NOSIGNAL);
    pthread_join(t, NULL);
    tell("recv", &j);
}

static void *cancelled(void *argument) {
    char b;
    recv(*(int *)argument, &b, 1, 0);
    return NULL;
}

CHECK(cancellation) {
    struct pair p = tcp_pair();
    pthread_t t;
    pthread_create(&t, NULL, cancelled, &p.server);
    pause_ms(60);
    pthread_cancel(t);
    void *result;
    struct timespec limit;
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += 3;
    int joined = pthread_timedjoin_np(t, &result, &limit);
    say("joined", "%s", error_name(joined));
    say("cancelled", "%d", joined == 0 && result == PTHREAD_CANCELED);
    // Two: the first may be taken by the thread, if it still waits.
    DO("send", send(p.client, "xy", 2, 0));
    char b;
    DO("socket_still_works", recv(p.server, &b, 1, 0));
}

static void *many(void *argument) {
    long bad = 0;
    for (int i = 0; i < 40; i++) {
        int l = tcp_listener(own4, 2);
        int c = socket(AF_INET, SOCK_STREAM, 0);
        char b = 0;
        bad += connect_to(c, own4, port_of(l)) != 0;
        int s = accept(l, NULL, NULL);
        bad += send(c, "m", 1, 0) != 1;
        bad += recv(s, &b, 1, 0) != 1 || b != 'm';
        close(l);
        close(c);
        bad += recv(s, &b, 1, 0) != 0;
        close(s);
    }
    *(long *)argument = bad;
    return NULL;
}

CHECK(many_threads_open_and_close) {
    pthread_t t[4];
    long bad[4];
    for (int i = 0; i < 4; i++) {
        pthread_create(&t[i], NULL, many, &bad[i]);
    }
    long all = 0;
    for (int i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
        all += bad[i];
    }
    say("failures", "%ld", all);
}
