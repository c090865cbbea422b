"""From a command of a known actor to whoever carries it out: the same for every endpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from cluster import admin, certificates, failing, logs, session, stage
from cluster.client import Client
from cluster.db import key_gone
from cluster.errors import DatabaseUnavailable, DiskFailed, Refused
from cluster.model import Actor, ActorKind, Request
from cluster.names import Command, OperatorCommand, ServiceCommand, StageCommand, UnstageCommand, shown
from cluster.node import Node

_log = logging.getLogger(__name__)


class Requests:
    """What an endpoint asks of this device. Called from many threads."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def authenticate(self, key_type: str, key_base64: str, fingerprint: str) -> Actor | None:
        try:
            return self._node.db.identity(fingerprint)
        except DatabaseUnavailable:
            if self._node.memory is None:
                raise
            return self._node.memory.authenticate(fingerprint)

    def certified(self, key_type: str, certificate: str, address: str) -> Actor | None:
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
                _log.info("%s: a certificate was not looked up: the database is away", address)
                return None  # another key of theirs may be remembered
            if len(users) != 1:
                whom = ", ".join(map(shown, found.principals[:5]))
                which = "none of its principals is an enabled user" if not users else "it names several users"
                raise Refused(f"{which}: {whom}")
        except Refused as error:
            _log.info("%s: a certificate proves nobody: %s", address, error.what)
            return None
        return users[0]

    def run(self, actor: Actor, command: Command, client: Client, *, protocol: str, address: str) -> int:
        """Hand a command to whoever carries it out, if this actor may give it at all."""
        try:
            return self._run(actor, command, client, protocol=protocol, address=address)
        except (DiskFailed, OSError) as error:
            disk = failing.of_error(error)
            if disk is None:
                raise
            _log.error("%s: %s", address, error.__cause__ or error)
            raise disk.on(self._node.name) from error

    def _run(self, actor: Actor, command: Command, client: Client, *, protocol: str, address: str) -> int:
        node, kind = self._node, actor.kind
        # A connection outlives its key: Git's requests are checked in session.authorize, the others here.
        if not isinstance(command, ServiceCommand) and not node.db.proves(actor):
            raise key_gone()
        match command:
            case ServiceCommand():
                via = "import" if kind is ActorKind.OPERATOR else "ssh"
                request = Request(
                    actor, command.service, command.repository, protocol=protocol, via=via, address=address
                )
                return _logged(request, lambda: session.serve(node, request, client))
            case StageCommand() if kind is ActorKind.DEVICE:
                return stage.keep(node, command, client)
            case UnstageCommand() if kind is ActorKind.DEVICE:
                return stage.release(node, command)
            case OperatorCommand() if kind is ActorKind.OPERATOR:
                return admin.answer(node, command, client)
        raise Refused(f"a {kind}'s key may not do that", hint="git clone, fetch and push are what it is for")

    def greeting(self, actor: Actor) -> str:
        with suppress(DatabaseUnavailable):  # then it is as far as anybody gets
            if not self._node.db.proves(actor):
                raise key_gone()
        return (
            f"Hello {actor.name}: you have reached device {self._node.name} of git-cluster {self._node.cluster!r}. "
            "It gives no shell; use it with git clone, fetch and push."
        )


def _logged(request: Request, serve: Callable[[], int]) -> int:
    """Serve, and leave one line about it."""
    begun, outcome = time.monotonic(), "failed"
    try:
        code = serve()
        outcome = str(code)
        return code
    finally:
        _log.info(
            "%s",
            request.service,
            extra=logs.fields(
                repository=request.repository,
                actor=request.actor.name,
                kind=request.actor.kind,
                address=request.address,
                exit=outcome,
                ms=round((time.monotonic() - begun) * 1000),
            ),
        )
