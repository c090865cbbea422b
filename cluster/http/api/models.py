"""Bodies and answers of the API, as the OpenAPI document shows them.

Names are checked by cluster/names.py, so what is wrong with one is said in the words of the command line. The patterns
in the document say what holds for every name, not all that makes one.
A body with a field that is not known is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from cluster import keys, names, ref_rules, tokens, user_commands
from cluster.errors import UsageError


@dataclass(frozen=True, slots=True)
class Checked:
    """Of a string that `check` takes, and as what it returns; and how the document describes it.

    What `check` raises is a UsageError, which goes through pydantic as it is.
    """

    check: Callable[[str], str]
    pattern: str | None
    example: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        described = {"type": "string", "examples": [self.example]}
        return described | ({"pattern": f"^{self.pattern}$"} if self.pattern else {})


def _plain(text: str) -> str:
    if len(text) > names.MAX_NAME or not text.isprintable():
        raise UsageError(f"{names.shown(text)} is not a part of a name", hint="Give a few letters of it.")
    return text


def _whole(value: Any) -> Any:
    """In JSON, 1.0 is a whole number, too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _moment(text: str) -> str:
    keys.expiry(text, datetime.now(UTC))
    return text


_USER = r"[A-Za-z0-9]([A-Za-z0-9._@+-]{0,62}[A-Za-z0-9])?"
_DEVICE = r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?"
_REF = r"[^\u0000-\u0020\u007f~^:?\[\\]+"

Name = Annotated[str, Checked(names.repository_name, r"/*[A-Za-z0-9][A-Za-z0-9._/-]*", "team/app")]
Pattern = Annotated[str, Checked(names.pattern, r"/*[A-Za-z0-9*][A-Za-z0-9._*/-]*", "team/*")]
DeviceName = Annotated[str, Checked(names.device_name, _DEVICE, "git-1")]
Zone = Annotated[str, Checked(names.zone_name, f"({_DEVICE})?", "rack-1")]
UserName = Annotated[str, Checked(names.user_name, _USER, "ann")]
NewUserName = Annotated[str, Checked(names.new_user_name, _USER, "ann")]
GroupName = Annotated[str, Checked(names.group_name, f"@?{_USER}", "developers")]
NewGroupName = Annotated[str, Checked(names.new_group_name, f"@?{_USER}", "developers")]
ActorName = Annotated[str, Checked(names.actor_name, f"@?{_USER}", "@developers")]
Branch = Annotated[str, Checked(names.ref_name, _REF, "main")]
Ref = Annotated[str, Checked(ref_rules.full_ref, _REF, "main")]
RefPattern = Annotated[str, Checked(ref_rules.ref_pattern, _REF, "release/*")]
Reason = Annotated[str, Checked(names.reason, None, "moving house")]
Part = Annotated[str, Checked(_plain, None, "app")]
When = Annotated[str, Checked(_moment, r"[0-9A-Za-z:.+-]+", "90d")]
SshUrl = Annotated[str, Checked(names.ssh_url, r"ssh://.+", "ssh://git@a.example:2222")]
HttpUrl = Annotated[str, Checked(names.http_url, r"https?://.+", "https://a.example")]
NoHttpUrl = Annotated[str, Checked(lambda url: url and names.http_url(url), r"(https?://.+)?", "")]
Comment = Annotated[str, Checked(tokens.comment, None, "the build server")]
Fingerprint = Annotated[
    str, Checked(user_commands.fingerprint, r"SHA256:[A-Za-z0-9+/]{43}=?", f"SHA256:{'A' * 43}")
]
PublicKey = Annotated[str, Field(max_length=keys.MAX_BYTES, examples=["ssh-ed25519 AAAAC3Nza… ann@laptop"])]

MOST = 2**53
"""Of a number in JSON that every program reads as it is meant."""

