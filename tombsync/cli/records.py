"""The audit of commands that change what cannot be changed back."""

from __future__ import annotations

from typing import Any

from tombsync.audit import Audit, Event, open_audit
from tombsync.cli.common import warn
from tombsync.config import Settings

_RECORDS = 5_000  # of the audit at once, a quarter of its queue: a purge deletes faster than a journal takes them
_RECORDS_TIMEOUT_S = 30.0  # for these to be taken; journald needs a tenth of a second


class Records:
    """To journald or else to stderr: what a person deletes or takes back must leave a trace everywhere.

    It waits for the journal now and then, so that none of very many records is dropped.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._audit: Audit | None = None
        self._count = 0

    def add(self, event: Event, message: str, **fields: Any) -> None:
        """Record one thing; may wait for the journal."""
        if self._count == _RECORDS:
            self.close()
        if self._audit is None:
            self._audit = open_audit(self._settings.node, journal=self._settings.journal)
        self._count += 1
        self._audit.record(event, message, source="command", **fields)

    def close(self) -> None:
        """Wait until all is written, and say so where it could not be."""
        audit, self._audit, self._count = self._audit, None, 0
        if audit is not None:
            audit.close(_RECORDS_TIMEOUT_S)
            if audit.dropped:
                warn(f"the journal did not take {audit.dropped} records of what was done")
