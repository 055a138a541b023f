"""The journal: one record per change, so that an auditor can ask who hid what, when, and when each node had it."""

from tombsync.audit.events import CRITICAL, ERROR, INFO, NOTICE, WARNING, Event
from tombsync.audit.journal import (
    CLOSE_TIMEOUT_S,
    IDENTIFIER,
    JOURNAL_SOCKET,
    LINGER_S,
    QUEUE_RECORDS,
    RETRY_FIRST_S,
    RETRY_MAX_S,
    SEND_TIMEOUT_S,
    Audit,
    JournalSink,
    Record,
    Sink,
    StderrSink,
    journald_is_there,
    open_audit,
)
from tombsync.audit.story import STDIN, Story, read_story, written_s

__all__ = [
    "CLOSE_TIMEOUT_S",
    "CRITICAL",
    "ERROR",
    "IDENTIFIER",
    "INFO",
    "JOURNAL_SOCKET",
    "LINGER_S",
    "NOTICE",
    "QUEUE_RECORDS",
    "RETRY_FIRST_S",
    "RETRY_MAX_S",
    "SEND_TIMEOUT_S",
    "STDIN",
    "WARNING",
    "Audit",
    "Event",
    "JournalSink",
    "Record",
    "Sink",
    "StderrSink",
    "Story",
    "journald_is_there",
    "open_audit",
    "read_story",
    "written_s",
]
