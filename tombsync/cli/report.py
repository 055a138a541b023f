"""`tombsync report`: a takedown report, for whoever has to be shown that something is gone; signed if wanted."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any

import click

from tombsync import errors
from tombsync.cli import complete
from tombsync.cli.common import Place, json_option, open_reader, place_options, say, say_json, tell_error
from tombsync.cli.files import write_new
from tombsync.cli.mark import claimed_actor
from tombsync.cli.segments import facts_of, find_markers, hear, segment_lines
from tombsync.config import Settings
from tombsync.index import MarkerRow, Reader
from tombsync.names import printable
from tombsync.timeline import iso
from tombsync.tree import Tree, read_note

NAMESPACE = "tombsync-report"  # of `ssh-keygen -Y`: a signature for anything else does not count
_VERSION = 1
_NOT_ASKED = "nodes that are not configured as peers of this node"
_KEYGEN_TIMEOUT_S = 60.0  # a key on a token wants to be touched


class _Group(click.Group):
    """`report STEM…` makes one; only `report verify` is a word of its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = ["make", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Group)
def report() -> None:
    """Make a takedown report of segments (`report STEM…`), or check the signature of one (`report verify FILE`).

    \b
    Example
      tombsync report --live 45:51.608000-2.0-full-… --output report.json --sign ~/.ssh/id_ed25519
      tombsync report verify report.json --allowed-signers signers
    """


@report.command()
@click.argument("stems", nargs=-1, required=True, metavar="STEM...")
@place_options
@click.option("--live", is_flag=True, help="Ask every peer now.")
@click.option(
    "--output",
    metavar="FILE",
    shell_complete=complete.files,
    help="Write it there instead; a file that is there is not replaced.",
)
@click.option(
    "--sign", metavar="KEY", shell_complete=complete.files, help="Sign the JSON with this SSH key, into FILE.sig."
)
@json_option
def make(stems: tuple[str, ...], place: Place, live: bool, output: str | None, sign: str | None, as_json: bool) -> int:
    """Who marked each segment, when and why; when each node confirmed it; where its data still is.

    The word `make` may be left out.

    \b
    Example
      tombsync report make --live 45:51.608000-2.0-full-… --output report.json --sign ~/.ssh/id_ed25519
    """
    if sign and not output:
        raise click.UsageError("--sign needs --output FILE: the signature is that of a file")
    for path in (output, f"{output}.sig" if sign else None):
        if path and os.path.lexists(path):  # before peers are asked, and a key is touched
            raise errors.FileRefused(path, os.strerror(errno.EEXIST))
    settings = place.settings()
    reader = open_reader(settings)
    try:
        document, lines, silent = _document(settings, reader, stems, live=live)
    finally:
        reader.close()
    # In one canonical form, so that who signs and who checks speak of the same bytes.
    if as_json or sign:
        lines = [json.dumps(document, sort_keys=True, separators=(",", ":"))]
    if output is None:
        for line in lines:
            say(line)
    else:
        # Escaped as on a terminal: a name with a line break in it must not make a line of its own.
        content = "".join(f"{printable(line)}\n" for line in lines).encode()
        files = {output: content}
        if sign:
            files = {f"{output}.sig": _signature(content, sign), **files}
        write_new(files)
    for error in silent:
        tell_error(error)
    return errors.EXIT_IN_PART if silent else 0


