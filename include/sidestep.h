/*
 * sidestep.h - sockets on the Sidestep network stack, for C and C++ programs.
 *
 * Two libraries have this interface:
 *
 *   libsidestep          the whole stack in the program's own process: ss_start() and everything else here.
 *   libsidestep_client   sockets of an engine that runs already (`sidestep up`): ss_attach() and everything else but the
 *                        part "library mode" at the end. Smaller.
 *
 * Link with -lsidestep (or -lsidestep_client), or with the static library and -lpthread -ldl -lm (libsidestep.a also
 * needs -lelf -lz). A handle is the same whether the engine was started or attached to, and so are all calls on it.
 *
 * Names and meaning. The calls are those of <sys/socket.h>, <poll.h> and <sys/epoll.h> with an ss_ in front, on handles
 * instead of descriptors. Addresses are struct sockaddr_in and struct sockaddr_in6. Times are milliseconds, unless they
 * say otherwise; lengths are bytes.
 *
 * Errors. Functions that return int or ssize_t return -1 when they fail, those that return a pointer NULL; then
 * ss_errno() is the errno that Linux gives in the same case (EAGAIN, ECONNREFUSED, ECONNRESET, EPIPE, ...) and
 * ss_strerror() a sentence. errno itself is not touched, and no call raises SIGPIPE. A null handle is EBADF.
 *
 * Threads. Any thread may use any handle at any time; what closes a handle (ss_close(), ss_epoll_close(), ss_detach())
 * must be its last use. Calls block unless ss_set_nonblocking(), O_NONBLOCK or MSG_DONTWAIT says otherwise; a signal
 * handler that runs while a call sleeps ends it with EINTR.
 *
 * Ownership. Buffers that a call gets are the caller's again when it returns. Only ss_recv_zc() and ss_send_reserve()
 * lend memory of the stack. Handles are not inherited by fork(): a child that wants sockets attaches or starts anew.
 *
 * When the engine stops or dies, every waiting call ends: connections with ECONNRESET, others with ENETDOWN.
 */
#ifndef SIDESTEP_H
#define SIDESTEP_H

#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* With _GNU_SOURCE in <sys/socket.h>; and in <time.h>. */
struct mmsghdr;
struct timespec;

/* An engine: attached to, or started in this process. */
typedef struct ss_engine ss_engine;
/* A socket. */
typedef struct ss_sock ss_sock;

/* An epoll instance. */
typedef struct ss_epoll ss_epoll;

/* One entry of ss_poll(); like struct pollfd, and with its bits (POLLIN, POLLOUT, POLLERR, POLLHUP, POLLRDHUP). */
struct ss_pollfd {
    ss_sock *sock; /* NULL: FD is what to look at */
    int fd;        /* a descriptor of the kernel's; below 0 the entry is skipped; of no meaning if there is a SOCK */
    int events;    /* what to wait for */
    int revents;   /* what there is; POLLERR and POLLHUP always count */
};

/* One entry of ss_recv_many() and ss_send_many(). */
struct ss_io {
    ss_sock *sock;
    void *buf;
    size_t len;
    ssize_t result; /* bytes; or a negative errno */
};

/*
 * Attaches to the engine that listens at PATH; a leading '@' means the abstract namespace. NULL: what SIDESTEP_SOCKET
 * and SIDESTEP_GROUP in the environment name, as under `sidestep run`.
 */
ss_engine *ss_attach(const char *path);

/*
 * Ends an attachment; sockets that are still open keep it until they are closed. Stops an engine that was started: peers
 * of open sockets are told (5 s at most), the device is given back, and what sockets there are fail with ENETDOWN from
 * then on, but must be closed all the same. NULL is ignored.
 */
void ss_detach(ss_engine *engine);

/*
 * A new socket: DOMAIN is AF_INET or AF_INET6, TYPE is SOCK_STREAM or SOCK_DGRAM, with
 * SOCK_NONBLOCK if calls on it should not wait; SOCK_CLOEXEC means nothing here.
 */
ss_sock *ss_socket(ss_engine *engine, int domain, int type);

/* Closes a socket; what was written is still sent. NULL is ignored. */
void ss_close(ss_sock *sock);

