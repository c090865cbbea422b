"""What people ask of a device over stock ssh beside Git: `ssh git@host whoami`, `repos`, `key add` …"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

import cluster as program
from cluster import keys
from cluster.db import no_repository
from cluster.errors import Refused
from cluster.keyfiles import write_keypair
from cluster.model import Actor, ActorKind, DeviceMode, Level
from tests.cluster_fixture import DEADLINE, Cluster, Done
from tests.probes import device_key, login, new_user, presentable, rest

ENDPOINTS = ("built-in", "openssh")


@dataclass(frozen=True)
class Person:
    """A user of the cluster, with one key."""

    cluster: Cluster
    name: str
    key: Path

    @property
    def fingerprint(self) -> str:
        return print_of(self.key)

    def ssh_config(self, key: Path | None = None) -> Path:
        own = key or self.key
        path = own.with_suffix(".ssh_config")
        path.write_text(self.cluster.ssh_config.read_text().replace(str(self.cluster.identity), str(own)))
        return path

    def command(self, *words: str, device: str = "a", key: Path | None = None) -> list[str]:
        port = str(self.cluster.devices[device].port)
        return ["ssh", "-F", str(self.ssh_config(key)), "-p", port, "127.0.0.1", *words]

    def asks(self, *words: str, device: str = "a", key: Path | None = None, stdin: bytes = b"") -> Done:
        """Stock `ssh git@host WORDS`, whatever its exit code."""
        done = subprocess.run(
            self.command(*words, device=device, key=key), input=stdin, capture_output=True, timeout=DEADLINE
        )
        answer = Done(done.returncode, done.stdout.decode(), done.stderr.decode())
        presentable(answer.text, self.cluster)
        return answer

    def told(self, *words: str, device: str = "a", key: Path | None = None, stdin: bytes = b"") -> str:
        """The same, where it has to succeed without a word on stderr; its standard output."""
        done = self.asks(*words, device=device, key=key, stdin=stdin)
        assert (done.code, done.err) == (0, ""), done
        return done.out

    def read(self, *words: str) -> Any:
        """The answer to a command with --json."""
        return json.loads(self.told(*words, "--json"))

    def refused(
        self, *words: str, code: int = 1, device: str = "a", key: Path | None = None, stdin: bytes = b""
    ) -> list[str]:
        """The lines of a refusal: what, and what to do."""
        done = self.asks(*words, device=device, key=key, stdin=stdin)
        assert (done.code, done.out) == (code, ""), done
        # Behind sshd the login shell of whoever runs the tests may have something to say first.
        lines = [line for line in done.err.splitlines() if line.startswith("remote: ")]
        assert len(lines) == 2 and all(line.startswith("remote: cluster: ") for line in lines), done
        assert lines[0].startswith("remote: cluster: error: ")
        return [lines[0].removeprefix("remote: cluster: error: "), lines[1].removeprefix("remote: cluster: ")]


def print_of(key: Path) -> str:
    return keys.read(key.with_suffix(".pub")).fingerprint


def new_key(cluster: Cluster, name: str) -> Path:
    """A key pair that nobody has registered."""
    path = cluster.directory / f"{name}_ed25519"
    write_keypair(path, name)
    return path


def public(key: Path) -> bytes:
    return key.with_suffix(".pub").read_bytes()


def sql(cluster: Cluster, statement: str, **parameters: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(cluster.database, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def log_of(cluster: Cluster, device: str, person: Person) -> list[str]:
    """The lines about requests of a person, in a device's log."""
    lines = cluster.devices[device].log.read_text().splitlines()
    return [line for line in lines if f"actor={person.name} " in line and " exit=" in line]


@pytest.fixture
def anna(devices: Cluster, request: pytest.FixtureRequest) -> Person:
    """A user of this test's own, who may nothing yet."""
    test = request.node.name
    words = re.sub(r"[^a-z0-9]+", "-", test.removeprefix("test_"))[:40].strip("-")
    name = f"anna-{words}-{zlib.crc32(test.encode()):08x}"
    return Person(devices, name, new_user(devices, name))


