"""What users can ask of a device over SSH beside Git: the words of each command, and `help`. No input or output.

    ssh git@host access team/app --json   →   UserCommand("access", ("team/app", "--json"))   →   Access("team/app", …)

cluster/ssh_command.py splits the line into words, as strictly as for Git's own requests; what is made of them is here,
and what is done about it in cluster/commands.py. Whatever was sent, the answer is one of the values below, or
UsageError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cluster import names, ref_rules
from cluster.errors import UsageError
from cluster.names import shown
from cluster.ssh_command import UserCommand


@dataclass(frozen=True, slots=True)
class Help:
    """`command`: the one to explain; None: all of them."""

    command: str | None = None


@dataclass(frozen=True, slots=True)
class Info:
    json: bool


@dataclass(frozen=True, slots=True)
class WhoAmI:
    json: bool


@dataclass(frozen=True, slots=True)
class Repos:
    """pattern: as of a grant; None: every repository."""

    pattern: str | None
    json: bool


@dataclass(frozen=True, slots=True)
class Access:
    """ref: a full name, or None. user: somebody else to ask about ("everyone": whoever has a key), or None."""

    repository: str
    ref: str | None
    user: str | None
    json: bool


@dataclass(frozen=True, slots=True)
class KeyList:
    json: bool


@dataclass(frozen=True, slots=True)
class KeyAdd:
    """expires: as keys.expiry takes it; None: never."""

    expires: str | None


@dataclass(frozen=True, slots=True)
class KeyRemove:
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Create:
    """head: a full ref."""

    repository: str
    head: str
    object_format: str
    json: bool


Asked = Help | Info | WhoAmI | Repos | Access | KeyList | KeyAdd | KeyRemove | Create


@dataclass(frozen=True, slots=True)
class Form:
    """How a command is written.

    arguments: as help shows them. words: how many of them are no options, at the least and at the most.
    options: each with the name of its value, or None for one that stands alone.
    """

    arguments: str
    words: tuple[int, int]
    does: str
    more: str
    example: str
    options: Mapping[str, str | None] = field(default_factory=dict)


_JSON: dict[str, str | None] = {"--json": None}

FORMS: Mapping[str, Form] = {
    "help": Form(
        "[COMMAND]", (0, 2), "this text, or one command's arguments and an example",
        "", "ssh git@host help access",
    ),
    "info": Form(
        "[--json]", (0, 0), "this cluster, its devices, and the limits of a push",
        "Says which device you have reached, where the others are and how they do, and how many repositories you may\n"
        "read, push to and administer. A device that does not keep a repository names one that does.",
        "ssh git@host info", _JSON,
    ),
    "whoami": Form(
        "[--json]", (0, 0), "who you are to this cluster, and what proved it",
        "Shows your name, the key or certificate that proved it, and the groups that you are in.",
        "ssh git@host whoami", _JSON,
    ),
    "repos": Form(
        "[PATTERN] [--json]", (0, 1), "the repositories that you may read, and what else you may do",
        "PATTERN is a name, or one with * in it: team/* is everything below team/, app-* what begins with app-.",
        "ssh git@host repos 'team/*'", _JSON,
    ),
    "access": Form(
        "REPO [REF] [--user USER] [--json]", (1, 2), "what you may do to REPO, and which grant says so",
        "REF is a branch or a full name such as refs/tags/v1; then the rules on that ref are listed, too.\n"
        "Who may admin REPO can ask about another USER, or about everyone.",
        "ssh git@host access team/app main", {"--user": "USER", **_JSON},
    ),
    "key list": Form(
        "[--json]", (0, 0), "your public keys",
        "Shows the fingerprint of each, which of them proved you now, and when it expires.",
        "ssh git@host key list", _JSON,
    ),
    "key add": Form(
        "[--expires WHEN] <FILE", (0, 0), "register a public key of yours, read from standard input",
        "FILE is the public half, which ends in .pub. WHEN is a day (2027-01-31: until it begins, in UTC), a time\n"
        "(2027-01-31T18:00, in UTC or with an offset such as +02:00) or a while from now on (12h, 30d, 8w).\n"
        "It counts no longer than the key or certificate that you add it with.",
        "ssh git@host key add <laptop.pub", {"--expires": "WHEN"},
    ),
    "key remove": Form(
        "FINGERPRINT", (1, 1), "remove a key of yours",
        "FINGERPRINT is what `key list` and `ssh-keygen -lf FILE` show. Your only key cannot be removed.",
        "ssh git@host key remove SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU",
    ),
    "create": Form(
        "NAME [--default-branch B] [--object-format sha1|sha256] [--json]", (1, 1), "make an empty repository",
        "You need a grant of admin that covers NAME. The default branch is main unless B says otherwise.",
        "ssh git@host create team/new",
        {"--default-branch": "B", "--object-format": "sha1|sha256", **_JSON},
    ),
}  # fmt: skip
"""In the order of `help`."""

_HINT = "`ssh git@host help` lists the commands."
_FINGERPRINT = re.compile(r"(SHA256:[A-Za-z0-9+/]{43})=?")


def parse(command: UserCommand) -> Asked:
    """What a command asks for. UsageError."""
    name, words = named(command)
    if name == "help":
        return Help(_explained(words))
    if words and words[-1] in ("--help", "-h"):
        return Help(name)
    given, options = _split(name, FORMS[name], words)
    json = "--json" in options
    match name:
        case "info":
            return Info(json)
        case "whoami":
            return WhoAmI(json)
        case "repos":
            return Repos(names.pattern(given[0]) if given else None, json)
        case "access":
            ref = ref_rules.full_ref(given[1]) if len(given) > 1 else None
            user = names.user_name(options["--user"]) if "--user" in options else None
            return Access(names.repository_name(given[0]), ref, user, json)
        case "key list":
            return KeyList(json)
        case "key add":
            return KeyAdd(options.get("--expires"))
        case "key remove":
            return KeyRemove(fingerprint(given[0]))
    head = names.ref_name(options.get("--default-branch", "main"))
    object_format = options.get("--object-format", "sha1")
    if object_format not in ("sha1", "sha256"):
        raise UsageError(f"{shown(object_format)} is not an object format", hint="It is sha1 or sha256.")
    return Create(names.repository_name(given[0]), head, object_format, json)


def named(command: UserCommand) -> tuple[str, Sequence[str]]:
    """The name of a command as in FORMS, of one or two words, and the words after it. UsageError."""
    verb, words = command.verb, command.arguments
    if verb in FORMS:
        return verb, words
    subcommands = _subcommands(verb)
    if words and words[0] in subcommands:
        return f"{verb} {words[0]}", words[1:]
    if words and words[0] in ("--help", "-h"):
        return "help", (verb,)
    what = f"{verb} needs one of {', '.join(subcommands)}" + (f", not {shown(words[0])}" if words else "")
    raise UsageError(what, hint=f"`ssh git@host help {verb}` explains them.")


def _subcommands(verb: str) -> list[str]:
    return [name.partition(" ")[2] for name in FORMS if name.startswith(f"{verb} ")]


def _explained(words: Sequence[str]) -> str | None:
    """The command that `help` is to explain: a name of FORMS, or the first word of several."""
    wanted = " ".join(word for word in words if word not in ("--help", "-h"))
    if wanted and wanted not in FORMS and not _subcommands(wanted):
        raise UsageError(f"there is no command {shown(wanted)}", hint=_HINT)
    return wanted or None


def _split(name: str, form: Form, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The words of a command that are no options, and its options with their values. UsageError."""
    hint = f"`ssh git@host help {name}` shows its arguments."
    given: list[str] = []
    options: dict[str, str] = {}
    rest: Iterator[str] = iter(words)
    for word in rest:
        if not word.startswith("-"):
            given.append(word)
            continue
        option, equals, value = word.partition("=")
        if option not in form.options:
            raise UsageError(f"{name} has no option {shown(option)}", hint=hint)
        if option in options:
            raise UsageError(f"{option} stands twice", hint=hint)
        wants = form.options[option]
        if wants is None and equals:
            raise UsageError(f"{option} takes no value", hint=hint)
        if wants is not None and not equals:
            following = next(rest, None)
            if following is None:
                raise UsageError(f"{option} needs a value: {wants}", hint=hint)
            value = following
        options[option] = value
    least, most = form.words
    if not least <= len(given) <= most:
        few = "too few" if len(given) < least else "too many"
        raise UsageError(f"{few} arguments: it is {name} {form.arguments}", hint=hint)
    return given, options


