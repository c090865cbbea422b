"""What the command line of an SSH request means: Git's, that of another device, an operator's or a person's.

As hostile as names are (cluster/names.py): UsageError and nothing else is raised, in one line of printable ASCII.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from cluster.errors import UsageError
from cluster.model import ActorKind, Exchange, Service
from cluster.names import MAX_NAME, MAX_VERSION, USER, repository_name, shown

MAX_COMMAND = 4096
"""Characters in an SSH command. Git sends a program and a name; an operator, one public key at the most."""


@dataclass(frozen=True, slots=True)
class ServiceCommand:
    """What Git's clients ask for."""

    service: Service
    repository: str

    def __str__(self) -> str:
        return f"{self.service} {quote(self.repository)}"


@dataclass(frozen=True, slots=True)
class StageCommand:
    """A device sends objects of the push `push_id`, on top of `version`, to be kept until it is settled."""

    repository: str
    push_id: UUID
    version: int

    def __str__(self) -> str:
        return f"{STAGE} {quote(self.repository)} {self.push_id} {self.version}"


@dataclass(frozen=True, slots=True)
class UnstageCommand:
    """A device says that the push `push_id` is settled, and its staged refs may go."""

    repository: str
    push_id: UUID

    def __str__(self) -> str:
        return f"{UNSTAGE} {quote(self.repository)} {self.push_id}"


@dataclass(frozen=True, slots=True)
class PackCommand:
    """A device asks for a pack; of what, it says in its input (cluster/pulling.py)."""

    repository: str

    def __str__(self) -> str:
        return f"{PACK} {quote(self.repository)}"


@dataclass(frozen=True, slots=True)
class OperatorCommand:
    """An administrator's command line asks a device to do something that only the device can do."""

    verb: str
    arguments: dict[str, object]

    def __str__(self) -> str:
        arguments = json.dumps(self.arguments, separators=(",", ":"), sort_keys=True, allow_nan=False)
        return f"{OPERATOR} {self.verb} {quote(arguments)}"


@dataclass(frozen=True, slots=True)
class ProxyCommand:
    """A device passes on what a user asked of it. The fields are those of their Actor and their Request."""

    service: Service
    repository: str
    user: str
    fingerprint: str
    certified_until: datetime | None
    protocol: str
    via: str
    address: str
    kind: ActorKind = ActorKind.USER
    read_only: bool = False
    exchange: Exchange = Exchange.STREAM

    def __str__(self) -> str:
        until = self.certified_until and self.certified_until.astimezone(UTC).isoformat()
        words = {name: getattr(self, name) for name in _PROXIED}
        words |= {"certified_until": until, "read_only": str(self.read_only).lower()}
        return f"{PROXY} {quote(json.dumps(words, separators=(',', ':')))}"


@dataclass(frozen=True, slots=True)
class PingCommand:
    """A device or an operator asks who this is, and what its clock says (cluster/ping.py)."""

    def __str__(self) -> str:
        return PING


@dataclass(frozen=True, slots=True)
class UserCommand:
    """A person asks for something that is not Git's; cluster/user_commands.py says what the words mean."""

    verb: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join([self.verb, *map(quote, self.arguments)])


Command = (
    ServiceCommand
    | StageCommand
    | UnstageCommand
    | PackCommand
    | OperatorCommand
    | ProxyCommand
    | PingCommand
    | UserCommand
)

STAGE = "git-cluster-stage"
UNSTAGE = "git-cluster-unstage"
PACK = "git-cluster-pack"
OPERATOR = "git-cluster-operator"
PROXY = "git-cluster-proxy"

UNABLE = 75
"""The exit code, without a word, for a ProxyCommand that this device cannot answer though another one may: its database
is away, or it is about to stop. A sentence would reach the user, who may be answered by that other one."""
PING = "git-cluster-ping"

USER_VERBS = ("help", "info", "whoami", "repos", "access", "key", "create")

PROTOCOL = re.compile(r"version=[0-2](:[a-z0-9=-]+)*")
MAX_PROTOCOL = 256
"""GIT_PROTOCOL in the form that Git gives it, and its characters at the most."""

_SERVICES = {service.value: service for service in Service}
# What a ProxyCommand says, and the form of each; `certified_until` may also be null.
_PROXIED = {
    "service": re.compile("|".join(_SERVICES)),
    "repository": re.compile(rf".{{1,{MAX_NAME}}}"),
    "user": USER,
    "fingerprint": re.compile(r"(SHA256:[A-Za-z0-9+/]{43}|token:[1-9][0-9]{0,17})?"),
    "certified_until": re.compile(r"[0-9T:.-]{19,26}\+00:00"),
    "protocol": re.compile(f"({PROTOCOL.pattern})?"),
    "via": re.compile(r"[a-z]{1,20}"),
    "address": re.compile(r"[0-9A-Za-z.:%_-]{0,64}"),
    "kind": re.compile(f"{ActorKind.USER}|{ActorKind.ANONYMOUS}"),
    "read_only": re.compile("true|false"),
    "exchange": re.compile("|".join(Exchange)),
}