@pytest.fixture
def bob(devices: Cluster, anna: Person) -> Person:
    name = anna.name.replace("anna-", "bob-")
    return Person(devices, name, new_user(devices, name))


@pytest.fixture
def team(devices: Cluster, anna: Person) -> Iterator[str]:
    """The repositories <team>/app, <team>/lib and <team>_/app of this test's own."""
    team = anna.name.removeprefix("anna-")
    for name in (f"{team}/app", f"{team}/lib", f"{team}_/app"):
        devices.create(name)
    yield team
    sql(devices, "update repository set name = null")


# Help


def test_help_is_one_screen(anna: Person) -> None:
    text = anna.told("help")
    assert text == anna.told("--", "--help") == anna.told("--", "-h", device="b")
    assert "git clone ssh://git@host/team/app" in text
    for command in ("whoami", "info", "repos", "access", "key add", "create"):
        assert f"\n  {command} " in text
    assert len(text.splitlines()) <= 24


def test_help_of_a_command(anna: Person) -> None:
    text = anna.told("help", "key", "add")
    assert text.startswith("usage: ssh git@host key add [--expires WHEN] <FILE\n")
    assert "example: ssh git@host key add <laptop.pub" in text
    assert text == anna.told("key", "add", "--help")
    assert anna.refused("help", "me", code=2)[0] == "there is no command 'me'"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["whoam"], "there is no command 'whoam'; did you mean whoami?"),
        (["whoami", "--all"], "whoami has no option '--all'"),
        (["key"], "key needs one of list, add, remove"),
        (
            ["repos", "'$(id)'"],
            "'$(id)' is not a pattern of repository names: the part '$(id)' begins with or holds",
        ),
        (
            ["repos", "$(id)"],
            "the arguments of repos hold an open quote or a character that a shell would act on",
        ),
        (
            ["ls", "-l"],
            "git-cluster runs git-upload-pack, git-receive-pack and git-upload-archive only, not 'ls'",
        ),
        (
            ["scp", "-t", "."],
            "git-cluster runs git-upload-pack, git-receive-pack and git-upload-archive only, not",
        ),
    ],
)
def test_wrong_usage_exits_2_and_says_what_to_do(anna: Person, words: list[str], what: str) -> None:
    error, hint = anna.refused(*words, code=2)
    assert error.startswith(what)
    assert hint


def test_a_login_without_a_command_is_told_of_help(anna: Person) -> None:
    done = anna.asks()
    assert done.code == 1 and done.out.startswith(f"Hello {anna.name}: you have reached device a ")
    assert "`ssh git@host help`" in done.out


# Who, what, where


def test_whoami(anna: Person) -> None:
    assert anna.told("whoami") == (
        f"user:    {anna.name}\nproof:   key {anna.fingerprint} ({anna.name})\ngroups:  -\n"
    )
    database = anna.cluster
    sql(database, "insert into actor_group (name) values ('zoo'), ('dev')")
    sql(
        database,
        "insert into group_member select g.id, a.id from actor_group g, actor a where a.name = %(name)s",
        name=anna.name,
    )
    assert "groups:  @dev @zoo\n" in anna.told("whoami")
    assert anna.read("whoami") == {
        "user": anna.name,
        "proof": {"kind": "key", "fingerprint": anna.fingerprint, "comment": anna.name, "expires_at": None},
        "groups": ["dev", "zoo"],
    }


def test_info(anna: Person, team: str) -> None:
    cluster = anna.cluster
    cluster.create(f"{team}/elsewhere", devices="b")
    cluster.db.grant(Level.READ, anna.name, f"{team}/*")
    cluster.db.grant(Level.WRITE, anna.name, f"{team}/app")
    text = anna.told("info")
    assert f"cluster:  demo, git-cluster {program.__version__}\ndevice:   a, which you have reached\n" in text
    assert "3 repositories to read, 1 to push to, 0 to administer; this device keeps 2 of them\n" in text
    assert "a push:   brings 10 GiB and 100,000 refs at the most\n" in text
    assert "of them" not in anna.told("info", device="b")
    for name, device in cluster.devices.items():
        state = cluster.db.device(
            name
        ).state  # without its daemon a device counts as offline, whatever a hook answers
        assert [name, state, device.url, device.http_url or "-"] in [
            line.split() for line in text.splitlines()
        ]
    assert anna.read("info") == {
        "cluster": "demo",
        "version": program.__version__,
        "device": "a",
        "user": anna.name,
        "devices": [
            {"name": name, "ssh": device.url, "http": device.http_url, "state": cluster.db.device(name).state}
            for name, device in cluster.devices.items()
        ],
        "repositories": {"read": 3, "write": 1, "admin": 0, "here": 2},
        "limits": {"push_size": 10 * 2**30, "push_refs": 100_000},
    }


