"""Git's smart protocol over HTTP (Documentation/gitprotocol-http.txt), through the same session and gate as SSH.

    GET  /<repository>[.git]/info/refs?service=git-upload-pack|git-receive-pack    what there is: a read, no lock
    POST /<repository>[.git]/git-upload-pack                                       a clone or fetch
    POST /<repository>[.git]/git-receive-pack                                      a push
    POST /<repository>[.git]/git-upload-archive                                    an archive, by Git 2.44 or newer

What is to be said to the person goes into the answer, where that has a place for it (bands.py); what is said during a
listing, which has none, is told with the next answer on that connection. Errors are words: the body of a status where
Git shows that, which is at its first request; later ERR, the third side-band, or the report of a push.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dulwich.protocol import pkt_line
from starlette.requests import HTTPConnection
from starlette.responses import Response

from cluster.client import CHUNK
from cluster.endpoint import git_protocol, unforeseen
from cluster.errors import ClientGone, ClusterError, DatabaseUnavailable, NotFound, Refused, UsageError
from cluster.http.answers import in_words
from cluster.http.connection import ABORT
from cluster.http.git_client import HttpClient
from cluster.http.guard import LOGGED
from cluster.http.site import Site
from cluster.http.who import GET_ONE, Unauthenticated, address_of
from cluster.model import ActorKind, Exchange, Request, Service
from cluster.names import repository_name, shown
from cluster.report import Commands, frame

MOST_NEGOTIATION = 64 << 20
"""Bytes of what a client has and wants, expanded. Git's own http-backend takes 10 MiB of it."""

MOST_REMEMBERED = 1000
REMEMBERED = 60.0
"""Clients, and seconds, for which lines are kept that an answer had no place for."""

SERVICES = {service.value: service for service in Service}

_NO_CACHE = [
    (b"cache-control", b"no-cache, max-age=0, must-revalidate"),
    (b"expires", b"Fri, 01 Jan 1980 00:00:00 GMT"),
    (b"pragma", b"no-cache"),
    (b"x-content-type-options", b"nosniff"),
]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ask:
    """What a path below a repository asks for."""

    repository: str
    service: Service
    exchange: Exchange


def asked(method: str, path: str, query: dict[str, str]) -> Ask | None:
    """What of Git's is asked for; None: nothing. UsageError where it is asked in a way that is not answered.

    path: decoded, with its first slash.
    """
    repository, _, last = path.rpartition("/")
    if last in SERVICES:
        if method != "POST":
            raise UsageError(f"{last} is asked for with POST", hint="use Git's own client")
        return Ask(repository_name(repository), SERVICES[last], Exchange.STATELESS)
    if path.endswith("/info/refs"):
        name = repository_name(path.removesuffix("/info/refs"))
        service = query.get("service")
        if service is None:
            raise _dumb()
        if service not in SERVICES or service == Service.UPLOAD_ARCHIVE:
            raise UsageError(f"{shown(service)} is no service that lists refs", hint="use Git's own client")
        return Ask(name, SERVICES[service], Exchange.ADVERTISEMENT)
    if "/-/" not in path and (path.endswith("/HEAD") or "/objects/" in path):
        raise _dumb()
    return None


def _dumb() -> Refused:
    return Refused(
        "this server speaks Git's smart protocol only, not the dumb one",
        hint="use Git 1.6.6 or newer, and leave GIT_SMART_HTTP alone",
    )


@dataclass(slots=True)
class Unsaid:
    """What clients have not been told yet. Used in the server's loop alone."""

    _of: OrderedDict[object, tuple[float, list[str]]] = field(default_factory=OrderedDict)

    def keep(self, client: object, lines: list[str]) -> None:
        if lines:
            self._of[client] = (time.monotonic(), lines)
            while len(self._of) > MOST_REMEMBERED:
                self._of.popitem(last=False)

    def take(self, client: object) -> list[str]:
        at, lines = self._of.pop(client, (0.0, []))
        return lines if time.monotonic() - at < REMEMBERED else []


