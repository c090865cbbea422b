"""Clients of HTTP that mean harm: answered in words where that can be, and the daemon is afterwards as it was before.

The model is test_hostile_clients.py. What Git says is in test_http_git.py; here is what no client of Git's would send.
"""

from __future__ import annotations

import gzip
import os
import re
import socket
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import paramiko  # type: ignore[import-untyped,unused-ignore]
import pytest
from dulwich.protocol import pkt_line

from cluster.loopback import LoopbackDevice
from tests.conftest import new_database
from tests.endpoint_fixture import Counts, Endpoint
from tests.http_fixture import HttpCluster
from tests.probes import PATIENCE, no_git_left, presentable

CONNECTIONS = 60
"""[http] connections of the device that is harassed."""

GRACE = 2
"""Seconds for a request's first lines there."""

IDLE = 6
"""Seconds after which a session there in which nothing passes ends."""

LISTING = "/team/app/info/refs?service=git-upload-pack"
MOST_GROWTH = 30_000
"""KiB that the daemon may grow by in one test."""


class Answer:
    """What came back on a connection until it ended, or was whole."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        head, _, self.body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1]) if first.startswith("HTTP/1.1 ") else 0
        self.headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }


class Victim(Endpoint):
    """Device a of one cluster, by bare sockets."""

    def dial(self, room: int = 0) -> socket.socket:
        """room: bytes that our side takes in before somebody reads them; 0: as many as usual."""
        port = self.cluster.devices[self.device].http_port
        assert port
        sock = socket.socket()
        if room:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        sock.settimeout(PATIENCE)
        sock.connect((self.host, port))
        return sock

    @property
    def authorized(self) -> bytes:
        assert isinstance(self.cluster, HttpCluster)
        return f"Authorization: Bearer {self.cluster.token}\r\n".encode()

    def get(self, path: str = LISTING, method: str = "GET") -> bytes:
        return f"{method} {path} HTTP/1.1\r\nHost: x\r\n".encode() + self.authorized

    def post(self, program: str, *headers: str, repository: str = "team/app") -> bytes:
        kind = f"Content-Type: application/x-{program}-request"
        more = "".join(f"{header}\r\n" for header in (kind, *headers))
        return self.get(f"/{repository}/{program}", "POST") + more.encode() + b"\r\n"

    def ask(self, *pieces: bytes, end: bool = False) -> Answer:
        """Send, and take what comes until the other side ends it; end: end ours first."""
        with self.dial() as sock:
            with suppress(OSError):  # who refuses does not read
                for piece in pieces:
                    sock.sendall(piece)
                if end:
                    sock.shutdown(socket.SHUT_WR)
            return Answer(until_the_end(sock))

    def memory(self) -> int:
        """KiB of the daemon, now."""
        found = re.search(r"^VmRSS:\s*(\d+)", self._status(), re.MULTILINE)
        assert found
        return int(found[1])

    def _status(self) -> str:
        return Path(f"/proc/{self.cluster.devices[self.device].pid}/status").read_text()

    def serves(self) -> None:
        answer = self.ask(self.get() + b"Connection: close\r\n\r\n")
        assert answer.status == 200 and b"refs/heads/main" in answer.body, answer.data


def until_the_end(sock: socket.socket) -> bytes:
    data = b""
    with suppress(ConnectionError):
        while more := sock.recv(1 << 16):
            data += more
    return data


@pytest.fixture(scope="module")
def endpoint(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with new_database(postgres) as url:
        sections: dict[str, dict[str, str | int]] = {
            "limits": {"login_grace": f"{GRACE}s", "idle_timeout": f"{IDLE}s", "failed_logins": 1_000_000}
        }

        class Small(HttpCluster):
            def http_section(self, device: LoopbackDevice) -> str:
                return super().http_section(device) + f"connections = {CONNECTIONS}\n"

        cluster = Small(tmp_path_factory.mktemp("victim") / "cluster", url, {}, sections)
        try:
            cluster.set_up(["a"])
            cluster.start("a")
            cluster.create("team/app")
            work = cluster.work()
            (work / "big").write_bytes(os.urandom(12_000_000))
            cluster.commit(work, "big")
            cluster.ok("push", cluster.url("a"), "main", cwd=work)
            cluster.ok(
                f"--git-dir={cluster.disk('a')}", "repack", "-adq"
            )  # so that a clone costs next to nothing
            device = cluster.devices["a"]
            key = (device.directory / "host_ed25519.pub").read_text()
            victim = Victim("http", cluster, "a", device.host, device.port, key, cluster.identity)
            for _ in range(4):  # all of its threads and connections to the database have been there once
                with ExitStack() as stack:
                    for _ in range(12):
                        sock = stack.enter_context(victim.dial())
                        sock.sendall(victim.post("git-receive-pack", "Content-Length: 100"))
            no_git_left(cluster)
            yield victim
        finally:
            cluster.close()


@pytest.fixture(autouse=True)
def unmoved(endpoint: Victim) -> Iterator[None]:
    """Afterwards: no version, no Git, no more descriptors and processes than before, little more memory, as quick; no
    traceback in the log."""
    cluster = endpoint.cluster
    no_git_left(cluster)
    cluster.wait(lambda: endpoint.counts().children == 0, "nothing runs")
    before, memory, version, since = (
        endpoint.counts(),
        endpoint.memory(),
        cluster.version(),
        len(endpoint.log()),
    )
    allowed = Counts(before.threads + 30, before.descriptors, before.children)  # anyio keeps threads for 10 s
    begun = time.monotonic()
    endpoint.serves()
    usual = time.monotonic() - begun
    yield
    no_git_left(cluster)

    def as_before() -> bool:
        begun = time.monotonic()
        endpoint.serves()  # which is when threads that have been idle for a while end
        return time.monotonic() - begun < 2 * usual + 0.5 and endpoint.counts().within(allowed)

    cluster.wait(as_before, f"as few as {allowed}, and as quick")
    assert endpoint.memory() - memory < MOST_GROWTH
    assert cluster.version() == version and cluster.snapshot().intent_owner is None
    log = endpoint.log()[since:]
    assert "Traceback" not in log and ": unexpected" not in log, log


def in_words(answer: Answer, status: int, endpoint: Victim) -> None:
    assert answer.status == status, answer.data[:500]
    text = answer.body.decode()
    assert "cluster: error: " in text
    presentable(text.replace("\r", ""), endpoint.cluster)
    assert answer.headers["x-content-type-options"] == "nosniff"


# --------------------------------------------------------------------------------------------- what is no HTTP

RUBBISH: dict[str, tuple[bytes, int]] = {
    "bytes": (os.urandom(3000).replace(b"\n", b"x") + b"\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n", 400),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /team/app\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/3.7": (b"GET / HTTP/3.7\r\nHost: x\r\n\r\n", 505),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    "a NUL": (b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a NUL in a header": (b"GET / HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n", 400),
    "a space in a header's name": (b"GET / HTTP/1.1\r\nHost: x\r\nA b: c\r\n\r\n", 400),
    "a space before a colon": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\nabc", 400),
    "bytes beyond ASCII": ("GET /é HTTP/1.1\r\nHost: x\r\n\r\n".encode(), 400),
    "a long line": (b"GET /" + b"a" * 200_000, 431),
    "a long header": (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 1_000_000, 431),
    "10,000 headers": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n", 431),
    "300 headers": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 300 + b"\r\n", 431),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
    "a length below zero": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\nabcd", 400),
    "a length and chunks": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        b"GET /-/smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        400,
    ),
    "chunks over HTTP/1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "an encoding": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "TRACE": (b"TRACE / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
    "CONNECT": (b"CONNECT example.com:80 HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    "a method": (b"BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    "no path": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "an address": (b"GET ftp://x/y HTTP/1.1\r\nHost: x\r\n\r\n", 400),
}


@pytest.mark.parametrize("what", RUBBISH)
def test_what_is_no_request(endpoint: Victim, what: str) -> None:
    data, status = RUBBISH[what]
    answer = endpoint.ask(data)
    in_words(answer, status, endpoint)
    assert answer.data.count(b"HTTP/1.1 ") == 1


def test_a_flood_of_rubbish_is_a_few_lines(endpoint: Victim) -> None:
    since = len(endpoint.log())
    for _ in range(100):
        endpoint.ask(b"\0\r\n\r\n")
    assert len(endpoint.lines("no HTTP/1.1", since)) <= 3
    assert not re.search("uvicorn|Invalid HTTP|h11", endpoint.log()[since:])


PATHS = [
    "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd/info/refs?service=git-upload-pack", "/%", "/%zz", "/%00", "/%c0%af",
    "/team/app%00.git/info/refs?service=git-upload-pack", "/team//app/info/refs?service=git-upload-pack", "//",
    "/-/../team/app", "/-/%2e%2e/x", "/" + "a/" * 5000, "/team/app/info/refs?service=" + "x" * 10_000,
    "/-/archive/x.zip",
    "/team/app/-/archive/%2e%2e%2f%2e%2e.zip", "/team/app/git-upload-pack/x", "/team/app/-/", "/%ff%fe", "/?%00=%ff",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_paths(endpoint: Victim, path: str) -> None:
    answer = endpoint.ask(endpoint.get(path) + b"Connection: close\r\n\r\n")
    assert 300 <= answer.status < 500, answer.data
    presentable(answer.body.decode(), endpoint.cluster)
    assert "frame-ancestors" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"]


def test_a_whole_address_is_a_path(endpoint: Victim) -> None:
    answer = endpoint.ask(endpoint.get(f"http://a.example{LISTING}") + b"Connection: close\r\n\r\n")
    assert answer.status == 200 and b"refs/heads/main" in answer.body
    answer = endpoint.ask(endpoint.get("http://a.example") + b"Connection: close\r\n\r\n")
    assert answer.status == 302 and answer.headers["location"] == "/-/"


def test_one_after_the_other_without_waiting(endpoint: Victim) -> None:
    one = endpoint.get() + b"\r\n"
    answer = endpoint.ask(one * 20 + endpoint.get() + b"Connection: close\r\n\r\n")
    assert answer.data.count(b"HTTP/1.1 200") == 21


def test_a_websocket(endpoint: Victim) -> None:
    upgrade = b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    assert endpoint.ask(endpoint.get() + upgrade + key).status == 200


def test_100_continue(endpoint: Victim) -> None:
    with endpoint.dial() as sock:
        sock.sendall(endpoint.post("git-upload-pack", "Content-Length: 4", "Expect: 100-continue"))
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"0000")
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
    refused = endpoint.post(
        "git-upload-pack", "Content-Length: 4", "Expect: 100-continue", "Connection: close"
    )
    answer = endpoint.ask(refused.replace(endpoint.authorized, b"Authorization: Bearer x\r\n"))
    assert answer.status == 401


def test_each_protocol_at_the_others_port(endpoint: Victim) -> None:
    device = endpoint.cluster.devices["a"]
    with pytest.raises(paramiko.SSHException), endpoint.dial() as sock:
        paramiko.Transport(sock).start_client(timeout=PATIENCE)
    with socket.create_connection((device.host, device.port), PATIENCE) as sock:
        sock.sendall(endpoint.get() + b"\r\n")
        assert until_the_end(sock).startswith(b"SSH-2.0")
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLError), endpoint.dial() as sock:
        context.wrap_socket(sock, server_hostname="x")


# -------------------------------------------------------------------------------------------------------- bodies


def test_gzip_that_means_much_more(endpoint: Victim) -> None:
    """1 GiB of zeros in 1 MiB, to all that takes a body and to what takes none."""
    before = endpoint.memory()
    packer = zlib.compressobj(9, wbits=31)
    zeros = bytes(1 << 20)
    bomb = b"".join([*(packer.compress(zeros) for _ in range(1024)), packer.flush()])
    packet = gzip.compress(pkt_line(b"want " + b"0" * 40 + b"\n"))  # then the bomb: two members
    for program in ("git-upload-pack", "git-receive-pack", "git-upload-archive"):
        for body in (bomb, packet + bomb):
            headers = ("Content-Encoding: gzip", f"Content-Length: {len(body)}", "Connection: close")
            answer = endpoint.ask(endpoint.post(program, *headers), body)
            assert 200 <= answer.status < 500, answer.data[:300]
    for path in (LISTING, "/-/nothing", "/", "/team/app/-/archive/nothing.zip"):
        head = endpoint.get(path) + f"Content-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n".encode()
        answer = endpoint.ask(head + b"Connection: close\r\n\r\n", bomb)
        assert answer.status in (200, 302, 404, 413), answer.data[:300]
    assert endpoint.memory() - before < MOST_GROWTH


BROKEN = {
    "truncated": gzip.compress(b"0014command=ls-refs\n00000000" * 100)[:-20],
    "corrupt": b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + b"\xff" * 100,
    "no gzip": b"0000" * 10,
    "empty": b"",
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("program", ["git-upload-pack", "git-receive-pack"])
def test_gzip_that_is_broken(endpoint: Victim, what: str, program: str) -> None:
    body = BROKEN[what]
    headers = ("Content-Encoding: gzip", f"Content-Length: {len(body)}", "Connection: close")
    answer = endpoint.ask(endpoint.post(program, *headers), body)
    assert answer.status in (200, 400, 403), answer.data
    presentable(answer.body.decode("latin-1"), endpoint.cluster)


@pytest.mark.parametrize("program", ["git-upload-pack", "git-receive-pack"])
def test_lengths_that_are_wrong(endpoint: Victim, program: str) -> None:
    """Too long: the client leaves, or says nothing more. Too short: the rest is no request."""
    for leaves in (True, False):
        begun = time.monotonic()
        answer = endpoint.ask(endpoint.post(program, "Content-Length: 1000"), b"00", end=leaves)
        assert answer.status in (0, 200, 400), answer.data
        assert time.monotonic() - begun < IDLE + PATIENCE
    answer = endpoint.ask(endpoint.post(program, "Content-Length: 4"), b"0000" + b"rubbish\r\n\r\n" * 3)
    assert answer.data.count(b"HTTP/1.1 ") in (1, 2) and b"HTTP/1.1 5" not in answer.data


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n",
        b"-1\r\n",
        b"FFFFFFFFFFFFFFFFFFFFFFFF\r\n",
        b"4\r\n0000rubbish",
        b"4" * 100_000,
        b"4;" + b"x" * 100_000,
    ],
    ids=["no number", "below zero", "huge", "no end", "long", "an extension"],
)
def test_chunks_that_are_none(endpoint: Victim, chunks: bytes) -> None:
    for program in ("git-upload-pack", "git-receive-pack"):
        answer = endpoint.ask(endpoint.post(program, "Transfer-Encoding: chunked"), chunks)
        assert answer.status in (0, 200, 400, 431), answer.data
        assert b"HTTP/1.1 5" not in answer.data


def test_bodies_below_ours_have_an_end(endpoint: Victim) -> None:
    much = endpoint.get("/-/nothing", "POST") + b"Content-Length: 2000000\r\n\r\n"
    assert endpoint.ask(much + b"x").status in (404, 413)
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    begun = time.monotonic()
    for path in ("/-/nothing", "/team/app/-/archive/main.zip"):
        head = endpoint.get(path, "POST") + b"Transfer-Encoding: chunked\r\n\r\n"
        with endpoint.dial() as sock:
            sock.sendall(head)
            with suppress(ConnectionError, TimeoutError):  # it is taken in for a while, and thrown away
                while time.monotonic() - begun < PATIENCE:
                    sock.sendall(chunk)
            assert time.monotonic() - begun < PATIENCE
        begun = time.monotonic()


# ------------------------------------------------------------------------------------------------------- slowness


def test_slow_beginnings_end(endpoint: Victim) -> None:
    """A byte now and then: in the request's line, in its headers, in the rest of what was answered."""
    whole = endpoint.get() + b"X: " + b"y" * 100
    begun = time.monotonic()
    with ExitStack() as stack:
        slow = [stack.enter_context(endpoint.dial()) for _ in range(3)]
        slow[1].sendall(whole[:30])
        slow[2].sendall(endpoint.get("/", "POST") + b"Content-Length: 1000\r\n\r\n")
        left = set(range(3))
        while left and time.monotonic() - begun < PATIENCE:
            for number in list(left):
                slow[number].settimeout(0.05)
                try:
                    at = int((time.monotonic() - begun) * 10)
                    slow[number].sendall(whole[at : at + 1])
                    while slow[number].recv(1000):
                        pass
                    left.discard(number)
                except TimeoutError:
                    pass
                except OSError:
                    left.discard(number)
            endpoint.serves()
        assert not left
    assert time.monotonic() - begun >= GRACE


