"""Waiting for a condition with a bound, instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(
    condition: Callable[[], T], what: str = "the condition", timeout_s: float = 20.0, *, pause_s: float = 0.005
) -> T:
    """Look until `condition()` is true and return what it gave; fail the test after `timeout_s`.

    `pause_s`: between two looks.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout_s:.0f} s")
        time.sleep(pause_s)
