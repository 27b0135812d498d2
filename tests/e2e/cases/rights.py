"""Sockets sent over Unix sockets. Every line must be the same whoever serves the sockets."""

import os
import select
import signal
import socket
import sys
import threading


def line(name, of):
    try:
        said = of()
    except OSError as e:
        said = type(e).__name__
    print(name, said, flush=True)


def listener():
    s = socket.create_server(("127.0.0.1", 0))
    s.settimeout(30)
    return s


def call(s):
    c = socket.create_connection(s.getsockname(), 30)
    a, _ = s.accept()
    return c, a


def received(unix, kind=socket.SOCK_STREAM):
    _, fds, _, _ = socket.recv_fds(unix, 1, 4)
    return [socket.socket(fileno=fd) for fd in fds]


def worker(unix, work):
    """A forked process that gets sockets and works on them."""
    pid = os.fork()
    if pid == 0:
        try:
            work(received(unix))
            os._exit(0)
        except BaseException as e:
            print("worker:", repr(e), flush=True)
            os._exit(1)
    return pid


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def to_a_worker():
    s = listener()
    here, there = socket.socketpair()
    pid = worker(there, lambda got: (got[0].sendall(b"from the worker"), got[0].close()))
    c, a = call(s)
    socket.send_fds(here, [b"x"], [a.fileno()])
    a.close()
    return c.recv(100), c.recv(100), ended(pid)


def closed_before_it_is_read():
    s = listener()
    here, there = socket.socketpair()
    c, a = call(s)
    a.sendall(b"one ")
    socket.send_fds(here, [b"x"], [a.fileno()])
    a.close()
    # Open on the way: no end of file.
    readable = select.select([c], [], [], 0.3)[0]
    first = c.recv(100) if readable else None
    still = select.select([c], [], [], 0.2)[0]
    (a,) = received(there)
    a.sendall(b"two")
    name = a.getpeername() == c.getsockname()
    a.close()
    return first, still, name, c.recv(100), c.recv(100)


def never_read():
    s = listener()
    here, there = socket.socketpair()
    c, a = call(s)
    socket.send_fds(here, [b"x"], [a.fileno()])
    a.close()
    here.close()
    there.close()
    c.settimeout(30)
    return c.recv(100)


def kept_by_both():
    s = listener()
    here, there = socket.socketpair()
    c, a = call(s)
    socket.send_fds(here, [b"x"], [a.fileno()])
    (b,) = received(there)
    a.sendall(b"a")
    b.sendall(b"b")
    got = c.recv(1) + c.recv(1)
    a.close()
    b.sendall(b"c")
    got += c.recv(1)
    b.close()
    return got, c.recv(1)


def a_listener():
    s = listener()
    here, there = socket.socketpair()

    def work(got):
        # `listener` set a timeout, so the description doesn't block: the call may not be there yet.
        select.select(got, [], [], 30)
        c, _ = got[0].accept()
        c.sendall(b"accepted")

    pid = worker(there, work)
    socket.send_fds(here, [b"x"], [s.fileno()])
    name = s.getsockname()
    s.close()
    with socket.create_connection(name, 30) as c:
        return c.recv(100), ended(pid)


def datagrams():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("127.0.0.1", 0))
    here, there = socket.socketpair()

    def work(got):
        data, who = got[0].recvfrom(100)
        got[0].sendto(data + b" back", who)

    pid = worker(there, work)
    socket.send_fds(here, [b"x"], [s.fileno()])
    c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    c.settimeout(30)
    c.sendto(b"there and", s.getsockname())
    return c.recv(100), ended(pid)


def before_it_has_an_address():
    here, there = socket.socketpair()
    s = listener()
    c = socket.socket()
    socket.send_fds(here, [b"x"], [c.fileno()])
    c.close()
    (c,) = received(there)
    c.connect(s.getsockname())
    a, _ = s.accept()
    a.sendall(b"hello")
    return c.recv(100)


def several_and_files():
    s = listener()
    here, there = socket.socketpair()
    c, a = call(s)
    d, b = call(s)
    r, w = os.pipe()
    socket.send_fds(here, [b"x"], [a.fileno(), w, b.fileno()])
    _, fds, _, _ = socket.recv_fds(there, 1, 4)
    os.write(fds[1], b"pipe")
    for fd, text in [(fds[0], b"first"), (fds[2], b"second")]:
        os.write(fd, text)
    return c.recv(100), d.recv(100), os.read(r, 100)


def dispatcher(workers=3, calls=60):
    """One process accepts, several serve: as servers do that hand connections over."""
    s = listener()
    pipes = [socket.socketpair() for _ in range(workers)]
    pids = []
    for here, there in pipes:
        pid = os.fork()
        if pid == 0:
            s.close()
            for h, _ in pipes:
                h.close()
            while True:
                data, fds, _, _ = socket.recv_fds(there, 1, 1)
                if not data:
                    os._exit(0)
                with socket.socket(fileno=fds[0]) as a:
                    a.sendall(a.recv(100) * 2)
        pids.append(pid)

    def dispatch():
        for n in range(calls):
            a, _ = s.accept()
            socket.send_fds(pipes[n % workers][0], [b"x"], [a.fileno()])
            a.close()

    thread = threading.Thread(target=dispatch)
    thread.start()
    good = 0
    for n in range(calls):
        with socket.create_connection(s.getsockname(), 30) as c:
            c.sendall(b"%d," % n)
            good += c.recv(100) == b"%d,%d," % (n, n)
    thread.join()
    for here, there in pipes:
        there.close()
        here.close()
    return good, [ended(pid) for pid in pids]


def broken_pipe():
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    s = listener()
    here, there = socket.socketpair()
    c, a = call(s)
    there.close()
    try:
        socket.send_fds(here, [b"x"], [a.fileno()])
    except BrokenPipeError:
        pass
    a.sendall(b"still mine")
    got = c.recv(100)
    a.close()
    return got, c.recv(100)


if len(sys.argv) == 1:
    line("to a worker", to_a_worker)
    line("closed before it is read", closed_before_it_is_read)
    line("never read", never_read)
    line("kept by both", kept_by_both)
    line("a listener", a_listener)
    line("datagrams", datagrams)
    line("before it has an address", before_it_has_an_address)
    line("several and files", several_and_files)
    line("dispatcher", dispatcher)
    line("broken pipe", broken_pipe)
elif sys.argv[1] == "give":
    s = listener()
    unix = socket.socket(socket.AF_UNIX)
    unix.connect(sys.argv[2])
    c, a = call(s)
    socket.send_fds(unix, [b"x"], [a.fileno()])
    a.close()
    print(c.recv(100), c.recv(100), flush=True)
else:
    with_own = sys.argv[1] == "take-with-own"
    own = listener() if with_own else None
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(sys.argv[2])
    unix.listen()
    print("ready", flush=True)
    u, _ = unix.accept()
    (a,) = received(u)
    try:
        a.sendall(b"from another program")
        print("sent", flush=True)
    except OSError as e:
        print(type(e).__name__, flush=True)
    a.close()
