"""From a command of a known actor to whoever carries it out: the same for every endpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from cluster import admin, commands, failing, logs, session, stage
from cluster.client import Client
from cluster.errors import DatabaseUnavailable, DiskFailed, Refused
from cluster.model import Actor, ActorKind, Request
from cluster.names import Command, OperatorCommand, ServiceCommand, StageCommand, UnstageCommand, UserCommand
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
            raise Refused("this key is not registered here any more", hint="ask an administrator")
        match command:
            case ServiceCommand():
                via = "import" if kind is ActorKind.OPERATOR else "ssh"
                request = Request(
                    actor, command.service, command.repository, protocol=protocol, via=via, address=address
                )
                what, of = request.service, {"repository": request.repository}
                return _logged(what, of, actor, address, lambda: session.serve(node, request, client))
            case StageCommand() if kind is ActorKind.DEVICE:
                return stage.keep(node, command, client)
            case UnstageCommand() if kind is ActorKind.DEVICE:
                return stage.release(node, command)
            case OperatorCommand() if kind is ActorKind.OPERATOR:
                return admin.answer(node, command, client)
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
        return (
            f"Hello {actor.name}: you have reached device {self._node.name} of git-cluster {self._node.cluster!r}. "
            "It gives no shell; use it with git clone, fetch and push. `ssh git@host help` lists what else it does."
        )


def _logged(what: str, of: Mapping[str, object], actor: Actor, address: str, serve: Callable[[], int]) -> int:
    """Serve, and leave one line about it."""
    begun, outcome = time.monotonic(), "failed"
    try:
        code = serve()
        outcome = str(code)
        return code
    finally:
        _log.info(
            "%s",
            what,
            extra=logs.fields(
                **of,
                actor=actor.name,
                kind=actor.kind,
                address=address,
                exit=outcome,
                ms=round((time.monotonic() - begun) * 1000),
            ),
        )
