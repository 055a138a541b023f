"""Takedown by time: which files carry a moment, what hiding them costs, and which instants have several versions.

`look` reads the directories of the hours concerned, `find`, `cost` and `versions` decide, purely; who marks is the
command line. What counts is the tree: no index is asked for what stands in it.
"""

from tombsync.takedown.cost import Cost, Visible, cost_of, instead_of
from tombsync.takedown.find import CHAT, Asked, Files, Found, Match, Why, find
from tombsync.takedown.look import Looked, Sizes, look, look_into, qualities, visible
from tombsync.takedown.versions import Instant, versions

__all__ = [
    "CHAT",
    "Asked",
    "Cost",
    "Files",
    "Found",
    "Instant",
    "Looked",
    "Match",
    "Sizes",
    "Visible",
    "Why",
    "cost_of",
    "find",
    "instead_of",
    "look",
    "look_into",
    "qualities",
    "versions",
    "visible",
]
