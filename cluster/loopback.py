"""A whole cluster on one machine: what `git-cluster demo` shows and what the acceptance tests break.

Nothing in it is pretended: each device is a `git-cluster serve` process with a configuration, keys and a disk of
its own, on a loopback port; the database is PostgreSQL; the client is stock Git over stock OpenSSH.

    <directory>/cluster.toml            for the administrator's command line: no [device]
    <directory>/<device>/config.toml    and its keys, data/ and log
    <directory>/ssh_config, demo_ed25519, known_hosts
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cluster import keys
from cluster.db import Database
from cluster.errors import ClusterError
from cluster.keyfiles import write_keypair
from cluster.model import Level

USER = "demo"
READY = 30.0
"""Seconds for a device to start: a Python process, a database connection, a port."""


@dataclass(slots=True)
class LoopbackDevice:
    """One device: where it is, and its process while it runs."""

    name: str
    directory: Path
    port: int
    host: str = "127.0.0.1"
    user: str = "git"
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    http_port: int | None = None

    @property
    def config(self) -> Path:
        return self.directory / "config.toml"

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "serve.log"

    @property
    def url(self) -> str:
        return f"ssh://{self.user}@{self.host}:{self.port}"

    @property
    def http_url(self) -> str | None:
        return f"http://{self.host}:{self.http_port}" if self.http_port else None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None


class Loopback:
    """A cluster under `directory` on the PostgreSQL at `database`.

    writes, sections: [writes], and further tables, of every device's configuration; their values are TOML. What they
    say of [device] comes beside what is needed there.
    """

    def __init__(
        self,
        directory: Path,
        database: str,
        *,
        writes: Mapping[str, str] | None = None,
        sections: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.directory = directory
        self.database = database
        self.devices: dict[str, LoopbackDevice] = {}
        self._sections = {"writes": dict(writes or {}), **(sections or {})}

    # ------------------------------------------------------------------------------------------ set up

    @property
    def config(self) -> Path:
        return self.directory / "cluster.toml"

    @property
    def identity(self) -> Path:
        return self.directory / "demo_ed25519"

    @property
    def ssh_config(self) -> Path:
        return self.directory / "ssh_config"

    def set_up(self, names: list[str]) -> None:
        """Files, keys, schema, devices and one user who may do everything. No process yet."""
        self.directory.mkdir(parents=True, exist_ok=True)
        _write(self.config, self._cluster_section(self.database) + self._tables("webhooks"))
        with Database(self.database).open(any_schema=True) as db:
            db.init("demo")
            for name in names:
                self._add_device(db, name)
            key = _key(write_keypair(self.identity, USER))
            db.add_user(USER)
            db.add_key(USER, key.fingerprint, key.line, USER)
            db.grant(Level.ADMIN, USER, "*")
        self._write_ssh_config()

    def _add_device(self, db: Database, name: str) -> None:
        device = self.new_device(name)
        device.directory.mkdir(exist_ok=True)
        key = _key(write_keypair(device.directory / "device_ed25519", name))
        host_key = _key(write_keypair(device.directory / "host_ed25519", name))
        tables = self._tables(*self._sections)
        _write(
            device.config,
            f"""{self._cluster_section(self.database_of(name))}
