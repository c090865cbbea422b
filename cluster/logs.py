"""The log: one line an event, as key=value pairs (logfmt), so that people read it and programs parse it.

time=2026-11-21T09:30:00.123Z level=info module=gate msg="committed" repository=team/app version=7 actor=ann
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

SYSLOG = "/dev/log"

MOST_BYTES = 1 << 20
"""Of a log file of our own, before it is begun anew; one older one is kept."""


def fields(**values: object) -> dict[str, object]:
    """Pairs for a log record: `_log.info("committed", extra=fields(version=7))`."""
    return {"fields": values}


class Logfmt(logging.Formatter):
    """key=value, quoted where the value has spaces or quotes; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        pairs: dict[str, object] = {
            "time": f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z",
            "level": record.levelname.lower(),
            "module": record.name.removeprefix("cluster."),
            "msg": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        line = " ".join(f"{key}={_quoted(value)}" for key, value in pairs.items() if value is not None)
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _quoted(value: object) -> str:
    text = str(value)
    plain = text and text.isprintable() and not set(text) & set(' "=\\')
    return text if plain else json.dumps(text)


def to_syslog(otherwise: Path, level: str = "INFO") -> None:
    """Send everything to syslog; where this machine has none, to the file `otherwise`, which is kept small."""
    logging.raiseExceptions = False  # standard error is somebody else's
    handler: logging.Handler = logging.NullHandler()
    with suppress(OSError):
        if Path(SYSLOG).is_socket():
            handler = logging.handlers.SysLogHandler(SYSLOG, logging.handlers.SysLogHandler.LOG_AUTH)
            handler.ident = "git-cluster: "
        else:
            if otherwise.exists() and otherwise.stat().st_size > MOST_BYTES:
                otherwise.replace(otherwise.with_suffix(".log.1"))
            handler = logging.FileHandler(otherwise)
    logging.raiseExceptions = (
        False  # standard error is the client's: a log that fails is not for them to read
    )
    _send(handler, level)


def to_stream(stream: TextIO = sys.stderr, level: str = "INFO") -> None:
    """Send everything to `stream`; the libraries' own chatter only from warnings on."""
    _send(logging.StreamHandler(stream), level)


def _send(handler: logging.Handler, level: str) -> None:
    handler.setFormatter(Logfmt())
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name in ("paramiko", "psycopg"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # cluster/http says it, in fewer lines
