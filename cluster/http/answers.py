"""Errors as responses of HTTP: the words of the command line and of SSH, with a status."""

from __future__ import annotations

from starlette.responses import JSONResponse, PlainTextResponse, Response

from cluster.errors import (
    ClusterError,
    DatabaseUnavailable,
    Exists,
    Frozen,
    LockTimeout,
    NoSource,
    NotFound,
    PeerFailed,
    Refused,
    ReplicaUnfit,
    StillNeeded,
    TooFewCopies,
    UsageError,
    WriteConflict,
)
from cluster.http.who import TooManyRefused, Unauthenticated

RETRY = 5
"""Seconds after which a client may try again what cannot be answered now."""

_STATUS: tuple[tuple[type[ClusterError], int], ...] = (  # the first that fits
    (UsageError, 400),
    (Unauthenticated, 401),
    (TooManyRefused, 429),
    (NotFound, 404),
    (Exists, 409),
    (StillNeeded, 409),
    (Refused, 403),
    (WriteConflict, 409),
    (Frozen, 409),
    (TooFewCopies, 503),
    (LockTimeout, 503),
    (NoSource, 503),
    (ReplicaUnfit, 503),
    (PeerFailed, 502),
    (DatabaseUnavailable, 503),
)


def status_of(error: ClusterError) -> int:
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def headers_for(status: int, realm: str) -> dict[str, str]:
    """What goes with a status beyond its words."""
    if status == 401:
        return {"WWW-Authenticate": f'Basic realm="{realm}", charset="UTF-8"'}
    return {"Retry-After": str(RETRY)} if status in (429, 503) else {}


def in_json(error: ClusterError, realm: str) -> Response:
    """For programs: what happened, and what to do next."""
    status = status_of(error)
    return JSONResponse({"error": error.what, "hint": error.hint}, status, headers_for(status, realm))


def in_words(error: ClusterError, realm: str) -> Response:
    """As text, which Git shows behind "remote: ", as over SSH."""
    first, *rest = error.lines()
    lines = [f"cluster: error: {first}", *(f"cluster: {line}" for line in rest)]
    status = status_of(error)
    return PlainTextResponse("\n".join(lines) + "\n", status, headers=headers_for(status, realm))
