"""Names as people and clients write them, checked once at the edge: what passes here is safe behind it.

Everything that arrives over a connection is hostile until it has been through one of these functions. They
raise UsageError and nothing else, and its sentence is one line of printable ASCII whatever was sent.
"""

from __future__ import annotations

import re

from cluster.errors import UsageError

MAX_NAME = 200
MAX_COMPONENT = 100
MAX_COMPONENTS = 8
"""Limits of a repository name: far past any in use, and short enough for a line of a listing or a log."""

MAX_REASON = 1000
"""Characters of a reason, which stands in a line of a listing."""

MAX_VERSION = 2**63 - 1
"""PostgreSQL's bigint, which holds a version."""

_COMPONENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PATTERN_COMPONENT = re.compile(r"[A-Za-z0-9*][A-Za-z0-9._*-]*")
_NAME_HINT = (
    "A repository name is 1 to 8 parts separated by '/', each of letters, digits, '.', '_' and '-', "
    "beginning with a letter or digit, such as team/app."
)
_PATTERN_HINT = "A pattern is a repository name in which '*' may stand for any text, such as team/* or app-*."

# The same expressions as the checks of device.name, actor.name and actor_group.name in schema.sql.
_DEVICE = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
USER = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._@+-]{0,62}[A-Za-z0-9])?")
_GROUP = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._+-]{0,62}[A-Za-z0-9])?")


def shown(text: str, limit: int = 60) -> str:
    """`text` in quotes for a message: printable ASCII alone, escaped, and `limit` characters at the most."""
    literal = ascii(text[: limit + 1])
    return literal if len(literal) <= limit + 2 else f"{literal[: limit - 2]}...{literal[0]}"


# Repositories and the patterns of grants


def repository_name(text: str) -> str:
    """The name of a repository in the one form that the database holds.

    "/team/app.git/", as an ssh:// URL sends it, is "team/app".
    """
    name = text.lstrip("/").removesuffix("/").removesuffix(".git")
    if why := _fault(name, _COMPONENT):
        raise UsageError(f"{shown(text)} is not a repository name: {why}", hint=_NAME_HINT)
    return name


def pattern(text: str) -> str:
    """The pattern of a grant: a repository name, or one with '*' inside its components. See `matches`."""
    name = text.lstrip("/").removesuffix("/")
    if "*" not in name:  # team/*.git must not widen to team/*, which reaches any depth
        name = name.removesuffix(".git")
    why = _fault(name, _PATTERN_COMPONENT)
    if not why and "**" in name:
        why = "'**' is not needed, as a last part '*' reaches any depth"
    if why:
        raise UsageError(f"{shown(text)} is not a pattern of repository names: {why}", hint=_PATTERN_HINT)
    return name


def _fault(name: str, component: re.Pattern[str]) -> str:
    """What is wrong with a name whose parts must each match `component`; "" where nothing is."""
    if not name:
        return "it is empty"
    if not name.isascii():
        return "it holds a character outside ASCII"
    if len(name) > MAX_NAME:
        return f"it has more than {MAX_NAME} characters"
    if ".." in name:
        return "it holds '..'"
    parts = name.split("/")
    if len(parts) > MAX_COMPONENTS:
        return f"it has more than {MAX_COMPONENTS} parts"
    for part in parts:
        if not part:
            return "it has an empty part"
        if len(part) > MAX_COMPONENT:
            return f"a part has more than {MAX_COMPONENT} characters"
        if not component.fullmatch(part):
            return f"the part {shown(part)} begins with or holds a character that is not allowed"
        if part.lower().endswith((".git", ".lock", ".")):
            return "a part ends in '.git', '.lock' or '.'"
    return ""


def matches(pattern: str, name: str) -> bool:
    """Whether the repository `name` is one that `pattern` means. Both are in their checked form.

    '*' alone as the last component stands for everything below, at any depth: team/* means team/a and
    team/a/b, and * means every repository. Anywhere else it stands for any text within one component.
    """
    wanted, parts = pattern.split("/"), name.split("/")
    if wanted[-1] == "*" and len(parts) >= len(wanted):
        wanted.pop()
        parts = parts[: len(wanted)]
    return len(wanted) == len(parts) and all(map(_component_matches, wanted, parts))