# The words of their own


def fingerprint(text: str) -> str:
    """A key's fingerprint as the database has it, without padding. UsageError."""
    found = _FINGERPRINT.fullmatch(text)
    if not found:
        raise UsageError(
            f"{shown(text)} is not a fingerprint",
            hint="It begins with SHA256:; `ssh git@host key list` and `ssh-keygen -lf FILE` show it.",
        )
    return found[1]


# Help


def help_text(command: str | None) -> str:
    """One screen about all commands, or a few lines about one."""
    if command is None:
        width = max(map(len, FORMS)) + 2
        lines = [
            "This host keeps Git repositories. Clone, fetch and push by URL, on any device:",
            "",
            "  git clone ssh://git@host/team/app",
            "",
            "It gives no shell. `ssh git@host COMMAND` knows these:",
            "",
            *(f"  {name:<{width}}{form.does}" for name, form in FORMS.items()),
            "",
            "`ssh git@host help COMMAND` shows a command's arguments. With --json, lists and answers are for programs.",
        ]
        return "\n".join(lines)
    chosen = [name for name in FORMS if name == command or name.startswith(f"{command} ")]
    return "\n\n".join(_explanation(name, FORMS[name]) for name in chosen)


def _explanation(name: str, form: Form) -> str:
    usage = f"usage: ssh git@host {name} {form.arguments}".rstrip()
    lines = [usage, f"  {form.does}", *(f"  {line}" for line in form.more.splitlines())]
    return "\n".join([*lines, f"  example: {form.example}"])
