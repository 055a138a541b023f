"""The local index: a rebuildable cache of the tree in one SQLite file, and the deliveries that it remembers.

Exactly one thread writes (`Writer`), each reading thread has a `Reader` of its own, and checkpoints are made beside
both (`Checkpointer`). sqlite3's names do not leave this package.
"""

from tombsync.index.batches import (
    DeliveriesHeld,
    DeliveryOutcomes,
    Facts,
    HoldsEnded,
    HoldsEndedUpTo,
    HourGone,
    HourListed,
    MarkersForgotten,
    MarkersPlaced,
    MarksTakenBack,
    Outcome,
    PeerMarkerSeen,
    PeerReport,
    PeerVerified,
    PlaceMount,
    SegmentRows,
)
from tombsync.index.checkpoint import Checkpointer
from tombsync.index.coverage import CoverageRow, HourCovered, Made
from tombsync.index.facts import peer_facts, tombstone_facts
from tombsync.index.files import SIDE_FILES, AgentLock, agent_pid, damage_noted, index_path, note_damage, set_aside
from tombsync.index.glance import DeliveryGlance, PeerGlance
from tombsync.index.hiding import Hidden
from tombsync.index.hours import HourRow, mistakes_key
from tombsync.index.peer_rows import PeerAdded, PeerForgotten
from tombsync.index.proofs import DeliveryRow, Unconfirmed
from tombsync.index.reader import Due, MarkerRow, PeerRow, Reader
from tombsync.index.writer import Writer

__all__ = [
    "SIDE_FILES",
    "AgentLock",
    "Checkpointer",
    "CoverageRow",
    "DeliveriesHeld",
    "DeliveryGlance",
    "DeliveryOutcomes",
    "DeliveryRow",
    "Due",
    "Facts",
    "Hidden",
    "HoldsEnded",
    "HoldsEndedUpTo",
    "HourCovered",
    "HourGone",
    "HourListed",
    "HourRow",
    "Made",
    "MarkerRow",
    "MarkersForgotten",
    "MarkersPlaced",
    "MarksTakenBack",
    "Outcome",
    "PeerAdded",
    "PeerForgotten",
    "PeerGlance",
    "PeerMarkerSeen",
    "PeerReport",
    "PeerRow",
    "PeerVerified",
    "PlaceMount",
    "Reader",
    "SegmentRows",
    "Unconfirmed",
    "Writer",
    "agent_pid",
    "damage_noted",
    "index_path",
    "mistakes_key",
    "note_damage",
    "peer_facts",
    "set_aside",
    "tombstone_facts",
]
