"""The agent is killed at random moments of a busy run; `python -m tests.faults.random_kills` does it often."""

from __future__ import annotations

import random
from pathlib import Path

import click
import pytest

from tests.faults import random_kills
from tests.faults.world import World
from tests.faults.zygote import Zygote
from tests.support.sshd import Sshd

KILLS = 30


@pytest.mark.timeout(300)
def test_killed_at_random_moments_the_agent_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.randrange(1 << 32)
    with capsys.disabled():
        click.echo(f"\nseed {seed}")
    with Zygote() as zygote, Sshd() as server:
        world = World(zygote, server, tmp_path / "world")
        with world.agent.ending():
            done = random_kills.run(world, kills=KILLS, seed=seed)
    assert len(done.marked) > KILLS
    assert sum(done.told.values()) > KILLS
