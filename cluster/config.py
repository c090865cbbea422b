"""The configuration of one machine: a TOML file, read once, checked whole, then passed on as values.

The file is described in docs/ and by the sections below: their fields are the keys, and no other is taken.
Every error names the file, the key and what is allowed. The database's password is in no error.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from cluster.errors import ConfigError

DEFAULT_PATH = Path("/etc/git-cluster/config.toml")
VARIABLE = "GIT_CLUSTER_CONFIG"

Heal = Literal["manual", "auto"]
Stale = Literal["refuse", "allow"]
ProxyWhen = Literal["absent", "behind"]
DEFAULT_HEAL: Heal = "auto"
"""What happens to an interrupted write where the file does not say."""

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


@dataclass(frozen=True, slots=True)
class ClusterSection:
    """database: "embedded", a postgresql:// URL or libpq's keywords.

    It may hold a password: show people what `redact` makes of it.
    """

    database: str
    name: str = "cluster"

    @property
    def embedded(self) -> bool:
        return self.database == EMBEDDED


@dataclass(frozen=True, slots=True)
class DeviceSection:
    name: str
    data_dir: Path
    key: Path


@dataclass(frozen=True, slots=True)
class SshSection:
    """The built-in endpoint. advertise: the URL by which clients and peers reach it, "ssh://user@host[:port]"."""

    listen: Address
    host_key: Path
    advertise: str | None = None


@dataclass(frozen=True, slots=True)
class HttpSection:
    listen: Address


@dataclass(frozen=True, slots=True)
class WritesSection:
    """How long a push waits, in seconds, and who resolves an interrupted one."""

    lock_timeout: float = 120.0
    commit_timeout: float = 300.0
    fence_after: float = 30.0
    heal: Heal = DEFAULT_HEAL


@dataclass(frozen=True, slots=True)
class ReadsSection:
    """stale: whether reads are served from this disk while the database is away."""

    stale: Stale = "refuse"


@dataclass(frozen=True, slots=True)
class ProxySection:
    """when: which requests are passed on to another device that has the repository: those for one that is not here
    (absent), or also those for one that is behind here (behind), which are synced first otherwise."""

    when: ProxyWhen = "absent"


@dataclass(frozen=True, slots=True)
class LoginSection:
    """trusted_ca: a file of public keys, a line each, of the authorities whose user certificates prove somebody: the
    one user here that is among the certificate's principals. None: certificates prove nobody."""

    trusted_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class LimitsSection:
    """What one client may take of a device. Times in seconds, sizes in bytes.

    login_grace: from connecting to a proven key (the built-in endpoint; sshd has LoginGraceTime).
    sessions_per_address, sessions_per_user: commands at once. Devices and operators are not counted.
    idle_timeout: of a connection or command in which neither side has sent anything.
    session_timeout: of a command in all.
    push_size, push_refs: what one push may bring: bytes of its pack, and refs.
    failed_logins: connections a minute from one address that end without a login, before its next ones are slowed.
    """

    login_grace: float = 30.0
    sessions_per_address: int = 200
    sessions_per_user: int = 100
    idle_timeout: float = 30 * 60.0
    session_timeout: float = 12 * 60 * 60.0
    push_size: int = 10 * 2**30
    push_refs: int = 100_000
    failed_logins: int = 10


@dataclass(frozen=True, slots=True)
class UpkeepSection:
    """Verification and maintenance of this device's copies.

    verify_every: seconds after which a copy is held against the log and against itself again.
    prune_after: seconds for which what no ref reaches is kept. A push that is about to move its refs is such, too.
    most_packs: packs of a copy (or as much scattered otherwise) from which it is repacked.
    """

    verify_every: float = 7 * DAY
    prune_after: float = 14 * DAY
    most_packs: int = 20


