"""The life of `git-cluster serve`: a clean end, a new beginning, and what it does without being asked."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.endpoints import GRACE
from cluster.model import Device
from tests.cluster_fixture import Cluster
from tests.probes import git_processes, login, no_git_left

STOPS = [signal.SIGTERM, signal.SIGINT]


class Held:
    """A hook of the repository's own on one device that waits for a file."""

    def __init__(self, cluster: Cluster, device: str, hook: str, condition: str = "true") -> None:
        self.reached, self.go = cluster.directory / "hook reached", cluster.directory / "go on"
        path = cluster.disk(device) / "hooks" / hook
        path.write_text(
            f"#!/bin/sh\nif {condition}; then\n: >'{self.reached}'\n"
            f"while [ ! -e '{self.go}' ]; do sleep 0.05; done\nfi\nexit 0\n"
        )
        path.chmod(0o755)


def signalled(cluster: Cluster, device: str, how: signal.Signals) -> subprocess.Popen[bytes]:
    process = cluster.devices[device].process
    assert process is not None
    process.send_signal(how)
    return process


def closed(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False


def state(cluster: Cluster, device: str) -> str:
    states: dict[str, str] = {each["name"]: each["state"] for each in cluster.admin_json("status")["devices"]}
    return states[device]


@pytest.fixture
def two(make_cluster: Callable[..., Cluster]) -> Cluster:
    """Devices a and b, the repository team/app with one commit, and the working copy "work"."""
    cluster = make_cluster("ab")
    cluster.create("team/app", min_copies=2)
    cluster.ok("push", cluster.url("a"), "main", cwd=cluster.work())
    cluster.converge()
    return cluster


def work(cluster: Cluster) -> Path:
    return cluster.directory / "work"


# ------------------------------------------------------------------------------------------------- a clean stop


@pytest.mark.parametrize("how", STOPS, ids=str)
def test_an_idle_device_stops_at_once(two: Cluster, how: signal.Signals) -> None:
    begun = time.monotonic()
    process = signalled(two, "a", how)
    assert process.wait(GRACE) == 0
    assert time.monotonic() - begun < GRACE / 2
    assert state(two, "a") == "offline", "nobody has to wait for its heartbeat to be missed"
    assert not git_processes(two)
    assert "Traceback" not in two.devices["a"].log.read_text()


@pytest.mark.parametrize("how", STOPS, ids=str)
@pytest.mark.parametrize(
    ("hook", "condition"),
    [("pre-receive", "true"), ("reference-transaction", '[ "$1" = prepared ]'), ("post-receive", "true")],
    ids=lambda value: str(value).split()[0],
)
def test_a_push_under_way_is_finished(two: Cluster, hook: str, condition: str, how: signal.Signals) -> None:
    """Stopped before, in the middle of, and after the refs move: the push is committed and acknowledged as ever."""
    held = Held(two, "a", hook, condition)
    oid = two.commit(work(two), "under way")
    with login(two.devices["a"], two.identity) as before:
        push = two.spawn("push", two.url("a"), "main", cwd=work(two))
        two.wait(held.reached.exists, f"the hook {hook} waits")
        process = signalled(two, "a", how)
        two.wait(lambda: closed(two.devices["a"].port), "no new connections are taken")
        answer = before.ask("git-upload-pack 'team/app'", b"0000")  # over one that was there
        assert answer.code == 1
        assert answer.err == "remote: cluster: error: this device is shutting down\n"
        held.go.touch()
        out, _ = push.communicate(timeout=30)
        assert push.returncode == 0, out
        assert process.wait(GRACE) == 0
    assert two.version() == 2 and two.snapshot().intent_owner is None
    assert two.refs("b")["refs/heads/main"] == oid
    no_git_left(two)
    assert state(two, "a") == "offline"
    two.devices["a"].process = None
    two.start("a")
    two.converge()


def test_a_push_that_does_not_end_is_not_waited_for(two: Cluster) -> None:
    """The grace ends; the push is told nothing good, moved nothing, and left nothing."""
    held = Held(two, "a", "pre-receive")
    two.commit(work(two), "too slow")
    push = two.spawn("push", two.url("a"), "main", cwd=work(two))
    two.wait(held.reached.exists, "the hook waits")
    begun = time.monotonic()
    process = signalled(two, "a", signal.SIGTERM)
    assert process.wait(GRACE + 5) == 0
    assert time.monotonic() - begun > GRACE / 2
    push.communicate(timeout=30)
    assert push.returncode != 0
    held.go.touch()
    no_git_left(two)
    assert two.version() == 1 and two.snapshot().intent_owner is None
    two.devices["a"].process = None
    two.start("a")
    two.converge()
    two.ok("push", two.url("a"), "main", cwd=work(two))


def test_a_client_that_dawdles_is_not_waited_for(two: Cluster) -> None:
    """It uploads nothing and holds nothing: its Git goes with the device."""
    with login(two.devices["a"], two.identity) as slow:
        channels = [slow.channel(b"git-receive-pack 'team/app'"), slow.channel(b"git-upload-pack 'team/app'")]
        two.wait(lambda: len(git_processes(two)) >= 2, "both are served")
        assert signalled(two, "a", signal.SIGTERM).wait(GRACE + 5) == 0
        no_git_left(two)
        assert all(channel.exit_status != 0 for channel in channels)


def test_a_signal_that_the_kernel_gives_to_another_thread(two: Cluster) -> None:
    """It gives one to any thread that takes it, and Python's handlers run in the main thread only."""
    process = two.devices["a"].process
    assert process is not None
    others = {int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir()} - {process.pid}
    assert ctypes.CDLL(None).tgkill(process.pid, max(others), signal.SIGTERM) == 0
    assert process.wait(GRACE) == 0


def test_two_signals_are_one(two: Cluster) -> None:
    held = Held(two, "a", "pre-receive")
    oid = two.commit(work(two), "under way")
    push = two.spawn("push", two.url("a"), "main", cwd=work(two))
    two.wait(held.reached.exists, "the hook waits")
    process = signalled(two, "a", signal.SIGTERM)
    two.wait(lambda: closed(two.devices["a"].port), "it stops")
    signalled(two, "a", signal.SIGTERM)
    signalled(two, "a", signal.SIGINT)
    held.go.touch()
    assert push.wait(30) == 0
    assert process.wait(GRACE) == 0
    assert two.refs("b")["refs/heads/main"] == oid


def test_killed_the_git_of_an_upload_goes_too(two: Cluster) -> None:
    with login(two.devices["a"], two.identity) as slow:
        channel = slow.channel(b"git-receive-pack 'team/app'")
        two.wait(lambda: git_processes(two), "it is served")
        two.stop("a", how=signal.SIGKILL)
        no_git_left(two)
        channel.close()
    two.start("a")
    two.ok("push", two.url("a"), "main:refs/heads/again", cwd=work(two))


# -------------------------------------------------------------------------------------------------- a new start


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=str)
def test_a_new_start_takes_over(two: Cluster, how: signal.Signals) -> None:
    for number in range(3):
        two.stop("a", how=how)
        two.start("a")
        oid = two.commit(work(two), f"start {number}")
        two.ok("push", two.url("a"), "main", cwd=work(two))
        assert two.refs("b")["refs/heads/main"] == oid
    assert two.version() == 4
    two.converge()
    two.wait(lambda: two.admin("status", "--check").code == 0, "all is well")


