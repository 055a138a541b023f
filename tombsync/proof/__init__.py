"""Asks every peer now, and says what its answers are worth. Nothing in here creates or removes anything, anywhere."""

from tombsync.proof.ask import Heard, Question, ask
from tombsync.proof.judge import Stand, blocked_by, held_elsewhere, stand

__all__ = ["Heard", "Question", "Stand", "ask", "blocked_by", "held_elsewhere", "stand"]
