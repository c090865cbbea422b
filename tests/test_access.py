"""Who may do what, as an administrator sets it and as people meet it over SSH."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster import keys
from cluster.keyfiles import write_keypair
from cluster.model import Level
from tests.cluster_fixture import Cluster, Done
from tests.probes import login, new_user
from tests.test_cli import Cli, bare, cli

__all__ = ["bare", "cli"]

GONE = "this key is not registered here any more"


# ------------------------------------------------------------------------------------- the command line


def test_groups(cli: Cli) -> None:
    assert "no groups yet" in cli("group", "list").err
    for user in ("ann", "bob", "eve"):
        cli("user", "add", user)
    cli("group", "add", "devs")
    cli("group", "add", "@ops")
    assert cli.fails("group", "add", "devs") == "there is a group @devs already"
    for name in ("everyone", "@Operator"):
        assert "cannot be called" in cli.fails("group", "add", name, code=2)
    for name in ("", "@", "@@x", "-x", "a b", "a@b", "x" * 65):
        cli.fails("group", "add", "--", name, code=2)
    cli("group", "join", "@devs", "bob", "ann", "bob")
    cli("group", "join", "devs", "ann")
    assert cli.fails("group", "join", "devs", "eve", "nobody") == "there is no user nobody"
    assert cli.fails("group", "join", "none", "eve") == "there is no group @none"
    assert [(row["name"], row["members"]) for row in cli.json("group", "list")] == [
        ("@devs", ["ann", "bob"]),
        ("@ops", []),
    ]
    assert "@devs  " in cli("group", "list").out
    assert cli.fails("group", "leave", "devs", "ann", "eve") == "not all of these are in @devs: ann, eve"
    assert cli.fails("group", "leave", "devs", "eve") == "eve is not in @devs"
    cli("group", "leave", "devs", "bob")
    cli("user", "remove", "ann")
    assert [row["members"] for row in cli.json("group", "list")] == [[], []]

    cli("grant", "write", "@ops", "team/*")
    cli("rule", "set", "@ops", "team/*", "main", "push")
    cli("group", "remove", "@ops")
    assert cli.fails("group", "remove", "ops") == "there is no group @ops"
    assert cli.json("grant", "list") == cli.json("rule", "list") == []


def test_grants_to_groups(cli: Cli) -> None:
    for words in (
        ["user", "add", "ann"],
        ["user", "add", "bob"],
        ["group", "add", "devs"],
        ["group", "join", "devs", "ann"],
        ["grant", "read", "everyone", "team/*"],
        ["grant", "write", "@devs", "team/*"],
    ):
        cli(*words)
    assert cli.json("access", "ann", "team/app")["because"] == "ann may write: grant write to @devs on team/*"
    assert cli.json("access", "bob", "team/app")["level"] == "read"
    assert cli.json("grant", "list", "@devs") == [{"actor": "@devs", "level": "write", "pattern": "team/*"}]
    assert len(cli.json("grant", "list", "ann")) == 2
    assert cli.fails("grant", "list", "@none") == "there is no group @none"
    assert cli.fails("grant", "read", "@none", "x") == "there is no group @none"
    assert "@none has no grant" in cli.fails("revoke", "@none", "team/*")
    cli("grant", "read", "ann", "team/*")  # by name, that is more than by a group
    assert cli.json("access", "ann", "team/app")["level"] == "read"
    cli("revoke", "ann", "team/*")
    cli("revoke", "@devs", "team/*")
    assert cli.json("access", "ann", "team/app")["level"] == "read"


def test_rules(cli: Cli) -> None:
    assert "no rules" in cli("rule", "list").err
    cli("user", "add", "ann")
    assert cli("protect", "team/*", "main").out == (
        "rule on refs/heads/main of team/*: everyone may create, push\n"
    )
    cli("rule", "set", "ann", "team/app", "refs/tags/v*", "push,create")
    cli("rule", "set", "ann", "team/app", "refs/tags/v*", "none")
    assert cli.json("rule", "list") == [
        {"actor": "everyone", "pattern": "team/*", "ref": "refs/heads/main", "may": ["create", "push"]},
        {"actor": "ann", "pattern": "team/app", "ref": "refs/tags/v*", "may": []},
    ]
    assert cli("rule", "list").out.splitlines()[2].split() == ["ann", "team/app", "refs/tags/v*", "none"]
    for words in (
        ["rule", "set", "ann", "team/*", "main", "write"],
        ["rule", "set", "ann", "team/*", "refs/cluster/*", "all"],
        ["rule", "set", "ann", "**", "main", "all"],
        ["rule", "set", "a b", "team/*", "main", "all"],
        ["protect", "team/*", "a..b"],
        ["protect", "team/*", "tags/v*"],
        ["rule", "remove", "ann", "team/*", ""],
        ["access", "ann", "team/app", "release/*"],
    ):
        cli.fails(*words, code=2)
    assert cli.fails("rule", "set", "nobody", "*", "main", "all") == "there is no user nobody"
    assert cli.fails("rule", "remove", "ann", "team/*", "main") == (
        "ann has no rule on refs/heads/main of team/*"
    )
    cli("rule", "remove", "everyone", "team/*", "main")
    cli("rule", "remove", "ann", "team/app", "refs/tags/v*")
    assert cli.json("rule", "list") == []


def test_access_explains_a_ref(cli: Cli) -> None:
    cli("user", "add", "ann")
    cli("protect", "team/*", "main")
    found = cli.json("access", "ann", "team/app", "main")
    assert (found["level"], found["may"]) == (None, [])
    cli("grant", "write", "ann", "team/*")
    found = cli.json("access", "ann", "team/app", "main")
    assert (found["ref"], found["may"]) == ("refs/heads/main", ["create", "push"])
    assert found["rule"] == "rule on refs/heads/main of team/*: everyone may create, push"
    assert cli("access", "ann", "team/app", "main").out.splitlines()[:2] == [
        "ann may write: grant write to ann on team/*",
        "on refs/heads/main, ann may create, push: rule on refs/heads/main of team/*: everyone may create, push",
    ]
    found = cli.json("access", "ann", "team/app", "refs/tags/v1")
    assert (found["may"], found["rule"]) == (["create", "push", "force", "delete"], None)
    assert "no rule is about it" in cli("access", "ann", "team/app", "other").out
    found = cli.json("access", "ann", "team/app")
    assert (found["ref"], found["may"], found["rule"]) == (None, None, None)
    assert cli.json("access", "everyone", "team/app", "main")["may"] == []


def test_a_disabled_user_is_shown(cli: Cli) -> None:
    cli("user", "add", "ann")
    cli("user", "add", "bob")
    cli("user", "disable", "ann")
    at = cli.json("user", "list")[0]["disabled_at"]
    cli("user", "disable", "ann")
    shown = {row["name"]: row for row in cli.json("user", "list")}
    assert (shown["ann"]["disabled"], shown["bob"]["disabled"]) == (True, False)
    assert shown["ann"]["disabled_at"] == at and shown["bob"]["disabled_at"] is None
    assert [line.split()[:2] for line in cli("user", "list").out.splitlines()[1:]] == [
        ["ann", "disabled"],
        ["bob", "enabled"],
    ]
    assert "ann is disabled" in cli("access", "ann", "team/app").out
    assert cli.json("access", "ann", "team/app")["disabled"] is True
    cli("user", "enable", "ann")
    cli("user", "enable", "ann")
    assert cli.json("user", "list")[0]["disabled"] is False
    for verb in ("disable", "enable"):
        assert cli.fails("user", verb, "nobody") == "there is no user nobody"


def test_keys_that_expire(cli: Cli) -> None:
    cli("user", "add", "ann")
    cli("key", "add", "ann", cli.key("one"), "--expires", "2999-01-31")
    cli("key", "add", "ann", cli.key("two"), "--expires", "90d")
    cli("key", "add", "ann", cli.key("three"))
    one, two, three = cli.json("key", "list")
    assert one["expires_at"].startswith("2999-01-31T00:00:00")
    in_days = datetime.fromisoformat(two["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=89) < in_days < timedelta(days=91)
    assert three["expires_at"] is None
    assert "2999-01-31 00:00:00Z" in cli("key", "list").out
    for when in (
        "2001-01-01",
        "0d",
        "2026-02-30",
        "tomorrow",
        "",
        "-1d",
        "90",
        "2999-01-01T00:00:00",
        "9" * 9 + "w",
    ):
        cli.fails("key", "add", "ann", cli.directory / "four.pub", f"--expires={when}", code=2)


# --------------------------------------------------------------------------------------------- over SSH


def options(cluster: Cluster, key: Path) -> list[str]:
    """Of ssh to device a, with that key alone."""
    return [
        "-F", "none", "-i", str(key), "-p", str(cluster.devices["a"].port), "-o", "IdentitiesOnly=yes",
        "-o", "IdentityAgent=none", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
        "-o", f"UserKnownHostsFile={cluster.directory / 'known_hosts'}", "-o", "StrictHostKeyChecking=yes",
    ]  # fmt: skip


def ssh(cluster: Cluster, key: Path, *words: str) -> Done:
    command = ["ssh", *options(cluster, key), *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def filled(devices: Cluster, request: pytest.FixtureRequest) -> str:
    """A repository of this test's own with one commit."""
    name = f"team/{request.node.name.replace('_', '-')}"
    devices.create(name)
    work = devices.work(request.node.name)
    devices.ok("push", "--quiet", devices.url("a", name), "main", cwd=work)
    return name


