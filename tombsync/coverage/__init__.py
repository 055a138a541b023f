"""Coverage: how much of each hour can be seen, what only a hidden segment would have shown, and what is missing.

`rules` decides and touches nothing, `worker` keeps the index's figures up to date, `view` answers of them over HTTP,
`survey` makes them for a command, with the agent up or down, and `map` draws them.
"""

from tombsync.coverage.map import MOST_MAP_HOURS, Map, draw, map_range
from tombsync.coverage.rows import Totals, figures, hour_document, totals_of
from tombsync.coverage.rules import Coverage
from tombsync.coverage.survey import Survey
from tombsync.coverage.view import CoverageView
from tombsync.coverage.worker import CoverageWorker

__all__ = [
    "MOST_MAP_HOURS",
    "Coverage",
    "CoverageView",
    "CoverageWorker",
    "Map",
    "Survey",
    "Totals",
    "draw",
    "figures",
    "hour_document",
    "map_range",
    "totals_of",
]
