"""Reads two journals, of tcpcopy and of intercept, in journalctl's JSON: what an operator looks for is in fields."""

import json
import sys


def entries(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def one(journal, **fields):
    """The first entry with these fields."""
    for entry in journal:
        if all(entry.get(field) == value for field, value in fields.items()):
            return entry
    sys.exit(f"no entry with {fields}")


def main():
    for path in sys.argv[1:]:
        journal = entries(path)
        ready = one(journal, MESSAGE="ready", RULES="native", PRIORITY="6")
        names = sorted(name for name in ready if not name.startswith("_") and name not in ("MESSAGE", "PRIORITY"))
        print(f"{ready['SYSLOG_IDENTIFIER']}: {len(journal)} entries; of the one that says ready: {', '.join(names)}")


main()
