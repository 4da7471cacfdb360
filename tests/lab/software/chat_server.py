"""A room in which everybody speaks at will, the host too.

Each line a guest says goes to all guests; the host makes remarks of its own at random times. What each guest said is
appended, line by line, to a file named after the guest's first line.

usage: chat_server.py PORT DIRECTORY room|alone
Alone, a guest hears the host only.
"""

import asyncio
import os
import random
import sys


async def remarks(writer, name):
    chance = random.Random(name)
    for number in range(10_000):
        await asyncio.sleep(chance.uniform(0, 0.05))
        writer.write(f"host: {number} {'.' * chance.randint(0, 3000)}\n".encode())
        await writer.drain()


async def main(port, directory, shared):
    guests = set()

    async def welcome(reader, writer):
        writer.write(b"host: who are you?\n")
        name = (await reader.readline()).decode().strip()
        if not name:
            writer.close()
            return
        guests.add(writer)
        host = asyncio.create_task(remarks(writer, name))
        with open(os.path.join(directory, name + ".said"), "a", buffering=1, encoding="utf-8") as said:
            while line := (await reader.readline()).decode():
                said.write(line)
                if line == "bye\n":
                    break
                for guest in guests if shared else [writer]:
                    guest.write(f"{name}: {line}".encode())
        guests.discard(writer)
        host.cancel()
        writer.write(b"host: bye\n")
        writer.close()

    async with await asyncio.start_server(welcome, None, port):
        await asyncio.Future()


asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3] == "room"))
