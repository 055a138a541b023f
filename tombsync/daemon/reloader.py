"""Takes up changed settings while the agent runs, or refuses them as a whole."""

from __future__ import annotations

from collections.abc import Callable

from tombsync import errors
from tombsync.audit import Audit, Event
from tombsync.config import Settings
from tombsync.daemon.parts import boxes, full_interval_s
from tombsync.daemon.pushers import Pushers
from tombsync.daemon.reload import obstacles, peer_changes
from tombsync.inbox import Inbox
from tombsync.plan import Breaker
from tombsync.rescan import Rescan
from tombsync.tree import Tree


class Reloader:
    """Belongs to the supervising thread. `settings` are those that count."""

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings],
        *,
        tree: Tree,
        pushers: Pushers,
        rescan: Rescan,
        breaker: Breaker,
        inbox: Inbox | None,
        audit: Audit,
    ) -> None:
        """`load`: reads the settings again; raises BadSettings."""
        self.settings = settings
        self._load = load
        self._tree = tree
        self._pushers = pushers
        self._rescan = rescan
        self._breaker = breaker
        self._inbox = inbox
        self._audit = audit

    def reload(self) -> str:
        """Begin to take up what the settings say now; why they are not taken, "" where they are.

        Peers are exchanged in later turns.
        """
        try:
            new = self._load()
        except errors.BadSettings as exc:
            return self._refuse("; ".join(map(str, exc.problems)), "")
        if keys := obstacles(self.settings, new, receives=self._inbox is not None):
            named = ", ".join(keys)
            return self._refuse(f"a change of {named} takes a restart of the agent (systemctl restart tombsync)", named)
        old, self.settings = self.settings, new
        changes = peer_changes(old, new)
        self._pushers.change(changes)
        if new.rescan != old.rescan:
            self._rescan.change_intervals(new.rescan.interval_s, full_interval_s(new, self._tree, self._audit))
        self._breaker.most = new.breaker.most_per_minute
        if self._inbox is not None and (old.senders, old.inbox) != (new.senders, new.inbox):
            self._inbox.change(boxes(new))
        named = ", ".join(change.name for change in changes) or "none"
        self._audit.record(Event.RELOADED, f"the settings were read again; peers exchanged: {named}", exchanged=named)
        return ""

    def _refuse(self, reason: str, keys: str) -> str:
        text = f"the settings were not taken, and those of before go on: {reason}"
        self._audit.record(Event.RELOAD_REFUSED, text, keys=keys)
        return reason