def test_a_key_that_is_removed_is_out_at_once(devices: Cluster, filled: str) -> None:
    """At the next command of a ControlMaster's connection, and of a connection of paramiko's."""
    path = new_user(devices, "ann")
    devices.db.grant(Level.READ, "ann", filled)
    shared = [
        "-o",
        "ControlMaster=auto",
        "-o",
        f"ControlPath={devices.directory / 'm'}",
        "-o",
        "ControlPersist=60",
    ]
    ask = ["git@127.0.0.1", f"git-upload-archive '{filled}'"]
    fingerprint = keys.read(path.with_name(path.name + ".pub")).fingerprint
    try:
        with login(devices.devices["a"], path) as connection:
            assert connection.ask(f"git-upload-pack '{filled}'", b"0000").code == 0
            assert GONE not in ssh(devices, path, *shared, *ask).err
            assert ssh(devices, path, *shared, "-O", "check", "git@127.0.0.1").code == 0
            assert devices.admin("key", "remove", fingerprint).code == 0
            assert GONE in ssh(devices, path, *shared, *ask).err
            assert GONE in connection.ask(f"git-upload-pack '{filled}'", b"0000").err
            # and learns nothing any more of what there is
            assert GONE in connection.ask("git-upload-pack 'team/none'", b"0000").err
            assert GONE in connection.ask(None).err
    finally:
        ssh(devices, path, *shared, "-O", "exit", "git@127.0.0.1")
    assert "Permission denied" in ssh(devices, path, *ask).err


