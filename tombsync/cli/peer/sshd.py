"""sshd's part: the drop-in that jails the senders, and whether it is what counts."""

from __future__ import annotations

import glob
import ipaddress
import os
import re
import shlex
from collections.abc import Iterator
from importlib.resources import files
from itertools import product

from tombsync import errors
from tombsync.cli.peer.accounts import find_account
from tombsync.cli.peer.files import read_text, remove_file, replace_file
from tombsync.cli.peer.mounts import runs_systemd
from tombsync.cli.peer.steps import Step, run_program
from tombsync.config import InboxSettings

DROP_IN = "/etc/ssh/sshd_config.d/60-tombsync-peers.conf"
KEYS = "/etc/ssh/tombsync-peers"
_NAME = "60-tombsync-peers.conf"
_SERVICES = ("ssh.service", "sshd.service")  # as Debian and its relatives name it, and as others do
_COMMAND = "internal-sftp -d /inbox/%u -u 0077 -p open,close,lstat"
# What sshd must say of a sender's account; the first word is how `sshd -T` names a setting.
_WANTED = {
    "forcecommand": _COMMAND,
    "authorizedkeysfile": f"{KEYS}/%u",
    "authorizedkeyscommand": "none",
    "authorizedprincipalsfile": "none",
    "authorizedprincipalscommand": "none",
    "trustedusercakeys": "none",
    "authenticationmethods": "publickey",
    "passwordauthentication": "no",
    "disableforwarding": "yes",
    "permittty": "no",
    "permituserrc": "no",
}
_CONFIG = "/etc/ssh/sshd_config"
_MOST_INCLUDES = 16  # one below the other, as sshd has it
# An earlier `Match` may ask for where a connection comes from: this machine, or nobody (RFC 5737, RFC 3849, RFC 2606).
# Those that such lines name are asked about, too.
_ADDRESSES = ("127.0.0.1", "192.0.2.1", "::1", "2001:db8::1")
_HOSTS = ("localhost", "host.invalid")
_LINE_PATTERN = re.compile(r"^[ \t]*(include|match)[ \t=]+(.*)$", re.IGNORECASE | re.MULTILINE)
_CRITERION_PATTERN = re.compile(r"(?:^|\s)(address|host)(?:\s*=\s*|\s+)\"?([^\s\"]+)", re.IGNORECASE)


def drop_in(jail: str) -> str:
    """The text of the drop-in for a jail."""
    text = files("tombsync.cli.peer").joinpath(_NAME).read_text(encoding="utf-8")
    return text.replace(f"ChrootDirectory {InboxSettings().jail}\n", f"ChrootDirectory {_quoted(jail)}\n")


def is_in_place(jail: str) -> bool:
    """Whether the drop-in is there as it should be."""
    return read_text(DROP_IN) == drop_in(jail)


def drop_in_step(jail: str) -> Step:
    """Put the drop-in in place, have sshd check it, and reload sshd where systemd runs."""
    text = drop_in(jail)
    shown = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    then = "and reload sshd" if runs_systemd() else "which sshd takes up when it is reloaded"
    return Step(f"write {DROP_IN}, {then}", lambda: is_in_place(jail), lambda: _put(text), shown)


def jailed_step(account: str, jail: str) -> Step:
    """Ask sshd what counts for a sender's account, once there is one and the drop-in."""
    return Step(
        f"check that sshd jails {account}",
        lambda: not (find_account(account) and is_in_place(jail)) or _looseness(account, jail) is None,
        lambda: _require_jailed(account, jail),
    )


def _quoted(jail: str) -> str:
    plain = _escaped(jail)
    return plain if re.fullmatch(r"[\w./%-]+", plain) else f'"{plain}"'


def _escaped(jail: str) -> str:
    return jail.replace("%", "%%")  # it begins a token there


