"""The SSH endpoint and the connections between devices, with OpenSSH's client, git, and clients that mean harm."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import paramiko  # type: ignore[import-untyped,unused-ignore]
import pytest

import cluster.peer
import cluster.ssh
from cluster.client import Client
from cluster.errors import ClientGone, ConfigError, DatabaseUnavailable, Frozen, PeerFailed, SchemaMismatch
from cluster.model import Actor, ActorKind, Device, DeviceMode
from cluster.names import Command, ServiceCommand
from cluster.peer import Peers, Wire, write_keypair
from cluster.ssh import SshServer

BLOCK = bytes(range(256)) * 256
BIG = 48 * 1024 * 1024


def until(condition: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    """What `condition` returns, as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}"
        time.sleep(0.01)
    return found


class FakeHandlers:
    """Does what the name of the repository says."""

    def __init__(self, known: set[str]) -> None:
        self.known = known
        self.asked: list[str] = []
        self.away = False
        self.calls: list[tuple[Actor, Command, str, str]] = []
        self.go = threading.Event()
        self.running = 0
        self.most = 0
        self.ended: list[str] = []
        self.repositories: dict[str, Path] = {}
        self._lock = threading.Lock()

    def authenticate(self, key_type: str, key_base64: str, fingerprint: str) -> Actor | None:
        self.asked.append(fingerprint)
        if self.away:
            raise DatabaseUnavailable("connection to server at 10.0.0.9 failed")
        if f"{key_type} {key_base64}" in self.known:
            return Actor(ActorKind.USER, "ada", fingerprint)
        return None

    def greeting(self, actor: Actor) -> str:
        return f"Hello {actor.name}, there is no shell here."

    def run(self, actor: Actor, command: Command, client: Client, *, protocol: str, address: str) -> int:
        assert isinstance(command, ServiceCommand)
        with self._lock:
            self.calls.append((actor, command, protocol, address))
            self.running += 1
            self.most = max(self.most, self.running)
        how = "returned"
        try:
            code: int = getattr(self, "do_" + command.repository.split("/")[0])(client, command, protocol)
            return code
        except ClientGone:
            how = "gone"
            raise
        finally:
            with self._lock:
                self.running -= 1
                self.ended.append(how)

    def do_hello(self, client: Client, command: ServiceCommand, protocol: str) -> int:
        client.write(b"out\n")
        client.write_error(b"err\n")
        client.say("a line for you\x1b[31m")
        return 7

    def do_protocol(self, client: Client, command: ServiceCommand, protocol: str) -> int:
        client.write(protocol.encode())
        return 0

    def do_big(self, client: Client, command: ServiceCommand, protocol: str) -> int:
        for _ in range(BIG // len(BLOCK)):
            client.write(BLOCK)
        return 3

    def do_endless(self, client: Client, command: ServiceCommand, protocol: str) -> int:
        while True:
            client.write(BLOCK)

    def do_echo(self, client: Client, command: ServiceCommand, protocol: str) -> int:
        while data := client.read(1000):
            client.write(data)
        return 0

    def do_digest(self, client: Client, command: ServiceCommand, protocol: str) -> int:
        digest = hashlib.sha256()
        while data := client.read(65536):
            digest.update(data)
        client.write(digest.hexdigest().encode())
        return 0

    def do_stall(self, client: Client, command: ServiceCommand, protocol: str) -> int:
        """Reads nothing, until told to go."""
        client.write(b"+")
        until(lambda: self.go.is_set() or client.gone, "go")
        return 0

    def do_noise(self, client: Client, command: ServiceCommand, protocol: str) -> int:
        for number in range(20000):
            client.say(f"{number:06d} {'x' * 1000}")
        client.write(b"done")
        return 0

    def do_frozen(self, client: Client, command: ServiceCommand, protocol: str) -> int:
        raise Frozen("it is frozen", hint="ask Ada")

    def do_bug(self, client: Client, command: ServiceCommand, protocol: str) -> int:
        raise ValueError("secret /path")

    def do_git(self, client: Client, command: ServiceCommand, protocol: str) -> int:
        """The real thing, with a copy loop each way."""
        process = subprocess.Popen(
            [str(command.service), str(self.repositories[command.repository])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "GIT_PROTOCOL": protocol},
        )
        assert process.stdin and process.stdout and process.stderr
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr

        def feed() -> None:
            with suppress(BrokenPipeError), stdin:
                while data := client.read(65536):
                    stdin.write(data)
                    stdin.flush()

        def errors() -> None:
            for line in stderr:
                client.write_error(line)

        threads = [threading.Thread(target=each, daemon=True) for each in (feed, errors)]
        for thread in threads:
            thread.start()
        while data := os.read(stdout.fileno(), 65536):
            client.write(data)
        threads[1].join()
        return process.wait()


class Place:
    """A server with its keys, and how to reach it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.public = {
            name: write_keypair(folder / name, f"{name}@test") for name in ("host", "user", "other")
        }
        self.handlers = FakeHandlers({" ".join(self.public["user"].split()[:2])})
        self.server = SshServer(("127.0.0.1", 0), folder / "host", self.handlers)
        self.address = self.server.start()

    def restart(self) -> None:
        self.server.close(0)
        self.server = SshServer(self.address, self.folder / "host", self.handlers)
        self.server.start()

    def ssh(self, command: str, *options: str, key: str = "user") -> list[str]:
        host, port = self.address
        return [
            *("ssh", "-F", "none", "-i", str(self.folder / key), "-p", str(port), *options),
            *("-o", "StrictHostKeyChecking=accept-new", "-o", f"UserKnownHostsFile={self.folder / 'known'}"),
            *("-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"),
            f"anybody@{host}",
            *([command] if command else []),
        ]  # fmt: skip

    def run(
        self, command: str, *options: str, key: str = "user", **more: Any
    ) -> subprocess.CompletedProcess[bytes]:
        more.setdefault("stdin", None if "input" in more else subprocess.DEVNULL)
        return subprocess.run(self.ssh(command, *options, key=key), capture_output=True, timeout=60, **more)

    def ask(self, repository: str, *options: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
        return self.run(f"git-upload-pack '{repository}'", *options, **more)

    @contextmanager
    def raw(self, key: str = "user") -> Iterator[Any]:
        """An authenticated paramiko transport, plain, as a client of any kind may have it."""
        sock = socket.create_connection(self.address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport = paramiko.Transport(sock)
        try:
            transport.start_client(timeout=10)
            if key:
                transport.auth_publickey("git", paramiko.PKey.from_path(self.folder / key))
            yield transport
        finally:
            transport.close()

    def device(self, **changes: Any) -> Device:
        host, port = self.address
        fields: dict[str, Any] = {
            "id": 2, "name": "b", "ssh_url": f"ssh://git@{host}:{port}", "http_url": None,
            "public_key": self.public["user"], "host_key": self.public["host"], "mode": DeviceMode.ENABLED,
            "last_seen_at": None, "silent_for": 0.0, "stopped": False,
        }  # fmt: skip
        return Device(**{**fields, **changes})


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    before = set(threading.enumerate())
    place = Place(tmp_path)
    yield place
    place.handlers.go.set()
    place.server.close(5)

    def left() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread not in before and thread.is_alive()]

    until(lambda: not left(), f"no thread is left over: {left()}")


@pytest.fixture
def peers(place: Place) -> Iterator[Peers]:
    peers = Peers.from_file(place.folder / "user")
    yield peers
    peers.close()


# OpenSSH's client


def test_a_command_has_output_errors_and_a_status(place: Place) -> None:
    result = place.ask("hello")
    assert result.stdout == b"out\n"
    assert result.stderr == b"err\nremote: cluster: a line for you?[31m\n"
    assert result.returncode == 7
    (actor, command, protocol, address), = place.handlers.calls  # fmt: skip
    assert (actor.name, str(command), protocol, address) == (
        "ada",
        "git-upload-pack 'hello'",
        "",
        "127.0.0.1",
    )
    assert actor.fingerprint in place.handlers.asked
    assert re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", actor.fingerprint)


def test_a_key_is_looked_up_once_a_connection(place: Place) -> None:
    place.ask("hello")
    assert len(place.handlers.asked) == 1


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes128-ctr"])
def test_all_of_a_large_output_arrives_with_its_status(place: Place, cipher: str) -> None:
    result = place.ask("big", "-c", cipher)
    assert result.returncode == 3
    assert result.stdout == BLOCK * (BIG // len(BLOCK))


def test_stock_openssh_gets_the_fast_cipher(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.ssh, "HEAR_MS", 10_000)  # this machine may be busy
    result = place.ask("hello", "-v", "-o", "LogLevel=DEBUG")
    assert b"server->client cipher: aes128-gcm@openssh.com" in result.stderr
    assert b"kex: algorithm: curve25519-sha256" in result.stderr


def test_a_large_input_and_echo(place: Place) -> None:
    data = BLOCK * (BIG // len(BLOCK))
    assert place.ask("digest", input=data).stdout.decode() == hashlib.sha256(data).hexdigest()
    assert place.ask("echo", input=data[: 4 << 20]).stdout == data[: 4 << 20]


@pytest.mark.parametrize("kind", [("rsa", "2048"), ("ecdsa", "256"), ("ecdsa", "521"), ("ed25519", "256")])
def test_the_kinds_of_keys(place: Place, kind: tuple[str, str]) -> None:
    path = place.folder / "another"
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-t", kind[0], "-b", kind[1], "-f", path], check=True)
    assert place.ask("hello", key="another").returncode == 255
    place.handlers.known.add(" ".join(path.with_suffix(".pub").read_text().split()[:2]))
    assert place.ask("hello", key="another").returncode == 7


def test_a_host_key_of_another_kind(place: Place) -> None:
    path = place.folder / "rsa"
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-t", "rsa", "-b", "2048", "-f", path], check=True)
    place.server.close(0)
    place.server = SshServer(("127.0.0.1", 0), path, place.handlers)
    place.address = place.server.start()
    assert place.ask("hello").returncode == 7
    peers = Peers.from_file(place.folder / "user")
    with peers.run(
        place.device(host_key=path.with_suffix(".pub").read_text()), "git-upload-pack 'hello'"
    ) as remote:
        assert remote.finish(10) == 7
    peers.close()


def test_an_unknown_key_is_refused(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    result = place.ask("hello", key="other")
    assert result.returncode == 255
    assert b"Permission denied (publickey)" in result.stderr
    assert not place.handlers.calls
    until(
        lambda: [each for each in caplog.messages if "ended before logging in" in each], "a line in the log"
    )


def test_without_a_command_there_is_a_greeting(place: Place) -> None:
    result = place.run("", "-T")
    assert (result.stdout, result.returncode) == (b"Hello ada, there is no shell here.\n", 1)
    near, far = os.openpty()
    process = subprocess.Popen(place.ssh(""), stdin=far, stdout=far, stderr=far, start_new_session=True)
    assert process.wait(20) == 1
    lines = os.read(near, 1000).decode().splitlines()
    assert lines == ["PTY allocation request failed on channel 0", "Hello ada, there is no shell here."]
    os.close(near)
    os.close(far)


def test_an_error_is_told_in_its_own_words(place: Place) -> None:
    result = place.ask("frozen")
    assert result.stderr == b"remote: cluster: error: it is frozen\nremote: cluster: ask Ada\n"
    assert (result.stdout, result.returncode) == (b"", 1)


@pytest.mark.parametrize(
    "command", ["rm -rf /", "git-upload-pack", "git-upload-pack '../x'", "\udcff", " ", "x" * 9000]
)
def test_a_command_that_is_none_is_a_usage_error(place: Place, command: str) -> None:
    result = place.run(command)
    assert result.stderr.startswith(b"remote: cluster: error: ")
    assert (result.stdout, result.returncode) == (b"", 2)
    assert not place.handlers.calls


def test_what_nobody_foresaw_is_a_number_here_and_a_traceback_in_the_log(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    result = place.ask("bug")
    assert result.returncode == 1
    line = re.fullmatch(
        r"remote: cluster: error: something went wrong on this device; "
        r"the administrator finds it in the log as ([0-9a-f]{8})\n",
        result.stderr.decode(),
    )
    assert line
    (record,) = [each for each in caplog.records if each.name == "cluster.ssh" and each.exc_info]
    assert line[1] in record.getMessage()
    assert "secret /path" in caplog.text


def test_the_database_is_away(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user reads why, though the key cannot be looked up; nothing can be run; a device is not held back."""

    def too_old(*_: str) -> None:
        raise SchemaMismatch("the schema is too old")

    place.handlers.away = True
    for command in ("git-upload-pack 'hello'", "rm"):
        result = place.run(command)
        away = b"remote: cluster: error: the cluster's database is away; try again in a moment\n"
        assert (result.stderr, result.stdout, result.returncode) == (away, b"", 1)
    assert place.run("", "-T").returncode == 1
    assert not place.handlers.calls
    assert "10.0.0.9" in caplog.text
    with place.raw() as transport:
        channel = transport.open_session()
        channel.exec_command("git-upload-pack 'hello'")
        assert channel.recv_exit_status() == 1
        place.handlers.away = False
        with pytest.raises(paramiko.ChannelException):
            transport.open_session()
    assert not place.handlers.calls
    monkeypatch.setattr(place.handlers, "authenticate", too_old)
    assert b"error: the schema is too old\n" in place.ask("hello").stderr


def test_a_device_logs_in_anew_once_the_database_is_back(place: Place, peers: Peers) -> None:
    place.handlers.away = True
    with peers.run(place.device(), "git-upload-pack 'hello'") as remote:
        assert remote.finish(10) == 1
        assert "database is away" in remote.stderr
    place.handlers.away = False
    with peers.run(place.device(), "git-upload-pack 'hello'") as remote:
        assert remote.finish(10) == 7


def test_a_lookup_that_has_a_fault(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: str) -> None:
        raise ValueError("secret")

    monkeypatch.setattr(place.handlers, "authenticate", fault)
    result = place.ask("hello")
    assert result.returncode == 1
    assert b"something went wrong on this device" in result.stderr
    assert b"secret" not in result.stderr


@pytest.mark.parametrize("repository", ["endless", "echo", "stall"])
def test_a_client_that_is_killed_is_noticed(place: Place, repository: str) -> None:
    command = place.ssh(f"git-upload-pack '{repository}'")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    process.stdin.write(b"x" * 1000)
    process.stdin.flush()
    process.stdout.read(1)
    process.kill()
    process.communicate()
    until(lambda: place.handlers.ended, "the command ends")
    assert place.handlers.ended == (["gone"] if repository == "endless" else ["returned"])


def test_new_keys_in_the_middle_of_transfers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every megabyte, with several commands at once, their beginnings and their ends falling where they may."""
    monkeypatch.setattr(cluster.peer._BoundedPacketizer, "REKEY_BYTES", 1 << 20)
    assert place.ask("big").stdout == BLOCK * (BIG // len(BLOCK))
    data = BLOCK * (BIG // len(BLOCK))
    digest = hashlib.sha256(data).hexdigest()
    assert place.ask("digest", input=data).stdout.decode() == digest
    peers = Peers.from_file(place.folder / "user")
    failures: list[BaseException] = []

    def both() -> None:
        try:
            for _ in range(3):
                with peers.run(place.device(), "git-upload-pack 'big'") as remote:
                    assert remote.finish(60) == 3
                with peers.run(place.device(), "git-upload-pack 'digest'") as remote:
                    remote.send(data[: 8 << 20])
                    remote.send_eof()
                    assert remote.receive(64).decode() == hashlib.sha256(data[: 8 << 20]).hexdigest()
                for _ in range(20):
                    with peers.run(place.device(), "git-upload-pack 'hello'") as remote:
                        assert remote.finish(20) == 7
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=both) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    peers.close()
    assert not failures


def test_what_a_connection_says_while_keys_change_waits_for_them(place: Place) -> None:
    """paramiko alone would wait for itself, for 30 s, and then hang up."""
    with place.raw() as transport:
        channel = transport.open_session()
        (connection,) = place.server._connections
        wire = connection._wire
        wire.clear_to_send.clear()  # as between the server's KEXINIT and its new keys
        message = paramiko.Message()
        message.add_byte(bytes([98]))
        message.add_int(channel.remote_chanid)
        message.add_string("nonsense")
        message.add_boolean(True)
        started = time.monotonic()
        transport._send_message(message)
        until(lambda: wire._held, "the reply is held")
        transport.renegotiate_keys()
        assert channel.event.wait(5)
        assert time.monotonic() - started < 20
        assert not wire._held


# Clients that want more than they get


def test_there_is_nothing_but_exec(place: Place) -> None:
    def refused(request: Callable[[Any], Any]) -> None:
        with place.raw() as transport, pytest.raises((paramiko.SSHException, EOFError)):
            request(transport)

    refused(lambda transport: transport.open_session().get_pty())
    refused(lambda transport: transport.open_session().invoke_subsystem("sftp"))
    refused(lambda transport: transport.open_session().request_x11())
    refused(lambda transport: transport.open_channel("direct-tcpip", ("127.0.0.1", 22), ("127.0.0.1", 1)))
    refused(lambda transport: transport.open_channel("direct-streamlocal@openssh.com"))
    refused(lambda transport: transport.open_channel("x11", src_addr=("127.0.0.1", 1)))
    refused(lambda transport: transport.open_forward_agent_channel())
    refused(lambda transport: transport.request_port_forward("127.0.0.1", 0))
    with place.raw() as transport:
        assert transport.global_request("streamlocal-forward@openssh.com", ("/tmp/x",)) is None
        assert transport.global_request("nonsense") is None
    assert not place.handlers.calls
    assert place.run("sftp", "-s").returncode != 0
    assert (
        b"forwarding failed"
        in place.ask("hello", "-o", "ExitOnForwardFailure=yes", "-R", "0:localhost:1").stderr
    )


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("GIT_PROTOCOL", "version=2", True),
        ("GIT_PROTOCOL", "version=1:object-format=sha256", True),
        ("GIT_PROTOCOL", "version=2\n", False),
        ("GIT_PROTOCOL", "version=3", False),
        ("GIT_PROTOCOL", "version=2:$(x)", False),
        ("GIT_PROTOCOL", "version=2" + ":a" * 200, False),
        ("GIT_PROTOCOL", "versión=2", False),
        ("GIT_DIR", "version=2", False),
        ("LD_PRELOAD", "version=2", False),
    ],
)
def test_one_variable_is_taken(place: Place, name: str, value: str, taken: bool) -> None:
    with place.raw() as transport:
        channel = transport.open_session()
        channel.set_environment_variable(name, value)
        channel.exec_command("git-upload-pack 'protocol'")
        assert channel.makefile().read().decode() == (value if taken else "")


def test_openssh_sends_the_protocol(place: Place) -> None:
    result = place.ask("protocol", "-o", "SendEnv=GIT_*", env={**os.environ, "GIT_PROTOCOL": "version=2"})
    assert result.stdout == b"version=2"


def test_ten_commands_at_once_and_no_more(place: Place) -> None:
    with place.raw() as transport:
        channels = [transport.open_session() for _ in range(10)]
        for channel in channels:
            channel.exec_command("git-upload-pack 'stall'")
            assert channel.recv(1) == b"+"
        with pytest.raises(paramiko.ChannelException):
            transport.open_session()
        # A command that runs counts, although its client has closed the channel.
        channels[0].close()
        place.handlers.go.set()
        until(lambda: not place.handlers.running, "all ended")
        assert place.handlers.most == 10
        for _ in range(50):
            channel = transport.open_session()
            channel.exec_command("git-upload-pack 'hello'")
            assert channel.makefile().read() == b"out\n"
            assert channel.recv_exit_status() == 7
            channel.close()
        for _ in range(50):  # opened, and closed without a command
            transport.open_session().close()


def test_a_channel_runs_one_command(place: Place) -> None:
    with place.raw() as transport:
        channel = transport.open_session()
        channel.exec_command("git-upload-pack 'stall'")
        with pytest.raises(paramiko.SSHException):
            channel.exec_command("git-upload-pack 'stall'")
    until(lambda: place.handlers.ended, "the command ends")
    assert len(place.handlers.calls) == 1


def test_no_password_no_other_way_in(place: Place) -> None:
    with place.raw(key="") as transport:
        with pytest.raises(paramiko.BadAuthenticationType) as caught:
            transport.auth_password("root", "root", fallback=False)
        assert caught.value.allowed_types == ["publickey"]
        with pytest.raises(paramiko.BadAuthenticationType):
            transport.auth_none("root")
        with pytest.raises(paramiko.BadAuthenticationType):
            transport.auth_interactive("root", lambda *_: [])
        with pytest.raises(paramiko.ChannelException):
            transport.open_session(timeout=5)


def test_a_signature_by_another_key_is_refused(place: Place) -> None:
    class Forged(paramiko.Ed25519Key):  # type: ignore[misc,unused-ignore]
        def sign_ssh_data(self, data: Any, algorithm: Any = None) -> Any:
            return paramiko.PKey.from_path(place.folder / "other").sign_ssh_data(data, algorithm)

    with place.raw(key="") as transport:
        with pytest.raises(paramiko.AuthenticationException):
            transport.auth_publickey("git", Forged(filename=str(place.folder / "user")))
        with pytest.raises(paramiko.ChannelException):
            transport.open_session(timeout=5)
    assert len(place.handlers.asked) == 1


def test_a_key_of_an_unknown_kind_does_not_end_the_connection(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People offer security keys before the key that fits."""

    other = paramiko.PKey.from_path(place.folder / "other")
    monkeypatch.setattr(other, "get_name", lambda: "sk-ssh-ed25519@openssh.com")
    with place.raw(key="") as transport:
        for _ in range(3):
            with pytest.raises(paramiko.AuthenticationException, match=r"Authentication failed\."):
                transport.auth_publickey("git", other)
        transport.auth_publickey("git", paramiko.PKey.from_path(place.folder / "user"))
        assert transport.is_authenticated()


def test_a_hundred_idle_connections(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    threads = threading.active_count()
    with place.raw() as transport:
        idle = [socket.create_connection(place.address) for _ in range(100)]
        until(lambda: len(place.server._connections) == 65, "64 are kept, and the one that has logged in")
        for each in idle:
            each.settimeout(0.01)

        def closed() -> int:
            count = 0
            for each in idle:
                with suppress(TimeoutError):
                    try:
                        while each.recv(1000):
                            pass
                        count += 1
                    except ConnectionResetError:
                        count += 1
            return count

        until(lambda: closed() == 36, "the others are hung up on")
        assert len([each for each in caplog.messages if "turned away" in each]) == 1
        channel = transport.open_session()
        channel.exec_command("git-upload-pack 'hello'")
        assert channel.recv_exit_status() == 7
        monkeypatch.setattr(cluster.ssh, "LOGIN_GRACE", 0.5)
        until(lambda: closed() == 100, "the time to log in is over")
        for each in idle:
            each.close()
    until(lambda: threading.active_count() <= threads, "their threads have ended")
    assert place.ask("hello").returncode == 7


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 200 + b"\n",
        b"SSH-1.5-old\r\n",
        b"SSH-2.0-scan\r\n" + b"\x00\x00\x10\x00" + b"\xff" * 300,
        b"SSH-2.0-scan\r\n" + b"\xff" * 300,
        b"SSH-2.0-scan\r\n" + b"\x7f\xff\xff\xfc" + b"\x00" * 300,
        b"",
    ],
)
def test_garbage_is_one_line_in_the_log(
    place: Place, caplog: pytest.LogCaptureFixture, garbage: bytes
) -> None:
    caplog.set_level(logging.INFO)
    with socket.create_connection(place.address) as sock:
        sock.sendall(garbage)
        with suppress(OSError):  # hung up on already
            sock.shutdown(socket.SHUT_WR)
        until(lambda: caplog.records, "a line")
        until(lambda: not place.server._connections, "the connection ends")
    (record,) = caplog.records
    assert (record.levelno, record.exc_info, record.name) == (logging.INFO, None, "cluster.ssh")
    assert record.getMessage().startswith("127.0.0.1: ended before logging in: ")
    assert record.getMessage().isprintable()


