// What all parity programs share. A program is run twice, on the kernel's sockets and on Sidestep's, and writes a
// transcript: one line a check, `FUNCTION.LABEL: what happened`. Nothing in a line may depend on time, port numbers or
// descriptors chosen by the system; addresses and ports are named instead of printed.
//
//   PROGRAM OWN4 OWN6 PEER4 PEER6 [FUNCTION…]
//
// OWN: addresses of this host, on which programs talk to themselves. PEER: another host, on which nothing listens.
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// Wrong arguments are what is tested here.
#pragma GCC diagnostic ignored "-Wnonnull"
#pragma GCC diagnostic ignored "-Wpragmas"
#pragma GCC diagnostic ignored "-Wstringop-overflow"
#pragma GCC diagnostic ignored "-Wstringop-overread"
#pragma GCC diagnostic ignored "-Wunused-function"

static const char *own4, *own6, *peer4, *peer6;
static const char *self_path;

// ---- the functions of a program ------------------------------------------------------------------------------------

struct check {
    const char *name;
    void (*run)(void);
};
static struct check checks[128];
static int check_count;
static const char *now_running = "";

#define CHECK(function)                                                                                                \
    static void check_##function(void);                                                                                \
    __attribute__((constructor)) static void register_##function(void) {                                               \
        checks[check_count++] = (struct check){#function, check_##function};                                           \
    }                                                                                                                  \
    static void check_##function(void)

// ---- lines ---------------------------------------------------------------------------------------------------------

__attribute__((format(printf, 2, 3))) static inline void say(const char *label, const char *format, ...) {
    char text[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    char line[2300];
    int len = snprintf(line, sizeof line, "%s.%s: %s\n", now_running, label, text);
    if (write(1, line, len) != len) {
        _exit(99);
    }
}

static inline const char *error_name(int error) { return error ? strerrorname_np(error) : "0"; }

// A call's value, or -1 and the error.
#define DO(label, call)                                                                                                \
    ({                                                                                                                 \
        errno = 0;                                                                                                     \
        long value_ = (long)(call);                                                                                    \
        int error_ = errno;                                                                                            \
        if (value_ < 0) {                                                                                              \
            say(label, "%ld %s", value_, error_name(error_));                                                          \
        } else {                                                                                                       \
            say(label, "%ld", value_);                                                                                 \
        }                                                                                                              \
        errno = error_;                                                                                                \
        value_;                                                                                                        \
    })

// The same where the value is a number that the system chose.
#define OK(label, call)                                                                                                \
    ({                                                                                                                 \
        errno = 0;                                                                                                     \
        long value_ = (long)(call);                                                                                    \
        int error_ = errno;                                                                                            \
        say(label, "%s", value_ < 0 ? error_name(error_) : "ok");                                                      \
        errno = error_;                                                                                                \
        value_;                                                                                                        \
    })

// A step that is no check: the program ends when it fails, which the transcript shows.
#define MUST(call)                                                                                                     \
    ({                                                                                                                 \
        errno = 0;                                                                                                     \
        long value_ = (long)(call);                                                                                    \
        if (value_ < 0) {                                                                                              \
            say("MUST", "line %d: %s: %s", __LINE__, #call, error_name(errno));                                        \
            _exit(98);                                                                                                 \
        }                                                                                                              \
        value_;                                                                                                        \
    })

// Bytes, made readable.
static inline const char *shown(const void *bytes, long len) {
    static _Thread_local char text[1024];
    int at = 0;
    for (long i = 0; i < len && at < 1000; i++) {
        unsigned char c = ((const unsigned char *)bytes)[i];
        at += snprintf(text + at, sizeof text - at, c >= ' ' && c < 127 ? "%c" : "\\%02x", c);
    }
    text[at] = 0;
    return text;
}

static inline uint32_t checksum(const void *bytes, size_t len) {
    uint32_t sum = 2166136261u;
    for (size_t i = 0; i < len; i++) {
        sum = (sum ^ ((const unsigned char *)bytes)[i]) * 16777619u;
    }
    return sum;
}

static inline void pattern(void *to, size_t len, unsigned seed) {
    for (size_t i = 0; i < len; i++) {
        ((unsigned char *)to)[i] = (unsigned char)((i * 7 + i / 251 + seed) & 255);
    }
}

// Bits of poll and epoll.
static inline const char *bits(unsigned events) {
    static _Thread_local char rotating[8][128];
    static _Thread_local int turn;
    static const struct {
        unsigned bit;
        const char *name;
    } names[] = {{POLLIN, "IN"},         {POLLPRI, "PRI"},       {POLLOUT, "OUT"},       {POLLERR, "ERR"},
                 {POLLHUP, "HUP"},       {POLLNVAL, "NVAL"},     {POLLRDNORM, "RDNORM"}, {POLLRDBAND, "RDBAND"},
                 {POLLWRNORM, "WRNORM"}, {POLLWRBAND, "WRBAND"}, {POLLMSG, "MSG"},       {POLLRDHUP, "RDHUP"}};
    char *text = rotating[turn = (turn + 1) % 8];
    text[0] = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (events & names[i].bit) {
            if (text[0]) {
                strcat(text, "|");
            }
            strcat(text, names[i].name);
        }
    }
    return text[0] ? text : "-";
}

// ---- addresses -----------------------------------------------------------------------------------------------------

union address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_un un;
    struct sockaddr_storage room;
};

