"""What the status page asks of the agent's parts."""

from __future__ import annotations

from flask import Blueprint

from tombsync import web
from tombsync.daemon.crew import STALLED_AFTER_S
from tombsync.daemon.state import describe
from tombsync.guard import RootGuard
from tombsync.metrics import Sources
from tombsync.rescan import Rescan
from tombsync.takedown.worker import LateSegments


def page_of(
    node: str,
    root: str,
    sources: Sources,
    guard: RootGuard,
    rescan: Rescan,
    late: LateSegments,
    ask: web.Ask,
    turns: web.Turns,
) -> Blueprint:
    """The status page of this agent."""
    agent = web.Agent(
        node=node,
        root=root,
        sources=sources,
        ready=rescan.first_done.is_set,
        doing=lambda: describe(guard, rescan),
        stale_after_s=STALLED_AFTER_S,
        ask=ask,
        takedowns=lambda: late.running,
    )
    return web.status_page(agent, turns)
