"""One node on which faults happen: its tree, its agent, one peer behind a real sshd, and what must hold afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tests.faults.calls import Fault
from tests.faults.zygote import ForkedAgent, Zygote
from tests.support.agent import make_hour, peer_table, perhaps_told_before, segment_stem
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for
from tombsync import errors
from tombsync.errors import IndexMissing
from tombsync.names import strict_hour

HOUR = "desertbus/source/2019-11-13T02"
PEER = "node-b"
STARTS = 4  # of the service manager, until everything is well
SOON_S = 0.2
# A vanished tombstone is put back after a minute; nobody waits so long for each of some hundred lives.
CONSTANTS: Mapping[str, object] = {"tombsync.plan.PUT_BACK_AFTER_S": SOON_S}


def segments(root: Path) -> dict[str, tuple[bytes, int, int]]:
    """Everything in a tree's hours that is no tombstone: content, mtime and inode by relative path."""
    return {
        str(path.relative_to(root)): _fingerprint(path)
        for path in root.glob("*/*/*/*")
        if not path.name.endswith(".tombstone")
    }


def _fingerprint(path: Path) -> tuple[bytes, int, int]:
    status = path.lstat()
    return path.read_bytes(), status.st_mtime_ns, status.st_ino


def tombstones(root: Path) -> set[str]:
    """The stems that have a tombstone in a tree (the tests have one hour)."""
    return {path.name.removesuffix(".tombstone") for path in root.glob(f"{HOUR}/*.tombstone")}


