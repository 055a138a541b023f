"""Short work overtakes long work, and no claim holds anybody for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tombsync import precedence


@pytest.fixture(autouse=True)
def nobody_claims() -> Iterator[None]:
    yield
    precedence.release("one")
    precedence.release("two")


def in_thread() -> tuple[threading.Thread, threading.Event]:
    """A thread that gives way, and an event that is set once it went on."""
    went_on = threading.Event()

    def run() -> None:
        precedence.give_way()
        went_on.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, went_on


def test_without_a_claim_nobody_waits() -> None:
    thread, went_on = in_thread()
    thread.join(10)
    assert went_on.is_set()


def test_long_work_waits_until_the_last_claim_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precedence, "CLAIM_S", 60.0)
    monkeypatch.setattr(precedence, "GIVE_WAY_S", 60.0)
    precedence.claim("one")
    precedence.claim("two")
    thread, went_on = in_thread()
    precedence.release("one")
    precedence.release("one")
    precedence.release("nobody")
    assert not went_on.wait(0.05)
    precedence.release("two")
    thread.join(10)
    assert went_on.is_set()


def test_a_claim_that_is_never_released_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precedence, "CLAIM_S", 0.02)
    monkeypatch.setattr(precedence, "GIVE_WAY_S", 60.0)
    precedence.claim("one")
    thread, went_on = in_thread()
    thread.join(10)
    assert went_on.is_set()
    begun = time.monotonic()
    precedence.give_way()  # it is forgotten: this costs nothing any more
    assert time.monotonic() - begun < 10


def test_a_stream_of_claims_does_not_stop_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precedence, "CLAIM_S", 60.0)
    monkeypatch.setattr(precedence, "GIVE_WAY_S", 0.02)
    precedence.claim("one")
    for _ in range(3):
        thread, went_on = in_thread()
        thread.join(10)
        assert went_on.is_set()


def test_whoever_just_stood_back_works_for_a_while_however_small_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precedence, "CLAIM_S", 60.0)
    monkeypatch.setattr(precedence, "GIVE_WAY_S", 0.0)
    stood_back: list[float] = []
    monkeypatch.setattr(precedence, "_wait_until", stood_back.append)
    monkeypatch.setattr(precedence, "PIECE_S", 60.0)
    precedence.claim("one")

    def steps() -> None:
        for _ in range(1000):
            precedence.give_way()

    for _ in range(2):  # each thread for itself
        thread = threading.Thread(target=steps)
        thread.start()
        thread.join(10)
    assert len(stood_back) == 2
