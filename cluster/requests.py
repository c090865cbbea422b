"""From a command of a known actor to whoever carries it out: the same for every endpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime

from cluster import admin, certificates, commands, failing, logs, ping, pulling, session, stage
from cluster.client import Client
from cluster.db import key_gone
from cluster.errors import ClusterError, DatabaseUnavailable, DiskFailed, Refused
from cluster.limits import Counts, Sessions, Watch
from cluster.measure import Asked
from cluster.model import Actor, ActorKind, Exchange, Request
from cluster.names import shown
from cluster.node import Node
from cluster.ssh_command import (
    UNABLE,
    Command,
    OperatorCommand,
    PackCommand,
    PingCommand,
    ProxyCommand,
    ServiceCommand,
    StageCommand,
    UnstageCommand,
    UserCommand,
)

_log = logging.getLogger(__name__)


class Requests:
    """What an endpoint asks of this device. Called from many threads.

    running: the commands that run, where other processes of this device have some, too.
    """

    def __init__(self, node: Node, running: Counts | None = None) -> None:
        self._node = node
        limits = node.limits
        self._sessions = Sessions(
            per_address=limits.sessions_per_address, per_user=limits.sessions_per_user, counts=running
        )
        self._watch = Watch(idle=limits.idle_timeout, total=limits.session_timeout)

    def authenticate(self, key_type: str, key_base64: str, fingerprint: str) -> Actor | None:
        try:
            return self._node.db.identity(fingerprint)
        except DatabaseUnavailable:
            if self._node.memory is None:
                raise
            return self._node.memory.authenticate(fingerprint)

    def certified(self, key_type: str, certificate: str, address: str | None) -> Actor | None:
        """The one user whom a certificate names. None, and a line in the log: it proves nobody."""
        node = self._node
        try:
            if not node.trusted:
                raise Refused("there is no [login] trusted_ca")
            found = certificates.prove(node.trusted, key_type, certificate, address, datetime.now(UTC))
            try:
                users = node.db.certified(found.principals, found.fingerprint, found.until)
            except DatabaseUnavailable:
                if node.memory is None:
                    raise
                _log.info("%s: a certificate was not looked up: the database is away", address or "sshd")
                return None  # another key of theirs may be remembered
            if len(users) != 1:
                whom = ", ".join(map(shown, found.principals[:5]))
                which = "none of its principals is an enabled user" if not users else "it names several users"
                raise Refused(f"{which}: {whom}")
        except Refused as error:
            _log.info("%s: a certificate proves nobody: %s", address or "sshd", error.what)
            return None
        return users[0]

    def run(self, actor: Actor, command: Command, client: Client, *, protocol: str, address: str) -> int:
        """Hand a command to whoever carries it out, if this actor may give it at all."""
        with self._node.measures.request(_asked(actor, command)) as answer:
            code = self._answer(actor, command, client, protocol=protocol, address=address)
            return answer.ended(code, gone=client.gone)

    def _answer(self, actor: Actor, command: Command, client: Client, *, protocol: str, address: str) -> int:
        try:
            with (
                self._sessions.one(actor, address),
                self._watch.over(client, actor, address) as watched,
            ):
                return self._run(actor, command, watched, protocol=protocol, address=address)
        except DatabaseUnavailable as error:
            if not isinstance(command, ProxyCommand) or actor.kind is not ActorKind.DEVICE:
                raise
            _log.warning("%s: not answered for device %s: %s", command.address, actor.name, error.what)
            return UNABLE
        except (DiskFailed, OSError) as error:
            raise self._of_disk(error, address) from error
        except ClusterError as error:
            passed_on = isinstance(command, ProxyCommand) and actor.kind is ActorKind.DEVICE
            if not isinstance(command, ServiceCommand) and not passed_on:  # Git's leave a line in any case
                _log.info(
                    "refused",
                    extra=logs.fields(
                        command=type(command).__name__.removesuffix("Command").lower(),
                        actor=actor.name,
                        kind=actor.kind,
                        address=address,
                        why=error.what,
                    ),
                )
            raise

    def serve(self, request: Request, client: Client) -> int:
        """The same of a request that is one already: of Git's clients, over HTTP."""
        actor, address = request.actor, request.address
        asked = Asked.of_git(actor, request.service, request.exchange, via=request.via)
        try:
            with (
                self._node.measures.request(asked) as answer,
                self._sessions.one(actor, address),
                self._watch.over(client, actor, address) as watched,
            ):
                code = _git(request, lambda: session.serve(self._node, request, watched))
                return answer.ended(code, gone=client.gone)
        except (DiskFailed, OSError) as error:
            raise self._of_disk(error, address) from error

    def _of_disk(self, error: DiskFailed | OSError, address: str) -> Exception:
        """The error for a person, where it comes of this device's disk."""
        disk = failing.of_error(error)
        if disk is None:
            return error
        _log.error("%s: %s", address, error.__cause__ or error)
        return disk.on(self._node.name)

    def _run(self, actor: Actor, command: Command, client: Client, *, protocol: str, address: str) -> int:
        node, kind = self._node, actor.kind
        # A connection outlives its key: what looks at the repository asks for that in the same breath.
        if not isinstance(command, ServiceCommand | PackCommand) and not node.db.proves(actor):
            raise key_gone()
        match command:
            case ServiceCommand():
                via = "import" if kind is ActorKind.OPERATOR else "ssh"
                request = Request(
                    actor, command.service, command.repository, protocol=protocol, via=via, address=address
                )
                return _git(request, lambda: session.serve(node, request, client))
            case ProxyCommand() if kind is ActorKind.DEVICE:
                request = _vouched_for(command, by=actor.name)
                return _git(request, lambda: session.serve(node, request, client))
            case StageCommand() if kind is ActorKind.DEVICE:
                return stage.keep(node, command, client, actor)
            case UnstageCommand() if kind is ActorKind.DEVICE:
                return stage.release(node, command, actor)
            case PackCommand() if kind is ActorKind.DEVICE:
                return pulling.give(node, command, client, actor)
            case OperatorCommand() if kind is ActorKind.OPERATOR:
                return admin.answer(node, command, client)
            case PingCommand() if kind is not ActorKind.USER:
                return ping.answer(node.name, client)
            case UserCommand() if kind is ActorKind.USER:
                arguments = {"arguments": " ".join(command.arguments)[:200] or None}
                return _logged(
                    command.verb,
                    arguments,
                    actor,
                    address,
                    lambda: commands.run(node, actor, command, client),
                )
        raise Refused(
            f"{'an' if kind is ActorKind.OPERATOR else 'a'} {kind}'s key may not do that",
            hint="git clone, fetch and push are what it is for",
        )

    def greeting(self, actor: Actor) -> str:
        with suppress(DatabaseUnavailable):  # then it is as far as anybody gets
            if not self._node.db.proves(actor):
                raise key_gone()
        return (
            f"Hello {actor.name}: you have reached device {self._node.name} of git-cluster {self._node.cluster!r}. "
            "It gives no shell; use it with git clone, fetch and push. `ssh git@host help` lists what else it does."
        )


