"""The words of users' commands: what each means, and that nothing else gets past."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import names, ssh_command, user_commands
from cluster.access import decide
from cluster.errors import UsageError
from cluster.model import Actor, ActorKind, Grant, Level
from cluster.ssh_command import UserCommand, parse_command
from cluster.user_commands import (
    Access,
    Asked,
    Create,
    Help,
    Info,
    KeyAdd,
    KeyList,
    KeyRemove,
    Repos,
    WhoAmI,
)
from cluster.visible import narrowed
from tests.unit.test_names import one_printable_line

PRINT = "SHA256:" + "a+/Z" * 10 + "xyz"


def asked(line: str) -> Asked:
    command = parse_command(line)
    assert isinstance(command, UserCommand)
    assert parse_command(str(command)) == command
    return user_commands.parse(command)


@pytest.mark.parametrize(
    ("line", "means"),
    [
        ("help", Help()),
        ("--help", Help()),
        ("-h", Help()),
        ("  help  ", Help()),
        ("help access", Help("access")),
        ("help key", Help("key")),
        ("help key add", Help("key add")),
        ("help 'key add'", Help("key add")),
        ("help help", Help("help")),
        ("help --help", Help()),
        ("repos --help", Help("repos")),
        ("key -h", Help("key")),
        ("key add -h", Help("key add")),
        ("access team/app -h", Help("access")),
        ("info", Info(json=False)),
        ("info --json", Info(json=True)),
        ("whoami", WhoAmI(json=False)),
        ("whoami '--json'", WhoAmI(json=True)),
        ("repos", Repos(None, json=False)),
        ("repos team/*", Repos("team/*", json=False)),
        ("repos 'team/*' --json", Repos("team/*", json=True)),
        ("repos --json *", Repos("*", json=True)),
        ("repos /team/app.git/", Repos("team/app", json=False)),
        ("access team/app", Access("team/app", None, None, json=False)),
        ("access team/app.git --json", Access("team/app", None, None, json=True)),
        ("access team/app main", Access("team/app", "refs/heads/main", None, json=False)),
        ("access team/app refs/tags/v1", Access("team/app", "refs/tags/v1", None, json=False)),
        ("access team/app 'fix#1'", Access("team/app", "refs/heads/fix#1", None, json=False)),
        ("access team/app --user bob", Access("team/app", None, "bob", json=False)),
        ("access --user=bob team/app", Access("team/app", None, "bob", json=False)),
        ("key list", KeyList(json=False)),
        ("key list --json", KeyList(json=True)),
        ("key add", KeyAdd(None)),
        ("key add --expires 30d", KeyAdd("30d")),
        ("key add --expires=8w", KeyAdd("8w")),
        ("key add --expires 12h", KeyAdd("12h")),
        ("key add --expires 2027-01-31", KeyAdd("2027-01-31")),
        ("key add --expires 2027-01-31T18:00", KeyAdd("2027-01-31T18:00")),
        ("key add --expires 2027-01-31T18:00:30Z", KeyAdd("2027-01-31T18:00:30Z")),
        ("key add --expires 2027-01-31T18:00+02:00", KeyAdd("2027-01-31T18:00+02:00")),
        (f"key remove {PRINT}", KeyRemove(PRINT)),
        (f"key remove {PRINT}=", KeyRemove(PRINT)),
        ("create team/new", Create("team/new", "refs/heads/main", "sha1", json=False)),
        (
            "create --default-branch trunk --object-format sha256 --json team/new",
            Create("team/new", "refs/heads/trunk", "sha256", json=True),
        ),
    ],
)
def test_what_the_words_mean(line: str, means: Asked) -> None:
    assert asked(line) == means


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("help nonsense", "there is no command 'nonsense'"),
        ("help '\x7f'", "control character"),
        ("help key lost", "there is no command 'key lost'"),
        ("info now", "too many arguments: it is info [--json]"),
        ("info --all", "info has no option '--all'"),
        ("whoami anna", "too many"),
        ("whoami --json --json", "--json stands twice"),
        ("whoami --json=yes", "--json takes no value"),
        ("whoami -- --json", "no option '--'"),
        ("whoami -", "no option '-'"),
        ("whoami ;id", "a shell would act on"),
        ("whoami $(id)", "a shell would act on"),
        ("whoami `id`", "a shell would act on"),
        ("whoami | sh", "a shell would act on"),
        ("whoami >x", "a shell would act on"),
        ("whoami ?", "a shell would act on"),
        ("whoami {a,b}", "a shell would act on"),
        ("whoami 'x", "open quote"),
        ("repos ''", "it is empty"),
        ("repos ../..", "'..'"),
        ("repos team/**", "'**' is not needed"),
        ("repos team app", "too many"),
        ("repos caf\xe9", "outside ASCII"),
        ("access", "too few arguments: it is access REPO [REF] [--user USER] [--json]"),
        ("access ../x", "not a repository name"),
        ("access team/*", "not allowed"),
        ("access team/app main more", "too many"),
        ("access team/app --user", "--user needs a value: USER"),
        ("access team/app --user ''", "not a user name"),
        ("access team/app --user 'a b'", "not a user name"),
        ("access team/app --user a --user b", "stands twice"),
        ("access team/app 'a b'", "not the name of a ref"),
        ("access team/app refs/", "not the name of a ref"),
        ("access team/app refs/heads/a..b", "not the name of a ref"),
        ("access team/app refs/heads/\udcff", "not the name of a ref"),
        ("key", "key needs one of list, add, remove"),
        ("key lost", "key needs one of list, add, remove, not 'lost'"),
        ("key --json", "key needs one of list, add, remove, not '--json'"),
        ("key add laptop.pub", "too many arguments: it is key add [--expires WHEN] <FILE"),
        ("key add --expires", "needs a value: WHEN"),
        ("key remove", "too few"),
        ("key remove laptop", "not a fingerprint"),
        ("key remove SHA256:", "not a fingerprint"),
        (f"key remove {PRINT}==", "not a fingerprint"),
        (f"key remove {PRINT}a", "not a fingerprint"),
        ("create", "too few"),
        ("create a b", "too many"),
        ("create a/../b", "'..'"),
        ("create team/new --default-branch", "needs a value: B"),
        ("create team/new --default-branch ..", "not a branch name"),
        ("create team/new --object-format md5", "'md5' is not an object format"),
        ("create team/new --device a", "create has no option '--device'"),
    ],
)
def test_what_is_refused(line: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        asked(line)
    assert why in caught.value.what
    assert caught.value.hint
    assert one_printable_line(caught.value)


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("repo", "repos"),
        ("Repos", "repos"),
        ("WHOAMI", "whoami"),
        ("whoam", "whoami"),
        ("who-am-i", "whoami"),
        ("hlep", "help"),
        ("acces team/app", "access"),
        ("keys list", "key"),
        ("crate team/new", "create"),
        ("infos", "info"),
    ],
)
def test_a_slip_of_the_fingers(line: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_command(line)
    assert caught.value.lines() == [
        f"there is no command {names.shown(line.split(' ')[0])}; did you mean {meant}?",
        "`ssh git@host help` lists the commands.",
    ]


@pytest.mark.parametrize(
    "line", ["ls", "scp -t x", "rsync --server .", "sh", "id", "cat", "rm -rf /", "hg", "svnserve"]
)
def test_other_programs_are_other_programs(line: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_command(line)
    assert caught.value.what.startswith("git-cluster runs git-upload-pack, git-receive-pack and ")
    assert "ssh git@host help" in caught.value.hint


def check(line: str) -> None:
    """Never anything but a value or UsageError, one printable line."""
    try:
        command = parse_command(line)
        assert isinstance(command, UserCommand)
        assert parse_command(str(command)) == command
        user_commands.parse(command)
    except UsageError as error:
        assert one_printable_line(error)
        assert error.hint.isprintable() and error.hint


VERBS = st.sampled_from([*ssh_command.USER_VERBS, *user_commands.FORMS])


@given(VERBS, st.text(st.characters(codec=None)))
def test_any_text(verb: str, rest: str) -> None:
    check(f"{verb} {rest}")


@given(VERBS, st.binary())
def test_any_bytes(verb: str, rest: bytes) -> None:
    check(f"{verb} " + rest.decode(errors="surrogateescape"))


TOKENS = [
    "--json",
    "--user",
    "--expires",
    "--default-branch",
    "--object-format",
    "--help",
    "-h",
    "--",
    "-",
    "=",
]
TOKENS += [
    " ",
    " ",
    " ",
    "'",
    '"',
    "\\!",
    "*",
    "list",
    "add",
    "remove",
    PRINT,
    "sha256",
    "everyone",
    "@group",
]
TOKENS += ["team/app", "refs/heads/", "refs/", "main", "30d", "2027-01-31", "T18:00", "\xe9", "\udcff"]


@given(VERBS, st.lists(st.sampled_from(TOKENS), max_size=12).map("".join))
def test_any_pieces(verb: str, rest: str) -> None:
    check(f"{verb} {rest}")


@given(
    st.sampled_from(ssh_command.USER_VERBS),
    st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]))),
)
def test_a_command_round_trip(verb: str, arguments: list[str]) -> None:
    command = UserCommand(verb, tuple(arguments))
    if len(str(command)) <= ssh_command.MAX_COMMAND:
        assert parse_command(str(command)) == command


def test_help_fits_a_screen() -> None:
    lines = user_commands.help_text(None).splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 110
    for name in user_commands.FORMS:
        assert any(line.startswith(f"  {name} ") for line in lines)
        more = user_commands.help_text(name).splitlines()
        assert more[0].startswith(f"usage: ssh git@host {name}") and "  example: ssh git@host" in more[-1]
        assert max(map(len, more)) <= 120


def test_the_examples_of_help_work() -> None:
    for name, form in user_commands.FORMS.items():
        line = form.example.removeprefix("ssh git@host ").partition(" <")[0]
        assert asked(line) and line.startswith(name)


def test_help_on_key_explains_all_that_begins_with_it() -> None:
    text = user_commands.help_text("key")
    assert [line.split()[3:5] for line in text.splitlines() if line.startswith("usage")] == [
        ["key", "list"],
        ["key", "add"],
        ["key", "remove"],
    ]


# What a listing asks the database for

PARTS = st.sampled_from(["a", "b", "ab", "a_b", "aab"])
NAME = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
PATTERN = st.lists(PARTS | st.sampled_from(["*", "a*", "*b", "a*b"]), min_size=1, max_size=3).map("/".join)


@given(st.lists(PATTERN, max_size=4), st.none() | PATTERN, NAME)
def test_narrowing_loses_nothing(patterns: list[str], pattern: str | None, name: str) -> None:
    grants = [Grant(None, each, Level.READ) for each in patterns]
    ask = narrowed(grants, pattern)
    visible = decide(grants, Actor(ActorKind.USER, "u", ""), name).level is not None
    if visible and (pattern is None or names.matches(pattern, name)):
        assert name in ask.exact or name.startswith(ask.beginning)
    every = [*ask.exact, *ask.beginning]
    assert not any(one.startswith(ask.beginning) for one in ask.exact)  # nothing is listed twice
    assert not any(one != other and one.startswith(other) for one in ask.beginning for other in ask.beginning)
    assert len(set(every)) == len(every)


@pytest.mark.parametrize(
    ("patterns", "pattern", "exact", "beginning"),
    [
        ([], None, (), ()),
        (["*"], None, (), ("",)),
        (["team/*", "team/app-*", "team/app"], None, (), ("team/",)),
        (["team/*", "lib"], None, ("lib",), ("team/",)),
        (["*"], "team/*", (), ("team/",)),
        (["*"], "team/app", ("team/app",), ()),
        (["team/*"], "lib/*", (), ()),
        (["team/*"], "lib", (), ()),
        (["te*"], "team/*", (), ("team/",)),
        (["team/app-*", "team/lib"], "team/*", ("team/lib",), ("team/app-",)),
        (["team/app", "lib"], "*", ("lib", "team/app"), ()),
        ([f"team/{number}" for number in range(5001)], None, (), ("",)),
        ([f"team-{number:02}/*" for number in range(51)], None, (), ("",)),
        ([f"team-{number:02}/*" for number in range(51)], "team-*", (), ("team-",)),
    ],
)
def test_what_is_asked_for(
    patterns: list[str], pattern: str | None, exact: tuple[str, ...], beginning: tuple[str, ...]
) -> None:
    ask = narrowed([Grant(None, each, Level.READ) for each in patterns], pattern)
    assert (ask.exact, ask.beginning) == (exact, beginning)