def test_a_first_line_without_an_end(place: Place) -> None:
    with socket.create_connection(place.address) as sock:
        with pytest.raises(OSError):
            for _ in range(10000):
                sock.sendall(b"x" * 10000)
    until(lambda: not place.server._connections, "the connection ends")


def test_a_client_that_waits_for_our_list_of_algorithms(place: Place) -> None:
    """Some libraries do; the endpoint waits for theirs, but not for long."""
    with socket.create_connection(place.address) as sock:
        sock.sendall(b"SSH-2.0-patient\r\n")
        sock.settimeout(10)
        received = b""
        while b"aes128-ctr" not in received:
            received += sock.recv(1000)


def test_a_packet_that_claims_to_be_large_is_not_waited_for(place: Place) -> None:
    with socket.create_connection(place.address) as sock:
        sock.sendall(b"SSH-2.0-scan\r\n" + b"\x7f\xff\xff\xfc" + b"\x00" * 300)
        until(
            lambda: len(place.handlers.asked) == 0 and not place.server._connections, "the connection ends", 5
        )


def test_a_client_that_sends_beyond_its_window_is_hung_up_on(place: Place) -> None:
    with place.raw() as transport:
        channel = transport.open_session()
        channel.exec_command("git-upload-pack 'stall'")
        channel.recv(1)
        channel.out_window_size = 1 << 30
        with pytest.raises((OSError, EOFError)):
            for _ in range(1000):
                channel.sendall(b"x" * (1 << 20))
        until(lambda: not place.server._connections, "the connection ends")