static struct {
    uint16_t port;
    const char *name;
} known_ports[64];
static int known_count;

static inline void know_port(uint16_t port, const char *name) {
    known_ports[known_count].port = port;
    known_ports[known_count++].name = name;
}

static inline const char *port_name(uint16_t port) {
    if (port == 0) {
        return "0";
    }
    for (int i = known_count - 1; i >= 0; i--) {
        if (known_ports[i].port == port) {
            return known_ports[i].name;
        }
    }
    return "some";
}

static inline const char *host_name(const char *text) {
    static const struct {
        const char *text, *name;
    } fixed[] = {{"0.0.0.0", "any4"}, {"::", "any6"}, {"127.0.0.1", "lo4"}, {"::1", "lo6"}};
    if (strcmp(text, own4) == 0) {
        return "own4";
    }
    if (strcmp(text, own6) == 0) {
        return "own6";
    }
    if (strcmp(text, peer4) == 0) {
        return "peer4";
    }
    if (strcmp(text, peer6) == 0) {
        return "peer6";
    }
    if (strncmp(text, "::ffff:", 7) == 0) {
        static _Thread_local char mapped[96];
        snprintf(mapped, sizeof mapped, "mapped-%.60s", host_name(text + 7));
        return mapped;
    }
    for (size_t i = 0; i < 4; i++) {
        if (strcmp(text, fixed[i].text) == 0) {
            return fixed[i].name;
        }
    }
    static _Thread_local char other[80];
    snprintf(other, sizeof other, "%s", text);
    return other;
}

static inline const char *name_of(const void *address, socklen_t len) {
    static _Thread_local char rotating[4][192];
    static _Thread_local int turn;
    char *out = rotating[turn = (turn + 1) % 4];
    const union address *a = address;
    char text[64];
    if (len == 0) {
        return "none";
    }
    if (len >= sizeof a->v4 && a->any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &a->v4.sin_addr, text, sizeof text);
        snprintf(out, 192, "%s:%s(%u)", host_name(text), port_name(ntohs(a->v4.sin_port)), len);
    } else if (len >= sizeof a->v6 && a->any.sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &a->v6.sin6_addr, text, sizeof text);
        snprintf(out, 192, "%s:%s(%u)", host_name(text), port_name(ntohs(a->v6.sin6_port)), len);
    } else {
        snprintf(out, 192, "family %d(%u)", a->any.sa_family, len);
    }
    return out;
}

static inline socklen_t address_of(union address *to, const char *host, uint16_t port) {
    memset(to, 0, sizeof *to);
    if (strchr(host, ':')) {
        to->v6.sin6_family = AF_INET6;
        to->v6.sin6_port = htons(port);
        inet_pton(AF_INET6, host, &to->v6.sin6_addr);
        return sizeof to->v6;
    }
    to->v4.sin_family = AF_INET;
    to->v4.sin_port = htons(port);
    inet_pton(AF_INET, host, &to->v4.sin_addr);
    return sizeof to->v4;
}

static inline int family_of(const char *host) { return strchr(host, ':') ? AF_INET6 : AF_INET; }

static inline uint16_t port_of(int fd) {
    union address a;
    socklen_t len = sizeof a;
    MUST(getsockname(fd, &a.any, &len));
    return ntohs(a.any.sa_family == AF_INET ? a.v4.sin_port : a.v6.sin6_port);
}

static inline int bind_to(int fd, const char *host, uint16_t port) {
    union address a;
    socklen_t len = address_of(&a, host, port);
    return bind(fd, &a.any, len);
}

static inline int connect_to(int fd, const char *host, uint16_t port) {
    union address a;
    socklen_t len = address_of(&a, host, port);
    return connect(fd, &a.any, len);
}

static inline long send_to(int fd, const void *bytes, size_t n, const char *host, uint16_t port) {
    union address a;
    socklen_t len = address_of(&a, host, port);
    return sendto(fd, bytes, n, 0, &a.any, len);
}

static inline void say_name(const char *label, int fd) {
    union address a;
    socklen_t len = sizeof a;
    int r = getsockname(fd, &a.any, &len);
    say(label, "%s", r < 0 ? error_name(errno) : name_of(&a, len));
}

static inline void say_peer(const char *label, int fd) {
    union address a;
    socklen_t len = sizeof a;
    int r = getpeername(fd, &a.any, &len);
    say(label, "%s", r < 0 ? error_name(errno) : name_of(&a, len));
}

