"""A request that another device answers, passed on for the user: bytes both ways, nothing added, nothing kept.

    client ──▶ this device ──git-cluster-proxy──▶ a device that has the repository
           ◀──             ◀──stdout, stderr, exit code──

This device vouches for who the user is, by its own key, and for nothing else: the other one looks in the database
whether the user's key still counts and what they may do (session.authorize). It refuses what it cannot answer itself.

Until a byte of its answer has come, a device that is lost is replaced by the next one, and nobody notices: for nothing
that the client said has been used up. upload-pack and receive-pack speak first, so nothing is read from the client
until they have; of upload-archive and over HTTP, where the client speaks first, the request is kept and said again.

No lock and no database connection is held (G5). Each direction has one thread that reads a piece and writes it, so
whoever is slow slows down the other side, and no more than SSH's windows is in memory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Thread

from cluster.client import Client, Input, write_all
from cluster.errors import ClientGone, PeerFailed
from cluster.logs import fields
from cluster.model import Device, Exchange, Request, Service
from cluster.node import Node
from cluster.remote import Remote
from cluster.ssh_command import UNABLE, ProxyCommand
from cluster.upload import whole_request

MOST_KEPT = 1 << 20
"""Bytes of a stateless request that are kept, to be said to another device. Of a longer one the first device that takes
it has to answer."""

PIECE = 1 << 20
"""Bytes that are passed on at once, at the most."""

FINISH = 30.0
"""Seconds for a device to say how a command has ended whose output is at its end."""

_log = logging.getLogger(__name__)


def pass_on(
    node: Node,
    request: Request,
    devices: Sequence[Device],
    client: Client,
    otherwise: Callable[[Client], int] | None,
) -> int:
    """Have the first of `devices` that can be reached answer; its exit code.

    otherwise: what is done when none of them can be, with a client that has lost nothing. PeerFailed where that is
    None, and where a device is lost after it had begun to answer. ClientGone.
    """
    passage = _Passage(node, request, client)
    for device in devices:
        if client.gone:
            raise ClientGone("the client hung up")
        try:
            return passage.through(device)
        except PeerFailed as error:
            if passage.begun:
                raise
            _log.warning("%s; the next device is asked", error.what, exc_info=error.__cause__)
    if otherwise is not None:
        return otherwise(_Unread(client, passage.unused()))
    tried = " and ".join(device.name for device in devices)
    raise PeerFailed(
        f"{request.repository} is not kept on device {node.name}, and no device that has it answers: tried {tried}",
        hint="try again in a moment; an administrator sees with `git-cluster status` which devices are up",
    )


def command_for(request: Request) -> ProxyCommand:
    """What a device asks another one for, to pass `request` on."""
    actor = request.actor
    return ProxyCommand(
        request.service,
        request.repository,
        user=actor.name,
        fingerprint=actor.fingerprint,
        certified_until=actor.certified_until,
        protocol=request.protocol,
        via=request.via,
        address=request.address,
        kind=actor.kind,
        read_only=actor.read_only,
        exchange=request.exchange,
    )


class _Passage:
    """One client's request on its way. begun: a byte of an answer has come, so no other device can be asked."""

    def __init__(self, node: Node, request: Request, client: Client) -> None:
        self._node, self._request, self._client = node, request, client
        self._command = str(command_for(request))
        self._input = Input(client)
        self._said, self._more = b"", True
        if request.exchange is Exchange.ADVERTISEMENT:
            self._more = False
        elif request.exchange is Exchange.STATELESS:
            self._said = self._input.read(MOST_KEPT)
            self._more = len(self._said) == MOST_KEPT
        elif request.service is Service.UPLOAD_ARCHIVE:
            self._said, self._more = whole_request(self._input)
        self.begun = False

    def unused(self) -> bytes:
        """What was read from the client, when no device has answered."""
        return self._said + self._input.rest()

    def through(self, device: Device) -> int:
        """The exit code. PeerFailed where the device, or the way to it, failed."""
        begun, outcome = time.monotonic(), "failed"
        try:
            with self._node.peers.run(device, self._command) as remote:
                code = self._carry(remote)
            outcome = str(code)
            return code
        except PeerFailed as error:
            if self._client.gone:
                raise ClientGone("the client hung up") from error
            if self.begun:
                raise self._lost(device) from error
            raise
        finally:
            _log.info(
                "proxied",
                extra=fields(
                    repository=self._request.repository,
                    actor=self._request.actor.name,
                    address=self._request.address,
                    device=device.name,
                    exit=outcome,
                    ms=round((time.monotonic() - begun) * 1000),
                ),
            )

    def _carry(self, remote: Remote) -> int:
        client = self._client
        wanted = (client.write_error, lambda: not client.gone)
        errors = Thread(target=remote.pass_stderr_on, args=wanted, name="proxy errors", daemon=True)
        errors.start()
        try:
            if (
                self._more and self._request.exchange is Exchange.STATELESS
            ):  # it answers when it has all of it
                self.begun = True
                Thread(target=self._tell, args=(remote,), name="proxy requests", daemon=True).start()
            else:
                remote.send(self._said)
                if not self._more:
                    remote.send_eof()
            if (data := remote.receive(PIECE)) and not self.begun:
                self.begun = True
                Thread(target=self._listen, args=(remote,), name="proxy requests", daemon=True).start()
            while data:
                client.write(data)
                data = remote.receive(PIECE)
            code = remote.finish(FINISH)
            if code == UNABLE:
                raise PeerFailed(f"device {remote.device} cannot answer now", hint="Its log says why.")
            return code
        except BaseException:
            remote.abandon()
            raise
        finally:
            errors.join()

    def _tell(self, remote: Remote) -> None:
        with suppress(PeerFailed):  # who receives notices it as well
            remote.send(self._said)
            self._listen(remote)

    def _listen(self, remote: Remote) -> None:
        """What the client sends, to the device. Ends with the command at the latest: nothing can be sent to it then."""
        try:
            while data := self._input.read1():
                remote.send(data)
        except PeerFailed:
            return  # who receives notices it as well
        if self._client.gone:
            remote.abandon()
        else:
            remote.send_eof()

    def _lost(self, device: Device) -> PeerFailed:
        what = f"the connection to device {device.name}, which has {self._request.repository}, was lost"
        if self._request.service.writes:
            return PeerFailed(
                what, hint="the push may have happened all the same: fetch to see, then push again"
            )
        return PeerFailed(what, hint="try again: another device is asked then, where there is one")


class _Unread:
    """A Client whose first words were read already, and are read again."""

    def __init__(self, client: Client, said: bytes) -> None:
        self._client, self._said = client, said
        self.write, self.write_error, self.say = client.write, client.write_error, client.say
        self.send_from, self.hang_up = client.send_from, client.hang_up

    def read(self, size: int) -> bytes:
        if not self._said:
            return self._client.read(size)
        data, self._said = self._said[:size], self._said[size:]
        return data

    def receive_into(self, fd: int, stirred: Callable[[], None] = lambda: None) -> None:
        said, self._said = self._said, b""
        write_all(fd, said)
        self._client.receive_into(fd, stirred)

    @property
    def gone(self) -> bool:
        return self._client.gone