def test_info_says_so_on_a_device_that_is_being_drained(anna: Person) -> None:
    anna.cluster.db.set_device_mode("c", DeviceMode.DRAINING)
    try:
        assert "device:   c, which you have reached: it is draining\n" in anna.told("info", device="c")
    finally:
        anna.cluster.db.set_device_mode("c", DeviceMode.ENABLED)


def test_repos(anna: Person, team: str) -> None:
    done = anna.asks("repos")
    assert (done.code, done.out) == (0, "")
    assert done.err == "remote: cluster: there is no repository that you may read\n"
    assert anna.read("repos") == []
    db = anna.cluster.db
    db.grant(Level.READ, anna.name, f"{team}/*")
    db.grant(Level.WRITE, anna.name, f"{team}/lib")
    assert anna.told("repos") == f"LEVEL  REPOSITORY\nread   {team}/app\nwrite  {team}/lib\n"
    assert anna.read("repos") == [
        {"name": f"{team}/app", "level": "read", "version": 0},
        {"name": f"{team}/lib", "level": "write", "version": 0},
    ]
    # The local shell takes the quotes off, so the device reads a bare star.
    assert anna.told("repos", f"{team}/l*", "--json") == anna.told("repos", f"'{team}/l*'", "--json")
    assert [row["name"] for row in anna.read("repos", f"{team}/l*")] == [f"{team}/lib"]
    assert anna.read("repos", f"{team}/app")[0]["name"] == f"{team}/app"
    assert anna.read("repos", f"{team}_/*") == anna.read("repos", f"{team}/none") == []


def test_an_underscore_in_a_pattern_is_no_wildcard_of_sqls(anna: Person, team: str) -> None:
    cluster = anna.cluster
    for name in ("x_y/app", "xzy/app", "x_y/more"):
        cluster.create(f"{team}/{name}")
    cluster.db.grant(Level.READ, anna.name, f"{team}/x_y/*")
    assert [row["name"] for row in anna.read("repos")] == [f"{team}/x_y/app", f"{team}/x_y/more"]


def test_an_exception_and_a_group_count_in_the_listing(anna: Person, bob: Person, team: str) -> None:
    """As cluster/access.py decides: the more specific grant wins, even if it is the lower one."""
    database, db = anna.cluster, anna.cluster.db
    sql(database, "insert into actor_group (name) values (%(name)s)", name=team)
    sql(
        database,
        """insert into group_member select g.id, a.id from actor_group g, actor a
            where g.name = %(g)s and a.name = %(a)s""",
        g=team,
        a=anna.name,
    )
    db.grant(Level.ADMIN, f"@{team}", f"{team}/*")
    db.grant(Level.READ, None, f"{team}/lib")
    rows = {row["name"]: row["level"] for row in anna.read("repos")}
    assert rows == {f"{team}/app": "admin", f"{team}/lib": "read"}
    assert {row["name"]: row["level"] for row in bob.read("repos")} == {f"{team}/lib": "read"}


def test_access(anna: Person, bob: Person, team: str) -> None:
    db, name = anna.cluster.db, f"{team}/app"
    db.grant(Level.READ, anna.name, f"{team}/*")
    because = f"{anna.name} may read: grant read to {anna.name} on {team}/*"
    assert anna.told("access", name) == because + "\n"
    assert anna.read("access", f"/{name}.git") == {
        "actor": anna.name,
        "repository": name,
        "level": "read",
        "because": because,
        "pattern": f"{team}/*",
        "notes": [],
    }
    missing, unreadable = anna.refused("access", f"{team}_/gone"), anna.refused("access", f"{team}_/app")
    assert missing == [line.replace("_/app", "_/gone") for line in unreadable]
    assert missing == no_repository(f"{team}_/gone").lines()
    assert (
        anna.refused("access", name, "--user", bob.name)[0]
        == f"you may not ask about others' access to {name}"
    )
    assert anna.refused("access", f"{team}_/app", "--user", bob.name) == unreadable