class Git:
    """An ASGI application for what `asked` understands."""

    def __init__(self, site: Site) -> None:
        self._site, self._unsaid = site, Unsaid()

    async def answer(self, ask: Ask, scope: Any, receive: Any, send: Any) -> None:
        """One request, from its actor to its last byte."""
        connection = HTTPConnection(scope)
        try:
            actor = await self._site.who.asks(connection)
            gzip = _encoding(connection, ask)
        except ClusterError as error:
            await self._in_words(error)(scope, receive, send)
            return
        request = Request(
            actor,
            ask.service,
            ask.repository,
            protocol=git_protocol(connection.headers.get("git-protocol", "")) or "",
            via="http",
            address=address_of(connection),
            exchange=ask.exchange,
        )
        client = HttpClient(
            receive,
            send,
            scope["extensions"][ABORT],
            headers=[(b"content-type", content_type(ask).encode()), *_NO_CACHE],
            first=_first(ask, request.protocol),
            gzip=gzip,
            most=None if ask.service.writes else MOST_NEGOTIATION,
        )
        person = (scope["client"], actor, ask.repository)
        scope["extensions"][LOGGED] = True
        for line in self._unsaid.take(person):
            client.say(line)
        refusal = await client.carry(lambda: self._serve(request, client), self._site.sessions)
        if refusal is not None:
            await refusal(scope, receive, send)
        else:
            self._unsaid.keep(person, client.unsaid())

    def _serve(self, request: Request, client: HttpClient) -> Response | None:
        """In a thread: the session. What to answer where it has not begun to, and went wrong."""
        error = self._session(request, client)
        if error is None:
            return None
        if not client.started and not client.gone:
            return self._refusal(request, client, error)
        _log.info("%s: %s: %s", request.address, request.service, error.what)
        if client.gone or not request.moves_refs or client.whole:
            client.hang_up()  # half an answer must not look like a whole one
        else:
            with suppress(ClientGone):
                client.write(_pushed(error, client))
        return None

    def _session(self, request: Request, client: HttpClient) -> ClusterError | None:
        try:
            code = self._site.requests.serve(request, client)
        except ClusterError as error:
            return error
        except Exception:
            return unforeseen(request.address)
        if client.fault and not client.started:
            return UsageError(f"the body of this request cannot be used: {client.fault}", hint="try again")
        if code and not (client.whole if request.moves_refs else client.started):
            said = [line.removeprefix("error: ") for line in client.unsaid()]  # by another device
            return Refused(said[0] if said else "Git could not answer this", hint=" ".join(said[1:]))
        return None

    def _refusal(self, request: Request, client: HttpClient, error: ClusterError) -> Response:
        """No, in the words that the request's kind of answer has for it."""
        error = asks_for_a_token(self._site, request, error)
        if request.exchange is Exchange.ADVERTISEMENT or isinstance(error, Unauthenticated | UsageError):
            return self._in_words(error)
        body = _pushed(error, client) if request.service.writes else _error_packet(error)
        headers = {name.decode(): value.decode() for name, value in _NO_CACHE}
        kind = f"application/x-{request.service}-result"
        return Response(body, 200, headers=headers, media_type=kind)

    def _in_words(self, error: ClusterError) -> Response:
        return in_words(error, realm(self._site))


def realm(site: Site) -> str:
    """What a person sees who is asked for a token."""
    return "git-cluster " + "".join(c for c in site.node.cluster if c.isalnum() or c in " ._-")


def asks_for_a_token(site: Site, request: Request, error: ClusterError) -> ClusterError:
    """The error itself, or for somebody anonymous, whom a token would help, that there is none."""
    if request.actor.kind is ActorKind.ANONYMOUS:
        if isinstance(error, Refused):
            return Unauthenticated(_who_are_you(request, error), hint=GET_ONE)
        if isinstance(error, DatabaseUnavailable) and site.node.memory is not None:
            return Unauthenticated(error.what, hint=error.hint)  # a token may be remembered
    return error


def _who_are_you(request: Request, error: Refused) -> str:
    """The same for a repository that is not there and for one that is closed."""
    if isinstance(error, NotFound) or not request.service.writes:
        return f"there is no {request.repository} that everyone may read"
    return f"nobody pushes to {request.repository} without a token"


def content_type(ask: Ask) -> str:
    end = "advertisement" if ask.exchange is Exchange.ADVERTISEMENT else "result"
    return f"application/x-{ask.service}-{end}"


def _first(ask: Ask, protocol: str) -> bytes:
    """What smart servers say first, before protocol v2."""
    if ask.exchange is not Exchange.ADVERTISEMENT or (
        "version=2" in protocol.split(":") and not ask.service.writes
    ):
        return b""
    return bytes(pkt_line(f"# service={ask.service}\n".encode()) + pkt_line(None))


def _encoding(connection: HTTPConnection, ask: Ask) -> bool:
    """Whether the body is compressed. UsageError: in a way that is not read, or it is no body of Git's."""
    if ask.exchange is Exchange.ADVERTISEMENT:
        return False
    wanted = f"application/x-{ask.service}-request"
    if connection.headers.get("content-type", "").partition(";")[0].strip() != wanted:
        raise UsageError(f"the body of this request must be {wanted}", hint="use Git's own client")
    encoding = connection.headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip", "x-gzip"):
        raise UsageError("the body of this request may be compressed with gzip only")
    return encoding != "identity"


def _error_packet(error: ClusterError) -> bytes:
    """Git shows it as "remote error: …"."""
    text = "\ncluster: ".join(["cluster: " + error.what, *error.lines()[1:]])
    return bytes(pkt_line(b"ERR " + text.encode(errors="replace")[:4000]))


def _pushed(error: ClusterError, client: HttpClient) -> bytes:
    """A push that ended without a report of Git's, for a client that may know side-bands: its first line says so.

    Git's own words come first: over SSH they would have been on standard error.
    """
    while not client.head and client.read(CHUNK):
        pass
    commands = Commands(1)
    commands.feed(client.head)
    first, *rest = error.lines()
    if b"side-band-64k" in commands.capabilities:
        lines = [*client.words.splitlines(), *(f"cluster: {line}".encode() for line in rest)]
        packets = [frame(b"\2", line + b"\n") for line in lines]
        return b"".join([*packets, frame(b"\3", f"cluster: error: {first}\n".encode())])
    return bytes(pkt_line(f"unpack {first}\n".encode()) + pkt_line(None))
