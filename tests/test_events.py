"""The stream of events, heard with curl: order, resuming, rights, and ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from cluster import tokens
from cluster.config import Address, load
from cluster.db import Database
from cluster.http import events
from cluster.http.app import App
from cluster.http.server import HttpServer
from cluster.http.site import open_site
from cluster.loopback import USER
from cluster.model import Level
from cluster.opening import open_node
from cluster.requests import Requests
from tests.cluster_fixture import Cluster, Project
from tests.listening import Listening
from tests.ssh_fixture import until

HTTP = True


def make_token(db: Database, user: str = USER) -> str:
    secret = tokens.new()
    digest = tokens.digest(secret)
    assert digest is not None
    db.add_token(user, digest, read_only=True)
    return secret


@pytest.fixture(scope="module")
def token(devices: Cluster) -> str:
    return make_token(devices.db)


@pytest.fixture
def stranger(devices: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A user who may nothing yet, named after the test."""
    name = request.node.name.removeprefix("test_")[:60].replace("_", "-")
    devices.db.add_user(name)
    yield name
    devices.db.remove_user(name)


def base(cluster: Cluster, device: str = "a") -> str:
    url = cluster.devices[device].http_url
    assert url
    return url


def test_a_push_is_heard_of_on_every_device(devices: Cluster, app: Project, token: str) -> None:
    with (
        Listening(base(devices, "a"), token, repository=app.name) as a,
        Listening(base(devices, "b"), token, repository="team/*") as b,
        Listening(base(devices, "c"), token) as c,
    ):
        oid = app.git("rev-parse", "HEAD")
        app.pushed("a", "main")
        app.pushed("b", "main:refs/heads/second")
        for listening in (a, b, c):
            first, second = listening.wait(2)
            assert first.id < second.id
            assert first.id == first.data["position"]
            assert first.data["repository"] == app.name
            assert (first.data["version"], second.data["version"]) == (1, 2)
            assert (first.data["actor"], first.data["device"], first.data["via"]) == (USER, "a", "ssh")
            assert first.data["refs"] == [{"ref": "refs/heads/main", "old": "0" * 40, "new": oid}]
            assert first.data["refs_total"] == 1
            logged = devices.admin_json("log", app.name)[-1]
            assert {**logged, "events": None} == {**logged, **_only(first.data, logged), "events": None}
        assert a.heard == b.heard == c.heard
        assert "content-type: text/event-stream; charset=utf-8" in [line.lower() for line in a.head]


def _only(data: dict[str, object], like: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in data.items() if key in like}


def test_who_resumes_hears_of_what_came_meanwhile(devices: Cluster, app: Project, token: str) -> None:
    app.pushed("a", "main:one")
    with Listening(base(devices), token, repository=app.name, after=0) as listening:
        seen = listening.wait(1)[0].id
    for name in ("two", "three"):
        app.pushed("b", f"main:{name}")
    with Listening(base(devices, "c"), token, last=seen, repository=app.name, after=0) as again:
        assert [version for _, version in again.versions[:2]] != [1]
        assert [each.data["version"] for each in again.wait(2)] == [2, 3]
        app.pushed("a", "main:four")
        assert [each.data["version"] for each in again.wait(3)] == [2, 3, 4]


def test_from_now_on_means_what_comes_after_the_answer(devices: Cluster, app: Project, token: str) -> None:
    app.pushed("a", "main:one")
    with Listening(base(devices), token, repository=app.name) as listening:
        begun = listening.position
        assert begun is not None
        app.pushed("a", "main:two")
        assert [each.data["version"] for each in listening.wait(1)] == [2]
    with Listening(base(devices), token, repository=app.name, after=begun) as again:
        assert [each.data["version"] for each in again.wait(1)] == [2]


