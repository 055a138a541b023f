"""Settings: one TOML file, validated whole, every problem reported at once.

`load` is the way in. It is purely textual: no path is resolved, no name is looked up in DNS, nothing is opened but the
settings file itself. Nothing in the settings is secret; the private key is named by its path.
"""

from tombsync.config.document import load
from tombsync.config.tables import (
    DEFAULT_PATH,
    DEFAULT_ROOT,
    LISTS,
    MAX_ACCOUNT_CHARACTERS,
    MAX_SOCKET_PATH_BYTES,
    TABLES,
    BreakerSettings,
    HttpSettings,
    InboxSettings,
    Listen,
    PeerSettings,
    RescanSettings,
    SenderSettings,
    Settings,
    account_of,
    split_listen,
)

__all__ = [
    "DEFAULT_PATH",
    "DEFAULT_ROOT",
    "LISTS",
    "MAX_ACCOUNT_CHARACTERS",
    "MAX_SOCKET_PATH_BYTES",
    "TABLES",
    "BreakerSettings",
    "HttpSettings",
    "InboxSettings",
    "Listen",
    "PeerSettings",
    "RescanSettings",
    "SenderSettings",
    "Settings",
    "account_of",
    "load",
    "split_listen",
]
