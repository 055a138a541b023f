"""SIGKILLs at random moments of a busy run: `python -m tests.faults.random_kills --kills 1000`.

Tombstones are touched and marked, segments arrive, tombstones are removed, rescans are asked for and a peer is
delivered to, while the agent is killed again and again. After each kill nothing that it ever said is untrue, and
nothing that it ever hid is visible; at the end everything is where it belongs.
"""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click

from tests.faults.world import World, segments, stem, tombstones
from tests.faults.zygote import Life, Zygote
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for

LONGEST_LIFE_S = 1.2  # a start takes 0.2 s or more, its first rescan and deliveries as long again
ACTIONS = 20  # of people and of the archive in each life
CONVERGED_WITHIN_S = 120.0


class Run:
    """One run: the world, and what was promised in it so far."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.marked: set[str] = set()  # every tombstone that was made by hand
        self.done: set[str] = set()  # what `mark` printed as done
        self.hidden: set[str] = set()  # what the index ever held
        self.told: Counter[str] = Counter()  # `hidden` records by stem
        self.heard: set[str] = set()  # told, perhaps more than once
        self.delivered: set[str] = set()
        self.marks: list[tuple[Life, Path, str, bool]] = []
        self.next = 100  # number of the next new stem

    def life(self) -> None:
        """Start the agent, be busy, kill it, and look at what is left."""
        agent = self.world.agent
        agent.start(ready=False)
        end = self.random.uniform(0.0, LONGEST_LIFE_S)
        moments = sorted(self.random.uniform(0.0, end) for _ in range(ACTIONS))
        now = 0.0
        for moment in [*moments, end]:
            self._pass_time(moment - now)
            now = moment
            if moment != end:
                self.random.choice(self._actions())()
        agent.kill()
        self._end_marks()
        self.check()

    def _pass_time(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.world.agent.wait(seconds)
            raise AssertionError(f"the agent ended by itself with {code}: {self.world.agent.log.read_text()[-2000:]}")

    def _actions(self) -> list[Callable[[], None]]:
        return [
            self._touch,
            self._touch,
            self._touch_absent,
            self._arrive,
            self._arrive,
            self._remove,
            self._mark,
            self._rescan,
        ]

    def _new(self) -> str:
        self.next += 1
        return stem(self.next)

    def _touch(self) -> None:
        one = self._new()
        self.world.arrive(one)
        self.world.touch(one)
        self.marked.add(one)

    def _touch_absent(self) -> None:
        one = self._new()
        self.world.touch(one)
        self.marked.add(one)

    def _arrive(self) -> None:
        """A segment, as often as not one that is marked already."""
        absent = [one for one in self.marked if f"{self.world.relative(one)}.ts" not in self.world.data]
        self.world.arrive(self.random.choice(sorted(absent)) if absent and self.random.random() < 0.5 else self._new())

    def _remove(self) -> None:
        """A tombstone that is recorded is removed, which takes nothing back."""
        if known := sorted(self.hidden - self.done):
            (self.world.hour / f"{self.random.choice(known)}.tombstone").unlink(missing_ok=True)

    def _mark(self) -> None:
        """`tombsync mark`, which may be killed as well."""
        if self.marks:
            return
        one = self._new()
        self.world.arrive(one)
        output = self.world.base / "mark.out"
        life = self.world.agent.zygote.start(
            ["mark", f"{self.world.relative(one)}.ts", "--config", str(self.world.agent.config)], output
        )
        self.marks.append((life, output, one, self.random.random() < 0.5))

    def _end_marks(self) -> None:
        for life, output, one, kill in self.marks:
            if kill:
                life.kill()
            code = life.wait(60)
            text = output.read_text() if output.exists() else ""
            assert code in ((0, -signal.SIGKILL) if kill else (0,)), text
            if f"marked {self.world.relative(one)}" in text:
                self.done.add(one)
            elif not kill:
                raise AssertionError(text)
            if one in tombstones(self.world.root):
                self.marked.add(one)
            output.unlink(missing_ok=True)
        self.marks.clear()

    def _rescan(self) -> None:
        if self.world.agent.records("started"):  # before, a signal would end it
            self.world.agent.signal(self.random.choice([signal.SIGUSR1, signal.SIGUSR2]))

    def check(self) -> None:
        """Nothing that was said is untrue, and nothing that was hidden is visible."""
        hidden, _ = self.world.check_promises(self.done)
        self.told.update(self.world.told("hidden"))
        self.heard |= self.world.hidden_told()
        self.delivered |= set(self.world.told("delivered"))
        self.world.check_journal()
        assert self.hidden <= hidden
        assert max(self.told.values(), default=0) <= 1
        self.hidden = hidden
        self.world.agent.log.unlink(missing_ok=True)

    def finish(self) -> None:
        """One more life, in which everything comes to its place."""
        agent = self.world.agent
        agent.start()
        wait_for(
            lambda: self.world.converges(self.marked, self.hidden), "everything to be in its place", CONVERGED_WITHIN_S
        )
        visible = {path.rpartition("/")[2].removesuffix(".ts") for path in self.world.data} - self.marked
        wait_for(lambda: self.world.visible() == visible, "the listing to be that of the directory")
        assert agent.stop() == 0
        self.check()
        assert self.heard == self.marked
        assert segments(self.world.root) == self.world.data


def run(world: World, *, kills: int, seed: int, on_kill: Callable[[int], None] = lambda number: None) -> Run:
    """So many lives, each killed at a random moment, and a last one. Raises AssertionError."""
    begun = Run(world, seed)
    for number in range(1, kills + 1):
        begun.life()
        on_kill(number)
    begun.finish()
    return begun


@click.command()
@click.option("--kills", default=1000, show_default=True, help="How many lives.")
@click.option("--seed", type=int, help="Repeat the moments and the actions of another run.")
def main(kills: int, seed: int | None) -> None:
    """Kill the agent at random moments of a busy run."""
    seed = random.randrange(1 << 32) if seed is None else seed
    click.echo(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="tombsync-kills-") as directory, Zygote() as zygote, Sshd() as server:
        world = World(zygote, server, Path(directory, "world"))
        with world.agent.ending():
            done = run(
                world, kills=kills, seed=seed, on_kill=lambda n: click.echo(f"{n} kills") if n % 50 == 0 else None
            )
    click.echo(
        f"{kills} kills: {len(done.marked)} tombstones hidden and confirmed, {len(done.done)} of them printed by mark;"
        f" {sum(done.told.values())} `hidden` records, {len(world.data)} segments unchanged"
    )


if __name__ == "__main__":
    main()
