"""Guests of the room: each says lines at random times, some of them about what it has just heard.

usage: chat_client.py HOST PORT GUESTS LINES
"""

import asyncio
import random
import sys


async def guest(host, port, name, lines):
    chance = random.Random(name)
    reader, writer = await asyncio.open_connection(host, port)
    heard = [await reader.readline()]
    writer.write(f"{name}\n".encode())

    async def listen():
        while line := await reader.readline():
            heard.append(line)

    listener = asyncio.create_task(listen())
    for number in range(lines):
        await asyncio.sleep(chance.uniform(0, 0.06))
        words = "word " * chance.randint(0, 400)
        writer.write(f"{number} after {len(heard)}: {words}\n".encode())
        await writer.drain()
    writer.write(b"bye\n")
    await listener
    writer.close()
    assert heard[-1] == b"host: bye\n", f"the last heard is {heard[-1]!r}"


async def main(host, port, guests, lines):
    await asyncio.gather(*(guest(host, port, f"guest{number}", lines) for number in range(guests)))


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
