"""What peers deliver into inboxes of this node: checked, hidden, put into the tree, and taken away, in that order."""

from tombsync.inbox.box import Box
from tombsync.inbox.worker import Inbox

__all__ = ["Box", "Inbox"]
