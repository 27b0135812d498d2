//! The C header compiles cleanly as C and C++, a C program links the static library, and wrong use of it is an error.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Every function of the header, called wrongly: no engine, null handles, null buffers.
const PROGRAM: &str = r#"
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include "sidestep.h"

#define WANT(call, error) \
    do { if ((long)(call) != -1 || ss_errno() != (error)) { \
        printf("%s: errno %d, not %d (%s)\n", #call, ss_errno(), (error), ss_strerror()); bad = 1; } } while (0)

int main(void) {
    int bad = 0;
    struct sockaddr_in any;
    struct iovec pieces[2];
    struct ss_pollfd entry = {NULL, -1, 1, 0};
    struct ss_io io = {NULL, NULL, 0, 0};
    struct epoll_event event = {0};
    struct msghdr message = {0};
    socklen_t len = sizeof any;
    char byte = 0;
    memset(&any, 0, sizeof any);
    any.sin_family = AF_INET;
    if (ss_attach("@sidestep-c-test-nobody") != NULL || ss_errno() != ECONNREFUSED) {
        printf("attach: errno %d\n", ss_errno());
        bad = 1;
    }
    if (strstr(ss_strerror(), "is it running") == NULL) {
        printf("attach says: %s\n", ss_strerror());
        bad = 1;
    }
    if (ss_socket(NULL, AF_INET, SOCK_STREAM) != NULL || ss_errno() != EINVAL)
        bad = 1;
    if (ss_accept(NULL, NULL, NULL) != NULL || ss_errno() != EBADF)
        bad = 1;
    WANT(ss_bind(NULL, (struct sockaddr *)&any, len), EBADF);
    WANT(ss_listen(NULL, 1), EBADF);
    WANT(ss_connect(NULL, (struct sockaddr *)&any, len), EBADF);
    WANT(ss_send(NULL, &byte, 1, 0), EBADF);
    WANT(ss_recv(NULL, &byte, 1, 0), EBADF);
    WANT(ss_sendto(NULL, &byte, 1, 0, NULL, 0), EBADF);
    WANT(ss_recvfrom(NULL, &byte, 1, 0, NULL, NULL), EBADF);
    if (ss_accept4(NULL, NULL, NULL, 0) != NULL || ss_errno() != EBADF)
        bad = 1;
    if (ss_epoll_create(NULL) != NULL || ss_errno() != EINVAL)
        bad = 1;
    WANT(ss_epoll_ctl(NULL, EPOLL_CTL_ADD, NULL, &event), EBADF);
    WANT(ss_epoll_ctl_fd(NULL, EPOLL_CTL_ADD, 0, &event), EBADF);
    WANT(ss_epoll_wait(NULL, &event, 1, 0), EBADF);
    ss_epoll_close(NULL);
    WANT(ss_recvmsg(NULL, &message, 0), EBADF);
    WANT(ss_sendmsg(NULL, &message, 0), EBADF);
    WANT(ss_recvmmsg(NULL, NULL, 1, 0, NULL), EBADF);
    WANT(ss_sendmmsg(NULL, NULL, 1, 0), EBADF);
    if (ss_recv_many(&io, 1) != 0 || io.result != -EBADF || ss_send_many(&io, 1) != 0 || io.result != -EBADF)
        bad = 1;
    WANT(ss_recv_many(NULL, 1), EFAULT);
    WANT(ss_fcntl(NULL, 0, 0), EBADF);
    WANT(ss_setsockopt(NULL, SOL_SOCKET, SO_KEEPALIVE, &bad, sizeof bad), EBADF);
    WANT(ss_getsockopt(NULL, SOL_SOCKET, SO_KEEPALIVE, &bad, &len), EBADF);
    WANT(ss_recv_zc(NULL, pieces, 0, NULL, NULL), EBADF);
    WANT(ss_recv_done(NULL, 1), EBADF);
    WANT(ss_send_reserve(NULL, 1, pieces, 0), EBADF);
    WANT(ss_send_commit(NULL, 1, 0), EBADF);
    WANT(ss_shutdown(NULL, SHUT_WR), EBADF);
    WANT(ss_poll(&entry, 1, 0), EINVAL);
    WANT(ss_poll(NULL, 1, 0), EFAULT);
    WANT(ss_getsockname(NULL, (struct sockaddr *)&any, &len), EBADF);
    WANT(ss_getpeername(NULL, (struct sockaddr *)&any, &len), EBADF);
    WANT(ss_set_nonblocking(NULL, 1), EBADF);
    WANT(ss_set_nodelay(NULL, 1), EBADF);
    WANT(ss_take_error(NULL), EBADF);
    ss_close(NULL);
    ss_detach(NULL);
    return bad;
}
"#;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn run(command: &mut Command) -> Output {
    let shown = format!("{command:?}");
    let output = command.output().unwrap_or_else(|e| panic!("{shown}: {e} (a C compiler is needed)"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{shown}: {}{}", text(&output.stdout), text(&output.stderr));
    output
}

fn compiler(program: &str, standard: &str) -> Command {
    let mut cc = Command::new(program);
    cc.args(["-Wall", "-Wextra", "-pedantic", "-Werror", standard, "-I"]).arg(root().join("include"));
    cc
}

#[test]
fn the_header_compiles_as_c_and_as_cpp() {
    let header = root().join("include/sidestep.h");
    run(compiler("cc", "-std=c99").args(["-fsyntax-only", "-x", "c"]).arg(&header));
    run(compiler("c++", "-std=c++11").args(["-fsyntax-only", "-x", "c++"]).arg(&header));
    run(compiler("cc", "-std=c11").arg("-fsyntax-only").arg(root().join("examples/echo.c")));
}

#[test]
fn a_c_program_links_and_wrong_use_is_an_error() {
    // Cargo builds the library in all its forms for this test, beside it.
    let library = std::env::current_exe().unwrap().with_file_name("libsidestep_client.a");
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join("wrong_use.c");
    let binary = source.with_extension("");
    std::fs::write(&source, PROGRAM).unwrap();
    let mut cc = compiler("cc", "-std=c11");
    run(cc.arg(&source).arg("-o").arg(&binary).arg(library).args(["-lpthread", "-ldl", "-lm"]));
    run(&mut Command::new(&binary));
}
