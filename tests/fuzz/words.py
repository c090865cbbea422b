"""Fuzz targets for what arrives as words: commands, names, patterns, variables, keys."""

from __future__ import annotations

import fnmatch
import io
import json
import re
from pathlib import Path

from cluster import endpoint, keys, names, ssh_command
from cluster.errors import UsageError
from cluster.keyfiles import generate_key
from tests.fuzz.core import Target, one_line

SCHEMA = (Path(__file__).parents[2] / "schema.sql").read_text()
UUID = "5f0c2f3e-0d5b-4f0e-9a55-2f6f3c1f9f10"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


# ----------------------------------------------------------------------------------------------------- commands


def command(data: bytes) -> None:
    """A command means one thing, and what it is written as again means the same."""
    try:
        parsed = ssh_command.parse_command(_text(data))
    except UsageError as error:
        return one_line(error, ascii_only=True)
    written = str(parsed)
    if isinstance(
        parsed, ssh_command.UserCommand
    ):  # a name in it may be in any script; what each verb takes comes later
        assert parsed.verb in ssh_command.USER_VERBS
        if len(written) <= ssh_command.MAX_COMMAND:
            assert ssh_command.parse_command(written) == parsed, (parsed, written)
        return None
    assert written.isascii() and written.isprintable(), written
    if isinstance(parsed, ssh_command.OperatorCommand):
        json.dumps(parsed.arguments, allow_nan=False, ensure_ascii=False).encode()
        if len(written) > ssh_command.MAX_COMMAND:  # it is quoted otherwise than it came
            return None
    elif not isinstance(parsed, ssh_command.PingCommand):
        _is_name(parsed.repository)
    assert ssh_command.parse_command(written) == parsed, (parsed, written)
    return None


COMMANDS = (
    b"git-upload-pack 'team/app'",
    b"git receive-pack '/team/app.git'",
    b"git-upload-archive \"team/app\"",
    b"git-upload-pack 'it'\\''s'",
    b"git-receive-pack team/app\\!",
    f"git-cluster-stage 'team/app' {UUID} 17".encode(),
    f"git-cluster-unstage 'team/app' {UUID}".encode(),
    b"git-cluster-pack 'team/app'",
    b"""git-cluster-operator sync '{"repository":"team/app","n":[1,2.5e3,null,true],"s":"\\u00e9\\\\"}'""",
    b"""git-cluster-operator set-head "{\\"a\\":{}}\"""",
    b"git-cluster-proxy ada git-upload-pack 'team/app'",
    b"sh -c 'id'",
)  # fmt: skip

WORDS = (
    b"git", b"git-upload-pack", b"git-receive-pack", b"upload-archive", b"git-cluster-stage",
    b"git-cluster-unstage",
    b"git-cluster-operator", b"git-cluster-proxy", b" ", b"  ", b"'", b'"', b"\\", b"\\'", b"'\\''", b"\\!",
    b"!", b"$",
    b"`", b";", b"|", b"~", b"#", b"*", b"\n", b"\0", b"\t", b"\x7f", b"team/app", b"/", b"//", b"..", b".", b"-",
    b"--strict", b".git", b".lock", b"\xc3\xa9", b"\xff", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"a" * 50,
    b"a" * 5000,
    UUID.encode(), UUID.upper().encode(), b"0", b"1", b"-1", b"01", b"9223372036854775807", b"9223372036854775808",
    b"{}", b"{", b"}", b'"a":', b'"a":1,', b"[", b"[[[[[[[[", b"]", b"1e999", b"1E22,", b"NaN", b"-0.0", b"\\ud800",
    b"\\ud83d\\ude00", b"\\u0000", b"\\u005cu0000", b"\\\\u0000", b"\xd9\xa1",
)  # fmt: skip


# -------------------------------------------------------------------------------------------------------- names

_PART = r"(?![^/]*(?:\.git|\.lock|\.)(?:/|\Z))[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_NAME = re.compile(rf"(?s)(?=.{{1,200}}\Z)(?!.*\.\.){_PART}(?:/{_PART}){{0,7}}")
_PATTERN_PART = r"(?![^/]*(?:\.git|\.lock|\.)(?:/|\Z))[A-Za-z0-9*][A-Za-z0-9._*-]{0,99}"
_PATTERN = re.compile(rf"(?s)(?=.{{1,200}}\Z)(?!.*\.\.)(?!.*\*\*){_PATTERN_PART}(?:/{_PATTERN_PART}){{0,7}}")


def _is_name(name: str) -> None:
    assert _lower_ends(_NAME, name), name
    assert names.repository_name(name) == name


def _lower_ends(rule: re.Pattern[str], name: str) -> bool:
    """Whether `rule` takes the name, and takes it in lower case, too: no part ends in .GIT."""
    return bool(rule.fullmatch(name) and rule.fullmatch(name.lower()))


