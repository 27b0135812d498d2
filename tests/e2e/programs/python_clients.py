"""Talks to python_servers.py at argv[1] in several ways; argv[2] is the servers' process."""
import socket, sys, threading
from multiprocessing.connection import Client

address, parent = sys.argv[1], int(sys.argv[2])
failed = []


def lines(port, forked):
    try:
        connection = socket.create_connection((address, port), timeout=30)
        file = connection.makefile('rwb')
        for i in range(50):
            file.write(b'line %d\n' % i)
            file.flush()
            process, rest = file.readline().split(b' ', 1)
            assert rest == b'line %d\n' % i, rest
            assert (int(process) != parent) == forked, process
    except Exception as error:
        failed.append(f'port {port}: {error!r}')


threads = [threading.Thread(target=lines, args=(7001 + n % 2, n % 2 == 0)) for n in range(24)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with Client((address, 7003), authkey=b'sidestep') as connection:
    for i in range(20):
        sent = {'number': i, 'bytes': b'x' * (i * 5000)}
        connection.send(sent)
        assert connection.recv() == ('echo', sent)
if failed:
    sys.exit('\n'.join(failed))
print('all answered')
