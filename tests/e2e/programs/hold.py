# Takes connections, neither sends nor reads, forgets those that broke: ADDRESS PORT.
import select, socket, sys

s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((sys.argv[1], int(sys.argv[2])))
s.listen(512)
print("listening", flush=True)
held = {}
poll = select.poll()
poll.register(s, select.POLLIN)
while True:
    for fd, events in poll.poll():
        if fd == s.fileno():
            c, _ = s.accept()
            held[c.fileno()] = c
            poll.register(c, select.POLLRDHUP)
        else:
            poll.unregister(fd)
            held.pop(fd).close()
