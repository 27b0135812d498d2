# Sends every datagram back: ADDRESS PORT.
import socket, sys

family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.bind((sys.argv[1], int(sys.argv[2])))
print("bound")
while True:
    data, peer = s.recvfrom(65536)
    s.sendto(data, peer)