def test_only_what_may_be_read_is_heard_of(devices: Cluster, app: Project, stranger: str) -> None:
    other = Project.named(devices, app.name + "-other")
    secret = make_token(devices.db, stranger)
    devices.db.grant(Level.READ, stranger, other.name)
    with (
        Listening(base(devices), secret) as theirs,
        Listening(base(devices)) as nobody,
        Listening(base(devices), secret, after=0) as history,
    ):
        app.pushed("a", "main")
        other.pushed("a", "main")
        assert [each.data["repository"] for each in theirs.wait(1)] == [other.name]
        devices.db.revoke(stranger, other.name)
        other.pushed("a", "main:more")
        devices.db.grant(Level.READ, stranger, app.name)
        app.pushed("a", "main:more")
        assert theirs.wait(2)[1].data["repository"] == app.name
        assert theirs.versions == [(other.name, 1), (app.name, 2)]
        devices.db.grant(Level.WRITE, None, other.name)  # more than anybody without a name may
        other.pushed("a", "main:even-more")
        assert [each.data["version"] for each in nobody.wait(1)] == [3]
        assert {name for name, _ in history.versions} <= {other.name, app.name}
        devices.db.revoke(None, other.name)


def test_a_token_that_ends_ends_its_streams(devices: Cluster, app: Project, stranger: str) -> None:
    secret = make_token(devices.db, stranger)
    devices.db.grant(Level.READ, stranger, app.name)
    with Listening(base(devices), secret) as listening:
        app.pushed("a", "main")
        listening.wait(1)
        devices.db.remove_token(devices.db.tokens(stranger)[0].id)
        app.pushed("a", "main:more")
        until(listening.ended.is_set, "the stream has ended", 20)
        assert listening.comments[-1] == "this token has ended"
        assert len(listening.heard) == 1
    with Listening(base(devices), secret) as again:
        assert again.head[0].split()[1] == "401"


@pytest.mark.parametrize(
    ("asked", "status", "says"),
    [
        ({"after": "-1"}, 400, "'-1' is no position of an event"),
        ({"after": "1e3"}, 400, "is no position"),
        ({"after": "9" * 30}, 400, "is no position"),
        ({"after": "²"}, 400, "is no position"),
        ({"after": "999999999999"}, 409, "position 999999999999 is ahead of the newest"),
        ({"repository": "../etc"}, 400, ""),
        ({"repository": ""}, 400, ""),
        ({"repository": "team/not-there"}, 404, "there is no repository team/not-there here, or you may not"),
        ({"since": "1"}, 400, "there is no parameter 'since' of events"),
    ],
)
def test_nonsense_is_refused_in_words(
    devices: Cluster, token: str, asked: dict[str, str], status: int, says: str
) -> None:
    with Listening(base(devices), token, **asked) as listening:
        until(listening.ended.is_set, "it has ended")
        assert listening.head[0].split()[1] == str(status)
        assert says in listening.comments[0] + " ".join(listening.comments[1:])
        assert "Traceback" not in " ".join(listening.comments)


def test_a_push_of_many_refs_tells_of_some(devices: Cluster, app: Project, token: str) -> None:
    oid = app.git("rev-parse", "HEAD")
    (app.work / ".git" / "packed-refs").write_text(
        "".join(f"{oid} refs/tags/t{number:05d}\n" for number in range(1500))
    )
    with Listening(base(devices), token, repository=app.name) as listening:
        app.pushed("a", "main", "refs/tags/*:refs/tags/*")
        change = listening.wait(1)[0].data
        assert change["refs_total"] == 1501
        assert len(change["refs"]) == 1000
        assert change["refs"][0]["ref"] == "refs/heads/main"


def test_the_database_may_go_away_meanwhile(devices: Cluster, app: Project, token: str) -> None:
    with Listening(base(devices), token, repository=app.name) as listening:
        app.pushed("a", "main:one")
        listening.wait(1)
        with psycopg.connect(devices.database, autocommit=True) as connection:
            connection.execute(
                """select pg_terminate_backend(pid) from pg_stat_activity
                    where datname = current_database() and pid <> pg_backend_pid()"""
            )
        app.cluster.wait(lambda: app.push("a", "main:two").code == 0, "a push passes again")
        assert [each.data["version"] for each in listening.wait(2)] == [1, 2]
        assert not listening.ended.is_set()


