"""What a node lists, for Python programs on it: read-only, with the agent up or down.

    from tombsync.client import open_client

    with open_client() as client:
        names = client.names("desertbus", "source", "2019-11-13T02")
        for piece in client.segments("desertbus", "source", "2019-11-13T02:45", "2019-11-13T02:46"):
            print(piece.start, piece.path)

What is hidden is never among it. A Client belongs to one thread; open one in each that asks.
"""

from tombsync.client.client import Client, open_client
from tombsync.client.hours import HourNames, directory_listing, hour_listing
from tombsync.client.index import OpenIndex
from tombsync.timeline import Piece

__all__ = ["Client", "HourNames", "OpenIndex", "Piece", "directory_listing", "hour_listing", "open_client"]
