"""POSIX ACLs, as far as one question goes: can who owns a directory write into what others make in it?

The form of the extended attribute is that of linux/posix_acl_xattr.h: a version, then entries of tag, permissions, id.
"""

from __future__ import annotations

import os
import struct

_ATTRIBUTE = "system.posix_acl_default"
_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_KNOWN_VERSION = 2
_USER, _GROUP, _MASK = 0x02, 0x08, 0x10
_WRITE_AND_SEARCH = 0x3


def lets_the_owner_write(directory_fd: int) -> bool:
    """Whether the directory has a default ACL by which its owner, or its group, may write into new directories."""
    try:
        value = os.getxattr(directory_fd, _ATTRIBUTE)
    except OSError:  # no such attribute, or a file system without
        return False
    found = os.fstat(directory_fd)
    return covers(value, uid=found.st_uid, gid=found.st_gid)


def covers(value: bytes, *, uid: int, gid: int) -> bool:
    """Whether a default ACL, as its attribute holds it, names this user or group with the right to write."""
    if len(value) < _VERSION.size or _VERSION.unpack_from(value)[0] != _KNOWN_VERSION:
        return False
    body = value[_VERSION.size :]
    entries = list(_ENTRY.iter_unpack(body[: len(body) // _ENTRY.size * _ENTRY.size]))
    mask = next((rights for tag, rights, _ in entries if tag == _MASK), 0o7)
    wanted = {(_USER, uid), (_GROUP, gid)}
    return any(
        (tag, who) in wanted and rights & mask & _WRITE_AND_SEARCH == _WRITE_AND_SEARCH for tag, rights, who in entries
    )
