"""`mark --channel --from --to --dry-run` on a tree of a million segments, against the same on one of a few hours.

python -m benchmarks.takedown [--hours 556] [--per-hour 1800]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks import trees
from benchmarks.common import Report, parser, work_directory
from tombsync.names import hour_number, hour_text

_ROUNDS = 5
# Of two qualities: enough that as many directories are read as in the large tree, or they could not be compared.
_SMALL_HOURS = 12


def find_s(root: Path, state: Path, channel: str, start: str, end: str) -> tuple[float, int]:
    """The median of some runs, with the start of the interpreter, and how many files were found."""
    words = [sys.executable, "-m", "tombsync", "mark", "--root", str(root), "--state-dir", str(state)]
    words += ["--channel", channel, "--from", start, "--to", end, "--dry-run", "--json"]
    taken = []
    for _ in range(_ROUNDS):
        begun = time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        taken.append(time.monotonic() - begun)
        assert done.returncode == 0, done.stderr
    return median(taken), len(json.loads(done.stdout)["found"])


def main() -> None:
    """The command."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--hours", type=int, default=556)
    options_parser.add_argument("--per-hour", type=int, default=1800)
    options = options_parser.parse_args()
    report = Report("takedown", options.json)
    with work_directory(options.work) as base:
        state = base / "takedown-state"
        state.mkdir(exist_ok=True)
        taken = {}
        for name, hours in (("few hours", _SMALL_HOURS), ("large tree", options.hours)):
            root = trees.kept(base, hours, options.per_hour)
            (place, *_) = sorted(root.glob("desertbus/*"))
            name_of_tree = f"{name} ({sum(1 for _ in root.glob('desertbus/*/*'))} directories)"
            numbers = sorted(hour_number(path.name) for path in place.iterdir())
            hour = hour_text(numbers[len(numbers) // 2])
            for what, end in (("20 s", "30:20"), ("an hour", None)):
                to = f"{hour}:{end}" if end else f"{hour_text(hour_number(hour) + 1)}:00"
                start = f"{hour}:30:00" if end else f"{hour}:00"
                seconds, found = find_s(root, state, place.parent.name, start, to)
                taken[name, what] = seconds
                report.add(f"{name_of_tree}, {what}", f"{seconds * 1e3:.1f} ms, {found} found")
        ratio = taken["large tree", "20 s"] / taken["few hours", "20 s"]
        report.add("20 s: large tree / few hours", f"{ratio:.3f}", must="<= 1.5", ok=ratio <= 1.5)
        longest = taken["large tree", "an hour"]
        report.add("an hour of the large tree", f"{longest * 1e3:.1f} ms", must="<= 5 s", ok=longest <= 5)
    report.close()


if __name__ == "__main__":
    main()
