"""Names and SSH commands, as people, Git's clients, devices and attackers write them."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import names, ssh_command
from cluster.errors import UsageError
from cluster.model import Service

PUSH = UUID("5f0c2f3e-0d5b-4f0e-9a55-2f6f3c1f9f10")
LETTERS = "abcXYZ019"
COMPONENTS = st.builds(
    "".join, st.lists(st.sampled_from([*LETTERS, "-x", "_x", ".x"]), min_size=1, max_size=6)
).map(lambda text: "k" + text.lstrip("-_."))
NAMES = st.lists(COMPONENTS, min_size=1, max_size=8).map("/".join)


def one_printable_line(error: UsageError) -> bool:
    return all(line.isascii() and line.isprintable() for line in error.lines())


# Repository names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("app", "app"),
        ("team/app", "team/app"),
        ("/team/app.git", "team/app"),
        ("//team/app.git/", "team/app"),
        ("team/app/", "team/app"),
        ("Team/App_1.2-x", "Team/App_1.2-x"),
        ("a.git.x", "a.git.x"),
        ("0", "0"),
        ("a/b/c/d/e/f/g/h", "a/b/c/d/e/f/g/h"),
        ("a" * 100, "a" * 100),
    ],
)
def test_repository_name(text: str, name: str) -> None:
    assert names.repository_name(text) == name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("/", "empty"),
        (".git", "empty"),
        ("team//app", "empty part"),
        ("team/.git", "empty part"),
        ("app//", "empty part"),
        ("../etc/passwd", "'..'"),
        ("a..b", "'..'"),
        (".hidden", "not allowed"),
        ("~user/app", "not allowed"),
        ("a b", "not allowed"),
        ("team/*", "not allowed"),
        ("a\\b", "not allowed"),
        ("-u", "not allowed"),
        ("team/--upload-pack=x", "not allowed"),
        ("app\n", "not allowed"),
        ("app\x00", "not allowed"),
        ("app\x1b[2J", "not allowed"),
        ("app.git.git", "ends in"),
        ("app.GIT", "ends in"),
        ("refs.lock", "ends in"),
        ("team./app", "ends in"),
        ("caf\xe9", "ASCII"),
        ("\udce9", "ASCII"),
        ("\u0661", "ASCII"),
        ("a/b/c/d/e/f/g/h/i", "more than 8 parts"),
        ("a" * 101, "more than 100"),
        ("/".join(["a" * 50] * 4), "more than 200"),
    ],
)
def test_what_is_no_repository_name(text: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        names.repository_name(text)
    assert why in caught.value.what
    assert one_printable_line(caught.value)
    assert len(caught.value.what) < 200


@given(st.text())
def test_any_text_is_a_name_or_a_usage_error(text: str) -> None:
    try:
        name = names.repository_name(text)
    except UsageError as error:
        assert one_printable_line(error)
    else:
        assert names.repository_name(name) == name == names.repository_name(f"/{name}.git")


@given(st.text(st.characters(codec=None), max_size=300))
def test_shown_is_short_and_printable(text: str) -> None:
    assert len(names.shown(text)) <= 62
    assert names.shown(text).isascii()
    assert names.shown(text).isprintable()


# Patterns


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("*", "app", True),
        ("*", "team/sub/app", True),
        ("team/*", "team/app", True),
        ("team/*", "team/sub/app", True),
        ("team/*", "team", False),
        ("team/*", "teams/app", False),
        ("team/app", "team/app", True),
        ("team/app", "team/app2", False),
        ("team/app", "team/app/x", False),
        ("team/app-*", "team/app-1", True),
        ("team/app-*", "team/app-", True),
        ("team/app-*", "team/app-1/x", False),
        ("team/app-*", "team/app", False),
        ("*/app", "team/app", True),
        ("*/app", "team/sub/app", False),
        ("*/app", "app", False),
        ("*/*", "team/sub/app", True),
        ("*/*", "app", False),
        ("a*b*c", "aXbYc", True),
        ("a*b*c", "abc", True),
        ("a*b*c", "aXcYb", False),
        ("ab*ba", "aba", False),
        ("*-x", "a-x", True),
        ("*-x", "a-xy", False),
        ("team/a.b", "team/aXb", False),
        ("Team/*", "team/app", False),
    ],
)
def test_matches(pattern: str, name: str, expected: bool) -> None:
    assert names.pattern(pattern) == pattern
    assert names.matches(pattern, name) is expected


@pytest.mark.parametrize(
    ("text", "pattern"), [("/team/app.git", "team/app"), ("/team/*/", "team/*"), ("/*", "*")]
)
def test_a_pattern_is_normalised_as_a_name_is(text: str, pattern: str) -> None:
    assert names.pattern(text) == pattern


@pytest.mark.parametrize(
    "text", ["", "**", "team/**", "team/*.git", "team/[ab]", "te?m", "../*", "*..", "a*\n", "*."]
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        names.pattern(text)
    assert one_printable_line(caught.value)


@given(NAMES)
def test_a_name_is_a_pattern_for_itself(name: str) -> None:
    assert names.pattern(name) == name
    assert names.matches(name, name)
    assert names.matches("*", name)
    assert names.specificity(name) > names.specificity("*")


@given(NAMES, st.data())
def test_a_star_in_place_of_any_text_of_a_component_matches(name: str, data: st.DataObject) -> None:
    parts = name.split("/")
    at = data.draw(st.integers(0, len(parts) - 1))
    part = parts[at]
    start = data.draw(st.integers(0, len(part)))
    end = data.draw(st.integers(start, len(part)))
    pattern = "/".join([*parts[:at], part[:start] + "*" + part[end:], *parts[at + 1 :]])
    assert names.matches(pattern, name)
    assert names.specificity(pattern) < names.specificity(name)
    assert names.specificity(pattern) >= names.specificity("*")


def test_the_order_of_specificity() -> None:
    ordered = ["*", "*/app", "team/*", "team/*pp", "team/ap*", "a", "team/app"]
    assert sorted(ordered, key=names.specificity) == ordered
    assert names.specificity("team/a*b") > names.specificity("team/*b")
    assert names.specificity("t*/app") < names.specificity("t/app")


def test_a_hostile_pattern_is_not_slow() -> None:
    assert not names.matches("*a" * 49 + "b", "a" * 100)


# Devices, users, branches


@pytest.mark.parametrize("text", ["a", "git-1.example", "0", "a" * 63])
def test_device_name(text: str) -> None:
    assert names.device_name(text) == text


@pytest.mark.parametrize("text", ["", "A", "a-", "-a", ".a", "a_b", "a" * 64, "a\n", "a b", "\xe4"])
def test_what_is_no_device_name(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        names.device_name(text)
    assert one_printable_line(caught.value)


@pytest.mark.parametrize("text", ["ann", "Ann.B", "ann@example.org", "a+b_c-d", "a" * 64])
def test_user_name(text: str) -> None:
    assert names.user_name(text) == text


@pytest.mark.parametrize("text", ["", "-ann", "ann.", "an n", "a" * 65, "ann\n", "../x", "J\xf6rg", "a/b"])
def test_what_is_no_user_name(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        names.user_name(text)
    assert one_printable_line(caught.value)


@pytest.mark.parametrize("text", ["main", "topic/x", "a.b", "h\xe4ndel", "@x", "x@", "x{", "a" * 250])
def test_ref_name(text: str) -> None:
    assert names.ref_name(text) == f"refs/heads/{text}" == names.ref_name(f"refs/heads/{text}")
    assert git_takes(f"refs/heads/{text}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@",
        "HEAD",
        "-x",
        "/x",
        "x/",
        "x//y",
        ".x",
        "x/.y",
        "x.",
        "x.lock",
        "x.lock/y",
        "x..y",
        "x@{y",
        "x y",
        "x~",
        "x^",
        "x:",
        "x?",
        "x*",
        "x[",
        "x\\",
        "x\n",
        "x\x7f",
        "refs/tags/x",
        "refs/heads/",
        "\udcff",
        "a" * 251,
    ],
)
def test_what_is_no_ref_name(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        names.ref_name(text)
    assert one_printable_line(caught.value)


@given(st.text(st.sampled_from("ab./@{-~ lockHEAD\xe9"), max_size=8))
def test_git_agrees_about_branches(text: str) -> None:
    try:
        ref = names.ref_name(text)
    except UsageError:
        assert not git_takes(f"refs/heads/{text}") or text.startswith("-") or text in ("@", "HEAD")
    else:
        assert git_takes(ref)


def git_takes(ref: str) -> bool:
    return subprocess.run(["git", "check-ref-format", ref], check=False).returncode == 0


# Commands


@pytest.mark.parametrize(
    ("command", "service", "repository"),
    [
        ("git-upload-pack 'team/app'", Service.UPLOAD_PACK, "team/app"),
        ("git upload-pack 'team/app'", Service.UPLOAD_PACK, "team/app"),
        ("git-receive-pack '/team/app.git'", Service.RECEIVE_PACK, "team/app"),
        ("git receive-pack 'app'", Service.RECEIVE_PACK, "app"),
        ("git-upload-archive 'app'", Service.UPLOAD_ARCHIVE, "app"),
        ("git upload-archive 'app'", Service.UPLOAD_ARCHIVE, "app"),
        ("git-upload-pack app", Service.UPLOAD_PACK, "app"),
        ('git-upload-pack "team/app.git"', Service.UPLOAD_PACK, "team/app"),
        ("git-upload-pack 'te'am/\"app\"", Service.UPLOAD_PACK, "team/app"),
        (" git-upload-pack   'app' ", Service.UPLOAD_PACK, "app"),
    ],
)
def test_what_gits_clients_send(command: str, service: Service, repository: str) -> None:
    assert ssh_command.parse_command(command) == ssh_command.ServiceCommand(service, repository)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("", "no shell"),
        ("   ", "no shell"),
        ("rm -rf /", "not 'rm'"),
        ("sh -c 'git-upload-pack app'", "not 'sh'"),
        ("git", "not 'git '"),
        ("git status", "not 'git status'"),
        ("git cluster-stage 'app'", "not 'git cluster-stage'"),
        ("'git-upload-pack' 'app'", "git-upload-archive only"),
        ("GIT-UPLOAD-PACK 'app'", "only, not"),
        ("git-shell 'app'", "not 'git-shell'"),
        ("git-upload-pack", "not 0 arguments"),
        ("git-upload-pack ''", "it is empty"),
        ("git-upload-pack 'a' 'b'", "not 2 arguments"),
        ("git-upload-pack --strict 'app'", "no options"),
        ("git-upload-pack '--strict'", "no options"),
        ("git-upload-pack '-'", "no options"),
        ("git-upload-pack '/--strict'", "not allowed"),
        ("git-upload-pack 'app", "open quote"),
        ('git-upload-pack "app', "open quote"),
        ("git-upload-pack app\\", "open quote"),
        ("git-upload-pack app; rm -rf /", "shell"),
        ("git-upload-pack 'app' && id", "shell"),
        ("git-upload-pack $(id)", "shell"),
        ('git-upload-pack "$(id)"', "shell"),
        ('git-upload-pack "`id`"', "shell"),
        ("git-upload-pack app >x", "shell"),
        ("git-upload-pack app#x", "shell"),
        ("git-upload-pack 'it'\\''s'", "not allowed"),
        ("git-upload-pack 'app'\\!'x'", "not allowed"),
        ("git-upload-pack '../../etc'", "'..'"),
        ("git-upload-pack 'app\n'", "control"),
        ("git-upload-pack 'app\x00'", "control"),
        ("git-upload-pack\t'app'", "control"),
        ("git-upload-pack 'caf\udcc3\udca9'", "ASCII"),
        ("git-upload-pack caf\xe9", "ASCII"),
        ("\udcff\udcfe", "only, not '\\udcff\\udcfe'"),
        ("git-upload-pack '" + "a" * 5000 + "'", "more than 4096"),
        (f"git-cluster-stage 'app' {PUSH}", "not 2 arguments"),
        (f"git-cluster-stage 'app' {PUSH} -1", "not a version"),
        (f"git-cluster-stage 'app' {PUSH} 01", "not a version"),
        (f"git-cluster-stage 'app' {PUSH} 9223372036854775808", "not a version"),
        (f"git-cluster-stage 'app' {PUSH} '\u0661'", "not a version"),
        (f"git-cluster-stage '../x' {PUSH} 1", "not a repository name"),
        (f"git-cluster-stage 'app' {str(PUSH).upper()} 1", "not the UUID"),
        (f"git-cluster-stage 'app' {PUSH.hex} 1", "not the UUID"),
        ("git-cluster-unstage 'app' ../../x", "not the UUID"),
        (f"git-cluster-unstage 'app' {PUSH} 1", "not 3 arguments"),
        ("git-cluster-pack 'app' 1", "not 2 arguments"),
        ("git-cluster-pack '../x'", "not a repository name"),
        ("git-cluster-ping 'app'", "must be git-cluster-ping, not 1 arguments"),
        ("git-cluster-operator sync", "not 1 arguments"),
        ("git-cluster-operator Sync '{}'", "verb"),
        ("git-cluster-operator -x '{}'", "verb"),
        ("git-cluster-operator sync '[]'", "not a JSON object"),
        ("git-cluster-operator sync 'x'", "not JSON"),
        ("git-cluster-operator sync '{\"a\":NaN}'", "not JSON"),
        ("git-cluster-operator sync '{\"a\":1e999}'", "not JSON"),
        ('git-cluster-operator sync \'{"a":1,"a":2}\'', "not JSON"),
        ('git-cluster-operator sync \'{"a":"\\ud800"}\'', "not JSON"),
        ('git-cluster-operator sync \'{"a":"\\u0000"}\'', "NUL"),
        ('git-cluster-operator sync \'{"a":"\xe9"}\'', "in ASCII"),
        ('git-cluster-operator sync \'{"a":' + "[" * 4000 + "'", "not JSON"),
    ],
)
def test_what_is_refused(command: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        ssh_command.parse_command(command)
    assert why in caught.value.what
    assert caught.value.hint
    assert one_printable_line(caught.value)


def test_a_refusal_says_what_is_allowed() -> None:
    with pytest.raises(UsageError) as caught:
        ssh_command.parse_command("rm -rf /")
    assert caught.value.lines() == [
        "git-cluster runs git-upload-pack, git-receive-pack and git-upload-archive only, not 'rm'",
        "Use git clone, git fetch or git push with this host; it gives no shell. See also: ssh git@host help",
    ]


def check(command: str) -> None:
    """The contract: UsageError or a command whose parts are checked and which can be written again."""
    try:
        parsed = ssh_command.parse_command(command)
    except UsageError as error:
        assert one_printable_line(error)
        return
    if isinstance(parsed, ssh_command.UserCommand):
        assert parsed.verb in ssh_command.USER_VERBS
    elif not isinstance(parsed, ssh_command.OperatorCommand | ssh_command.PingCommand):
        assert names.repository_name(parsed.repository) == parsed.repository
    assert ssh_command.parse_command(str(parsed)) == parsed


@given(st.text(st.characters(codec=None)))
def test_any_text(command: str) -> None:
    check(command)


@given(st.binary())
def test_any_bytes(command: bytes) -> None:
    check("git-upload-pack " + command.decode(errors="surrogateescape"))


TOKENS = [
    "git",
    "git-upload-pack",
    "git-cluster-stage",
    "git-cluster-unstage",
    "git-cluster-pack",
    "git-cluster-operator",
    "git-cluster-proxy",
    "upload-pack",
]
TOKENS += [
    " ",
    "'",
    '"',
    "\\",
    "\\'",
    "'\\''",
    "\\!",
    "!",
    "a",
    "team/app",
    "/",
    "..",
    "-",
    str(PUSH),
    "1",
    "{}",
    "\xe9",
]


@given(st.lists(st.sampled_from(TOKENS), max_size=12).map("".join), st.sampled_from(["", *TOKENS[:6]]))
def test_any_pieces_of_commands(rest: str, program: str) -> None:
    check(f"{program} {rest}")


@given(st.sampled_from(Service), NAMES)
def test_a_service_command_round_trip(service: Service, repository: str) -> None:
    command = ssh_command.ServiceCommand(service, repository)
    assert str(command) == f"{service.value} '{repository}'"
    assert ssh_command.parse_command(str(command)) == command


@given(NAMES, st.uuids(), st.integers(0, names.MAX_VERSION))
def test_a_device_command_round_trip(repository: str, push_id: UUID, version: int) -> None:
    stage = ssh_command.StageCommand(repository, push_id, version)
    assert str(stage) == f"git-cluster-stage '{repository}' {push_id} {version}"
    assert ssh_command.parse_command(str(stage)) == stage
    unstage = ssh_command.UnstageCommand(repository, push_id)
    assert str(unstage) == f"git-cluster-unstage '{repository}' {push_id}"
    assert ssh_command.parse_command(str(unstage)) == unstage
    pack = ssh_command.PackCommand(repository)
    assert str(pack) == f"git-cluster-pack '{repository}'"
    assert ssh_command.parse_command(str(pack)) == pack


def at_its_offset(moment: datetime) -> datetime:
    """A moment that a change of clocks makes ambiguous is equal to none in another zone (PEP 495)."""
    return moment.astimezone(timezone(moment.utcoffset() or timedelta()))


def far_from_the_ends(moment: datetime) -> bool:
    return 2 < moment.year < 9998


def test_a_ping() -> None:
    for command in ("git-cluster-ping", " git-cluster-ping "):
        assert ssh_command.parse_command(command) == ssh_command.PingCommand()
    assert str(ssh_command.PingCommand()) == "git-cluster-ping"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "it's", "!"]), inner),
    max_leaves=8,
)


@given(
    st.from_regex(r"[a-z][a-z-]{0,20}", fullmatch=True), st.dictionaries(st.sampled_from(["x", "y'!"]), JSON)
)
def test_an_operators_command_round_trip(verb: str, arguments: dict[str, object]) -> None:
    command = ssh_command.OperatorCommand(verb, arguments)
    assert ssh_command.parse_command(str(command)) == command


@given(
    st.sampled_from(Service),
    NAMES,
    st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._@+-]{0,62}[A-Za-z0-9])?", fullmatch=True),
    st.from_regex(r"SHA256:[A-Za-z0-9+/]{43}", fullmatch=True),
    st.none()
    | st.datetimes(timezones=st.just(UTC))
    | st.datetimes(timezones=st.timezones()).filter(far_from_the_ends).map(at_its_offset),
    st.sampled_from(["", "version=1", "version=2:object-format=sha1"]),
    st.sampled_from(["", "192.0.2.1", "2001:db8::1", "fe80::1%eth0"]),
)
def test_a_proxied_command_round_trip(
    service: Service,
    repository: str,
    user: str,
    fingerprint: str,
    until: datetime | None,
    protocol: str,
    address: str,
) -> None:
    command = ssh_command.ProxyCommand(
        service, repository, user, fingerprint, until, protocol, "ssh", address
    )
    assert ssh_command.parse_command(str(command)) == command


def test_a_proxied_command_is_as_long_as_can_be_and_still_taken() -> None:
    command = ssh_command.ProxyCommand(
        Service.UPLOAD_ARCHIVE,
        "/".join(["a" * 99, "b" * 100]),
        user="u" * 64,
        fingerprint="SHA256:" + "/" * 43,
        certified_until=datetime.max.replace(tzinfo=UTC),
        protocol="version=2:" + "a" * 246,
        via="x" * 20,
        address="f" * 64,
    )
    assert ssh_command.parse_command(str(command)) == command


PROXIED = json.loads(
    str(
        ssh_command.ProxyCommand(
            Service.UPLOAD_PACK, "app", "ann", "SHA256:" + "a" * 43, None, "", "ssh", "::1"
        )
    )
    .partition(" ")[2]
    .strip("'")
)


@given(st.dictionaries(st.sampled_from([*PROXIED, "more"]), JSON), st.sets(st.sampled_from([*PROXIED])))
def test_any_proxied_command(changed: dict[str, object], lacking: set[str]) -> None:
    words = {key: value for key, value in (PROXIED | changed).items() if key not in lacking}
    check(f"git-cluster-proxy {ssh_command.quote(json.dumps(words))}")
    if lacking:
        with pytest.raises(UsageError):
            ssh_command.parse_command(f"git-cluster-proxy {ssh_command.quote(json.dumps(words))}")


def test_quote_is_gits_own() -> None:
    assert ssh_command.quote("team/app") == "'team/app'"
    assert ssh_command.quote("it's!") == "'it'\\''s'\\!''"
    assert ssh_command.quote("") == "''"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=50))
def test_a_shell_reads_what_quote_wrote(word: str) -> None:
    script = f"printf %s {ssh_command.quote(word)}"
    assert (
        subprocess.run(["sh", "-c", script.encode()], capture_output=True, check=True).stdout == word.encode()
    )


# Groups, and to whom a grant is


@pytest.mark.parametrize(
    ("text", "name"), [("devs", "devs"), ("@devs", "devs"), ("a", "a"), ("Dev.team_1+x-y", "Dev.team_1+x-y")]
)
def test_group_name(text: str, name: str) -> None:
    assert names.group_name(text) == name
    assert names.actor_name(f"@{name}") == f"@{name}"


@pytest.mark.parametrize("text", ["", "@", "@@a", "a@b", "-a", "a-", "a b", "a\n", "ä", "x" * 65, "a/b", "*"])
def test_what_is_no_group_name(text: str) -> None:
    for reader in (names.group_name, lambda text: names.actor_name(f"@{text.removeprefix('@')}")):
        with pytest.raises(UsageError) as caught:
            reader(text)
        assert one_printable_line(caught.value)


def test_actor_name() -> None:
    assert names.actor_name("everyone") == "everyone"
    assert names.actor_name("ann@example.org") == "ann@example.org"
    with pytest.raises(UsageError):
        names.actor_name("a b")


def test_the_database_takes_the_same_names() -> None:
    from cluster.db import schema_file

    schema = schema_file().read_text()
    for expression in (names._DEVICE, names.USER, names._GROUP):
        assert f"check (name ~ '^{expression.pattern}$')" in schema
