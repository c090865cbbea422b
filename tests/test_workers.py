"""Several processes answer clients (`[device] workers`): what one device promises holds for all of them together, and
the end of one of them is nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from cluster.keyfiles import write_keypair
from tests.cluster_fixture import DEADLINE, Cluster, Project
from tests.probes import login, no_git_left
from tests.test_daemon import Held
from tests.test_limits import ended, idle, log_lines
from tests.test_metrics import figures, of

HTTP = True

MakeCluster = Callable[..., Cluster]


def made(make_cluster: MakeCluster, names: str = "a", workers: int = 2, **limits: str | int) -> Project:
    cluster = make_cluster(names, sections={"device": {"workers": workers}, "limits": limits})
    cluster.create("team/app", min_copies=len(names))
    cluster.converge()
    project = Project(cluster, "team/app")
    project.pushed("a", "main")
    cluster.converge()
    return project


def head(app: Project) -> str:
    return app.git("rev-parse", "HEAD")


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


def workers(cluster: Cluster, device: str = "a") -> list[int]:
    """The processes that answer for a device."""
    pid = cluster.devices[device].pid
    assert pid is not None
    lines = {child: Path(f"/proc/{child}/cmdline") for child in children(pid)}
    return sorted(
        pid for pid, line in lines.items() if line.exists() and b"cluster.worker" in line.read_bytes()
    )


def open_files(pid: int) -> set[str]:
    """What a process has open; nothing once it has ended."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(OSError):
            found.add(os.readlink(fd))
    return found


def holds(pid: int, port: int) -> int:
    """Connections to `port` of this machine that a process has open."""
    mine = open_files(pid)
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(
        row[3] == "01" and int(row[1].split(":")[1], 16) == port and f"socket:[{row[9]}]" in mine
        for row in rows
    )


@contextmanager
def a_session_in_each(cluster: Cluster, most: int = 40) -> Iterator[Sequence[subprocess.Popen[bytes]]]:
    """Fetches that have begun and ask for nothing, at least one in every worker."""
    port, sessions = cluster.devices["a"].port, list[subprocess.Popen[bytes]]()
    try:
        while not all(holds(pid, port) for pid in workers(cluster)):
            assert len(sessions) < most, "one worker takes all connections"
            sessions.append(idle(cluster))
        yield sessions
    finally:
        for session in sessions:
            session.kill()
            session.communicate()


def test_all_of_them_answer(make_cluster: MakeCluster) -> None:
    app = made(make_cluster, workers=3)
    assert len(workers(app.cluster)) == 3
    with a_session_in_each(app.cluster):
        with ThreadPoolExecutor(8) as pool:
            heads = list(pool.map(lambda _: app.refs("a")["refs/heads/main"], range(16)))
        assert set(heads) == {head(app)}


def test_many_pushers_to_one_repository_keep_one_order(make_cluster: MakeCluster) -> None:
    app = made(make_cluster, "ab")

    def push(number: int) -> None:
        work = app.clone("ab"[number % 2])
        for turn in range(3):
            app.cluster.commit(work, f"{number} {turn}")
            app.cluster.ok("push", "-q", app.url("ab"[turn % 2]), f"HEAD:refs/heads/b{number}", cwd=work)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(push, range(6)))
    assert app.cluster.version(app.name) == 1 + 18
    app.converge()


def test_a_worker_that_is_killed_is_replaced_and_the_others_go_on(make_cluster: MakeCluster) -> None:
    app = made(make_cluster)
    cluster = app.cluster
    with a_session_in_each(cluster) as sessions:
        before = workers(cluster)
        os.kill(before[0], signal.SIGKILL)
        cluster.wait(lambda: any(each.poll() is not None for each in sessions), "its clients are cut off")
        assert app.refs("a"), "the other one answers"
        cluster.wait(lambda: len(set(workers(cluster)) - {before[0]}) == 2, "another has taken its place")
        assert any(each.poll() is None for each in sessions), "nobody else was"
    [line] = log_lines(cluster, "another takes its place")
    assert f"process {before[0]}, ended (signal SIGKILL)" in line
    assert cluster.admin_json("status")["devices"][0]["state"] == "online"


@pytest.mark.parametrize("hook", ["pre-receive", "post-receive"])
def test_what_a_killed_worker_was_doing_is_healed(make_cluster: MakeCluster, hook: str) -> None:
    """Before its refs move it never was; once it is committed it stays. The device itself sees to it."""
    app = made(make_cluster, "ab")
    cluster = app.cluster
    held = Held(cluster, "a", hook)
    app.commit("interrupted")
    push = cluster.spawn("push", app.url("a"), "main", cwd=app.work)
    cluster.wait(held.reached.exists, "the hook waits")
    for pid in workers(cluster):
        os.kill(pid, signal.SIGKILL)
    held.go.touch()
    push.communicate(timeout=DEADLINE)
    for device in "ab":
        cluster.wait(lambda at=device: cluster.git("ls-remote", app.url(at)).code == 0, "it answers")  # type: ignore[misc]
    app.commit("after")
    cluster.wait(lambda: app.push("b", "main").code == 0, "writes go on")
    app.converge()
    assert app.refs("a")["refs/heads/main"] == head(app)


