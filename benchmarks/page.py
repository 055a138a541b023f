"""Make benchmarks/README.md from the figures of `benchmarks/run --json`: `python -m benchmarks.page FILE… > README.md`.

A later file's figures replace those of the same command in an earlier one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.commands import COMMANDS, ORDER

_TOP = """\
# Figures

Each benchmark is a command that prints what it measured and, where there is one, the ratio to a limit that it
measured in the same run. None is a test: a machine with other work on it gives other times, and mostly the same
ratios. This page is made from the last results ([results.json](results.json)) by `python -m benchmarks.page
benchmarks/results.json`.

## How to repeat them

`tests/run` makes the environment. As root, on a machine with nothing else to do:

```sh
benchmarks/run --all --save benchmarks/results.json    # long: ten million names, half an hour of churn
benchmarks/run hide push                               # some of them, as text
.venv-tests/bin/python -m benchmarks.push --help       # one, with its options
```

`--work DIR` keeps the trees between runs (default: below TMPDIR). Traps:

- On ext4, making a file costs up to thirty times as much for some minutes after many were removed nearby. What makes
  many files waits for that to pass, and says so; nothing is removed between the rounds of one benchmark. The work
  directory has the flag +T of chattr, which spreads what is made in it over the disk, away from what others removed.
- Whoever looks for a result again and again takes one of two cores away from what is measured, and at any priority up
  to a tick (4 ms) from a thread that wakes on the same core. Where it matters the benchmarks wait for inotify instead.
  Asking an agent over HTTP costs it some milliseconds: 200 questions a second made a first index a third longer.
- `find` is taken with a warm cache, right beside what it is compared with. ctime lags the clock by up to 5 ms.

`hide` takes the time from right before the `touch` to the commit being seen from another process. `push` compares
with one OPEN, and one OPEN and fsync, on an open session of the same library and server, one after each touch.
`catchup` holds the session still while the tombstones are hidden, and compares with rsync over an open ssh connection
through the same relay. lsyncd and rsync are Debian's packages.

`closed` asks a real nginx on a connection that stays open, right after each `touch`: it must be 410 within 50 ms (p99),
and the next segment of the hour still 200.

`inbox` has two receiving nodes, each with an agent, an sshd and jailed accounts of its own, behind relays; it makes
accounts and mounts, so it needs root. From right before the `touch` to the commits on both others it must take p50 <=
15 ms without delay and <= 4 RTT at 20 ms RTT; 10,000 at 50 ms RTT must be confirmed within 1.2 times what `tree` takes
(the median of three pairs, one after the other; the receiving agent runs in both). A million hostile names in an inbox
have no limit but that none escapes: the rate is that of the checks alone, and that of the worker with everything behind
it.

`listing` asks for an hour of 10,000 names on a connection that stays open: from the index, from the directory (one name
came since the rescan), beside slow readers, and beside full rescans with 2,000 new segments a second. The clients of
these figures take a part of the same two cores.

`coverage` begins where a first index of a million segments is ready, with the settling rescans beside it: every hour
is judged, first while /metrics is scraped, then, by another agent, while tombstones are touched. A tree of 100,000
hours is for memory alone.

`service` installs the project, as an operator does, on a container that a real systemd boots (mmdebstrap and
systemd-nspawn, as root), with a tree of a million segments: the time is that of `systemctl start`, `tombsync check`
before it included.
"""


def main() -> None:
    """The command."""
    documents: dict[str, dict[str, Any]] = {}
    for path in sys.argv[1:]:
        for document in json.loads(Path(path).read_text(encoding="utf-8")):
            documents[document["command"]] = document
    print(_TOP)
    print("## Last results\n")
    machine = next(iter(documents.values()))["machine"]
    print(
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, Linux {machine['kernel']},"
        f" Python {machine['python']}, SQLite {machine['sqlite']}.\n"
    )
    if missing := [name for name in COMMANDS if name not in {command.split()[0] for command in documents}]:
        print(f"Not among them: {', '.join(missing)}.\n")
    for command, document in sorted(documents.items(), key=lambda item: ORDER.index(item[0])):
        print(f"### `benchmarks.{command}`\n\n| figure | value | must | |\n|---|---|---|---|")
        for figure, entry in document["figures"].items():
            verdict = "" if entry.get("ok") is None else ("reached" if entry["ok"] else "**missed**")
            print(f"| {figure} | {_value(entry['value'])} | {entry.get('must', '')} | {verdict} |")
        print()


def _value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {number}" for key, number in value.items())
    return str(value)


if __name__ == "__main__":
    main()
