"""`tombsync reload`: have the agent take up changed settings."""

from __future__ import annotations

import click

from tombsync import errors
from tombsync.cli.common import Place, agent_runs, await_request, json_option, place_options, say, say_json

# A peer whose session hangs is let go within some seconds; an agent that is not ready yet reads them when it is.
_WITHIN_S = 60.0


@click.command()
@place_options
@json_option
def reload(place: Place, as_json: bool) -> None:
    """Have the running agent read its settings again, and wait until they count.

    Peers are added, removed and changed without a restart. What takes one (the node's name, the tree, the state
    directory, the listener, the first sender) is refused as a whole, with the reason; then the settings of before go
    on, and the exit code is 1. systemctl reload does this.

    \b
    Example
      tombsync reload
    """
    from tombsync.daemon import refused_because, reloading

    settings = place.settings()
    if not agent_runs(settings):
        raise errors.AgentNotRunning(settings.state_dir)
    with reloading(settings.state_dir) as path:
        if not await_request(settings, path, "to read its settings again", _WITHIN_S):
            raise errors.AgentNotRunning(settings.state_dir)
        if reason := refused_because(path):
            raise errors.ReloadRefused(reason)
    if as_json:
        say_json({"reloaded": True})
    else:
        say("the agent has taken up its settings")
