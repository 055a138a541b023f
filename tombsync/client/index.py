"""The index as whoever only reads finds it: not there yet, removed, exchanged, with the agent up or down."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from tombsync.errors import IndexDamaged, IndexMissing, IndexTooOld, StateRefused
from tombsync.index import Reader, index_path

Answer = TypeVar("Answer")

_TRIES = 5  # to ask while the index is exchanged: each needs an agent that starts or ends just then


class OpenIndex:
    """The index of a state directory, opened when it is asked and again when it is another one. One thread's.

    Where an agent has ended cleanly, an account that may only read opens the file as one that does not change: from
    the moment at which another agent works on it, such a connection would read what is being written. So the files are
    looked at before and after each question.
    """

    def __init__(self, state_dir: str) -> None:
        self._state_dir = state_dir
        self._path = index_path(state_dir)
        self._reader: Reader | None = None
        self._files: tuple[int, int, bool] | None = None  # what `_look` saw when `_reader` was opened

    def ask(self, question: Callable[[Reader | None], Answer]) -> Answer:
        """The answer to a short question; it is given None where there is no index.

        Raises IndexDamaged, IndexTooNew, IndexTooOld, StateRefused, and what the question raises.
        """
        for _ in range(_TRIES - 1):
            seen = self._look()
            try:
                answer = question(self._current(seen))
            except (IndexDamaged, StateRefused):
                if self._look() == seen:
                    raise
            else:
                if self._look() == seen:
                    return answer
        return question(self._current(self._look()))

    def _look(self) -> tuple[int, int, bool] | None:
        """Device and inode of the index and whether it has a log beside it; None where there is no index."""
        try:
            found = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise StateRefused(
                self._state_dir,
                os.strerror(exc.errno or 0),
                "run this as the agent's account, or as one of its group",
            ) from exc
        return found.st_dev, found.st_ino, os.path.exists(f"{self._path}-wal")

    def _current(self, seen: tuple[int, int, bool] | None) -> Reader | None:
        if self._reader is None or self._files != seen:
            self.close()
            if seen is not None:
                try:
                    self._reader = Reader(self._path)
                except IndexTooOld:  # it knows marks that cannot be read
                    raise
                except IndexMissing:  # just being made
                    return None
                # Opening may have made the log itself: then the next question opens it once more.
                self._files = seen
        return self._reader

    def close(self) -> None:
        """Close what is open; the next question opens it again."""
        if self._reader is not None:
            self._reader.close()
        self._reader = self._files = None
