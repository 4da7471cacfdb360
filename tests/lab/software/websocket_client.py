"""Says things to the echo server on several connections at once and checks what comes back.

usage: websocket_client.py HOST PORT CONNECTIONS MESSAGES deflate|plain
"""

import asyncio
import random
import sys

import websockets


def messages(seed, count):
    chance = random.Random(seed)
    for number in range(count):
        size = chance.choice([0, 1, 125, 126, 1000, 65535, 65536, 300_000])
        if number % 2:
            yield chance.randbytes(size)
        else:
            yield "".join(chance.choices("abcdefghij ", k=size))


async def talk(host, port, number, count, compression):
    host = f"[{host}]" if ":" in host else host
    uri = f"ws://{host}:{port}/{number}"
    options = {"ping_interval": None, "max_size": 1 << 24, "compression": compression}
    async with websockets.connect(uri, **options) as socket:
        for position, message in enumerate(messages(number, count)):
            if position % 5 == 4:
                # A message in frames, with a ping between it and the next.
                half = len(message) // 2
                await socket.send([message[:half], message[half:]])
                await (await socket.ping())
            else:
                await socket.send(message)
            assert await socket.recv() == message, "another echo"


async def main(host, port, connections, count, compression):
    await asyncio.gather(
        *(talk(host, port, number, count, compression) for number in range(connections))
    )


asyncio.run(
    main(
        sys.argv[1],
        int(sys.argv[2]),
        int(sys.argv[3]),
        int(sys.argv[4]),
        "deflate" if sys.argv[5] == "deflate" else None,
    )
)
