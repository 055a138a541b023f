"""Which late segments were told already: a file in the state directory, so that a restart does not tell them again."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable

log = logging.getLogger(__name__)

_NAME = "late-told"
_MOST_BYTES = 64 << 20  # some 400,000 segments: more than that is read as nothing, and told again


class Told:
    """Belongs to one thread. One JSON line each, the takedown's ID and the file's path; only ever appended to while
    the agent runs. A file that cannot be written costs a second report after the next restart, and nothing else."""

    def __init__(self, state_dir: str) -> None:
        self._path = os.path.join(state_dir, _NAME)
        self._known: dict[str, set[str]] = {}  # takedown -> paths
        self._read()

    def _read(self) -> None:
        try:
            with open(self._path, "rb") as file:
                text = file.read(_MOST_BYTES)
        except FileNotFoundError:
            return
        except OSError as exc:
            log.warning("%s: %s: late segments may be told a second time", self._path, exc.strerror)
            return
        for line in text.splitlines():
            try:
                takedown, path = json.loads(line)
            except (ValueError, TypeError, RecursionError):  # cut short by a kill
                continue
            if isinstance(takedown, str) and isinstance(path, str):
                self._known.setdefault(takedown, set()).add(path)

    def __contains__(self, entry: tuple[str, str]) -> bool:
        """Whether (takedown, path) was told."""
        return entry[1] in self._known.get(entry[0], ())

    def add(self, entries: Iterable[tuple[str, str]]) -> None:
        """Remember (takedown, path), each."""
        text = b"\n"  # what an earlier run left unfinished ends here
        for takedown, path in entries:
            self._known.setdefault(takedown, set()).add(path)
            text += json.dumps([takedown, path]).encode() + b"\n"
        try:
            with open(self._path, "ab") as file:
                file.write(text)
        except OSError as exc:
            log.warning("%s: %s: late segments may be told a second time", self._path, exc.strerror)

    def keep_only(self, running: Iterable[str]) -> None:
        """Forget takedowns that have ended; the file is made anew where there was something of one."""
        ended = self._known.keys() - set(running)
        if not ended:
            return
        for takedown in ended:
            del self._known[takedown]
        new = self._path + ".new"
        try:
            with open(new, "wb") as file:
                for takedown, paths in self._known.items():
                    file.writelines(json.dumps([takedown, path]).encode() + b"\n" for path in sorted(paths))
            os.replace(new, self._path)
        except OSError as exc:
            log.warning("%s: %s: late segments may be told a second time", self._path, exc.strerror)