def _component_matches(wanted: str, text: str) -> bool:
    """Left to right, each literal at its first place: no backtracking, so no pattern can be slow."""
    first, *rest = wanted.split("*")
    if not rest:
        return wanted == text
    if not text.startswith(first):
        return False
    at = len(first)
    *middle, last = rest
    for literal in middle:
        found = text.find(literal, at)
        if found < 0:
            return False
        at = found + len(literal)
    return text.endswith(last) and len(text) - len(last) >= at


def specificity(pattern: str) -> tuple[bool, int, int]:
    """How exactly a pattern says what it means; the greater wins.

    A name beats every pattern, then more literal characters beat fewer, then fewer '*' beat more.
    """
    stars = pattern.count("*")
    return stars == 0, len(pattern) - stars, -stars


# Devices, users, branches


def reason(text: str, called: str = "the reason") -> str:
    """Why somebody freezes a repository, on one line, for those whose pushes are refused. called: in what is said."""
    said = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    if not said:
        raise UsageError(
            f"{called} is empty", hint="Say why, in words for the people whose pushes are refused."
        )
    if len(said) > MAX_REASON:
        raise UsageError(f"{called} has more than {MAX_REASON} characters", hint="Say it in a sentence.")
    return said


def device_name(text: str) -> str:
    if not _DEVICE.fullmatch(text):
        raise UsageError(
            f"{shown(text)} is not a device name",
            hint="A device name is 1 to 63 lower-case letters, digits, '.' and '-', such as git-1.",
        )
    return text


def zone_name(text: str) -> str:
    """What a device shares with those that would fail together with it; "": nothing is known of that."""
    if text and not _DEVICE.fullmatch(text):
        raise UsageError(
            f"{shown(text)} is not the name of a zone",
            hint="A zone is named like a device: 1 to 63 lower-case letters, digits, '.' and '-', such as rack-1.",
        )
    return text


def user_name(text: str) -> str:
    if not USER.fullmatch(text):
        raise UsageError(
            f"{shown(text)} is not a user name",
            hint="A user name is 1 to 64 letters, digits and ._@+-, a letter or digit first and last.",
        )
    return text


def group_name(text: str) -> str:
    """The name of a group, without the "@" with which people may write it."""
    name = text.removeprefix("@")
    if not _GROUP.fullmatch(name):
        raise UsageError(
            f"{shown(text)} is not a group name",
            hint="A group name is 1 to 64 letters, digits and ._+-, a letter or digit first and last.",
        )
    return name


def actor_name(text: str) -> str:
    """To whom a grant or rule is: a user's name, "@" and a group's, or "everyone"."""
    return f"@{group_name(text)}" if text.startswith("@") else user_name(text)


def ref_name(text: str) -> str:
    """The full ref of a branch, from its short or its full name: "main" and "refs/heads/main" are the same.

    The rules are those of git-check-ref-format(1), with --branch's for the short name; and a component has
    room for ".lock" in the 255 bytes of a file name, because Git keeps a ref in a file of that name.
    """
    branch = text.removeprefix("refs/heads/")
    parts = branch.split("/")
    try:
        longest = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError:  # bytes that were not UTF-8
        longest = 256
    if (
        longest > 250
        or branch in ("@", "HEAD")
        or branch.startswith(("-", "refs/"))
        or branch.endswith(".")
        or ".." in branch
        or "@{" in branch
        or re.search(r"[\x00-\x20\x7f~^:?*\[\\]", branch)
        or any(not part or part.startswith(".") or part.endswith(".lock") for part in parts)
    ):
        raise UsageError(
            f"{shown(text)} is not a branch name",
            hint="See git help check-ref-format: no space, no '..', no part empty, none of ~^:?*[\\.",
        )
    return f"refs/heads/{branch}"
