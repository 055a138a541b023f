"""`tombsync mark PATH…`: segments that are named."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from tombsync import errors
from tombsync.cli.common import locate_segment, say_json, tell_error, warn
from tombsync.cli.mark.hiding import (
    ABOUT_CHAT,
    Hiding,
    Result,
    confirm,
    results_json,
    say_result,
    warn_without_agent,
)
from tombsync.cli.mark.wait import Patience, await_peers, exit_code_of
from tombsync.config import Settings
from tombsync.names import Kind, Marked, classify, mistake_message, parse_chat_stem, parse_stem
from tombsync.tree import open_below


def mark_paths(
    settings: Settings,
    paths: Sequence[str],
    *,
    reason: str,
    even_if_absent: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    patience: Patience,
) -> int:
    """Mark what is named; the exit code."""
    if len(paths) > settings.breaker.most_per_minute and not (yes or dry_run):
        confirm(len(paths), ask=not as_json)
    results = []
    everywhere = True
    with Hiding(settings, reason=reason, dry_run=dry_run) as hiding:
        for path in paths:
            result = Result(path)
            try:
                _mark(result, hiding, even_if_absent=even_if_absent)
            except errors.TombsyncError as exc:
                result.outcome, result.error = "failed", str(exc)
                tell_error(exc)
            else:
                if not as_json:
                    say_result(result)
            results.append(result)
        hiding.let_go(results)
        failed = sum(result.outcome == "failed" for result in results)
        if not dry_run and len(results) > failed:
            warn_without_agent(settings)
        try:
            everywhere = await_peers(hiding, results, patience, tell=not as_json)
        finally:
            if as_json:
                say_json(results_json(results))
    return exit_code_of(results, everywhere=everywhere)


def _mark(result: Result, hiding: Hiding, *, even_if_absent: bool) -> None:
    marked = locate_segment(result.path, hiding.tree)
    result.segment = marked.path
    name = os.path.basename(result.path)
    if classify(name)[0] is Kind.MISTAKE:
        warn(mistake_message(marked.hour, name))
    segment = parse_stem(marked.stem)
    if segment is not None and segment.type == "temp":
        raise errors.NotMarkable(result.path, "a temp segment is still being written and gets another name")
    result.hides = _hides(hiding.root_fd, marked)
    if parse_chat_stem(marked.stem) is not None:
        warn(ABOUT_CHAT)
    if not result.hides and not even_if_absent and not hiding.stands(marked):
        raise errors.HidesNothing(marked.path)
    hiding.hide(marked, result)


def _hides(root_fd: int, marked: Marked) -> tuple[str, ...]:
    try:
        fd = open_below(root_fd, marked.hour.channel, marked.hour.quality, marked.hour.text)
    except FileNotFoundError as exc:
        raise errors.NotMarkable(
            marked.path,
            "its hour directory is not here, so there is no place for a tombstone",
            f"check the name: `tombsync ls {marked.hour.channel}/{marked.hour.quality}` shows the hours that are here",
        ) from exc
    except OSError as exc:
        if exc.errno in (errno.ENOTDIR, errno.ELOOP):
            raise errors.NotMarkable(
                marked.path,
                "its channel, quality or hour is a link or no directory, and links are not followed",
                "name the segment by the directory that the link leads to",
            ) from exc
        raise errors.TreeRefused(marked.hour.path, os.strerror(exc.errno or 0), exc.errno or 0) from exc
    try:
        found = []
        for extension in (".ts", ".json"):
            try:
                os.stat(marked.stem + extension, dir_fd=fd, follow_symlinks=False)
            except OSError:
                continue
            found.append(marked.stem + extension)
        return tuple(found)
    finally:
        os.close(fd)
