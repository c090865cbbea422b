"""An SSH endpoint with handlers that do as they are told, and ways to reach it."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import paramiko  # type: ignore[import-untyped,unused-ignore]

from cluster.client import Client
from cluster.errors import ClientGone, DatabaseUnavailable, Frozen
from cluster.keyfiles import write_keypair
from cluster.model import Actor, ActorKind, Device, DeviceMode
from cluster.ssh import SshServer
from cluster.ssh_command import Command, ServiceCommand

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

    def certified(self, key_type: str, certificate: str, address: str | None) -> Actor | None:
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


def git(*arguments: str, cwd: Path, **more: Any) -> str:
    settings = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]
    result = subprocess.run(["git", *settings, *arguments], cwd=cwd, capture_output=True, timeout=60, **more)
    assert result.returncode == 0, result.stderr.decode()
    return str(result.stdout.decode().strip())
