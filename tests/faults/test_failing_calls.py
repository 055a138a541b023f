"""Each single call that the agent or `tombsync mark` makes to a file system fails once, in each way that it can.

What has to follow is a retry, or an end that says why in one line; and with the fault over, everything converges. Of the
many points a normal run takes a sample, another one each time; with CI=true, or with TOMBSYNC_ALL_FAILING_CALLS set, it
takes them all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import click
import pytest

from tests.faults.calls import CHANGES, Fault, need_injection
from tests.faults.world import World, stem, tombstones
from tests.faults.zygote import Zygote
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for

EVERY_POINT = os.environ.get("CI") == "true" or "TOMBSYNC_ALL_FAILING_CALLS" in os.environ
SAMPLE = 8  # points of each kind of failure in a normal run
WORLDS = 4  # lives at once: most of each is waiting

KNOWN, VANISHED, TOUCHED, MARKED = stem(0), stem(1), stem(2), stem(3)
STEMS = {KNOWN, VANISHED, TOUCHED, MARKED}
EXIT_RESTART = 75  # the tree seemed to be gone, and came back


class Failure(NamedTuple):
    """Which calls fail, and how."""

    error: int
    calls: tuple[str, ...]

    def __str__(self) -> str:
        return errno.errorcode[self.error]


READS = ("read", "pread64", "getdents64")
OPENS = ("open", "openat")
FAILURES = (
    Failure(errno.ENOSPC, tuple(call for call in CHANGES if call not in ("unlink", "unlinkat", "rmdir"))),
    Failure(errno.EIO, (*CHANGES, *OPENS, *READS)),
    Failure(errno.EROFS, tuple(call for call in CHANGES if "write" not in call and "sync" not in call)),
    Failure(errno.EMFILE, OPENS),
    Failure(errno.EINTR, (*CHANGES, *OPENS, *READS)),
)


def live(world: World, failure: Failure, at: int) -> Fault:
    """One life in which the call number `at` fails; if that ends it, a second one puts everything right."""
    world.reset()
    agent = world.agent
    agent.fault = fault = Fault(failure.calls, under=[f"{world.base}/"], at=at, error=failure.error)
    agent.start(ready=False)
    wait_for(lambda: not agent.alive or agent.records("rescan-completed"), "the agent to be ready or to have ended")
    world.touch(TOUCHED)
    code, done, told = world.mark(MARKED)
    assert (code, done) == (0, {MARKED}), told
    wait_for(lambda: not agent.alive or world.converges(STEMS, set()), "everything to be in its place, or an end")
    if agent.alive:
        agent.signal(signal.SIGTERM)
    code = agent.wait()
    fault.join()
    said = agent.log.read_text(errors="replace")
    assert "Traceback" not in said
    if code != 0:
        assert fault.hit is not None
        assert code in (1, EXIT_RESTART)
        assert any(line.startswith("tombsync: ") for line in said.splitlines())
        agent.start(ready=False)
        wait_for(lambda: world.converges(STEMS, set()), "everything to be in its place after a restart")
        agent.kill()
    world.check_tree()
    return fault