Version = Annotated[int, Field(ge=0, le=MOST), BeforeValidator(_whole)]
Copies = Annotated[int, Field(ge=1, le=9), BeforeValidator(_whole)]
LevelName = Literal["read", "write", "admin"]
RepositoryState = Literal["healthy", "degraded", "frozen", "unavailable"]
DeviceState = Literal["online", "offline", "draining", "disabled"]
Mode = Literal["enabled", "draining", "disabled"]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Answer(BaseModel):
    pass


class Error(Answer):
    """What went wrong, and what to do next. lines: what would be lost, where a thaw is refused for it."""

    error: str
    hint: str = ""
    lines: list[str] | None = None


# The cluster


class Who(Answer):
    user: str | None = Field(description="null: nobody in particular")
    groups: list[str]
    administers: bool = Field(description="whether they may change what is no one repository's")
    read_only: bool = Field(description="whether their token may change nothing")


class Counts(Answer):
    devices: dict[DeviceState, int]
    repositories: dict[RepositoryState, int]


class DeviceSummary(Answer):
    name: str
    state: DeviceState
    last_seen_at: datetime | None


class Status(Answer):
    cluster: str
    healthy: bool = Field(description="whether nothing needs anybody")
    counts: Counts
    devices: list[DeviceSummary] | None = Field(description="null to somebody without a token")


# Devices


class Device(DeviceSummary):
    mode: Mode
    zone: str
    ssh: str
    http: str | None
    repositories: int = Field(description="how many it holds")
    key: str
    host_key: str


class NewDevice(Body):
    ssh: SshUrl
    key: PublicKey
    host_key: PublicKey
    http: HttpUrl | None = None
    zone: Zone = ""


class DeviceChange(Body):
    ssh: SshUrl | None = None
    http: NoHttpUrl | None = Field(None, description='"": it has none any more')
    zone: Zone | None = None
    mode: Mode | None = Field(
        None, description="draining: it is given nothing new; disabled: it serves nothing"
    )


# Repositories


class Replica(Answer):
    device: str
    version: int | None
    behind: int
    checksum: str | None
    state: Literal["current", "behind", "writing", "frozen", "quarantined", "absent"]
    reason: str | None
    is_writing: bool
    writer: str | None
    writing_since: datetime | None
    last_synced_at: datetime | None
    attempts: int
    last_error: str | None
    verified_at: datetime | None
    damage: str | None
    disk_version: int | None


class Entry(Answer):
    """As an entry of `git-cluster status --json`. reason and replicas: to users."""

    name: str
    version: int
    state: RepositoryState
    reason: str | None
    min_copies: int
    copies: int
    replicas: list[Replica]


class Repositories(Answer):
    """next: give it as `after` for what follows; null: that is all. A page may hold fewer than `limit`, even none."""

    repositories: list[Entry]
    next: str | None


class Repository(Entry):
    object_format: Literal["sha1", "sha256"]
    default_branch: str | None
    when_short: Literal["warn", "refuse"]
    frozen: str | None
    created_at: datetime
    urls: list[str]


class NewRepository(Body):
    devices: list[DeviceName] = Field([], max_length=9)
    copies: Copies | None = None
    min_copies: Copies | None = None
    default_branch: Branch | None = None
    object_format: Literal["sha1", "sha256"] | None = None


class RepositoryChange(Body):
    min_copies: Copies | None = None
    when_short: Literal["warn", "refuse"] | None = None
    default_branch: Branch | None = None
    expected_version: Version | None = None


class Rename(Body):
    to: Name


class Placement(Body):
    add: list[DeviceName] = Field([], max_length=9)
    remove: list[DeviceName] = Field([], max_length=9)
    copies: Copies | None = None
    wait: bool = Field(False, description="until what is added is current, and only then remove")
    dry_run: bool = False


class Placed(Answer):
    """waiting: what has to be asked for again, because it could not be removed yet."""

    name: str
    added: list[str]
    removed: list[str]
    waiting: list[str]
    devices: list[str]
    dry_run: bool


class RefChange(Answer):
    ref: str
    old: str
    new: str


class Event(Answer):
    version: int
    kind: str
    device: str
    at: datetime
    what: str
    refs: list[RefChange]