def test_who_may_admin_asks_about_others(anna: Person, bob: Person, team: str) -> None:
    db, name = anna.cluster.db, f"{team}/app"
    db.grant(Level.ADMIN, anna.name, name)
    nothing = f"{bob.name} may nothing: no grant to {bob.name} or to everyone covers {name}\n"
    assert anna.told("access", name, "--user", bob.name) == nothing
    db.grant(Level.WRITE, bob.name, f"{team}/*")
    assert anna.told("access", name, "--user", bob.name).startswith(f"{bob.name} may write: ")
    assert anna.told("access", name, "--user", "everyone").startswith("everyone may nothing: ")
    db.grant(Level.READ, None, name)
    assert (
        anna.told("access", name, "--user=everyone")
        == f"everyone may read: grant read to everyone on {name}\n"
    )
    assert anna.refused("access", name, "--user", "nobody-at-all")[0] == "there is no user nobody-at-all"
    sql(anna.cluster, "update actor set disabled_at = now() where name = %(name)s", name=bob.name)
    assert f"{bob.name} is disabled: no key proves them\n" in anna.told("access", name, "--user", bob.name)


def test_access_to_a_ref_lists_the_rules_on_it(anna: Person, team: str) -> None:
    cluster, name = anna.cluster, f"{team}/app"
    cluster.db.grant(Level.WRITE, anna.name, name)
    everything = f"on refs/heads/main, {anna.name} may create, push, force, delete: no rule is about it\n"
    assert everything in anna.told("access", name, "main")
    sql(
        cluster,
        "insert into ref_rule (pattern, ref_pattern, may) values (%(pattern)s, 'refs/heads/*', '{push,create}')",
        pattern=f"{team}/*",
    )
    rule = f"rule on refs/heads/* of {team}/*: everyone may create, push"
    line = f"on refs/heads/main, {anna.name} may create, push: {rule}"
    assert line in anna.told("access", name, "main").splitlines()
    assert "rule on" not in anna.told("access", name, "refs/tags/v1")
    document = anna.read("access", name, "refs/heads/main")
    assert document["ref"] == "refs/heads/main"
    assert (document["may"], document["rule"]) == (["create", "push"], rule)


# Keys


def test_a_new_machine_takes_over_from_an_old_one(anna: Person) -> None:
    """The life of a key: add the laptop's, log in with it, remove the old one."""
    laptop = new_key(anna.cluster, f"{anna.name}-laptop")
    assert anna.told("key", "add", device="b", stdin=public(laptop)) == f"key {print_of(laptop)} added\n"
    listed = [line.split()[0] for line in anna.told("key", "list").splitlines()]
    assert listed == ["FINGERPRINT", anna.fingerprint, print_of(laptop)]
    assert {row["fingerprint"]: row["current"] for row in anna.read("key", "list")} == {
        anna.fingerprint: True,
        print_of(laptop): False,
    }
    assert f"proof:   key {print_of(laptop)} " in anna.told("whoami", key=laptop, device="b")
    out = anna.told("key", "remove", anna.fingerprint, key=laptop, device="b")
    assert out == f"key {anna.fingerprint} removed\n"
    done = anna.asks("whoami")
    assert done.code == 255 and "Permission denied" in done.err
    log = anna.cluster.devices["b"].log.read_text()
    for what in (f'msg="key added" actor={anna.name} fingerprint={print_of(laptop)}', 'msg="key removed"'):
        assert what in log


