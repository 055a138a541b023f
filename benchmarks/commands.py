"""Which command lines a benchmark stands for, in the order of benchmarks/README.md."""

from __future__ import annotations

COMMANDS: dict[str, tuple[str, ...]] = {
    "names": ("names",),
    "hide": ("hide",),
    "push": ("push --lsyncd",),
    "catchup": ("catchup", "catchup --files 1024"),
    "peers": ("peers",),
    "inbox": ("inbox",),
    "rescan": (
        "rescan",
        "rescan --hours 100000 --per-hour 10 --hard-links --rounds 1",
        "rescan --hours 5560 --hard-links --rounds 1",
    ),
    "idle": ("idle --hard-links",),
    "scrape": ("scrape",),
    "closed": ("closed",),
    "takedown": ("takedown",),
    "listing": ("listing",),
    "burst": ("burst",),
    "coverage": ("coverage",),
    "service": ("service",),
    "soak": ("soak",),
}
ORDER = [line for lines in COMMANDS.values() for line in lines]
