"""A TCP relay: ``python -m ops.chaos.relay ADDRESS PORT TARGET_PORT``, to a server on 127.0.0.1.

It stands where the server's own network card would be, for a worker on the other side of a virtual cable. So
its sockets towards that worker notice a dead peer as the servers' own would.
"""

from __future__ import annotations

import asyncio
import socket
import sys

KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))
USER_TIMEOUT = 10_000  # milliseconds


async def main(address: str, port: int, target: int) -> None:
    """Relay until killed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far: socket.socket = writer.get_extra_info("socket")
        far.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (*KEEPALIVE, (socket.TCP_USER_TIMEOUT, USER_TIMEOUT)):
            far.setsockopt(socket.IPPROTO_TCP, option, value)
        try:
            near_reader, near_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.close()
            return
        tasks = [
            asyncio.create_task(_pump(reader, near_writer)),
            asyncio.create_task(_pump(near_reader, writer)),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for stream in (writer, near_writer):
            stream.close()

    server = await asyncio.start_server(serve, address, port)
    async with server:
        await server.serve_forever()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        return


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