def test_the_only_key_cannot_be_removed(anna: Person) -> None:
    spare = new_key(anna.cluster, f"{anna.name}-spare")
    error, hint = anna.refused("key", "remove", anna.fingerprint)
    assert (error, hint) == ("this is your only key", "add another first: ssh git@host key add <FILE")
    sql(
        anna.cluster,
        """insert into key (fingerprint, public_key, expires_at, actor_id)
           select %(fingerprint)s, %(line)s, now() - interval '1 day', id from actor where name = %(name)s""",
        fingerprint=print_of(spare),
        line=public(spare).decode(),
        name=anna.name,
    )
    assert (
        anna.refused("key", "remove", anna.fingerprint)[0] == "this is your only key"
    )  # the other has expired
    assert ", expired" in anna.told("key", "list")
    assert [row["counts"] for row in anna.read("key", "list")] == [True, False]
    anna.told("key", "remove", print_of(spare) + "=")
    assert [row["fingerprint"] for row in anna.read("key", "list")] == [anna.fingerprint]


def test_the_key_of_this_connection_may_go_where_another_is_left(anna: Person) -> None:
    spare = new_key(anna.cluster, f"{anna.name}-spare")
    anna.told("key", "add", stdin=public(spare))
    with login(anna.cluster.devices["a"], anna.key) as connection:
        answer = connection.ask(f"key remove {anna.fingerprint}")
        assert (answer.code, answer.out.decode()) == (0, f"key {anna.fingerprint} removed\n")
        assert "note: that was the key of this connection" in answer.err
        gone = connection.ask("whoami")
        assert gone.code == 1 and "this key is not registered here any more" in gone.err
    assert anna.told("whoami", key=spare)


def test_others_keys_are_nobodys_business(anna: Person, bob: Person) -> None:
    anna.told("key", "add", stdin=public(new_key(anna.cluster, f"{anna.name}-spare")))
    unknown = new_key(anna.cluster, f"{anna.name}-unknown")
    theirs, nobodys = (
        anna.refused("key", "remove", bob.fingerprint),
        anna.refused("key", "remove", print_of(unknown)),
    )
    assert theirs == [line.replace(print_of(unknown), bob.fingerprint) for line in nobodys]
    assert bob.fingerprint not in anna.told("key", "list")
    assert bob.told("whoami")
    device = anna.cluster.db.device("b").public_key
    assert anna.refused("key", "remove", keys.parse(device).fingerprint)[0].startswith("you have no key ")
    for registered in (public(bob.key), public(anna.key), device.encode()):
        assert anna.refused("key", "add", stdin=registered)[0] == "this key is registered already"


def test_a_key_that_expires(anna: Person) -> None:
    soon = new_key(anna.cluster, f"{anna.name}-soon")
    out = anna.told("key", "add", "--expires", "2h", stdin=public(soon))
    assert out.startswith(f"key {print_of(soon)} added, until ")
    expires = datetime.fromisoformat(anna.read("key", "list")[1]["expires_at"])
    assert timedelta(hours=1.9) < expires - datetime.now(UTC) <= timedelta(hours=2)
    assert ", until " in anna.told("whoami", key=soon)
    # A key that was given for two hours does not make itself one for ever.
    later = new_key(anna.cluster, f"{anna.name}-later")
    done = anna.asks("key", "add", "--expires", "30d", key=soon, stdin=public(later))
    assert done.err == "remote: cluster: note: no longer than the key that proved you\n"
    assert [row["expires_at"] for row in anna.read("key", "list")][1:] == 2 * [expires.isoformat()]
    anna.told("key", "remove", print_of(later))
    assert "until" not in anna.told("key", "add", stdin=public(later))  # by the key that never expires
    sql(anna.cluster, "update key set expires_at = now() where fingerprint = %(f)s", f=print_of(soon))
    assert anna.asks("whoami", key=soon).code == 255
    refusal = anna.refused("key", "add", "--expires", "9999-12-31", stdin=public(later), code=2)
    assert refusal[0] == "the year 9999 is too far away"
    assert anna.refused("key", "add", "--expires", "2020-01-01", stdin=public(soon), code=2)[0] == (
        "'2020-01-01' is in the past"
    )


