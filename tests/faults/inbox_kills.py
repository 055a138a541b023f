"""SIGKILLs of sender and receiver while tombstones go by inbox: `python -m tests.faults.inbox_kills --kills 200`.

All arrive, all are told as `hidden` by both nodes, and no segment is changed. What may have been told when its agent
was killed is told once more by the next one, with a field that says so; nothing else is told twice.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import click

from tests.support.agent import AgentProcess, make_hour, perhaps_told_before, segment_stem, touch
from tests.support.inbox import ReceivingNode
from tests.support.waiting import wait_for
from tombsync.names import Marked, Offer, hour_number, hour_text, offer_name

FIRST_HOUR = hour_number("2019-11-13T02")
PER_HOUR = 3600  # stems of one hour
LONGEST_LIFE_S = 1.0
LONGEST_WORK_S = 0.1  # of a victim that was ready, after marks were made: it is at work then
ARRIVED_WITHIN_S = 180.0


@dataclass
class Result:
    """How many marks were told as hidden, how many of them once more after a kill, and what each kill hit."""

    told: int = 0
    twice: int = 0
    hits: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        hits = ", ".join(f"{count} {what}" for what, count in sorted(self.hits.items()))
        return f"{self.told} told as hidden by both, {self.twice} records once more after a kill; kills: {hits}"


def hour_of(number: int) -> str:
    """The hour of a stem's number."""
    return f"desertbus/source/{hour_text(FIRST_HOUR + number % 10)}"


class Kills:
    """A sender, a receiver, and the marks that were made until now."""

    def __init__(self, stack: ExitStack, base: Path, seed: int) -> None:
        self.result = Result()
        self.made: list[Marked] = []
        self._moments = random.Random(seed)
        self.receiver = ReceivingNode(stack, "node-b", ["node-a"])
        self.sender = AgentProcess(base, peers=[self.receiver.table_for("node-a")])
        stack.push(self.sender)
        for number in range(10):
            make_hour(self.sender.root, hour_of(number))
            make_hour(self.receiver.root, hour_of(number))
        self.receiver.agent.start()
        self.sender.start()

    def mark_until(self, count: int) -> None:
        """Mark at the sender until there are so many."""
        while len(self.made) < count:
            number = len(self.made)
            self.made.append(touch(self.sender.root / hour_of(number), segment_stem(number // 10)))

    def kill(self, marks: int) -> None:
        """Kill one of the two while so many marks are made: half of the time one that was ready and is at work."""
        victim = self._moments.choice((self.sender, self.receiver.agent))
        ready = self._moments.random() < 0.5
        if ready:
            for agent in (self.receiver.agent, self.sender):
                wait_for(agent.is_ready, "it to be ready")
        self.mark_until(marks)
        # What it stands for: a moment that nobody chose.
        time.sleep(self._moments.uniform(0.0, LONGEST_WORK_S if ready else LONGEST_LIFE_S))
        victim.kill()
        self.result.hits[self._hit(victim, ready)] += 1
        victim.start(ready=False)

    def _hit(self, victim: AgentProcess, ready: bool) -> str:
        if victim is self.sender:
            return "of a sender that was ready" if ready else "of a sender at any moment"
        if not ready:
            return "of a receiver at any moment"
        waiting = set(os.listdir(self.receiver.inbox("node-a")))
        reader = victim.reader()
        try:
            found = {
                (reader.marker(marked) is not None, (self.receiver.root / marked.tombstone_path).is_file())
                for marked in self.made
                if offer_name(Offer(marked, "node-a")) in waiting
            }
            awaited = reader.awaited(above=0, limit=1)
        finally:
            reader.close()
        if (True, True) in found:
            return "between placed and taken away"
        if (True, False) in found or awaited:
            return "between hidden and placed"
        return "between delivered and hidden" if found else "of a receiver with an empty inbox"

    def finish(self) -> Result:
        """All have arrived, and were told. Raises AssertionError."""
        receiver = self.receiver
        for agent in (receiver.agent, self.sender):
            wait_for(agent.is_ready, "it to be ready")
        # The last is hidden in a life that is not killed.
        wait_for(self._all_confirmed, "every confirmation", ARRIVED_WITHIN_S)
        self.mark_until(len(self.made) + 1)
        wait_for(self._all_confirmed, "the last confirmation", ARRIVED_WITHIN_S)
        for marked in self.made:
            assert (receiver.root / marked.tombstone_path).is_file(), marked.path
        assert list(receiver.inbox("node-a").iterdir()) == []
        assert receiver.agent.metric("tombstones") == len(self.made)
        for agent in (self.sender, receiver.agent):
            assert agent.stop() == 0
            self.result.twice += self._check_told(agent)
        self.result.told = len(self.made)
        return self.result

    def _all_confirmed(self) -> bool:
        return self.sender.metric_if_up("deliveries", peer="node-b", state="confirmed") == len(self.made)

    def _check_told(self, agent: AgentProcess) -> int:
        """The journal has each mark as hidden, and twice only where it says so; how many those are."""
        records = agent.records("hidden")
        first = Counter(r["TOMBSYNC_SEGMENT"] for r in records if not perhaps_told_before(r))
        assert max(first.values()) == 1, [one for one, times in first.items() if times > 1]
        assert {record["TOMBSYNC_SEGMENT"] for record in records} == {marked.path for marked in self.made}
        return len(records) - len(self.made)


def run(
    stack: ExitStack, base: Path, *, marks: int, kills: int, seed: int, on_kill: Callable[[int], None] = lambda _: None
) -> Result:
    """Mark while one of the two agents is killed again and again. Raises AssertionError."""
    both = Kills(stack, base, seed)
    data = {path: path.read_bytes() for path in both.receiver.root.glob("*/*/*/*.ts")}
    for kill in range(1, kills + 1):
        both.kill(marks * kill // kills)
        on_kill(kill)
    result = both.finish()
    assert {path: path.read_bytes() for path in both.receiver.root.glob("*/*/*/*.ts")} == data
    return result


@click.command()
@click.option("--kills", default=200, show_default=True)
@click.option("--marks", default=2000, show_default=True)
@click.option("--seed", type=int, help="Repeat the moments of another run.")
def main(kills: int, marks: int, seed: int | None) -> None:
    """Kill sender and receiver at random moments while tombstones go by inbox."""
    seed = random.randrange(1 << 32) if seed is None else seed
    click.echo(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="tombsync-kills-") as directory, ExitStack() as stack:
        result = run(
            stack,
            Path(directory),
            marks=marks,
            kills=kills,
            seed=seed,
            on_kill=lambda n: click.echo(f"{n} kills") if n % 20 == 0 else None,
        )
    click.echo(f"{kills} kills, {marks} tombstones arrived: {result}")


if __name__ == "__main__":
    main()