[device]
name = "{name}"
data_dir = "data"
key = "device_ed25519"
{self._options("device")}
{self.endpoint_section(device)}
{self.http_section(device)}
{tables}""",
        )
        db.add_device(
            name,
            ssh_url=self.peer_url(device),
            http_url=device.http_url,
            fingerprint=key.fingerprint,
            public_key=key.line,
            host_key=host_key.line,
        )
        self.devices[name] = device

    def _tables(self, *names: str) -> str:
        return "\n".join(
            f"[{name}]\n{self._options(name)}"
            for name in names
            if name in self._sections and name != "device"
        )

    def _options(self, name: str) -> str:
        return "".join(f"{option} = {value}\n" for option, value in self._sections.get(name, {}).items())

    # Where things are and how they are reached: what a cluster on another network than loopback does otherwise.

    def new_device(self, name: str) -> LoopbackDevice:
        """A device, and where it is to listen."""
        return LoopbackDevice(name, self.directory / name, free_port(), http_port=free_port())

    def database_of(self, name: str) -> str:
        """The URL by which a device reaches the database."""
        return self.database

    def peer_url(self, device: LoopbackDevice) -> str:
        """The URL by which its peers reach a device."""
        return device.url

    def endpoint_section(self, device: LoopbackDevice) -> str:
        """What a device's configuration says of the endpoint at its URL."""
        return f"""[ssh]
listen = "{device.host}:{device.port}"
advertise = "{self.peer_url(device)}"
host_key = "host_ed25519"
"""

    def http_section(self, device: LoopbackDevice) -> str:
        """The same of HTTP."""
        if device.http_port is None:
            return ""
        return f"""[http]
listen = "{device.host}:{device.http_port}"
advertise = "{device.http_url}"
"""

    def command(self, device: LoopbackDevice) -> list[str]:
        """The command that serves as `device`."""
        return [sys.executable, "-m", "cluster", "--config", str(device.config), "serve"]

    def _cluster_section(self, database: str) -> str:
        return f'[cluster]\ndatabase = "{database}"\nname = "demo"\n'

    def _write_ssh_config(self) -> None:
        known = self.directory / "known_hosts"
        lines = []
        for device in self.devices.values():
            public = (device.directory / "host_ed25519.pub").read_text().split()
            lines.append(f"[{device.host}]:{device.port} {public[0]} {public[1]}\n")
        known.write_text("".join(lines))
        _write(
            self.ssh_config,
            f"""Host *
    User {next(iter(self.devices.values())).user}
    IdentityFile "{self.identity}"
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile "{known}"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    BatchMode yes
    LogLevel ERROR
""",
        )

    # ------------------------------------------------------------------------------------------ processes

    def start(self, name: str, *, fault: str = "") -> None:
        """Start a device and wait until it answers. `fault`: a GIT_CLUSTER_FAULT."""
        device = self.devices[name]
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        env.pop("GIT_CLUSTER_FAULT", None)
        if fault:
            env["GIT_CLUSTER_FAULT"] = fault
        with device.log.open("ab") as log:
            device.process = subprocess.Popen(
                self.command(device),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                start_new_session=True,
            )
        self._wait_until_ready(device)

    def _wait_until_ready(self, device: LoopbackDevice) -> None:
        assert device.process is not None
        deadline = time.monotonic() + READY
        while True:
            if device.process.poll() is not None:
                last = device.log.read_text(errors="replace").strip().splitlines()[-2:]
                raise ClusterError(f"device {device.name} did not start: {' '.join(last)}")
            try:
                with socket.create_connection((device.host, device.port), timeout=1) as probe:
                    if probe.recv(4) == b"SSH-":
                        return
            except OSError:
                if time.monotonic() > deadline:
                    raise ClusterError(f"device {device.name} did not start in {READY:g} s") from None
                time.sleep(0.02)

    def stop(self, name: str, *, how: signal.Signals = signal.SIGTERM, timeout: float = 30.0) -> int | None:
        """Send a signal and wait for the end; the exit code. None: it was not running."""
        device = self.devices[name]
        process, device.process = device.process, None
        if process is None:
            return None
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(how)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def stop_all(self) -> None:
        """End every device: all are told first, then waited for."""
        for device in self.devices.values():
            if device.process is not None and device.process.poll() is None:
                device.process.send_signal(signal.SIGCONT)
                device.process.send_signal(signal.SIGTERM)
        for name in self.devices:
            self.stop(name)

    def git_environment(self) -> dict[str, str]:
        """The environment in which plain `git` reaches the devices as the demo's user."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        env.update(
            GIT_SSH_COMMAND=f'ssh -F "{self.ssh_config}"',
            GIT_CONFIG_NOSYSTEM="1",
            GIT_CONFIG_GLOBAL=os.devnull,
            GIT_TERMINAL_PROMPT="0",
            GIT_AUTHOR_NAME="Demo",
            GIT_AUTHOR_EMAIL="demo@example.com",
            GIT_COMMITTER_NAME="Demo",
            GIT_COMMITTER_EMAIL="demo@example.com",
        )
        return env


def _key(line: str) -> keys.PublicKey:
    return keys.parse(line)


def _write(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


PORTS = range(10_000, 32_000)
"""Below the ports that systems give to connections that go out, which come and go between a look and a start."""


def free_port() -> int:
    """One that nobody listens on now."""
    for _ in range(1000):
        port = PORTS[secrets.randbelow(len(PORTS))]
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ClusterError("no port is free on this machine", hint="end what listens on so many")
