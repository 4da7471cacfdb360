"""Clients of the online server: requests with numbers, kept up until this is told to end.

    load.py SERVER LOG

Half of the requests go over connections that stay, half over one connection each. For every request a line in LOG says its
number, the seconds of the monotonic clock when it was sent, and the answer's status (0: none)."""

import signal
import socket
import sys
import threading
import time

PER_SECOND = 20
KEPT = 4


class Clients:
    """All of them, and the log they share."""

    def __init__(self, server, log):
        self.server = server
        self.log = log
        self.lock = threading.Lock()
        self.last = 0
        self.going_on = threading.Event()
        self.going_on.set()

    def number(self):
        with self.lock:
            self.last += 1
            return self.last

    def request(self, connection, number, keep):
        """Sends one and reads its answer to the end; the status."""
        kind = "keep-alive" if keep else "close"
        head = f"GET /{number} HTTP/1.1\r\nHost: service\r\nConnection: {kind}\r\n\r\n"
        connection.sendall(head.encode())
        answer = b""
        while not answer.endswith(b"done\n"):
            more = connection.recv(65536)
            if not more:
                return 0
            answer += more
        return int(answer.split(b" ", 2)[1])

    def once(self, connection, keep):
        """One request, logged. The connection to go on with, or none."""
        number, sent, status = self.number(), time.monotonic(), 0
        try:
            if connection is None:
                connection = socket.create_connection((self.server, 80), timeout=10)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            status = self.request(connection, number, keep)
        except OSError as error:
            print(f"request {number}: {error}", file=sys.stderr)
        with self.lock:
            self.log.write(f"{number} {sent:.3f} {status}\n")
            self.log.flush()
        if status and keep:
            return connection
        if connection is not None:
            connection.close()
        return None

    def client(self, keep):
        connection, interval = None, 2 * KEPT / PER_SECOND
        turn = time.monotonic()
        while self.going_on.is_set():
            connection = self.once(connection, keep)
            # A pace that a pause does not have to be made up for.
            turn = max(turn + interval, time.monotonic())
            time.sleep(max(0.0, turn - time.monotonic()))


def main():
    server, log = sys.argv[1:]
    with open(log, "w", encoding="ascii") as file:
        clients = Clients(server, file)
        signal.signal(signal.SIGTERM, lambda *_: clients.going_on.clear())
        threads = [threading.Thread(target=clients.client, args=(keep,)) for keep in [True, False] * KEPT]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


main()