/* bind(2). TCP sockets have SO_REUSEADDR set. */
int ss_bind(ss_sock *sock, const struct sockaddr *address, socklen_t len);

/* listen(2). A socket that was not bound gets any free port. */
int ss_listen(ss_sock *sock, int backlog);

/* accept(2). ADDRESS and LEN may both be NULL. The new socket blocks, whatever SOCK does. */
ss_sock *ss_accept(ss_sock *sock, struct sockaddr *address, socklen_t *len);

/* accept4(2): with SOCK_NONBLOCK in FLAGS calls on the new socket don't wait. */
ss_sock *ss_accept4(ss_sock *sock, struct sockaddr *address, socklen_t *len, int flags);

/*
 * connect(2). A non-blocking TCP socket fails with EINPROGRESS; wait for POLLOUT, then ss_take_error() is 0 if it is
 * connected. After a failure the socket is of no more use: close it and make another.
 */
int ss_connect(ss_sock *sock, const struct sockaddr *address, socklen_t len);

/* send(2), sendto(2). FLAGS: MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL; others fail with EOPNOTSUPP. */
ssize_t ss_send(ss_sock *sock, const void *buf, size_t len, int flags);
ssize_t ss_sendto(ss_sock *sock, const void *buf, size_t len, int flags, const struct sockaddr *address,
                  socklen_t address_len);

/* recv(2), recvfrom(2). FLAGS: MSG_DONTWAIT, MSG_PEEK; others fail with EOPNOTSUPP. 0: the peer has finished. */
ssize_t ss_recv(ss_sock *sock, void *buf, size_t len, int flags);
ssize_t ss_recvfrom(ss_sock *sock, void *buf, size_t len, int flags, struct sockaddr *address,
                    socklen_t *address_len);

/*
 * sendmsg(2), recvmsg(2). There are no control messages: sending some fails with EOPNOTSUPP, receiving leaves
 * msg_controllen 0. FLAGS as above, and MSG_TRUNC for ss_recvmsg(): of a datagram its whole length is returned.
 */
ssize_t ss_sendmsg(ss_sock *sock, const struct msghdr *message, int flags);
ssize_t ss_recvmsg(ss_sock *sock, struct msghdr *message, int flags);

/*
 * sendmmsg(2), recvmmsg(2): up to COUNT (at most 1024) messages on one socket; how many it were. The stack is told of all
 * of them at once. ss_recvmmsg() waits for COUNT messages, or with MSG_WAITFORONE for one, no longer than TIMEOUT (NULL:
 * no limit); unlike the kernel's, the limit also ends a wait for the first message, with EAGAIN.
 */
int ss_sendmmsg(ss_sock *sock, struct mmsghdr *messages, unsigned int count, int flags);
int ss_recvmmsg(ss_sock *sock, struct mmsghdr *messages, unsigned int count, int flags, const struct timespec *timeout);

/*
 * One receive or send on each of COUNT sockets, without waiting, and with one word to the stack for all of them. Each
 * entry's result is what ss_recv() or ss_send() with MSG_DONTWAIT would return, or the negative errno (-EAGAIN: not now).
 * Returns how many went well. Entries with sockets of one engine should stand together. A socket may stand in several.
 */
ssize_t ss_recv_many(struct ss_io *entries, size_t count);
ssize_t ss_send_many(struct ss_io *entries, size_t count);

/*
 * Receiving without a copy. Lends what has arrived: writes to PIECES[0] and PIECES[1] where it lies (the second is
 * empty unless it goes over the end of a ring) and returns how many bytes that is; 0: the peer has finished, or a
 * datagram is empty. Waits as ss_recv() does; FLAGS: MSG_DONTWAIT. Of a stream this may be less than there is; of
 * datagrams it is one, and its sender goes to ADDRESS (both may be NULL).
 *
 * The bytes are to be read only, by any thread, until ss_recv_done() or ss_close(). Until then nothing else can be
 * received from the socket: other calls fail with EBUSY. Sending goes on.
 */
ssize_t ss_recv_zc(ss_sock *sock, struct iovec pieces[2], int flags, struct sockaddr *address, socklen_t *address_len);

/*
 * Gives back what ss_recv_zc() lent. The first USED bytes were read; the rest comes again. A datagram is done with
 * whatever USED is. EINVAL: more than was lent (which stays lent then), or nothing was.
 */
