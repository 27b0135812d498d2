"""What loopback does, in lines that are the same whoever serves it."""

import errno
import socket
import threading

V4, V6 = socket.AF_INET, socket.AF_INET6
UDP = socket.SOCK_DGRAM


def line(name, of):
    try:
        said = of()
    except OSError as e:
        said = errno.errorcode.get(e.errno, str(e))
    print(name, said, flush=True)


def listener(family, address):
    s = socket.socket(family)
    s.bind((address, 0))
    s.listen(16)
    s.settimeout(20)
    return s


def echo(family, bound, called, bytes_each_way=4_000_000):
    """Sends while it receives; what comes back must be what went."""
    s = listener(family, bound)

    def serve():
        c, _ = s.accept()
        with c:
            while data := c.recv(65536):
                c.sendall(data)

    server = threading.Thread(target=serve)
    server.start()
    c = socket.create_connection((called, s.getsockname()[1]), 20)
    ends = c.getsockname()[0], c.getpeername()[0]
    data = bytes(i % 251 for i in range(bytes_each_way // 100)) * 100

    def send():
        c.sendall(data)
        c.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    got = bytearray()
    while part := c.recv(1 << 17):
        got += part
    sender.join()
    server.join()
    c.close()
    s.close()
    return got == data, ends


for family, bound, called in [
    (V4, "127.0.0.1", "127.0.0.1"),
    (V4, "", "127.0.0.1"),
    (V4, "127.0.0.5", "127.0.0.5"),
    (V4, "", "127.200.9.7"),
    (V4, "", "0.0.0.0"),
    (V6, "::1", "::1"),
    (V6, "::", "::1"),
    (V6, "::", "127.0.0.1"),
    (V6, "::", "::ffff:127.0.0.1"),
    (V6, "::ffff:127.0.0.1", "127.0.0.1"),
    (V6, "::", "::"),
]:
    line(f"tcp {bound} {called}", lambda: echo(family, bound, called))


def refused(family, address):
    with socket.socket(family) as s:
        s.settimeout(20)
        s.connect((address, 1))


line("refused", lambda: refused(V4, "127.0.0.1"))
line("refused", lambda: refused(V4, "127.0.0.77"))
line("refused", lambda: refused(V6, "::1"))
line("refused mapped", lambda: refused(V6, "::ffff:127.0.0.1"))
line("no route", lambda: refused(V4, "192.0.2.1"))
line("no route", lambda: refused(V6, "2001:db8::1"))


def elsewhere():
    """A listener of one address is not at another."""
    s = listener(V4, "127.0.0.2")
    with socket.socket() as c:
        c.settimeout(20)
        c.connect(("127.0.0.1", s.getsockname()[1]))


line("other address", elsewhere)


def many_refused():
    for _ in range(3000):
        try:
            refused(V4, "127.0.0.1")
        except ConnectionRefusedError:
            pass


line("3000 refused", many_refused)


def itself(family, address):
    s = socket.socket(family)
    s.settimeout(20)
    s.bind((address, 0))
    s.connect(s.getsockname())
    same = s.getsockname() == s.getpeername()
    s.sendall(b"hello")
    got = s.recv(100)
    s.shutdown(socket.SHUT_WR)
    return same, got, s.recv(100)


line("itself", lambda: itself(V4, "127.0.0.1"))
line("itself", lambda: itself(V6, "::1"))


def sources():
    s = listener(V4, "")
    port = s.getsockname()[1]
    found = []
    for local, remote in [(None, "127.0.0.9"), ("127.0.0.3", "127.0.0.9"), ("127.0.0.3", "127.0.0.1"), ("", "127.0.0.1")]:
        c = socket.socket()
        if local is not None:
            c.bind((local, 0))
        c.connect((remote, port))
        a, who = s.accept()
        found.append((c.getsockname()[0], who[0], a.getsockname()[0]))
        c.close()
        a.close()
    return found


line("sources", sources)


def udp(family, bound, called):
    s, c = socket.socket(family, UDP), socket.socket(family, UDP)
    s.bind((bound, 0))
    s.settimeout(20)
    c.settimeout(20)
    largest = 65507 if ":" not in called else 65527
    sizes = []
    for size in (0, 1, 1472, 1473, 9000, 60000, largest):
        c.sendto(b"u" * size, (called, s.getsockname()[1]))
        data, sender = s.recvfrom(70000)
        s.sendto(data, sender)
        back, server = c.recvfrom(70000)
        sizes.append(len(back))
    return sizes, sender[0], server[0]


line("udp", lambda: udp(V4, "127.0.0.1", "127.0.0.1"))
line("udp", lambda: udp(V4, "", "127.0.0.4"))
line("udp", lambda: udp(V6, "::1", "::1"))
line("udp", lambda: udp(V6, "::", "::1"))


def udp_many():
    """Sockets of many ports, so that several shards have them."""
    servers = [socket.socket(V4, UDP) for _ in range(24)]
    for s in servers:
        s.bind(("127.0.0.1", 0))
        s.settimeout(20)
    c = socket.socket(V4, UDP)
    c.settimeout(20)
    echoed = 0
    for round_ in range(20):
        for s in servers:
            c.sendto(b"%d" % round_, s.getsockname())
            data, who = s.recvfrom(100)
            s.sendto(data, who)
            echoed += c.recvfrom(100) == (b"%d" % round_, s.getsockname())
    return echoed


line("udp to 24 ports", udp_many)


def udp_refused(family, address):
    c = socket.socket(family, UDP)
    c.settimeout(20)
    c.connect((address, 9))
    c.send(b"x")
    return c.recv(10)


for _ in range(3):
    line("udp refused", lambda: udp_refused(V4, "127.0.0.1"))
    line("udp refused", lambda: udp_refused(V6, "::1"))


def write_write_read(rounds=300):
    """The pattern that Nagle's algorithm and delayed ACKs make slow; here only that it works."""
    s = listener(V4, "127.0.0.1")

    def serve():
        c, _ = s.accept()
        with c:
            while data := c.recv(64):
                c.sendall(data)

    server = threading.Thread(target=serve)
    server.start()
    c = socket.create_connection(s.getsockname(), 20)
    for _ in range(rounds):
        c.sendall(b"x" * 32)
        c.sendall(b"y" * 32)
        got = b""
        while len(got) < 64:
            got += c.recv(64)
        assert got == b"x" * 32 + b"y" * 32
    c.close()
    server.join()
    return rounds


line("write write read", write_write_read)


def one_after_the_other(n=2000):
    s = listener(V4, "127.0.0.1")
    for _ in range(n):
        c = socket.create_connection(s.getsockname(), 20)
        a, _ = s.accept()
        a.sendall(b"x")
        a.close()
        assert c.recv(10) + c.recv(10) == b"x"
        c.close()
    return n


line("connections", one_after_the_other)


def in_use():
    s = listener(V4, "127.0.0.1")
    t = socket.socket()
    t.bind(s.getsockname())


line("in use", in_use)
line("not ours", lambda: socket.socket().bind(("192.0.2.1", 0)))
