"""Templates, and what goes with every page: security headers, who is signed in, errors as pages."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from importlib import resources
from typing import Any
from urllib.parse import quote, urlencode

import jinja2
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from cluster import access
from cluster.errors import ClusterError, NotFound
from cluster.http.answers import RETRY, status_of
from cluster.http.pages import words
from cluster.http.pages.lookout import Lookout
from cluster.http.pages.sight import Sight, sight
from cluster.http.site import Site
from cluster.http.who import COOKIE, Unauthenticated, csrf_token
from cluster.model import ANONYMOUS, Actor
from cluster.status import moment

_log = logging.getLogger(__name__)

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
    "Vary": "Cookie, Authorization",
}
"""What goes with every page. The referrer stays within this server, where a form's origin is compared."""

HSTS = "max-age=31536000"
_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}

Answer = Callable[["Visit"], Awaitable[Response]]


class Visit:
    """One request for a page: by whom, and what they may see."""

    def __init__(self, request: Request, sight: Sight) -> None:
        self.request, self.sight = request, sight
        self.cookie = request.cookies.get(COOKIE, "") if "authorization" not in request.headers else ""

    @property
    def actor(self) -> Actor:
        return self.sight.actor

    def query(self, name: str, most: int = 300) -> str:
        """A parameter of the URL; without what no name holds, and no longer than so many characters."""
        return "".join(c for c in self.request.query_params.get(name, "")[:most] if c.isprintable()).strip()

    def number(self, name: str) -> int | None:
        """A parameter that is a positive number; None: there is none, or it is something else."""
        text = self.request.query_params.get(name, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


class Pages:
    """Everything that the pages share."""

    def __init__(self, site: Site) -> None:
        self.site, self.lookout = site, Lookout(site)
        self._files = {
            entry.name: entry.read_bytes()
            for entry in resources.files(__package__).joinpath("static").iterdir()
            if entry.is_file()
        }
        self._version = hashlib.sha256(
            b"".join(self._files[name] for name in sorted(self._files))
        ).hexdigest()[:12]
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader(__package__),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.filters.update(
            moment=moment,
            size=words.size,
            duration=words.duration,
            span=words.span,
            change=words.change,
            prose=prose,
        )
        self._templates.globals.update(
            ago=words.ago,
            url=repository_url,
            asset=lambda name: f"/-/static/{name}?v={self._version}",
            q=queried,
        )

    def route(self, path: str, answer: Answer, *, methods: tuple[str, ...] = ("GET",)) -> BaseRoute:
        """A page. Errors become pages; who must sign in first is sent there and back."""

        async def endpoint(request: Request) -> Response:
            visit = Visit(request, Sight(ANONYMOUS, ()))
            try:
                actor = await self.site.who.asks(request)
                visit = Visit(request, await self.site.ask(lambda: sight(self.site.node.db, actor)))
                return await answer(visit)
            except Unauthenticated as error:
                if "authorization" in request.headers or request.method != "GET":
                    return self.failed(visit, error)
                return self.to_login(request)
            except ClusterError as error:
                return self.failed(visit, error)
            except Exception:
                _log.exception("%s %s failed", request.method, request.url.path[:200])
                return self.failed(
                    visit, ClusterError("this page could not be made", hint="the log of this device says why")
                )

        return Route(path, endpoint, methods=list(methods))

    def page(self, visit: Visit, template: str, status: int = 200, **values: Any) -> Response:
        secure = visit.request.url.scheme == "https"
        text = self._templates.get_template(template).render(
            cluster=self.site.node.cluster,
            device=self.site.node.name,
            actor=visit.actor,
            signed_in=visit.sight.known,
            by_cookie=bool(visit.cookie),
            administers=visit.sight.known and access.administers(visit.sight.grants),
            csrf=csrf_token(visit.cookie) if visit.cookie else "",
            here=visit.request.url.path,
            **{"rendered": datetime.now(UTC), **values},
        )
        headers = HEADERS | ({"Strict-Transport-Security": HSTS} if secure else {})
        return Response(text, status, headers, media_type="text/html")

    def failed(self, visit: Visit, error: ClusterError) -> Response:
        """An error as a page: the words of the command line."""
        status = status_of(error)
        if status >= 500:
            _log.warning("%s: %s", visit.request.url.path[:200], error.what, exc_info=error.__cause__)
        response = self.page(visit, "error.html", status, error=error, may_help=status in (401, 403, 404))
        if status == 503:
            response.headers["Retry-After"] = str(RETRY)
        if status == 401:
            response.headers["WWW-Authenticate"] = 'Bearer realm="git-cluster"'
        return response

    def to_login(self, request: Request) -> Response:
        back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return redirect("/-/login?" + urlencode({"next": back}))

    def static(self) -> list[BaseRoute]:
        async def file(request: Request) -> Response:
            name = request.path_params["name"]
            if name not in self._files:
                raise NotFound("there is nothing at this address", hint="the status page is at /-/")
            return Response(
                self._files[name],
                headers={
                    "Cache-Control": "public, max-age=31536000, immutable",
                    "X-Content-Type-Options": "nosniff",
                    "Cross-Origin-Resource-Policy": "same-origin",
                },
                media_type=_TYPES.get(name.rpartition(".")[2], "application/octet-stream"),
            )

        return [Route("/-/static/{name}", file)]


def prose(text: str) -> Markup:
    """Text in which what stands between backticks is to be typed."""
    first, *rest = text.split("`")
    parts = [escape(first)]
    for index, piece in enumerate(rest):
        parts.append(Markup("<code>{}</code>").format(piece) if index % 2 == 0 else escape(piece))
    return Markup("").join(parts)


def repository_url(name: str) -> str:
    return "/-/repositories/" + quote(name)


def queried(**parameters: object) -> str:
    """A query, with its "?", of the parameters that are not empty; "" without any."""
    given = {name: value for name, value in parameters.items() if value not in (None, "")}
    return "?" + urlencode(given) if given else "?"


def redirect(to: str) -> Response:
    return RedirectResponse(to, 303, headers={"Cache-Control": "no-store", "Referrer-Policy": "same-origin"})
