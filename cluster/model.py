"""The words of git-cluster as values. Nothing here does anything; every other module speaks in these.

The words themselves are defined in docs/architecture.md ("Words").
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

CHECKSUM_BYTES = 128
"""Width of a checksum's accumulator. Additive hashes fall to Wagner's generalised birthday attack in about
2^(2·√bits) steps: 1,024 bits leave 2^64, far past what a person who may push refs could search."""

HEAD = "HEAD"
"""The name under which a change of the default branch stands in the push log, beside real refs."""


class Service(StrEnum):
    """What a client may ask for over an endpoint: the three programs that Git's clients call."""

    UPLOAD_PACK = "git-upload-pack"
    RECEIVE_PACK = "git-receive-pack"
    UPLOAD_ARCHIVE = "git-upload-archive"

    @property
    def writes(self) -> bool:
        return self is Service.RECEIVE_PACK


class ActorKind(StrEnum):
    """Who may ask: a person, somebody who does not say who they are (over HTTP), another device, or an administrator's
    command line (by a short-lived key)."""

    USER = "user"
    ANONYMOUS = "anonymous"
    DEVICE = "device"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks. `fingerprint` is what proved it, checked again at every request: the SHA256:… of a key, "token:" and
    the number of a token, or "" of somebody anonymous.

    certified_until: of a user whom a certificate proved, whose key is in no table: until when it does.
    read_only: whether what proved it lets nobody write.
    """

    kind: ActorKind
    name: str
    fingerprint: str
    certified_until: datetime | None = None
    read_only: bool = False


ANONYMOUS = Actor(ActorKind.ANONYMOUS, "anonymous", "")
"""Somebody who does not say who they are. What everyone may read, they may read; nothing else."""


class Level(StrEnum):
    """What a grant allows; each level includes the ones before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    @property
    def rank(self) -> int:
        return list(Level).index(self)


@dataclass(frozen=True, slots=True)
class Grant:
    """`actor` (a user, "@" and a group, None: everyone) may do `level` to the repositories that `pattern` matches."""

    actor: str | None
    pattern: str
    level: Level


class RefAction(StrEnum):
    """What a push may do to a ref; schema.sql explains each."""

    CREATE = "create"
    PUSH = "push"
    FORCE = "force"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class RefRule:
    """`actor` (as a grant's) may do `may`, and nothing else, to the refs that `ref_pattern` matches."""

    actor: str | None
    pattern: str
    ref_pattern: str
    may: frozenset[RefAction]


class Exchange(StrEnum):
    """How client and Git talk with one another (Documentation/gitprotocol-http.txt).

    STREAM         both ways at once, Git first: over SSH
    ADVERTISEMENT  Git says what there is, and ends: the first request over HTTP. A read, of receive-pack, too
    STATELESS      the client says everything, then Git does: each further request over HTTP
    ARCHIVE        an archive for who speaks no protocol of Git's (cluster/archive.py): a browser over HTTP
    """

    STREAM = "stream"
    ADVERTISEMENT = "advertisement"
    STATELESS = "stateless"
    ARCHIVE = "archive"


@dataclass(frozen=True, slots=True)
class Request:
    """One request, the same value whichever endpoint it came in by.

    protocol: the value of GIT_PROTOCOL that the client sent, or "".
    via, address: the endpoint's name ("ssh", "http") and the client's address, for the push log.
    through: the device that passes it on for the user, because it has no replica; "": the user is here. Such a
    request is never passed on again.
    """

    actor: Actor
    service: Service
    repository: str
    protocol: str = ""
    via: str = "ssh"
    address: str = ""
    through: str = ""
    exchange: Exchange = Exchange.STREAM

    @property
    def moves_refs(self) -> bool:
        """Whether it is a push, and not the look around before one."""
        return self.service.writes and self.exchange is not Exchange.ADVERTISEMENT


@dataclass(frozen=True, slots=True)
class RefUpdate:
    """One ref that goes from `old` to `new`: hex object ids, all zeros where the ref is not there.

    For HEAD both are "ref: refs/heads/…".
    """

    ref: str
    old: str
    new: str

    @property
    def creates(self) -> bool:
        return is_zero(self.old)

    @property
    def deletes(self) -> bool:
        return is_zero(self.new)


def is_zero(oid: str) -> bool:
    """Whether `oid` is Git's "no object": zeros only, 40 or 64 of them."""
    return not oid.strip("0")


@dataclass(frozen=True, slots=True)
class Checksum:
    """A digest of all refs outside refs/cluster/ and of HEAD's target, as a sum that can be updated.

    Each ref is hashed to CHECKSUM_BYTES with SHAKE-256 and the hashes are added modulo 2^1024, so the order does
    not matter and one ref is exchanged for another by one subtraction and one addition (MSet-Add-Hash; Clarke et
    al., "Incremental Multiset Hash Functions", 2003).
    """

    accumulator: bytes

    def __post_init__(self) -> None:
        if len(self.accumulator) != CHECKSUM_BYTES:
            raise ValueError(f"a checksum is {CHECKSUM_BYTES} bytes, not {len(self.accumulator)}")

    def __str__(self) -> str:
        """What people and `--json` see: 40 hex digits, equal exactly where the accumulators are."""
        return hashlib.sha256(self.accumulator).hexdigest()[:40]


