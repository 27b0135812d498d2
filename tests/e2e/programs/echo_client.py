# Echo client: ADDRESS PORT CONNECTIONS BYTES. All connections at once, every byte compared.
import asyncio, os, sys

address, port, connections, size = sys.argv[1], *map(int, sys.argv[2:5])

async def one():
    reader, writer = await asyncio.open_connection(address, port)
    data = os.urandom(size)
    writer.write(data)
    got = await reader.readexactly(size)
    assert got == data, "the echo differs"
    writer.close()
    await writer.wait_closed()
    return size

async def main():
    sizes = await asyncio.wait_for(asyncio.gather(*(one() for _ in range(connections))), 60)
    print(f"{len(sizes)} connections, {sum(sizes)} bytes each way")

asyncio.run(main())
