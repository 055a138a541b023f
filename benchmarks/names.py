"""Parsing and checking a name, against a bare `fullmatch` of the same pattern.

python -m benchmarks.names
"""

from __future__ import annotations

import timeit

from benchmarks import trees
from benchmarks.common import Report, parser
from tombsync import names

_LOOPS = 200_000


def main() -> None:
    """The command."""
    options = parser(__doc__).parse_args()
    report = Report("names", options.json)
    stem = trees.stem(trees.FIRST_HOUR, 1234)
    path = f"desertbus/source/2024-01-01T00/{stem}.ts"
    bare_s = min(timeit.repeat(lambda: names.SEGMENT_PATTERN.fullmatch(stem), number=_LOOPS, repeat=5)) / _LOOPS
    parse_s = min(timeit.repeat(lambda: names.parse_stem(stem), number=_LOOPS, repeat=5)) / _LOOPS
    classify_s = min(timeit.repeat(lambda: names.classify(path), number=_LOOPS, repeat=5)) / _LOOPS
    strict_s = min(timeit.repeat(lambda: names.strict_path(path), number=_LOOPS, repeat=5)) / _LOOPS
    report.add("bare fullmatch", f"{bare_s * 1e6:.2f} us")
    report.add("parse a stem", f"{parse_s * 1e6:.2f} us", must="<= 3 us", ok=parse_s <= 3e-6)
    report.add("parse a stem / fullmatch", round(parse_s / bare_s, 2), must="<= 6", ok=parse_s <= 6 * bare_s)
    report.add("classify a name (what indexing does)", f"{classify_s * 1e6:.2f} us")
    report.add("a whole path from outside, strictly", f"{strict_s * 1e6:.2f} us")
    report.close()


if __name__ == "__main__":
    main()
