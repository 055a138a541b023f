"""What of changed settings a running agent takes up."""

from __future__ import annotations

import pytest

from tombsync.config import (
    BreakerSettings,
    HttpSettings,
    InboxSettings,
    PeerSettings,
    RescanSettings,
    SenderSettings,
    Settings,
)
from tombsync.daemon.reload import PeerChange, obstacles, peer_changes

B = PeerSettings(host="b.example", name="node-b")
C = PeerSettings(host="c.example", name="node-c")
SENDER = SenderSettings(name="node-b")


def settings(**changes: object) -> Settings:
    return Settings(node="node-a", peers=(B, C)).model_copy(update=changes)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"node": "node-x"}, ["node"]),
        ({"root": "/elsewhere"}, ["root"]),
        ({"state_dir": "/elsewhere"}, ["state_dir"]),
        ({"journal": "stderr"}, ["journal"]),
        ({"http": HttpSettings(listen="127.0.0.1:1")}, ["http.listen"]),
        ({"inbox": InboxSettings(jail="/srv/elsewhere")}, ["inbox.jail"]),
        ({"root": "/elsewhere", "http": HttpSettings(listen="127.0.0.1:1")}, ["root", "http.listen"]),
        ({"peers": ()}, []),
        ({"senders": ()}, []),
        ({"senders": (SENDER, SenderSettings(name="node-c"))}, []),
        ({"inbox": InboxSettings(quota_per_hour=7)}, []),
        ({"rescan": RescanSettings(interval_s=7)}, []),
        ({"breaker": BreakerSettings(most_per_minute=7)}, []),
    ],
)
def test_what_takes_a_restart(changes: dict[str, object], keys: list[str]) -> None:
    old = settings(senders=(SENDER,))
    assert obstacles(old, old.model_copy(update=changes), receives=True) == keys


def test_the_first_sender_takes_a_restart() -> None:
    assert obstacles(settings(), settings(senders=(SENDER,)), receives=False) == ["the first [[sender]]"]
    assert obstacles(settings(), settings(senders=(SENDER,)), receives=True) == []  # there was one at the start


def test_a_jail_that_nobody_uses_may_change() -> None:
    assert obstacles(settings(), settings(inbox=InboxSettings(jail="/srv/elsewhere")), receives=False) == []


def test_only_what_changed_is_exchanged() -> None:
    assert peer_changes(settings(), settings()) == []
    assert peer_changes(settings(), settings(peers=(C, B))) == []  # their order means nothing
    added = PeerSettings(host="d.example", name="node-d")
    assert peer_changes(settings(), settings(peers=(B, C, added))) == [PeerChange("node-d", added)]
    assert peer_changes(settings(), settings(peers=(C,))) == [PeerChange("node-b", None)]


@pytest.mark.parametrize("change", [{"key": "/etc/other"}, {"known_hosts": "/etc/other"}, {"verify_interval_s": 7}])
def test_a_peer_reached_otherwise_is_the_same_peer(change: dict[str, object]) -> None:
    wanted = B.model_copy(update=change)
    assert peer_changes(settings(), settings(peers=(wanted, C))) == [PeerChange("node-b", wanted, same_target=True)]


@pytest.mark.parametrize(
    "change", [{"host": "x.example"}, {"port": 7}, {"user": "x"}, {"path": "/x"}, {"delivery": "inbox"}]
)
def test_a_peer_elsewhere_is_another_peer(change: dict[str, object]) -> None:
    wanted = B.model_copy(update=change)
    assert peer_changes(settings(), settings(peers=(wanted, C))) == [PeerChange("node-b", wanted, same_target=False)]


def test_a_name_that_went_to_another_place() -> None:
    """Two peers that exchanged their names: each is another one now."""
    swapped = (B.model_copy(update={"name": "node-c"}), C.model_copy(update={"name": "node-b"}))
    assert peer_changes(settings(), settings(peers=swapped)) == [
        PeerChange("node-c", swapped[0]),
        PeerChange("node-b", swapped[1]),
    ]