def test_what_is_no_public_key(anna: Person, tmp_path: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-f", str(tmp_path / "rsa")], check=True
    )
    good = public(new_key(anna.cluster, f"{anna.name}-good"))
    for given, why in (
        (b"", "there is no public key on standard input"),
        (b"\n \n", "there is no public key on standard input"),
        (anna.key.read_bytes(), "this is a private key"),
        (b"hello", "not an OpenSSH public key"),
        (b"\0\xff\x1b[2J", "not an OpenSSH public key"),
        (b'command="id" ' + good, "something in front of the key"),
        (good + good, "2 lines"),
        (good[:60], "damaged"),
        ((tmp_path / "rsa.pub").read_bytes(), "2048 bits is too weak"),
        (b"#" * (16 * 1024 + 1), "far too long"),
        (b"x" * 10_000_000, "far too long"),
    ):
        assert why in anna.refused("key", "add", stdin=given, code=2)[0]
    assert len(anna.read("key", "list")) == 1


def test_a_key_that_was_removed_meanwhile_adds_no_other(anna: Person) -> None:
    """Who holds `key add` open until the administrator has taken their key away must not come back by it."""
    spare = new_key(anna.cluster, f"{anna.name}-spare")
    with login(anna.cluster.devices["a"], anna.key) as connection:
        channel = connection.channel(b"key add")
        channel.sendall(public(spare)[:20])
        anna.cluster.db.remove_key(anna.fingerprint)
        with suppress(OSError):  # it may have been refused before it was begun
            channel.sendall(public(spare)[20:])
            channel.shutdown_write()
        answer = rest(channel)
    assert answer.code == 1 and "this key is not registered here any more" in answer.err
    assert anna.cluster.db.own_keys(anna.name) == []


def test_of_two_who_remove_each_others_key_one_stays(anna: Person) -> None:
    db = anna.cluster.db
    for number in range(10):
        spare = new_key(anna.cluster, f"{anna.name}-{number}")
        key = keys.parse(public(spare).decode())
        mine = db.own_keys(anna.name)[0].fingerprint
        actors = [Actor(ActorKind.USER, anna.name, each) for each in (mine, key.fingerprint)]
        db.add_own_key(actors[0], key.fingerprint, key.line, "", None)
        refused: list[Refused] = []

        def remove(actor: Actor, fingerprint: str, refused: list[Refused] = refused) -> None:
            try:
                db.remove_own_key(actor, fingerprint)
            except Refused as error:
                refused.append(error)

        both = [
            threading.Thread(target=remove, args=(actor, other.fingerprint))
            for actor, other in zip(actors, reversed(actors), strict=True)
        ]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert len(refused) == 1 and len(db.own_keys(anna.name)) == 1


def test_with_a_certificate_no_key_is_the_last(anna: Person) -> None:
    db = anna.cluster.db
    certified = Actor(ActorKind.USER, anna.name, "SHA256:certified", datetime.now(UTC) + timedelta(hours=1))
    db.remove_own_key(certified, anna.fingerprint)
    key = keys.parse(public(anna.key).decode())
    assert db.add_own_key(certified, key.fingerprint, key.line, "", None) == certified.certified_until
    assert anna.told("whoami")


def test_there_is_an_end_to_keys(anna: Person) -> None:
    sql(
        anna.cluster,
        """insert into key (fingerprint, public_key, actor_id)
           select 'SHA256:' || %(name)s || n, 'x', a.id from actor a, generate_series(2, 100) n
            where a.name = %(name)s""",
        name=anna.name,
    )
    spare = new_key(anna.cluster, f"{anna.name}-spare")
    assert anna.refused("key", "add", stdin=public(spare))[0] == "you have 100 keys already"


# Create