int ss_recv_done(ss_sock *sock, size_t used);

/*
 * Sending without a copy, on streams. Lends room for up to WANT bytes in the stream's own buffer, writes to PIECES[0]
 * and PIECES[1] where it is, and returns how much there is, at least 1. Waits for room as ss_send() does; FLAGS:
 * MSG_DONTWAIT, MSG_NOSIGNAL. Until ss_send_commit() other sends on the socket fail with EBUSY; receiving goes on.
 */
ssize_t ss_send_reserve(ss_sock *sock, size_t want, struct iovec pieces[2], int flags);

/*
 * Sends the first WRITTEN bytes of that room and gives the rest back; 0 sends nothing. FLAGS: MSG_MORE, MSG_NOSIGNAL.
 * EINVAL: more than was lent (which stays lent then), or nothing was. EPIPE, ECONNRESET, ...: the connection ended
 * meanwhile; nothing was sent and the room is given back.
 */
int ss_send_commit(ss_sock *sock, size_t written, int flags);

/* shutdown(2): SHUT_RD, SHUT_WR, SHUT_RDWR. */
int ss_shutdown(ss_sock *sock, int how);

/*
 * poll(2) on sockets of one engine and descriptors of the kernel, mixed. Returns how many entries have revents set; 0
 * after TIMEOUT_MS milliseconds (negative: never). EINVAL: no entry has a socket, or they are of several engines.
 */
int ss_poll(struct ss_pollfd *entries, size_t count, int timeout_ms);

/*
 * epoll(7) on sockets of one engine and descriptors of the kernel, mixed: level-triggered, EPOLLET, EPOLLONESHOT,
 * EPOLLEXCLUSIVE. OPERATION is EPOLL_CTL_ADD, EPOLL_CTL_MOD or EPOLL_CTL_DEL; EVENT may be NULL for the last. A socket
 * that is closed leaves all instances by itself. ss_epoll_wait() fills EVENTS with up to MOST (at least 1) events and
 * returns how many; 0 after TIMEOUT_MS (negative: never). An event's data is what EVENT had.
 */
ss_epoll *ss_epoll_create(ss_engine *engine);
int ss_epoll_ctl(ss_epoll *epoll, int operation, ss_sock *sock, const struct epoll_event *event);
int ss_epoll_ctl_fd(ss_epoll *epoll, int operation, int fd, const struct epoll_event *event);
int ss_epoll_wait(ss_epoll *epoll, struct epoll_event *events, int most, int timeout_ms);

/* Closes an instance; its sockets stay open. NULL is ignored. Close it before ss_detach(). */
void ss_epoll_close(ss_epoll *epoll);

/* getsockname(2), getpeername(2). */
int ss_getsockname(ss_sock *sock, struct sockaddr *address, socklen_t *len);
int ss_getpeername(ss_sock *sock, struct sockaddr *address, socklen_t *len);

/* O_NONBLOCK and TCP_NODELAY: nonzero turns them on. */
int ss_set_nonblocking(ss_sock *sock, int on);
int ss_set_nodelay(ss_sock *sock, int on);

/* fcntl(2): F_GETFL, and F_SETFL with O_NONBLOCK; EINVAL for other commands. */
int ss_fcntl(ss_sock *sock, int command, int argument);

/*
 * setsockopt(2), getsockopt(2): the options of SOL_SOCKET, IPPROTO_TCP, IPPROTO_IP and IPPROTO_IPV6 that docs/POSIX.md
 * lists, TCP_INFO among them, with Linux's values. ENOPROTOOPT for others.
 */
int ss_setsockopt(ss_sock *sock, int level, int name, const void *value, socklen_t len);
int ss_getsockopt(ss_sock *sock, int level, int name, void *value, socklen_t *len);

/* SO_ERROR: the pending error, an errno, and clears it; 0 for none. */
int ss_take_error(ss_sock *sock);

/* The errno of this thread's last failed call. */
int ss_errno(void);

/* A sentence about this thread's last failed call. Valid until the next failure in this thread. */
const char *ss_strerror(void);

