"""Names, by every way that the C library has, and past it. Every line must be the same whoever carries the questions."""

import ctypes
import socket
import struct
import sys
import threading

SERVER = sys.argv[1:]


def line(name, of):
    try:
        said = of()
    except (OSError, UnicodeError) as e:
        said = type(e).__name__, e.args[0]
    print(name, said, flush=True)


def all_of(name, **hints):
    return sorted({r[4][0] for r in socket.getaddrinfo(name, 80, **hints)})


line("both families", lambda: all_of("both.test"))
line("v4", lambda: all_of("both.test", family=socket.AF_INET))
line("v6", lambda: all_of("both.test", family=socket.AF_INET6))
line("configured families", lambda: all_of("both.test", flags=socket.AI_ADDRCONFIG, type=socket.SOCK_STREAM))
line("canonical", lambda: socket.getaddrinfo("alias.test", 80, flags=socket.AI_CANONNAME)[0][3])
line("service", lambda: sorted({r[4][1] for r in socket.getaddrinfo("both.test", "http")}))
line("number", lambda: all_of("192.0.2.5"))
line("nowhere", lambda: all_of("nowhere.test"))
line("search", lambda: all_of("short"))
line("hosts file", lambda: all_of("fromhosts"))
line("localhost", lambda: "127.0.0.1" in all_of("localhost"))
line("too long for UDP", lambda: len(all_of("many.test", family=socket.AF_INET)))
line("gethostbyname", lambda: socket.gethostbyname("both.test"))
line("gethostbyname_ex", lambda: socket.gethostbyname_ex("alias.test")[::2])
line("gethostbyname nowhere", lambda: socket.gethostbyname("nowhere.test"))
line("gethostbyaddr", lambda: socket.gethostbyaddr("192.0.2.10")[0])
line("getnameinfo", lambda: socket.getnameinfo(("192.0.2.10", 80), 0))
line("getnameinfo v6", lambda: socket.getnameinfo(("2001:db8::10", 80), 0))
line("getnameinfo, numbers", lambda: socket.getnameinfo(("192.0.2.99", 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV))

libc = ctypes.CDLL(None, use_errno=True)
answer = ctypes.create_string_buffer(65536)


def records(n):
    return None if n < 0 else struct.unpack(">H", answer.raw[6:8])[0]


A, TXT = 1, 16
line("res_query", lambda: records(libc.res_query(b"both.test", 1, A, answer, len(answer))))
line("res_query text", lambda: records(libc.res_query(b"text.test", 1, TXT, answer, len(answer))))
line("res_search", lambda: records(libc.res_search(b"short", 1, A, answer, len(answer))))
line("res_query too long for UDP", lambda: records(libc.res_query(b"many.test", 1, A, answer, len(answer))))


def question(name, number=0x1234):
    packet = struct.pack(">HHHHHH", number, 0x100, 1, 0, 0, 0)
    for label in name.split("."):
        packet += bytes([len(label)]) + label.encode()
    return packet + b"\0" + struct.pack(">HH", A, 1)


def plainly(server, name):
    """As resolvers do that bring their own: c-ares, Go's, Java's."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.settimeout(20)
        s.connect((server, 53))
        s.send(question(name))
        said = s.recv(65536)
    cut = bool(said[2] & 2)
    if cut:
        with socket.create_connection((server, 53), 20) as s:
            q = question(name)
            s.sendall(struct.pack(">H", len(q)) + q)
            with s.makefile("rb") as f:
                said = f.read(struct.unpack(">H", f.read(2))[0])
    return cut, struct.unpack(">H", said[6:8])[0]


for server in SERVER:
    line(f"plain {server}", lambda: plainly(server, "both.test"))
    line(f"plain {server}, TCP", lambda: plainly(server, "many.test"))


def at_once(threads=8, rounds=20):
    found = []

    def run():
        for _ in range(rounds):
            found.append(all_of("both.test"))

    running = [threading.Thread(target=run) for _ in range(threads)]
    for t in running:
        t.start()
    for t in running:
        t.join()
    return len(found), found.count(found[0])


line("threads", at_once)
# A lookup leaves no handler and no blocked signal behind.
import signal

line("SIGSYS", lambda: (signal.getsignal(signal.SIGSYS) == signal.SIG_DFL, signal.SIGSYS in signal.pthread_sigmask(signal.SIG_BLOCK, [])))


def with_all_blocked():
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    said = all_of("both.test")
    blocked = signal.SIGSYS in signal.pthread_sigmask(signal.SIG_SETMASK, [])
    return said, blocked


line("all signals blocked", with_all_blocked)