def test_a_client_that_stops_reading_a_clone(endpoint: Victim) -> None:
    """The session ends, and Git with it, once nothing has passed for idle_timeout."""
    cluster, since = endpoint.cluster, len(endpoint.log())
    oid = cluster.refs("a")["HEAD"]
    body = pkt_line(f"want {oid} side-band-64k\n".encode()) + b"0000" + pkt_line(b"done\n")
    with endpoint.dial(4096) as sock, endpoint.dial(4096) as other:
        sock.sendall(endpoint.post("git-upload-pack", f"Content-Length: {len(body)}") + body)
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
        other.sendall(endpoint.get("/team/app/-/archive/main.tar") + b"\r\n")
        assert other.recv(100).startswith(b"HTTP/1.1 200")
        cluster.wait(lambda: len(endpoint.lines("nothing was sent for", since)) >= 2, "both are given up")
        no_git_left(cluster)


def test_one_client_reads_and_writes_nothing_in_a_push(endpoint: Victim) -> None:
    since = len(endpoint.log())
    with endpoint.dial() as sock:
        sock.sendall(endpoint.post("git-receive-pack", "Content-Length: 100000") + b"0")
        endpoint.cluster.wait(lambda: endpoint.lines("nothing was sent for", since), "it is given up")


def test_a_thousand_that_only_sit_there(endpoint: Victim) -> None:
    """Of more than [http] connections the idle ones leave; whoever asks for something is served."""
    since = len(endpoint.log())
    with ExitStack() as stack:
        for number in range(1000):
            sock = stack.enter_context(endpoint.dial())
            if number % 3:
                sock.sendall(b"GET /-/ HTTP/1.1\r\n"[: number % 18])
            if number % 100 == 0:
                endpoint.serves()
        endpoint.serves()
        assert endpoint.cluster.refs("a")["HEAD"]
    assert len(endpoint.lines("to make room|hung up", since)) < 20


