"""An agent and a peer that freezes, is cut off, loses packets or talks nonsense: it goes on hiding, and delivers later.

What a session makes of each of these is tested in tests/contract; here it is a whole agent, and what is left after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.lossy import LossyRelay
from tests.faults.world import CONSTANTS, PEER, World, stem, tombstones
from tests.faults.zygote import Zygote
from tests.support.agent import peer_table
from tests.support.relay import Direction, Misbehaviour, Relay, SilentServer
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for

WITHIN_S = 50.0  # a peer that timed out is tried again after some seconds
# A dead peer is given up after 15 s, and tried again after up to a minute, which nobody waits for here.
PATIENCE: Mapping[str, object] = {
    **CONSTANTS,
    "tombsync.peers.ssh.CONNECT_TIMEOUT_S": 4.0,
    "tombsync.peers.ssh._PHASE_TIMEOUT_S": 3.0,
    "tombsync.peers.session.REPLY_TIMEOUT_S": 3.0,
    "tombsync.plan.BACKOFF_FIRST_S": 0.2,
    "tombsync.plan.BACKOFF_LAST_S": 1.0,
}
DELAY_S = 0.1  # each way, so that there is time to do something between two packets


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


@pytest.fixture
def server() -> Iterator[Sshd]:
    with Sshd() as server:
        yield server


def behind(server: Sshd, port: int, peer_root: Path, known_hosts: Path) -> str:
    """The settings of the world's peer, reached by another port."""
    pins = server.known_hosts_path.read_text()
    known_hosts.write_text(pins.replace(f"]:{server.port} ", f"]:{port} "))
    return peer_table(PEER, server, peer_root, port=port, known_hosts=str(known_hosts))


def make_world(zygote: Zygote, server: Sshd, base: Path, port: int, *, more_peers: Sequence[str] = ()) -> World:
    """A world whose peer is reached through `port`."""
    world = World(zygote, server, base, constants=PATIENCE)
    world.agent.write_settings([behind(server, port, world.peer_root, base / "known_hosts"), *more_peers])
    return world


def stems(first: int, count: int) -> set[str]:
    return {stem(first + number) for number in range(count)}


def touch_all(world: World, some: set[str]) -> None:
    for one in sorted(some):
        world.touch(one)


def under_way(world: World, some: set[str]) -> bool:
    """Whether any of these is at the peer."""
    return bool(tombstones(world.peer_root) & some)


def failures(world: World, *reasons: str, peer: str = PEER) -> float:
    """How often a session or an attempt failed for these reasons; not yet where the agent only starts."""
    counts = (world.agent.metric_if_up("push_failures_total", peer=peer, reason=reason) for reason in reasons)
    return sum(count or 0 for count in counts)


def check_hides(world: World, marked: set[str]) -> None:
    """Whatever the peer does, this node hides at once, and is healthy."""
    wait_for(lambda: marked <= world.recorded(), "the marks to be hidden here")
    assert world.agent.get("/healthz")[0] == 200


def check_converges(world: World, marked: set[str]) -> None:
    """Everything is everywhere in the end, and the agent ends well."""
    wait_for(lambda: world.converges(marked, marked), "everything to be confirmed", WITHIN_S)
    assert world.agent.stop() == 0
    assert tombstones(world.peer_root) == marked
    world.check_tree()
    world.check_journal()


# -- frozen ------------------------------------------------------------------------------------------------------------


class Phase(NamedTuple):
    """When to freeze the server, seen from the outside; None is before anybody connects."""

    name: str
    begun: Callable[[Sshd, Relay, World], object] | None


PHASES = (
    Phase("connect", None),
    Phase("key exchange", lambda server, relay, world: relay.bytes_down),
    Phase("login", lambda server, relay, world: "userauth-request for user" in server.log()),
    Phase("channel", lambda server, relay, world: "Accepted publickey" in server.log()),
    Phase("subsystem", lambda server, relay, world: "Starting session" in server.log()),
    Phase("batch", lambda server, relay, world: tombstones(world.peer_root)),
)


def freeze_in(phase: Phase, zygote: Zygote, base: Path) -> None:
    with (
        Sshd(config=["LogLevel DEBUG1"]) as server,
        Relay((server.host, server.port), delay_s=DELAY_S) as relay,
    ):
        world = make_world(zygote, server, base, relay.port)
        with world.agent.ending():
            if phase.begun is None:
                server.freeze()
            world.agent.start(ready=False)
            marked = stems(100, 300)
            touch_all(world, marked)
            if phase.begun is not None:
                begun = phase.begun
                wait_for(lambda: begun(server, relay, world), f"the {phase.name} to begin")
                server.freeze()
            wait_for(lambda: failures(world, "timeout"), f"the server frozen in {phase.name} to be given up", WITHIN_S)
            marked |= (late := stems(500, 3))
            touch_all(world, late)
            check_hides(world, marked)
            assert not tombstones(world.peer_root) & late
            relay.set_delay(0.0)
            server.thaw()
            check_converges(world, marked)


@pytest.mark.timeout(180)
def test_a_server_frozen_in_any_phase_is_given_up_and_served_later(zygote: Zygote, tmp_path: Path) -> None:
    """All at the same time: each takes as long as it may."""

    def run(phase: Phase) -> None:
        try:
            freeze_in(phase, zygote, tmp_path / phase.name.replace(" ", "-"))
        except BaseException as exc:
            exc.add_note(f"frozen in: {phase.name}")
            raise

    with ThreadPoolExecutor(len(PHASES)) as pool:
        list(pool.map(run, PHASES))


