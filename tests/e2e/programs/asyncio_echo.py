# Echo server on asyncio: ADDRESS4 ADDRESS6 PORT.
import asyncio, sys

async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(echo, sys.argv[1:3], int(sys.argv[3]))
    async with server:
        await server.serve_forever()

asyncio.run(main())
