"""What many of these tests begin with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.agent import make_hour
from tests.support.sshd import Sshd


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Ends whatever a test starts."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def peers(stack: ExitStack) -> list[Sshd]:
    """Two nodes that are delivered to, each with an hour; no agent runs there."""
    servers = [stack.enter_context(Sshd()) for _ in range(2)]
    for server in servers:
        make_hour(server.root)
    return servers
