"""A journal that a test can read."""

from __future__ import annotations

import itertools

from tests.support.waiting import wait_for
from tombsync.audit import QUEUE_RECORDS, Audit, Event, Record


class Journal:
    """Keeps every record of an audit. The audit's thread appends, the test reads."""

    def __init__(self, node: str = "node-a", capacity: int = QUEUE_RECORDS) -> None:
        """`capacity`: records that may wait for it."""
        self._records: list[dict[str, str]] = []
        self._marks = itertools.count()
        self.audit = Audit(node, self, capacity=capacity)
        self.audit.start()

    def send(self, record: Record) -> None:
        """Where the audit writes."""
        self._records.append(record.fields)

    def close(self) -> None:
        """Called by the audit; there is nothing to close."""

    def records(self, event: Event | None = None) -> list[dict[str, str]]:
        """What was recorded until now, of one event or of all."""
        mark = f"mark {next(self._marks)}"
        self.audit.record(Event.STOPPING, mark)
        wait_for(lambda: self._records and self._records[-1]["MESSAGE"] == mark, "the journal to be written")
        return [
            fields
            for fields in self._records
            if not fields["MESSAGE"].startswith("mark ") and (event is None or fields["MESSAGE_ID"] == event.message_id)
        ]

    def so_far(self, event: Event) -> list[dict[str, str]]:
        """What was written of one event. It waits for nothing that is on its way, so others may record meanwhile."""
        return [fields for fields in list(self._records) if fields["MESSAGE_ID"] == event.message_id]

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.audit.close() == 0
