"""What the server holds every request to, whatever application answers: here one that tells what it got."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from cluster.config import Address, HttpSection
from cluster.http import guard
from cluster.http.server import HttpServer

PATIENCE = 30.0


async def tell(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what it was asked, once it has the body; or misbehaves as the path says."""
    body, more = b"", True
    while more and "unread" not in scope["path"]:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client has gone")
        body, more = body + message["body"], message["more_body"]
    headers: list[tuple[bytes, bytes]] = [(b"content-type", b"text/plain")]
    if "framed" in scope["path"]:
        headers = [
            (b"Content-Security-Policy", b"frame-ancestors 'self'"),
            (b"Referrer-Policy", b"no-referrer"),
        ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if "broken" in scope["path"]:
        raise ValueError("unforeseen")
    if "endless" in scope["path"]:
        while True:
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
            await asyncio.sleep(0)
    said = {"path": scope["path"], "client": scope["client"][0], "scheme": scope["scheme"], "body": len(body)}
    await send({"type": "http.response.body", "body": json.dumps(said).encode(), "more_body": False})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Of a server that trusts whom it is reached from."""
    section = HttpSection(
        Address("127.0.0.1", 0), trusted_proxies=("127.0.0.1/32", "10.0.0.0/8"), connections=20
    )
    server = HttpServer(section, tell, grace=2.0, finish=1.0)
    bound = server.start()
    yield f"http://127.0.0.1:{bound.port}"
    server.stop_accepting()
    server.close(10.0)


def dial(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), PATIENCE)


def test_an_answer_does_not_wait_for_an_acknowledgement() -> None:
    """Of its first piece, which some systems delay by 40 ms: as the kernel has it of the accepted socket."""
    server = HttpServer(HttpSection(Address("127.0.0.1", 0)), tell, grace=2.0, finish=1.0)
    bound = server.start()
    with httpx.Client() as client:
        assert client.get(f"http://127.0.0.1:{bound.port}/").status_code == 200
        (connection,) = server._server.server_state.connections
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    server.stop_accepting()
    server.close(10.0)


def test_headers_of_security_are_on_every_answer(url: str) -> None:
    for path in ("/", "/-/x", "/x/y"):
        headers = httpx.get(url + path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["content-security-policy"] == "frame-ancestors 'none'"
        assert "server" not in headers
    headers = httpx.get(f"{url}/framed").headers
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"] == "frame-ancestors 'self'"


@pytest.mark.parametrize("path", ["/-/x", "/-/unread"])
def test_a_body_of_ours_has_a_size(url: str, path: str) -> None:
    most = guard.MOST_BODY
    assert httpx.post(url + path, content=bytes(most)).status_code == 200
    if path == "/-/unread":
        return
    answer = httpx.post(url + path, content=bytes(most + 1))
    assert answer.status_code == 413 and "more than 1 MiB" in answer.text
    answer = httpx.post(url + path, content=iter([bytes(most), b"x"]))
    assert answer.status_code == 413
    assert httpx.post(f"{url}/other", content=bytes(2 * most)).json()["body"] == 2 * most


def test_a_body_of_ours_has_a_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_TIME", 0.5)
    with dial(url) as sock:
        sock.sendall(b"POST /-/x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        deadline, answer = time.monotonic() + PATIENCE, b""
        sock.settimeout(0.1)
        while not answer and time.monotonic() < deadline:  # a byte now and then does not help
            sock.sendall(b"x")
            with suppress(TimeoutError):
                answer = sock.recv(10_000)
        while b"seconds" not in answer and time.monotonic() < deadline:  # its words may come by themselves
            with suppress(TimeoutError):
                answer += sock.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"within 0.5 seconds" in answer


def test_an_answer_of_ours_that_nobody_takes(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "TAKE_TIME", 0.5)
    with dial(url) as sock:
        sock.sendall(b"GET /-/endless HTTP/1.1\r\nHost: x\r\n\r\n")
        deadline = time.monotonic() + PATIENCE
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            while time.monotonic() < deadline:
                sock.send(b"x")
                time.sleep(0.05)


def test_what_nobody_foresaw_is_half_an_answer(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{url}/broken")
    assert sum("unexpected" in record.getMessage() for record in caplog.records) == 1
    assert httpx.get(f"{url}/x").status_code == 200


def test_whoever_leaves_is_worth_no_line(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for path in ("/x", "/-/x"):
        with dial(url) as sock:
            sock.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc".encode())
    assert httpx.get(f"{url}/x").status_code == 200
    assert not [record for record in caplog.records if record.exc_info]


def test_forwarded(url: str) -> None:
    told = httpx.get(
        url, headers=[("X-Forwarded-For", "192.0.2.1, 10.0.0.1"), ("X-Forwarded-Proto", "http, https")]
    ).json()
    assert (told["client"], told["scheme"]) == ("192.0.2.1", "https")
    told = httpx.get(url, headers={"X-Forwarded-For": "x" * 5000, "X-Forwarded-Proto": "gopher"}).json()
    assert (told["client"], told["scheme"]) == ("127.0.0.1", "http")


def test_one_that_is_idle_leaves_where_there_are_too_many(url: str) -> None:
    """Of those that have said the least, the one that came first; one that has asked for something stays longest."""
    with httpx.Client() as client:
        assert client.get(f"{url}/x").status_code == 200
        idle = [dial(url) for _ in range(40)]
        assert client.get(f"{url}/x").status_code == 200
        ended = 0
        for sock in idle[:20]:
            with suppress(ConnectionResetError):
                assert sock.recv(1) == b""
            ended += 1
        assert ended == 20
        for sock in idle:
            sock.close()


def test_a_stop_ends_what_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """Without a traceback."""
    server = HttpServer(HttpSection(Address("127.0.0.1", 0)), tell, grace=2.0, finish=1.0)
    url = f"http://127.0.0.1:{server.start().port}"
    taken = threading.Event()

    def take() -> None:
        with suppress(httpx.HTTPError), httpx.stream("GET", f"{url}/endless") as answer:
            for _ in answer.iter_raw():
                taken.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    assert taken.wait(PATIENCE)
    server.stop_accepting()
    server.close(PATIENCE)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert not [record for record in caplog.records if record.exc_info]