@dataclass(frozen=True, slots=True)
class Config:
    """path: the file that all of this was read from, absolute."""

    path: Path
    cluster: ClusterSection
    device: DeviceSection | None = None
    ssh: SshSection | None = None
    http: HttpSection | None = None
    writes: WritesSection = WritesSection()
    reads: ReadsSection = ReadsSection()
    proxy: ProxySection = ProxySection()
    login: LoginSection = LoginSection()
    limits: LimitsSection = LimitsSection()
    upkeep: UpkeepSection = UpkeepSection()


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The configuration in `path`, else in the file that GIT_CLUSTER_CONFIG names, else in /etc.

    Relative paths in the file are relative to its folder, so that a demo's folder can be moved. ConfigError
    for a file that is not there, cannot be read, or says something that is not allowed.
    """
    file = (path or Path(environ.get(VARIABLE) or DEFAULT_PATH)).absolute()
    return _config(file, _read(file))


def redact(url: str) -> str:
    """A database's URL or keywords without the password. Where that is unclear it hides more, not less."""
    text = re.sub(r"(://[^:@/?]*):.*@", r"\1:***@", url, flags=re.DOTALL)  # dbname=postgresql://… is one, too
    if re.match(r"\s*[a-z]+://", text, re.IGNORECASE):
        return re.sub(r"([?&][^=&]*pass[^=&]*=)[^&]*", r"\1***", text, flags=re.IGNORECASE)
    keyword = r"""([a-z_]*pass[a-z_]*\s*=\s*)(?:'(?:[^'\\]|\\.)*(?:'|\\?$)|(?!')(?:\\.|\S)+)"""
    return re.sub(keyword, r"\1***", text, flags=re.DOTALL | re.IGNORECASE)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_bytes().decode())
    except FileNotFoundError:
        raise ConfigError(
            f"{file}: there is no such configuration file",
            hint=f"Name one with --config FILE or {VARIABLE}, or create {DEFAULT_PATH}.",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{file}: the configuration cannot be read: {error.strerror or error}",
            hint="Run as the user that git-cluster runs as, or let that user read the file.",
        ) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}: line {line} is not UTF-8", hint="Save the file as UTF-8 text.") from None
    except (ValueError, RecursionError) as error:  # tomllib's message ends in "(at line 3, column 7)"
        hint = "Correct that line; https://toml.io describes the format."
        raise ConfigError(f"{file}: not TOML: {_line(str(error))}", hint=hint) from None


def _config(file: Path, document: dict[str, Any]) -> Config:
    allowed = [field.name for field in fields(Config) if field.name != "path"]
    for name, value in document.items():
        if name not in allowed:
            what = f"[{name}]" if isinstance(value, dict) else name
            raise _unknown(file, what, name, [f"[{table}]" for table in allowed])
        if not isinstance(value, dict):
            hint = f"Write [{name}] on a line of its own, and its keys below it."
            raise ConfigError(f"{file}: {name} must be a table, [{name}]", hint=hint)
    tables = {name: _Table(file, name, document[name]) for name in document}
    if "cluster" not in tables:
        hint = 'Add [cluster] with database = "postgresql://…".'
        raise ConfigError(f"{file}: the table [cluster] is missing", hint=hint)
    cluster = _cluster(tables["cluster"])
    if "device" not in tables:
        needs = '[cluster] database = "embedded"' if cluster.embedded else "[ssh]" if "ssh" in tables else ""
        if needs:
            hint = "Add [device] with name, data_dir and key."
            raise ConfigError(f"{file}: {needs} needs a table [device], which is missing", hint=hint)
    return Config(
        path=file,
        cluster=cluster,
        device=_device(tables["device"]) if "device" in tables else None,
        ssh=_ssh(tables["ssh"]) if "ssh" in tables else None,
        http=_http(tables["http"]) if "http" in tables else None,
        writes=_writes(tables["writes"]) if "writes" in tables else WritesSection(),
        reads=_reads(tables["reads"]) if "reads" in tables else ReadsSection(),
        proxy=_proxy(tables["proxy"]) if "proxy" in tables else ProxySection(),
        login=_login(tables["login"]) if "login" in tables else LoginSection(),
        limits=_limits(tables["limits"]) if "limits" in tables else LimitsSection(),
        upkeep=_upkeep(tables["upkeep"]) if "upkeep" in tables else UpkeepSection(),
    )


def _cluster(table: _Table) -> ClusterSection:
    return table.section(ClusterSection, database=table.database, name=table.text)