class World:
    """A node below `base`. Its tree, state and peer are put back to a beginning by `reset`; `keep` makes the present
    state that beginning.
    """

    def __init__(
        self,
        zygote: Zygote,
        server: Sshd,
        base: Path,
        *,
        root: Path | None = None,
        state_dir: Path | None = None,
        peer_root: Path | None = None,
        constants: Mapping[str, object] = CONSTANTS,
        settings: str = "",
    ) -> None:
        """`root`, `state_dir` and `peer_root` may lie elsewhere than below `base`."""
        self.base = base
        base.mkdir(parents=True, exist_ok=True)
        self.peer_root = peer_root or base / "peer"
        self.agent = ForkedAgent(zygote, base, root=root, constants=constants)
        if state_dir is not None:
            state_dir.mkdir(parents=True, exist_ok=True)
            self.agent.state_dir = state_dir
        self.agent.write_settings([peer_table(PEER, server, self.peer_root)], settings)
        self.root = self.agent.root
        self.hour = make_hour(self.root, HOUR, segments=7)
        (self.peer_root / "desertbus" / "source").mkdir(parents=True)
        self._parts = (self.root, self.agent.state_dir, self.peer_root)
        self.data = segments(self.root)

    def keep(self) -> None:
        """What there is now is the beginning."""
        for part in self._parts:
            shutil.rmtree(self.base / "kept" / part.name, ignore_errors=True)
            shutil.copytree(part, self.base / "kept" / part.name)

    def reset(self) -> None:
        """Begin again, with an empty journal."""
        for part in self._parts:
            shutil.rmtree(part)
            shutil.copytree(self.base / "kept" / part.name, part)
        self.agent.log.unlink(missing_ok=True)
        self.agent.socket.unlink(missing_ok=True)
        self.data = segments(self.root)

    def warm_up(self, *stems: str) -> None:
        """Let an agent take these tombstones up and deliver them."""
        for stem in stems:
            self.touch(stem)
        self.agent.start()
        wait_for(lambda: self.confirmed() >= set(stems), "the first tombstones to be confirmed")
        assert self.agent.stop() == 0

    # -- what people and the archive do -------------------------------------------------------------------------------

    def touch(self, stem: str) -> None:
        """Mark by hand."""
        (self.hour / f"{stem}.tombstone").touch()

    def arrive(self, stem: str) -> None:
        """The archive writes a segment."""
        path = self.hour / f"{stem}.ts"
        path.write_bytes(b"arrived later")
        self.data[str(path.relative_to(self.root))] = _fingerprint(path)

    def mark(self, *stems: str, fault: Fault | None = None) -> tuple[int, set[str], str]:
        """`tombsync mark`: its exit code, the stems that it printed as done, and what it said on stderr."""
        code, output, told = self.agent.command("mark", *(f"{self.relative(stem)}.ts" for stem in stems), fault=fault)
        done = {stem for stem in stems for line in output.splitlines() if f"marked {self.relative(stem)}" in line}
        return code, done, told

    @staticmethod
    def relative(stem: str) -> str:
        """A stem's path below ROOT."""
        return f"{HOUR}/{stem}"

    # -- what there is ------------------------------------------------------------------------------------------------

    def recorded(self) -> set[str]:
        """The stems that the index hides; none where there is no index yet."""
        with contextlib.suppress(IndexMissing):
            reader = self.agent.reader()
            try:
                return {row.marked.stem for row in reader.marker_rows(limit=100_000)}
            finally:
                reader.close()
        return set()

    def confirmed(self) -> set[str]:
        """The stems that the peer has confirmed, as the index says."""
        with contextlib.suppress(IndexMissing):
            reader = self.agent.reader()
            try:
                peers = {peer.name: peer.peer for peer in reader.peers()}
                if PEER in peers:
                    return {row.marked.stem for row in reader.confirmed(peers[PEER], below=None, limit=100_000)}
            finally:
                reader.close()
        return set()

    def visible(self) -> set[str]:
        """The stems of the segments that the index lists."""
        with contextlib.suppress(IndexMissing):
            return {name.rpartition(".")[0] for name in self.agent.listing(strict_hour(*HOUR.split("/")))}
        return set()

    def told(self, event: str) -> Counter[str]:
        """How often the journal has told this of each stem, without what may be a repetition and says so."""
        return Counter(
            record["TOMBSYNC_SEGMENT"].rpartition("/")[2]
            for record in self.agent.records(event)
            if not perhaps_told_before(record)
        )

    def hidden_told(self) -> set[str]:
        """The stems of which the journal says, once or more, that they are hidden."""
        return {record["TOMBSYNC_SEGMENT"].rpartition("/")[2] for record in self.agent.records("hidden")}

    # -- what must hold -----------------------------------------------------------------------------------------------

    def check_promises(self, done: Iterable[str] = ()) -> tuple[set[str], set[str]]:
        """After an end of whatever kind: what was told is true. Returns what is hidden and what is confirmed."""
        recorded, confirmed = self.recorded(), self.confirmed()
        assert set(self.told("hidden")) <= recorded
        assert set(self.told("delivered")) <= confirmed
        assert confirmed <= recorded
        assert confirmed <= tombstones(self.peer_root)
        assert not self.visible() & recorded
        assert set(done) <= tombstones(self.root)
        self.check_tree()
        return recorded, confirmed

    def check_tree(self) -> None:
        """No data file changed, and nothing but segments and tombstones is in the hour."""
        assert segments(self.root) == self.data
        assert all(name.endswith((".ts", ".tombstone")) for name in os.listdir(self.hour))

    def converges(self, stems: set[str], hidden: set[str]) -> bool:
        """Whether the running agent has all of these where they belong; at each look, nothing that was hidden shows."""
        recorded = self.recorded()
        assert hidden <= recorded
        assert not self.visible() & hidden
        return recorded == stems == tombstones(self.root) == self.confirmed() and stems <= tombstones(self.peer_root)

    def check_journal(self) -> None:
        """The journal holds no contradiction and no fault of ours."""
        assert max(self.told("hidden").values(), default=0) <= 1
        for event in ("worker-died", "index-set-aside", "root-lost", "records-lost", "tree-refused", "state-refused"):
            assert self.agent.records(event) == [], event
        assert "Traceback" not in self.agent.log.read_text(errors="replace")


def stem(number: int) -> str:
    """The stem of the n-th segment of the hour."""
    return segment_stem(2 * number)


def run_until(world: World, condition: Callable[[], bool], what: str) -> list[int]:
    """Be the service manager: start the agent again whenever it ends by itself. The codes with which it ended."""
    codes: list[int] = []
    if not world.agent.alive:
        world.agent.start(ready=False)

    def look() -> bool:
        if not world.agent.alive:
            codes.append(world.agent.wait())
            assert codes[-1] in (errors.EXIT_FAILED, errors.EXIT_RESTART)
            assert len(codes) < STARTS
            world.agent.start(ready=False)
        return condition()

    wait_for(look, what)
    said = world.agent.log.read_text(errors="replace")
    assert "Traceback" not in said
    assert not codes or "tombsync: " in said
    return codes


def looks(world: World, stems: set[str]) -> bool:
    """Whether all is in its place; an index that nobody has set aside yet cannot be asked."""
    try:
        return world.converges(stems, set())
    except (errors.IndexDamaged, errors.StateRefused):
        return False
