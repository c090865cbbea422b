"""The secrets that prove a user over HTTP: how they look, and what is kept of them."""

from __future__ import annotations

import hashlib
import re
import secrets

from cluster.errors import UsageError

PREFIX = "gct_"
"""What each begins with, so that whoever scans for leaked secrets can know one."""

MOST_COMMENT = 100
"""Characters that say what a token is for."""

BYTES = 32
_SECRET = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")


def new() -> str:
    """A new secret: 256 random bits, as text that needs no quoting in a URL."""
    return PREFIX + secrets.token_urlsafe(BYTES)


def comment(text: str) -> str:
    """What a token is for. UsageError."""
    if len(text) > MOST_COMMENT or not text.isprintable():
        raise UsageError(
            f"a comment has at most {MOST_COMMENT} characters, on one line", hint="Say it in a few words."
        )
    return text


def digest(secret: str) -> bytes | None:
    """What is kept of a secret, and looked up; None: it is none of ours."""
    return hashlib.sha256(secret.encode()).digest() if _SECRET.fullmatch(secret) else None