# Shutting down


def test_closing_waits_for_commands_that_run(place: Place) -> None:
    process = subprocess.Popen(place.ssh("git-upload-pack 'stall'"), stdout=subprocess.PIPE)
    with place.raw() as transport:
        assert process.stdout
        assert process.stdout.read(1) == b"+"
        closing = threading.Thread(target=place.server.close, args=(30,))
        closing.start()
        until(lambda: place.server._stopping.is_set(), "it stops")
        channel = transport.open_session()
        channel.exec_command("git-upload-pack 'hello'")
        assert channel.recv_exit_status() == 1
        told = b"remote: cluster: error: this device is shutting down\n"
        assert channel.makefile_stderr().read() == told

        def refused() -> bool:
            try:
                socket.create_connection(place.address).close()
            except OSError:
                return True
            return False

        until(refused, "no new connections")
        assert closing.is_alive()
        place.handlers.go.set()
        assert process.wait(10) == 0
        closing.join(10)
        assert not closing.is_alive()
        until(lambda: not transport.is_active(), "the open connection is hung up")
    process.communicate()


def test_closing_does_not_wait_for_ever(place: Place) -> None:
    process = subprocess.Popen(
        place.ssh("git-upload-pack 'stall'"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.read(1)
    place.server.close(0.2)
    assert process.wait(10) == 255
    process.communicate()


def test_a_port_in_use_and_keys_that_cannot_be_used(place: Place) -> None:
    def fails(listen: tuple[str, int], key: Path) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            SshServer(listen, key, place.handlers).start()
        assert caught.value.hint
        assert "\n" not in caught.value.what
        return caught.value

    good, anywhere = place.folder / "host", ("127.0.0.1", 0)
    assert "in use" in fails(place.address, good).what
    assert "192.0.2.1" in fails(("192.0.2.1", 0), good).what
    assert "no-such-host" in fails(("no-such-host.invalid", 0), good).what
    assert "there is no file" in fails(anywhere, place.folder / "nothing").what
    assert "cannot be read" in fails(anywhere, place.folder).what
    (place.folder / "text").write_text("hello")
    assert "holds no private key" in fails(anywhere, place.folder / "text").what
    assert "holds no private key" in fails(anywhere, place.folder / "host.pub").what
    for form in ("RFC4716", "PEM"):
        path = place.folder / f"secret-{form}"
        subprocess.run(["ssh-keygen", "-q", "-N", "abcde", "-t", "ecdsa", "-m", form, "-f", path], check=True)
        assert "encrypted" in fails(anywhere, path).what
    with pytest.raises(ConfigError):
        Peers.from_file(place.folder / "nothing")
    with pytest.raises(ConfigError):
        write_keypair(good, "again")
    assert good.stat().st_mode & 0o777 == 0o600


# Peers


def test_a_command_on_another_device(place: Place, peers: Peers) -> None:
    with peers.run(place.device(), "git-upload-pack 'echo'", protocol="version=2") as remote:
        remote.send(b"x" * 3000)
        remote.send_eof()
        data = b""
        while more := remote.receive(100):
            assert len(more) <= 100
            data += more
        assert data == b"x" * 3000
        assert remote.finish(10) == 0
    assert place.handlers.calls[0][2] == "version=2"
    with peers.run(place.device(), "git-upload-pack 'frozen'") as remote:
        assert remote.finish(10) == 1
        assert remote.stderr == "error: it is frozen\nask Ada"


def test_a_connection_is_reused(place: Place, peers: Peers) -> None:
    for _ in range(20):
        with peers.run(place.device(), "git-upload-pack 'hello'") as remote:
            assert remote.finish(10) == 7
    assert len(place.handlers.asked) == 1
    (connection,) = place.server._connections
    assert connection._wire.remote_cipher == "aes128-gcm@openssh.com"


def test_commands_at_once_have_connections_of_their_own(place: Place, peers: Peers) -> None:
    done: list[int] = []

    def one() -> None:
        with peers.run(place.device(), "git-upload-pack 'stall'") as remote:
            assert remote.receive(1) == b"+"
            done.append(remote.finish(30))

    threads = [threading.Thread(target=one) for _ in range(25)]
    for thread in threads:
        thread.start()
    until(lambda: place.handlers.running == 25, "all run at once")
    place.handlers.go.set()
    for thread in threads:
        thread.join()
    assert done == [0] * 25
    until(lambda: len(place.server._connections) == cluster.peer.KEPT, "some are kept")


def test_another_host_key_is_refused_before_anything_is_said(place: Place, peers: Peers) -> None:
    rsa = place.folder / "rsa"
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-t", "rsa", "-b", "2048", "-f", rsa], check=True)
    for wrong in (place.public["other"], rsa.with_suffix(".pub").read_text()):
        with pytest.raises(
            PeerFailed, match="device b shows another host key than the one registered"
        ) as caught:
            with peers.run(place.device(host_key=wrong), "git-upload-pack 'hello'"):
                pass
        assert caught.value.hint
    assert not place.handlers.asked
    with pytest.raises(PeerFailed, match="registered with a host key that is none"):
        with peers.run(place.device(host_key="nonsense"), "git-upload-pack 'hello'"):
            pass


def test_a_device_that_changes_its_address_is_reached_there(place: Place, peers: Peers) -> None:
    with peers.run(place.device(), "git-upload-pack 'hello'") as remote:
        remote.finish(10)
    with pytest.raises(PeerFailed, match="cannot be reached"):
        with peers.run(place.device(ssh_url="ssh://git@127.0.0.1:1"), "git-upload-pack 'hello'"):
            pass
    until(lambda: not place.server._connections, "the old connection is closed")


def test_a_key_that_the_device_does_not_know(place: Place) -> None:
    peers = Peers.from_file(place.folder / "other")
    with pytest.raises(PeerFailed, match="device b does not accept the key of this device"):
        with peers.run(place.device(), "git-upload-pack 'hello'"):
            pass


def test_a_device_that_was_restarted(place: Place, peers: Peers) -> None:
    for _ in range(3):
        with peers.run(place.device(), "git-upload-pack 'hello'") as remote:
            assert remote.finish(10) == 7
        place.restart()
    with peers.run(place.device(), "git-upload-pack 'stall'") as remote:
        assert remote.receive(1) == b"+"
        place.restart()
        with pytest.raises(PeerFailed, match="connection to device b was lost"):
            remote.receive(1)
        with pytest.raises(PeerFailed, match="connection to device b was lost"):
            remote.finish(10)
        with pytest.raises(PeerFailed, match="connection to device b was lost"):
            remote.send(b"x")
    place.server.close(0)
    with pytest.raises(
        PeerFailed, match=r"device b cannot be reached at 127\.0\.0\.1 port \d+: Connection refused"
    ):
        with peers.run(place.device(), "git-upload-pack 'hello'"):
            pass


def test_a_command_that_does_not_finish(place: Place, peers: Peers) -> None:
    with peers.run(place.device(), "git-upload-pack 'stall'") as remote:
        with pytest.raises(PeerFailed, match="device b did not finish in time"):
            remote.finish(0.1)
    until(lambda: place.handlers.ended, "leaving the block ends the command")


def test_a_reader_that_stalls(place: Place, peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.peer, "STALL", 1.0)
    with peers.run(place.device(), "git-upload-pack 'stall'") as remote:
        with pytest.raises(PeerFailed, match="device b has read nothing"):
            remote.send(b"x" * (cluster.peer.WINDOW * 2))


def test_stderr_is_bounded_and_blocks_nobody(place: Place, peers: Peers) -> None:
    """20 MB of it, more than the window that it shares with stdout."""
    with peers.run(place.device(), "git-upload-pack 'noise'") as remote:
        assert remote.receive(100) == b"done"
        assert remote.finish(10) == 0
        assert len(remote.stderr) <= 64 * 1024
        assert remote.stderr.splitlines()[-1].startswith("019999 x")


class Relay:
    """Passes bytes on between two ends, until it is told to keep them."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.silent = threading.Event()
        self.stuck = threading.Event()
        self._target = target
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near = self.listener.accept()[0]
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                while self.stuck.is_set():
                    time.sleep(0.01)
                if not self.silent.is_set():
                    target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.stuck.clear()
        for sock in [self.listener, *self._sockets]:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


@pytest.fixture
def relay(place: Place) -> Iterator[Relay]:
    relay = Relay(place.address)
    yield relay
    relay.close()


def test_a_device_that_goes_silent(
    place: Place, peers: Peers, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.peer, "KEEPALIVE", 0.2)
    device = place.device(ssh_url=f"ssh://git@127.0.0.1:{relay.port}")
    with peers.run(device, "git-upload-pack 'stall'") as remote:
        assert remote.receive(1) == b"+"
        answered = threading.Event()
        (pool,) = peers._pools.values()
        (transport,) = pool._busy
        original = Wire._parse_request_failure

        def reply(message: Any) -> None:
            original(transport, message)
            answered.set()

        transport._handler_table[82] = reply
        assert answered.wait(10), "a device that only waits answers keepalives"
        relay.silent.set()
        with pytest.raises(PeerFailed, match="connection to device b was lost"):
            remote.receive(1)


def test_a_device_that_takes_nothing_more(
    place: Place, peers: Peers, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sending is stuck, so that no keepalive can be sent either."""
    monkeypatch.setattr(cluster.peer, "KEEPALIVE", 0.3)
    device = place.device(ssh_url=f"ssh://git@127.0.0.1:{relay.port}")
    with peers.run(device, "git-upload-pack 'digest'") as remote:
        relay.stuck.set()
        started = time.monotonic()
        with pytest.raises(PeerFailed, match="connection to device b was lost"):
            remote.send(bytes(64 << 20))
        assert time.monotonic() - started < 30


def test_a_device_that_never_answers(place: Place, peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its callers wait at the same time, not one after another, and callers of other devices not at all."""
    monkeypatch.setattr(cluster.peer, "AUTH_TIMEOUT", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        device = place.device(ssh_url=f"ssh://git@127.0.0.1:{mute.getsockname()[1]}")
        failures: list[PeerFailed] = []

        def one() -> None:
            try:
                with peers.run(device, "git-upload-pack 'hello'"):
                    pass
            except PeerFailed as failure:
                failures.append(failure)

        threads = [threading.Thread(target=one) for _ in range(8)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        with peers.run(
            place.device(id=3), "git-upload-pack 'hello'"
        ) as remote:  # not held up by the mute one
            assert remote.finish(10) == 7
        assert time.monotonic() - started < 2
        for thread in threads:
            thread.join()
        assert time.monotonic() - started < 10
        assert len(failures) == 8
        assert "device b did not complete the SSH handshake" in failures[0].what


# Pipes, for git


def git(*arguments: str, cwd: Path, **more: Any) -> str:
    settings = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]
    result = subprocess.run(["git", *settings, *arguments], cwd=cwd, capture_output=True, timeout=60, **more)
    assert result.returncode == 0, result.stderr.decode()
    return str(result.stdout.decode().strip())


@pytest.fixture
def origin(place: Place, tmp_path: Path) -> Path:
    """A bare repository of some megabytes, served as git/origin."""
    work = tmp_path / "work"
    work.mkdir()
    git("init", "-q", cwd=work)
    for number in range(30):
        (work / "file").write_bytes(os.urandom(200_000))
        git("add", ".", cwd=work)
        git("commit", "-qm", f"number {number}", cwd=work)
    git("clone", "-q", "--bare", ".", str(tmp_path / "origin.git"), cwd=work)
    place.handlers.repositories["git/origin"] = tmp_path / "origin.git"
    return tmp_path / "origin.git"


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    git("init", "-q", "--bare", "empty.git", cwd=tmp_path)
    return tmp_path / "empty.git"


@pytest.mark.parametrize("protocol", ["version=2", "version=1", ""])
def test_git_fetches_through_pipes(
    place: Place, peers: Peers, origin: Path, empty: Path, protocol: str
) -> None:
    tip = git("rev-parse", "main", cwd=origin)
    version = (protocol or "version=0").removeprefix("version=")
    trace = empty.parent / "trace"
    with peers.run(place.device(), "git-upload-pack 'git/origin'", protocol=protocol) as remote:
        with remote.pipes() as (read, write):
            git(
                *("-c", f"protocol.version={version}"),
                *("fetch", "-q", f"fd::{read},{write}", "refs/heads/*:refs/heads/*"),
                cwd=empty,
                pass_fds=(read, write),
                env={**os.environ, "GIT_TRACE_PACKET": str(trace)},
            )
        assert remote.finish(10) == 0
        assert remote.stderr == ""
    assert git("rev-parse", "main", cwd=empty) == tip
    git("fsck", "--strict", cwd=empty)
    spoken = re.search(r"fetch< version (\d)", trace.read_text())
    assert (spoken[1] if spoken else "0") == version
    # Nothing new: the helper must not wait for more than there is.
    with peers.run(place.device(), "git-upload-pack 'git/origin'", protocol=protocol) as remote:
        with remote.pipes() as (read, write):
            git(
                "fetch",
                "-q",
                f"fd::{read},{write}",
                "refs/heads/*:refs/heads/*",
                cwd=empty,
                pass_fds=(read, write),
            )
        assert remote.finish(10) == 0
    assert len(place.handlers.asked) == 1


def test_git_pushes_through_pipes(place: Place, peers: Peers, origin: Path, empty: Path) -> None:
    place.handlers.repositories["git/empty"] = empty
    with peers.run(place.device(), "git-receive-pack 'git/empty'") as remote:
        with remote.pipes() as (read, write):
            git("push", "-q", f"fd::{read},{write}", "main", cwd=origin, pass_fds=(read, write))
        assert remote.finish(10) == 0
    assert git("rev-parse", "main", cwd=empty) == git("rev-parse", "main", cwd=origin)


def test_git_clones_over_the_endpoint(place: Place, origin: Path, tmp_path: Path) -> None:
    env = {**os.environ, "GIT_SSH_COMMAND": " ".join(place.ssh("")[:-1]), "GIT_SSH_VARIANT": "ssh"}
    git(
        "clone", "-q", f"ssh://git@127.0.0.1:{place.address[1]}/git/origin.git", "copy", cwd=tmp_path, env=env
    )
    assert place.handlers.calls[0][2] == "version=2"
    assert git("rev-parse", "main", cwd=tmp_path / "copy") == git("rev-parse", "main", cwd=origin)


def test_pipes_leave_nothing_behind(place: Place, peers: Peers) -> None:
    """Neither when all goes well, nor when the child stops half-way, nor when the block is left by an error."""
    with peers.run(place.device(), "git-upload-pack 'hello'") as remote:
        remote.finish(10)

    def open_files() -> set[str]:
        return set(os.listdir("/proc/self/fd"))

    threads, files = threading.active_count(), len(open_files())
    for _ in range(5):
        with peers.run(place.device(), "git-upload-pack 'echo'") as remote:
            with remote.pipes() as (read, write):
                os.write(write, b"hello")
                assert os.read(read, 100) == b"hello"
            assert remote.finish(10) == 0
        with peers.run(place.device(), "git-upload-pack 'endless'") as remote:
            with remote.pipes() as (read, write):
                subprocess.run(["head", "-c", "100000"], stdin=read, stdout=subprocess.DEVNULL, check=True)
        with peers.run(place.device(), "git-upload-pack 'stall'") as remote:
            with pytest.raises(KeyError), remote.pipes() as (read, write):
                raise KeyError
    until(lambda: threading.active_count() <= threads, "no thread is left")
    assert len(open_files()) == files


def test_a_grandchild_that_stays_holds_nothing_up(place: Place, peers: Peers) -> None:
    """As git's own maintenance does, in the background."""
    with peers.run(place.device(), "git-upload-pack 'digest'") as remote:
        with remote.pipes() as (read, write):
            stays = subprocess.Popen(["sleep", "60"], pass_fds=(read, write))
            os.write(write, b"x" * 100_000)
        assert remote.finish(10) == 0
    stays.kill()
    stays.wait()


def test_a_child_sees_the_end_of_a_connection_that_is_lost(place: Place, peers: Peers) -> None:
    with peers.run(place.device(), "git-upload-pack 'endless'") as remote:
        with remote.pipes() as (read, _):
            child = subprocess.Popen(["cat"], stdin=read, stdout=subprocess.DEVNULL)
            place.server.close(0)
            assert child.wait(10) == 0
        with pytest.raises(PeerFailed):
            remote.finish(10)
