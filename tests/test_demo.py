"""`git-cluster demo`: real runs of it, and what they leave behind, which must be nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import cluster

DEADLINE = 60.0
DEMO = [sys.executable, "-m", "cluster", "demo"]


def processes_of(directory: Path) -> dict[int, str]:
    """Every live process whose command line names something in `directory`, or that works in it."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            words = entry.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(directory) in words or entry.joinpath("cwd").resolve().is_relative_to(directory):
                found[int(entry.name)] = words
    return found


def wait(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:g} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """Where a test's demos live, temporary ones too. When it is over, no process may be left there."""
    yield tmp_path
    left = processes_of(tmp_path)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left


def environment(here: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(here), **more}


def demo(
    here: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A demo from its beginning to its end; nothing of it may be left."""
    done = subprocess.run(
        [*DEMO, *arguments],
        env=env or environment(here),
        cwd=here,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert not processes_of(here), done.stdout + done.stderr
    return done


class Serving:
    """A `demo --json --serve` that is up."""

    def __init__(self, here: Path, *arguments: str) -> None:
        self.here = here
        self.process = subprocess.Popen(
            [*DEMO, "--json", "--serve", *arguments],
            env=environment(here),
            cwd=here,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(here / "demo.err").open("w"),
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (here / "demo.err").read_text()
        self.document: dict[str, Any] = json.loads(line)
        self.devices: dict[str, dict[str, Any]] = {d["name"]: d for d in self.document["devices"]}

    def url(self, device: str) -> str:
        return f"{self.devices[device]['ssh']}/{self.document['repository']}"

    def git(self, *words: str) -> str:
        """Plain Git, with nothing but the ssh_config that the demo gave."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        done = subprocess.run(
            ["git", "-c", "user.name=Test", "-c", "user.email=test@example.com", *words],
            env={**env, "GIT_SSH_COMMAND": f"ssh -F '{self.document['ssh_config']}'"},
            cwd=self.here,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert done.returncode == 0, f"git {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def push(self, device: str, message: str) -> str:
        """Clone from `device`, push a commit to it; the commit."""
        work = str(self.here / f"work-{time.monotonic_ns()}")
        self.git("clone", "--quiet", self.url(device), work)
        self.git("-C", work, "commit", "--quiet", "--allow-empty", "--no-gpg-sign", "-m", message)
        self.git("-C", work, "push", "--quiet", "origin", "HEAD")
        return self.git("-C", work, "rev-parse", "HEAD")

    def head(self, device: str) -> str:
        return self.git("ls-remote", self.url(device), "HEAD").partition("\t")[0]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        rest, _ = self.process.communicate(timeout=DEADLINE)
        assert (self.process.returncode, rest) == (0, "")


def test_the_tour_succeeds_and_leaves_nothing(here: Path) -> None:
    done = demo(here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks passed" in done.stdout and "✗" not in done.stdout
    assert done.stderr == "" and "\x1b" not in done.stdout
    assert list(here.iterdir()) == []


def test_programs_get_a_line_and_a_quiet_cluster(here: Path) -> None:
    served = Serving(here)
    assert list(served.document) == ["config", "database", "identity", "ssh_config", "repository", "devices"]
    assert list(served.devices) == ["a", "b", "c"]
    for name, device in served.devices.items():
        assert list(device) == ["name", "ssh", "http", "pid", "config"] and device["http"].startswith(
            "http://127."
        )
        os.kill(device["pid"], 0)
        served.git("clone", "--quiet", served.url(name), f"clone-{name}")
        heads = {served.git("-C", f"clone-{name}", "rev-parse", "HEAD"), served.head("a")}
        assert len(heads) == 1
    status = json.loads(
        subprocess.run(
            [
                sys.executable,
                "-m",
                "cluster",
                "--config",
                served.document["config"],
                "status",
                "--check",
                "--json",
            ],
            capture_output=True,
            check=True,
            timeout=DEADLINE,
        ).stdout
    )
    assert status["repositories"][0]["version"] == 1
    assert status["repositories"][0]["min_copies"] == 2
    served.stop()
    assert not processes_of(here)
    assert not list(here.glob("git-cluster-demo-*"))


def test_a_device_may_be_killed_and_started_by_somebody_else(here: Path) -> None:
    served = Serving(here, "--dir", str(here / "d"))
    device = served.devices["b"]
    os.kill(device["pid"], signal.SIGKILL)
    wait(lambda: not Path(f"/proc/{device['pid']}").exists(), "the killed device is gone, and no zombie")
    commit = served.push("a", "while b is down")
    ours = subprocess.Popen(
        [sys.executable, "-m", "cluster", "--config", device["config"], "serve"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert ours.stdout is not None and "serves SSH" in ours.stdout.readline()
    assert served.head("b") == commit
    assert served.push("b", "b is back") == served.head("c")
    served.stop()
    assert ours.wait(DEADLINE) == 0
    assert not processes_of(here)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGHUP])
def test_every_way_to_say_stop(here: Path, how: signal.Signals) -> None:
    Serving(here, "--devices", "1").stop(how)
    assert not processes_of(here)


def test_nothing_outlives_a_demo_that_is_killed(here: Path) -> None:
    served = Serving(here, "--devices", "2")
    served.process.kill()
    served.process.wait()
    wait(lambda: not processes_of(here), "no process is left")
    wait(lambda: not list(here.glob("git-cluster-demo-*")), "the directory is gone")


def test_a_signal_in_the_middle_of_the_set_up(here: Path) -> None:
    process = subprocess.Popen(DEMO, env=environment(here), cwd=here, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "PostgreSQL is up" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + signal.SIGTERM
    assert not processes_of(here)
    assert list(here.iterdir()) == []


def test_one_device(here: Path) -> None:
    done = demo(here, "--devices", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert [device["name"] for device in json.loads(done.stdout)["devices"]] == ["a"]
    assert "checks passed" in done.stderr


def test_what_cannot_be_imported_is_said_in_one_line(here: Path) -> None:
    done = demo(here, "--dir", str(here / "d"), "--devices", "1", "--import", str(here / "nothing"))
    assert done.returncode == 1
    what, hint = done.stderr.splitlines()
    assert what.startswith("git-cluster: ") and "nothing" in what
    assert hint.startswith("  ")
    assert not (here / "d").exists()


def test_a_repository_of_ones_own(here: Path) -> None:
    source = here / "source"
    for words in (
        ["init", "--quiet", "-b", "trunk", str(source)],
        ["-C", str(source), "commit", "--quiet", "--allow-empty", "-m", "mine"],
        ["-C", str(source), "tag", "v1"],
    ):
        subprocess.run(["git", "-c", "user.name=T", "-c", "user.email=t@example.com", *words], check=True)
    served = Serving(here, "--devices", "1", "--import", str(source))
    refs = {
        line.split("\t")[1] for line in served.git("ls-remote", "--symref", served.url("a")).splitlines()[1:]
    }
    assert refs == {"HEAD", "refs/heads/trunk", "refs/tags/v1"}
    served.stop()


def test_a_directory_is_kept_and_comes_up_again(here: Path) -> None:
    place = here / "kept"
    first = Serving(here, "--dir", str(place), "--devices", "2")
    commit = first.push("a", "to be kept")
    busy = subprocess.run(
        [*DEMO, "--dir", str(place)], env=environment(here), capture_output=True, text=True, timeout=DEADLINE
    )
    assert busy.returncode == 1 and "running" in busy.stderr
    assert first.head("b") == commit, "the refused demo touched the one that runs"
    first.stop()
    second = Serving(here, "--dir", str(place))
    assert second.document["devices"] and list(second.devices) == ["a", "b"]
    assert second.url("b") == first.url("b")
    assert second.head("b") == commit
    second.stop()
    done = demo(here, "--dir", str(place))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks passed" in done.stdout


def test_a_failed_check_is_said_and_exits_1(here: Path) -> None:
    """Device a's copy refuses pushes by a hook of its own: the first claim of the tour is not so."""
    place = here / "kept"
    Serving(here, "--dir", str(place), "--devices", "2").stop()
    (repository,) = place.glob("a/data/repositories/*/*.git")
    hook = repository / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho not today >&2\nexit 1\n")
    hook.chmod(0o755)
    done = demo(here, "--dir", str(place))
    assert done.returncode == 1
    assert "not today" in done.stdout and "✗ not so: " in done.stdout
    assert "checks passed" not in done.stdout


def test_a_directory_with_other_things_is_left_alone(here: Path) -> None:
    place = here / "photos"
    place.mkdir()
    (place / "cat.jpg").touch()
    done = demo(here, "--dir", str(place))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2
    assert [entry.name for entry in place.iterdir()] == ["cat.jpg"]


def test_without_a_checkout_it_makes_a_repository(here: Path) -> None:
    """As from a wheel: the package alone, no repository around it."""
    package = Path(cluster.__file__).parent
    shutil.copytree(package, here / "site" / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(package.parent / "schema.sql", here / "site" / "cluster")
    env = environment(here, PYTHONPATH=str(here / "site"))
    done = demo(here, "--devices", "1", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/source --min-copies" in done.stdout