def _asked(actor: Actor, command: Command) -> Asked:
    """What is counted of a command."""
    by_device = actor.kind is ActorKind.DEVICE
    match command:
        case ServiceCommand():
            return Asked.of_git(actor, command.service, Exchange.STREAM, via="ssh")
        case ProxyCommand() if by_device:
            return Asked.of_git(actor, command.service, command.exchange, via=command.via, through=True)
    kind = type(command).__name__.removesuffix("Command").lower()
    return Asked("peer" if by_device else "ssh", kind, by_user=False)


def _vouched_for(command: ProxyCommand, by: str) -> Request:
    """A user's request that device `by` passes on. Whether their key still counts is looked up as for everybody."""
    user = Actor(
        command.kind, command.user, command.fingerprint, command.certified_until, read_only=command.read_only
    )
    return Request(
        user,
        command.service,
        command.repository,
        protocol=command.protocol,
        via=command.via,
        address=command.address,
        through=by,
        exchange=command.exchange,
    )


def _git(request: Request, serve: Callable[[], int]) -> int:
    """Serve what Git's client asks for, and leave a line."""
    of = {"repository": request.repository, "through": request.through or None}
    return _logged(request.service, of, request.actor, request.address, serve)


def _logged(what: str, of: Mapping[str, object], actor: Actor, address: str, serve: Callable[[], int]) -> int:
    """Serve, and leave one line about it."""
    begun, outcome, why, level = time.monotonic(), "failed", None, logging.INFO
    try:
        code = serve()
        outcome = str(code)
        return code
    except ClusterError as error:
        why = error.what
        if actor.kind is ActorKind.ANONYMOUS and isinstance(error, Refused):
            level = logging.DEBUG  # how each of Git's requests over HTTP begins: it is asked for a token then
        raise
    finally:
        _log.log(
            level,
            "%s",
            what,
            extra=logs.fields(
                **of,
                actor=actor.name,
                kind=actor.kind,
                address=address,
                exit=outcome,
                ms=round((time.monotonic() - begun) * 1000),
                why=why,
            ),
        )
