"""Whether a form was sent by a page of ours, and not by another site in the name of whoever looks at that.

Each form brings a token that only our page could read, and the browser says where the form stood. Both have to be
right; a browser too old to say is let by with the token, and the cookie of a session is SameSite=Lax besides: it comes
along where a link leads here, and not with a form of another site.
"""

from __future__ import annotations

import hmac
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request

from cluster.errors import Refused, UsageError
from cluster.http.who import csrf_token

TOKEN = "csrf"  # noqa: S105 - the name of a field
MOST_FORM = 64 * 1024
"""Bytes of a form. The longest thing in one is a repository's name."""

_AGAIN = "open the page again and send the form from there"


async def form(request: Request, cookie: str, advertise: str | None) -> dict[str, str]:
    """The fields of a form that a page of ours sent in the session of `cookie`. Refused: it is not; UsageError: it is
    none. advertise: the URL that people know this server by."""
    refuse_foreign(request, advertise)
    fields = await read(request)
    if not cookie or not hmac.compare_digest(
        fields.get(TOKEN, "").encode(errors="replace"), csrf_token(cookie).encode()
    ):
        raise Refused("this form is not of your session, or that has ended", hint=_AGAIN)
    return fields


def refuse_foreign(request: Request, advertise: str | None) -> None:
    """By what the browser says of where the form stood."""
    site = request.headers.get("sec-fetch-site")
    if site not in (None, "same-origin", "none"):
        raise Refused("this form stood on another site", hint=_AGAIN)
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() not in _ours(request, advertise):
        raise Refused("this form stood on another site", hint=_AGAIN)


def _ours(request: Request, advertise: str | None) -> set[str]:
    """Hosts, with ports, by which this server may be known. Behind a proxy that ends TLS the scheme is not
    known, so it is not compared."""
    hosts = {request.headers.get("host", "").lower()}
    if advertise:
        hosts.add(urlsplit(advertise).netloc.lower())
    return hosts - {""}


async def read(request: Request) -> dict[str, str]:
    """The fields of a form. UsageError: it is too large, or none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise UsageError("this is not a form", hint=_AGAIN)
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_FORM:
            raise UsageError("this form is too large", hint=_AGAIN)
    return fields_of(body)


def fields_of(body: bytes) -> dict[str, str]:
    """Of each name the last value. Whatever is no UTF-8 becomes U+FFFD. UsageError: more fields than any form has."""
    try:
        return dict(
            parse_qsl(
                body.decode(errors="replace"), keep_blank_values=True, errors="replace", max_num_fields=50
            )
        )
    except ValueError as error:
        raise UsageError("this is not a form", hint=_AGAIN) from error
