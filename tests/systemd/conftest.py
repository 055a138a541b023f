"""What the tests of the service and of the Debian package have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.machines import copied
from tests.systemd.operators import SOURCE, make_wheels


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that an installation without network takes; beside it, as `old`, the project as it is delivered."""
    base = tmp_path_factory.mktemp("media")
    make_wheels(copied(SOURCE, base / "old", "0.1.0"), base / "wheels")
    return base / "wheels"