_HINT = "Use git clone, git fetch or git push with this host; it gives no shell. See also: ssh git@host help"
_USER_HINT = "`ssh git@host help` lists the commands."
_QUOTE_ONCE = "Put single quotes around the name of the repository, as Git does."
_QUOTE_TWICE = """Put quotes around the whole, too: ssh git@host "access team/app 'fix#1'"."""
_OWN_HINT = "Run the same version of git-cluster on both sides."

# A word as a POSIX shell reads it, and only such words as every shell reads alike: no expansion, no operator.
# The alternatives begin with different characters, so matching takes linear time.
_WORD = re.compile(
    r"""(?: [A-Za-z0-9_@%+=:,./~^-]+ | [^\x00-\x7f]+ | '[^']*' | \\['!] | "(?:[^"\\$`!]|\\["\\$`])*" )++""",
    re.VERBOSE,
)
# Of a user's command, which is typed through one shell more than Git's: that one has taken the quotes off a pattern.
_USER_WORD = re.compile(_WORD.pattern.replace("~^-]+", "~^*-]+", 1), re.VERBOSE)
_PIECE = re.compile(r"""'([^']*)'|"((?:[^"\\]|\\.)*)"|\\(.)|([^'"\\]+)""")


def quote(word: str) -> str:
    """`word` as Git quotes it for a remote shell (quote.c, sq_quote_buf); '!' too, which csh would expand."""
    return "'" + re.sub(r"['!]", r"'\\\g<0>'", word) + "'"


def parse_command(command: str) -> Command:
    """The meaning of an SSH exec command; UsageError for whatever is not one of the forms below.

        git-upload-pack 'name'   git upload-pack 'name'   (receive-pack and upload-archive alike)
        git-cluster-stage 'name' <uuid> <version>
        git-cluster-unstage 'name' <uuid>
        git-cluster-pack 'name'
        git-cluster-operator <verb> '<json object>'
        git-cluster-proxy '<json object>'
        git-cluster-ping
        whoami   access team/app --json   …   (USER_VERBS)

    No shell is ever given the command. Bytes that are not UTF-8 may stand in it as surrogate escapes.
    """
    if not command.strip(" "):
        raise UsageError("git-cluster gives no shell", hint=_HINT)
    if len(command) > MAX_COMMAND:
        raise UsageError(f"the command has more than {MAX_COMMAND} characters", hint=_HINT)
    if re.search(r"[\x00-\x1f\x7f]", command):
        raise UsageError("the command holds a control character", hint=_HINT)
    program, _, rest = command.strip(" ").partition(" ")
    if program == "git":
        subcommand, _, rest = rest.partition(" ")
        program = f"git-{subcommand}" if f"git-{subcommand}" in _SERVICES else f"git {subcommand}"
    if program in _SERVICES:
        return _service(_SERVICES[program], _words(rest, program))
    if program == STAGE:
        name, push_id, version = _exactly(_words(rest, program), f"{STAGE} <name> <uuid> <version>")
        return StageCommand(repository_name(name), _uuid(push_id), _version(version))
    if program == UNSTAGE:
        name, push_id = _exactly(_words(rest, program), f"{UNSTAGE} <name> <uuid>")
        return UnstageCommand(repository_name(name), _uuid(push_id))
    if program == PACK:
        (name,) = _exactly(_words(rest, program), f"{PACK} <name>")
        return PackCommand(repository_name(name))
    if program == OPERATOR:
        verb, arguments = _exactly(_words(rest, program), f"{OPERATOR} <verb> <json object>")
        return _operator(verb, arguments)
    if program == PROXY:
        return _proxy(*_exactly(_words(rest, program), f"{PROXY} <json object>"))
    if program == PING:
        _exactly(_words(rest, program), PING)
        return PingCommand()
    if program in ("--help", "-h"):
        program = "help"
    if program in USER_VERBS:
        return UserCommand(program, tuple(_words(rest, program, _USER_WORD, _QUOTE_TWICE)))
    if meant := _meant(program):
        raise UsageError(f"there is no command {shown(program)}; did you mean {meant}?", hint=_USER_HINT)
    runs = "git-upload-pack, git-receive-pack and git-upload-archive"
    raise UsageError(f"git-cluster runs {runs} only, not {shown(program)}", hint=_HINT)


def _meant(program: str) -> str | None:
    """The verb of a user's command that somebody seems to have mistyped."""
    import difflib  # for the one command that needs it

    found = difflib.get_close_matches(program[:20].lower(), USER_VERBS, n=1, cutoff=0.7)
    return found[0] if found else None


