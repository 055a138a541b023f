"""The agent as a whole: `Agent.run` reads from top to bottom; the commands share its parts."""

from tombsync.daemon.agent import Agent
from tombsync.daemon.asking import holding, refused_because, reloading, request_release, request_resume, taking_back
from tombsync.daemon.once import rescan_once
from tombsync.daemon.parts import believe_root, open_index, request_adoption, target_of, target_text

__all__ = [
    "Agent",
    "believe_root",
    "holding",
    "open_index",
    "refused_because",
    "reloading",
    "request_adoption",
    "request_release",
    "request_resume",
    "rescan_once",
    "taking_back",
    "target_of",
    "target_text",
]