def repository_name(data: bytes) -> None:
    """Agrees with one regular expression; what it gives back is in its last form."""
    text = _text(data)
    bare = re.sub(r"\A/+", "", text)
    bare = bare[:-1] if bare.endswith("/") else bare
    bare = bare[:-4] if bare.endswith(".git") else bare
    try:
        name = names.repository_name(text)
    except UsageError as error:
        assert not _lower_ends(_NAME, bare), bare
        return one_line(error, ascii_only=True)
    assert name == bare
    return _is_name(name)


def pattern(data: bytes) -> None:
    """The pattern before the first newline and the names behind it: both checked, then `matches` by another way."""
    first, *rest = _text(data).split("\n")
    try:
        checked = names.pattern(first)
    except UsageError as error:
        bare = re.sub(r"\A/+", "", first)
        bare = bare[:-1] if bare.endswith("/") else bare
        bare = bare[:-4] if "*" not in bare and bare.endswith(".git") else bare
        assert not _lower_ends(_PATTERN, bare), bare
        return one_line(error, ascii_only=True)
    assert _lower_ends(_PATTERN, checked), checked
    assert names.pattern(checked) == checked
    exact, literal, stars = names.specificity(checked)
    assert (exact, literal, stars) == ("*" not in checked, len(checked.replace("*", "")), -checked.count("*"))
    for name in rest[:5]:
        try:
            known = names.repository_name(name)
        except UsageError:
            continue
        assert names.matches(checked, known) == _slowly(checked, known), (checked, known)
        assert names.specificity(known) > names.specificity(checked) or exact
    return None


def _slowly(pattern: str, name: str) -> bool:
    wanted, parts = pattern.split("/"), name.split("/")
    if wanted[-1] == "*" and len(parts) >= len(wanted):
        wanted, parts = wanted[:-1], parts[: len(wanted) - 1]
    rules = [re.compile(fnmatch.translate(part)) for part in wanted]
    return len(rules) == len(parts) and all(rule.match(part) for rule, part in zip(rules, parts, strict=True))


_REF = re.compile(
    r"""(?!@\Z|HEAD\Z|-|refs/)               # --branch's rules
        (?!.*(?:\.\.|@\{|\.\Z))
        (?!(?:.*/)?[^/]*\.lock(?:/|\Z))
        (?:[^\x00-\x20\x7f~^:?*\[\\/.][^\x00-\x20\x7f~^:?*\[\\/]*)
        (?:/[^\x00-\x20\x7f~^:?*\[\\/.][^\x00-\x20\x7f~^:?*\[\\/]*)*""",
    re.VERBOSE,
)  # fmt: skip


def ref_name(data: bytes) -> None:
    """Agrees with git-check-ref-format's rules as one regular expression, and with the length of a file's name."""
    text = _text(data)
    branch = text[len("refs/heads/") :] if text.startswith("refs/heads/") else text
    try:
        fits = all(len(part.encode()) <= 250 for part in branch.split("/"))
    except UnicodeEncodeError:
        fits = False
    try:
        ref = names.ref_name(text)
    except UsageError as error:
        assert not (fits and _REF.fullmatch(branch)), branch
        return one_line(error, ascii_only=True)
    assert fits and _REF.fullmatch(branch) and ref == "refs/heads/" + branch, ref
    assert names.ref_name(ref) == ref
    return None


def _sql(table: str) -> re.Pattern[str]:
    """The expression that schema.sql holds the names in a table to."""
    found = re.search(rf"create table {table} \(.*?name ~ '\^([^']*)\$'", SCHEMA, re.DOTALL)
    assert found, table
    return re.compile(found[1])


_USER, _DEVICE = _sql("actor"), _sql("device")


def who(data: bytes) -> None:
    """The names of users and of devices: exactly what the database takes."""
    text = _text(data)
    for check, rule in ((names.user_name, _USER), (names.device_name, _DEVICE)):
        try:
            assert check(text) == text and rule.fullmatch(text), text
        except UsageError as error:
            assert not rule.fullmatch(text), text
            one_line(error, ascii_only=True)


