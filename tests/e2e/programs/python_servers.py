"""socketserver with a process and with a thread a connection, and a multiprocessing listener, at argv[1].

Each echoes lines with its number of the process in front, so that the client sees that a child answered."""
import os, socketserver, sys, threading
from multiprocessing.connection import Listener


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(b'%d %b' % (os.getpid(), line))


class Forking(socketserver.ForkingTCPServer):
    allow_reuse_address = True
    max_children = 64


class Threading(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


def objects(listener):
    while True:
        connection = listener.accept()
        while True:
            try:
                connection.send(('echo', connection.recv()))
            except EOFError:
                break


address = sys.argv[1]
forking, threads = Forking((address, 7001), Handler), Threading((address, 7002), Handler)
listener = Listener((address, 7003), authkey=b'sidestep')
threading.Thread(target=objects, args=(listener,), daemon=True).start()
threading.Thread(target=threads.serve_forever, daemon=True).start()
print('listening', os.getpid(), flush=True)
forking.serve_forever()