// ---- sockets -------------------------------------------------------------------------------------------------------

static inline int tcp_listener(const char *host, int backlog) {
    int fd = MUST(socket(family_of(host), SOCK_STREAM, 0));
    int on = 1;
    MUST(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    MUST(bind_to(fd, host, 0));
    MUST(listen(fd, backlog));
    return fd;
}

struct pair {
    int client, server;
};

static inline struct pair tcp_pair_at(const char *host) {
    int listener = tcp_listener(host, 8);
    struct pair p;
    p.client = MUST(socket(family_of(host), SOCK_STREAM, 0));
    MUST(connect_to(p.client, host, port_of(listener)));
    p.server = MUST(accept(listener, NULL, NULL));
    close(listener);
    return p;
}

static inline struct pair tcp_pair(void) { return tcp_pair_at(own4); }

static inline int udp_bound(const char *host) {
    int fd = MUST(socket(family_of(host), SOCK_DGRAM, 0));
    MUST(bind_to(fd, host, 0));
    return fd;
}

// Two UDP sockets connected to each other.
static inline struct pair udp_pair(void) {
    struct pair p = {udp_bound(own4), udp_bound(own4)};
    MUST(connect_to(p.client, own4, port_of(p.server)));
    MUST(connect_to(p.server, own4, port_of(p.client)));
    return p;
}

static inline void nonblocking(int fd) { MUST(fcntl(fd, F_SETFL, MUST(fcntl(fd, F_GETFL)) | O_NONBLOCK)); }

static inline int option_of(int fd, int level, int name) {
    int value = -12345;
    socklen_t len = sizeof value;
    return getsockopt(fd, level, name, &value, &len) < 0 ? -errno : value;
}

// ---- waiting -------------------------------------------------------------------------------------------------------

// What poll says within `ms`; what holds at once with 0.
static inline unsigned ready(int fd, int events, int ms) {
    struct pollfd p = {.fd = fd, .events = events};
    int n = poll(&p, 1, ms);
    return n < 0 ? 0xffff : (unsigned)p.revents;
}

// Waits until poll reports one of `events` (or an error, or a hang-up).
static inline unsigned await(int fd, int events) { return ready(fd, events, 10000); }

static inline void pause_ms(int ms) {
    struct timespec t = {ms / 1000, (ms % 1000) * 1000000L};
    while (nanosleep(&t, &t) < 0 && errno == EINTR) {
    }
}

// Long enough for whatever is on its way to arrive: for checks that something does not happen.
static inline void settle(void) { pause_ms(40); }

static inline double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static inline int read_all(int fd, void *to, size_t len) {
    size_t done = 0;
    while (done < len) {
        ssize_t n = read(fd, (char *)to + done, len - done);
        if (n <= 0) {
            break;
        }
        done += n;
    }
    return (int)done;
}

static inline void reap(const char *label, pid_t pid) {
    int status = 0;
    MUST(waitpid(pid, &status, 0));
    if (WIFSIGNALED(status)) {
        say(label, "signal %d", WTERMSIG(status));
    } else {
        say(label, "exit %d", WEXITSTATUS(status));
    }
}

// A file of `len` bytes of `pattern`, unlinked.
static inline int file_of(size_t len, unsigned seed) {
    int fd = MUST(memfd_create("file", 0));
    char *bytes = malloc(len);
    pattern(bytes, len, seed);
    MUST(write(fd, bytes, len));
    MUST(lseek(fd, 0, SEEK_SET));
    free(bytes);
    return fd;
}

// ---- main ----------------------------------------------------------------------------------------------------------

#ifndef PARITY_OWN_MAIN
// Each function runs in a process of its own, so that one that crashes or hangs is one difference and no more.
int main(int count, char **arguments) {
    if (count < 5) {
        fprintf(stderr, "usage: %s OWN4 OWN6 PEER4 PEER6 [FUNCTION...]\n", arguments[0]);
        return 2;
    }
    self_path = arguments[0];
    own4 = arguments[1], own6 = arguments[2], peer4 = arguments[3], peer6 = arguments[4];
    for (int i = 0; i < check_count; i++) {
        bool wanted = count == 5;
        for (int k = 5; k < count; k++) {
            wanted |= strcmp(arguments[k], checks[i].name) == 0;
        }
        if (!wanted) {
            continue;
        }
        pid_t pid = fork();
        if (pid == 0) {
            setpgid(0, 0);
            now_running = checks[i].name;
            alarm(30);
            checks[i].run();
            _exit(0);
        }
        int status = 0;
        waitpid(pid, &status, 0);
        kill(-pid, SIGKILL);
        now_running = checks[i].name;
        if (WIFSIGNALED(status)) {
            say("END", "signal %d", WTERMSIG(status));
        } else {
            say("END", "exit %d", WEXITSTATUS(status));
        }
    }
    return 0;
}
#endif
