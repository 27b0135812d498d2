"""Sixteen threads store and fetch values of 0 to 2,093 bytes at the memcached of argv[1]."""
import socket, sys, threading

failed = []


def work(number):
    try:
        connection = socket.create_connection((sys.argv[1], 11211), timeout=20)
        lines = connection.makefile('rwb')
        for i in range(300):
            key, value = b'%d-%d' % (number, i), b'x' * (i * 7)
            lines.write(b'set %b 0 0 %d\r\n%b\r\n' % (key, len(value), value))
            lines.flush()
            assert lines.readline() == b'STORED\r\n'
            lines.write(b'get %b\r\n' % key)
            lines.flush()
            assert lines.readline() == b'VALUE %b 0 %d\r\n' % (key, len(value))
            assert lines.read(len(value) + 7) == value + b'\r\nEND\r\n'
    except Exception as error:
        failed.append(f'thread {number}: {error!r}')


threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if failed:
    sys.exit('\n'.join(failed))
print('4800 stored and fetched')
