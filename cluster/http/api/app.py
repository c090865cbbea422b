"""The API as one application below /-/api/v1: its routes, its errors as JSON, its OpenAPI document."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount

from cluster import __version__
from cluster.endpoint import unforeseen
from cluster.errors import ClusterError
from cluster.http import webhooks_api
from cluster.http.answers import headers_for, status_of
from cluster.http.api import deeds, devices, overview, people, repositories, rights
from cluster.http.api.guard import Guard
from cluster.http.api.models import Error
from cluster.http.git import realm
from cluster.http.site import Site
from cluster.http.who import address_of
from cluster.names import shown
from cluster.thaw import LossRefused

PREFIX = "/-/api/v1"

_STATUSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": description}
    for status, description in {
        400: "A name or value that cannot be: the error says which, and what could",
        401: "No token, or one that is not known here or has ended",
        403: "You may not do that",
        404: "There is no such thing, or you may not know of it",
        405: "Not with this method",
        408: "The body did not come in time",
        409: "Not as things are: it exists already, has moved on, is frozen, or is still needed",
        413: "The body is too large",
        422: "The request has not the form that is described here",
        429: "Too many refused tokens wait here already",
        500: "Something went wrong that nobody foresaw; the device's log has it",
        502: "Another device was asked, and did not answer as it should",
        503: "Not now: the database, a lock or a device is away. Retry-After says when to ask again",
    }.items()
}

_ABOUT = """\
What `git-cluster` lists and does, as JSON. A token (`git-cluster token add USER`) proves who asks: as a bearer, or as
the password of Basic. Somebody without one sees what everyone may read. An error is a sentence and what to do next.
"""

_ROUTERS: tuple[APIRouter, ...] = (
    overview.router,
    devices.router,
    repositories.router,
    deeds.router,
    people.router,
    rights.router,
    webhooks_api.router,
)


def routes(site: Site) -> list[BaseRoute]:
    return [Mount(PREFIX, app=Guard(_application(site)))]


def _application(site: Site) -> FastAPI:

    async def told(request: Request, error: Exception) -> Response:
        return _told(error, site)

    app = FastAPI(
        title="git-cluster",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        responses=_STATUSES,
        exception_handlers={
            ClusterError: told,
            RequestValidationError: _malformed,
            HTTPException: _told_plainly,
            Exception: _unforeseen,
        },
    )
    app.state.site, app.state.counted = site, overview.counting(site)
    for router in _ROUTERS:
        app.include_router(router)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        described = get_openapi(
            title=app.title,
            version=app.version,
            description=_ABOUT,
            routes=app.routes,
            servers=[{"url": PREFIX}],
        )
        described["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "A token"},
            "basic": {
                "type": "http",
                "scheme": "basic",
                "description": "Any name, and a token as the password",
            },
        }
        described["security"] = [{"bearer": []}, {"basic": []}]
        app.openapi_schema = described
    return app.openapi_schema


# ------------------------------------------------------------------------------------------------ errors


def _told(error: Exception, site: Site) -> Response:
    assert isinstance(error, ClusterError)
    status = status_of(error)
    body: dict[str, Any] = {"error": error.what, "hint": error.hint}
    if isinstance(error, LossRefused):
        status, body = 409, body | {"lines": error.report.lines}
    return JSONResponse(body, status, headers_for(status, realm(site)))


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    said = [f"{'.'.join(map(_word, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5]]
    return JSONResponse({"error": "; ".join(said), "hint": f"{PREFIX}/openapi.json says what it takes"}, 422)


async def _unforeseen(request: Request, error: Exception) -> Response:
    told = unforeseen(address_of(request))
    return JSONResponse({"error": told.what, "hint": told.hint}, 500)


def _word(part: object) -> str:
    """A field's name, which may be anything that a client wrote."""
    text = str(part)
    return text if (text.isascii() and text.isidentifier()) or text.isdigit() else shown(text)


async def _told_plainly(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: "there is nothing at this address", 405: "this address does not take that method"}
    body = {
        "error": what.get(error.status_code, error.detail),
        "hint": f"{PREFIX}/openapi.json lists what there is",
    }
    headers = {"Allow": ", ".join(_methods(request))} if error.status_code == 405 else error.headers
    return JSONResponse(body, error.status_code, headers)


def _methods(request: Request) -> list[str]:
    """What the address takes. Starlette tells those of its first route only."""
    path = request.scope["path"].removeprefix(PREFIX)
    routes = [route for router in _ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    return sorted(
        {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
    )
