"""The segment tree on a real file system: its identity, its listings, and how a tombstone is placed."""

from __future__ import annotations

import errno
import gc
import os
import random
import stat
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inotify_simple import INotify, flags

from tests.support.programs import need
from tests.support.trees import marked, need_root
from tombsync.errors import BadName, RootMissing, RootNotBelieved, TreeRefused
from tombsync.tree import Listing, Tree, create_empty, directory_names, identities, is_own_mount, open_below

STEM = "45:51.608000-2.0-full-7IS92rssMzoSBQDIevHStbTNy-URRV3Vw-jzZ6pwOZM"
PARTS = ("desertbus", "source", "2019-11-13T02")
IDENTITY = "0b5c0c5e-3b0e-4a31-9f57-6c1c2a1c7d9e"
# As a directory can hold them: a line break, bytes that are not UTF-8, the longest, ones that look like other things.
ODD_NAMES = [
    b"a\nb.ts",
    b"\xff\xfe\x80.ts",
    b"\xc3(.tombstone",
    "\u00e9\u4e2d\U0001f47b.json".encode(),
    b"x" * 255,
    b"\xff" * 255,
    b"x",
    b" ",
    b"\x01\x7f",
    b".hidden",
    b"-",
    b"...",
    b"%s%n\\0",
]


@pytest.fixture(autouse=True)
def _no_descriptor_leaks() -> Iterator[None]:
    gc.collect()  # what earlier tests left behind would go meanwhile
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "segments"
    root.joinpath(*PARTS).mkdir(parents=True)
    return root


@pytest.fixture
def hour(root: Path) -> Path:
    return root.joinpath(*PARTS)


@pytest.fixture
def tree(root: Path) -> Tree:
    return Tree(str(root))


@pytest.fixture
def root_fd(tree: Tree) -> Iterator[int]:
    with tree.open_root() as fd:
        yield fd