@report.command()
@click.argument("file", shell_complete=complete.files)
@click.option(
    "--allowed-signers",
    required=True,
    metavar="FILE",
    shell_complete=complete.files,
    help="Who may sign: see ALLOWED SIGNERS, ssh-keygen(1).",
)
@click.option("--signature", metavar="FILE", shell_complete=complete.files, help="The signature.  [default: FILE.sig]")
@click.option("--identity", metavar="NAME", help="Who must have signed.  [default: whoever of the allowed did]")
@json_option
def verify(file: str, allowed_signers: str, signature: str | None, identity: str | None, as_json: bool) -> int:
    """Check that a report is the one that was signed, to the byte, by somebody who is allowed to.

    \b
    Example
      tombsync report verify report.json --allowed-signers signers
    """
    signature = signature or f"{file}.sig"
    for path in (file, signature, allowed_signers):
        if not os.access(path, os.R_OK):
            raise errors.FileRefused(path, "cannot be read")
    if identity is None:
        found = _keygen(errors.SignatureBad, file, "find-principals", "-s", signature, "-f", allowed_signers)
        identity = found.splitlines()[0] if found else ""
    who = ("-f", allowed_signers, "-I", identity)
    with open(file, "rb") as stream:
        _keygen(errors.SignatureBad, file, "verify", *who, "-n", NAMESPACE, "-s", signature, stdin=stream)
    if as_json:
        say_json({"file": file, "signature": signature, "signed_by": identity})
    else:
        say(f"{file} is as {identity} signed it")
    return 0


def _document(
    settings: Settings, reader: Reader, stems: Sequence[str], *, live: bool
) -> tuple[dict[str, Any], list[str], list[errors.PeerError]]:
    """The report as data and as lines for people, and the peers that could not be asked. Raises NotMarked."""
    rows: dict[int, MarkerRow] = {}
    for stem in stems:
        found = find_markers(settings, reader, stem)
        if not found:
            raise errors.NotMarked(stem)
        rows.update((row.marker, row) for row in found)
    heard = hear(settings, reader, list(rows.values())) if live else {}
    made_at_ns = time.time_ns()
    lines = [
        f"Takedown report of node {settings.node}, {iso(made_at_ns)}, made by {claimed_actor()}",
        "every peer was asked now" if live else "from the last answers of the peers: nobody was asked now",
        f"not asked: {_NOT_ASKED}",
    ]
    segments = []
    markers = list(rows.values())
    for row, (here, stands, facts) in zip(markers, facts_of(settings, reader, markers, heard), strict=True):
        claims = _claims(settings, row)
        segments.append({**facts, "claimed": claims})
        lines += ["", *segment_lines(row, here, stands)]
        if claims:
            lines.append("  the mark says: " + ", ".join(f"{key} {printable(value)}" for key, value in claims.items()))
    document = {
        "report": "tombsync takedown",
        "version": _VERSION,
        "node": settings.node,
        "made_at": iso(made_at_ns),
        "made_by": claimed_actor(),
        "asked_now": live,
        "not_asked": _NOT_ASKED,
        "segments": segments,
    }
    return document, lines, [each.error for each in heard.values() if each.error is not None]


def _claims(settings: Settings, row: MarkerRow) -> dict[str, str]:
    """What the tombstone says of itself: claimed by whoever wrote it, and decided by nobody."""
    try:
        with Tree(settings.root).open_root() as root_fd:
            return read_note(root_fd, row.marked)
    except errors.RootMissing:
        return {}


def _signature(content: bytes, key: str) -> bytes:
    """Raises SigningFailed."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        return _keygen(errors.SigningFailed, key, "sign", "-f", key, "-n", NAMESPACE, stdin=file).encode() + b"\n"


def _keygen(
    error: type[errors.SigningFailed | errors.SignatureBad], about: str, *words: str, stdin: IO[bytes] | None = None
) -> str:
    """Run `ssh-keygen -Y`; what it printed. Raises the error with what it said."""
    try:
        done = subprocess.run(
            ["ssh-keygen", "-Y", *words],
            stdin=stdin or subprocess.DEVNULL,  # a passphrase is asked for on the terminal itself
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_KEYGEN_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as exc:
        raise error(about, "ssh-keygen is not installed") from exc
    except subprocess.TimeoutExpired as exc:
        raise error(about, "ssh-keygen takes too long") from exc
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise error(about, said[-1] if said else f"ssh-keygen ended with {done.returncode}")
    return done.stdout.strip()
