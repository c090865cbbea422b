"""The demo from its beginning to its end."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cluster
from cluster import config, embedded
from cluster.db import Database
from cluster.demo.place import Place, place
from cluster.demo.screen import Screen
from cluster.demo.signals import Signals, Stopped
from cluster.demo.tour import CheckFailed, Tour
from cluster.errors import ClusterError
from cluster.loopback import USER, Loopback, LoopbackDevice
from cluster.model import Snapshot

REPOSITORY = "demo/app"
MIN_COPIES = 2
PATIENCE = 30.0
"""Seconds for devices to come up and for replicas to become current."""


def run(directory: Path | None, devices: int, source: str | None, *, serve: bool, as_json: bool) -> int:
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # of connections that a signal cuts off
    screen = Screen(sys.stderr if as_json else sys.stdout)
    serving = False
    with Signals() as signals:
        try:
            with place(directory, signals) as found:
                demo = Demo(found, screen, signals)
                demo.bring_up(devices, source)
                serving = as_json and serve  # who has read the line may send a signal at once
                if as_json:
                    print(json.dumps(demo.document()), flush=True)
                if not (as_json and serve):
                    Tour(demo.loopback, demo.git_cluster, REPOSITORY, screen, signals).run()
                if serve:
                    demo.say_how_to_use_it()
                    serving = True
                    demo.wait()
            demo.say_goodbye()
        except CheckFailed:
            return 1
        except Stopped as stop:
            if serving:
                demo.say_goodbye()
            return 0 if serving else 128 + stop.number
    return 0


class Demo:
    """A loopback cluster in a demo's directory."""

    def __init__(self, found: Place, screen: Screen, signals: Signals) -> None:
        self._place, self._screen, self._signals = found, screen, signals
        self._began = time.monotonic()
        self.loopback: Loopback

    # ------------------------------------------------------------------------------------------- set up

    def bring_up(self, devices: int, source: str | None) -> None:
        """Everything up and usable: all devices online, the repository imported and current everywhere."""
        known = self._place.devices_of_last_time()
        names = known or [chr(ord("a") + number) for number in range(devices)]
        here = "one device" if len(names) == 1 else f"{len(names)} devices"
        self._screen.heading(f"git-cluster demo: {here} and a PostgreSQL, all on this machine")
        self._screen.say(
            f"in {self._place.directory}{'' if self._place.keep else ' (removed at the end)'}", 2
        )
        if known and (source or len(known) != devices):
            self._screen.say("A demo was set up here before; it comes up again as it is.", 2)
        self._start_postgres()
        self._set_up(names, again=bool(known))
        self._start_devices()
        if not known:
            self._import(source)
            self._place.note_complete(names)
        self._await_current()

    def _start_postgres(self) -> None:
        with self._signals.deferred():
            self.loopback = Loopback(self._place.directory, embedded.start(self._place.postgres))
        self._screen.good(f"PostgreSQL is up ({self._elapsed()})")

    def _set_up(self, names: list[str], *, again: bool) -> None:
        with self._signals.deferred():
            if again:
                reopen(self.loopback, names)
            else:
                self.loopback.set_up(names)

    def _start_devices(self) -> None:
        names = list(self.loopback.devices)
        with self._signals.deferred(), ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(self.loopback.start, names))
        with Database(self.loopback.database, application_name="git-cluster demo").open() as db:
            wait(lambda: all(device.online for device in db.devices()), "the devices are not online")
        for device in self.loopback.devices.values():
            self._screen.good(
                f"device {device.name} serves {device.url} (pid {device.pid}, {self._elapsed()})"
            )

    def _import(self, source: str | None) -> None:
        place = source or str(own_repository(self._place.directory))
        copies = str(min(MIN_COPIES, len(self.loopback.devices)))
        words = ["repo", "import", REPOSITORY, place, "--min-copies", copies]
        self._screen.command(shlex.join(["git-cluster", *words]))
        done = subprocess.Popen(
            [*self.git_cluster, *words],
            env={**os.environ, config.VARIABLE: str(self.loopback.config)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        try:
            out, errors = done.communicate()
        except BaseException:
            done.terminate()  # it takes back what it has begun
            done.wait()
            raise
        if done.returncode:
            raise _error(errors)
        self._screen.output(out)

    def _await_current(self) -> None:
        with Database(self.loopback.database, application_name="git-cluster demo").open() as db:
            wait(lambda: current(db.snapshot(REPOSITORY)), f"{REPOSITORY} is not current on every device")
            version = db.snapshot(REPOSITORY).repository.version
        self._screen.good(f"{REPOSITORY} is at version {version} on every device ({self._elapsed()})")

    # --------------------------------------------------------------------------------------------- serving

    @property
    def git_cluster(self) -> list[str]:
        return [sys.executable, "-m", "cluster"]

    def document(self) -> dict[str, object]:
        """The line for programs."""
        loopback = self.loopback
        return {
            "config": str(loopback.config),
            "database": loopback.database,
            "identity": str(loopback.identity),
            "ssh_config": str(loopback.ssh_config),
            "repository": REPOSITORY,
            "devices": [
                {
                    "name": device.name,
                    "ssh": device.url,
                    "http": device.http_url,
                    "pid": device.pid,
                    "config": str(device.config),
                }
                for device in loopback.devices.values()
            ],
        }

    def say_how_to_use_it(self) -> None:
        loopback, screen = self.loopback, self._screen
        devices = list(loopback.devices.values())
        ssh = f"ssh -F {shlex.quote(str(loopback.ssh_config))}"
        screen.heading("The cluster stays up until Ctrl-C. In another terminal:")
        screen.verbatim("")
        screen.verbatim(f"  export GIT_SSH_COMMAND={shlex.quote(ssh)}")
        screen.verbatim(f"  git clone {devices[0].url}/{REPOSITORY} && cd {REPOSITORY.rpartition('/')[2]}")
        for device in devices:
            screen.verbatim(f"  git push {device.url}/{REPOSITORY} HEAD:a-branch-on-{device.name}")
        program = f"{shlex.join(_program())} --config {shlex.quote(str(loopback.config))}"
        screen.verbatim(f"  {program} status")
        if (url := devices[0].http_url) is not None:
            clone = f"git clone {url.replace('//', f'//{USER}:$TOKEN@')}/{REPOSITORY} over-http"
            screen.verbatim(f"  TOKEN=$({program} token add {USER})")
            screen.verbatim(f"  {clone}")
            screen.verbatim(f"  xdg-open {url}/-/   # the status page: sign in with that token")
        screen.verbatim("")

    def wait(self) -> None:
        """Until a signal. Devices that somebody kills are reaped, so that their pids vanish; nobody restarts them."""
        while True:
            for device in self.loopback.devices.values():
                if device.process:
                    device.process.poll()
            time.sleep(0.1)

    def say_goodbye(self) -> None:
        """After the end."""
        self._screen.say()
        if self._place.keep:
            again = shlex.join(["git-cluster", "demo", "--dir", str(self._place.directory), "--serve"])
            self._screen.say(f"Everything is stopped, and kept in {self._place.directory}.")
            self._screen.verbatim(f"Bring it up again: {again}")
        else:
            self._screen.say("Everything is stopped and removed.")

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._began:.1f} s"


def reopen(loopback: Loopback, names: Sequence[str]) -> None:
    """Take over the devices of last time: their keys, ports and disks stay, the database's place may have changed."""
    for name in names:
        device = LoopbackDevice(name, loopback.directory / name, 0)
        _set_database(device.config, loopback.database)
        kept = config.load(device.config, {})
        assert kept.ssh is not None
        device.port = kept.ssh.listen.port
        device.http_port = kept.http.listen.port if kept.http else None
        loopback.devices[name] = device
    _set_database(loopback.config, loopback.database)


def _set_database(file: Path, url: str) -> None:
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(f'database = "{url}"\n' if s.startswith("database = ") else s for s in lines))