def _put(text: str) -> None:
    before = read_text(DROP_IN) if os.path.lexists(DROP_IN) else None
    replace_file(DROP_IN, text)
    try:
        _sshd("-t")
        _reload()
    except errors.ProgramFailed as exc:
        if before is None:
            remove_file(DROP_IN)
        else:
            replace_file(DROP_IN, before)
        raise errors.SshdRefused(exc.said) from exc


def _reload() -> None:
    """Where sshd is not running, or is started by a socket for each connection, there is nothing to reload."""
    if not runs_systemd():
        return
    for service in _SERVICES:
        if run_program("systemctl", "show", "--property=LoadState", "--value", service).strip() == "loaded":
            run_program("systemctl", "try-reload-or-restart", service)
            return


def _sshd(*words: str) -> str:
    try:
        return run_program("sshd", *words)
    except errors.ProgramFailed as exc:
        # Debian's sshd wants it before it looks at anything; its service, which makes it, may not be running.
        missing = re.search(r"Missing privilege separation directory: (/run/\S+)", exc.said)
        if not missing:
            raise
        os.makedirs(missing[1], 0o755, exist_ok=True)
        return run_program("sshd", *words)


def _looseness(account: str, jail: str) -> tuple[str, str] | None:
    """What sshd would do that it should not, and how to correct that; None where it jails the account.

    It is asked for connections from several places, since what it does may depend on that.
    """
    named = _named_in_matches()
    addresses = [*_ADDRESSES, *(address for address in named["address"] if _is_address(address))]
    places = product(dict.fromkeys(addresses), dict.fromkeys([*_HOSTS, *named["host"]]))
    found = (_looseness_from(address, host, account, jail) for address, host in places)
    return next((loose for loose in found if loose), None)


def _named_in_matches() -> dict[str, list[str]]:
    """For each pattern of a `Match Address` or `Match Host` in sshd's configuration one value that it is about."""
    found: dict[str, list[str]] = {"address": [], "host": []}
    for text in _configuration(_CONFIG, set(), _MOST_INCLUDES):
        for line in _LINE_PATTERN.finditer(text):
            for criterion, patterns in _CRITERION_PATTERN.findall(line[2]) if line[1].lower() == "match" else ():
                for pattern in patterns.split(","):
                    value = pattern.lstrip("!").partition("/")[0].replace("*", "1").replace("?", "1")
                    found[criterion.lower()].append(value)
    return found


def _configuration(path: str, seen: set[str], depth: int) -> Iterator[str]:
    """The text of a file of sshd's, and of all that it includes."""
    if path in seen or depth == 0:
        return
    seen.add(path)
    text = read_text(path)
    yield text
    for line in _LINE_PATTERN.finditer(text):
        for pattern in _words(line[2]) if line[1].lower() == "include" else ():
            for included in sorted(glob.glob(os.path.join(os.path.dirname(_CONFIG), pattern))):
                yield from _configuration(included, seen, depth - 1)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:  # an open quotation: sshd itself refuses it
        return []


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _looseness_from(address: str, host: str, account: str, jail: str) -> tuple[str, str] | None:
    try:
        said = _sshd("-T", "-C", f"user={account},host={host},addr={address}")
    except errors.ProgramFailed as exc:
        return exc.said, "see `sshd -t`"
    found: dict[str, str] = {}
    for line in said.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, value)
    for key, wanted in {"chrootdirectory": _escaped(jail), **_WANTED}.items():
        if found.get(key) != wanted:
            return (
                f"{key} is {found.get(key, 'not set')} for connections from {address} ({host})",
                "sshd_config needs `Include /etc/ssh/sshd_config.d/*.conf` above every Match, and no earlier line or"
                " drop-in that says otherwise for this account",
            )
    if not found.get("subsystem", "").startswith("sftp"):
        return "it has no Subsystem sftp", "add `Subsystem sftp internal-sftp` to sshd_config, above every Match"
    return None


def _require_jailed(account: str, jail: str) -> None:
    if found := _looseness(account, jail):
        raise errors.SshdNotJailing(account, *found)
