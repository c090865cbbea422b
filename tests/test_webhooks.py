"""Webhooks, to real receivers: signed, in order, until each change was taken, whatever dies meanwhile."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cluster import delivery as delivering
from cluster.deliver import LEASE
from cluster.delivery import send
from cluster.webhooks import DEADLINE, new_secret
from tests.cluster_fixture import Cluster, Project
from tests.conftest import new_cluster, new_database
from tests.receiver import Receiver, verified

ALLOW = {"webhooks": {"private_addresses": "allow"}}


@pytest.fixture(scope="module")
def devices(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Devices a and b, which may deliver to loopback."""
    with new_database(postgres) as url:
        cluster = new_cluster("built-in", tmp_path_factory.mktemp("devices") / "cluster", url, {}, ALLOW)
        try:
            cluster.set_up(list("ab"))
            for device in "ab":
                cluster.start(device)
            yield cluster
        finally:
            cluster.close()


@pytest.fixture
def app(devices: Cluster, request: pytest.FixtureRequest) -> Project:
    return Project.named(devices, request.node.name)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def add(app: Project, receiver: Receiver) -> tuple[int, str]:
    """The number of a new webhook, and its secret."""
    made = app.cluster.admin_json("webhook", "add", app.name, receiver.url())
    return made["id"], made["secret"]


def listed(app: Project) -> dict[str, Any]:
    found: list[dict[str, Any]] = app.cluster.admin_json("webhook", "list", app.name)
    assert len(found) == 1
    return found[0]


def test_each_change_is_told_in_order_and_signed(devices: Cluster, app: Project, receiver: Receiver) -> None:
    app.pushed("a", "main:before")
    done = devices.admin("webhook", "add", app.name, receiver.url("/hooks/git?x=1"))
    secret = done.out.strip()
    assert done.code == 0 and secret.startswith("whsec_") and len(done.out.splitlines()) == 1
    assert secret not in done.err + devices.admin("webhook", "list").text
    oid = app.git("rev-parse", "HEAD")
    for version in range(2, 6):
        app.pushed("ab"[version % 2], f"main:v{version}")
    receiver.wait_taken([2, 3, 4, 5])
    for delivery in receiver.heard:
        assert verified(delivery, secret)
        assert not verified(delivery, new_secret())
        assert delivery.headers["user-agent"] == "git-cluster"
        assert delivery.headers["content-type"] == "application/json"
        assert delivery.headers["host"] == f"127.0.0.1:{receiver.port}"
        assert delivery.headers[":path"] == "/hooks/git?x=1"
    assert len({delivery.headers["webhook-id"] for delivery in receiver.heard}) == 4
    first = receiver.heard[0].data
    assert first["refs"] == [{"ref": "refs/heads/v2", "old": "0" * 40, "new": oid}]
    assert (first["repository"], first["actor"], first["refs_total"]) == (app.name, "demo", 1)
    positions = [delivery.data["position"] for delivery in receiver.heard]
    assert positions == sorted(set(positions)) and positions[0] > 0
    devices.wait(lambda: listed(app)["delivered"] == 5, "it is noted")
    assert {"attempts": 0, "last_error": None, "last_status": 204}.items() <= listed(app).items()


def test_a_receiver_that_is_down_hears_of_everything_later(app: Project) -> None:
    with Receiver() as gone:
        add(app, gone)
        port = gone.port
    app.pushed("a", "main:one")
    app.cluster.wait(lambda: listed(app)["attempts"] >= 1, "a try failed")
    assert listed(app)["last_error"] == "cannot connect"
    assert "tries failed: cannot connect" in app.cluster.admin("webhook", "list", app.name).out
    app.pushed("b", "main:two")
    with Receiver(port) as back:
        back.wait_taken([1, 2])


def test_a_refusal_is_tried_again_and_nothing_overtakes_it(app: Project, receiver: Receiver) -> None:
    statuses = iter([500, 302, 403, 200, 200, 200])
    receiver.headers["Location"] = receiver.url("/elsewhere")
    receiver.answer = lambda data: next(statuses)
    _, secret = add(app, receiver)
    for name in ("one", "two", "three"):
        app.pushed("a", f"main:{name}")
    receiver.wait_taken([1, 2, 3])
    assert [delivery.data["version"] for delivery in receiver.heard] == [1, 1, 1, 1, 2, 3]
    assert len({delivery.headers["webhook-id"] for delivery in receiver.heard[:4]}) == 1
    assert {delivery.headers[":path"] for delivery in receiver.heard} == {"/hook"}
    assert all(verified(delivery, secret) for delivery in receiver.heard)


