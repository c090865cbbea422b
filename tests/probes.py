"""What tests that mean harm share: an SSH client that sends any bytes, and a look at processes and disks."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import paramiko  # type: ignore[import-untyped,unused-ignore]
from dulwich.protocol import Protocol, pkt_line

from cluster import keys
from cluster.keyfiles import write_keypair
from cluster.loopback import LoopbackDevice
from tests.cluster_fixture import Cluster, Project

PATIENCE = 30.0
"""Seconds for an answer over loopback; a test that needs them fails for another reason than slowness."""


@dataclass(frozen=True)
class Answer:
    """What came back from one command. `code`: None where the connection ended without an exit status."""

    code: int | None
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


class Login:
    """An authenticated connection of plain paramiko's to a device: one command after another, in any bytes."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport

    def channel(self, command: bytes | None) -> Any:
        """A channel on which `command` has begun; None: a shell."""
        channel = self.transport.open_session(timeout=PATIENCE)
        channel.settimeout(PATIENCE)
        if command is None:
            channel.invoke_shell()
        else:
            channel.exec_command(command)
        return channel

    def ask(self, command: bytes | str | None, data: bytes = b"") -> Answer:
        """Run a command to its end."""
        channel = self.channel(
            command.encode("utf-8", "surrogateescape") if isinstance(command, str) else command
        )
        with suppress(OSError):  # who refuses does not read
            channel.sendall(data)
        with suppress(OSError):
            channel.shutdown_write()
        return rest(channel)


def rest(channel: Any) -> Answer:
    """All that still comes on a channel, then its exit status."""
    out, err, deadline = b"", b"", time.monotonic() + PATIENCE
    channel.settimeout(0.05)
    while not (channel.eof_received or channel.closed) or channel.recv_ready() or channel.recv_stderr_ready():
        assert time.monotonic() < deadline, f"no end of {out[:200]!r} {err[:200]!r}"
        with suppress(TimeoutError):
            out += channel.recv(1 << 16)
        while channel.recv_stderr_ready():
            err += channel.recv_stderr(1 << 16)
    channel.status_event.wait(PATIENCE)
    channel.close()
    code = channel.exit_status
    return Answer(code if code >= 0 else None, out, err.decode(errors="replace"))


@contextmanager
def login(device: LoopbackDevice, key: Path) -> Iterator[Login]:
    """A connection to a device with a private key. paramiko.AuthenticationException where it is nobody's."""
    transport = paramiko.Transport(socket.create_connection(("127.0.0.1", device.port), PATIENCE))
    try:
        transport.start_client(timeout=PATIENCE)
        transport.auth_publickey(device.user, paramiko.PKey.from_path(key))
        yield Login(transport)
    finally:
        transport.close()


def device_key(device: LoopbackDevice) -> Path:
    return device.directory / "device_ed25519"


def new_user(cluster: Cluster, name: str) -> Path:
    """A user without any grant; where the private key is."""
    path = cluster.directory / f"{name}_ed25519"
    key = keys.parse(write_keypair(path, name))
    cluster.db.add_user(name)
    cluster.db.add_key(name, key.fingerprint, key.line, name)
    return path


def git_processes(cluster: Cluster) -> list[str]:
    """The Git processes that work in this cluster's folders, but for those that a test itself started."""
    found, folder = [], os.fsencode(cluster.directory)
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes()
            if (
                os.path.basename(words.split(b"\0")[0]).startswith(b"git")
                and (folder in words or folder in environment)
                and b"GIT_SSH_COMMAND=" not in environment
            ):
                found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


def no_git_left(cluster: Cluster) -> None:
    """Wait until every Git process that a device started has ended."""
    cluster.wait(lambda: not git_processes(cluster), "no Git process is left over", PATIENCE)


def on_disk(device: LoopbackDevice) -> set[str]:
    """Every file and folder of a device that it would serve from or act on; not its scratch, nor folders of refs."""
    found = set()
    for path in device.directory.rglob("*"):
        parts = path.relative_to(device.directory).parts
        if parts[1:2] not in [("run",), ("locks",)] and not ("refs" in parts and path.is_dir()):
            found.add("/".join(parts))
    return found


def presentable(text: str, cluster: Cluster) -> None:
    """What a person may be shown: no traceback, no path of the server, no SQL, no control character."""
    assert "Traceback" not in text and "Error(" not in text, text
    assert str(cluster.directory) not in text, text
    assert not re.search(r"\b(select|insert|update|delete) .* (from|into|set|where)\b", text), text
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text), ascii(text)


def archive(app: Project, device: str, *words: str) -> bytes:
    """`git archive --remote`. Git speaks that over HTTP from 2.44 on; its request is made here."""
    if not app.url(device).startswith("http:"):
        done = subprocess.run(
            ["git", "archive", f"--remote={app.url(device)}", *words],
            env=app.cluster.git_environment(),
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout
    answer = httpx.post(
        f"{app.url(device)}/git-upload-archive",
        content=b"".join(pkt_line(f"argument {word}\n".encode()) for word in words) + b"0000",
        headers={"Content-Type": "application/x-git-upload-archive-request"},
    )
    assert answer.headers["content-type"] == "application/x-git-upload-archive-result", answer.text
    packets = list(Protocol(BytesIO(answer.content).read, lambda data: None).read_pkt_seq())
    assert packets == [b"ACK\n"]
    bands = Protocol(BytesIO(answer.content[len(b"0008ACK\n0000") :]).read, lambda data: None).read_pkt_seq()
    return b"".join(packet[1:] for packet in bands if packet[:1] == b"\1")
