# Opens and closes connections to an HTTP server, one request each: ADDRESS PORT COUNT.
import socket, sys

family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
for n in range(int(sys.argv[3])):
    s = socket.socket(family)
    s.connect((sys.argv[1], int(sys.argv[2])))
    s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    got = b""
    while b"-->" not in got:
        part = s.recv(65536)
        assert part, "cut off"
        got += part
    s.close()
print("done")
