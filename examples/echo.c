/*
 * An echo server on a Sidestep engine, with the C library: many connections in one thread, by ss_poll().
 *
 *   cargo build --release -p sidestep-client
 *   cc -O2 -Wall -Iinclude examples/echo.c -o echo -Ltarget/release -lsidestep_client
 *   sidestep up -c config/veth-lab.toml &
 *   LD_LIBRARY_PATH=target/release ./echo /run/sidestep/engine.sock 10.77.0.2 7
 *
 * Or without a shared library:
 *   cc -O2 -Wall -Iinclude examples/echo.c -o echo target/release/libsidestep_client.a -lpthread -ldl -lm
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sidestep.h"

#define MOST 1024
#define BUFFER 16384

struct connection {
    ss_sock *sock;
    size_t have, sent; /* bytes in the buffer, and how many of them went back */
    char buffer[BUFFER];
};

static void die(const char *what) {
    fprintf(stderr, "echo: %s: %s\n", what, ss_strerror());
    exit(1);
}

/* Reads and writes as far as it goes; 0 when the connection is over. */
static int echo(struct connection *c) {
    for (;;) {
        while (c->sent < c->have) {
            ssize_t n = ss_send(c->sock, c->buffer + c->sent, c->have - c->sent, 0);
            if (n < 0)
                return ss_errno() == EAGAIN;
            c->sent += (size_t)n;
        }
        ssize_t n = ss_recv(c->sock, c->buffer, BUFFER, 0);
        if (n < 0)
            return ss_errno() == EAGAIN;
        if (n == 0)
            return 0;
        c->have = (size_t)n;
        c->sent = 0;
    }
}

int main(int argc, char **argv) {
    static struct connection *connections[MOST];
    static struct ss_pollfd entries[MOST + 1];
    size_t count = 0;
    struct sockaddr_storage address;
    socklen_t len;

    if (argc != 4) {
        fprintf(stderr, "usage: echo SOCKET ADDRESS PORT\n");
        return 2;
    }
    memset(&address, 0, sizeof address);
    struct sockaddr_in *v4 = (struct sockaddr_in *)&address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&address;
    if (inet_pton(AF_INET, argv[2], &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((unsigned short)atoi(argv[3]));
        len = sizeof *v4;
    } else if (inet_pton(AF_INET6, argv[2], &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((unsigned short)atoi(argv[3]));
        len = sizeof *v6;
    } else {
        fprintf(stderr, "echo: %s is no IP address\n", argv[2]);
        return 2;
    }

    ss_engine *engine = ss_attach(argv[1]);
    if (!engine)
        die("attach");
    ss_sock *listener = ss_socket(engine, address.ss_family, SOCK_STREAM);
    if (!listener)
        die("socket");
    if (ss_bind(listener, (struct sockaddr *)&address, len) < 0)
        die("bind");
    if (ss_listen(listener, 511) < 0)
        die("listen");
    ss_set_nonblocking(listener, 1);
    printf("listening on %s port %s\n", argv[2], argv[3]);
    fflush(stdout);

    for (;;) {
        entries[0] = (struct ss_pollfd){listener, -1, count < MOST ? POLLIN : 0, 0};
        for (size_t i = 0; i < count; i++) {
            int waits = connections[i]->sent < connections[i]->have;
            entries[i + 1] = (struct ss_pollfd){connections[i]->sock, -1, waits ? POLLOUT : POLLIN, 0};
        }
        if (ss_poll(entries, count + 1, -1) < 0) {
            if (ss_errno() == EINTR)
                continue;
            die("poll");
        }
        /* Backwards, because a connection that ends is replaced by the last one. */
        for (size_t i = count; i-- > 0;) {
            if (entries[i + 1].revents && !echo(connections[i])) {
                ss_close(connections[i]->sock);
                free(connections[i]);
                connections[i] = connections[--count];
            }
        }
        while (entries[0].revents && count < MOST) {
            ss_sock *sock = ss_accept(listener, NULL, NULL);
            if (!sock) {
                if (ss_errno() == EAGAIN || ss_errno() == EINTR)
                    break;
                die("accept");
            }
            struct connection *c = malloc(sizeof *c);
            if (!c) {
                ss_close(sock);
                break;
            }
            c->sock = sock;
            c->have = c->sent = 0;
            ss_set_nonblocking(sock, 1);
            connections[count++] = c;
        }
    }
}