def test_what_a_killed_device_left_in_its_scratch_is_gone(two: Cluster) -> None:
    run = two.devices["a"].data_dir / "run"
    (run / "scratch-left").mkdir()
    two.stop("a", how=signal.SIGKILL)
    two.start("a")
    assert not (run / "scratch-left").exists()


# ---------------------------------------------------------------------------------------------------- heartbeat


def test_a_killed_device_is_offline_after_its_heartbeats_are_missed(two: Cluster) -> None:
    assert (state(two, "a"), state(two, "b")) == ("online", "online")
    seen = two.db.device("a").last_seen_at
    two.wait(lambda: two.db.device("a").last_seen_at != seen, "another heartbeat", Device.OFFLINE_AFTER)
    two.stop("a", how=signal.SIGKILL)
    assert state(two, "a") == "online", "nobody can know yet"
    two.wait(lambda: state(two, "a") == "offline", "it is missed", Device.OFFLINE_AFTER + 10)
    assert two.admin("status", "--check").code == 1
    two.start("a")
    two.wait(lambda: state(two, "a") == "online", "it is back", 5)
    two.wait(lambda: two.admin("status", "--check").code == 0, "all is well")


# ------------------------------------------------------------------------------------------------------- the log


def test_the_log_tells_who_pushed_what_from_where(two: Cluster) -> None:
    two.commit(work(two), "logged")
    two.ok("push", two.url("b"), "main", cwd=work(two))
    two.git("push", two.url("b"), "main:refs/heads/bad..name", cwd=work(two))
    two.git("ls-remote", two.url("b", "team/nowhere"))

    def lines(*pairs: str) -> list[str]:
        return [
            line
            for line in two.devices["b"].log.read_text().splitlines()
            if line.startswith("time=") and all(pair in line.split() for pair in pairs)
        ]

    who = ("repository=team/app", "actor=demo", "kind=user", "address=127.0.0.1")
    two.wait(lambda: lines("msg=git-receive-pack", *who, "exit=0"), "the push")
    two.wait(lambda: lines("repository=team/nowhere", "actor=demo", "exit=failed"), "the refused request")
    (entry,) = two.admin_json("log", "team/app")[:1]
    assert (entry["version"], entry["actor"], entry["device"], entry["via"]) == (2, "demo", "b", "ssh")


