"""New files of a command: whole, and all of them or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tombsync.cli.files import write_new
from tombsync.errors import FileRefused


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_all_are_there_for_their_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_new({str(tmp_path / "one.sig"): b"1", "one": b"2"})
    assert names(tmp_path) == {"one", "one.sig"}
    assert [(path.read_bytes(), path.stat().st_mode & 0o777) for path in sorted(tmp_path.iterdir())] == [
        (b"2", 0o600),
        (b"1", 0o600),
    ]


@pytest.mark.parametrize("taken", ["file", "link"])
def test_one_that_is_there_keeps_all_of_them_out_and_stays(tmp_path: Path, taken: str) -> None:
    last = tmp_path / "last"
    if taken == "file":
        last.write_bytes(b"mine")
    else:
        last.symlink_to("nowhere")
    with pytest.raises(FileRefused, match="last: File exists"):
        write_new({str(tmp_path / "first"): b"1", str(last): b"2"})
    assert names(tmp_path) == {"last"}
    assert last.is_symlink() or last.read_bytes() == b"mine"


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match="No such file"):
        write_new({str(tmp_path / "first"): b"1", str(tmp_path / "none" / "last"): b"2"})
    assert names(tmp_path) == set()