def test_the_script_of_the_documentation_runs(
    devices: Cluster, app: Project, token: str, tmp_path: Path
) -> None:
    text = (Path(__file__).parent.parent / "docs" / "events.md").read_text()
    script = text.partition("```sh\n")[2].partition("```")[0]
    script = script.replace("https://git.example", base(devices)).replace("team/*", app.name)
    (tmp_path / "ci.sh").write_text(script)
    (tmp_path / "build").write_text('#!/bin/sh\necho "$1" >>built\n')
    (tmp_path / "build").chmod(0o755)

    def built() -> list[int]:
        lines = (tmp_path / "built").read_text().splitlines() if (tmp_path / "built").exists() else []
        return [json.loads(line)["version"] for line in lines]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["sh", "ci.sh"], cwd=tmp_path, env={**os.environ, "TOKEN": token}, start_new_session=True
        )

    def run(ready: Callable[[], object], push: str, version: int) -> None:
        ci = start()
        try:
            until(ready, "it listens")
            if push:
                app.pushed("a", push)
            until(lambda: built()[-1:] == [version], "it was built")
        finally:
            os.killpg(ci.pid, signal.SIGKILL)
            ci.wait()

    position = tmp_path / "position"
    run(lambda: position.exists() and position.read_text(), "main:v1", 1)
    app.pushed("b", "main:v2")  # while nobody listens
    run(lambda: built()[-1:] == [2], "main:v3", 3)
    app.pushed("b", "main:v4")
    run(lambda: True, "", 4)
    assert sorted(set(built())) == [1, 2, 3, 4]