def _device(table: _Table) -> DeviceSection:
    return table.section(DeviceSection, name=table.device_name, data_dir=table.path, key=table.path)


def _ssh(table: _Table) -> SshSection:
    return table.section(SshSection, listen=table.listen, advertise=table.advertise, host_key=table.path)


def _http(table: _Table) -> HttpSection:
    return table.section(HttpSection, listen=table.listen)


def _writes(table: _Table) -> WritesSection:
    return table.section(
        WritesSection,
        lock_timeout=table.duration,
        commit_timeout=table.duration,
        fence_after=table.duration,
        heal=table.heal,
    )


def _reads(table: _Table) -> ReadsSection:
    return table.section(ReadsSection, stale=table.stale)


def _proxy(table: _Table) -> ProxySection:
    return table.section(ProxySection, when=table.proxy_when)


def _login(table: _Table) -> LoginSection:
    return table.section(LoginSection, trusted_ca=table.path)


def _limits(table: _Table) -> LimitsSection:
    return table.section(
        LimitsSection,
        login_grace=table.duration,
        sessions_per_address=table.count,
        sessions_per_user=table.count,
        idle_timeout=table.duration,
        session_timeout=table.duration,
        push_size=table.size,
        push_refs=table.count,
        failed_logins=table.count,
    )


def _upkeep(table: _Table) -> UpkeepSection:
    return table.section(
        UpkeepSection,
        verify_every=table.days,
        prune_after=table.grace,
        most_packs=table.most_packs,
    )


def _unknown(file: Path, what: str, name: str, allowed: list[str]) -> ConfigError:
    near = difflib.get_close_matches(name.lower(), [a.strip("[]") for a in allowed], n=1)
    hint = f"Did you mean {near[0]}?" if near else "Remove it, or see the documentation of the configuration."
    return ConfigError(f"{file}: {_line(what)[:200]} is unknown; allowed: {', '.join(allowed)}", hint=hint)


def _huge(value: object) -> bool:
    """A number of more than 80 digits. Python refuses to write one of 4,300, which TOML can say in hexadecimal."""
    return isinstance(value, int) and abs(value) >= 10**80


def _line(text: str) -> str:
    """`text` without control characters, so that a message stays one line."""
    return "".join(c if c.isprintable() else "?" for c in text)


# The same expression as names.device_name; a test holds them together.
_DEVICE = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?\]"
_LISTEN = re.compile(rf"({_HOST}):([0-9]{{1,5}})")
# Strict, because it becomes an argument of ssh on other devices: neither user nor host can begin with "-".
_ADVERTISE = re.compile(rf"ssh://[A-Za-z0-9_][A-Za-z0-9._-]*@(?:{_HOST})(?::([0-9]{{1,5}}))?")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d|)")
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}
_SIZE = re.compile(r"([0-9]{1,15})\s*(KiB|MiB|GiB|TiB|)")
_BYTES = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

Section = TypeVar("Section")


class _Table:
    """One table of the file, and how each kind of value in it is read."""

    def __init__(self, file: Path, name: str, values: dict[str, Any]) -> None:
        self.file, self.name, self.values = file, name, values

    def section(self, kind: Callable[..., Section], **readers: Callable[[str], object]) -> Section:
        """The table as a `kind`. `readers` are its keys; those that are not given keep their defaults."""
        for key in self.values:
            if key not in readers:
                raise _unknown(self.file, f"[{self.name}] {key}", key, list(readers))
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

    def proxy_when(self, key: str) -> str:
        value = self._string(key, '"absent" or "behind"')
        if value not in get_args(ProxyWhen):
            raise self._bad(key, '"absent" or "behind"')
        return value

    def heal(self, key: str) -> str:
        value = self._string(key, '"manual" or "auto"')
        if value not in get_args(Heal):
            raise self._bad(key, '"manual" or "auto"')
        return value

    def stale(self, key: str) -> str:
        value = self._string(key, '"refuse" or "allow"')
        if value not in get_args(Stale):
            raise self._bad(key, '"refuse" or "allow"')
        return value

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
