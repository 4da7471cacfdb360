"""Sends mails on several connections, one after the other on each.

usage: smtp_client.py HOST PORT CONNECTIONS MAILS
"""

import random
import smtplib
import sys
import threading
from email.message import EmailMessage


def send(host, port, number, mails, failures):
    chance = random.Random(number)
    try:
        with smtplib.SMTP(host, port, local_hostname="client.example", timeout=20) as smtp:
            for position in range(mails):
                mail = EmailMessage()
                mail["From"] = f"client{number}@example.org"
                mail["To"] = ", ".join(f"user{user}@example.com" for user in range(position % 3 + 1))
                mail["Subject"] = f"mail {position} of {number}"
                mail["Message-ID"] = f"<{position}.{number}@example.org>"
                mail["Date"] = "Mon, 01 Jan 2024 00:00:00 +0000"
                size = chance.choice([10, 1000, 100_000])
                mail.set_content("".join(chance.choices("abcdefghij .\n", k=size)))
                smtp.send_message(mail)
    except Exception as failure:  # told to whoever started the client
        failures.append(failure)


failures = []
host, port, connections, mails = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
threads = [
    threading.Thread(target=send, args=(host, port, number, mails, failures))
    for number in range(connections)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if failures:
    sys.exit(f"{len(failures)} connections failed, the first: {failures[0]!r}")
