"""Segment trees for tests: what an archive would list of them, large ones, and ones on a file system of their own."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import need
from tests.support.waiting import wait_for
from tombsync.names import Hour, Marked, hour_number, hour_text

_LINKS_PER_FILE = 60_000  # ext4 allows 65,000
RELEASED_WITHIN_S = 50.0  # a test beside this one may have a mount namespace meanwhile, and lets go of it in some 10 s


def need_root() -> None:
    """Skip the test where it is not run by root; in CI it fails instead."""
    if os.geteuid() != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("this test needs root, and CI must not skip a test", pytrace=False)
        pytest.skip("needs root: it mounts")


def need_user_namespace() -> list[str]:
    """A command that runs another as root of a new user namespace. Skips the test where there is none; fails in CI."""
    command = [need("unshare"), "--user", "--map-root-user"]
    done = subprocess.run([*command, "true"], capture_output=True, text=True)
    if done.returncode != 0:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no user namespaces, and CI must not skip a test: {done.stderr}", pytrace=False)
        pytest.skip(f"no user namespaces here: {done.stderr}")
    return command


def hour_of(directory: Path) -> Hour:
    """The hour that a directory ROOT/CHANNEL/QUALITY/HOUR stands for."""
    channel, quality, text = directory.parts[-3:]
    return Hour(channel, quality, hour_number(text))


def marked(directory: Path, stem: str) -> Marked:
    """A stem in an hour directory, of whatever name."""
    return Marked(hour_of(directory), stem)


def listed(directory: Path, *, tombstones: bool = False) -> list[str]:
    """What the archive's own listing service says of an hour directory, sorted; [] where it is not there."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    hidden = {name.removesuffix(".tombstone") for name in names if name.endswith(".tombstone")}
    return sorted(
        name
        for name in names
        if name[0] != "."
        and (
            (name.endswith((".ts", ".json")) and name.rpartition(".")[0] not in hidden)
            or (tombstones and name.endswith(".tombstone"))
        )
    )


def make_large_tree(root: Path, *, files: int, hours: int, place: str = "desertbus/source") -> None:
    """A tree of many hours and files, all of them hard links to a few, so that it costs little more than the names."""
    last = hour_number("2019-11-17T00")
    per_hour = files // hours
    source, links = Path(), _LINKS_PER_FILE
    for number in range(hours):
        directory = root / place / hour_text(last - number)
        directory.mkdir(parents=True)
        for second in range(per_hour):
            path = directory / f"{second // 60:02d}:{second % 60:02d}.{number:06d}-2.0-full-{'A' * 43}.ts"
            if links == _LINKS_PER_FILE:
                path.write_bytes(b"segment")
                source, links = path, 1
            else:
                os.link(source, path)
                links += 1


class Disk:
    """An ext4 file system in a file, to be mounted at a directory and taken away again with its content. Needs root."""

    def __init__(self, image: Path, *, megabytes: int = 32) -> None:
        need_root()
        self.image = image
        self._mounted: list[Path] = []
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        subprocess.run([need("mkfs.ext4"), "-q", "-F", str(image)], check=True, capture_output=True)

    def mount(self, at: Path) -> None:
        """Mount it."""
        subprocess.run([need("mount"), "-o", "loop", str(self.image), str(at)], check=True, capture_output=True)
        self._mounted.append(at)

    def unmount(self) -> subprocess.CompletedProcess[str]:
        """Unmount it, as an operator would; the caller looks at what that said."""
        done = subprocess.run([need("umount"), str(self._mounted[-1])], capture_output=True, text=True)
        if done.returncode == 0:
            self._mounted.pop()
        return done

    def take_away(self) -> None:
        """Unmount it, and wait until it is gone: only then do its watches go, and can its image be changed."""
        done = self.unmount()
        assert done.returncode == 0, done.stderr
        wait_for(self.is_released, "the kernel to let go of a disk", RELEASED_WITHIN_S)

    def is_released(self) -> bool:
        """Whether the kernel has let go of the image: a mount namespace made meanwhile holds a copy of each mount."""
        command = [need("losetup"), "--associated", str(self.image)]
        return not subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def clean_up(self) -> None:
        """Take it away, used or not."""
        while self._mounted:
            subprocess.run([need("umount"), "--lazy", str(self._mounted.pop())], check=False, capture_output=True)


@contextlib.contextmanager
def disk(image: Path, *, megabytes: int = 32) -> Iterator[Disk]:
    """A Disk for the time of a `with` block."""
    made = Disk(image, megabytes=megabytes)
    try:
        yield made
    finally:
        made.clean_up()
