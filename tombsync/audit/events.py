"""The catalog of what is recorded: a MESSAGE_ID, a priority and a meaning for each event."""

from __future__ import annotations

from enum import Enum
from functools import cached_property

# The syslog priorities in use.
CRITICAL = 2
ERROR = 3
WARNING = 4
NOTICE = 5
INFO = 6


class Event(Enum):
    """What is recorded: a MESSAGE_ID that never changes, a priority, and one line of what it means."""

    MARKED = "58f890afd7d64394b2c1e1508af55c48", NOTICE, "a person marked a segment by command"
    HIDDEN = "75d8e9cb2f4242afabd09b4c45a3e495", NOTICE, "a segment is hidden from every listing of this node"
    DELIVERED = "4fd3bca4a4c84ceead09b4c026ebc0d3", INFO, "a peer confirmed that it holds the tombstone"
    UNDELIVERED = "42ceefcc51a647909539d8061e30d765", WARNING, "a peer said why it does not hold the tombstone"
    RESTORED = "aece7d9e76244ec5812abd0f39176ce8", WARNING, "a vanished tombstone was put back into the tree"
    REJECTED = "cf4bc8e960924001a36126192072b213", WARNING, "a name from outside was refused and changed nothing"
    INBOX_HELD = (
        "1e61a6d39dde4441b745c0240c205065",
        WARNING,
        "a peer is over its quota; the rest waits in its inbox",
    )
    INBOX_MISSING = (
        "1e31f2d32d1148d6a3d040854519302b",
        ERROR,
        "a peer's inbox cannot be used, or files stay in it that were taken",
    )
    INBOX_RETURNED = "b35d2173c9ac4303a2a9eaf926cd2cfa", NOTICE, "a peer's inbox is as it should be again"
    VIEW_STALE = (
        "daeac7a8fbb84caaa1f6b721360fcb20",
        ERROR,
        "peers see another tree than ours: inboxes are left alone",
    )
    VIEW_RETURNED = "b6f6ca9050fa4d4a87ab68dbf9ff37ae", NOTICE, "the peers see the tree of this node again"
    MISTAKEN_NAME = "072c8c889977402cb7520527566fb2bc", WARNING, "a file that looks like a tombstone hides nothing"
    NOT_REGULAR = "0d821c96b00a449bb2e748a10c97d243", WARNING, "a tombstone that is no regular file hides only here"
    MASS_MARK_HELD = (
        "1f6394876222409d9effa7e9ec20fcfe",
        WARNING,
        "very many marks at once: hidden here, peers are not told",
    )
    RELEASED = "4faa58f2d9884e24ab584ee333419221", NOTICE, "a person let held marks go to the peers"
    UNMARKED = "5bd3630e3aaa41eb9b6f664aea0bf9d8", NOTICE, "a person took a mark back, which no other node had"
    UNMARK_FAILED = (
        "68917f79fceb4badadff8e3356d1190f",
        WARNING,
        "a mark was not taken back after all: it goes on hiding",
    )
    UNMARK_OVERTAKEN = (
        "d3f52a359772412d9ef3168fb4029f4d",
        WARNING,
        "a mark that was taken back is at a peer all the same: it will come back",
    )
    HOLD_ENDED = (
        "dd05216b428948218a89c44613355d25",
        NOTICE,
        "a peer has what was held here, so it is no mistake of ours",
    )
    PEER_UP = "33442c5ab22546eeb02c7a207580875e", NOTICE, "a peer can be reached again"
    PEER_DOWN = "ff0600b5790d4760b2eca0018043cc12", WARNING, "a peer cannot be reached; its deliveries wait"
    HOST_KEY_CHANGED = "0bc701e426b54ce9ab91eb734becdcbe", CRITICAL, "a peer shows another host key: it gets nothing"
    CANARY_LOST = (
        "1ccedc51de744252914babb2a3212aff",
        WARNING,
        "a peer answers, and what is delivered would not arrive",
    )
    CANARY_RETURNED = "289113acb4284fd9a29c35ece6579f72", NOTICE, "what is delivered to a peer arrives again"
    PEER_ADDED = "ea2ba4d9e57c44878d3a72af96739090", NOTICE, "a peer was added; every tombstone is due for it"
    PEER_FORGOTTEN = "c1cd9a92acba4b0ab33d7497a3f98466", WARNING, "a peer was removed; what it confirmed is forgotten"
    LINK_NOT_FOLLOWED = "3b70b9bedaf1444da3b9ab47cb3f720f", WARNING, "a link in the tree is not followed"
    OVERFLOW = "d353c3b41be3463dad8aa02c2185ac60", WARNING, "the kernel dropped file events; a rescan repairs it"
    WATCH_LIMIT = (
        "920249ef95754c2d82459527a5d6e78f",
        ERROR,
        "no more watches are allowed; looking now and then finds the rest",
    )
    NETWORK_FILESYSTEM = "c78b434f8fd945c8a423ead4aaf9677d", WARNING, "remote writes to the tree raise no events here"
    ROOT_LOST = "dfe2b7c750c2428bab97ad6c471c6874", CRITICAL, "the tree is gone or another one; nothing is changed"
    ROOT_RETURNED = "041d55fd658a4dcbb5f280bd36b7464b", NOTICE, "the tree is back; the agent restarts to take it up"
    ROOT_ADOPTED = "f0e2b755b31d4ca185e1ea0a987ad2df", NOTICE, "the tree was taken as the one of this node"
    HOUR_GONE = "70a2ab60b7ad429b8c5423abd1323710", NOTICE, "an hour directory is gone; its tombstones are forgotten"
    PLACE_LOST = "5f1c3a85477845719db6ae543a1b8aca", WARNING, "a channel or quality is gone; its tombstones wait"
    INDEX_SET_ASIDE = "fed767c155d54b928d1a407561661bb7", ERROR, "a damaged index was moved away and is rebuilt"
    RESCAN_COMPLETED = "629446d1be0048e0b894b0e72e6049ec", INFO, "a rescan compared the tree with the index"
    STATE_REFUSED = "95dc343aa4a546038c273ebcad766e37", ERROR, "the index cannot be written; it is tried again"
    TREE_REFUSED = "70f2b1066d4649c1a6ee19d18673c0b9", ERROR, "the tree does not let a tombstone be created"
    PURGED = "561832db4a2440149a2cfe67742c7124", NOTICE, "a person's purge deleted a data file that is hidden"
    PURGE_EXCEPTED = "178bad4808da401f9b7d810dfa46a636", WARNING, "a person left a peer out of a purge"
    DATA_RETURNED = "398c63b62f7645c3ae107108f9dbdf25", WARNING, "purged data came back beside its tombstone"
    TAKEDOWN_BEGUN = "4c40419d135a4ca99d2107c81f416d80", NOTICE, "a person took down a span of time"
    TAKEDOWN_ENDED = "899245c349da4e56affdbf5b2d4c1821", NOTICE, "a person ended a takedown: its tombstones stay"
    TAKEDOWN_UNREADABLE = (
        "2a096f30b9f44698b8302bc6076798d2",
        ERROR,
        "the record of a takedown cannot be followed: what arrives in its span is not told",
    )
    TWIN_OF_HIDDEN = (
        "a367cfd9090142a7bbb300384f2ba3f9",
        WARNING,
        "a segment arrived within a takedown that was made before",
    )
    STARTED = "73c9a2236b4144d9aea7771e0364d1ec", NOTICE, "the agent started"
    READY = "01847977eebd4dd19080c15b90f75c01", NOTICE, "the first rescan is done; listings are complete"
    STOPPING = "15f4ab97d8ce46d697d5f83834b24955", NOTICE, "the agent was asked to stop"
    RELOADED = "d8b81079b12943a8aa9123ce4522220f", NOTICE, "changed settings were taken up without a restart"
    RELOAD_REFUSED = (
        "f4fa8f45a0cf4272a5a950cc3a857ae4",
        ERROR,
        "changed settings were not taken up; those of before go on",
    )
    WORKER_DIED = "38bfd0cf63bf4fab899a67e14c718d35", CRITICAL, "a part of the agent failed; the process ends"
    CONFINEMENT = "850fc67a66ac47b7b35522dfda7f2f34", NOTICE, "which rights the agent gave up at its start"
    RECORDS_LOST = "1557cf5d8dce4c6a8dfb77fe61cc2ead", ERROR, "the journal could not take all audit records"

    def __init__(self, message_id: str, priority: int, meaning: str) -> None:
        self.message_id = message_id
        self.priority = priority
        self.priority_text = str(priority)
        self.meaning = meaning

    @cached_property
    def word(self) -> str:
        """The value of TOMBSYNC_EVENT."""
        return self.name.lower().replace("_", "-")
