"""What a person means by a stem."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.index import HOUR, STEM, hide
from tombsync.cli.segments import find_markers, named_markers
from tombsync.config import Settings
from tombsync.errors import TooManyHours
from tombsync.index import Reader, Writer


def test_a_stem_means_all_of_its_hours_or_is_refused(tmp_path: Path) -> None:
    settings = Settings(root=str(tmp_path))
    writer = Writer(str(tmp_path / "index.sqlite"))
    reader = Reader(writer.path)
    try:
        with writer.transaction():
            for number in range(1000):
                hide(writer, HOUR._replace(number=HOUR.number + number), STEM)
        assert len(find_markers(settings, reader, STEM)) == 1000
        hide(writer, HOUR._replace(number=HOUR.number + 1000), STEM)
        with pytest.raises(TooManyHours, match="more than 1000 hours"):
            named_markers(settings, reader, [STEM])
        assert len(find_markers(settings, reader, f"{HOUR.path}/{STEM}")) == 1
    finally:
        reader.close()
        writer.close()
