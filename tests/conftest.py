"""Hypothesis profiles, another is chosen with HYPOTHESIS_PROFILE; and signals as a terminal leaves them."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# No deadline: a machine that is busy with something else is no failure.
# In CI the examples are always the same, so that a red run can be repeated; at a desk they are new each time.
settings.register_profile("ci", deadline=None, max_examples=200, derandomize=True, print_blob=True)
settings.register_profile("dev", deadline=None, max_examples=100)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") == "true" else "dev"))

# Whoever starts this in the background may have these ignored, which every program that a test starts would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
