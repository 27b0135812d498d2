//! Unmodified programs on the preload library, against an engine without a network.
#![allow(clippy::disallowed_methods, reason = "tests wait for real threads and programs")]

#[allow(dead_code, reason = "each test uses its part")]
mod loopback;

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use loopback::Running;
use loopback::run::{Background, has, library, on, within, within_reading};

fn python(engine: &Running, script: &str) -> Output {
    let child = on(engine, "python3").args(["-c", script]).spawn().expect("python3");
    within(child, Duration::from_secs(30))
}

fn check(engine: Running, script: &str) {
    if !has("python3") {
        return;
    }
    let out = python(&engine, script);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success() && text.trim_end().ends_with("done"),
        "{:?}\n{text}\n{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(engine.finish(), Vec::<String>::new());
}

const HEAD: &str = "
import socket, os, sys, threading, time, select, errno, selectors
A = '10.9.8.7'
def listener(port, family=socket.AF_INET, backlog=16):
    l = socket.socket(family, socket.SOCK_STREAM)
    l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    l.bind(('' , port)); l.listen(backlog)
    return l
def all_of(s):
    out = b''
    while True:
        d = s.recv(65536)
        if not d: return out
        out += d
";

#[test]
fn blocking_sockets_between_threads() {
    check(
        Running::start("blocking"),
        &(HEAD.to_owned()
            + "
l = listener(7001)
data = os.urandom(1_000_000)
def server():
    c, peer = l.accept()
    assert peer[0] == A, peer
    got = all_of(c)
    c.sendall(got[::-1]); c.shutdown(socket.SHUT_WR); c.close()
t = threading.Thread(target=server); t.start()
s = socket.create_connection((A, 7001))
assert s.getpeername() == (A, 7001), s.getpeername()
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
assert s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
s.sendall(data); s.shutdown(socket.SHUT_WR)
assert all_of(s) == data[::-1]
t.join(); s.close()
assert l.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
s = socket.socket()
try: s.connect((A, 7999)); assert False
except ConnectionRefusedError: pass
s.connect((A, 7001)); s.settimeout(0.2)
try: s.recv(1); assert False
except TimeoutError: pass
assert s.send(b'x', socket.MSG_OOB) == 1
c, _ = l.accept(); assert c.recv(9) == b'x'; c.close()
assert s.recv(1) == b''
l.close(); s.close()
print('done')
"),
    );
}

#[test]
fn flags_of_recv_and_scattered_buffers() {
    check(
        Running::start("flags"),
        &(HEAD.to_owned()
            + "
l = listener(7002)
s = socket.create_connection((A, 7002)); c, _ = l.accept()
s.sendall(b'hello world')
time.sleep(.05)
assert c.recv(5, socket.MSG_PEEK) == b'hello'
a, b = bytearray(3), bytearray(4)
assert c.recvmsg_into([a, b])[0] == 7 and bytes(a + b) == b'hello w'
threading.Timer(.1, lambda: s.sendmsg([b'ab', b'', b'cdef'])).start()
assert c.recv(10, socket.MSG_WAITALL) == b'orldabcdef'
try: c.recv(1, socket.MSG_DONTWAIT); assert False
except BlockingIOError: pass
assert os.writev(s.fileno(), [b'x'] * 40) == 40
assert c.recv(40, socket.MSG_WAITALL | socket.MSG_PEEK) == b'x' * 40
import fcntl, struct, termios
assert struct.unpack('i', fcntl.ioctl(c, termios.FIONREAD, b'1234'))[0] == 40
assert os.read(c.fileno(), 100) == b'x' * 40
c.setblocking(False)
try: c.recv(1); assert False
except BlockingIOError: pass
n = 0
try:
    while True: n += c.send(b'y' * 10000)
except BlockingIOError: pass
assert n >= 32768, n
s.close(); time.sleep(.1)
try:
    while True: c.send(b'z')
except (BrokenPipeError, ConnectionResetError): pass
print('done')
"),
    );
}

#[test]
fn poll_select_and_epoll_over_both_kinds() {
    check(
        Running::start("mixed"),
        &(HEAD.to_owned()
            + "
l = listener(7003)
r, w = os.pipe()
s = socket.create_connection((A, 7003)); c, _ = l.accept()
for wait in ('poll', 'select', 'epoll'):
    def ready(timeout):
        if wait == 'poll':
            p = select.poll(); p.register(c, select.POLLIN); p.register(r, select.POLLIN)
            return sorted(fd for fd, _ in p.poll(timeout * 1000))
        if wait == 'select':
            return sorted(x if isinstance(x, int) else x.fileno() for x in select.select([c, r], [], [], timeout)[0])
        with select.epoll() as e:
            e.register(c.fileno(), select.EPOLLIN); e.register(r, select.EPOLLIN)
            return sorted(fd for fd, _ in e.poll(timeout))
    assert ready(.05) == [], wait
    threading.Timer(.1, lambda: s.send(b'1')).start()
    start = time.time(); assert ready(5) == [c.fileno()], wait; assert time.time() - start < 1
    assert c.recv(9) == b'1'
    threading.Timer(.1, lambda: os.write(w, b'2')).start()
    start = time.time(); assert ready(5) == [r], wait; assert time.time() - start < 1
    s.send(b'3'); time.sleep(.05)
    got = set(ready(1)) | set(ready(1))
    assert r in got and c.fileno() in got, (wait, got)
    os.read(r, 9); c.recv(9)
# edge and one-shot
e = select.epoll(); e.register(c.fileno(), select.EPOLLIN | select.EPOLLET)
assert e.poll(.05) == []
s.send(b'a'); assert e.poll(1) == [(c.fileno(), select.EPOLLIN)]; assert e.poll(.05) == []
s.send(b'b'); assert e.poll(1) == [(c.fileno(), select.EPOLLIN)]; assert c.recv(9) == b'ab'
e.modify(c.fileno(), select.EPOLLIN | select.EPOLLONESHOT)
s.send(b'c'); assert len(e.poll(1)) == 1; s.send(b'd'); assert e.poll(.05) == []
e.modify(c.fileno(), select.EPOLLIN); assert len(e.poll(1)) == 1
# nested, and an epoll descriptor in poll
outer = select.epoll(); outer.register(e.fileno(), select.EPOLLIN)
assert outer.poll(1) == [(e.fileno(), select.EPOLLIN)]
p = select.poll(); p.register(e.fileno(), select.POLLIN); assert len(p.poll(1000)) == 1
c.recv(9); assert outer.poll(.05) == []; assert p.poll(50) == []
threading.Timer(.1, lambda: s.send(b'e')).start(); start = time.time()
assert len(p.poll(5000)) == 1 and time.time() - start < 1
assert len(outer.poll(5)) == 1
c.recv(9)
threading.Timer(.1, lambda: s.send(b'e')).start(); start = time.time()
assert len(outer.poll(5)) == 1 and time.time() - start < 1
# shutdown of this process shows at once, closed descriptors leave
c.shutdown(socket.SHUT_RD); assert len(e.poll(1)) == 1
e.close(); outer.close(); c.close(); s.close(); l.close()
# an undecided socket in an epoll
n = socket.socket(); n.setblocking(False); e = select.epoll(); e.register(n.fileno(), select.EPOLLOUT | select.EPOLLET)
l = listener(7004)
assert n.connect_ex((A, 7004)) == errno.EINPROGRESS
assert [fd for fd, _ in e.poll(1)] == [n.fileno()]
assert n.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0 and n.getpeername()[1] == 7004
print('done')
"),
    );
}

#[test]
fn one_epoll_and_many_threads() {
    check(
        Running::start("threads"),
        &(HEAD.to_owned()
            + "
l = listener(7005, backlog=64)
pairs = []
e = select.epoll()
by_fd = {}
for i in range(20):
    s = socket.create_connection((A, 7005)); c, _ = l.accept(); pairs.append((s, c)); by_fd[c.fileno()] = c
seen = 0; lock = threading.Lock(); stop = False
def worker():
    global seen
    while not stop:
        for fd, ev in e.poll(2, 1):
            d = by_fd[fd].recv(100); by_fd[fd].send(d)
            with lock: seen += 1
            e.modify(fd, select.EPOLLIN | select.EPOLLONESHOT)
ts = [threading.Thread(target=worker) for _ in range(4)]
[t.start() for t in ts]
time.sleep(.1)
for c in by_fd: e.register(c, select.EPOLLIN | select.EPOLLONESHOT)
start = time.time()
for round in range(50):
    for s, c in pairs: s.send(b'x')
    for s, c in pairs: assert s.recv(1) == b'x'
took = time.time() - start
stop = True
[t.join() for t in ts]
assert seen == 1000, seen
assert took < 10, took
print('done')
"),
    );
}

#[test]
fn forked_workers_share_a_listener_and_exec_keeps_sockets() {
    check(
        Running::start("fork"),
        &(HEAD.to_owned()
            + "
import subprocess
l = listener(7006)
kids = []
for i in range(3):
    pid = os.fork()
    if pid == 0:
        c, _ = l.accept(); c.sendall(b'%d' % i); c.close(); os._exit(0)
    kids.append(pid)
got = set()
for _ in kids:
    s = socket.create_connection((A, 7006)); got.add(all_of(s)); s.close()
for k in kids: assert os.waitpid(k, 0)[1] == 0
assert got == {b'0', b'1', b'2'}, got
# a connection opened before fork, used in the child, closed in the parent
s = socket.create_connection((A, 7006)); c, _ = l.accept()
pid = os.fork()
if pid == 0:
    assert s.recv(5) == b'hello'; s.sendall(b'child'); os._exit(0)
s.close(); c.sendall(b'hello'); assert all_of(c) == b'child'; os.waitpid(pid, 0)
# exec with an inherited socket, by number and as standard input
s = socket.create_connection((A, 7006)); c, _ = l.accept(); c.sendall(b'exec')
code = 'import socket,sys; s=socket.socket(fileno=%d); d=s.recv(9); s.sendall(d*2)' % s.fileno()
p = subprocess.Popen([sys.executable, '-c', code], pass_fds=[s.fileno()]); s.close()
assert all_of(c) == b'execexec'; assert p.wait() == 0
s = socket.create_connection((A, 7006)); c, _ = l.accept(); c.sendall(b'stdin'); c.shutdown(socket.SHUT_WR)
assert subprocess.run(['cat'], stdin=s, stdout=subprocess.PIPE).stdout == b'stdin'
s.close()
# an epoll that was made before the fork
e = select.epoll(); e.register(l.fileno(), select.EPOLLIN)
assert e.poll(.01) == []
pid = os.fork()
if pid == 0:
    assert len(e.poll(5)) == 1; c, _ = l.accept(); c.sendall(b'kid'); os._exit(0)
time.sleep(.2); s = socket.create_connection((A, 7006)); assert all_of(s) == b'kid'; assert os.waitpid(pid, 0)[1] == 0
# closing every number there is
keep = l, s, c, e # their destructors would close numbers that are others' by then
os.closerange(3, 60000)
l = listener(7007); s = socket.create_connection((A, 7007)); c, _ = l.accept(); s.send(b'q'); assert c.recv(1) == b'q'
print('done', flush=True); os._exit(0)
print('done')
"),
    );
}

#[test]
fn datagrams() {
    check(
        Running::start("datagrams"),
        &(HEAD.to_owned()
            + "
a = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); a.bind(('', 7008))
b = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
b.sendto(b'one', (A, 7008)); b.sendto(b'', (A, 7008)); b.sendto(b'x' * 20000, (A, 7008))
d, peer = a.recvfrom(100); assert d == b'one' and peer[0] == A, (d, peer)
assert a.recvfrom(100)[0] == b''
d, _, flags, _ = a.recvmsg(100); assert len(d) == 100 and flags & socket.MSG_TRUNC
a.sendto(b'back', peer); assert b.recv(100) == b'back'
b.connect((A, 7008)); b.send(b'conn'); assert a.recv(10) == b'conn'
a.setblocking(False)
try: a.recv(1); assert False
except BlockingIOError: pass
# the kernel's stays the kernel's
k = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); k.bind(('127.0.0.1', 0))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.sendto(b'k', k.getsockname()); assert k.recv(9) == b'k'
l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen()
s = socket.create_connection(l.getsockname()); c, _ = l.accept(); s.send(b'k'); assert c.recv(9) == b'k'
try: socket.socket().sendto(b'x', (A, 1)); assert False
except BrokenPipeError: pass
print('done')
"),
    );
}

#[test]
fn asyncio_and_http() {
    check(
        Running::start("asyncio"),
        &(HEAD.to_owned()
            + "
import asyncio, http.server, urllib.request, tempfile, hashlib
async def main():
    async def echo(r, w):
        while d := await r.read(65536):
            w.write(d); await w.drain()
        w.close()
    server = await asyncio.start_server(echo, '0.0.0.0', 7009)
    async def client(i):
        r, w = await asyncio.open_connection(A, 7009)
        data = os.urandom(200_000)
        w.write(data); w.write_eof()
        assert await r.read() == data
        w.close(); await w.wait_closed()
    await asyncio.gather(*(client(i) for i in range(20)))
    server.close()
asyncio.run(main())
d = tempfile.mkdtemp(); data = os.urandom(3_000_000); open(d + '/f', 'wb').write(data); os.chdir(d)
class H(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *a): pass
h = http.server.ThreadingHTTPServer(('', 7010), H)
threading.Thread(target=h.serve_forever, daemon=True).start()
for _ in range(3): assert urllib.request.urlopen('http://%s:7010/f' % A).read() == data
# sendfile
l = listener(7011); s = socket.create_connection((A, 7011)); c, _ = l.accept()
got = []; t = threading.Thread(target=lambda: got.append(all_of(c))); t.start()
with open('f', 'rb') as f: assert s.sendfile(f) == len(data)
s.close(); t.join(); assert got[0] == data
h.shutdown(); h.server_close(); l.close(); c.close()
os.remove('f'); os.rmdir(d)
print('done')
"),
    );
}

#[test]
fn a_dead_engine_wakes_every_waiter_and_a_missing_one_is_said_once() {
    if !has("python3") {
        return;
    }
    let engine = Running::start("death");
    let script = HEAD.to_owned()
        + "
l = listener(7012); s = socket.create_connection((A, 7012)); c, _ = l.accept()
print('ready', flush=True)
start = time.time()
def epoll():
    e = select.epoll(); e.register(c.fileno(), select.EPOLLIN); assert e.poll(20)
t = threading.Thread(target=epoll); t.start()
try: d = s.recv(1); assert d == b''
except ConnectionResetError: pass
t.join()
p = select.poll(); p.register(l, select.POLLIN); assert p.poll(20000)
try: s.send(b'x'); assert False
except OSError as e: assert e.errno in (errno.EPIPE, errno.ECONNRESET), e
try: l.accept(); assert False
except OSError as e: assert e.errno == errno.ENETDOWN, e
assert time.time() - start < 15
print('done')
";
    let mut child = on(&engine, "python3").args(["-c", &script]).spawn().expect("python3");
    let mut out = std::io::BufReader::new(child.stdout.take().expect("stdout"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).expect("a line");
    let socket = engine.socket.clone();
    drop(engine);
    let rest = std::thread::spawn(move || std::io::read_to_string(out).expect("text"));
    let ended = within(child, Duration::from_secs(25));
    let rest = rest.join().expect("reader");
    assert!(rest.contains("done"), "{line}{rest}{}", String::from_utf8_lossy(&ended.stderr));

    let out = Command::new("python3")
        .args(["-c", "import socket\nfor _ in range(2):\n try: socket.socket()\n except OSError as e: print(e.errno)"])
        .env("LD_PRELOAD", library())
        .env("SIDESTEP_SOCKET", socket)
        .output()
        .expect("python3");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "100\n100\n");
    assert_eq!(String::from_utf8_lossy(&out.stderr).lines().count(), 1, "{out:?}");
}

#[test]
fn nc_and_curl_and_redis() {
    let engine = Running::start("tools");
    if has("nc.openbsd") {
        let server = on(&engine, "nc.openbsd").args(["-l", "-N", "7020"]).spawn().expect("nc");
        std::thread::sleep(Duration::from_millis(300));
        let mut client =
            on(&engine, "nc.openbsd").args(["-N", "10.9.8.7", "7020"]).stdin(Stdio::piped()).spawn().expect("nc");
        let text = vec![b'n'; 300_000];
        let mut stdin = client.stdin.take().expect("stdin");
        let sent = text.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&sent));
        let got = std::thread::spawn(move || within_reading(server, Duration::from_secs(20)));
        within(client, Duration::from_secs(20));
        writer.join().expect("writer").expect("write");
        assert_eq!(got.join().expect("reader").len(), text.len());
    }
    if has("redis-server") && has("redis-benchmark") {
        let args = ["--port", "7021", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""];
        let _server = Background(on(&engine, "redis-server").args(args).stdout(Stdio::null()).spawn().expect("redis"));
        std::thread::sleep(Duration::from_millis(700));
        let args = ["-h", "10.9.8.7", "-p", "7021", "-n", "5000", "-c", "20", "-q", "-t", "set,get"];
        let bench = on(&engine, "redis-benchmark").args(args).spawn().expect("redis-benchmark");
        let out = within(bench, Duration::from_secs(30));
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && text.contains("GET"), "{out:?}");
    }
    if has("curl") && has("python3") {
        let dir = std::env::temp_dir().join(format!("ss-preload-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("folder");
        std::fs::write(dir.join("page"), vec![b'p'; 500_000]).expect("file");
        let mut server = on(&engine, "python3");
        server.args(["-m", "http.server", "7022"]).current_dir(&dir).stdout(Stdio::null()).stderr(Stdio::null());
        let _server = Background(server.spawn().expect("python3"));
        std::thread::sleep(Duration::from_millis(700));
        let curl = on(&engine, "curl").args(["-s", "http://10.9.8.7:7022/page"]).spawn().expect("curl");
        let got = within_reading(curl, Duration::from_secs(20));
        std::fs::remove_dir_all(&dir).expect("cleaned");
        assert_eq!(got.len(), 500_000);
    }
}