def test_a_user_who_is_disabled_or_whose_key_ends_is_out_at_once(devices: Cluster, filled: str) -> None:
    path = new_user(devices, "bob")
    devices.db.grant(Level.READ, "bob", filled)
    other = devices.directory / "other_ed25519"
    key = keys.parse(write_keypair(other, "bob"))
    ends = datetime.now(UTC) + timedelta(seconds=4)
    devices.db.add_key("bob", key.fingerprint, key.line, "", ends)
    read = f"git-upload-pack '{filled}'"
    with login(devices.devices["a"], path) as one, login(devices.devices["a"], other) as two:
        assert one.ask(read, b"0000").code == two.ask(read, b"0000").code == 0
        devices.wait(lambda: GONE in two.ask(read, b"0000").err, "the key ends")
        assert datetime.now(UTC) >= ends - timedelta(seconds=1)
        assert one.ask(read, b"0000").code == 0
        assert devices.admin("user", "disable", "bob").code == 0
        assert GONE in one.ask(read, b"0000").err
        assert "Permission denied" in ssh(devices, path, "git@127.0.0.1", read).err
        assert devices.admin("user", "enable", "bob").code == 0
        assert one.ask(read, b"0000").code == 0


def test_a_group_opens_and_closes(devices: Cluster, filled: str) -> None:
    path = new_user(devices, "cyd")
    for words in (["group", "add", "g"], ["grant", "read", "@g", filled]):
        assert devices.admin(*words).code == 0
    read = f"git-upload-pack '{filled}'"
    with login(devices.devices["a"], path) as connection:
        assert "you may not read it" in connection.ask(read, b"0000").err
        assert devices.admin("group", "join", "g", "cyd").code == 0
        assert connection.ask(read, b"0000").code == 0
        assert "not push to it" in connection.ask(f"git-receive-pack '{filled}'", b"0000").err
        assert devices.admin("group", "leave", "g", "cyd").code == 0
        assert "you may not read it" in connection.ask(read, b"0000").err


def test_a_stranger_cannot_tell_a_closed_repository_from_none(devices: Cluster, filled: str) -> None:
    """The same words and exit code for each service. (The database is asked the same single statement.)"""
    path = new_user(devices, "dan")
    with login(devices.devices["a"], path) as connection:
        for service in ("git-upload-pack", "git-receive-pack", "git-upload-archive"):
            closed = connection.ask(f"{service} '{filled}'", b"0000")
            missing = connection.ask(f"{service} 'team/none'", b"0000")
            assert closed.err.replace(filled, "team/none") == missing.err
            assert (closed.code, closed.out) == (missing.code, missing.out) == (1, b"")
