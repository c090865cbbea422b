"""Archives: GET /<repository>[.git]/-/archive/<ref>.tar.gz|.tgz|.tar|.zip, through the same session as any other read.

Git makes them (cluster/archive.py), here or on a device that has the repository; they are passed on as they come.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response

from cluster.archive import MOST_REF, Wanted
from cluster.endpoint import unforeseen
from cluster.errors import ClientGone, ClusterError, NotFound, PeerFailed, Refused
from cluster.http.answers import in_words
from cluster.http.connection import ABORT
from cluster.http.git import asks_for_a_token, realm
from cluster.http.git_client import HttpClient
from cluster.http.guard import LOGGED
from cluster.http.site import Site
from cluster.http.who import address_of
from cluster.model import Exchange, Request, Service
from cluster.names import repository_name, shown

TYPES = {
    ".tar.gz": ("tar.gz", "application/gzip"),
    ".tgz": ("tar.gz", "application/gzip"),
    ".tar": ("tar", "application/x-tar"),
    ".zip": ("zip", "application/zip"),
}
WHERE = "/-/archive/"
MOST_TAGS = 20
"""Commits that a client may say that it has."""

DAY = 86400

_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]")
_TAG = re.compile(r'"([0-9a-f]{40}|[0-9a-f]{64})"')


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked for: suffix is one of TYPES."""

    repository: str
    ref: str
    suffix: str

    @property
    def stem(self) -> str:
        """What the archive is called, and the folder in it."""
        return f"{self.repository.rpartition('/')[2]}-{self.ref.replace('/', '-')}"


def asked(path: str) -> Ask | None:
    """The archive that a path (decoded) asks for; None: it asks for none. NotFound: of a kind that is not made."""
    repository, between, name = path.partition(WHERE)
    if not between:
        return None
    suffix = next((suffix for suffix in TYPES if name.endswith(suffix)), None)
    if suffix is None or name == suffix:
        raise NotFound("there is no such archive", hint="its address ends in <ref>.tar.gz, .tar or .zip")
    return Ask(repository_name(repository), name.removesuffix(suffix)[: MOST_REF + 1], suffix)


def disposition(name: str) -> str:
    """Content-Disposition for a file of any name (RFC 6266): whatever it holds, it ends no quote, names no folder."""
    plain, exact = _UNSAFE.sub("_", name), quote(name, safe="")
    return f'attachment; filename="{plain}"' + ("" if plain == name else f"; filename*=UTF-8''{exact}")


def already_there(if_none_match: str) -> tuple[str, ...]:
    """The commits whose archives a client says it has."""
    if if_none_match.strip() == "*":
        return ("*",)
    return tuple(_TAG.findall(if_none_match)[:MOST_TAGS])


class Archives:
    """An ASGI application for what `asked` understands."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def answer(self, ask: Ask, scope: Any, receive: Any, send: Any) -> None:
        connection = HTTPConnection(scope)
        if scope["method"] not in ("GET", "HEAD"):
            words = "cluster: error: an archive is asked for with GET\n"
            await PlainTextResponse(words, 405, headers={"Allow": "GET, HEAD"})(scope, receive, send)
            return
        actor = await self._site.who.asks(connection)
        request = Request(
            actor,
            Service.UPLOAD_ARCHIVE,
            ask.repository,
            via="http",
            address=address_of(connection),
            exchange=Exchange.ARCHIVE,
        )
        there = already_there(connection.headers.get("if-none-match", ""))
        unless = ("*",) if scope["method"] == "HEAD" else there
        wanted = Wanted(TYPES[ask.suffix][0], f"{ask.stem}/", ask.ref, unless)
        client = _Client(receive, send, scope["extensions"][ABORT], wanted.said(), _headers(ask))
        scope["extensions"][LOGGED] = True
        answer = await client.carry(lambda: self._serve(ask, request, client, there), self._site.sessions)
        if answer is not None:
            await answer(scope, receive, send)

    def _serve(self, ask: Ask, request: Request, client: _Client, there: tuple[str, ...]) -> Response | None:
        """In a thread: the session. What to answer where it has not begun to."""
        error = self._session(ask, request, client)
        if client.started or client.gone:
            if error is not None:
                client.hang_up()  # half an archive must not look like a whole one
            return None
        if error is not None:
            return self._refusal(request, error)
        unchanged = "*" in there or client.commit in there
        answer = Response(None, 304 if unchanged else 200, headers=client.tags)
        if "content-length" in answer.headers:
            del answer.headers["content-length"]  # of HEAD: nobody knows how long it would be
        return answer

    def _session(self, ask: Ask, request: Request, client: _Client) -> ClusterError | None:
        try:
            code = self._site.requests.serve(request, client)
        except ClusterError as error:
            return error
        except Exception:
            return unforeseen(request.address)
        if client.commit == "":
            return _NoSuchRef(
                f"{ask.repository} has no branch, tag or commit {shown(ask.ref)}",
                hint="a commit is found by its full id, where a branch or tag reaches it",
            )
        if code or client.commit is None:
            said = [line.removeprefix("error: ") for line in client.unsaid()]  # by another device
            return Refused(said[0], hint=" ".join(said[1:])) if said else _not_made()
        return None

    def _refusal(self, request: Request, error: ClusterError) -> Response:
        if not isinstance(error, _NoSuchRef):
            error = asks_for_a_token(self._site, request, error)
        return in_words(error, realm(self._site))


class _NoSuchRef(NotFound):
    """Of a repository that may be read."""


def _not_made() -> PeerFailed:
    return PeerFailed("the archive could not be made", hint="try again; the device's log says more")


def _headers(ask: Ask) -> dict[str, str]:
    return {
        "content-type": TYPES[ask.suffix][1],
        "content-disposition": disposition(ask.stem + ask.suffix),
        "cache-control": f"private, max-age={DAY}" if _OID.fullmatch(ask.ref) else "private, no-cache",
        "vary": "Authorization, Cookie",
    }


class _Client(HttpClient):
    """Says what is wanted, and takes apart what comes: which commit it is, then bytes to pass on."""

    commit: str | None = None
    """That of the archive; "": there is none; None: nothing has been heard yet."""

    def __init__(
        self,
        receive: Any,
        send: Any,
        abort: Callable[[], None],
        said: bytes,
        headers: dict[str, str],
    ) -> None:
        super().__init__(receive, send, abort, headers=[])
        self._said, self._begin_with, self.tags = said, b"", headers

    def read(self, size: int) -> bytes:
        data, self._said = self._said[:size], self._said[size:]
        return data

    def write(self, data: bytes) -> None:
        if self.commit is None:
            data = self._heard(data)
        self._put(data)

    def _heard(self, data: bytes) -> bytes:
        """What follows the first packet; b"" while that is not whole."""
        self._begin_with += data
        size = 4
        if len(self._begin_with) >= 4:
            with suppress(ValueError):
                size = int(self._begin_with[:4], 16)
        if len(self._begin_with) < max(size, 5):
            return b""
        words, rest = self._begin_with[4:size].decode("ascii", "replace").split(), self._begin_with[size:]
        if words[:1] == ["commit"] and len(words) == 2 and _OID.fullmatch(words[1]):
            self.commit = words[1]
            self.tags = {**self.tags, "etag": f'W/"{self.commit}"'}
            self._headers = [(name.encode(), value.encode("latin-1")) for name, value in self.tags.items()]
        elif words == ["none"]:
            self.commit = ""
        else:
            raise ClientGone("this is no archive")
        return rest