class LogEntry(Answer):
    version: int
    actor: str
    device: str
    via: str
    at: datetime
    refs: list[RefChange]
    events: list[Event]


class Log(Answer):
    """Newest first. next: give it as `before` for older ones; null: that is all."""

    entries: list[LogEntry]
    next: int | None


class OnDevices(Body):
    devices: list[DeviceName] = Field([], max_length=100, description="only the replicas there; none: all")


class ReplicaResult(Answer):
    repository: str
    device: str
    ok: bool
    result: dict[str, Any] | None = None
    error: str | None = None
    hint: str | None = None


class Replicas(Answer):
    """lines: for a person. ok: whether every device could do it."""

    ok: bool
    lines: list[str]
    replicas: list[ReplicaResult]


class Freeze(Body):
    reason: Reason
    expected_version: Version | None = None


class Frozen(Answer):
    lines: list[str]
    repository: str
    frozen: str
    before: str | None = Field(description="the reason for which it was frozen already")


class Thaw(Body):
    demote: DeviceName | None = Field(None, description="give up what this device claims")
    promote: DeviceName | None = Field(None, description="declare what this device holds the truth")
    dry_run: bool = Field(False, description="only say what would be done and lost")
    accept_loss: bool = Field(False, description="go on although acknowledged changes are given up")
    expected_version: Version | None = Field(
        None, description="the version at which the dry run was looked at"
    )


class Thawed(Answer):
    repository: str
    dry_run: bool
    lost_versions: list[int]
    restored_versions: list[int]
    lines: list[str]


class Done(Answer):
    lines: list[str]


# Who there is


class User(Answer):
    name: str
    created_at: datetime
    keys: int
    disabled: bool
    disabled_at: datetime | None


class Users(Answer):
    """next: give it as `after` for what follows; null: that is all."""

    users: list[User]
    next: str | None


class UserChange(Body):
    disabled: bool


class Group(Answer):
    name: str
    members: list[str]
    created_at: datetime


class Groups(Answer):
    """next: give it as `after` for what follows; null: that is all."""

    groups: list[Group]
    next: str | None


class NewKey(Body):
    public_key: PublicKey
    user: UserName | None = Field(None, description="whose; null: yours")
    expires: When | None = Field(
        None, description="a day, a time with its zone, or a while from now on (90d)"
    )


class Key(Answer):
    user: str
    fingerprint: str
    public_key: str
    comment: str
    created_at: datetime
    expires_at: datetime | None


class NewToken(Body):
    user: UserName | None = Field(None, description="whose; null: yours")
    read_only: bool = False
    expires: When | None = Field(
        None, description="a day, a time with its zone, or a while from now on (90d)"
    )
    comment: Comment = ""


class MadeToken(Answer):
    """token: the secret, this once."""

    id: int
    user: str
    token: str
    read_only: bool
    expires_at: datetime | None
    comment: str


class Token(Answer):
    id: int
    user: str
    comment: str
    read_only: bool
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    last_used_from: str | None


# Who may what


class GrantLevel(Body):
    level: LevelName


class Grant(Answer):
    actor: str
    level: LevelName
    pattern: str


class Grants(Answer):
    """next: give it as `after` for what follows; null: that is all."""

    grants: list[Grant]
    next: str | None


class RefRule(Body):
    may: list[Literal["create", "push", "force", "delete"]] = Field(
        max_length=4, description="this, and nothing else"
    )


class Rule(Answer):
    actor: str
    pattern: str
    ref: str
    may: list[str]


class Rules(Answer):
    """next: give it as `after` for what follows; null: that is all."""

    rules: list[Rule]
    next: str | None


class PlacementCopies(Body):
    copies: Copies
    min_copies: Copies | None = Field(None, description="null: 2, or 1 where copies is 1")


class PlacementRule(Answer):
    pattern: str
    copies: int
    min_copies: int | None


class Access(Answer):
    actor: str
    repository: str
    exists: bool
    level: LevelName | None
    because: str
    pattern: str | None
    disabled: bool
    ref: str | None
    may: list[str] | None
    rule: str | None
    lines: list[str]
