"""The base of all errors, and the exit codes of the commands."""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_IN_PART = 3
EXIT_RESTART = 75  # sysexits.h EX_TEMPFAIL: the service manager is asked to start us again


class TombsyncError(Exception):
    """The base of every error that this package raises on purpose."""

    hint: str = ""
    exit_code: int = EXIT_FAILED