@pytest.fixture
def hour_fd(hour: Path) -> Iterator[int]:
    fd = os.open(hour, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


Mount = Callable[..., Path]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mount a tmpfs at a directory; it is taken away at the end, whatever is mounted in it."""
    need_root()
    mounted: list[Path] = []

    def mount(at: Path, options: str = "size=1m") -> Path:
        subprocess.run([need("mount"), "-t", "tmpfs", "-o", options, "tmpfs", str(at)], check=True)
        mounted.append(at)
        return at

    yield mount
    for at in reversed(mounted):
        if at.is_mount():
            subprocess.run([need("umount"), "--lazy", "--recursive", str(at)], check=True)


def everything(directory: Path) -> list[str]:
    """All that is below a directory."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


# -- the root ----------------------------------------------------------------------------------------------------------


def test_a_root_that_is_a_symlink_is_resolved_once(root: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("segments")
    tree = Tree(str(link))
    assert tree.root == str(root)
    link.unlink()
    (tmp_path / "other").mkdir()
    link.symlink_to("other")
    assert tree.root == str(root)
    with tree.open_root() as fd:
        assert os.stat(fd).st_ino == root.stat().st_ino


@pytest.mark.parametrize("what", ["missing", "a file", "a link made later"])
def test_a_root_that_is_no_directory(what: str, tmp_path: Path, root: Path) -> None:
    path = tmp_path / "place"
    tree = Tree(str(path))
    if what == "a file":
        path.touch()
    elif what == "a link made later":
        path.symlink_to(root)
    with pytest.raises(RootMissing) as caught, tree.open_root():
        pass
    assert caught.value.root == str(path)
    with pytest.raises(RootMissing):
        tree.adopt()
    assert not tree.believed(IDENTITY)
    assert everything(root) == ["desertbus", "desertbus/source", "desertbus/source/2019-11-13T02"]


def test_the_first_adoption_gives_an_identity(tree: Tree, root: Path, root_fd: int) -> None:
    assert identities(root_fd) == []
    identity = tree.adopt()
    assert str(uuid.UUID(identity)) == identity
    assert identities(root_fd) == [identity]
    own = root / ".tombsync"
    assert [path.name for path in own.iterdir()] == [f"root-{identity}"]
    assert (own / f"root-{identity}").stat().st_size == 0
    assert stat.S_ISREG((own / f"root-{identity}").lstat().st_mode)
    assert tree.adopt() == identity
    assert tree.adopt(identity) == identity
    assert identities(root_fd) == [identity]
    assert tree.believed(identity)
    tree.require(root_fd, identity)
    with tree.open_believed(identity) as fd:
        assert os.stat(fd).st_ino == root.stat().st_ino


def test_two_trees_have_two_identities(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Tree(str(tmp_path / "other"))
    identity = other.adopt()
    assert tree.adopt() != identity
    assert not tree.believed(identity)
    with tree.open_root() as fd, pytest.raises(RootNotBelieved) as caught:
        tree.require(fd, identity)
    assert (caught.value.expected, caught.value.found) == (identity, tree.adopt())
    with pytest.raises(RootNotBelieved), tree.open_believed(identity):
        pass


def test_a_tree_without_identity_is_not_believed(tree: Tree, root_fd: int) -> None:
    with pytest.raises(RootNotBelieved) as caught:
        tree.require(root_fd, IDENTITY)
    assert (caught.value.expected, caught.value.found) == (IDENTITY, "")


def test_adoption_with_a_given_identity(tree: Tree, root_fd: int) -> None:
    """How an operator says that a new disk is meant, whatever identity it had."""
    assert tree.adopt(IDENTITY) == IDENTITY
    assert identities(root_fd) == [IDENTITY]
    assert tree.adopt() == IDENTITY
    other = str(uuid.uuid4())
    assert tree.adopt(other) == other
    assert identities(root_fd) == sorted([IDENTITY, other])
    assert tree.believed(other)
    assert tree.believed(IDENTITY)


def test_other_files_beside_the_marker_are_no_identity(tree: Tree, root: Path, root_fd: int) -> None:
    identity = tree.adopt()
    (root / ".tombsync" / "takedowns").mkdir()
    (root / ".tombsync" / "note").touch()
    assert identities(root_fd) == [identity]


def test_the_marker_is_looked_for_each_time(tree: Tree, root: Path) -> None:
    identity = tree.adopt()
    marker = root / ".tombsync" / f"root-{identity}"
    marker.rename(root / "kept")
    assert not tree.believed(identity)
    (root / "kept").rename(marker)
    assert tree.believed(identity)
    root.rename(root.with_name("moved"))
    assert not tree.believed(identity)


def test_a_symlinked_directory_of_our_own_is_not_followed(tree: Tree, root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / f"root-{IDENTITY}").touch()
    (root / ".tombsync").symlink_to(elsewhere)
    with tree.open_root() as fd:
        assert identities(fd) == []
    assert not tree.believed(IDENTITY)
    with pytest.raises(TreeRefused) as caught:
        tree.adopt()
    assert caught.value.path.startswith(f"{root}/.tombsync/root-")
    assert everything(elsewhere) == [f"root-{IDENTITY}"]


def test_a_tree_that_takes_no_marker(tree: Tree, root: Path) -> None:
    (root / ".tombsync").touch()
    with pytest.raises(TreeRefused) as caught:
        tree.adopt(IDENTITY)
    assert caught.value.path == f"{root}/.tombsync/root-{IDENTITY}"
    assert caught.value.errno == errno.ENOTDIR


def test_a_read_only_tree_takes_nothing(tmp_path: Path, mount: Mount) -> None:
    root = tmp_path / "read-only"
    root.mkdir()
    mount(root)
    hour = root.joinpath(*PARTS)
    hour.mkdir(parents=True)
    subprocess.run([need("mount"), "-o", "remount,ro", str(root)], check=True)
    tree = Tree(str(root))
    for refused in (tree.adopt, lambda: place(tree, hour)):
        with pytest.raises(TreeRefused) as caught:
            refused()
        assert (caught.value.errno, caught.value.reason) == (errno.EROFS, os.strerror(errno.EROFS))


# -- placing -----------------------------------------------------------------------------------------------------------


def place(tree: Tree, hour: Path, note: bytes = b"", stem: str = STEM) -> bool:
    with tree.open_root() as fd:
        return tree.place(fd, marked(hour, stem), note)


def test_a_tombstone_is_placed_empty(tree: Tree, hour: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (hour / f"{STEM}.ts").write_bytes(b"segment")
    old = os.umask(0)
    try:
        assert place(tree, hour)
    finally:
        os.umask(old)
    found = (hour / f"{STEM}.tombstone").lstat()
    assert stat.S_ISREG(found.st_mode)
    assert found.st_size == 0
    assert stat.S_IMODE(found.st_mode) == 0o644
    assert (hour / f"{STEM}.ts").read_bytes() == b"segment"
    sight = tree.sight(marked(hour, STEM))
    assert (sight.regular, sight.owner_uid, sight.size_bytes) == (True, os.geteuid(), 0)
    assert sight.ctime_ns == found.st_ctime_ns


@pytest.mark.parametrize("note", [b"reason = 'x'\n", b"n" * 4096, "\u00e9\n".encode()])
def test_a_note_is_written_whole(note: bytes, tree: Tree, hour: Path) -> None:
    assert place(tree, hour, note)
    assert (hour / f"{STEM}.tombstone").read_bytes() == note
    assert tree.sight(marked(hour, STEM)).size_bytes == len(note)


def test_a_note_is_written_whole_by_partial_writes(tree: Tree, hour: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, sizes = os.write, []

    def partial(fd: int, data: bytes | memoryview) -> int:
        sizes.append(len(data))
        return write(fd, bytes(data)[:7])

    monkeypatch.setattr("os.write", partial)
    assert place(tree, hour, b"0123456789" * 3)
    assert sizes == [30, 23, 16, 9, 2]
    assert (hour / f"{STEM}.tombstone").read_bytes() == b"0123456789" * 3


def test_a_note_that_was_written_in_part_is_none(tree: Tree, hour: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = os.write, []

    def fills_the_disk(fd: int, data: bytes | memoryview) -> int:
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, bytes(data)[:7])

    monkeypatch.setattr("os.write", fills_the_disk)
    assert place(tree, hour, b"0123456789")
    assert calls == [10, 3]
    assert (hour / f"{STEM}.tombstone").read_bytes() == b""


def test_a_note_is_never_longer_than_readers_take(tree: Tree, hour: Path) -> None:
    assert place(tree, hour, b"n" * 5000)
    assert (hour / f"{STEM}.tombstone").read_bytes() == b"n" * 4096


def test_a_full_disk_takes_the_tombstone_without_its_note(tmp_path: Path, mount: Mount) -> None:
    """It stands and hides, so it must not count as failed; half a note is none."""
    root = mount(tmp_path, "size=16k")
    hour = root.joinpath(*PARTS)
    hour.mkdir(parents=True)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        (root / "ballast").write_bytes(bytes(1 << 20))
    assert place(Tree(str(root)), hour, b"note")
    assert (hour / f"{STEM}.tombstone").read_bytes() == b""


def test_an_existing_tombstone_is_left_as_it_is(tree: Tree, hour: Path) -> None:
    path = hour / f"{STEM}.tombstone"
    path.write_bytes(b"by hand")
    before = path.stat()
    assert not place(tree, hour, b"note")
    assert path.read_bytes() == b"by hand"
    assert path.stat() == before


@pytest.mark.parametrize("kind", ["directory", "dangling link", "link to a file", "fifo"])
def test_whatever_has_the_name_already_is_left(kind: str, tree: Tree, root: Path, hour: Path) -> None:
    path, target = hour / f"{STEM}.tombstone", root / "target"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link to a file":
            target.write_bytes(b"kept")
            path.symlink_to(target)
        case _:
            path.symlink_to(target)
    before = path.lstat()
    assert not place(tree, hour, b"note")
    assert path.lstat() == before
    assert kind == "link to a file" or not target.exists()
    assert kind != "link to a file" or target.read_bytes() == b"kept"
    sight = tree.sight(marked(hour, STEM))
    assert (sight.regular, sight.owner_uid, sight.ctime_ns) == (False, before.st_uid, before.st_ctime_ns)


def test_a_tombstone_that_is_gone_again_is_no_other_kind_of_file(tree: Tree, hour: Path) -> None:
    sight = tree.sight(marked(hour, STEM))
    assert (sight.regular, sight.owner_uid, sight.ctime_ns) == (True, None, None)


@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("kind", ["missing", "file", "link"])
def test_a_missing_or_linked_directory_on_the_way_is_refused(
    level: int, kind: str, tree: Tree, root: Path, hour: Path, tmp_path: Path
) -> None:
    path = root.joinpath(*PARTS[: level + 1])
    outside = tmp_path / "outside"
    path.rename(outside)
    before = everything(outside)
    if kind == "file":
        path.touch()
    elif kind == "link":
        path.symlink_to(outside)
    tree_before = everything(root)
    with pytest.raises(TreeRefused) as caught:
        place(tree, hour, b"note")
    assert caught.value.path == f"{hour}/{STEM}.tombstone"
    assert caught.value.errno in ((errno.ENOENT,) if kind == "missing" else (errno.ENOTDIR, errno.ELOOP))
    assert everything(outside) == before
    assert everything(root) == tree_before


def test_a_stem_whose_tombstone_cannot_exist(tree: Tree, hour: Path) -> None:
    assert place(tree, hour, stem="x" * 245)
    with pytest.raises(BadName):
        place(tree, hour, stem="x" * 246)
    assert os.listdir(hour) == ["x" * 245 + ".tombstone"]


@pytest.mark.parametrize("stem", ["a\nb", os.fsdecode(b"\xff\xfe"), "\u00e9"])
def test_a_tombstone_of_an_odd_name(stem: str, tree: Tree, hour: Path) -> None:
    assert place(tree, hour, stem=stem)
    assert os.listdir(os.fsencode(hour)) == [os.fsencode(stem) + b".tombstone"]


@pytest.mark.parametrize("note", [b"", b"note"])
def test_no_other_name_ever_stands_in_the_hour(note: bytes, tree: Tree, hour: Path) -> None:
    """The archive's own readers fail on names that they do not know."""
    with INotify() as inotify:
        inotify.add_watch(hour, flags.CREATE | flags.MOVED_TO | flags.MOVED_FROM | flags.DELETE)
        inotify.add_watch(hour.parent, flags.CREATE | flags.MOVED_TO)
        assert place(tree, hour, note)
        events = [(event.name, event.mask) for event in inotify.read(timeout=0)]
    assert events == [(f"{STEM}.tombstone", flags.CREATE)]


def test_a_process_that_may_not_write_files_can_create_one(hour_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened for reading only: that is what the agent's confinement leaves it."""
    opened: list[int] = []
    real = os.open

    def spy(path: str, how: int, *args: int, dir_fd: int | None = None) -> int:
        opened.append(how)
        return real(path, how, *args, dir_fd=dir_fd)

    monkeypatch.setattr("os.open", spy)
    assert create_empty(hour_fd, "a.tombstone")
    assert not create_empty(hour_fd, "a.tombstone")
    assert [how & os.O_ACCMODE for how in opened] == [os.O_RDONLY, os.O_RDONLY]
    assert all(how & os.O_EXCL and how & os.O_CREAT for how in opened)


def test_what_is_placed_is_synced_with_its_directory(tree: Tree, hour: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, int]] = []
    real = os.fsync

    def spy(fd: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd).st_size))
        real(fd)

    monkeypatch.setattr("os.fsync", spy)
    assert place(tree, hour, b"note")
    (file, size), (directory, _) = synced
    assert file.startswith(f"{hour}/#")  # it has its name later
    assert size == 4
    assert directory == str(hour)
    identity = tree.adopt()
    own = f"{tree.root}/.tombsync"
    assert [path for path, _ in synced[2:]] == [f"{own}/root-{identity}", own, tree.root]


# -- directories -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", range(3))
def test_nothing_below_the_root_is_opened_through_a_link(level: int, root: Path, root_fd: int) -> None:
    path = root.joinpath(*PARTS[: level + 1])
    path.rename(root / "real")
    path.symlink_to(root / "real")
    with pytest.raises(OSError) as caught:
        open_below(root_fd, *PARTS)
    assert caught.value.errno in (errno.ENOTDIR, errno.ELOOP)
    assert directory_names(root_fd, *PARTS) == []
    assert is_own_mount(root_fd, *PARTS) is None


def test_a_directory_is_opened_part_by_part(hour: Path, root: Path, root_fd: int) -> None:
    for parts in (PARTS, PARTS[:2], PARTS[:1], ()):
        fd = open_below(root_fd, *parts)
        assert os.stat(fd).st_ino == root.joinpath(*parts).stat().st_ino
        assert not os.get_inheritable(fd)
        os.close(fd)
    with pytest.raises(FileNotFoundError):
        open_below(root_fd, *PARTS, "missing")
    with pytest.raises(FileNotFoundError):
        open_below(root_fd, "missing", *PARTS)
    (hour / "file").touch()
    with pytest.raises(NotADirectoryError):
        open_below(root_fd, *PARTS, "file")


def test_only_real_directories_that_are_not_hidden_are_named(root: Path, root_fd: int) -> None:
    (root / ".hidden").mkdir()
    (root / "..name").mkdir()
    (root / "file").touch()
    os.mkfifo(root / "fifo")
    (root / "link").symlink_to("desertbus")
    (root / "dangling").symlink_to("nowhere")
    odd = ["a\nb", os.fsdecode(b"\xff"), "\u00e9", "-"]
    for name in odd:
        (root / name).mkdir()
    assert sorted(directory_names(root_fd)) == sorted(["desertbus", *odd])
    assert directory_names(root_fd, "missing") == []
    assert directory_names(root_fd, "file") == []
    assert directory_names(root_fd, "link") == []


def test_places_and_hours(tree: Tree, root: Path, root_fd: int) -> None:
    tree.adopt()
    for path in (
        "desertbus/source/2019-11-13T03",
        "desertbus/source/2019-11-13T24",
        "desertbus/source/coverage",
        "desertbus/source/.2019-11-13T04",
        "desertbus/chat",
        "other/source/2019-11-13T02",
        "coverage-maps",
    ):
        (root / path).mkdir(parents=True, exist_ok=True)
    (root / "desertbus/source/2019-11-13T05").touch()
    (root / "desertbus/source/2019-11-13T06").symlink_to("2019-11-13T02")
    (root / "desertbus/linked").symlink_to("source")
    (root / "linked").symlink_to("desertbus")
    assert list(tree.places(root_fd)) == [("desertbus", "chat"), ("desertbus", "source"), ("other", "source")]
    assert sorted(tree.hours(root_fd, "desertbus", "source")) == ["2019-11-13T02", "2019-11-13T03"]
    for place in (("desertbus", "chat"), ("desertbus", "linked"), ("linked", "source"), ("missing", "source")):
        assert tree.hours(root_fd, *place) == []


def test_a_mount_of_its_own(tree: Tree, root: Path, root_fd: int, mount: Mount) -> None:
    (root / "other/source").mkdir(parents=True)
    assert is_own_mount(root_fd, "other", "source") is False
    mount(root / "other")
    assert is_own_mount(root_fd, "other") is True
    assert is_own_mount(root_fd, "other", "source") is None
    (root / "other/source").mkdir()
    assert is_own_mount(root_fd, "other", "source") is True
    assert is_own_mount(root_fd, "desertbus", "source") is False


def test_this_file_system_tells_of_its_writes(tree: Tree) -> None:
    kind = subprocess.check_output(["stat", "-f", "-c", "%T", tree.root], text=True).strip()
    silent = {"nfs": "nfs", "fuseblk": "fuse", "overlayfs": "overlay", "cifs": "cifs", "smb2": "smb2"}
    assert tree.silent_filesystem() == silent.get(kind, "")


def test_an_overlay_is_silent(tmp_path: Path, mount: Mount) -> None:
    mount(tmp_path)
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    merged = tmp_path / "merged"
    if subprocess.run([need("mount"), "-t", "overlay", "-o", options, "overlay", str(merged)]).returncode:
        pytest.skip("this kernel has no overlay file system")
    assert Tree(str(merged)).silent_filesystem() == "overlay"
    assert Tree(str(tmp_path)).silent_filesystem() == ""


def test_a_missing_root_has_no_file_system(tmp_path: Path) -> None:
    assert Tree(str(tmp_path / "missing")).silent_filesystem() == ""


# -- listings ----------------------------------------------------------------------------------------------------------


def listed(fd: int) -> list[str]:
    """The names of a fresh listing, without the two that every directory has."""
    listing = Listing()
    listing.read(fd)
    names = list(listing.names())
    assert names.count(".") == names.count("..") == 1
    return sorted(name for name in names if name not in (".", ".."))


def digest(fd: int) -> bytes:
    return Listing().read(fd)


def test_an_empty_directory(hour_fd: int) -> None:
    assert listed(hour_fd) == []


def test_odd_names_come_back_exactly(hour: Path, hour_fd: int) -> None:
    for name in ODD_NAMES:
        (hour / os.fsdecode(name)).touch()
    names = listed(hour_fd)
    assert sorted(os.fsencode(name) for name in names) == sorted(ODD_NAMES)
    assert names == sorted(os.listdir(hour))


@given(st.sets(st.binary(min_size=1, max_size=255).map(lambda name: name.translate(None, b"\0/")), max_size=30))
def test_any_names_come_back_exactly(tmp_path_factory: pytest.TempPathFactory, names: set[bytes]) -> None:
    directory = tmp_path_factory.mktemp("names")
    for name in names - {b"", b".", b".."}:
        (directory / os.fsdecode(name)).touch()
    fd = os.open(directory, os.O_RDONLY)
    try:
        assert listed(fd) == sorted(os.listdir(directory))
    finally:
        os.close(fd)


@pytest.mark.parametrize("length", [75, 255])
def test_many_names(length: int, hour: Path, hour_fd: int) -> None:
    """More than one answer of the kernel holds: half a megabyte of entries and more."""
    expected = [f"{number:016d}".ljust(length, "x") for number in range(5_000)]
    for name in expected:
        os.close(os.open(hour / name, os.O_CREAT))
    assert listed(hour_fd) == expected
    assert sorted(os.listdir(hour)) == expected
    before = digest(hour_fd)
    assert digest(hour_fd) == before
    (hour / expected[2_500]).unlink()
    assert digest(hour_fd) != before


def test_equal_entries_have_an_equal_digest(hour: Path, hour_fd: int) -> None:
    for number in range(100):
        (hour / f"{number}.ts").touch()
    listing = Listing()
    first = listing.read(hour_fd)
    assert listing.digest == first
    assert listing.read(hour_fd) == first
    assert listing.read(hour_fd, keep=False) == first
    assert digest(hour_fd) == first
    other = os.open(hour, os.O_RDONLY)
    assert digest(other) == first
    os.close(other)
    # Neither content nor times are entries.
    (hour / "5.ts").write_bytes(b"segment")
    os.utime(hour, ns=(1, 1))
    assert digest(hour_fd) == first


@pytest.mark.parametrize("at", [0, 50, 99])
def test_every_change_of_an_entry_changes_the_digest(at: int, hour: Path, hour_fd: int) -> None:
    for number in range(100):
        (hour / f"{number}.ts").touch()
    seen = {digest(hour_fd)}

    def assert_new() -> None:
        found = digest(hour_fd)
        assert found not in seen
        seen.add(found)

    (hour / f"{at}.ts").rename(hour / f"{at}.tS")
    assert_new()
    (hour / f"{at}.tombstone").touch()
    assert_new()
    (hour / f"{at}.tS").unlink()
    assert_new()
    (hour / f"{at}.tombstone").unlink()
    assert_new()
    (hour / f"{at}.tombstone").mkdir()
    assert_new()


def test_stale_padding_does_not_matter(hour: Path, hour_fd: int, tmp_path: Path) -> None:
    """The kernel leaves the bytes between a name's end and the next entry as it finds them."""
    for number in range(100):
        (hour / ("x" * (number % 8 + 1) + str(number))).touch()
    noise = tmp_path / "noise"
    noise.mkdir()
    generator = random.Random(1)
    for _ in range(500):
        (noise / "".join(generator.choices("abcdefgh", k=generator.randint(1, 255)))).touch()
    noise_fd = os.open(noise, os.O_RDONLY)
    listing = Listing()
    clean = digest(hour_fd)
    listing.read(noise_fd)
    assert listing.read(hour_fd) == clean
    assert sorted(listing.names()) == sorted([".", "..", *os.listdir(hour)])
    os.close(noise_fd)


def test_a_listing_keeps_names_only_when_asked_to(hour: Path, hour_fd: int) -> None:
    (hour / "a.ts").touch()
    listing = Listing()
    listing.read(hour_fd)
    assert "a.ts" in listing.names()
    listing.read(hour_fd, keep=False)
    assert list(listing.names()) == []


def test_what_cannot_be_listed_is_an_error(hour: Path) -> None:
    (hour / "file").touch()
    fd = os.open(hour / "file", os.O_RDONLY)
    with pytest.raises(NotADirectoryError):
        Listing().read(fd)
    os.close(fd)
    fd = os.open(hour, os.O_RDONLY)
    (hour / "file").unlink()
    hour.rmdir()
    with pytest.raises(FileNotFoundError):
        Listing().read(fd)
    os.close(fd)


def test_no_descriptor_is_kept_between_calls(tree: Tree, root: Path, mount: Mount) -> None:
    """One would keep the file system from being unmounted."""
    place_root = root / "mounted"
    place_root.mkdir()
    mount(place_root)
    hour = place_root.joinpath(*PARTS)
    hour.mkdir(parents=True)
    mounted = Tree(str(place_root))
    identity = mounted.adopt()
    assert place(mounted, hour)
    with mounted.open_believed(identity) as fd:
        assert list(mounted.places(fd)) == [PARTS[:2]]
        assert mounted.hours(fd, *PARTS[:2]) == [PARTS[2]]
    subprocess.run([need("umount"), str(place_root)], check=True)
    assert not mounted.believed(identity)


def test_a_tombstone_with_a_note_is_never_seen_without_it(
    tree: Tree, hour: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty file may be one of a mass that nobody meant."""
    written = os.write
    seen: list[list[str]] = []

    def spy(fd: int, data: bytes) -> int:
        seen.append(os.listdir(hour))
        return written(fd, data)

    monkeypatch.setattr(os, "write", spy)
    assert place(tree, hour, b"reason = 'x'\n")
    assert not place(tree, hour, b"another\n")
    assert seen == [[], [f"{STEM}.tombstone"]]
    found = (hour / f"{STEM}.tombstone").stat()
    assert (found.st_size, found.st_nlink) == (13, 1)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR])
def test_where_no_file_can_be_without_a_name_the_note_is_written_behind_it(
    tree: Tree, hour: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    opened = os.open

    def refusing(path: str, flags_: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags_ & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return opened(path, flags_, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refusing)
    with tree.open_root() as root_fd:
        assert tree.place(root_fd, marked(hour, "noted"), b"reason = 'x'\n")
        assert not tree.place(root_fd, marked(hour, "noted"), b"another\n")
    assert (hour / "noted.tombstone").read_bytes() == b"reason = 'x'\n"
