"""Holds what clients sent against what reached the target: for each event under load, what it cost.

    account.py CLIENTS TARGET EVENTS

CLIENTS is load.py's log, TARGET the target's access log, EVENTS has lines of a name, the seconds of the monotonic clock at
its beginning and when the replay had caught up again, and how many requests may be missing: all that were sent in between,
none, or, as production itself was "down", all, and some without an answer. Ends with 1 if production failed otherwise, or if
something is missing that may not be."""

import collections
import sys


def main():
    clients, target, events = sys.argv[1:]
    with open(target, encoding="utf-8", errors="replace") as file:
        arrived = collections.Counter(line.split()[1].lstrip("/") for line in file)
    requests = []
    with open(clients, encoding="ascii") as file:
        for line in file:
            number, sent, status = line.split()
            requests.append((float(sent), number, int(status)))
    requests.sort()
    good, inside, rows = True, set(), []
    with open(events, encoding="ascii") as file:
        for line in file:
            name, begin, end, allowed = line.split()
            during = [r for r in requests if float(begin) <= r[0] <= float(end)]
            inside.update(number for _, number, _ in during)
            missing = [sent for sent, number, status in during if status == 200 and not arrived[number]]
            failed = sum(status != 200 for _, _, status in during)
            gap = max(missing) - min(missing) if missing else 0.0
            fits = allowed == "down" or not failed and (allowed == "all" or not missing)
            good = good and fits
            rows.append((name, len(during), failed, len(missing), f"{gap:.2f}", f"{float(end) - float(begin):.1f}", "" if fits else "NOT AS IT SHOULD BE"))
    quiet = [r for r in requests if r[1] not in inside]
    missing = sum(status == 200 and not arrived[number] for _, number, status in quiet)
    failed = sum(status != 200 for _, _, status in quiet)
    twice = sum(count > 1 for count in arrived.values())
    good = good and not missing and not failed and len(quiet) > 100
    rows.append(("(otherwise)", len(quiet), failed, missing, "", "", ""))
    form = "{:<34} {:>9} {:>7} {:>8} {:>10} {:>11}  {}"
    print(form.format("event", "requests", "failed", "missing", "for s", "back after", ""))
    for row in rows:
        print(form.format(*row))
    print(f"{len(requests)} requests, {len(arrived)} arrived, {twice} of them more than once")
    sys.exit(0 if good else 1)


main()