def test_create_and_push_at_once(anna: Person, team: str) -> None:
    cluster, name = anna.cluster, f"{team}/new"
    cluster.db.grant(Level.ADMIN, anna.name, f"{team}/*")
    assert anna.told("create", name, "--default-branch", "trunk") == (
        f"repository {name} created on a, b, c; a push counts with 2 copies\n"
        f"clone it with: git clone {cluster.url('a', name)}\n"
    )
    log = "select version, actor, via from push where repository_id = %(id)s"
    assert sql(cluster, log, id=cluster.snapshot(name).repository.id) == [(0, anna.name, "create")]
    work = cluster.work(f"work-{team}")
    config = anna.ssh_config()
    cluster.ok("-c", f"core.sshCommand=ssh -F {config}", "ls-remote", cluster.url("b", name), cwd=work)
    pushed = cluster.git(
        "push", cluster.url("b", name), "main:trunk", cwd=work, env={"GIT_SSH_COMMAND": f"ssh -F {config}"}
    )
    assert pushed.code == 0, pushed.text
    assert anna.read("repos", name) == [{"name": name, "level": "admin", "version": 1}]
    cluster.converge(name)
    made = anna.read("create", f"{team}/other", "--object-format", "sha256")
    assert made == {
        "name": f"{team}/other",
        "devices": ["a", "b", "c"],
        "min_copies": 2,
        "urls": [cluster.url(device, f"{team}/other") for device in "abc"],
    }
    assert cluster.snapshot(f"{team}/other").repository.object_format == "sha256"


def test_create_needs_admin_and_tells_nobody_else_what_is_there(anna: Person, team: str) -> None:
    cluster, db = anna.cluster, anna.cluster.db
    db.grant(Level.WRITE, anna.name, f"{team}/*")
    taken, free = anna.refused("create", f"{team}_/app"), anna.refused("create", f"{team}_/new")
    assert taken == [line.replace("_/new", "_/app") for line in free]
    assert free[0] == f"you may not create {team}_/new"
    assert anna.refused("create", f"{team}/new")[0] == f"you may not create {team}/new"  # write is not enough
    db.grant(Level.ADMIN, anna.name, f"{team}/*")
    assert anna.refused("create", f"{team}/app")[0] == f"there is a repository {team}/app already"
    db.grant(Level.READ, anna.name, f"{team}/closed")
    assert anna.refused("create", f"{team}/closed")[0] == f"you may not create {team}/closed"
    assert {row[0] for row in sql(cluster, "select name from repository where name is not null")} == {
        f"{team}/app",
        f"{team}/lib",
        f"{team}_/app",
    }


# Who may not, and when no more


def test_devices_and_operators_are_not_users(devices: Cluster) -> None:
    with login(devices.devices["a"], device_key(devices.devices["b"])) as peer:
        for command in ("whoami", "help", "repos", "key add", "create team/x"):
            answer = peer.ask(command, b"")
            assert answer.code == 1 and answer.out == b""
            assert answer.lines[0] == "remote: cluster: error: a device's key may not do that"
    operator = new_key(devices, "an-operator")
    key = keys.parse(public(operator).decode())
    with devices.db.operator_key(key.fingerprint, key.line, seconds=60):
        with login(devices.devices["a"], operator) as connection:
            answer = connection.ask("whoami")
            assert answer.lines[0] == "remote: cluster: error: an operator's key may not do that"


def test_every_command_looks_at_the_key_again(anna: Person) -> None:
    with login(anna.cluster.devices["a"], anna.key) as connection:
        assert connection.ask("whoami").code == 0
        anna.cluster.db.remove_user(anna.name)
        for command in ("help", "whoami", "info", "repos", "access team/app", "key list", "create team/x"):
            answer = connection.ask(command)
            assert (answer.code, answer.out) == (1, b"")
            assert answer.lines[0] == "remote: cluster: error: this key is not registered here any more"


def test_one_line_of_log_a_command(anna: Person) -> None:
    anna.told("whoami", device="b")
    anna.refused("key", "remove", anna.fingerprint, device="b")
    anna.refused("repos", "--nonsense", code=2, device="b")
    lines = log_of(anna.cluster, "b", anna)
    assert len(lines) == 3
    assert "msg=whoami " in lines[0] and " exit=0 " in lines[0] and "address=127.0.0.1" in lines[0]
    assert f'msg=key arguments="remove {anna.fingerprint}"' in lines[1] and " exit=failed " in lines[1]
    assert "msg=repos arguments=--nonsense" in lines[2]


# Clients that are in the way, and many repositories


