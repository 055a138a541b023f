"""The segment tree, by directory descriptors: identity, listing, seeing and placing tombstones.

Nothing in here opens a segment, and nothing follows a symlink below ROOT: each step of a path is opened relative to the
one before with O_NOFOLLOW. No descriptor is kept between calls, as one would keep the file system from being unmounted.
"""

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
from tombsync.tree.tree import Tree

__all__ = [
    "Listing",
    "Tree",
    "create_empty",
    "directory_names",
    "hour_numbers",
    "identities",
    "is_own_mount",
    "names_in_place",
    "open_below",
]
