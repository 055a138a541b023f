"""The segment tree, by directory descriptors: identity, listing, seeing and placing tombstones.

Nothing in here opens a segment, nothing but `delete_data` and `remove_tombstones`, of two commands, removes anything,
and nothing follows a symlink below ROOT: each step of a path is opened relative to the one before with O_NOFOLLOW. No
descriptor is kept between calls, as one would keep the file system from being unmounted.
"""

from tombsync.tree.data import DataFile, Standing, delete_data, list_data, standing
from tombsync.tree.directories import (
    create_empty,
    directory_names,
    hour_numbers,
    identities,
    is_own_mount,
    names_in_place,
    open_below,
)
from tombsync.tree.listing import Listing
from tombsync.tree.note import parse_note, read_note
from tombsync.tree.purged import Purged, purged_of, remember_purge
from tombsync.tree.sizes import Sizes
from tombsync.tree.takedowns import (
    TAKEDOWNS,
    Takedown,
    end_takedown,
    find_takedown,
    new_takedown_id,
    read_takedowns,
    write_takedown,
)
from tombsync.tree.tree import Tree
from tombsync.tree.unmark import lacks_tombstone, remove_tombstones

__all__ = [
    "TAKEDOWNS",
    "DataFile",
    "Listing",
    "Purged",
    "Sizes",
    "Standing",
    "Takedown",
    "Tree",
    "create_empty",
    "delete_data",
    "directory_names",
    "end_takedown",
    "find_takedown",
    "hour_numbers",
    "identities",
    "is_own_mount",
    "lacks_tombstone",
    "list_data",
    "names_in_place",
    "new_takedown_id",
    "open_below",
    "parse_note",
    "purged_of",
    "read_note",
    "read_takedowns",
    "remember_purge",
    "remove_tombstones",
    "standing",
    "write_takedown",
]