def test_gone_disables_and_enabling_goes_on(devices: Cluster, app: Project, receiver: Receiver) -> None:
    receiver.answer = lambda data: 410
    number, _ = add(app, receiver)
    app.pushed("a", "main:one")
    devices.wait(lambda: not listed(app)["enabled"], "it is disabled")
    assert (listed(app)["last_status"], listed(app)["delivered"]) == (410, 0)
    app.pushed("a", "main:two")
    receiver.answer = lambda data: 200
    assert devices.admin("webhook", "enable", str(number)).code == 0
    receiver.wait_taken([1, 2])
    assert devices.admin("webhook", "disable", str(number)).code == 0
    app.pushed("a", "main:three")
    assert devices.admin("webhook", "test", str(number)).out == "the ping was taken: it answered 200\n"
    assert receiver.heard[-1].data["event"] == "ping"
    assert len(receiver.heard) == 4
    assert devices.admin("webhook", "remove", str(number)).code == 0
    assert devices.admin_json("webhook", "list", app.name) == []


def test_receivers_that_hang_or_never_end_hold_nobody_up(app: Project, receiver: Receiver) -> None:
    with Receiver() as hanging, Receiver(endless=True) as endless:
        hanging.answer = lambda data: None
        for each in (hanging, endless, receiver):
            assert app.cluster.admin("webhook", "add", app.name, each.url()).code == 0
        app.pushed("a", "main:one")
        hanging.wait(1)
        app.pushed("a", "main:two")
        receiver.wait_taken([1, 2])
        endless.wait_taken([1, 2])
        assert len(hanging.heard) == 1
        states = app.cluster.admin_json("webhook", "list", app.name)
        for number in [each["id"] for each in states]:
            app.cluster.admin("webhook", "remove", str(number))


def test_two_devices_never_deliver_out_of_order(app: Project, receiver: Receiver) -> None:
    """Pushes to both at once, and a receiver that often says no."""
    chance = random.Random(7)
    receiver.answer = lambda data: 200 if chance.random() < 0.7 else 503
    number, _ = add(app, receiver)

    def nudge() -> None:  # a person who is impatient: back-off is not what is tried here
        while len(receiver.taken) < 12 and not receiver.closed.is_set():
            app.cluster.db.enable_webhook(number)
            receiver.closed.wait(0.3)

    threading.Thread(target=nudge, daemon=True).start()
    for version in range(12):
        app.pushed("ab"[version % 2], f"main:v{version}")
    receiver.wait_taken(list(range(1, 13)))
    due = 1
    for delivery in receiver.heard:
        assert delivery.data["version"] == due
        due += delivery.answered == 200


def test_another_device_goes_on_where_one_died(devices: Cluster, app: Project, receiver: Receiver) -> None:
    first = threading.Event()

    def answer(data: dict[str, Any]) -> int | None:
        if first.is_set():
            return 200
        first.set()
        return None

    receiver.answer = answer
    number, secret = add(app, receiver)
    app.pushed("a", "main:one")
    receiver.wait(1)
    holder = _leased_by(devices, number)
    try:
        devices.stop(holder, how=signal.SIGKILL)
        receiver.wait_taken([1])
        assert _leased_by(devices, number) != holder
        assert receiver.heard[0].headers["webhook-id"] == receiver.heard[1].headers["webhook-id"]
        assert all(verified(delivery, secret) for delivery in receiver.heard)
    finally:
        devices.start(holder)


def _leased_by(cluster: Cluster, number: int) -> str:
    rows = cluster.db._read("select leased_by from webhook where id = %(id)s", {"id": number})
    return str(rows[0]["leased_by"])


def test_private_addresses_are_refused_at_first_and_at_each_delivery(
    devices: Cluster, app: Project, receiver: Receiver, tmp_path: Path
) -> None:
    strict = tmp_path / "strict.toml"
    strict.write_text(devices.config.read_text().partition("[webhooks]")[0])
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0"):
        url = f"http://{host}:{receiver.port}/"
        done = devices.admin("webhook", "add", app.name, url, config=strict)
        assert done.code == 1
        assert "is in a private network, or on this machine" in done.err
        outcome = send(url, new_secret(), "msg_1", b"{}", private=False)
        assert outcome is not None and "is in a private network" in outcome.error
    assert receiver.heard == []
    assert devices.admin_json("webhook", "list", app.name) == []


