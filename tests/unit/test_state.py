"""The line that says what the agent is doing."""

from __future__ import annotations

import pytest

from tombsync.daemon.state import PeerState, activity, state_text
from tombsync.rescan import Progress, RescanKind

HALF = Progress(RescanKind.FULL, 43, 100, 0)
NOTHING_YET = Progress(RescanKind.INTERVAL, 0, 0, 0)


@pytest.mark.parametrize(
    ("believed", "first_done", "progress", "text"),
    [
        (True, False, None, "starting"),
        (True, False, NOTHING_YET, "starting"),
        (True, False, HALF, "first scan 43 %"),
        (True, True, None, "ready"),
        (True, True, HALF, "ready, full rescan 43 %"),
        (False, True, HALF, "paused: the segment tree is not there, or is another one"),
    ],
)
def test_what_it_is_doing(believed: bool, first_done: bool, progress: Progress | None, text: str) -> None:
    assert activity(believed=believed, first_done=first_done, progress=progress) == text


@pytest.mark.parametrize(
    ("peers", "text"),
    [
        ([], "ready"),
        ([PeerState("node-b", True, 0, 0)], "ready"),
        ([PeerState("node-b", True, 12, 0)], "ready; 12 pending to node-b"),
        ([PeerState("node-b", False, 0, 0)], "ready; node-b is down"),
        (
            [PeerState("node-b", True, 12, 0), PeerState("node-c", False, 3, 0)],
            "ready; 12 pending to node-b; node-c is down, 3 pending",
        ),
        (
            [PeerState("node-b", True, 0, 600), PeerState("node-c", True, 0, 600)],
            "ready; 600 held until `tombsync release`",
        ),
        (
            [PeerState(f"n{number}", False, 0, 0) for number in range(7)],
            "ready; " + "; ".join(f"n{number} is down" for number in range(5)) + "; and 2 more peers",
        ),
    ],
)
def test_what_is_left_to_deliver(peers: list[PeerState], text: str) -> None:
    assert state_text("ready", peers) == text
