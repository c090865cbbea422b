"""What every SSH endpoint does with a command: the same words, the same exit codes, whoever carried it here.

built-in    cluster/ssh.py: paramiko in the daemon
OpenSSH     cluster/openssh.py: sshd, with the hooks in sshd_hooks/
"""

from __future__ import annotations

import logging
import secrets
from typing import Protocol

from cluster.client import Client
from cluster.errors import ClientGone, ClusterError, DatabaseUnavailable, SchemaMismatch, UsageError
from cluster.model import Actor
from cluster.ssh_command import MAX_PROTOCOL, PROTOCOL, PROXY, UNABLE, Command, parse_command

_log = logging.getLogger(__name__)

_AWAY = "the cluster's database is away; try again in a moment"


class Handlers(Protocol):
    """What an endpoint serves. Called from many threads."""

    def authenticate(self, key_type: str, key_base64: str, fingerprint: str) -> Actor | None:
        """Whose key this is (fingerprint: "SHA256:…" without padding); None: nobody's.

        Refused: nobody's as far as can be told, with words for whoever has no other key. Any other ClusterError: that
        cannot be told.
        """

    def certified(self, key_type: str, certificate: str, address: str | None) -> Actor | None:
        """The same of a certificate, in base64, which a client at `address` offers. None: whoever carries the client
        holds the address against it."""

    def run(self, actor: Actor, command: Command, client: Client, *, protocol: str, address: str) -> int:
        """Do it; the exit code. A ClusterError is told to the client, with its exit code."""

    def greeting(self, actor: Actor) -> str:
        """What somebody reads who logs in without a command."""


def answer(
    handlers: Handlers,
    actor: Actor | ClusterError,
    command: bytes | None,
    client: Client,
    *,
    protocol: str,
    address: str,
) -> int:
    """Carry out what a client asks for, and tell it what went wrong; the exit code.

    actor: who it is, or why that cannot be told. command: as it was sent; None: a shell, which is a greeting.
    """
    try:
        if isinstance(actor, ClusterError):
            if command is not None and command.startswith(PROXY.encode()):
                return UNABLE
            raise actor
        if command is None:
            greeting = handlers.greeting(actor)
            client.write((greeting.rstrip("\n") + "\n").encode(errors="replace"))
            return 1
        try:
            parsed = parse_command(command.decode(errors="surrogateescape"))
        except UsageError as error:
            _log.info("%s: %s: refused a command: %s", address, actor.name, error.what)
            raise
        return handlers.run(actor, parsed, client, protocol=protocol, address=address)
    except ClientGone:
        _log.debug("%s: hung up", address)
        return 1
    except ClusterError as error:
        return tell(client, error)
    except Exception:
        return tell(client, unforeseen(address))


def tell(client: Client, error: ClusterError) -> int:
    """What went wrong and what to do next, to the person; the exit code."""
    client.say(f"error: {error.what}")
    for line in error.lines()[1:]:
        client.say(line)
    return error.exit_code


def unforeseen(address: str) -> ClusterError:
    """For an exception that is being handled and that nobody foresaw: the log gets it, the client its number."""
    number = secrets.token_hex(4)
    _log.exception("%s: %s: unexpected", address, number)
    return ClusterError(
        f"something went wrong on this device; the administrator finds it in the log as {number}"
    )


def unknown_for_now(error: ClusterError) -> ClusterError:
    """The error for somebody whose key could not be looked up: "Permission denied" would send them to their keys."""
    away = isinstance(error, DatabaseUnavailable) and not isinstance(error, SchemaMismatch)
    return DatabaseUnavailable(_AWAY) if away else error


def git_protocol(value: str) -> str | None:
    """GIT_PROTOCOL in the form that Git gives it; None where a client made something else of it."""
    return value if len(value) <= MAX_PROTOCOL and PROTOCOL.fullmatch(value) else None
