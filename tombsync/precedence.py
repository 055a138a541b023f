"""Lets short work that somebody waits for overtake the long work of other threads.

The interpreter runs one thread at a time and hands over to whichever waits for it: a hide or an answer over HTTP, which
asks for it dozens of times, would each time wait for every thread of a catch-up. So the short work claims precedence,
and the long one stands back between two pieces. There is one interpreter in a process, hence one precedence.

Measured by benchmarks/hide.py and benchmarks/scrape.py beside a catch-up to three peers.
"""

from __future__ import annotations

import threading
import time

HIDE = "hide"  # who claims for a tombstone, from its event to the commit
CLAIM_S = 0.1  # a claim that nobody releases ends by itself
GIVE_WAY_S = 0.05  # then long work does one more piece: a stream of claims slows it and does not stop it
PIECE_S = 0.002  # so long is a piece, however often it is asked whether to give way

_changed = threading.Condition()
_claims: dict[object, float] = {}  # who -> until when (monotonic); changed under `_changed`
_here = threading.local()  # `went_on_at`: when this thread last went on after it had stood back (monotonic)


def claim(who: object) -> None:
    """Let long work stand back from now on, until `release`, for CLAIM_S at most; again by the same: from now."""
    with _changed:
        _claims[who] = time.monotonic() + CLAIM_S


def release(who: object) -> None:
    """End a claim; nothing where there is none."""
    if who in _claims:
        with _changed:
            _claims.pop(who, None)
            _changed.notify_all()


def give_way() -> None:
    """Between two steps of long work: wait while somebody has precedence, for GIVE_WAY_S at most.

    It costs nothing where nobody has, so a step may be as small as one reply of a peer.
    """
    if _claims:
        now = time.monotonic()
        if now - getattr(_here, "went_on_at", 0.0) >= PIECE_S:
            _wait_until(now + GIVE_WAY_S)
            _here.went_on_at = time.monotonic()


def _wait_until(deadline: float) -> None:
    with _changed:
        while _claims:
            now = time.monotonic()
            for who in [who for who, until in _claims.items() if until <= now]:
                del _claims[who]
            if now >= deadline:
                return
            _changed.wait(min(deadline, max(_claims.values(), default=now)) - now)
