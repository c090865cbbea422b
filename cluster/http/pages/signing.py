"""Signing in with a token, and out again. The token is shown once; from then on a cookie stands for it."""

from __future__ import annotations

import secrets

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cluster.errors import ClusterError
from cluster.http.pages import guard
from cluster.http.pages.render import Pages, Visit, redirect
from cluster.http.pages.sight import Sight
from cluster.http.who import COOKIE, SESSION, Unauthenticated, address_of, csrf_token
from cluster.model import ANONYMOUS

BEFORE = "git_cluster_login"
"""A cookie that is there while somebody signs in: so that no other site signs them in as somebody else."""


def routes(pages: Pages) -> list[BaseRoute]:
    site = pages.site

    def form(request: Request, back: str, status: int = 200, error: ClusterError | None = None) -> Response:
        cookie = request.cookies.get(BEFORE) or secrets.token_urlsafe(32)
        response = pages.page(
            Visit(request, Sight(ANONYMOUS, ())),
            "login.html",
            status,
            error=error,
            back=back,
            token=csrf_token(cookie),
        )
        _set(response, request, BEFORE, cookie, 3600, path="/-/login")
        return response

    async def login(request: Request) -> Response:
        if request.method != "POST":
            return form(request, local(request.query_params.get("next", "")))
        back = "/-/"
        try:
            fields = await guard.form(request, request.cookies.get(BEFORE, ""), site.section.advertise)
            back = local(fields.get("next", ""))
            actor = await site.who.prove(fields.get("token", "").strip(), address_of(request))
            cookie = await site.who.begin(actor)
        except Unauthenticated as error:
            return form(request, back, 401, error)
        except ClusterError as error:
            return pages.failed(Visit(request, Sight(ANONYMOUS, ())), error)
        response = redirect(back)
        _set(response, request, COOKIE, cookie, int(SESSION))
        response.delete_cookie(BEFORE, path="/-/login")
        return response

    async def logout(request: Request) -> Response:
        cookie = request.cookies.get(COOKIE, "")
        try:
            await guard.form(request, cookie, site.section.advertise)
            await site.who.end(cookie)
        except ClusterError as error:
            return pages.failed(Visit(request, Sight(ANONYMOUS, ())), error)
        response = redirect("/-/login")
        response.delete_cookie(COOKIE, path="/")
        return response

    return [
        Route("/-/login", login, methods=["GET", "POST"]),
        Route("/-/logout", logout, methods=["POST"]),
    ]


def local(path: str) -> str:
    """Where to go after signing in: a page of ours, whatever was asked for."""
    plain = path.isascii() and path.isprintable() and "\\" not in path and len(path) < 2000
    return path if plain and path.startswith("/-/") and not path.startswith("/-/log") else "/-/"


def _set(response: Response, request: Request, name: str, value: str, seconds: int, path: str = "/") -> None:
    response.set_cookie(
        name,
        value,
        max_age=seconds,
        path=path,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",  # a link in an alert leads to the page as one is signed in; forms have their token
    )
