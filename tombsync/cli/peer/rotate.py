"""`tombsync peer rotate`: exchange the key of a node that delivers here, without a moment in which none works."""

from __future__ import annotations

import click

from tombsync import errors
from tombsync.cli import complete
from tombsync.cli.common import Place, dry_run_option, json_option, place_options
from tombsync.cli.peer import keys
from tombsync.cli.peer.lock import alone
from tombsync.cli.peer.names import name_argument, require_sender
from tombsync.cli.peer.steps import carry_out, require_root


@click.command()
@name_argument
@click.option(
    "--key", metavar="FILE", shell_complete=complete.files, help="The new public key, let in beside the older ones."
)
@click.option("--finish", is_flag=True, help="Let only the newest key in from now on.")
@place_options
@dry_run_option
@json_option
def rotate(name: str, key: str | None, finish: bool, place: Place, dry_run: bool, as_json: bool) -> int:
    """Exchange the key of a node that delivers here: first add the new one, later drop the older ones. Needs root.

    In between both work, so the other node changes over when it likes. A session that stands is not ended.

    \b
    Example: now, and again with --finish when node-b uses its new key
      tombsync peer rotate node-b --key node-b-new.pub
    """
    require_root("peer rotate")
    if finish == (key is not None):
        raise click.UsageError("give either --key to add a key, or --finish to drop the older ones")
    with alone(dry_run=dry_run):
        sender = require_sender(place.settings(), name)
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
        return carry_out(name, steps, list, dry_run=dry_run, as_json=as_json)
