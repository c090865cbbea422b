"""Commands, keys and pushes that mean harm, over the real endpoint: a clear line, no trace, and the next is served."""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import paramiko  # type: ignore[import-untyped,unused-ignore]
import pytest
from dulwich.protocol import pkt_line

from cluster import keys
from cluster.keyfiles import write_keypair
from cluster.model import DeviceMode, Level
from tests.cluster_fixture import Cluster
from tests.conftest import new_database
from tests.probes import (
    Answer,
    Login,
    device_key,
    git_processes,
    login,
    new_user,
    no_git_left,
    on_disk,
    presentable,
    rest,
)

ZERO = "0" * 40
UUID = "5f0c2f3e-0d5b-4f0e-9a55-2f6f3c1f9f10"


@pytest.fixture(scope="module")
def victim(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two devices and the repository team/app with one commit, for tests that must leave it as it was."""
    with new_database(postgres) as url:
        cluster = Cluster(tmp_path_factory.mktemp("victim"), url, {})
        cluster.set_up(["a", "b"])
        cluster.start("a")
        cluster.start("b")
        cluster.create("team/app")
        cluster.ok("push", cluster.url("a"), "main", cwd=cluster.work())
        cluster.converge()
        yield cluster
        cluster.close()


@pytest.fixture
def user(victim: Cluster) -> Iterator[Login]:
    with login(victim.devices["a"], victim.identity) as connection:
        yield connection


@pytest.fixture
def unharmed(victim: Cluster) -> Iterator[None]:
    """Afterwards: nothing new on any disk, no version, no intent, no process, and the next request is served."""

    def everything() -> dict[str, set[str]]:
        return {name: on_disk(device) for name, device in victim.devices.items()}

    before = everything()
    version, checksum = victim.version(), victim.checksum("a")
    yield
    no_git_left(victim)
    victim.wait(lambda: everything() == before, "nothing is left on any disk", 10)
    snapshot = victim.snapshot()
    assert (snapshot.repository.version, snapshot.intent_owner) == (version, None)
    assert victim.checksum("a") == checksum
    assert len(victim.db.snapshots()) == 1
    for name in victim.devices:
        assert victim.refs(name)["HEAD"]
        assert ": unexpected" not in victim.devices[name].log.read_text()  # cluster/ssh.py, _unexpected


def refused(answer: Answer, cluster: Cluster) -> None:
    """One clear line on stderr (and a hint), exit code not 0, nothing on stdout."""
    assert answer.code not in (0, None), answer
    assert answer.out == b""
    first, *more = answer.lines
    assert first.startswith("remote: cluster: error: "), answer
    assert len(more) <= 1
    assert all(
        line.startswith("remote: cluster: ") and len(line) < 300 and line.isascii() for line in answer.lines
    )
    presentable(answer.err, cluster)


# ------------------------------------------------------------------------------------------------- commands

NAMES = [
    b"../../../etc",
    b"team/../../other",
    b"/etc/passwd",
    b"/../team/app",
    b"./team/app",
    b"team/./app",
    b"~root/app",
    b"~/app",
    b"%2e%2e/app",
    b"team%2fapp",
    b"$(touch CANARY)",
    b"`touch CANARY`",
    b"team/app;touch CANARY",
    b"team/app|touch CANARY",
    b"team/app&touch CANARY",
    b"team/app>CANARY",
    b"--upload-pack=touch CANARY",
    b"-u",
    b"--help",
    b"-c core.sshCommand=touch CANARY",
    b"team/app\ntouch CANARY",
    b"team/app\r",
    b"team/app\0",
    b"\0",
    b"team/app\x1b[2J",
    b"team/\xd0\xb0pp",  # a Cyrillic a
    b"team\xe2\x88\x95app",  # a division slash
    b"team/app\xe2\x80\x8b",  # a space of no width
    b"\xe2\x80\xae/app",  # right to left
    b"team/\xff\xfe",  # not UTF-8
    b"team/app.lock",
    b"team/.git/config",
    b"team\\app",
    b"team//app",
    b"team/*",
    b"team/app?x",
    b"team/app#x",
    b"C:\\team",
    b"",
    b" ",
    b"a" * 101,
    b"a/" * 9 + b"a",
    b"a" * 3000,
    b"a" * 100_000,
]

PROGRAMS = ["git-upload-pack '%s'", "git receive-pack '%s'", "git-upload-archive '%s'"]


@pytest.mark.usefixtures("unharmed")
def test_hostile_repository_names(victim: Cluster, user: Login) -> None:
    canary = victim.directory.parent / "canary"
    for number, name in enumerate(NAMES):
        hostile = name.replace(b"CANARY", os.fsencode(canary))
        answer = user.ask(PROGRAMS[number % 3].encode().replace(b"%s", hostile))
        refused(answer, victim)
        assert not canary.exists(), name
    refused(user.ask("git-upload-pack 'team/gone'"), victim)


COMMANDS = [
    b"",
    b" ",
    b"sh",
    b"bash -i",
    b"touch CANARY",
    b"/usr/bin/git-upload-pack 'team/app'",
    b"./git-upload-pack 'team/app'",
    b"git",
    b"git ",
    b"git --exec-path=/tmp upload-pack 'team/app'",
    b"git -c alias.x='!touch CANARY' x",
    b"git init CANARY",
    b"git daemon",
    b"git shell",
    b"git-shell -c 'touch CANARY'",
    b"git  upload-pack 'team/app'",
    b"GIT-UPLOAD-PACK 'team/app'",
    b"git-upload-pack",
    b"git-upload-pack ''",
    b"git-upload-pack 'team/app' 'team/app'",
    b"git-upload-pack --strict 'team/app'",
    b"git-upload-pack '--strict' 'team/app'",
    b"git-receive-pack 'team/app' --stateless-rpc",
    b"git-upload-pack 'team/app",
    b'git-upload-pack "team/app',
    b"git-upload-pack team/app\\",
    b"git-upload-pack 'team/app'; touch CANARY",
    b"git-upload-pack 'team/app' && touch CANARY",
    b"git-upload-pack $(touch CANARY)",
    b"git-upload-pack 'team/app'\ntouch CANARY",
    b"git-upload-pack\t'team/app'",
    b"git-upload-pack 'team/app' > CANARY",
    b"git-upload-pack {team/app,x}",
    b"git-upload-archive 'team/app' --remote=x",
    b"git-http-backend",
    b"scp -t CANARY",
    b"internal-sftp",
    b"exec git-upload-pack 'team/app'",
    b"env GIT_DIR=/tmp git-upload-pack 'team/app'",
    b"\xef\xbc\xa7it-upload-pack 'team/app'",
    b"\0git-upload-pack 'team/app'",
    b"x" * 200_000,
    b"git-upload-pack " + b"'a' " * 10_000,
]


@pytest.mark.usefixtures("unharmed")
def test_hostile_commands(victim: Cluster, user: Login) -> None:
    canary = victim.directory.parent / "canary"
    for command in COMMANDS:
        answer = user.ask(command.replace(b"CANARY", os.fsencode(canary)))
        refused(answer, victim)
        assert answer.code == 2, command
        assert not canary.exists(), command


@pytest.mark.usefixtures("unharmed")
def test_random_bytes_as_commands(victim: Cluster, user: Login) -> None:
    chance = random.Random(4711)
    pieces = [
        b"git-upload-pack ",
        b"git-receive-pack ",
        b"git ",
        b"'",
        b'"',
        b"\\",
        b" ",
        b"team/app",
        b"..",
        b"\xff",
    ]
    for _ in range(200):
        words = [
            chance.choice(pieces) if chance.random() < 0.8 else chance.randbytes(chance.randrange(5))
            for _ in range(chance.randrange(8))
        ]
        answer = user.ask(b"".join(words))
        if answer.code != 0:  # a few of them are right, and end at once with their input
            presentable(answer.err, victim)
            assert answer.code is not None and answer.err


@pytest.mark.usefixtures("unharmed")
def test_openssh_with_hostile_commands(victim: Cluster) -> None:
    """The same by the stock client, as an attacker without tools has it."""
    import subprocess

    port = str(victim.devices["a"].port)
    for command in (
        ";id",
        "$(id)",
        "git-upload-pack '$(id)'",
        "git-upload-pack 'team/app' | sh",
        "-oProxyCommand=id",
    ):
        done = subprocess.run(
            ["ssh", "-F", str(victim.ssh_config), "-p", port, "127.0.0.1", "--", command],
            capture_output=True, stdin=subprocess.DEVNULL, timeout=30,
        )  # fmt: skip
        refused(Answer(done.returncode, done.stdout, done.stderr.decode()), victim)


@pytest.mark.usefixtures("unharmed")
def test_an_interactive_login_is_told_what_this_is(victim: Cluster, user: Login) -> None:
    answer = user.ask(None)
    assert answer.code == 1
    assert answer.out.decode().startswith("Hello demo: you have reached device a of git-cluster")
    assert "no shell" in answer.out.decode()
    assert answer.err == ""


# --------------------------------------------------------------------------------------------------- keys


@pytest.mark.usefixtures("unharmed")
def test_a_device_key_may_fetch_and_nothing_else(victim: Cluster) -> None:
    with login(victim.devices["a"], device_key(victim.devices["b"])) as peer:
        listing = peer.ask("git-upload-pack 'team/app'", b"0000")
        assert listing.code == 0 and b"refs/heads/main" in listing.out
        for command in (
            "git-receive-pack 'team/app'",
            """git-cluster-operator sync '{"repository":"team/app"}'""",
            """git-cluster-operator promote '{"repository":"team/app"}'""",
        ):
            answer = peer.ask(command)
            refused(answer, victim)
            assert "device" in answer.err


@pytest.mark.usefixtures("unharmed")
def test_a_user_key_may_not_act_as_a_device_or_an_operator(victim: Cluster, user: Login) -> None:
    for command in (
        f"git-cluster-stage 'team/app' {UUID} 1",
        f"git-cluster-unstage 'team/app' {UUID}",
        "git-cluster-pack 'team/app'",
        """git-cluster-operator sync '{"repository":"team/app"}'""",
        """git-cluster-operator nonsense '{}'""",
    ):
        answer = user.ask(command, b"0000")
        refused(answer, victim)
        assert "user" in answer.err


def test_a_device_is_served_exactly_what_is_here(victim: Cluster) -> None:
    """Even where that is not the newest: it asked this copy, and a sync on its behalf could go round in circles."""
    repository_id = victim.snapshot().repository.id
    here = victim.checksum("b")
    victim.stop("b")
    work = victim.directory / "work"
    oid = victim.commit(work, "b does not have this")
    victim.ok("push", victim.url("a"), "main", cwd=work)
    # Held back by its own row: no sync by itself for the time of this test.
    for _ in range(12):
        victim.db.sync_failed(repository_id, "b", "held back by a test")
    victim.stop("a")
    victim.start("b")
    try:
        with login(victim.devices["b"], device_key(victim.devices["a"])) as peer:
            answer = peer.ask("git-upload-pack 'team/app'", b"0000")
        assert answer.code == 0, answer
        assert oid.encode() not in answer.out and b"refs/heads/main" in answer.out
        assert victim.checksum("b") == here
        with login(victim.devices["b"], victim.identity) as person:
            answer = person.ask("git-upload-pack 'team/app'", b"0000")
        assert answer.code != 0 and answer.out == b""
        assert "a (offline)" in answer.err
    finally:
        victim.start("a")
    assert victim.refs("b")["HEAD"] == oid
    victim.converge()


STAGE = f"git-cluster-stage 'team/app' {UUID} 1"


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    ("command", "data"),
    [
        (STAGE, pkt_line(b"nonsense") + pkt_line(None)),
        (STAGE, pkt_line(b"0" * 41) + pkt_line(None)),
        (STAGE, pkt_line(b"refs/heads/main") + pkt_line(None)),
        (STAGE, pkt_line(b"a" * 40 + b" refs/heads/x") + pkt_line(None)),
        (STAGE, pkt_line(b"A" * 40) + pkt_line(None)),
        (STAGE, pkt_line(b"\xff" * 40) + pkt_line(None)),
        (STAGE, pkt_line(b"a" * 40) + pkt_line(None) + b"not a pack"),
        (STAGE, pkt_line(b"a" * 40) + pkt_line(None) + b"PACK" + struct.pack(">II", 2, 1 << 30)),
        (STAGE, pkt_line(b"a" * 40) + pkt_line(None) + b"PACK" + struct.pack(">II", 9, 1) + b"x" * 100),
        (STAGE, b"zzzz" + b"\0" * 1000),
        (STAGE, b"zzzz"),
        (STAGE, b""),
        (STAGE, pkt_line(b"a" * 40)),  # a list without an end
        (STAGE, b"fff0" + b"a" * 50),
        (STAGE.replace("team/app", "team/gone"), pkt_line(b"a" * 40) + pkt_line(None)),
        (STAGE.replace("team/app", "../x"), pkt_line(None)),
        (STAGE.replace(UUID, "../../heads/main"), pkt_line(None)),
        (STAGE.replace(UUID, UUID.upper()), pkt_line(None)),
        (STAGE[:-1] + "99999999999999999999", pkt_line(None)),
        (STAGE[:-1] + "-1", pkt_line(None)),
        (f"git-cluster-unstage 'team/gone' {UUID}", b""),
        ("git-cluster-unstage 'team/app' ../../heads/main", b""),
    ],
)
def test_staging_garbage_is_refused(victim: Cluster, command: str, data: bytes) -> None:
    with login(victim.devices["b"], device_key(victim.devices["a"])) as peer:
        refused(peer.ask(command, data), victim)


@pytest.mark.usefixtures("unharmed")
def test_staging_an_object_that_is_not_there_is_incomplete(victim: Cluster) -> None:
    with login(victim.devices["b"], device_key(victim.devices["a"])) as peer:
        answer = peer.ask(STAGE, pkt_line(b"a" * 40) + pkt_line(None))
        assert answer.out == b"incomplete\n"
        assert peer.ask(f"git-cluster-unstage 'team/app' {UUID}").code == 0  # nothing to drop is fine


@pytest.mark.usefixtures("unharmed")
def test_the_id_of_a_push_cannot_be_staged_twice(victim: Cluster) -> None:
    """What is kept for one push is not changed by another that borrows its id."""
    path = victim.disk("b")
    head, tree = (
        victim.ok(f"--git-dir={path}", "rev-parse", what).strip() for what in ("main", "main^{tree}")
    )
    with login(victim.devices["b"], device_key(victim.devices["a"])) as peer:
        assert peer.ask(STAGE, pkt_line(head.encode()) + pkt_line(None)).out == b"kept\n"
        staged = victim.ok(f"--git-dir={path}", "for-each-ref", "refs/cluster/staged/")
        assert head in staged
        refused(peer.ask(STAGE, pkt_line(tree.encode()) + pkt_line(None)), victim)
        assert victim.ok(f"--git-dir={path}", "for-each-ref", "refs/cluster/staged/") == staged
        assert "cluster" not in "".join(victim.refs("b"))
        assert peer.ask(f"git-cluster-unstage 'team/app' {UUID}").code == 0
        assert not victim.ok(f"--git-dir={path}", "for-each-ref", "refs/cluster/staged/")


def test_nobody_pushes_to_the_clusters_own_refs(victim: Cluster) -> None:
    version = victim.version()
    work = victim.directory / "work"
    for ref in ("refs/cluster/staged/x", f"refs/cluster/staged/{UUID}/0", "refs/cluster/lost/x"):
        done = victim.git("push", victim.url("a"), f"main:{ref}", cwd=work)
        assert done.code != 0 and "remote rejected" in done.err, done.text
        presentable(done.err, victim)
    assert victim.version() == version


def test_a_disabled_or_removed_key_is_out_for_the_next_command(victim: Cluster) -> None:
    """Also on a connection that was made before."""
    path = new_user(victim, "mallory")
    fingerprint = keys.read(path.with_name(path.name + ".pub")).fingerprint
    victim.db.grant(Level.WRITE, "mallory", "*")
    with login(victim.devices["a"], path) as connection:
        assert connection.ask("git-upload-pack 'team/app'", b"0000").code == 0
        victim.db.remove_key(fingerprint)
        for command in ("git-upload-pack 'team/app'", "git-receive-pack 'team/app'"):
            answer = connection.ask(command, b"0000")
            refused(answer, victim)
            assert "not registered" in answer.err
    with pytest.raises(paramiko.AuthenticationException), login(victim.devices["a"], path):
        pass
    victim.db.remove_user("mallory")


def test_a_removed_user_is_out_for_the_next_command(victim: Cluster) -> None:
    path = new_user(victim, "trent")
    victim.db.grant(Level.READ, "trent", "*")
    with login(victim.devices["a"], path) as connection:
        assert connection.ask("git-upload-pack 'team/app'", b"0000").code == 0
        victim.db.remove_user("trent")
        refused(connection.ask("git-upload-pack 'team/app'", b"0000"), victim)


def test_a_disabled_device_is_out_for_the_next_command(victim: Cluster) -> None:
    key = device_key(victim.devices["b"])
    with login(victim.devices["a"], key) as connection:
        assert connection.ask("git-upload-pack 'team/app'", b"0000").code == 0
        victim.db.set_device_mode("b", DeviceMode.DISABLED)
        try:
            for command in (
                "git-upload-pack 'team/app'",
                STAGE,
                f"git-cluster-unstage 'team/app' {UUID}",
                "git-cluster-pack 'team/app'",
            ):
                refused(connection.ask(command, b"0000"), victim)
            with pytest.raises(paramiko.AuthenticationException), login(victim.devices["a"], key):
                pass
        finally:
            victim.db.set_device_mode("b", DeviceMode.ENABLED)
        assert connection.ask("git-upload-pack 'team/app'", b"0000").code == 0


def test_an_operators_key_ends_with_its_time(victim: Cluster) -> None:
    path = victim.directory / "operator_ed25519"
    key = keys.parse(write_keypair(path, "operator"))
    command = """git-cluster-operator alive '{"repository":"team/app"}'"""
    with victim.db.operator_key(key.fingerprint, key.line, seconds=3600):
        with login(victim.devices["a"], path) as operator:
            assert b'"result"' in operator.ask(command).out
            refused(operator.ask(STAGE, pkt_line(None)), victim)
            victim.db._write(
                "update key set expires_at = now() - interval '1 second' where fingerprint = %(key)s",
                {"key": key.fingerprint},
            )
            answer = operator.ask(command)
            assert answer.code != 0 and b'"result"' not in answer.out
            refused(answer, victim)
        with pytest.raises(paramiko.AuthenticationException), login(victim.devices["a"], path):
            pass


@pytest.mark.parametrize(
    "arguments",
    ["{}", '{"repository":""}', '{"repository":"../x"}', '{"repository":7}', '{"repository":"team/gone"}'],
)
def test_an_operators_garbage_is_answered(victim: Cluster, arguments: str) -> None:
    path = victim.directory / f"operator_{uuid4().hex}"
    key = keys.parse(write_keypair(path, "operator"))
    with (
        victim.db.operator_key(key.fingerprint, key.line, seconds=60),
        login(victim.devices["a"], path) as operator,
    ):
        for verb in ("sync", "verify", "alive", "resolve", "promote", "set-head", "nonsense"):
            answer = operator.ask(f"git-cluster-operator {verb} '{arguments}'")
            assert answer.code not in (0, None)
            assert b'"error"' in answer.out
            presentable(answer.out.decode() + answer.err, victim)


def test_a_stranger_cannot_tell_a_missing_repository_from_an_unreadable_one(victim: Cluster) -> None:
    path = new_user(victim, "eve")
    try:
        with login(victim.devices["a"], path) as stranger:
            for program in ("git-upload-pack", "git-receive-pack", "git-upload-archive"):
                there = stranger.ask(f"{program} 'team/app'")
                missing = stranger.ask(f"{program} 'team/abc'")
                refused(there, victim)
                assert there.err.replace("team/app", "X") == missing.err.replace("team/abc", "X")
                assert there.code == missing.code
    finally:
        victim.db.remove_user("eve")


def test_who_may_only_read_is_told_so(victim: Cluster) -> None:
    path = new_user(victim, "reader")
    victim.db.grant(Level.READ, "reader", "team/*")
    try:
        with login(victim.devices["a"], path) as reader:
            assert reader.ask("git-upload-pack 'team/app'", b"0000").code == 0
            answer = reader.ask("git-receive-pack 'team/app'")
            refused(answer, victim)
            assert "you may read team/app but not push to it" in answer.err
    finally:
        victim.db.remove_user("reader")


def test_a_key_that_nobody_registered(victim: Cluster) -> None:
    path = victim.directory / "nobody_ed25519"
    write_keypair(path, "nobody")
    with pytest.raises(paramiko.AuthenticationException), login(victim.devices["a"], path):
        pass


# ------------------------------------------------------------------------------------------- the push itself

CAPABILITIES = b"report-status side-band-64k object-format=sha1 agent=hostile"


def command_list(*refs: bytes, new: bytes = b"1" * 40) -> bytes:
    """What a client sends that wants to create `refs`; no pack behind it."""
    first, *more = refs
    return b"".join(
        [
            pkt_line(ZERO.encode() + b" " + new + b" " + first + b"\0 " + CAPABILITIES),
            *(pkt_line(ZERO.encode() + b" " + new + b" " + ref) for ref in more),
        ]
    )


def pack(count: int, body: bytes) -> bytes:
    return b"PACK" + struct.pack(">II", 2, count) + body


BOMB = zlib.compress(b"\0" * (1 << 20))
"""1 MB that came as 1 KB."""

CREATE = command_list(b"refs/heads/evil") + pkt_line(None)

CONVERSATIONS = {
    "random bytes": random.Random(7).randbytes(200_000),
    "letters": b"hello, is this a shell?\n" * 100,
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "length ffff and nothing": b"ffff",
    "length fff0 and a little": b"fff0" + b"x" * 100,
    "length 0003": b"0003",
    "a sign in the length": b"+00a123456" * 10,
    "a list without an end": command_list(b"refs/heads/evil"),
    "half a command": command_list(b"refs/heads/evil")[:60],
    "half a list": command_list(b"refs/heads/a", b"refs/heads/b", b"refs/heads/c")[:-50],
    "no pack": CREATE,
    "no pack but garbage": CREATE + b"garbage" * 1000,
    "a pack of version 9": CREATE + b"PACK" + struct.pack(">II", 9, 1) + b"x" * 100,
    "a pack that claims 2^31 objects": CREATE + pack(1 << 31, b"x" * 1000),
    "half a bomb": CREATE + pack(1, b"\xb0\x80\x80\x80\x80\x01" + BOMB[: len(BOMB) // 2]),
    "a bomb without a checksum": CREATE + pack(1, b"\xb0\x80\x80\x04" + BOMB),
    "a wrong checksum": CREATE + pack(0, b"\0" * 20),
    "an object that is not there": CREATE
    + pack(0, bytes.fromhex("029d08823bd8a8eab510ad6ac75c823cfd3ed31e")),
    "a ref with a path": command_list(b"refs/../../config") + pkt_line(None) + pack(0, b"\0" * 20),
    "a ref that is none": command_list(b"HEAD", b"-x", b"refs/heads/a..b", b"\xff\xff") + pkt_line(None),
    "bad object ids": pkt_line(b"x" * 40 + b" " + b"y" * 40 + b" refs/heads/x\0" + CAPABILITIES)
    + pkt_line(None),
    "the same ref twice": command_list(b"refs/heads/evil", b"refs/heads/evil") + pkt_line(None),
    "shallow nonsense": pkt_line(b"shallow nonsense") + CREATE,
    "a push certificate": pkt_line(b"push-cert\0" + CAPABILITIES)
    + pkt_line(b"certificate version 0.1")
    + pkt_line(None),
    "push options without an end": command_list(b"refs/heads/evil").replace(b"agent=", b"push-options agent=")
    + pkt_line(None)
    + pkt_line(b"x" * 1000) * 20,
}


def advertised(channel: object) -> bytes:
    """Read what receive-pack has to say first, as any client does."""
    out = b""
    while not out.endswith(b"0000"):
        data = channel.recv(65536)  # type: ignore[attr-defined]
        assert data, out
        out += data
    return out


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("what", CONVERSATIONS)
@pytest.mark.parametrize("how", ["to the end", "hang up"])
def test_garbage_in_a_push(victim: Cluster, what: str, how: str) -> None:
    with login(victim.devices["a"], victim.identity) as client:
        channel = client.channel(b"git-receive-pack 'team/app'")
        assert b"refs/heads/main" in advertised(channel)
        try:
            channel.sendall(CONVERSATIONS[what])
        except OSError:
            assert channel.closed  # Git has ended, and nobody reads what comes
        if how == "hang up":
            return
        channel.shutdown_write()
        answer = rest(channel)
        presentable(answer.err, victim)
        presentable(
            answer.out.decode(errors="replace").replace("\0", " ").translate({1: " ", 2: " "}), victim
        )
        assert answer.code is not None
        assert b"ok refs/" not in answer.out, answer
        assert answer.code != 0 or b"ng refs/" in answer.out, answer
        assert answer.err or answer.out, "somebody has to be told something"


def test_many_at_once_that_never_finish(victim: Cluster) -> None:
    """Whoever stops half-way holds nothing that others need (G5), and leaves nothing when he goes."""
    version = victim.version()
    with (
        login(victim.devices["a"], victim.identity) as one,
        login(victim.devices["a"], victim.identity) as two,
    ):
        channels = [each.channel(b"git-receive-pack 'team/app'") for each in (one, two) * 6]
        for channel in channels:
            advertised(channel)
            channel.sendall(CREATE + pack(1, b"\xb0\x80\x80\x04" + BOMB[:100]))
        assert len([each for each in git_processes(victim) if "receive-pack" in each]) >= 12
        work = victim.directory / "work"
        oid = victim.commit(work, "in the middle of it")
        victim.ok("push", victim.url("b"), "main", cwd=work)
        victim.ok("push", victim.url("a"), "main:refs/heads/other", cwd=work)
        assert victim.refs("a")["refs/heads/other"] == oid
    no_git_left(victim)
    assert victim.version() == version + 2
    assert victim.snapshot().intent_owner is None
    victim.converge()


@pytest.mark.usefixtures("unharmed")
def test_garbage_in_a_fetch(victim: Cluster, user: Login) -> None:
    for data in (
        b"\xff" * 5000,
        b"0003",
        b"fff0",
        pkt_line(b"want " + b"1" * 40) + pkt_line(None),
        b"0000" * 10_000,
    ):
        for program in ("git-upload-pack", "git-upload-archive"):
            answer = user.ask(f"{program} 'team/app'", data)
            presentable(answer.err, victim)
            assert answer.code is not None


@pytest.mark.usefixtures("unharmed")
def test_objects_that_no_ref_shows_are_not_for_users(victim: Cluster, user: Login) -> None:
    """A device asks for object ids; a person only for what is advertised."""
    path = victim.disk("a")
    tree = victim.ok(f"--git-dir={path}", "rev-parse", "main^{tree}").strip().encode()
    data = pkt_line(b"want " + tree + b"\n") + pkt_line(None) + pkt_line(b"done\n")
    answer = user.ask("git-upload-pack 'team/app'", data)
    assert answer.code != 0 and b"PACK" not in answer.out
    with login(victim.devices["a"], device_key(victim.devices["b"])) as peer:
        answer = peer.ask("git-upload-pack 'team/app'", data)
        assert answer.code == 0 and b"PACK" in answer.out


def test_the_log_of_a_device_says_who_was_refused(victim: Cluster) -> None:
    log: Path = victim.devices["a"].log
    with login(victim.devices["a"], victim.identity) as client:
        client.ask("git-upload-pack 'team/nowhere'")
    wanted = "repository=team/nowhere actor=demo"
    victim.wait(lambda: wanted in log.read_text(), "a line in the log", 10)
