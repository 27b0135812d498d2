// sendfile and splice with sockets on either side.
#include "check.h"

CHECK(sendfile_whole) {
    struct pair p = tcp_pair();
    size_t len = 300000;
    int file = file_of(len, 9);
    char *in = malloc(len), *want = malloc(len);
    pattern(want, len, 9);
    pid_t child = fork();
    if (child == 0) {
        off_t at = 0;
        size_t done = 0;
        while (done < len) {
            ssize_t n = sendfile(p.client, file, &at, len - done);
            if (n <= 0) {
                _exit(1);
            }
            done += n;
        }
        _exit(at == (off_t)len ? 0 : 2);
    }
    DO("read", read_all(p.server, in, len));
    say("same", "%d", memcmp(in, want, len) == 0);
    reap("child", child);
    say("position_untouched", "%ld", (long)lseek(file, 0, SEEK_CUR));
}

CHECK(sendfile_positions) {
    signal(SIGPIPE, SIG_IGN);
    struct pair p = tcp_pair();
    int file = file_of(100, 1);
    char b[200];
    DO("own_position", sendfile(p.client, file, NULL, 10));
    say("moved", "%ld", (long)lseek(file, 0, SEEK_CUR));
    off_t at = 50;
    DO("given", sendfile(p.client, file, &at, 10));
    say("given_moved", "%ld", (long)at);
    say("not_moved", "%ld", (long)lseek(file, 0, SEEK_CUR));
    at = 95;
    DO("short_at_the_end", sendfile(p.client, file, &at, 100));
    DO("at_the_end", sendfile(p.client, file, &at, 100));
    at = 1000;
    DO("beyond", sendfile(p.client, file, &at, 10));
    at = -1;
    DO("negative", sendfile(p.client, file, &at, 10));
    at = 0;
    DO("none", sendfile(p.client, file, &at, 0));
    DO("came", read_all(p.server, b, 25));
    int pipes[2];
    MUST(pipe(pipes));
    MUST(write(pipes[1], "pipe", 4));
    DO("from_pipe", ({
           long n = sendfile(p.client, pipes[0], NULL, 4);
           n < 0 ? n : 1;
       }));
    struct pair q = tcp_pair();
    DO("from_socket", ({
           fcntl(q.client, F_SETFL, O_NONBLOCK);
           sendfile(p.client, q.client, NULL, 4);
       }));
    DO("bad_source", sendfile(p.client, 900, NULL, 4));
    DO("bad_target", sendfile(901, file, NULL, 4));
    int write_only = MUST(open("/dev/null", O_WRONLY));
    DO("write_only_source", sendfile(p.client, write_only, NULL, 4));
    int l = tcp_listener(own4, 1);
    DO("listener", sendfile(l, file, NULL, 4));
    shutdown(p.client, SHUT_WR);
    DO("after_shutdown", sendfile(p.client, file, NULL, 4));
    int u = udp_bound(own4), v = udp_bound(own4);
    MUST(connect_to(u, own4, port_of(v)));
    lseek(file, 0, SEEK_SET);
    DO("udp", sendfile(u, file, NULL, 4));
    await(v, POLLIN);
    DO("udp_came", recv(v, b, 8, MSG_DONTWAIT));
}

CHECK(sendfile_nonblocking) {
    struct pair p = tcp_pair();
    nonblocking(p.client);
    int file = file_of(1 << 20, 2);
    long total = 0, n;
    for (int i = 0; i < 200; i++) {
        off_t at = 0;
        n = sendfile(p.client, file, &at, 1 << 20);
        if (n <= 0) {
            break;
        }
        total += n;
    }
    DO("full", n);
    say("some", "%d", total > 0);
}

CHECK(splices) {
    struct pair p = tcp_pair();
    int pipes[2];
    MUST(pipe(pipes));
    char b[64];
    MUST(send(p.client, "into the pipe", 13, 0));
    await(p.server, POLLIN);
    DO("in", splice(p.server, NULL, pipes[1], NULL, 64, 0));
    int n = DO("pipe_has_it", read(pipes[0], b, 64));
    say("data", "%s", shown(b, n));
    MUST(write(pipes[1], "out of the pipe", 15));
    DO("out", splice(pipes[0], NULL, p.client, NULL, 64, 0));
    n = DO("socket_has_it", recv(p.server, b, 64, 0));
    say("data_2", "%s", shown(b, n));
    nonblocking(p.server);
    DO("nothing", splice(p.server, NULL, pipes[1], NULL, 64, 0));
    fcntl(p.server, F_SETFL, 0);
    off_t at = 0;
    DO("offset_in", splice(p.server, &at, pipes[1], NULL, 64, 0));
    DO("offset_out", splice(pipes[0], NULL, p.client, &at, 64, 0));
    DO("no_pipe", splice(p.server, NULL, p.client, NULL, 64, 0));
    DO("none", splice(p.server, NULL, pipes[1], NULL, 0, 0));
    DO("bad", splice(900, NULL, pipes[1], NULL, 4, 0));
    DO("empty_pipe", splice(pipes[0], NULL, p.client, NULL, 64, SPLICE_F_NONBLOCK));
    close(p.client);
    await(p.server, POLLIN);
    DO("eof", splice(p.server, NULL, pipes[1], NULL, 64, 0));
    close(pipes[1]);
    DO("pipe_eof", splice(pipes[0], NULL, p.server, NULL, 64, 0));
}

CHECK(proxy_by_splice) {
    struct pair in = tcp_pair(), out = tcp_pair();
    size_t len = 400000;
    pid_t child = fork();
    if (child == 0) {
        int pipes[2];
        MUST(pipe(pipes));
        size_t done = 0;
        while (done < len) {
            ssize_t n = splice(in.server, NULL, pipes[1], NULL, 65536, SPLICE_F_MOVE);
            if (n <= 0) {
                _exit(1);
            }
            while (n > 0) {
                ssize_t m = splice(pipes[0], NULL, out.client, NULL, n, SPLICE_F_MOVE | SPLICE_F_MORE);
                if (m <= 0) {
                    _exit(2);
                }
                n -= m;
                done += m;
            }
        }
        _exit(0);
    }
    pid_t writer = fork();
    char *bytes = malloc(len), *got = malloc(len);
    pattern(bytes, len, 4);
    if (writer == 0) {
        size_t done = 0;
        while (done < len) {
            done += MUST(write(in.client, bytes + done, len - done));
        }
        _exit(0);
    }
    DO("read", read_all(out.server, got, len));
    say("same", "%d", memcmp(got, bytes, len) == 0);
    reap("proxy", child);
    reap("writer", writer);
}

CHECK(tee_and_copy_file_range) {
    struct pair p = tcp_pair();
    int pipes[2], file = file_of(10, 0);
    MUST(pipe(pipes));
    DO("tee", tee(p.server, pipes[1], 10, SPLICE_F_NONBLOCK));
    DO("copy_file_range", copy_file_range(file, NULL, p.client, NULL, 10, 0));
}
