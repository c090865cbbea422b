"""The configuration of one machine: a TOML file, read once, checked whole, then passed on as values.

The file is described in docs/ and by the sections below: their fields are the keys, and no other is taken.
Every error names the file, the key and what is allowed. The database's password is in no error.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from cluster.config_table import DAY, EMBEDDED, MAX_DURATION, Address, Table, line_of, unknown
from cluster.errors import ConfigError

__all__ = ["DAY", "EMBEDDED", "MAX_DURATION", "Address"]  # of config_table, for whoever reads a configuration

DEFAULT_PATH = Path("/etc/git-cluster/config.toml")
VARIABLE = "GIT_CLUSTER_CONFIG"

Heal = Literal["manual", "auto"]
Stale = Literal["refuse", "allow"]
ProxyWhen = Literal["absent", "behind"]
Anonymous = Literal["refuse", "read"]
MetricsFor = Literal["everyone", "administrators"]
PrivateAddresses = Literal["refuse", "allow"]
MOST_WORKERS = 4
"""Processes that answer clients, where the file does not say: each has its own connections to the database."""

DEFAULT_HEAL: Heal = "auto"
"""What happens to an interrupted write where the file does not say."""


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
    """workers: processes that answer clients; 1: the daemon itself does. None: as many as `processes` says."""

    name: str
    data_dir: Path
    key: Path
    workers: int | None = None

    def processes(self, cores: int) -> int:
        """Of those that answer clients, on a machine with so many cores: Git's own processes want the other half."""
        return self.workers or max(1, min(MOST_WORKERS, cores // 2))


@dataclass(frozen=True, slots=True)
class SshSection:
    """The built-in endpoint. advertise: the URL by which clients and peers reach it, "ssh://user@host[:port]"."""

    listen: Address
    host_key: Path
    advertise: str | None = None


@dataclass(frozen=True, slots=True)
class HttpSection:
    """The HTTP endpoint: Git, the status page, the API.

    advertise: the URL by which people reach it.
    certificate, key: PEM files; with them it speaks TLS. Else it is plain, for loopback or behind a proxy.
    trusted_proxies: networks whose X-Forwarded-For and -Proto are believed.
    anonymous: whether somebody without a token may read what everyone may read.
    connections: open at once; one more is told to come again.
    metrics: who may read /-/metrics, which names no repository and no user.
    linger: seconds after SIGTERM in which it goes on answering, and says that it is not ready, so that a load balancer
    hears of the end before it comes. 0: none.
    """

    listen: Address
    advertise: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    trusted_proxies: tuple[str, ...] = ()
    anonymous: Anonymous = "read"
    connections: int = 2000
    metrics: MetricsFor = "everyone"
    linger: float = 0.0


@dataclass(frozen=True, slots=True)
class WebhooksSection:
    """private_addresses: whether a webhook may be on this machine or in a private network. Who may add webhooks could
    otherwise reach what only this machine reaches."""

    private_addresses: PrivateAddresses = "refuse"


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
    webhooks: WebhooksSection = WebhooksSection()


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
        raise ConfigError(f"{file}: not TOML: {line_of(str(error))}", hint=hint) from None


def _config(file: Path, document: dict[str, Any]) -> Config:
    allowed = [field.name for field in fields(Config) if field.name != "path"]
    for name, value in document.items():
        if name not in allowed:
            what = f"[{name}]" if isinstance(value, dict) else name
            raise unknown(file, what, name, [f"[{table}]" for table in allowed])
        if not isinstance(value, dict):
            hint = f"Write [{name}] on a line of its own, and its keys below it."
            raise ConfigError(f"{file}: {name} must be a table, [{name}]", hint=hint)
    tables = {name: Table(file, name, document[name]) for name in document}
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
        webhooks=_webhooks(tables["webhooks"]) if "webhooks" in tables else WebhooksSection(),
    )


def _cluster(table: Table) -> ClusterSection:
    return table.section(ClusterSection, database=table.database, name=table.text)


def _device(table: Table) -> DeviceSection:
    return table.section(
        DeviceSection, name=table.device_name, data_dir=table.path, key=table.path, workers=table.workers
    )


def _ssh(table: Table) -> SshSection:
    return table.section(SshSection, listen=table.listen, advertise=table.advertise, host_key=table.path)


def _http(table: Table) -> HttpSection:
    section = table.section(
        HttpSection,
        listen=table.listen,
        advertise=table.url,
        certificate=table.path,
        key=table.path,
        trusted_proxies=table.networks,
        anonymous=table.one_of(*get_args(Anonymous)),
        connections=table.count,
        metrics=table.one_of(*get_args(MetricsFor)),
        linger=table.pause,
    )
    if (section.certificate is None) != (section.key is None):
        there, missing = ("certificate", "key") if section.certificate else ("key", "certificate")
        raise ConfigError(
            f"{table.file}: [http] has {there} but not {missing}; TLS needs both",
            hint=f"Add {missing} = … below [http], or remove {there}.",
        )
    return section


def _webhooks(table: Table) -> WebhooksSection:
    return table.section(WebhooksSection, private_addresses=table.one_of(*get_args(PrivateAddresses)))


def _writes(table: Table) -> WritesSection:
    return table.section(
        WritesSection,
        lock_timeout=table.duration,
        commit_timeout=table.duration,
        fence_after=table.duration,
        heal=table.one_of("manual", "auto"),
    )


def _reads(table: Table) -> ReadsSection:
    return table.section(ReadsSection, stale=table.one_of(*get_args(Stale)))


def _proxy(table: Table) -> ProxySection:
    return table.section(ProxySection, when=table.one_of(*get_args(ProxyWhen)))


def _login(table: Table) -> LoginSection:
    return table.section(LoginSection, trusted_ca=table.path)


def _limits(table: Table) -> LimitsSection:
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


def _upkeep(table: Table) -> UpkeepSection:
    return table.section(
        UpkeepSection,
        verify_every=table.days,
        prune_after=table.grace,
        most_packs=table.most_packs,
    )
