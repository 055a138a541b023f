"""`tombsync peer rotate`: exchange the key of a node that delivers here, without a moment in which none works."""

from __future__ import annotations

import click

from tombsync import errors
from tombsync.cli import complete
from tombsync.cli.common import Place, dry_run_option, json_option, place_options
from tombsync.cli.peer import accounts, keys
from tombsync.cli.peer.lock import alone
from tombsync.cli.peer.names import name_argument, require_sender, settings_of_root
from tombsync.cli.peer.steps import carry_out, require_root

_SESSIONS_GO_ON = "sessions that began with an older key go on; --finish --end-sessions ends them"


@click.command()
@name_argument
@click.option(
    "--key", metavar="FILE", shell_complete=complete.files, help="The new public key, let in beside the older ones."
)
@click.option("--finish", is_flag=True, help="Let only the newest key in from now on.")
@click.option("--end-sessions", is_flag=True, help="With --finish: end its sessions, whichever key they began with.")
@place_options
@dry_run_option
@json_option
def rotate(
    name: str, key: str | None, finish: bool, end_sessions: bool, place: Place, dry_run: bool, as_json: bool
) -> int:
    """Exchange the key of a node that delivers here: first add the new one, later drop the older ones. Needs root.

    In between both work, so the other node changes over when it likes. A session that stands goes on, with whichever
    key it began: where the old key may be in other hands, add --end-sessions. The node connects again by itself.

    \b
    Example: now, and again with --finish when node-b uses its new key
      tombsync peer rotate node-b --key node-b-new.pub
      tombsync peer rotate node-b --finish --end-sessions
    """
    require_root("peer rotate")
    if finish == (key is not None):
        raise click.UsageError("give either --key to add a key, or --finish to drop the older ones")
    if end_sessions and not finish:
        raise click.UsageError("--end-sessions goes with --finish: before that, the older keys open new ones")
    with alone(dry_run=dry_run):
        sender = require_sender(settings_of_root(place), name)
        known = keys.authorized(sender.account)
        if not known:
            raise errors.NoKeyAuthorized(name)
        if key is None:
            wanted = known[-1:]
        else:
            new = keys.read_public_key(key)
            keys.require_unused(new, sender.account)
            wanted = known if new in known else [*known, new]
        steps = [*keys.authorize_steps(sender.account, name, wanted)]
        if end_sessions:
            steps.append(accounts.end_step(sender.account))
        notes = [_SESSIONS_GO_ON] if finish and not end_sessions else []
        return carry_out(name, steps, lambda: notes, dry_run=dry_run, as_json=as_json)
