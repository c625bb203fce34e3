"""A proxy before a Postgres on a socket, which is as far away as it is told, and counts round trips.

    far_postgres.py SOCKET MILLISECONDS PORT_FILE

Writes its port to PORT_FILE. After a line on standard input it prints the round trips since the last one: how often a connection
sent something after the server had answered.
"""

import asyncio
import sys

socket_path, pause, port_file = sys.argv[1], float(sys.argv[2]) / 1000, sys.argv[3]
trips = 0


async def passed_on(reader, writer, connection, asks):
    """One direction. Each piece arrives `pause` later, and pieces stay in their order."""
    global trips
    loop = asyncio.get_running_loop()
    last = None
    while piece := await reader.read(1 << 16):
        if asks and not connection["asking"]:
            trips += 1
        connection["asking"] = asks
        if pause:
            last = loop.call_later(pause, writer.write, piece)
        else:
            writer.write(piece)
    if last:
        await asyncio.sleep(pause)
    writer.close()


async def joined(client_reader, client_writer):
    server_reader, server_writer = await asyncio.open_unix_connection(socket_path)
    connection = {"asking": False}
    await asyncio.gather(
        passed_on(client_reader, server_writer, connection, True),
        passed_on(server_reader, client_writer, connection, False),
        return_exceptions=True,
    )


async def main():
    global trips
    server = await asyncio.start_server(joined, "127.0.0.1", 0)
    with open(port_file, "w") as file:
        print(server.sockets[0].getsockname()[1], file=file)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while await lines.readline():
        print(trips, flush=True)
        trips = 0


asyncio.run(main())
