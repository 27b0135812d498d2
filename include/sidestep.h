/*
 * sidestep.h - sockets of a Sidestep engine for C programs.
 *
 * Link with -lsidestep_client (shared), or with libsidestep_client.a and -lpthread -ldl -lm.
 *
 * The calls are those of <sys/socket.h> with an ss_ in front, on handles instead of descriptors, and with the same
 * meaning. Addresses are struct sockaddr_in and struct sockaddr_in6. Functions that return int or long return -1 when
 * they fail, those that return a pointer NULL; then ss_errno() is the errno that Linux gives in the same case
 * (EAGAIN, ECONNREFUSED, ECONNRESET, EPIPE, ...) and ss_strerror() a sentence. No call raises SIGPIPE.
 *
 * Any thread may use any handle; ss_close() and ss_detach() must be the last use of theirs. Calls block unless
 * ss_set_nonblocking() or MSG_DONTWAIT says otherwise; a signal handler that runs while a call sleeps ends it with
 * EINTR. When the engine stops or dies, every waiting call ends: connections with ECONNRESET, others with ENETDOWN.
 * Handles are not inherited by fork().
 */
#ifndef SIDESTEP_H
#define SIDESTEP_H

#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* An attachment to an engine. */
typedef struct ss_engine ss_engine;
/* A socket. */
typedef struct ss_sock ss_sock;

/* One entry of ss_poll(); like struct pollfd, and with its bits (POLLIN, POLLOUT, POLLERR, POLLHUP, POLLRDHUP). */
struct ss_pollfd {
    ss_sock *sock; /* NULL: the entry is skipped */
    int events;    /* what to wait for */
    int revents;   /* what there is; POLLERR and POLLHUP always count */
};

/*
 * Attaches to the engine that listens at PATH; a leading '@' means the abstract namespace. NULL: what SIDESTEP_SOCKET
 * and SIDESTEP_GROUP in the environment name, as under `sidestep run`.
 */
ss_engine *ss_attach(const char *path);

/* Ends an attachment. Sockets that are still open keep it until they are closed. NULL is ignored. */
void ss_detach(ss_engine *engine);

/* A new socket: DOMAIN is AF_INET or AF_INET6, TYPE is SOCK_STREAM or SOCK_DGRAM (without flags). */
ss_sock *ss_socket(ss_engine *engine, int domain, int type);

/* Closes a socket; what was written is still sent. NULL is ignored. */
void ss_close(ss_sock *sock);

/* bind(2). TCP sockets have SO_REUSEADDR set. */
int ss_bind(ss_sock *sock, const struct sockaddr *address, socklen_t len);

/* listen(2). A socket that was not bound gets any free port. */
int ss_listen(ss_sock *sock, int backlog);

/* accept(2). ADDRESS and LEN may both be NULL. The new socket blocks, whatever SOCK does. */
ss_sock *ss_accept(ss_sock *sock, struct sockaddr *address, socklen_t *len);

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
 * poll(2) on sockets of one engine. Returns how many entries have revents set; 0 after TIMEOUT_MS milliseconds
 * (negative: never). At least one entry must have a socket.
 */
int ss_poll(struct ss_pollfd *entries, size_t count, int timeout_ms);

/* getsockname(2), getpeername(2). */
int ss_getsockname(ss_sock *sock, struct sockaddr *address, socklen_t *len);
int ss_getpeername(ss_sock *sock, struct sockaddr *address, socklen_t *len);

/* O_NONBLOCK and TCP_NODELAY: nonzero turns them on. */
int ss_set_nonblocking(ss_sock *sock, int on);
int ss_set_nodelay(ss_sock *sock, int on);

/* SO_ERROR: the pending error, an errno, and clears it; 0 for none. */
int ss_take_error(ss_sock *sock);

/* The errno of this thread's last failed call. */
int ss_errno(void);

/* A sentence about this thread's last failed call. Valid until the next failure in this thread. */
const char *ss_strerror(void);

#ifdef __cplusplus
}
#endif

#endif
