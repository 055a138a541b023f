"""SIGKILLs of sender and receiver while tombstones go by inbox: `python -m tests.faults.inbox_kills --kills 200`.

All arrive, none is told twice as `hidden`, and no segment is changed.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click

from tests.support.agent import AgentProcess, make_hour, segment_stem, touch
from tests.support.inbox import ReceivingNode
from tests.support.waiting import wait_for
from tombsync.names import hour_number, hour_text

FIRST_HOUR = hour_number("2019-11-13T02")
PER_HOUR = 3600  # stems of one hour
LONGEST_LIFE_S = 1.0
ARRIVED_WITHIN_S = 180.0


def hour_of(number: int) -> str:
    """The hour of a stem's number."""
    return f"desertbus/source/{hour_text(FIRST_HOUR + number % 10)}"


def run(
    stack: ExitStack, base: Path, *, marks: int, kills: int, seed: int, on_kill: Callable[[int], None] = lambda _: None
) -> int:
    """Mark while one of the two agents is killed again and again; how many `hidden` records there were at the receiver.

    Raises AssertionError.
    """
    moments = random.Random(seed)
    receiver = ReceivingNode(stack, "node-b", ["node-a"])
    sender = AgentProcess(base, peers=[receiver.table_for("node-a")])
    stack.push(sender)
    for number in range(10):
        make_hour(sender.root, hour_of(number))
        make_hour(receiver.root, hour_of(number))
    data = {path: path.read_bytes() for path in receiver.root.glob("*/*/*/*.ts")}
    receiver.agent.start()
    sender.start()
    made = 0
    for kill in range(1, kills + 1):
        until = marks * kill // kills
        while made < until:
            touch(sender.root / hour_of(made), segment_stem(made // 10))
            made += 1
        time.sleep(moments.uniform(0.0, LONGEST_LIFE_S))  # what it stands for: a moment that nobody chose
        victim = moments.choice((sender, receiver.agent))
        victim.kill()
        victim.start(ready=False)
        on_kill(kill)
    wait_for(
        lambda: sender.metric_if_up("deliveries", peer="node-b", state="confirmed") == marks,
        "every confirmation",
        ARRIVED_WITHIN_S,
    )
    for number in range(marks):
        path = f"{hour_of(number)}/{segment_stem(number // 10)}"
        assert (receiver.root / f"{path}.tombstone").is_file(), path
    assert list(receiver.inbox("node-a").iterdir()) == []
    assert receiver.agent.metric("tombstones") == marks
    assert {path: path.read_bytes() for path in receiver.root.glob("*/*/*/*.ts")} == data
    for agent in (sender, receiver.agent):
        assert agent.stop() == 0
        told = Counter(record["TOMBSYNC_SEGMENT"] for record in agent.records("hidden"))
        assert max(told.values()) == 1, [one for one, times in told.items() if times > 1]
    return len(told)


@click.command()
@click.option("--kills", default=200, show_default=True)
@click.option("--marks", default=2000, show_default=True)
@click.option("--seed", type=int, help="Repeat the moments of another run.")
def main(kills: int, marks: int, seed: int | None) -> None:
    """Kill sender and receiver at random moments while tombstones go by inbox."""
    seed = random.randrange(1 << 32) if seed is None else seed
    click.echo(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="tombsync-kills-") as directory, ExitStack() as stack:
        told = run(
            stack,
            Path(directory),
            marks=marks,
            kills=kills,
            seed=seed,
            on_kill=lambda n: click.echo(f"{n} kills") if n % 20 == 0 else None,
        )
    click.echo(f"{kills} kills: {marks} tombstones arrived, {told} of them told as hidden, none twice")


if __name__ == "__main__":
    main()
