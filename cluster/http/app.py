"""Which path is whose. Everything of ours is below /-/, which no repository can be called; the rest is repositories.

/<repository>/info/refs, git-upload-pack, git-receive-pack      Git                  git.py
/<repository>/-/archive/…                                       archives             archive.py
/-/…                                                            routes of Starlette  the other modules
"""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from cluster.endpoint import unforeseen
from cluster.errors import ClusterError, NotFound
from cluster.http import archive, events, health, metrics, pages
from cluster.http.answers import in_json, in_words
from cluster.http.api import app as api
from cluster.http.git import Git, asked, realm
from cluster.http.guard import API
from cluster.http.site import Site
from cluster.http.who import address_of

_log = logging.getLogger(__name__)


def routes(site: Site) -> list[BaseRoute]:
    """Of everything below /-/."""
    return [
        *health.routes(site),
        *metrics.routes(site),
        *events.routes(site),
        *api.routes(site),  # after what has routes of its own below its prefix
        *pages.routes(site),
    ]


class App:
    """The ASGI application."""

    def __init__(self, site: Site) -> None:
        self._site, self._git, self._archives = site, Git(site), archive.Archives(site)
        self._pages = Starlette(
            routes=[*routes(site), Route("/", _home), pages.to_page()],
            exception_handlers={
                ClusterError: self._told,
                HTTPException: self._told_plainly,
            },
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        try:
            ask = bundle = None
            if not scope["path"].startswith("/-/") and (bundle := archive.asked(scope["path"])) is None:
                ask = asked(
                    scope["method"], scope["path"], dict(parse_qsl(scope["query_string"].decode("latin-1")))
                )
            if bundle is not None:
                await self._archives.answer(bundle, scope, receive, send)
            elif ask is not None:
                await self._git.answer(ask, scope, receive, send)
            else:
                await self._pages(scope, receive, send)
        except ClusterError as error:
            await in_words(error, realm(self._site))(scope, receive, send)
        except ClientDisconnect:
            return
        except Exception:
            unforeseen_error = unforeseen(address_of(scope))
            await in_words(unforeseen_error, realm(self._site))(scope, receive, send)

    async def _told(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, ClusterError)
        say = in_json if request.url.path.startswith(API) else in_words
        return say(error, realm(self._site))

    async def _told_plainly(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            nothing = NotFound("there is nothing at this address", hint="the status page is at /-/")
            return await self._told(request, nothing)
        return PlainTextResponse(
            f"cluster: error: {error.detail}\n", error.status_code, headers=error.headers
        )


async def _home(request: Request) -> Response:
    return RedirectResponse("/-/", 302)