NAMES = (
    b"team/app", b"/team/app.git/", b"a", b"a/b/c/d/e/f/g/h", b"x" * 100, b"Team.1/app_2-3",
    b"team/app\nteam/app.git",
    b"team/*\nteam/app\nteam/a/b\nother/app\nteam", b"*\na\na/b", b"a*b*c/*-x\naxxbxxc/y-x\nabc/-x\nabc/a-x",
    b"app-*/lib*\napp-1/lib\napp-/lib.js", b"*/app\nteam/app\na/b/app", b"a*a*a*a*a*a*a*a\n" + b"a" * 99 + b"b",
)  # fmt: skip
NAME_PARTS = (
    b"team", b"app", b"a", b"/", b"//", b"*", b"**", b".", b"..", b"-", b"_", b".git", b".GIT", b".lock",
    b"\n", b"\xc3\xa9",
    b"\xff", b" ", b"\0", b"~", b"a" * 100, b"a" * 101, b"a/" * 7, b"@", b"+",
)  # fmt: skip
REFS = (
    b"main", b"refs/heads/main", b"feature/a.b", b"\xc3\xa9t\xc3\xa9", b"a/b/c", b"x" * 250, b"@a", b"HEAD/x",
)  # fmt: skip
REF_PARTS = (
    b"refs/heads/", b"refs/", b"HEAD", b"@", b"@{", b"{", b".", b"..", b".lock", b".lock/", b"/", b"//", b"-",
    b"~", b"^", b":",
    b"?", b"*", b"[", b"\\", b" ", b"\x7f", b"\n", b"\xff", b"\xc3\xa9", b"a", b"x" * 249, b"]", b"\xc2\x85",
)  # fmt: skip
PEOPLE = (b"ada", b"ada.lovelace@example.com", b"a", b"git-1", b"a.b-c", b"A" * 64, b"a" * 63, b"a+b")
PEOPLE_PARTS = (
    b"a",
    b"Z",
    b"0",
    b".",
    b"-",
    b"_",
    b"@",
    b"+",
    b"\n",
    b"\xc3\xa9",
    b"\xff",
    b" ",
    b"a" * 62,
    b"a" * 64,
    b"\0",
)


# ---------------------------------------------------------------------------------------------------- variables


def protocol(data: bytes) -> None:
    """What passes as GIT_PROTOCOL is what Git's clients send, and nothing that any program could take amiss."""
    text = data.decode("ascii", "replace")
    first, *more = text.split(":")
    right = (
        len(text) <= 256
        and first in ("version=0", "version=1", "version=2")
        and all(word and set(word) <= set("abcdefghijklmnopqrstuvwxyz0123456789=-") for word in more)
    )
    assert (endpoint.git_protocol(text) is not None) == right, text


PROTOCOLS = (b"version=2", b"version=1:object-format=sha256", b"version=0", b"version=2:a:b:c-d")
PROTOCOL_PARTS = (
    b"version=",
    b"0",
    b"2",
    b"3",
    b":",
    b"::",
    b"a",
    b"=",
    b"-",
    b"\n",
    b"\0",
    b"$(x)",
    b"\xff",
    b"A",
    b" ",
)


# --------------------------------------------------------------------------------------------------------- keys


def public_key(data: bytes) -> None:
    """A key that was taken reads the same again; one that was not is never repeated to anybody."""
    try:
        key = keys.read(io.BytesIO(data))
    except UsageError as error:
        one_line(error)
        assert "AAAA" not in error.what.replace("AAAA…", ""), error.what
        return
    assert key.type in keys.TYPES and re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", key.fingerprint)
    assert re.fullmatch(rf"{key.type} [A-Za-z0-9+/]+={{0,2}}", key.line), key.line
    assert key.comment.isprintable() and len(key.comment) <= 200
    again = keys.parse(f"{key.line} {key.comment}")
    assert (again.line, again.fingerprint) == (key.line, key.fingerprint)


def _keys() -> tuple[bytes, ...]:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    made = [ec.generate_private_key(curve()) for curve in (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)]
    publics = [key.public_key() for key in made]
    lines = [key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) for key in publics]
    for bits in (1024, 3072):
        public = rsa.generate_private_key(65537, bits).public_key()
        lines.append(public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    ed25519 = generate_key()
    lines.append(f"{ed25519.get_name()} {ed25519.get_base64()}".encode())
    return (
        *(line + b" somebody@example\n" for line in lines),
        b"# a comment\n\n" + lines[-1] + b"\n",
        b'command="id",no-pty ' + lines[-1],
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nx\n",
        b"---- BEGIN SSH2 PUBLIC KEY ----\n",
    )


KEY_PARTS = (
    *(kind.encode() for kind in keys.TYPES), b"ssh-dss", b"sk-ssh-ed25519@openssh.com",
    b"-cert-v01@openssh.com", b"AAAA",
    b"AAAAC3NzaC1lZDI1NTE5AAAAI", b"=", b"==", b"====", b" ", b"\t", b"\n", b"\r\n", b"#", b"\0", b"\x85",
    b"\xe2\x80\xa8",
    b"\xff", b"-", b"/+", b"AAAAB3NzaC1yc2EAAAA", b"restrict ", b"\xef\xbb\xbf", b"A" * 1000,
)  # fmt: skip


def targets() -> list[Target]:
    return [
        Target("command", command, COMMANDS, WORDS),
        Target("repository-name", repository_name, NAMES, NAME_PARTS),
        Target("pattern", pattern, NAMES, NAME_PARTS),
        Target("ref-name", ref_name, REFS, REF_PARTS),
        Target("user-and-device", who, PEOPLE, PEOPLE_PARTS),
        Target("git-protocol", protocol, PROTOCOLS, PROTOCOL_PARTS),
        Target("public-key", public_key, _keys(), KEY_PARTS),
    ]
