"""What an administrator's command line asks of devices: a key for the moment, and a way to each of them.

The command line has the database, and the database decides whose key proves what. So it makes a key pair in
memory, registers the public half as an operator's, uses it, and takes it back; nothing of it outlives the command,
and a command that is killed leaves a key that expires by itself.

The device answers `git-cluster-operator` with JSON, a line each: {"say": "…"} as often as it likes, then once
{"result": {…}}, or {"error": "…", "hint": "…", "kind": "…"} (ClusterError's sentence, hint and class).
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster import keys
from cluster.db import Database
from cluster.errors import (
    ClusterError,
    Frozen,
    LockTimeout,
    NoSource,
    NotFound,
    PeerFailed,
    Refused,
    StillNeeded,
    TooFewCopies,
    WriteConflict,
)
from cluster.keyfiles import generate_key, write_keypair
from cluster.model import Device, Snapshot
from cluster.peer import Peers
from cluster.ssh_command import OperatorCommand

KEY_SECONDS = 3600
"""How long an operator's key is valid at most. The longest command is the push of an import."""

FINISH_TIMEOUT = 10.0
"""Seconds for a device to end a command that has given its answer."""

MAX_LINE = 16 * 1024 * 1024
"""Bytes of one line of an answer, which may list every ref of a repository."""

_REFUSED = "This command registered it, for an hour, in its own database: is that the device's database too?"
"""What to do where a device does not know an operator's key."""

_KINDS = {
    kind.__name__: kind
    for kind in (Refused, NotFound, StillNeeded, WriteConflict, Frozen, LockTimeout, TooFewCopies, NoSource)
}
"""What a device's refusal may be. Not PeerFailed, by which we tell that it could not be asked itself."""

_log = logging.getLogger(__name__)

Say = Callable[[str], None]

Ask = Callable[[Device, str, Mapping[str, object]], dict[str, Any]]
"""Run an operator's command on a device: (device, verb, arguments) → its answer. ClusterError."""


def _silent(line: str) -> None:
    _log.debug("%s", line)


class Operator:
    """One key and the connections made with it. From `operator`."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def ask(
        self, device: Device, verb: str, arguments: Mapping[str, object], say: Say = _silent
    ) -> dict[str, Any]:
        """What `device` answers. PeerFailed where it cannot be reached or does not answer, else its ClusterError."""
        with self._peers.run(device, str(OperatorCommand(verb, dict(arguments)))) as remote:
            remote.send_eof()
            rest = b""
            while data := remote.receive(65536):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    answer = _answer(device, line)
                    if "say" in answer:
                        say(_printable(str(answer["say"])))
                    elif isinstance(answer.get("result"), dict):
                        remote.finish(FINISH_TIMEOUT)
                        return dict(answer["result"])
                    else:
                        raise _refusal(device, answer)
                if len(rest) > MAX_LINE:
                    break
            raise PeerFailed(
                f"device {device.name} gave no answer"
                + (f": {_last(remote.stderr)}" if remote.stderr else ""),
                hint="Its log says why; does it run the same version of git-cluster?",
            )


def on_each(ask: Ask, verb: str, targets: Iterable[tuple[Snapshot, Device]]) -> Iterator[dict[str, Any]]:
    """Ask the device of each replica to do `verb` to it, one after another: a row of `--json` as soon as it answers."""
    for snapshot, device in targets:
        name = snapshot.repository.name
        row: dict[str, Any] = {"repository": name, "device": device.name, "ok": True}
        try:
            row["result"] = ask(device, verb, {"repository": name})
        except ClusterError as error:
            row |= {"ok": False, "error": error.what, "hint": error.hint}
        yield row


def words(row: Mapping[str, Any]) -> str:
    """Such a row in a few words (cluster/admin.py writes what a device answers)."""
    if not row["ok"]:
        return _printable(f"failed  {row['error']}")
    result = row["result"]
    said = f"version {result.get('version')}"
    if result.get("verified") is False:
        said = "; ".join([f"{said}, rebuilt: {result.get('fault')}", *result.get("notes", [])])
    elif result.get("verified"):
        said += ", verified"
    return _printable(f"ok  {said}")


@contextmanager
def operator(db: Database) -> Iterator[Operator]:
    """Be an operator while inside."""
    key = generate_key()
    with db.operator_key(
        keys.fingerprint(key.asbytes()), f"{key.get_name()} {key.get_base64()}", seconds=KEY_SECONDS
    ):
        peers = Peers(key, whose="the key of this command", if_refused=_REFUSED)
        try:
            yield Operator(peers)
        finally:
            peers.close()


def ask(
    db: Database, device: Device, verb: str, arguments: Mapping[str, object], say: Say = _silent
) -> dict[str, Any]:
    """One question with a key of its own. For several, `operator` is cheaper."""
    with operator(db) as asking:
        return asking.ask(device, verb, arguments, say)


@contextmanager
def ssh_environment(
    db: Database, device: Device, environ: Mapping[str, str] | None = None
) -> Iterator[dict[str, str]]:
    """The environment in which stock Git reaches `device` as an operator, over the stock ssh client.

    Nothing of the person's own ssh configuration, agent or known hosts takes part: the key is ours, and the host key
    is the one in the database. environ: what it starts from (default: this process's).
    """
    with tempfile.TemporaryDirectory(prefix="git-cluster-") as name:
        identity, known_hosts = Path(name, "key"), Path(name, "known_hosts")
        public = keys.parse(write_keypair(identity, "operator"))
        known_hosts.write_text(f"{_known_host(device.ssh_url)} {device.host_key}\n")
        options = {
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": str(known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "UpdateHostKeys": "no",
            "BatchMode": "yes",
            "ConnectTimeout": "10",
            "ServerAliveInterval": "15",
            "LogLevel": "ERROR",
        }
        words = ["ssh", "-F", "none", "-i", str(identity)]
        for option, value in options.items():
            # ssh itself splits UserKnownHostsFile at spaces, unless it stands in quotes.
            words += ["-o", f'{option}="{value}"' if option == "UserKnownHostsFile" else f"{option}={value}"]
        with db.operator_key(public.fingerprint, public.line, seconds=KEY_SECONDS):
            yield {
                **(os.environ if environ is None else environ),
                "GIT_SSH_COMMAND": shlex.join(words),
                "GIT_SSH_VARIANT": "ssh",
            }


def _known_host(ssh_url: str) -> str:
    """How known_hosts names the host of a URL: "[host]:port" unless the port is SSH's own."""
    url = urlsplit(ssh_url)
    host = url.hostname or ""
    return host if url.port in (None, 22) else f"[{host}]:{url.port}"


def _answer(device: Device, line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise _not_understood(device)
    return answer


def _refusal(device: Device, answer: Mapping[str, Any]) -> ClusterError:
    if not answer.get("error"):
        return _not_understood(device)
    kind = _KINDS.get(str(answer.get("kind")), ClusterError)
    return kind(_printable(str(answer["error"])), hint=_printable(str(answer.get("hint") or "")))


def _not_understood(device: Device) -> PeerFailed:
    return PeerFailed(
        f"device {device.name} gave an answer that is not understood",
        hint="Does it run the same version of git-cluster?",
    )


def _last(stderr: str) -> str:
    return _printable(stderr.strip().rpartition("\n")[2])


def _printable(text: str) -> str:
    """Fit for a terminal: what a device says may quote a ref's name or a client's words."""
    return "".join(c if c.isprintable() else "?" for c in text)
