"""A loopback cluster as tests handle it: real devices, and the words of a transcript to drive and question them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from dulwich.protocol import Protocol

from cluster.db import Database
from cluster.loopback import Loopback, LoopbackDevice
from cluster.model import Checksum, LogEntry, Snapshot
from cluster.versions import checksum_of

T = TypeVar("T")
DEADLINE = 60.0


@dataclass(frozen=True)
class Done:
    """A finished command: exit code and everything it said."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


class Cluster(Loopback):
    """A cluster that a test made. `git`, `admin` and `work` are what a person would type."""

    def __init__(
        self,
        directory: Path,
        database: str,
        writes: Mapping[str, str],
        sections: Mapping[str, Mapping[str, str | int]] | None = None,
        *,
        http: bool = True,
    ) -> None:
        super().__init__(
            directory,
            database,
            writes=_toml(writes),
            sections={name: _toml(options) for name, options in (sections or {}).items()},
        )
        self._http = http
        self._db: Database | None = None

    def new_device(self, name: str) -> LoopbackDevice:
        device = super().new_device(name)
        return device if self._http else replace(device, http_port=None)

    @property
    def db(self) -> Database:
        """The cluster's database, for setting up and for looking behind the curtain."""
        if self._db is None:
            self._db = Database(self.database, application_name="test").open()
        return self._db

    def close(self) -> None:
        self.stop_all()
        if self._db is not None:
            self._db.close()

    def roots(self) -> list[int]:
        """The processes that everything which serves here descends from, the database aside."""
        return [device.pid for device in self.devices.values() if device.pid]

    def create(
        self, name: str, *, devices: str | None = None, min_copies: int = 1, object_format: str = "sha1"
    ) -> int:
        """A new empty repository on all devices (or those named), with HEAD at main."""
        head = "ref: refs/heads/main"
        return self.db.create_repository(
            name,
            checksum=checksum_of({"HEAD": head}),
            head=head,
            object_format=object_format,
            min_copies=min_copies,
            devices=list(devices or self.devices),
            actor="test",
        )

    def url(self, device: str, repository: str = "team/app") -> str:
        return f"{self.devices[device].url}/{repository}"

    def git(
        self,
        *arguments: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = DEADLINE,
    ) -> Done:
        """Stock git as the demo's user; whatever its exit code."""
        done = subprocess.run(
            ["git", *arguments],
            cwd=cwd or self.directory,
            env={**self.git_environment(), **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
        )
        return Done(
            done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )

    def ok(self, *arguments: str, cwd: Path | None = None, timeout: float = DEADLINE) -> str:
        """Stock git that has to succeed; its standard output."""
        done = self.git(*arguments, cwd=cwd, timeout=timeout)
        assert done.code == 0, f"git {' '.join(arguments)} failed:\n{done.text}"
        return done.out

    def spawn(self, *arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        """Stock git in the background, with its output merged."""
        return subprocess.Popen(
            ["git", *arguments],
            cwd=cwd or self.directory,
            env=self.git_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def admin(self, *arguments: str, config: Path | None = None, timeout: float = DEADLINE) -> Done:
        """The real `git-cluster` command line with the administrator's configuration."""
        done = subprocess.run(
            [sys.executable, "-m", "cluster", "--config", str(config or self.config), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
        )
        return Done(
            done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )

    def admin_json(self, *arguments: str) -> Any:
        done = self.admin(*arguments, "--json")
        assert done.code == 0, done.text
        return json.loads(done.out)

    # --------------------------------------------------------------------------------- working copies

    def work(self, name: str = "work") -> Path:
        """A new working repository with one commit on main."""
        path = self.directory / name
        self.ok("init", "--quiet", "-b", "main", str(path))
        self.commit(path, "one")
        return path

    def commit(self, work: Path, message: str = "a change", **files: str) -> str:
        """One more commit in `work` (which writes `files`, or one named after the message); its object id."""
        for file, text in (files or {f"{message.replace(' ', '-')}.txt": message}).items():
            (work / file).parent.mkdir(parents=True, exist_ok=True)
            (work / file).write_text(text)
        self.ok("add", "--all", cwd=work)
        self.ok("commit", "--quiet", "--allow-empty", "-m", message, cwd=work)
        return self.ok("rev-parse", "HEAD", cwd=work).strip()

    def refs(self, device: str, repository: str = "team/app") -> dict[str, str]:
        """What a user's ls-remote shows on a device."""
        lines = self.ok("ls-remote", self.url(device, repository)).splitlines()
        return {ref: oid for oid, ref in (line.split("\t") for line in lines)}

    # --------------------------------------------------------------------------------- behind the curtain

    def disk(self, device: str, repository: str = "team/app") -> Path:
        """The bare repository on a device's disk."""
        number = self.snapshot(repository).repository.id
        return self.devices[device].data_dir / "repositories" / f"{number // 1000:03d}" / f"{number}.git"

    def snapshot(self, repository: str = "team/app") -> Snapshot:
        return self.db.snapshot(repository)

    def version(self, repository: str = "team/app") -> int:
        return self.snapshot(repository).repository.version

    def checksum(self, device: str, repository: str = "team/app") -> Checksum:
        """Of what is really on a device's disk, computed here and now by Git."""
        path = self.disk(device, repository)
        lines = self.ok(f"--git-dir={path}", "for-each-ref", "--format=%(objectname) %(refname)").splitlines()
        refs = {
            ref: oid
            for oid, ref in (line.split(" ") for line in lines)
            if not ref.startswith("refs/cluster/")
        }
        return checksum_of({**refs, "HEAD": (path / "HEAD").read_text().strip()})

    def converged(self, repository: str = "team/app") -> bool:
        """Whether every replica's row is at the newest version and every disk holds exactly that."""
        snapshot = self.snapshot(repository)
        newest = snapshot.repository.position
        rows = all(r.position == newest and not r.quarantined and not r.intent for r in snapshot.replicas)
        return rows and all(
            self.checksum(r.device.name, repository) == newest.checksum for r in snapshot.replicas
        )

    def converge(self, repository: str = "team/app") -> None:
        """Wait until all replicas are equal, then let Git check each of them."""
        self.wait(lambda: self.converged(repository), "the replicas are equal")
        for replica in self.snapshot(repository).replicas:
            self.ok(f"--git-dir={self.disk(replica.device.name, repository)}", "fsck", "--full", "--strict")

    def wait(self, condition: Callable[[], T], what: str, timeout: float = DEADLINE) -> T:
        """Wait for a condition, never for a time."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
            time.sleep(0.05)
        return value


def _toml(options: Mapping[str, str | int]) -> dict[str, str]:
    return {key: f'"{value}"' if isinstance(value, str) else str(value) for key, value in options.items()}


class Project:
    """One repository of a cluster and a person's working copy of it."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        self._folder = name.replace("/", "-")
        self.work = cluster.work(f"{self._folder}-work")
        self._clones = 0

    @classmethod
    def named(cls, cluster: Cluster, test: str, *, min_copies: int = 1) -> Project:
        """A new repository named after a test, on all devices."""
        words = "".join(c if c.isalnum() else "-" for c in test.removeprefix("test_"))
        name = f"team/{words.strip('-')[:80]}"
        cluster.create(name, min_copies=min_copies)
        cluster.wait(lambda: cluster.converged(name), "the new repository is everywhere")
        return cls(cluster, name)

    def url(self, device: str) -> str:
        return self.cluster.url(device, self.name)

    def commit(self, message: str = "a change", **files: str) -> str:
        return self.cluster.commit(self.work, message, **files)

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        """Stock git in the working copy; it has to succeed."""
        return self.cluster.ok(*arguments, cwd=cwd or self.work).strip()

    def push(self, device: str, *arguments: str, cwd: Path | None = None, config: Sequence[str] = ()) -> Done:
        """`git push <options> <url> <refs>`, whatever becomes of it."""
        options = [a for a in arguments if a.startswith("--")]
        refs = [a for a in arguments if not a.startswith("--")]
        settings = [word for setting in config for word in ("-c", setting)]
        return self.cluster.git(*settings, "push", *options, self.url(device), *refs, cwd=cwd or self.work)

    def pushed(
        self, device: str, *arguments: str, cwd: Path | None = None, config: Sequence[str] = ()
    ) -> Done:
        """The same, where it has to succeed."""
        done = self.push(device, *arguments, cwd=cwd, config=config)
        assert done.code == 0, done.text
        return done

    def refused(self, device: str, *arguments: str, cwd: Path | None = None) -> Done:
        """The same, where it has to fail."""
        done = self.push(device, *arguments, cwd=cwd)
        assert done.code != 0, done.text
        return done

    def clone(self, device: str, *options: str) -> Path:
        """A new clone from `device`."""
        self._clones += 1
        path = self.cluster.directory / f"{self._folder}-clone{self._clones}"
        self.cluster.ok("clone", "--quiet", *options, self.url(device), str(path))
        return path

    def refs(self, device: str) -> dict[str, str]:
        return self.cluster.refs(device, self.name)

    @property
    def version(self) -> int:
        return self.cluster.version(self.name)

    def disk(self, device: str) -> Path:
        return self.cluster.disk(device, self.name)

    def log(self) -> list[LogEntry]:
        """The push log, oldest first."""
        id = self.cluster.snapshot(self.name).repository.id
        return self.cluster.db.log(id, limit=10_000)[::-1]

    def converge(self) -> None:
        self.cluster.converge(self.name)


class RawPush:
    """A push client of our own over stock ssh, for what stock git never sends or never waits for."""

    def __init__(self, cluster: Cluster, device: str, repository: str = "team/app") -> None:
        port, command = str(cluster.devices[device].port), f"git-receive-pack '{repository}'"
        self.process = subprocess.Popen(
            ["ssh", "-F", str(cluster.ssh_config), "-p", port, "127.0.0.1", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.git = Protocol(self.process.stdout.read, self._write)
        self.refs: dict[str, str] = {}
        self.capabilities: set[str] = set()
        for packet in self.git.read_pkt_seq():
            line, _, capabilities = packet.rstrip(b"\n").partition(b"\0")
            self.capabilities |= set(capabilities.decode().split())
            oid, _, ref = line.decode().partition(" ")
            self.refs[ref] = oid

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def propose(self, *updates: tuple[str, str, str], capabilities: str = "report-status") -> None:
        """Send (old, new, ref) commands, and what this client can do with the answer."""
        for number, update in enumerate(updates):
            line = " ".join(update) + (f"\0{capabilities}" if number == 0 and capabilities else "")
            self.git.write_pkt_line(line.encode())
        self.git.write_pkt_line(None)

    def send(self, data: bytes) -> None:
        self._write(data)

    def report(self) -> list[str]:
        """The lines of a report that comes without side-band."""
        return [line.decode().rstrip("\n") for line in self.git.read_pkt_seq()]

    def finish(self) -> Done:
        """Close our side and take everything that still comes."""
        out, err = self.process.communicate(timeout=DEADLINE)
        return Done(self.process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