# -- the network -------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
def test_connections_that_are_reset_again_and_again_lose_nothing(zygote: Zygote, server: Sshd, tmp_path: Path) -> None:
    with Relay((server.host, server.port), delay_s=0.02) as relay:
        world = make_world(zygote, server, tmp_path / "node", relay.port)
        marked: set[str] = set()
        with world.agent.ending():
            world.agent.start()
            for reset in range(6):
                wait_for(lambda: relay.connections, "a connection", WITHIN_S)
                some = stems(100 * reset, 100)
                marked |= some
                touch_all(world, some)
                if reset % 2:
                    wait_for(partial(under_way, world, some), "the batch to be under way", WITHIN_S)
                relay.reset()
                check_hides(world, marked)
            check_converges(world, marked)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_partition_in_one_direction_is_noticed_and_loses_nothing(
    direction: Direction, zygote: Zygote, server: Sshd, tmp_path: Path
) -> None:
    with Relay((server.host, server.port)) as relay:
        world = make_world(zygote, server, tmp_path / "node", relay.port)
        with world.agent.ending():
            world.agent.start()
            before = stems(100, 20)
            touch_all(world, before)
            wait_for(lambda: before <= world.confirmed(), "the first ones to be confirmed")
            relay.stall(direction)
            during = stems(200, 50)
            touch_all(world, during)
            check_hides(world, before | during)
            wait_for(lambda: failures(world, "timeout"), "the silence to be noticed", WITHIN_S)
            wait_for(lambda: world.agent.records("peer-down"), "the peer to be told of as down")
            # What arrives there without an answer is not taken for confirmed.
            assert world.confirmed() == before
            if direction == "down":
                assert tombstones(world.peer_root) == before | during
            relay.resume(direction)
            check_converges(world, before | during)


@pytest.mark.timeout(120)
def test_a_network_that_loses_every_twentieth_packet_only_delays(zygote: Zygote, server: Sshd, tmp_path: Path) -> None:
    with LossyRelay((server.host, server.port), share=0.05) as relay:
        world = make_world(zygote, server, tmp_path / "node", relay.port)
        marked: set[str] = set()
        with world.agent.ending():
            world.agent.start()
            for burst in range(50):
                some = stems(10 * burst, 10)
                marked |= some
                touch_all(world, some)
                wait_for(lambda: marked <= world.confirmed(), "a burst to be confirmed", WITHIN_S)
            assert relay.dropped
            check_converges(world, marked)


# -- nonsense ----------------------------------------------------------------------------------------------------------

MEGABYTE = 1 << 20
BANNER_BYTES = 64 * MEGABYTE  # far more than all else here needs


def peak_bytes(world: World) -> int:
    """The most memory that the agent had so far (VmHWM of proc(5))."""
    status = Path(f"/proc/{world.agent.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024


def nonsense(misbehaviour: Misbehaviour, server: Sshd, base: Path) -> tuple[SilentServer, str]:
    """A server that talks nonsense once it is entered, and the settings of a peer of its name."""
    silent = SilentServer(misbehaviour, line_bytes=BANNER_BYTES)
    known_hosts = base / f"known_hosts-{misbehaviour}"
    return silent, behind(server, silent.port, base, known_hosts).replace(f'"{PEER}"', f'"{misbehaviour}"')


@pytest.mark.timeout(120)
def test_peers_that_talk_nonsense_cost_the_others_nothing(zygote: Zygote, server: Sshd, tmp_path: Path) -> None:
    """An endless banner is not kept in memory, for example; and meanwhile a peer that works gets everything."""
    kinds: tuple[Misbehaviour, ...] = ("silent", "banner", "garbage", "slow-line", "fast-line")
    with contextlib.ExitStack() as stack:
        silent = [nonsense(kind, server, tmp_path) for kind in kinds]
        world = make_world(zygote, server, tmp_path / "node", server.port, more_peers=[table for _, table in silent])
        stack.enter_context(world.agent.ending())
        world.agent.start()

        def given_up(kind: str, before: float = 0) -> bool:
            return failures(world, "timeout", "protocol", "lost", peer=kind) >= before + 2

        *others, (endless, _) = silent
        for each, _ in others:
            stack.enter_context(each)
        for kind in kinds[:-1]:
            wait_for(partial(given_up, kind), f"{kind} to be given up", WITHIN_S)
        # Nobody has met the endless line so far: until now its server did not even accept.
        peak, before = peak_bytes(world), failures(world, "timeout", "protocol", "lost", peer=kinds[-1])
        stack.enter_context(endless)
        wait_for(partial(given_up, kinds[-1], before), f"{kinds[-1]} to be given up", WITHIN_S)
        marked = stems(100, 200)
        touch_all(world, marked)
        check_hides(world, marked)
        wait_for(lambda: marked <= world.confirmed(), "the peer that works to have everything")
        assert peak_bytes(world) < peak + BANNER_BYTES // 2
        for (server_of_nonsense, _), kind in zip(silent, kinds, strict=True):
            assert server_of_nonsense.connections_total >= 2
            assert world.agent.metric("peer_up", peer=kind) == 0
            assert world.agent.metric("deliveries", peer=kind, state="pending") == len(marked)
        assert world.agent.metric("peer_up", peer=PEER) == 1
        assert world.agent.stop() == 0
        assert tombstones(world.peer_root) == marked
        world.check_tree()
        world.check_journal()
