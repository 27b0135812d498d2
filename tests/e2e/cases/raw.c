/* System calls without the C library's functions: by syscall(2) ("function"), or by an instruction of its own
 * ("instruction"). A server and a client in two threads, a forked child that goes on with a connection, signals, vfork.
 * Prints what it did; ends with 1 at the first thing that is not as it should be. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static int by_instruction;

static long instruction(long n, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long out;
    __asm__ volatile("syscall" : "=a"(out) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return out;
}

/* The kernel's answer: -errno for an error. */
static long call(long n, long a, long b, long c, long d, long e, long f)
{
    if (by_instruction)
        return instruction(n, a, b, c, d, e, f);
    long out = syscall(n, a, b, c, d, e, f);
    return out < 0 ? -errno : out;
}
#define CALL(n, ...) CALL_(n, __VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define CALL_(n, a, b, c, d, e, f, ...) call(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

#define MUST(what) do { long r_ = (what); if (r_ < 0) { printf("%s: %s\n", #what, strerror(-r_)); exit(1); } } while (0)
#define IS(what) do { if (!(what)) { printf("not so: %s\n", #what); exit(1); } } while (0)

static struct sockaddr_in address;
static volatile sig_atomic_t signals;

static void on_signal(int s)
{
    (void)s;
    /* A handler makes system calls too. */
    CALL(SYS_getpid, 0);
    signals++;
}

