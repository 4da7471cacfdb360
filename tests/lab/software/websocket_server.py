"""Echoes every message; appends what each connection said to a file of its own.

usage: websocket_server.py PORT DIRECTORY
The path of the request names the file.
"""

import asyncio
import hashlib
import os
import sys

import websockets


async def main(port, directory):
    async def serve(socket):
        name = os.path.join(directory, socket.path.strip("/") + ".said")
        with open(name, "a", buffering=1, encoding="utf-8") as said:
            async for message in socket:
                kind = "text" if isinstance(message, str) else "binary"
                data = message.encode() if isinstance(message, str) else message
                said.write(f"{kind} {len(data)} {hashlib.sha256(data).hexdigest()}\n")
                await socket.send(message)
            said.write(f"closed {socket.close_code}\n")

    # No pings: what answers them repeats random bytes of the server, which differ between two servers.
    options = {"ping_interval": None, "max_size": 1 << 24}
    async with websockets.serve(serve, None, port, **options):
        await asyncio.Future()


asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
