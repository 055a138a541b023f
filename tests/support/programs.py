"""Programs of the machine that tests run."""

from __future__ import annotations

import os
import shutil
import signal

import pytest


def need(program: str) -> str:
    """The path of a program, also where /sbin is not in PATH. Without it the test is skipped; in CI it fails."""
    path = shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]))
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{program} is not installed, and CI must not skip a test", pytrace=False)
        pytest.skip(f"{program} is not installed (tests/run says what is missing, and as root on Debian installs it)")
    return os.path.abspath(path)


def was_interrupted(code: int) -> bool:
    """Whether a program ended by Ctrl-C, as a shell tells it: 130.

    Python ends by the signal itself where that came within an `exec` of a library that was being loaded, whatever was
    made of the interrupt afterwards.
    """
    return code in (128 + signal.SIGINT, -signal.SIGINT)