static void *serve(void *given)
{
    int listener = (int)(intptr_t)given;
    long ep = CALL(SYS_epoll_create1, 0);
    MUST(ep);
    struct epoll_event event = { .events = EPOLLIN, .data.fd = listener };
    MUST(CALL(SYS_epoll_ctl, ep, EPOLL_CTL_ADD, listener, &event));
    long bytes = 0;
    for (int ended = 0; ended < 2;) {
        struct epoll_event got[8];
        long n = CALL(SYS_epoll_pwait, ep, got, 8, -1, NULL, 8);
        if (n == -EINTR)
            continue;
        MUST(n);
        for (long i = 0; i < n; i++) {
            int fd = got[i].data.fd;
            if (fd == listener) {
                long c = CALL(SYS_accept4, listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                MUST(c);
                event.data.fd = (int)c;
                MUST(CALL(SYS_epoll_ctl, ep, EPOLL_CTL_ADD, c, &event));
                continue;
            }
            static char buffer[65536];
            long r = CALL(SYS_read, fd, buffer, sizeof buffer);
            if (r == -EAGAIN)
                continue;
            MUST(r);
            if (r == 0) {
                MUST(CALL(SYS_close, fd));
                ended++;
                continue;
            }
            bytes += r;
            for (long at = 0; at < r;) {
                long w = CALL(SYS_write, fd, buffer + at, r - at);
                if (w == -EAGAIN) {
                    struct pollfd p = { fd, POLLOUT, 0 };
                    MUST(CALL(SYS_poll, &p, 1, -1));
                    continue;
                }
                MUST(w);
                at += w;
            }
        }
    }
    MUST(CALL(SYS_close, ep));
    return (void *)bytes;
}

static void echo(int fd, long much)
{
    static char out[30000], in[30000];
    for (long sent = 0; sent < much;) {
        for (size_t i = 0; i < sizeof out; i++)
            out[i] = (char)(sent + (long)i);
        long n = CALL(SYS_sendto, fd, out, sizeof out, 0, NULL, 0);
        if (n == -EINTR)
            continue;
        MUST(n);
        for (long at = 0; at < n;) {
            long r = CALL(SYS_recvfrom, fd, in + at, n - at, 0, NULL, NULL);
            if (r == -EINTR)
                continue;
            MUST(r);
            IS(r > 0);
            at += r;
        }
        IS(memcmp(in, out, n) == 0);
        sent += n;
    }
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    by_instruction = strcmp(argv[1], "instruction") == 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
    sigfillset(&action.sa_mask);
    IS(sigaction(SIGALRM, &action, NULL) == 0);

    long listener = CALL(SYS_socket, AF_INET, SOCK_STREAM, 0);
    MUST(listener);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    MUST(CALL(SYS_bind, listener, &address, sizeof address));
    socklen_t len = sizeof address;
    MUST(CALL(SYS_getsockname, listener, &address, &len));
    MUST(CALL(SYS_listen, listener, 16));

    /* Threads are often started with everything blocked. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    IS(pthread_create(&thread, NULL, serve, (void *)(intptr_t)listener) == 0);
    pthread_sigmask(SIG_SETMASK, &before, NULL);

    struct itimerval often = { { 0, 2000 }, { 0, 2000 } };
    setitimer(ITIMER_REAL, &often, NULL);
    long fd = CALL(SYS_socket, AF_INET, SOCK_STREAM, 0);
    MUST(fd);
    MUST(CALL(SYS_connect, fd, &address, sizeof address));
    echo((int)fd, 3000000);
    while (signals < 3)
        pause();
    puts("thread");

    /* The child goes on with the connection, and has one of its own. */
    pid_t child = fork();
    if (child == 0) {
        long own = CALL(SYS_socket, AF_INET, SOCK_STREAM, 0);
        MUST(own);
        MUST(CALL(SYS_connect, own, &address, sizeof address));
        echo((int)own, 300000);
        echo((int)fd, 300000);
        MUST(CALL(SYS_close, own));
        _exit(0);
    }
    int status = 1;
    while (waitpid(child, &status, 0) < 0)
        IS(errno == EINTR);
    IS(status == 0);
    puts("fork");
    echo((int)fd, 300000);
    MUST(CALL(SYS_close, fd));
    void *bytes;
    IS(pthread_join(thread, &bytes) == 0);
    memset(&often, 0, sizeof often);
    setitimer(ITIMER_REAL, &often, NULL);
    printf("%ld bytes\n", (long)bytes);

    /* vfork shares memory and stack with its child. */
    char *arguments[] = { "sh", "-c", "exit 7", NULL };
    child = vfork();
    if (child == 0) {
        CALL(SYS_execve, "/bin/sh", arguments, environ);
        _exit(1);
    }
    IS(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    if (by_instruction) {
        volatile long mark = 42;
        long flags = 0x4000 | 0x100 | SIGCHLD; /* CLONE_VFORK | CLONE_VM */
        long pid = instruction(SYS_clone, flags, 0, 0, 0, 0, 0);
        if (pid == 0) {
            instruction(SYS_execve, (long)"/bin/sh", (long)arguments, (long)environ, 0, 0, 0);
            instruction(SYS_exit, 1, 0, 0, 0, 0, 0);
        }
        MUST(pid);
        IS(waitpid((pid_t)pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 7);
        IS(mark == 42);
    }
    puts("vfork");

    /* UDP, and an error. */
    long u = CALL(SYS_socket, AF_INET, SOCK_DGRAM, 0), v = CALL(SYS_socket, AF_INET, SOCK_DGRAM, 0);
    address.sin_port = 0;
    MUST(CALL(SYS_bind, u, &address, sizeof address));
    MUST(CALL(SYS_getsockname, u, &address, &len));
    MUST(CALL(SYS_sendto, v, "hello", 5, 0, &address, sizeof address));
    char got[10];
    IS(CALL(SYS_read, u, got, sizeof got) == 5 && memcmp(got, "hello", 5) == 0);
    address.sin_port = htons(1);
    long w = CALL(SYS_socket, AF_INET, SOCK_STREAM, 0);
    IS(CALL(SYS_connect, w, &address, sizeof address) == -ECONNREFUSED);
    IS(CALL(SYS_read, 999, got, 1) == -EBADF);
    /* What would go past the library is refused, whatever the kernel has: for who runs this to judge. */
    char ring[120] = { 0 };
    printf("ring %s\n", CALL(SYS_io_uring_setup, 4, ring) == -ENOSYS ? "refused" : "for the kernel to say");
    puts("done");
    return 0;
}