@pytest.fixture
def crowd(devices: Cluster, anna: Person) -> Iterator[str]:
    """5,000 repositories, crowd/00001 and so on with 100 more characters each, that anna may read."""
    sql(
        devices,
        """with made as (
               insert into repository (name, checksum, min_copies)
               select 'crowd/' || to_char(n, 'FM00000') || repeat('x', 90), decode(repeat('00', 128), 'hex'), 1
                 from generate_series(1, 5000) n returning id, checksum)
           insert into push (repository_id, version, checksum, push_id, actor, device, via)
           select id, 0, checksum, gen_random_uuid(), 'test', '', 'create' from made""",
    )
    devices.db.grant(Level.READ, anna.name, "crowd/*")
    devices.db.grant(Level.WRITE, anna.name, "crowd/04999*")
    yield "crowd"
    sql(devices, "update repository set name = null")


def test_page_after_page(anna: Person, crowd: str) -> None:
    lines = anna.told("repos").splitlines()
    assert lines[0] == "LEVEL  REPOSITORY"
    names = [line.split("  ", 1)[1].strip() for line in lines[1:]]
    assert [name[:11] for name in names] == [f"crowd/{number:05}" for number in range(1, 5001)]
    rows = anna.read("repos")
    assert [row["name"] for row in rows] == names
    assert [row["name"] for row in rows if row["level"] == "write"] == [names[4998]]
    assert anna.read("info")["repositories"] == {"read": 5000, "write": 1, "admin": 0, "here": 0}
    # Pages of which nothing is shown come between.
    assert [row["name"] for row in anna.read("repos", "crowd/0*4999*")] == [names[4998]]


def test_head_1_ends_a_listing(anna: Person, crowd: str) -> None:
    command = " ".join(f"'{word}'" for word in anna.command("repos", device="b"))
    for _ in range(5):
        done = subprocess.run(["sh", "-c", f"{command} | head -1"], capture_output=True, timeout=DEADLINE)
        assert (done.stdout, done.stderr) == (b"LEVEL  REPOSITORY\n", b"")
    anna.cluster.wait(lambda: len(log_of(anna.cluster, "b", anna)) == 5, "every listing has ended")
    log = anna.cluster.devices["b"].log.read_text()
    assert "Traceback" not in log and "unexpected" not in log


def test_a_reader_that_stops_holds_no_connection(anna: Person, crowd: str) -> None:
    """G5: more readers than a device has database connections, none of which reads; everybody else is served."""
    channels = []
    device = anna.cluster.devices["b"]
    with login(device, anna.key) as one, login(device, anna.key) as two:
        for connection in (one, two):
            for _ in range(9):
                channel = connection.transport.open_session(window_size=40_000, timeout=DEADLINE)
                channel.exec_command("repos --json")
                channels.append(channel)
        for channel in channels:
            anna.cluster.wait(channel.recv_ready, "the listing has begun")
        assert anna.told("whoami")
        busy = """select count(*) from pg_stat_activity
                   where datname = current_database() and state <> 'idle' and pid <> pg_backend_pid()"""
        anna.cluster.wait(lambda: sql(anna.cluster, busy) == [(0,)], "no connection is in use")
        # And who has lost the key meanwhile does not get the rest.
        anna.cluster.db.remove_key(anna.fingerprint)
        for channel in channels:
            channel.settimeout(DEADLINE)
            answer = rest(channel)
            assert answer.code == 1 and "not registered here any more" in answer.err
            assert answer.out.count(b"crowd/") < 5000


def test_who_insists_on_a_terminal_gets_none(anna: Person) -> None:
    """`ssh -t host COMMAND` hangs up by itself where any server refuses it a terminal. Without -t it asks for none."""
    ssh, *others = anna.command("whoami", device="b")
    for options, code, line in (
        (["-t"], 255, "PTY allocation request failed on channel 0"),
        ([], 0, f"user:    {anna.name}"),
    ):
        near, far = os.openpty()
        command = [ssh, *options, *others]
        process = subprocess.Popen(command, stdin=far, stdout=far, stderr=far, start_new_session=True)
        assert process.wait(DEADLINE) == code
        assert os.read(near, 10_000).decode().splitlines()[0] == line
        os.close(near)
        os.close(far)
    log = anna.cluster.devices["b"].log.read_text()
    assert "Traceback" not in log and "unexpected" not in log