def _words(text: str, program: str, word_of: re.Pattern[str] = _WORD, hint: str = _QUOTE_ONCE) -> list[str]:
    """The words of `text` without their quoting."""
    words: list[str] = []
    rest = text.strip(" ")
    while rest:
        word = word_of.match(rest)
        if not word or rest[word.end() : word.end() + 1] not in ("", " "):
            raise UsageError(
                f"the arguments of {program} hold an open quote or a character that a shell would act on",
                hint=hint,
            )
        words.append("".join(map(_unquoted, _PIECE.finditer(word[0]))))
        rest = rest[word.end() :].lstrip(" ")
    return words


def _unquoted(piece: re.Match[str]) -> str:
    single, double, escaped, plain = piece.groups()
    if double is not None:
        return re.sub(r"\\(.)", r"\1", double)
    return single or escaped or plain or ""


def _service(service: Service, words: list[str]) -> ServiceCommand:
    for word in words:
        if word.startswith("-"):
            raise UsageError(f"{service} takes no options here, not {shown(word)}", hint=_HINT)
    if len(words) != 1:
        raise UsageError(f"{service} takes one repository, not {len(words)} arguments", hint=_HINT)
    return ServiceCommand(service, repository_name(words[0]))


def _exactly(words: list[str], form: str) -> list[str]:
    """`words`, as many as `form` names after its program; its <json object> is one."""
    if len(words) != form.count("<"):
        raise UsageError(f"the command must be {form}, not {len(words)} arguments", hint=_OWN_HINT)
    return words


def _uuid(text: str) -> UUID:
    """A UUID in its one canonical form: it becomes part of a ref's name. UUID() alone reads many others."""
    if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text):
        raise UsageError(f"{shown(text)} is not the UUID of a push", hint=_OWN_HINT)
    return UUID(text)


def _version(text: str) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,18}", text) or int(text) > MAX_VERSION:
        raise UsageError(f"{shown(text)} is not a version", hint=_OWN_HINT)
    return int(text)


def _operator(verb: str, text: str) -> OperatorCommand:
    if not re.fullmatch(r"[a-z-]+", verb) or verb.startswith("-"):
        raise UsageError(f"{shown(verb)} is not an operator's verb", hint=_OWN_HINT)
    return OperatorCommand(verb, _json_object(text, f"{OPERATOR} {verb[:60]}"))


def _proxy(text: str) -> ProxyCommand:
    """Exactly the keys of _PROXIED, each a string of its form; anything else is not from a device of ours."""
    words = _json_object(text, PROXY)
    if words.keys() != _PROXIED.keys():
        raise UsageError(f"{PROXY} takes exactly {', '.join(_PROXIED)}", hint=_OWN_HINT)
    certified = words.pop("certified_until")
    checked = {name: _said(name, value) for name, value in words.items()}
    if (
        len(checked["protocol"]) > MAX_PROTOCOL
        or repository_name(checked["repository"]) != checked["repository"]
    ):
        raise UsageError(
            f"{PROXY}: the protocol is too long, or the name is not as git-cluster writes it", hint=_OWN_HINT
        )
    kind = ActorKind(checked.pop("kind"))
    if (kind is ActorKind.ANONYMOUS) != (not checked["fingerprint"]):
        raise UsageError(f"{PROXY}: somebody anonymous has no fingerprint, a user has one", hint=_OWN_HINT)
    return ProxyCommand(
        Service(checked.pop("service")),
        kind=kind,
        read_only=checked.pop("read_only") == "true",
        exchange=Exchange(checked.pop("exchange")),
        certified_until=None if certified is None else _moment(_said("certified_until", certified)),
        **checked,
    )


def _said(name: str, value: object) -> str:
    if not isinstance(value, str) or not _PROXIED[name].fullmatch(value):
        raise UsageError(f"{PROXY}: {name} is not of the form that it has", hint=_OWN_HINT)
    return value


def _moment(text: str) -> datetime:
    """In UTC, in the one form that datetime writes."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.isoformat() != text:
        raise UsageError(f"{PROXY}: certified_until is not a time", hint=_OWN_HINT)
    return moment


def _json_object(text: str, program: str) -> dict[str, object]:
    what = f"the arguments of {program}"
    try:
        arguments: object = json.loads(text, object_pairs_hook=_no_duplicates)
        # Written again, it shows what the parser lets through: NaN, infinity, halves of a character.
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} are not JSON", hint=_OWN_HINT) from error
    if not isinstance(arguments, dict) or not text.isascii():
        raise UsageError(f"{what} are not a JSON object in ASCII", hint=_OWN_HINT)
    if re.search(r"(?<!\\)(?:\\\\)*\\u0000", text):  # PostgreSQL's text cannot hold it
        raise UsageError(f"{what} hold a NUL", hint=_OWN_HINT)
    return arguments


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A key given twice means one thing to one reader and another to the next."""
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return dict(pairs)