def test_the_daemon_that_is_killed_takes_them_along(make_cluster: MakeCluster) -> None:
    app = made(make_cluster)
    cluster = app.cluster
    with a_session_in_each(cluster) as sessions:
        left = workers(cluster)
        cluster.stop("a", how=signal.SIGKILL)
        cluster.start("a")  # at once: it waits until nobody else serves from this disk
        assert not any(open_files(pid) for pid in left), "one that is only not reaped yet holds nothing"
        for each in sessions:
            ended(each)
    assert app.refs("a")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_clean_stop_lets_a_push_finish(make_cluster: MakeCluster, how: signal.Signals) -> None:
    """Signals reach them all, as from a terminal or a service manager."""
    app = made(make_cluster, "ab")
    cluster = app.cluster
    held = Held(cluster, "a", "reference-transaction", '[ "$1" = prepared ]')
    app.commit("under way")
    process = cluster.devices["a"].process
    assert process is not None
    with login(cluster.devices["a"], cluster.identity):
        push = cluster.spawn("push", app.url("a"), "main", cwd=app.work)
        cluster.wait(held.reached.exists, "the hook waits")
        for pid in (process.pid, *workers(cluster)):
            os.kill(pid, how)
        cluster.wait(
            lambda: (
                "shutting down" in cluster.git("ls-remote", app.url("a")).err
                or cluster.git("ls-remote", app.url("a")).code != 0
            ),
            "nothing new is taken",
        )
        held.go.touch()
        out, _ = push.communicate(timeout=DEADLINE)
        assert push.returncode == 0, out
    assert process.wait(DEADLINE) == 0
    cluster.devices["a"].process = None
    assert app.refs("b")["refs/heads/main"] == head(app)
    no_git_left(cluster)


def test_sessions_are_counted_over_all_of_them_and_forgotten_with_one(make_cluster: MakeCluster) -> None:
    app = made(make_cluster, sessions_per_user=3)
    cluster = app.cluster
    with ExitStack() as stack:
        for _ in range(3):
            stack.callback(idle(cluster).kill)
        refused = cluster.git("ls-remote", app.url("a"))
        assert "you have 3 sessions open on this device" in refused.err
        for pid in workers(cluster):
            os.kill(pid, signal.SIGKILL)
        cluster.wait(lambda: cluster.git("ls-remote", app.url("a")).code == 0, "there is room again")


def test_logins_that_fail_are_counted_over_all_of_them(make_cluster: MakeCluster) -> None:
    app = made(make_cluster, failed_logins=3)
    cluster = app.cluster
    write_keypair(cluster.directory / "nobody", "nobody")
    known = cluster.directory / "known_hosts"
    options = ["-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", f"UserKnownHostsFile={known}"]
    options += ["-i", str(cluster.directory / "nobody"), "-p", str(cluster.devices["a"].port)]
    for _ in range(4):
        done = subprocess.run(
            ["ssh", "-F", "none", *options, "git@127.0.0.1", "x"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
        assert b"Permission denied (publickey)" in done.stderr
    cluster.wait(lambda: log_lines(cluster, "127.0.0.1: more than 3 failed logins in a minute"), "it is said")
    assert app.refs("a"), "who has a key is served"


def test_metrics_are_of_all_of_them(make_cluster: MakeCluster) -> None:
    app = made(make_cluster)
    cluster = app.cluster

    def requests() -> float:
        found = figures(cluster, "a")
        return of(found, "git_cluster_requests_total", endpoint="ssh", service="upload-pack", outcome="ok")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: app.refs("a"), range(12)))
    assert requests() == 12
    cluster.wait(lambda: {requests() for _ in range(6)} == {12}, "whoever is asked")
    with a_session_in_each(cluster) as sessions:
        cluster.wait(
            lambda: of(figures(cluster, "a"), "git_cluster_connections", endpoint="ssh") == len(sessions),
            "those that are open are counted together",
        )
        assert of(figures(cluster, "a"), "git_cluster_git_processes", command="upload-pack") == len(sessions)
    for pid in workers(cluster):
        os.kill(pid, signal.SIGKILL)
    cluster.wait(lambda: cluster.git("ls-remote", app.url("a")).code == 0, "others are there")
    assert requests() >= 12, "what was counted by those that have ended stays"


def test_events_reach_those_who_listen_to_any_of_them(make_cluster: MakeCluster) -> None:
    app = made(make_cluster)
    cluster = app.cluster
    done = cluster.admin("grant", "read", "everyone", "*")
    assert done.code == 0, done.text
    url = f"{cluster.devices['a'].http_url}/-/api/v1/events"
    with ExitStack() as stack:
        streams = []
        for _ in range(6):
            client = stack.enter_context(httpx.Client(timeout=DEADLINE))
            streams.append(stack.enter_context(client.stream("GET", url)).iter_lines())
        app.commit("told")
        app.pushed("a", "main")
        for lines in streams:
            assert any(head(app) in line for line in lines)


def test_what_keeps_one_from_starting_is_said_by_the_daemon(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("a", start="", sections={"device": {"workers": 2}})
    device = cluster.devices["a"]
    (device.directory / "host_ed25519").write_text("rubbish")
    done = cluster.admin("serve", config=device.config)
    assert done.code == 1
    assert "host key" in done.err and "Traceback" not in done.err, done.err


def test_a_fault_is_for_one_process(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("a", start="", sections={"device": {"workers": 2}})
    cluster.start("a", fault="commit:kill")
    assert not workers(cluster)
