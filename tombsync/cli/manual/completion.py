"""Completion for shells: click's own scripts, which ask the program."""

from __future__ import annotations

from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from tombsync.cli.main import cli

# bash takes a colon, which every stem has, for the end of a word (COMP_WORDBREAKS): the words are put together again
# before the program is asked, and of its answers bash wants what comes behind the last colon of the word.
_BASH_ASKS = """    response=$(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD"""
_BASH_JOINS = """    local -a whole=()
    local number=0 at word last=''
    for at in "${!COMP_WORDS[@]}"; do
        word=${COMP_WORDS[at]}
        if [[ ${#whole[@]} -gt 0 && ($word == :* || $last == *:) ]]; then
            whole[-1]+=$word
        else
            whole+=("$word")
        fi
        last=$word
        [[ $at -ne $COMP_CWORD ]] || number=$((${#whole[@]} - 1))
    done

    response=$(env COMP_WORDS="${whole[*]}" COMP_CWORD=$number"""
_BASH_ENDS = """    done

    return 0
"""
_BASH_TRIMS = """    done

    if [[ ${whole[number]} == *:* && $COMP_WORDBREAKS == *:* ]]; then
        word=${whole[number]%"${whole[number]##*:}"}
        COMPREPLY=("${COMPREPLY[@]#"$word"}")
    fi

    return 0
"""

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
    if shell == "bash":
        for theirs, ours in ((_BASH_ASKS, _BASH_JOINS), (_BASH_ENDS, _BASH_TRIMS)):
            if script.count(theirs) != 1:
                raise ValueError("click's script for bash is another one: see how it takes the words")
            script = script.replace(theirs, ours)
    return script.rstrip() + "\n"
