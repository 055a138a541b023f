"""Peers over SFTP: the edge to paramiko and OpenSSH, whose names and errors do not leave this package.

The contract, for every kind of peer (tests/contract/test_peer_contract.py runs it on a double and on real servers):

- `connect` makes a session or raises a PeerError within CONNECT_TIMEOUT_S, the looking up of the name (10 s at most)
  not counted. It tells the peer nothing of us before the host key was found to be the pinned one.
- `submit` starts jobs and never waits for the peer; `collect` returns what was answered since, raising a PeerError
  where the session is over. Each job submitted gets exactly one Answer, unless the session ends first.
- Nothing on a peer is ever overwritten or removed. A job done twice ends as it did the first time.
- CONFIRMED is answered only where the tombstone was seen or made, and is durable there.
- A session belongs to one thread, but `close` may be called from any, and ends a wait for it.
"""

from tombsync.peers.contract import Answer, Job, Session
from tombsync.peers.known_hosts import HostKeyHalt
from tombsync.peers.packets import REPLY_TIMEOUT_S
from tombsync.peers.session import MANY
from tombsync.peers.ssh import CONNECT_TIMEOUT_S, Connector, Target, require_usable

__all__ = [
    "CONNECT_TIMEOUT_S",
    "MANY",
    "REPLY_TIMEOUT_S",
    "Answer",
    "Connector",
    "HostKeyHalt",
    "Job",
    "Session",
    "Target",
    "require_usable",
]
