"""Asks every peer now, and says what its answers are worth. Nothing in here creates or removes anything, anywhere."""

from tombsync.proof.ask import Heard, Question, ask
from tombsync.proof.facts import markers_of_stem, segment_facts, standing_here, stands_of
from tombsync.proof.judge import Stand, blocked_by, held_elsewhere, stand

__all__ = [
    "Heard",
    "Question",
    "Stand",
    "ask",
    "blocked_by",
    "held_elsewhere",
    "markers_of_stem",
    "segment_facts",
    "stand",
    "standing_here",
    "stands_of",
]
