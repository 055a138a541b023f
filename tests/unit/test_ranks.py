"""Imports only point down the ranks of the package's modules, and modules stay short."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tombsync

PACKAGE = Path(tombsync.__file__).parent
MAX_LINES = 400

RANKS = {
    **dict.fromkeys(["errors"], 0),
    **dict.fromkeys(["names"], 1),
    **dict.fromkeys(["plan", "config", "work", "precedence", "timeline"], 2),
    **dict.fromkeys(["index", "peers", "tree", "audit", "metrics", "confine", "memory", "notify"], 3),
    **dict.fromkeys(
        ["watch", "intake", "rescan", "push", "inbox", "guard", "web", "proof", "takedown", "coverage", "client"], 4
    ),
    **dict.fromkeys(["daemon"], 5),
    **dict.fromkeys(["cli"], 6),
}
OF_THE_PACKAGE = "__version__"  # the one name that `tombsync` itself gives, to everybody


def modules() -> dict[str, Path]:
    """Every module by its full name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("tombsync", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def unit(module: str) -> str:
    """The module or subpackage right below `tombsync`, which has a rank; "" for `tombsync` itself."""
    below = module.split(".")[1:2]
    if below == ["__main__"]:  # another door to the command line
        return "cli"
    return below[0] if below else ""


def imported(source: str, module: str, *, is_package: bool) -> list[tuple[int, str]]:
    """Line and full name of whatever of tombsync a module imports, wherever in it the import stands."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, *([node.module] if node.module else [])])
            if base == "tombsync":
                found += [(node.lineno, f"tombsync.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, base))
    return [(line, name) for line, name in found if name.split(".")[0] == "tombsync"]


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What is wrong with the imports of one module, one sentence each."""
    me = unit(module)
    if me and me not in RANKS:
        return [f"{module}: has no rank; give it one in RANKS and in the design"]
    wrong = []
    for line, name in imported(source, module, is_package=is_package):
        other = unit(name)
        if other in ("", OF_THE_PACKAGE, me):
            continue
        if other not in RANKS:
            wrong.append(f"{module}:{line}: imports {name}, which has no rank")
        elif not me:
            wrong.append(f"{module}:{line}: imports {name}; the package itself imports nothing of its own")
        elif RANKS[other] >= RANKS[me]:
            wrong.append(f"{module}:{line}: (rank {RANKS[me]}) imports {name} (rank {RANKS[other]})")
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    path = MODULES[module]
    assert violations(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_short_enough_to_read(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{module} has {lines} lines, {MAX_LINES} are allowed"


def test_the_modules_are_found() -> None:
    assert {"tombsync", "tombsync.__main__", "tombsync.errors", "tombsync.names", "tombsync.cli"} <= set(MODULES)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tombsync.names", "from tombsync.errors import BadName"),
        ("tombsync.names", "from tombsync import errors"),
        ("tombsync.names", "from . import errors"),
        ("tombsync.names", "import tombsync.errors as e"),
        ("tombsync.errors", "from tombsync import __version__"),
        ("tombsync.errors", "import tombsync"),
        ("tombsync.errors", "import os, tombsyncer"),
        ("tombsync.index.writer", "from tombsync.index.schema import VERSION"),
        ("tombsync.index.writer", "from .schema import VERSION\nfrom ..names import Hour"),
        ("tombsync.web.api", "from tombsync.index import Reader"),
        ("tombsync.cli.main", "from tombsync.cli import mark\nfrom tombsync.daemon import run"),
        ("tombsync.__main__", "from tombsync.cli.main import main"),
    ],
)
def test_what_is_allowed(module: str, source: str) -> None:
    assert violations(source, module) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tombsync.errors", "from tombsync.names import Hour"),
        ("tombsync.names", "from tombsync import config"),
        ("tombsync.names", "from tombsync import errors, config"),
        ("tombsync.names", "from . import config"),
        ("tombsync.names", "import os, tombsync.plan"),
        ("tombsync.plan", "from tombsync.config import Settings"),
        ("tombsync.audit", "from tombsync.metrics import Metrics"),
        ("tombsync.intake", "from tombsync.rescan import Rescan"),
        ("tombsync.index.writer", "from tombsync.peers.tree import TreePeer"),
        ("tombsync.index.writer", "from ..peers import tree"),
        ("tombsync.index.writer", "from .. import push"),
        ("tombsync.names", "def late():\n    from tombsync.tree import Tree"),
        ("tombsync.names", "if TYPE_CHECKING:\n    from tombsync.tree import Tree"),
        ("tombsync.daemon", "from tombsync.cli import main"),
        ("tombsync.daemon", "import tombsync.__main__"),
        ("tombsync.unheard_of", ""),
        ("tombsync.cli.main", "from tombsync import unheard_of"),
        ("tombsync", "from tombsync.names import Hour"),
    ],
)
def test_what_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


def test_relative_imports_of_a_subpackage_itself() -> None:
    assert violations("from .schema import VERSION\nfrom ..names import Hour", "tombsync.index", is_package=True) == []
    assert violations("from ..push import Pusher", "tombsync.index", is_package=True) != []