/* ---- library mode: only in libsidestep --------------------------------------------------------------------------
 *
 * The engine runs in this process and has no thread that polls the device. A thread that waits in one of the calls above
 * runs it meanwhile; a helper thread does when no other thread of the program does, so that timers and acknowledgements
 * go on while the program computes. With nothing to do all of them sleep.
 */

/* Starts an engine by the configuration in the file PATH (docs/CONFIG.md). Several in one process work. */
ss_engine *ss_start(const char *path);

/* The same by a configuration as text, in TOML: TEXT is read during the call. */
ss_engine *ss_start_string(const char *text);

/* A frame on its way: Ethernet, from the destination address on, without the checksum at the end. */
struct ss_frame {
    uint8_t *data;   /* valid during the call only */
    size_t len;      /* may be changed, up to CAPACITY */
    size_t capacity; /* room at DATA */
    int outgoing;    /* 0: from the device to the stack, 1: from the stack to the device */
    uint32_t shard;  /* which of the engine's shards */
};

/* What becomes of a frame: it goes on as it came, it is gone, it goes on and was changed. */
enum { SS_PASS = 0, SS_DROP = 1, SS_CHANGED = 2 };

/*
 * Sees every frame before it goes on; returns one of the three. It may change the frame, and make it shorter or longer;
 * the checksums inside are then its business. Called by whatever thread runs the shard, one call at a time for each
 * shard, and must not call anything of this interface. Everything waits meanwhile.
 */
typedef int (*ss_hook)(struct ss_frame *frame, void *user);

/* What ss_start_with() starts. Set it to zeroes first, then SIZE, then what is wanted. */
struct ss_options {
    size_t size;             /* sizeof(struct ss_options): so that fields can be added */
    const char *config_file; /* either this */
    const char *config_text; /* or this */
    ss_hook hook;            /* NULL: none, which costs nothing */
    void *user;              /* for the hook; must live until ss_detach() has returned */
    const int *wires;        /* for the backend "pipe": connected Unix seqpacket or datagram sockets, one a queue, */
    size_t wire_count;       /* one frame a message. Duplicated */
};

/* ss_start() with everything that can be said. */
ss_engine *ss_start_with(const struct ss_options *options);

/* The same as ss_detach(). */
void ss_stop(ss_engine *engine);

/*
 * Runs the engine once, without waiting: frames in, what programs asked for, frames out, timers. 1: something was done,
 * 0: there was nothing to do, or other threads did it. EOPNOTSUPP: the engine is not in this process.
 */
int ss_run_once(ss_engine *engine);

/*
 * For programs with a loop of their own. Before it sleeps: 0 means that there is work, so call ss_run_once() and look at
 * the sockets instead. 1 means sleep: poll *FD for POLLIN along with the program's own descriptors (below 0: another
 * thread runs the engine now, there is none) for no longer than *TIMEOUT_NS nanoseconds, then call ss_sleep_end() with
 * that *FD.
 */
int ss_sleep_begin(ss_engine *engine, int *fd, int64_t *timeout_ns);
int ss_sleep_end(ss_engine *engine, int fd);

/* Counters since the start, summed up over shards. */
struct ss_stats {
    uint64_t frames_in, bytes_in, frames_out, bytes_out; /* at the device */
    uint64_t tcp_in, tcp_out, tcp_retransmits;           /* segments */
    uint64_t udp_in, udp_out;                            /* datagrams */
    uint64_t tcp_opened, tcp_closed;                     /* connections */
    uint64_t dropped;                                    /* frames and segments dropped, for whatever reason */
    uint64_t hook_seen[2], hook_dropped[2], hook_changed[2]; /* frames: [0] incoming, [1] outgoing */
};

/* Fills the first SIZE bytes of OUT: sizeof(struct ss_stats). Takes up to a second while the engine is busy. */
int ss_stats(ss_engine *engine, struct ss_stats *out, size_t size);

/*
 * What `sidestep stats --json`, `ss --json` and `latency --json` print of this engine; WHICH is "stats", "sockets" or
 * "latency". To be freed by ss_free().
 */
char *ss_report(ss_engine *engine, const char *which);
void ss_free(char *text);

/* Name of the engine's control socket, for `sidestep ss --control`. Lives as long as the handle. */
const char *ss_control(ss_engine *engine);

#ifdef __cplusplus
}
#endif

#endif