def test_when_all_are_busy_one_more_is_told_so(endpoint: Victim) -> None:
    begin = endpoint.post("git-upload-pack", "Git-Protocol: version=2", "Content-Length: 60000") + b"fff0"

    def full() -> bool:
        for number, sock in enumerate(busy):
            try:
                sock.sendall(b"x")  # so that it is not given up
            except OSError:  # it had to leave before what it sent was read
                busy[number] = stack.enter_context(endpoint.dial())
                busy[number].sendall(begin)
        return endpoint.ask(endpoint.get() + b"Connection: close\r\n\r\n").status == 503

    with ExitStack() as stack:
        busy = [stack.enter_context(endpoint.dial()) for _ in range(CONNECTIONS)]
        for sock in busy:
            sock.sendall(begin)
        endpoint.cluster.wait(full, "it is full")
    endpoint.cluster.wait(
        lambda: endpoint.ask(endpoint.get() + b"Connection: close\r\n\r\n").status == 200, "there is room"
    )


# -------------------------------------------------------------------------------------------------- clients that go


def test_gone_in_mid_push(endpoint: Victim) -> None:
    """At many bytes: in the headers, the commands, the pack. Nothing is frozen, nothing is left."""
    cluster, work = endpoint.cluster, endpoint.cluster.directory / "work"
    old = cluster.ok("rev-parse", "HEAD", cwd=work).strip()
    new = cluster.commit(work, "more", more=os.urandom(20_000).hex())
    names = cluster.ok("rev-list", "--objects", f"{old}..{new}", cwd=work).splitlines()
    pack = subprocess.run(
        ["git", "pack-objects", "--stdout", "-q"],
        cwd=work,
        input="".join(f"{name.split()[0]}\n" for name in names).encode(),
        capture_output=True,
        check=True,
    ).stdout
    command = pkt_line(f"{old} {new} refs/heads/main\0report-status side-band-64k".encode()) + b"0000"
    body = command + pack
    whole = endpoint.post("git-receive-pack", f"Content-Length: {len(body)}") + body
    start = len(whole) - len(body)
    cuts = [10, start - 5, start, start + 2, start + 50, start + len(command), start + len(command) + 5]
    cuts += [start + len(command) + len(pack) * tenth // 10 for tenth in range(1, 10)] + [len(whole) - 1]
    for number, cut in enumerate(cuts):
        with endpoint.dial() as sock:
            sock.sendall(whole[:cut])
            if number % 2:  # as a process that was killed with unread data: a reset
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    no_git_left(cluster)
    assert cluster.refs("a")["HEAD"] == old


def test_gone_in_mid_clone(endpoint: Victim) -> None:
    oid = endpoint.cluster.refs("a")["HEAD"]
    body = pkt_line(f"want {oid} side-band-64k\n".encode()) + b"0000" + pkt_line(b"done\n")
    requests = [
        endpoint.post("git-upload-pack", f"Content-Length: {len(body)}") + body,
        endpoint.get("/team/app/-/archive/main.tar.gz") + b"\r\n",
        endpoint.get() + b"\r\n",
    ]
    for request in requests:
        for taken in (0, 1, 50, 1000, 50_000, 500_000):
            with endpoint.dial() as sock:
                sock.sendall(request)
                while taken > 0 and (data := sock.recv(taken)):
                    taken -= len(data)
                    if len(data) < 65536 and request is requests[2]:
                        break
    no_git_left(endpoint.cluster)


# --------------------------------------------------------------------------------------------------- all at once


def test_all_of_it_at_once(endpoint: Victim) -> None:
    """While others do their worst, somebody works."""
    cluster, stop = endpoint.cluster, threading.Event()

    def harass(number: int) -> None:
        while not stop.is_set():
            for data, _ in list(RUBBISH.values())[number::3]:
                with suppress(OSError), endpoint.dial() as sock:
                    sock.settimeout(1)
                    sock.sendall(data)
                    until_the_end(sock)

    harassers = [threading.Thread(target=harass, args=(number,), daemon=True) for number in range(3)]
    for each in harassers:
        each.start()
    try:
        for _ in range(3):
            assert re.fullmatch(r"[0-9a-f]{40}", cluster.refs("a")["HEAD"])
    finally:
        stop.set()
        for each in harassers:
            each.join()