def test_what_cannot_be_is_said_in_a_line(
    devices: Cluster, app: Project, receiver: Receiver, tmp_path: Path
) -> None:
    bad = tmp_path / "secret"
    bad.write_bytes(b"\xff not a secret")
    number, _ = add(app, receiver)
    for arguments, code, says in [
        (["add", app.name, "ftp://ci.example/"], 2, "'ftp' is not http or https"),
        (["add", app.name, "https://me:hunter2@ci.example/"], 2, "holds no user and no password"),
        (["add", "team/not-there", receiver.url()], 1, "there is no repository team/not-there"),
        (["add", app.name, receiver.url()], 1, "has a webhook to this URL already"),
        (["add", app.name, receiver.url("/2"), "--secret-file", str(bad)], 2, "a signing secret is whsec_"),
        (["add", app.name, receiver.url("/2"), "--secret-file", str(tmp_path)], 2, "Is a directory"),
        (["list", "team/not-there"], 1, "there is no repository team/not-there"),
        (["remove", "99999"], 1, "there is no webhook 99999"),
        (["enable", "99999"], 1, "there is no webhook 99999"),
        (["disable", "99999"], 1, "there is no webhook 99999"),
        (["test", "99999"], 1, "there is no webhook 99999"),
        (["remove", "x"], 2, "x"),
    ]:
        done = devices.admin("webhook", *arguments)
        assert (done.code, says in done.err) == (code, True), (arguments, done.text)
        assert "Traceback" not in done.text and "hunter2" not in done.text
    secret = new_secret()
    (tmp_path / "good").write_text(secret + "\n")
    done = devices.admin(
        "webhook", "add", app.name, receiver.url("/2"), "--secret-file", str(tmp_path / "good")
    )
    assert done.code == 0 and done.out == "" and secret not in done.text
    app.pushed("a", "main")
    second = next(each for each in receiver.wait(2) if each.headers[":path"] == "/2")
    assert verified(second, secret)
    receiver.answer = lambda data: 500
    done = devices.admin("webhook", "test", str(number))
    assert done.code == 1 and "the ping was not taken: it answered 500" in done.err


def test_certificates_are_those_of_the_name_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection goes to an address; name, certificate and Host header are those of the URL."""
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            str(tmp_path / "key"),
            "-out",
            str(tmp_path / "certificate"),
            *name,
        ],
        check=True,
        capture_output=True,
    )
    with Receiver(certificate=(tmp_path / "certificate", tmp_path / "key")) as receiver:
        delivering._tls.cache_clear()
        url = f"https://localhost:{receiver.port}/"
        outcome = send(url, new_secret(), "msg_1", b"{}", private=True)
        assert outcome is not None and "its certificate is not good" in outcome.error
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate"))
        delivering._tls.cache_clear()
        outcome = send(f"https://127.0.0.1:{receiver.port}/", new_secret(), "msg_1", b"{}", private=True)
        assert outcome is not None and "its certificate is not good" in outcome.error
        assert send(url, new_secret(), "msg_1", b"{}", private=True) == delivering.Outcome(204)
        assert receiver.heard[-1].headers["host"] == f"localhost:{receiver.port}"
        delivering._tls.cache_clear()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "the connection ended without an answer of HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the connection ended without an answer of HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 300_000, "the connection ended without an answer of HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nxxx", ""),
        (b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n", "it answered 999"),
    ],
)
def test_answers_that_are_none(answer: bytes, says: str) -> None:
    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            with suppress(OSError):
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        outcome = send(
            f"http://127.0.0.1:{server.getsockname()[1]}/", new_secret(), "msg_1", b"{}", private=True
        )
    assert outcome is not None and outcome.error == says


def test_an_answer_that_drips_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, and the answer never does."""
    assert DEADLINE < LEASE
    monkeypatch.setattr(delivering, "DEADLINE", 1.0)

    def serve() -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while True:
                connection.sendall(b"y")
                done.wait(0.1)

    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        outcome = send(url, new_secret(), "msg_1", b"{}", private=True)
        assert outcome == delivering.Outcome(None, "no whole answer within 1 s")
