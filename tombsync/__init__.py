"""tombsync: hides, delivers and proves tombstones on the nodes of a replicated segment database."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tombsync")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
