"""Reads entries of a journal from standard input, in journalctl's JSON, and says what they have in common.

    journal.py WHAT FIELD[=VALUE]…

Ends with 1 if there is none, or if one has not got a field, or not with this value."""

import json
import sys


def main():
    what, *wanted = sys.argv[1:]
    entries = [json.loads(line) for line in sys.stdin]
    if not entries:
        sys.exit(f"{what}: no entry")
    for entry in entries:
        for field in wanted:
            name, _, value = field.partition("=")
            if name not in entry or value and entry[name] != value:
                sys.exit(f"{what}: no {field} in {entry}")
    common = set.intersection(*(set(entry) for entry in entries))
    names = sorted(name for name in common if not name.startswith(("_", "CODE_", "SYSLOG_")))
    print(f"{what}: {len(entries)} entries with {', '.join(names)}")


main()