def connected(cluster: Cluster, token: str, query: str = "") -> socket.socket:
    """A stream as bare bytes."""
    port = cluster.devices["a"].http_port
    assert port
    stream = socket.create_connection(("127.0.0.1", port), 30)
    stream.sendall(
        f"GET /-/api/v1/events{query} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    )
    return stream


def read_until(stream: socket.socket, text: bytes) -> bytes:
    found = b""
    while text not in found:
        more = stream.recv(65536)
        assert more, found
        found += more
    return found


def threads(cluster: Cluster) -> int:
    status = Path(f"/proc/{cluster.devices['a'].pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("Threads:")).split()[1])


def test_a_thousand_listeners_cost_no_thread_and_no_connection_each(
    devices: Cluster, app: Project, token: str
) -> None:
    def connections() -> int:
        rows = devices.db._read(
            "select count(*) as n from pg_stat_activity where application_name like 'git-cluster%%' "
            "and application_name not like '%% b' and application_name not like '%% c'"
        )
        return int(rows[0]["n"])

    before = threads(devices)
    with ExitStack() as stack:
        streams = [
            stack.enter_context(connected(devices, token, f"?repository={app.name}")) for _ in range(1000)
        ]
        for stream in streams:
            read_until(stream, b"\nid: ")
        during = threads(devices), connections()
        app.pushed("b", "main")
        for stream in streams:
            read_until(stream, b'"version": 1,')
        assert during[0] <= before + 40, "the threads that ask the database, sixteen for each purpose"
        assert during[1] <= 20
    with Listening(base(devices), token, repository=app.name) as listening:
        app.pushed("b", "main:more")
        assert [each.data["version"] for each in listening.wait(1)] == [2]


def fill(cluster: Cluster, app: Project, versions: int) -> None:
    """So many changes in the log, of a quarter of a megabyte each."""
    id = cluster.snapshot(app.name).repository.id
    with psycopg.connect(cluster.database) as connection:
        for version in range(1, versions + 1):
            connection.execute(
                """insert into push (repository_id, version, checksum, push_id, actor, device, via)
                   values (%s, %s, decode(repeat('00', 128), 'hex'), gen_random_uuid(), 'ann', 'a', 'ssh')""",
                (id, version),
            )
            connection.execute(
                """insert into push_ref (repository_id, version, ref, old, new)
                   select %s, %s, 'refs/tags/' || n || repeat('x', 180), repeat('0', 40), repeat('1', 40)
                     from generate_series(1, 900) n""",
                (id, version),
            )
            connection.execute("select pg_notify('git_cluster', '')")
            connection.commit()


def test_who_reads_nothing_holds_up_nobody_and_loses_nothing(
    devices: Cluster, app: Project, token: str
) -> None:
    """Fifteen megabytes of events for somebody who reads none of it at first; then all of it, in order."""
    rounds = 60
    with connected(devices, token, f"?repository={app.name}") as lazy:
        read_until(lazy, b"\nid: ")
        with Listening(base(devices), token, repository=app.name) as listening:
            fill(devices, app, rounds)
            assert [each.data["version"] for each in listening.wait(rounds)] == list(range(1, rounds + 1))
        found = bytearray()
        while f'"version": {rounds},'.encode() not in found[-(1 << 20) :]:
            more = lazy.recv(1 << 20)
            assert more, "it was not hung up on"
            found += more
    versions = [int(each) for each in re.findall(rb'"version": (\d+),', found)]
    assert versions == list(range(1, rounds + 1))


def test_who_takes_nothing_for_long_is_hung_up_on(
    devices: Cluster, app: Project, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint of its own on the database of the others, with less patience."""
    monkeypatch.setattr(events, "STALLED", 0.5)
    monkeypatch.setattr(events, "HEARTBEAT", 0.2)
    config = load(devices.devices["a"].config, {})
    assert config.http is not None
    node = open_node(config, {})
    site = open_site(node, Requests(node), config.http)
    server = HttpServer(replace(config.http, listen=Address("127.0.0.1", 0)), App(site), grace=5, finish=1.0)
    fill(devices, app, 60)
    try:
        port = server.start().port
        with socket.create_connection(("127.0.0.1", port), 30) as lazy:
            lazy.sendall(
                b"GET /-/api/v1/events?after=0&repository=%s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\n\r\n"
                % (app.name.encode(), token.encode())
            )
            until(lambda: lazy.recv(1, socket.MSG_PEEK) and not streaming(), "it was hung up on")
            found = bytearray()
            with suppress(ConnectionResetError):
                while more := lazy.recv(1 << 20):
                    found += more
        assert 0 < found.count(b"event: push") < 60
        with Listening(f"http://127.0.0.1:{port}", token, repository=app.name) as listening:
            until(lambda: len(listening.comments) == 0 and listening.beats >= 2, "its heart beats")
            site.stopping.set()
            node.bell.ring()
            until(listening.ended.is_set, "the stream has ended")
    finally:
        server.stop_accepting()
        server.close(5)
        node.peers.close()
        node.db.close()


def streaming() -> bool:
    return any(thread.name == "events" for thread in threading.enumerate())


def test_streams_end_with_the_device_and_lose_nothing_where_it_is_killed(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("ab")
    app = Project.named(cluster, "test_killed")
    secret = make_token(cluster.db)
    with Listening(base(cluster, "a"), secret) as first:
        app.pushed("b", "main:v1")
        first.wait(1)
        cluster.stop("a", how=signal.SIGKILL)
        until(first.ended.is_set, "the stream has ended")
    heard = list(first.heard)
    for version in (2, 3):
        app.pushed("b", f"main:v{version}")
    with Listening(base(cluster, "b"), secret, last=heard[-1].id) as second:
        app.pushed("b", "main:v4")
        heard += second.wait(3)
        cluster.stop("b")
        until(second.ended.is_set, "the stream has ended")
        assert second.comments == ["this device is about to stop"]
        assert second.process.wait(10) == 0, "a whole answer, not one that was cut"
    assert [each.data["version"] for each in heard] == [1, 2, 3, 4]
    assert [each.id for each in heard] == sorted({each.id for each in heard})
