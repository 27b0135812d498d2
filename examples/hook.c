/*
 * Two engines in one process, joined by a pipe, and a hook on one of them that counts frames by protocol, drops one in
 * DROP of the TCP segments that carry data, and puts a mark (DSCP 46) on what leaves. The transfer arrives all the same.
 *
 *   cc -O2 -Wall -Iinclude examples/hook.c -o hook -Ltarget/release -lsidestep -lpthread
 *   LD_LIBRARY_PATH=target/release ./hook 20
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sidestep.h"

#define TOTAL (1 << 20)

/* What the hook knows. It is called by one thread at a time, because there is one shard. */
struct counts {
    unsigned long arp, tcp, other, dropped, marked;
    unsigned long every;
};

/* The sum that the checksum of IP's header must be the complement of: RFC 1071. */
static uint16_t checksum(const uint8_t *header, size_t len) {
    uint32_t sum = 0;
    for (size_t i = 0; i < len; i += 2)
        sum += (uint32_t)header[i] << 8 | header[i + 1];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static int hook(struct ss_frame *frame, void *user) {
    struct counts *counts = user;
    if (frame->len >= 14 && frame->data[12] == 0x08 && frame->data[13] == 0x06) {
        counts->arp++;
        return SS_PASS;
    }
    if (frame->len < 34 || frame->data[12] != 0x08 || frame->data[13] != 0x00 || frame->data[23] != IPPROTO_TCP) {
        counts->other++;
        return SS_PASS;
    }
    counts->tcp++;
    if (frame->outgoing) {
        uint8_t *ip = frame->data + 14;
        size_t header = (size_t)(ip[0] & 15) * 4;
        ip[1] = (uint8_t)(46 << 2 | (ip[1] & 3));
        ip[10] = ip[11] = 0;
        uint16_t sum = checksum(ip, header);
        ip[10] = (uint8_t)(sum >> 8);
        ip[11] = (uint8_t)sum;
        counts->marked++;
        return SS_CHANGED;
    }
    if (frame->len > 200 && counts->every && counts->tcp % counts->every == 0) {
        counts->dropped++;
        return SS_DROP;
    }
    return SS_PASS;
}

static void die(const char *what) {
    fprintf(stderr, "hook: %s: %s\n", what, ss_strerror());
    exit(1);
}

static struct sockaddr_in at(const char *ip) {
    struct sockaddr_in address;
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_port = htons(7);
    inet_pton(AF_INET, ip, &address.sin_addr);
    return address;
}

/* The other side: sends TOTAL bytes that count up. */
static void *sender(void *engine) {
    struct sockaddr_in to = at("10.9.0.1");
    ss_sock *sock = ss_socket(engine, AF_INET, SOCK_STREAM);
    if (!sock || ss_connect(sock, (struct sockaddr *)&to, sizeof to) < 0)
        die("connect");
    static unsigned char data[TOTAL];
    for (size_t i = 0; i < TOTAL; i++)
        data[i] = (unsigned char)(i * 7);
    for (size_t done = 0; done < TOTAL;) {
        ssize_t n = ss_send(sock, data + done, TOTAL - done, 0);
        if (n < 0)
            die("send");
        done += (size_t)n;
    }
    ss_shutdown(sock, SHUT_WR);
    char end;
    ss_recv(sock, &end, 1, 0);
    ss_close(sock);
    return NULL;
}

int main(int argc, char **argv) {
    struct counts counts = {0, 0, 0, 0, 0, argc > 1 ? strtoul(argv[1], NULL, 10) : 20};
    int wire[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, wire) < 0) {
        perror("socketpair");
        return 1;
    }
    const char *text[2] = {
        "[[interface]]\nname = \"a\"\nbackend = \"pipe\"\naddresses = [\"10.9.0.1/24\"]\n",
        "[[interface]]\nname = \"b\"\nbackend = \"pipe\"\naddresses = [\"10.9.0.2/24\"]\n",
    };
    ss_engine *engines[2];
    for (int i = 0; i < 2; i++) {
        struct ss_options options;
        memset(&options, 0, sizeof options);
        options.size = sizeof options;
        options.config_text = text[i];
        options.wires = &wire[i];
        options.wire_count = 1;
        options.hook = i == 0 ? hook : NULL;
        options.user = &counts;
        engines[i] = ss_start_with(&options);
        if (!engines[i])
            die("start");
        close(wire[i]);
    }

    struct sockaddr_in here = at("10.9.0.1");
    ss_sock *listener = ss_socket(engines[0], AF_INET, SOCK_STREAM);
    if (!listener || ss_bind(listener, (struct sockaddr *)&here, sizeof here) < 0 || ss_listen(listener, 1) < 0)
        die("listen");
    pthread_t thread;
    pthread_create(&thread, NULL, sender, engines[1]);
    ss_sock *sock = ss_accept(listener, NULL, NULL);
    if (!sock)
        die("accept");
    size_t got = 0, wrong = 0;
    for (;;) {
        unsigned char buffer[65536];
        ssize_t n = ss_recv(sock, buffer, sizeof buffer, 0);
        if (n < 0)
            die("recv");
        if (n == 0)
            break;
        for (ssize_t i = 0; i < n; i++)
            wrong += buffer[i] != (unsigned char)((got + (size_t)i) * 7);
        got += (size_t)n;
    }
    ss_close(sock);
    pthread_join(thread, NULL);
    ss_close(listener);

    struct ss_stats stats;
    if (ss_stats(engines[0], &stats, sizeof stats) < 0)
        die("stats");
    ss_stop(engines[1]);
    ss_stop(engines[0]);
    printf("%zu bytes, %zu wrong; %lu ARP, %lu TCP, %lu others; %lu dropped, %lu marked; engine: %llu and %llu\n", got,
           wrong, counts.arp, counts.tcp, counts.other, counts.dropped, counts.marked,
           (unsigned long long)stats.hook_dropped[0], (unsigned long long)stats.hook_changed[1]);
    return got == TOTAL && wrong == 0 && counts.dropped > 0 && stats.hook_dropped[0] == counts.dropped ? 0 : 1;
}
