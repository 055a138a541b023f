"""Completion for shells: click's own scripts, which ask the program."""

from __future__ import annotations

from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from tombsync.cli.main import cli

_SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


def completion(shell: str) -> str:
    """The script for bash, zsh or fish."""
    made = _SHELLS[shell](cli, {}, "tombsync", "_TOMBSYNC_COMPLETE")
    # Not source(): for bash that runs the bash of this machine, only to see how old it is.
    script = made.source_template % made.source_vars()
    if shell == "zsh":
        # click's script tells an autoloaded file from a sourced one, and so does nothing at each second call of a
        # shell: the file is the function's body then, and is not being loaded any more.
        function, _, _ = script.partition("\nif [[ $zsh_eval_context")
        script = f'{function}\n{made.func_name} "$@"\n'
    return script.rstrip() + "\n"
