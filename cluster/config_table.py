"""One table of the configuration file: how each kind of value is read, and what is said of one that is not allowed."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cluster.errors import ConfigError

EMBEDDED = "embedded"
DAY = 24 * 60 * 60.0
MAX_DURATION = DAY
"""Seconds. No wait in git-cluster is meant to last a day, and PostgreSQL's own timeouts end at 24 days."""


class Address(NamedTuple):
    """Where to listen. Port 0: any free one. An IPv6 address stands without its brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def unknown(file: Path, what: str, name: str, allowed: list[str]) -> ConfigError:
    near = difflib.get_close_matches(name.lower(), [a.strip("[]") for a in allowed], n=1)
    hint = f"Did you mean {near[0]}?" if near else "Remove it, or see the documentation of the configuration."
    return ConfigError(f"{file}: {line_of(what)[:200]} is unknown; allowed: {', '.join(allowed)}", hint=hint)


def _huge(value: object) -> bool:
    """A number of more than 80 digits. Python refuses to write one of 4,300, which TOML can say in hexadecimal."""
    return isinstance(value, int) and abs(value) >= 10**80


def line_of(text: str) -> str:
    """`text` without control characters, so that a message stays one line."""
    return "".join(c if c.isprintable() else "?" for c in text)


# The same expression as names.device_name; a test holds them together.
_DEVICE = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?\]"
_LISTEN = re.compile(rf"({_HOST}):([0-9]{{1,5}})")
# Strict, because it becomes an argument of ssh on other devices: neither user nor host can begin with "-".
_ADVERTISE = re.compile(rf"ssh://[A-Za-z0-9_][A-Za-z0-9._-]*@(?:{_HOST})(?::([0-9]{{1,5}}))?")
_URL = re.compile(rf"https?://(?:{_HOST})(?::([0-9]{{1,5}}))?")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d|)")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}
_SIZE = re.compile(r"([0-9]{1,15})\s*(KiB|MiB|GiB|TiB|)")
_BYTES = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

Section = TypeVar("Section")


class Table:
    """One table of the file, and how each kind of value in it is read."""

    def __init__(self, file: Path, name: str, values: dict[str, Any]) -> None:
        self.file, self.name, self.values = file, name, values

    def section(self, kind: Callable[..., Section], **readers: Callable[[str], object]) -> Section:
        """The table as a `kind`. `readers` are its keys; those that are not given keep their defaults."""
        for key in self.values:
            if key not in readers:
                raise unknown(self.file, f"[{self.name}] {key}", key, list(readers))
        parameters = signature(kind).parameters
        required = [key for key in parameters if parameters[key].default is Parameter.empty]
        for key in required:
            if key not in self.values:
                raise ConfigError(
                    f"{self.file}: [{self.name}] {key} is missing; the table needs {', '.join(required)}",
                    hint=f"Add {key} = … below [{self.name}].",
                )
        return kind(**{key: readers[key](key) for key in self.values})

    def text(self, key: str) -> str:
        value = self._string(key, "text in quotes, not empty, on one line")
        if not value.strip() or not value.isprintable():
            raise self._bad(key, "text in quotes, not empty, on one line")
        return value

    def path(self, key: str) -> Path:
        allowed = "a path, absolute or relative to this file, without '~'"
        value = self._string(key, allowed)
        if not value or not value.isprintable() or value.startswith("~"):
            raise self._bad(key, allowed)
        return self.file.parent / value

    def device_name(self, key: str) -> str:
        allowed = "1 to 63 lower-case letters, digits, '.' and '-', such as \"a\""
        value = self._string(key, allowed)
        if not _DEVICE.fullmatch(value):
            raise self._bad(key, allowed)
        return value

    def database(self, key: str) -> str:
        allowed = '"embedded", a URL postgresql://…, or libpq keywords such as "host=db dbname=cluster"'
        value = self._string(key, allowed)
        if value != EMBEDDED and not re.match(r"postgres(ql)?://|\s*[a-z_]+\s*=", value):
            raise self._bad(key, allowed, show=False)
        return value

    def listen(self, key: str) -> Address:
        allowed = '"host:port", such as "0.0.0.0:2222" or "[::1]:2222"'
        found = _LISTEN.fullmatch(self._string(key, allowed))
        if not found or int(found[2]) > 65535:
            raise self._bad(key, allowed)
        return Address(found[1].strip("[]"), int(found[2]))

    def advertise(self, key: str) -> str:
        allowed = '"ssh://user@host" or "ssh://user@host:port", without a password or a path'
        value = self._string(key, allowed).removesuffix("/")
        found = _ADVERTISE.fullmatch(value)
        if not found or not 0 < int(found[1] or 22) <= 65535:
            raise self._bad(key, allowed, show="@" not in value)
        return value

    def duration(self, key: str) -> float:
        allowed = 'seconds as a number, or "500ms", "120s", "5m", "1h"; more than 0 and at most 24 hours'
        return self._seconds(key, allowed, MAX_DURATION)

    def pause(self, key: str) -> float:
        allowed = 'seconds as a number, or "5s"; at most a minute'
        if self.values[key] in (0, "0", "0s") and not isinstance(self.values[key], bool):
            return 0.0
        return self._seconds(key, allowed, 60.0)

    def days(self, key: str) -> float:
        return self._seconds(
            key, 'a duration such as "7d" or "12h"; more than 0 and at most 366 days', 366 * DAY
        )

    def grace(self, key: str) -> float:
        allowed = 'a duration such as "14d"; at least an hour and at most 366 days'
        seconds = self._seconds(key, allowed, 366 * DAY)
        if seconds < 3600:
            raise self._bad(key, allowed)
        return seconds

    def _seconds(self, key: str, allowed: str, most: float) -> float:
        value = self.values[key]
        found = _DURATION.fullmatch(value) if isinstance(value, str) else None
        if found:
            seconds = float(found[1]) * _SECONDS[found[2]]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            seconds = (
                float(value) if -most <= value <= most else most + 1
            )  # of 400 digits, float() says overflow
        else:
            raise self._bad(key, allowed)
        if not 0 < seconds <= most:  # false for nan, too
            raise self._bad(key, allowed)
        return seconds

    def most_packs(self, key: str) -> int:
        allowed = "a whole number from 2 to 1000"
        value = self.values[key]
        if not isinstance(value, int) or isinstance(value, bool) or not 2 <= value <= 1000:
            raise self._bad(key, allowed)
        return value

    def count(self, key: str) -> int:
        allowed = "a whole number from 1 to 10000000"
        value = self.values[key]
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10_000_000:
            raise self._bad(key, allowed)
        return value

    def workers(self, key: str) -> int | None:
        allowed = 'a whole number from 1 to 64, or "auto"'
        value = self.values[key]
        if value == "auto":
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 64:
            raise self._bad(key, allowed)
        return value

    def size(self, key: str) -> int:
        allowed = 'bytes as a whole number, or "500MiB", "10GiB"; from 1 to 1024TiB'
        value = self.values[key]
        found = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if found:
            size = int(found[1]) * _BYTES[found[2]]
        elif isinstance(value, int) and not isinstance(value, bool):
            size = value
        else:
            raise self._bad(key, allowed)
        if not 1 <= size <= 1024 * 2**40:
            raise self._bad(key, allowed)
        return size

    def one_of(self, *words: str) -> Callable[[str], str]:
        """The reader of a key that takes one of these words."""
        allowed = " or ".join(f'"{word}"' for word in words)

        def read(key: str) -> str:
            value = self._string(key, allowed)
            if value not in words:
                raise self._bad(key, allowed)
            return value

        return read

    def url(self, key: str) -> str:
        """Of HTTP, without a path."""
        allowed = '"https://host" or "https://host:port" (or http://), without a password or a path'
        value = self._string(key, allowed).removesuffix("/")
        found = _URL.fullmatch(value)
        if not found or not 0 < int(found[1] or 443) <= 65535:
            raise self._bad(key, allowed, show="@" not in value)
        return value

    def networks(self, key: str) -> tuple[str, ...]:
        allowed = 'a list of addresses and networks, such as ["127.0.0.1", "10.0.0.0/8"]'
        value = self.values[key]
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self._bad(key, allowed)
        try:
            return tuple(str(ipaddress.ip_network(each)) for each in value)
        except ValueError:
            raise self._bad(key, allowed) from None

    def _string(self, key: str, allowed: str) -> str:
        value = self.values[key]
        if not isinstance(value, str):
            raise self._bad(key, allowed)
        return value

    def _bad(self, key: str, allowed: str, *, show: bool = True) -> ConfigError:
        """The error for a value; `show` is false where the value may hold a password."""
        value = self.values[key]
        if isinstance(value, dict | list):
            what = "a table" if isinstance(value, dict) else "a list"
        elif show and not _huge(value) and len(ascii(value)) <= 80:
            what = ascii(value)
        else:
            what = "what is there"
        return ConfigError(
            f"{self.file}: [{self.name}] {key} must be {allowed}, not {what}",
            hint=f"Correct {key} below [{self.name}], then start git-cluster again.",
        )