@dataclass(frozen=True, slots=True)
class Position:
    """What a replica claims to hold, and can be held to."""

    version: int
    checksum: Checksum


@dataclass(frozen=True, slots=True)
class Intent:
    """The durable note of a push that is about to move refs.

    token proves ownership to the commit's compare-and-set; push_id names the push in the log and in
    refs/cluster/staged/.
    """

    token: UUID
    push_id: UUID
    actor: str
    via: str
    address: str
    at: datetime
    refs: tuple[RefUpdate, ...]


class DeviceMode(StrEnum):
    """What an administrator asked of a device."""

    ENABLED = "enabled"
    DRAINING = "draining"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class Device:
    """A machine that holds repositories. Keys are in OpenSSH's one-line public form.

    silent_for: seconds since its daemon last said that it is alive, by the database's clock; None: never.
    zone: what it shares with the devices that would fail together with it (a rack, a site), or "".
    disk_total, disk_free: bytes of the file system of its repositories, as its daemon said last; None: it has not.
    """

    id: int
    name: str
    ssh_url: str
    http_url: str | None
    public_key: str
    host_key: str
    mode: DeviceMode
    last_seen_at: datetime | None
    silent_for: float | None
    stopped: bool
    zone: str = ""
    disk_total: int | None = None
    disk_free: int | None = None

    OFFLINE_AFTER = 10.0
    """Seconds without a heartbeat (one every 2 s) after which a device counts as offline."""

    @property
    def online(self) -> bool:
        return not self.stopped and self.silent_for is not None and self.silent_for < self.OFFLINE_AFTER

    @property
    def state(self) -> str:
        """online, offline, draining or disabled, as `status` shows it."""
        if self.mode is DeviceMode.DISABLED:
            return "disabled"
        if not self.online:
            return "offline"
        return "draining" if self.mode is DeviceMode.DRAINING else "online"


@dataclass(frozen=True, slots=True)
class PlacementRule:
    """New repositories whose names `pattern` matches get so many copies. min_copies None: 2, or 1 where copies is 1."""

    pattern: str
    copies: int
    min_copies: int | None


@dataclass(frozen=True, slots=True)
class Replica:
    """One repository on one device, as its row says.

    position: None while it holds nothing yet ("absent").
    quarantined: why its copy is not trusted, or None. demoted: because its claim was given up.
    verified_at: when its content was last found to be what it should be.
    damage: what is wrong with it where it is the only newest copy, and so is left as it is.
    marker, marker_checksum: what its disk's marker says, where the database does not know that version, or knows it
    otherwise. Of a demoted one: what was given up with it.
    """

    device: Device
    position: Position | None
    quarantined: str | None
    intent: Intent | None
    synced_at: datetime | None
    attempts: int
    last_error: str | None
    next_try_at: datetime | None
    demoted: bool = False
    verified_at: datetime | None = None
    damage: str | None = None
    marker: int | None = None
    marker_checksum: str | None = None

    @property
    def version(self) -> int | None:
        return self.position.version if self.position else None

    @property
    def knows_more(self) -> bool:
        """Whether its disk has a history that the database has not, and that nobody has given up."""
        return self.marker is not None and not self.demoted


class WhenShort(StrEnum):
    """What a push does when fewer than min_copies devices can hold its objects."""

    WARN = "warn"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository's row. `position` is the newest committed version; `frozen` why a person froze it."""

    id: int
    name: str
    object_format: str
    position: Position
    min_copies: int
    when_short: WhenShort
    frozen: str | None
    frozen_at: datetime | None
    created_at: datetime

    @property
    def version(self) -> int:
        return self.position.version


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository with all its replicas, read in one statement: what every decision is made from."""

    repository: Repository
    replicas: tuple[Replica, ...]
    grants: tuple[Grant, ...] = ()
    rules: tuple[RefRule, ...] = ()
    actor_known: bool = True

    def of(self, device: str) -> Replica | None:
        return next((replica for replica in self.replicas if replica.device.name == device), None)

    @property
    def intent_owner(self) -> Replica | None:
        """The one replica with an intent; a unique index admits no second."""
        return next((replica for replica in self.replicas if replica.intent), None)

    @property
    def leaders(self) -> tuple[Replica, ...]:
        """Every replica that holds the newest version and is trusted."""
        return tuple(
            replica
            for replica in self.replicas
            if replica.position == self.repository.position and not replica.quarantined
        )


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One committed change, as the push log keeps it. `via` says how it came to be: ssh, http, import, thaw, set."""

    version: int
    push_id: UUID
    actor: str
    device: str
    via: str
    address: str
    at: datetime
    checksum: Checksum
    refs: tuple[RefUpdate, ...] = field(default=())

    @property
    def position(self) -> Position:
        return Position(self.version, self.checksum)


class EventKind(StrEnum):
    """What can happen to a repository beside its pushes; schema.sql explains each."""

    HEAL = "heal"
    FENCE = "fence"
    THAW = "thaw"
    FREEZE = "freeze"
    QUARANTINE = "quarantine"
    REBUILD = "rebuild"
    DAMAGE = "damage"
    RESTORE = "restore"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened at `version`. device: who did it, or "-" for an administrator's command line."""

    version: int
    kind: EventKind
    device: str
    at: datetime
    what: str
    refs: tuple[RefUpdate, ...] = ()
