# Blocks in every kind of call and says how each came back: PEER PORT OWN-ADDRESS.
# The peer takes connections and neither sends nor reads. Prints "blocked" once all calls wait, a line for each that
# returns, and "done" when all of them have, and later calls on the same sockets have too.
import errno, select, socket, sys, threading, time

peer, port, own = sys.argv[1], int(sys.argv[2]), sys.argv[3]
family = socket.AF_INET6 if ":" in own else socket.AF_INET
started = threading.Barrier(9)

def connected():
    s = socket.socket(family)
    s.connect((peer, port))
    return s

def say(name, result):
    sys.stdout.write(f"returned {name} {result}\n")
    sys.stdout.flush()

def call(name, sock, wait):
    def body():
        started.wait()
        try:
            result = wait(sock)
            result = "end" if result in (b"", 0) else str(result)
        except OSError as e:
            result = errno.errorcode.get(e.errno, str(e))
        say(name, result)
        # Later calls fail too, and at once.
        begin = time.monotonic()
        try:
            later = sock.recv(1)
            later = "end" if later == b"" else str(later)
        except OSError as e:
            later = errno.errorcode.get(e.errno, str(e))
        say(name + "-later", f"{later}{' slow' if time.monotonic() - begin > 10 else ''}")
    threading.Thread(target=body).start()

def fill(s):
    while True:
        s.send(b"x" * 65536)

def epoll(s):
    e = select.epoll()
    e.register(s, select.EPOLLIN)
    events = e.poll()[0][1]
    return "ERR|HUP" if events & (select.EPOLLERR | select.EPOLLHUP) else f"events {events}"

def poll(s):
    p = select.poll()
    p.register(s, select.POLLIN)
    events = p.poll()[0][1]
    return "ERR|HUP" if events & (select.POLLERR | select.POLLHUP) else f"events {events}"

def selected(s):
    select.select([s], [], [])
    return s.recv(1)

listener = socket.socket(family)
listener.bind((own, 0))
listener.listen()
udp = socket.socket(family, socket.SOCK_DGRAM)
udp.bind((own, 0))
timed = connected()
timed.settimeout(600)

# All sockets before any thread: a connection that fails here must end the program, not leave threads at the barrier.
calls = [
    ("recv", connected(), lambda s: s.recv(1)),
    ("send", connected(), fill),
    ("accept", listener, lambda s: s.accept()),
    ("epoll", connected(), epoll),
    ("poll", connected(), poll),
    ("select", connected(), selected),
    ("recvfrom", udp, lambda s: s.recvfrom(1)),
    ("timed-recv", timed, lambda s: s.recv(1)),
]
for each in calls:
    call(*each)
started.wait()
time.sleep(0.05)
print("blocked", flush=True)
for t in threading.enumerate():
    if t is not threading.current_thread():
        t.join()
print("done", flush=True)
