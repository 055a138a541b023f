"""The installed service on a real systemd: start to ready with a warm index, and its memory when idle, at a million
segments.

python -m benchmarks.service [--hours 556] [--per-hour 1800]
"""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks import trees
from benchmarks.common import Report, measure, parser, rss_mb_of, work_directory
from tests.support.machines import Machine, Machines, copied
from tests.support.waiting import wait_for
from tests.systemd.operators import SOURCE, make_wheels

_STARTS = 5
_STAGE_S = 900.0


def wheelhouse(base: Path) -> Path:
    """What an operator brings: the project and its wheels. Made anew, as the project changes."""
    media = base / "service-media"
    shutil.rmtree(media, ignore_errors=True)
    make_wheels(copied(SOURCE, media / "project", "0.1.0"), media / "wheels")
    return media


def settle(node: Machine) -> None:
    """Wait until the first scan and what it left to be looked at again are done."""
    node.run("tombsync", "rescan", "--full", timeout_s=_STAGE_S)
    wait_for(lambda: node.property("StatusText").startswith("ready"), "it to be ready", _STAGE_S, pause_s=0.2)


def main() -> None:
    """The command."""
    options_parser = parser(__doc__)
    options_parser.add_argument("--hours", type=int, default=556)
    options_parser.add_argument("--per-hour", type=int, default=1800)
    options = options_parser.parse_args()
    report = Report("service", options.json)
    with work_directory(options.work) as base:
        # A tree of its own, as the installer gives the agent rights in it.
        root = trees.kept(base / "service-tree", options.hours, options.per_hour, hard_links=True)
        binds = [f"--bind-ro={wheelhouse(base)}:/mnt", f"--bind={root}:/segments"]

        def prepare(machine: Machine) -> None:
            (machine.root / "segments").mkdir(exist_ok=True)

        with Machines(base / "service-machines", ["n1"], binds=binds, prepare=prepare) as (node,):
            node.run("/mnt/project/systemd/install", "--wheelhouse", "/mnt/wheels", timeout_s=_STAGE_S)
            first_s = measure(lambda: node.run("systemctl", "start", "tombsync", timeout_s=_STAGE_S))
            report.add("first start, the index made", f"{first_s:.1f} s")
            settle(node)
            starts = []
            for _ in range(_STARTS):
                node.run("systemctl", "stop", "tombsync")
                starts.append(measure(lambda: node.run("systemctl", "start", "tombsync", timeout_s=_STAGE_S)))
            ready_s = sorted(starts)[_STARTS // 2]
            report.add("start to ready, warm index", f"{ready_s:.2f} s", must="<= 5 s", ok=ready_s <= 5)
            settle(node)
            memory_mb = rss_mb_of(node.says("cat", f"/proc/{node.property('MainPID')}/status"))
            report.add("RSS, idle", f"{memory_mb:.0f} MB", must="<= 150 MB", ok=memory_mb <= 150)
    report.close()


if __name__ == "__main__":
    main()