def test_the_log_holds_no_secrets(two: Cluster) -> None:
    for device in two.devices.values():
        text = device.log.read_text()
        assert "PRIVATE KEY" not in text and two.database not in text


# ---------------------------------------------------------------------------------------- without being asked


def test_a_device_that_was_down_catches_up_by_itself(two: Cluster) -> None:
    two.stop("b")
    two.create("team/new")
    for number in range(5):
        oid = two.commit(work(two), f"while b is away {number}")
        two.ok("push", two.url("a"), "main", cwd=work(two))
    two.ok("push", two.url("a"), "main:refs/heads/other", cwd=work(two))
    two.ok("push", two.url("a", "team/new"), "main", cwd=work(two))
    two.start("b")
    two.converge()
    two.converge("team/new")
    assert two.checksum("b") == two.snapshot().repository.position.checksum
    two.stop("a")
    assert two.refs("b") == {"HEAD": oid, "refs/heads/main": oid, "refs/heads/other": oid}
    assert two.refs("b", "team/new")["refs/heads/main"] == oid


def test_every_push_reaches_every_device_without_a_reader(two: Cluster) -> None:
    for number in range(3):
        two.commit(work(two), f"eager {number}")
        two.ok("push", two.url("ab"[number % 2]), "main", cwd=work(two))
        two.wait(lambda: two.converged(), "both have it", 15)


def test_a_sync_without_a_source_backs_off_and_recovers(make_cluster: Callable[..., Cluster]) -> None:
    """Ever longer pauses, kept in the row, so that they outlive the process; the first source ends them."""
    cluster = make_cluster("abc", start="ac")
    cluster.create("team/app", devices="ab")
    cluster.ok("push", cluster.url("a"), "main", cwd=cluster.work())
    cluster.stop("a")
    cluster.start("b")

    def row() -> tuple[int, float]:
        replica = cluster.snapshot().of("b")
        assert replica is not None
        if not replica.attempts or replica.next_try_at is None:
            return 0, 0.0
        (now,) = cluster.db._read("select now() as now")
        return replica.attempts, (replica.next_try_at - now["now"]).total_seconds()

    cluster.wait(lambda: row()[0] >= 1, "a first attempt")
    cluster.wait(lambda: row()[0] >= 3, "a third attempt")
    replica = cluster.snapshot().of("b")
    assert replica and replica.last_error
    assert "version 1 of team/app cannot be fetched from where it is: a (offline)" in replica.last_error
    assert "a (offline)" in cluster.git("ls-remote", cluster.url("b")).err
    (entry,) = cluster.admin_json("status", "team/app")["repositories"]
    assert entry["state"] == "unavailable"
    (shown,) = [each for each in entry["replicas"] if each["device"] == "b"]
    assert shown["attempts"] >= 3 and "a (offline)" in shown["last_error"]

    attempts, pause = row()
    assert pause < 2 ** (attempts + 1)
    log = cluster.devices["b"].log.read_text()
    assert log.count("cannot be fetched") < 30, "it does not try in a circle"

    cluster.start("a")
    cluster.converge()
    assert row() == (0, 0.0)
    cluster.wait(lambda: cluster.admin("status", "--check").code == 0, "all is well")


def test_a_deleted_repository_goes_from_every_disk(two: Cluster) -> None:
    disks = [two.disk(device) for device in "ab"]
    two.db.delete_repository("team/app")
    done = two.git("ls-remote", two.url("a"))
    assert done.code != 0 and "there is no repository team/app here" in done.err
    two.stop_all()
    for device in "ab":
        two.start(device)
    two.wait(lambda: not any(disk.exists() for disk in disks), "both copies are set aside", 90)
