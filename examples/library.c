/*
 * An echo server with the whole stack in the process (libsidestep), in a loop of the program's own: it runs the engine
 * itself, sleeps on the engine's descriptor, and copies from what it received straight into what it sends.
 *
 *   cargo build --release -p sidestep-libos
 *   cc -O2 -Wall -Iinclude examples/library.c -o library -Ltarget/release -lsidestep
 *   LD_LIBRARY_PATH=target/release ./library config/veth-lab.toml 7
 *
 * The last argument may be a number of connections after which it ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "sidestep.h"

#define EVENTS 64

static void die(const char *what) {
    fprintf(stderr, "library: %s: %s\n", what, ss_strerror());
    exit(1);
}

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Copies two pieces into two others; how many bytes. */
static size_t copy(const struct iovec from[2], const struct iovec to[2]) {
    size_t done = 0;
    for (int f = 0, t = 0, at_from = 0, at_to = 0; f < 2 && t < 2;) {
        size_t n = least(from[f].iov_len - (size_t)at_from, to[t].iov_len - (size_t)at_to);
        memcpy((char *)to[t].iov_base + at_to, (const char *)from[f].iov_base + at_from, n);
        done += n;
        at_from += (int)n;
        at_to += (int)n;
        if ((size_t)at_from == from[f].iov_len)
            f++, at_from = 0;
        if ((size_t)at_to == to[t].iov_len)
            t++, at_to = 0;
    }
    return done;
}

/* Sends back what has arrived, as far as there is room. 0 when the connection is over. */
static int echo(ss_sock *sock) {
    struct iovec in[2] = {{NULL, 0}, {NULL, 0}}, out[2] = {{NULL, 0}, {NULL, 0}};
    for (;;) {
        ssize_t have = ss_recv_zc(sock, in, 0, NULL, NULL);
        if (have < 0)
            return ss_errno() == EAGAIN;
        if (have == 0)
            return 0;
        ssize_t room = ss_send_reserve(sock, (size_t)have, out, MSG_NOSIGNAL);
        if (room < 0) {
            int full = ss_errno() == EAGAIN;
            ss_recv_done(sock, 0);
            return full;
        }
        size_t n = copy(in, out);
        if (ss_send_commit(sock, n, 0) < 0 || ss_recv_done(sock, n) < 0)
            return 0;
    }
}

int main(int argc, char **argv) {
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: library CONFIGURATION PORT [CONNECTIONS]\n");
        return 2;
    }
    long left = argc == 4 ? atol(argv[3]) : -1;
    long open = 0;

    ss_engine *engine = ss_start(argv[1]);
    if (!engine)
        die("start");
    struct sockaddr_in address;
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_port = htons((unsigned short)atoi(argv[2]));
    ss_sock *listener = ss_socket(engine, AF_INET, SOCK_STREAM | SOCK_NONBLOCK);
    if (!listener)
        die("socket");
    if (ss_bind(listener, (struct sockaddr *)&address, sizeof address) < 0)
        die("bind");
    if (ss_listen(listener, 511) < 0)
        die("listen");
    ss_epoll *epoll = ss_epoll_create(engine);
    struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = listener}};
    if (!epoll || ss_epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) < 0)
        die("epoll");
    printf("listening on port %s; sidestep ss --control %s\n", argv[2], ss_control(engine));
    fflush(stdout);

    while (left != 0 || open > 0) {
        struct epoll_event events[EVENTS];
        ss_run_once(engine);
        int n = ss_epoll_wait(epoll, events, EVENTS, 0);
        if (n < 0 && ss_errno() != EINTR)
            die("epoll_wait");
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr != listener) {
                ss_sock *sock = events[i].data.ptr;
                if (!echo(sock)) {
                    ss_close(sock);
                    open--;
                }
                continue;
            }
            ss_sock *sock;
            while (left != 0 && (sock = ss_accept4(listener, NULL, NULL, SOCK_NONBLOCK)) != NULL) {
                struct epoll_event both = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data = {.ptr = sock}};
                if (ss_epoll_ctl(epoll, EPOLL_CTL_ADD, sock, &both) < 0)
                    die("epoll_ctl");
                open++;
                left -= left > 0;
            }
        }
        if (n > 0)
            continue;
        /* Nothing to do: sleep until the engine has something, or its next timer is due. */
        int fd;
        int64_t ns;
        int sleep = ss_sleep_begin(engine, &fd, &ns);
        if (sleep < 0)
            die("sleep");
        if (sleep == 0)
            continue;
        struct pollfd set = {.fd = fd, .events = POLLIN, .revents = 0};
        struct timespec time = {ns / 1000000000, ns % 1000000000};
        ppoll(&set, 1, &time, NULL);
        ss_sleep_end(engine, fd);
    }

    struct ss_stats stats;
    if (ss_stats(engine, &stats, sizeof stats) < 0)
        die("stats");
    printf("%llu segments in, %llu out\n", (unsigned long long)stats.tcp_in, (unsigned long long)stats.tcp_out);
    ss_epoll_close(epoll);
    ss_close(listener);
    ss_stop(engine);
    return 0;
}
