"""One command at a time changes peers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tombsync.cli.peer import lock
from tombsync.errors import FileRefused, OtherCommandRuns


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOCK", str(tmp_path / "lock"))
    monkeypatch.setattr(lock, "WAIT_S", 0.0)


def test_a_second_one_waits_for_so_long_and_then_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with lock.alone(dry_run=False):
        with pytest.raises(OtherCommandRuns, match="at work and holds"), lock.alone(dry_run=False):
            pytest.fail("two at once")
        assert "waiting for it to end" in capsys.readouterr().err
        with lock.alone(dry_run=True):
            pass
    with lock.alone(dry_run=False):
        pass
    assert capsys.readouterr().err == ""


def test_one_that_fails_lets_the_next_one_in() -> None:
    with pytest.raises(ZeroDivisionError), lock.alone(dry_run=False):
        raise ZeroDivisionError
    with lock.alone(dry_run=False):
        pass


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileRefused, match="symbolic links"), lock.alone(dry_run=False):
        pytest.fail("followed")
    assert not (tmp_path / "elsewhere").exists()
