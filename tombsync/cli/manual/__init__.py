"""The manual pages and the completion for shells, made of the commands and settings themselves.

`python -m tombsync.cli.manual DIR` writes them below DIR, as they lie below /usr/share.
"""

from tombsync.cli.manual.completion import completion
from tombsync.cli.manual.pages import command_page, settings_page

__all__ = ["command_page", "completion", "settings_page"]