def own_repository(directory: Path) -> Path:
    """This project's repository; where this is not a whole checkout of it, one that is made of the program's files."""
    package = Path(cluster.__file__).parent
    checkout = package.parent
    whole = ["git", "-C", str(checkout), "rev-parse", "--is-shallow-repository", "--verify", "HEAD"]
    if (checkout / ".git").exists():
        answer = subprocess.run(whole, capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.startswith("false"):
            return checkout
    return _make_repository(directory / "source", sorted(package.glob("*.py")))


def _make_repository(path: Path, files: Sequence[Path]) -> Path:
    """A repository whose every commit adds one of `files`."""

    def git(*words: str) -> None:
        subprocess.run(["git", *_AUTHOR, *words], cwd=path, check=True, capture_output=True)

    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    git("init", "--quiet", "-b", "main")
    for file in files:
        shutil.copy(file, path)
        git("add", file.name)
        git("commit", "--quiet", "--no-gpg-sign", "-m", f"Add {file.name}")
    return path


_AUTHOR = ("-c", "user.name=Demo", "-c", "user.email=demo@example.com")


def current(snapshot: Snapshot) -> bool:
    """Whether every replica is at the newest version, and none is being written."""
    newest = snapshot.repository.position
    return all(r.position == newest and not r.quarantined and not r.intent for r in snapshot.replicas)


def wait(condition: Callable[[], bool], otherwise: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{otherwise} after {seconds:g} s", hint="their logs are <dir>/<device>/serve.log"
            )
        time.sleep(0.05)


def _error(stderr: str) -> ClusterError:
    """What a command of ours said, as an error of our own."""
    lines = [line.strip() for line in stderr.strip().splitlines()]
    first = next((number for number, line in enumerate(lines) if line.startswith("git-cluster: ")), 0)
    what, *hint = lines[first:] or ["a command failed and said nothing"]
    return ClusterError(what.removeprefix("git-cluster: "), hint=" ".join(hint))


def _program() -> list[str]:
    """How a person runs this program from another terminal."""
    if shutil.which("git-cluster"):
        return ["git-cluster"]
    beside = Path(sys.executable).with_name("git-cluster")
    if beside.is_relative_to(Path.cwd()):
        beside = beside.relative_to(Path.cwd())
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "cluster"]
