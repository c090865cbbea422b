"""What went wrong in another Git cluster (Phorge's, August 2026) when it was broken on purpose, and what must happen.

Each test quotes its case. Two devices, a and b, and stock Git; with `heal = "auto"`, the default, and, where an
operator plays a part, with `heal = "manual"` and `git-cluster thaw` at the worst moment.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from cluster import embedded
from cluster.model import EventKind
from tests.breaking import (
    HeldHook,
    acknowledged,
    alive,
    hold,
    lock_holder,
    lost,
    on_disk,
    polite,
    push,
    replica,
    shown,
    sql,
    status,
    stopped,
    works_everywhere,
)
from tests.cluster_fixture import Cluster, Done, RawPush
from tests.conftest import new_database
from tests.probes import git_processes, no_git_left

Make = Callable[..., Cluster]
ALARM = re.compile(r"interrupted|frozen|operator|administrator|thaw team/app")
"""Words that send somebody to resolve what needs no resolving."""

THAWS = (["--dry-run"], ["--demote", "a", "--accept-loss"], ["--promote", "b", "--accept-loss"])
"""What an operator might try on a write of device a."""


def pair(
    make_cluster: Make, heal: str = "auto", *, copies: int = 2, **writes: str
) -> tuple[Cluster, Path, str]:
    """Devices a and b with team/app at version 1 on both; a working copy, and what main is."""
    cluster = make_cluster("ab", heal=heal, **writes)
    cluster.create("team/app", min_copies=copies)
    work = cluster.work()
    old = cluster.commit(work, "acknowledged")
    cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=work)
    cluster.converge()
    return cluster, work, old


def held_push(cluster: Cluster, work: Path, *refs: str) -> tuple[HeldHook, subprocess.Popen[str]]:
    """A push to a that stands between intend and commit, where Git is about to move the first ref."""
    held = hold(cluster, "a")
    pushing = cluster.spawn("push", cluster.url("a"), *(refs or ("main",)), cwd=work)
    cluster.wait(lambda: held.reached, "Git is about to move a ref")
    return held, pushing


def thaw(cluster: Cluster, *options: str) -> Done:
    done = cluster.admin("thaw", "team/app", *options)
    polite(cluster, done.text)
    return done


def end(pushing: subprocess.Popen[str], cluster: Cluster) -> str:
    """What a client said until it ended."""
    return polite(cluster, pushing.communicate(timeout=60)[0])


# --------------------------------------------------------------------------------- 1 the lock's connection is killed


def kill_the_locks_connection(cluster: Cluster) -> None:
    with psycopg.connect(cluster.database, autocommit=True) as connection:
        granted = "locktype = 'advisory' and granted and database = %s"
        number = connection.execute(
            "select oid from pg_database where datname = current_database()"
        ).fetchone()
        found = connection.execute(f"select pid from pg_locks where {granted}", number).fetchone()
        assert found is not None, "somebody holds the lock"
        connection.execute("select pg_terminate_backend(%s)", found)
        gone = "select 1 from pg_stat_activity where pid = %s"
        cluster.wait(lambda: not connection.execute(gone, found).fetchone(), "the connection is gone")


@pytest.mark.parametrize("heal", ["auto", "manual"])
def test_1_the_lock_is_lost_while_the_write_goes_on(make_cluster: Make, heal: str) -> None:
    """The case: the lock's database connection is killed while the write goes on: others are told "interrupted,
    operator needed" though nothing is wrong."""
    cluster, work, old = pair(make_cluster, heal)
    new = cluster.commit(work, "in the middle of it")
    held, pushing = held_push(cluster, work)
    kill_the_locks_connection(cluster)

    told = cluster.admin("status").text
    waiting = cluster.spawn("push", cluster.url("b"), "main~1:refs/heads/between", cwd=work)
    reading = cluster.spawn("ls-remote", cluster.url("b"))
    for options in THAWS if heal == "manual" else THAWS[1:2]:
        done = thaw(cluster, *options)
        assert done.code == 1 and re.search("process|being written", done.text), done.text
        told += done.text
    told += cluster.admin("status", "team/app").text
    held.let_go()
    told += "".join(end(client, cluster) for client in (pushing, waiting, reading))
    assert pushing.returncode == waiting.returncode == reading.returncode == 0, told
    assert not ALARM.search(told), told
    assert shown(cluster, "a") == shown(cluster, "b") == {new, old}
    works_everywhere(cluster, "b")


@pytest.mark.parametrize("how", [["--demote", "a"], ["--promote", "b"]], ids=" ".join)
def test_1_an_operator_who_gets_through_in_the_middle(make_cluster: Make, how: list[str]) -> None:
    """The case: an operator who follows that advice during the write makes an acknowledged push vanish from every
    device, because the final update's row count is not looked at."""
    cluster, work, old = pair(make_cluster, "manual")
    new = cluster.commit(work, "overtaken")
    held, pushing = held_push(cluster, work)
    process = cluster.devices["a"].process
    assert process is not None
    process.send_signal(signal.SIGSTOP)  # so it cannot say that its write goes on, and its heartbeats end
    kill_the_locks_connection(cluster)
    sql(
        cluster,
        "update device set last_seen_at = last_seen_at - interval '1 hour', ssh_url = 'ssh://git@127.0.0.1:1'"
        " where name = 'a'",
    )
    done = thaw(cluster, *how, "--accept-loss")
    assert done.code == 0, done.text
    second = cluster.commit(work, "second")
    assert push(cluster, "b", work, "main~2:refs/heads/next").code == 0
    held.let_go()
    process.send_signal(signal.SIGCONT)
    sql(cluster, f"update device set ssh_url = '{cluster.devices['a'].url}' where name = 'a'")
    said = end(pushing, cluster)
    assert pushing.returncode != 0 and "! [remote rejected] main -> main" in said, said
    cluster.converge()
    assert shown(cluster, "a") == shown(cluster, "b")
    assert new not in shown(cluster, "a") and old in shown(cluster, "a")
    assert lost(cluster, "a") == {"refs/heads/main": new}
    assert acknowledged(push(cluster, "b", work)), "pushed again, it lands"
    assert cluster.refs("a")["refs/heads/main"] == second
    works_everywhere(cluster, "a")


# ------------------------------------------------------------------- 2 the database is away for too long, then a demote


@pytest.fixture(scope="module")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A PostgreSQL that the tests of this file stop and start: its directory and URL."""
    directory = tmp_path_factory.mktemp("own") / "postgres"
    yield directory, embedded.start(directory)
    embedded.stop(directory)


@pytest.fixture
def mortal(own_postgres: tuple[Path, str], tmp_path: Path) -> Iterator[tuple[Make, Path]]:
    """make_cluster on that PostgreSQL, and its directory."""
    made: list[Cluster] = []

    def make(names: str, **writes: str) -> Cluster:
        cluster = Cluster(tmp_path / "mortal", url, writes)
        made.append(cluster)
        cluster.set_up(list(names))
        for name in names:
            cluster.start(name)
        return cluster

    with new_database(own_postgres[1]) as url:
        yield make, own_postgres[0]
        embedded.start(own_postgres[0])
        for cluster in made:
            cluster.close()


def sole_leader(cluster: Cluster, work: Path, postgres: Path) -> tuple[str, str]:
    """a alone has version 2, and the refs of a push that the database was too long away for. The two commits."""
    cluster.stop("b")
    second = cluster.commit(work, "acknowledged, and only on a")
    done = push(cluster, "a", work)
    assert acknowledged(done), done.text
    third = cluster.commit(work, "never acknowledged")
    held, pushing = held_push(cluster, work, "main", "main:more")
    embedded.stop(postgres)
    held.let_go()
    said = end(pushing, cluster)
    assert pushing.returncode != 0 and said.count("[remote rejected]") == 2, said
    assert "the database stayed away for 1 s, so this push is not committed" in said
    embedded.start(postgres)
    return second, third


def test_2_the_sole_leader_is_demoted_after_an_outage(mortal: tuple[Make, Path]) -> None:
    """The case: the database is away for longer than the time-out after refs were written, then the operator demotes
    the sole leader: earlier acknowledged pushes that no peer had fetched are gone with it, unannounced."""
    make, postgres = mortal
    cluster, work, first = pair(make, "manual", copies=1, commit_timeout="1s")
    second, third = sole_leader(cluster, work, postgres)
    for options in (["--dry-run"], []):
        done = thaw(cluster, "--demote", "a", *options)
        assert done.code == (0 if options else 1), done.text
        assert re.findall(r"LOST: version (\d+), acknowledged to demo on a", done.text) == ["2"], done.text
        assert f"refs/heads/main  {first[:12]} → {second[:12]}" in done.text
        assert f"refs/heads/more  (new) → {third[:12]}" in done.text, (
            "nor is the unacknowledged push forgotten"
        )
    assert "--accept-loss" in done.text
    assert cluster.version() == 2
    assert on_disk(cluster, "a", "rev-parse", "main", "more").split() == [third, third], "nothing was touched"

    done = thaw(cluster, "--demote", "a", "--accept-loss")
    assert done.code == 0 and "LOST: version 2" in done.text, done.text
    cluster.start("b")
    assert shown(cluster, "a") == shown(cluster, "b") == {first} and cluster.version() == 3
    assert lost(cluster, "a") == {"refs/heads/main": third, "refs/heads/more": third}
    on_disk(cluster, "a", "merge-base", "--is-ancestor", second, third)
    works_everywhere(cluster, "b")


def test_2_after_an_outage_everything_heals_without_anybody(mortal: tuple[Make, Path]) -> None:
    """The same with `heal = "auto"`: whoever looks first finds what was acknowledged, and the push that was begun."""
    make, postgres = mortal
    cluster, work, _ = pair(make, copies=1, commit_timeout="1s")
    second, third = sole_leader(cluster, work, postgres)
    cluster.start("b")
    assert shown(cluster, "b") <= {second, third}
    cluster.wait(lambda: cluster.snapshot().intent_owner is None, "the interrupted push is healed")
    assert shown(cluster, "a") == shown(cluster, "b") == {third} and cluster.version() == 3
    works_everywhere(cluster, "b")


# ------------------------------------------------------------------------------------- 3 the session is killed with -9


@pytest.mark.parametrize("heal", ["auto", "manual"])
def test_3_git_survives_its_session(make_cluster: Make, heal: str) -> None:
    """The case: the session is killed with -9: Git survives it and moves the refs with no lock held; a reader then
    copies the unacknowledged refs to the other device, where demoting does not undo them."""
    cluster, work, old = pair(make_cluster, heal)
    on_disk(cluster, "a", "config", "receive.keepAlive", "0")  # else Git notices that nobody listens
    new = cluster.commit(work, "moved by an orphan")
    held, pushing = held_push(cluster, work, "main", "main:more")
    cluster.stop("a", how=signal.SIGKILL)
    said = end(pushing, cluster)
    assert pushing.returncode != 0 and "new branch" not in said
    assert alive(held.git) and shown(cluster, "b") == {old}
    cluster.start("a")
    cluster.wait(lambda: lock_holder(cluster), "a stands in for the orphan")
    if heal == "manual":
        for options in (["--demote", "a"], ["--promote", "b"]):
            refused = thaw(cluster, *options, "--accept-loss")
            assert refused.code == 1 and re.search("process|being written", refused.text), refused.text
    held.let_go()
    cluster.wait(lambda: not alive(held.git), "the orphan ends")
    assert on_disk(cluster, "a", "rev-parse", "main", "more").split() == [new, new], "it has moved the refs"
    if heal == "auto":
        assert push(cluster, "b", work, f"{old}:refs/heads/next").code == 0, "it waits until that is healed"
        assert cluster.version() == 3
        assert cluster.refs("a") == cluster.refs("b")
        assert [cluster.refs("b")[f"refs/heads/{name}"] for name in ("main", "more", "next")] == [
            new,
            new,
            old,
        ]
    else:
        cluster.wait(lambda: not lock_holder(cluster), "nobody stands in any more")
        assert shown(cluster, "b") == {old}, "what nobody acknowledged does not travel"
        refused = cluster.git("ls-remote", cluster.url("a"))
        assert refused.code != 0 and new not in refused.text, refused.text
        assert new not in on_disk(cluster, "b", "for-each-ref", "refs/heads")
        done = thaw(cluster, "--demote", "a")
        assert done.code == 0, done.text
        assert shown(cluster, "a") == shown(cluster, "b") == {old} and cluster.version() == 1
        assert lost(cluster, "a") == {"refs/heads/main": new, "refs/heads/more": new}
    works_everywhere(cluster, "b")


# -------------------------------------------------------------------------------------------- 4 the database is away


def test_4_users_are_not_sent_to_look_at_their_keys(mortal: tuple[Make, Path]) -> None:
    """The case: the database is away: every user sees "Permission denied (publickey)"."""
    make, postgres = mortal
    cluster, work, _ = pair(make)
    cluster.commit(work, "while it is away")
    embedded.stop(postgres)
    for client in [
        cluster.spawn(*command, cwd=work)
        for device in "ab"
        for command in (["ls-remote", cluster.url(device)], ["push", cluster.url(device), "main"])
    ]:
        told = end(client, cluster)
        assert client.returncode != 0 and "remote: cluster: " in told and "database" in told, told
        assert "Permission denied" not in told and "publickey" not in told, told
    embedded.start(postgres)
    assert acknowledged(push(cluster, "b", work)), "at once, and nobody has done anything"
    works_everywhere(cluster, "a")


# --------------------------------------------------------------------------- 5 clients that connect, and hold nothing


def test_5_clients_that_send_nothing_are_stopped_or_upload_slowly(make_cluster: Make) -> None:
    """The case: a client that connects to push and sends nothing, or is stopped, or uploads slowly holds the lock:
    the next pusher fails after four minutes."""
    cluster, work, old = pair(make_cluster, lock_timeout="5s")
    new = cluster.commit(work, "slow")
    silent = RawPush(cluster, "a")

    hook = work / ".git" / "hooks" / "pre-push"
    hook.write_text("#!/bin/sh\nkill -STOP 0\n")
    hook.chmod(0o755)
    paused = cluster.spawn("push", cluster.url("a"), f"{new}:refs/heads/paused", cwd=work)
    cluster.wait(lambda: stopped(paused.pid), "Git has connected, and then is stopped with its ssh")
    hook.unlink()

    slow = RawPush(cluster, "a")
    slow.propose(("0" * 40, new, "refs/heads/slow"))
    pack = subprocess.run(
        ["git", "pack-objects", "--revs", "--stdout", "--quiet"],
        cwd=work, input=f"{new}\n^{old}\n".encode(), capture_output=True, check=True,
    ).stdout  # fmt: skip

    for number, device in enumerate("aabb"):
        slow.send(pack[number * 5 : number * 5 + 5])
        assert lock_holder(cluster) is None
        done = push(cluster, device, work, f"{old}:refs/heads/other{number}")
        assert done.code == 0 and "waiting" not in done.text, done.text
    slow.send(pack[20:])
    assert slow.report() == ["unpack ok", "ok refs/heads/slow"]
    slow.finish()
    os.killpg(paused.pid, signal.SIGCONT)
    assert "[new branch]" in end(paused, cluster)
    silent.kill()
    no_git_left(cluster)
    assert {"refs/heads/slow", "refs/heads/paused"} <= cluster.refs("b").keys()
    works_everywhere(cluster, "b")


# ------------------------------------------------------------------------------------------- 6 a pusher who gives up


def test_6_a_pusher_who_gives_up_is_in_no_queue(make_cluster: Make) -> None:
    """The case: a pusher who waits and gives up leaves its process queued for the lock."""
    cluster, work, _ = pair(make_cluster, copies=1, fence_after="10m", lock_timeout="10m")
    cluster.stop("a")
    cluster.start("a", fault="settle:pause:once")
    new = cluster.commit(work, "wanted")
    first = cluster.spawn("push", cluster.url("a"), "main", cwd=work)
    pid = cluster.devices["a"].pid
    assert pid is not None
    cluster.wait(lambda: stopped(pid), "a has the lock, and stands still")
    waiting = [
        cluster.spawn("push", cluster.url("b"), f"main:gave-up{number}", cwd=work) for number in range(2)
    ]
    for client in waiting:
        assert client.stdout is not None
        next(line for line in client.stdout if "waiting for the write lock: demo holds it on a" in line)
    cluster.wait(lambda: queued(cluster), "the first of them is in PostgreSQL's queue")
    for client, how in zip(waiting, (signal.SIGKILL, signal.SIGINT), strict=True):
        os.killpg(client.pid, how)
        client.wait(30)
    cluster.wait(lambda: not queued(cluster), "nobody is, while a still has the lock")
    cluster.wait(lambda: not [p for p in git_processes(cluster) if "/b/" in p], "nor is their Git left on b")
    assert lock_holder(cluster)
    os.kill(pid, signal.SIGCONT)
    assert first.wait(30) == 0
    assert cluster.version() == 2
    assert cluster.refs("a") == cluster.refs("b") == {"HEAD": new, "refs/heads/main": new}
    works_everywhere(cluster, "b")


def queued(cluster: Cluster) -> bool:
    """Whether anybody waits for a write lock in PostgreSQL."""
    with psycopg.connect(cluster.database) as connection:
        return bool(
            connection.execute(
                "select 1 from pg_locks where locktype = 'advisory' and not granted"
                " and database = (select oid from pg_database where datname = current_database())"
            ).fetchone()
        )


# --------------------------------------------------------------------------------------------- 7 a wiped leader


@pytest.mark.parametrize("alone", [False, True], ids=["with b", "the sole one"])
def test_7_a_leader_whose_disk_comes_back_empty(make_cluster: Make, alone: bool) -> None:
    """The case: a leader's disk is wiped and comes back empty: it still counts as newest and the others are emptied
    from it."""
    cluster, work, old = pair(make_cluster, copies=1)
    if alone:
        cluster.stop("b")
    new = cluster.commit(work, "newest")
    cluster.ok("push", "--quiet", cluster.url("a"), "main", "main:more", cwd=work)
    if not alone:
        cluster.converge()
    cluster.stop("a")
    shutil.rmtree(cluster.devices["a"].data_dir)
    cluster.start("a")
    if alone:
        cluster.start("b")
        cluster.wait(lambda: replica(cluster, "a")["state"] == "quarantined", "a is not trusted")
        for device in "ab":
            refused = cluster.git("ls-remote", cluster.url(device))
            assert refused.code != 0
            assert "no device holds version 2 of team/app any more" in polite(cluster, refused.text)
        assert (
            on_disk(cluster, "b", "for-each-ref", "--format=%(objectname) %(refname)")
            == f"{old} refs/heads/main"
        )
        assert status(cluster)["state"] == "unavailable" and "thaw team/app" in status(cluster)["reason"]
        done = thaw(cluster, "--demote", "a")
        assert done.code == 1 and "LOST: version 2, acknowledged to demo on a" in done.text, done.text
        assert thaw(cluster, "--demote", "a", "--accept-loss").code == 0
    assert shown(cluster, "b") == shown(cluster, "a") == ({old} if alone else {new})
    works_everywhere(cluster, "a")


# ------------------------------------------------------------------------------------------------ 8 a lock file


def test_8_a_lock_file_stops_no_sync(make_cluster: Make) -> None:
    """The case: a `*.lock` file left by a killed Git makes a sync update some refs and not others, for ever."""
    cluster, work, old = pair(make_cluster, copies=1)
    new = cluster.commit(work, "three refs")
    cluster.ok("push", "--quiet", cluster.url("a"), f"{old}:refs/heads/x", f"{old}:refs/heads/y", cwd=work)
    cluster.converge()
    update = subprocess.Popen(
        ["git", f"--git-dir={cluster.disk('b')}", "update-ref", "--stdin"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert update.stdin is not None and update.stdout is not None
    update.stdin.write(f"start\ndelete refs/heads/x {old}\nprepare\n")
    update.stdin.flush()
    assert [update.stdout.readline(), update.stdout.readline()] == ["start: ok\n", "prepare: ok\n"]
    update.kill()
    update.wait()
    locks = [path.name for path in cluster.disk("b").rglob("*.lock")]
    assert "x.lock" in locks, locks

    cluster.ok("push", "--quiet", cluster.url("a"), "main", "main:x", "main:y", cwd=work)

    def values() -> set[str]:
        return set(on_disk(cluster, "b", "for-each-ref", "--format=%(objectname)", "refs/heads").split())

    told = cluster.git("ls-remote", cluster.url("b"))
    polite(cluster, told.text)
    # Git moves loose refs one after the other, so for a moment the disk shows some; for ever is what may not be.
    cluster.wait(lambda: values() == {new}, "b has all three, and nobody has removed anything")
    cluster.converge()
    assert shown(cluster, "b") == {new}
    assert not [
        e for e in cluster.db.events(cluster.snapshot().repository.id) if e.kind is EventKind.QUARANTINE
    ]
    works_everywhere(cluster, "b")


# ------------------------------------------------------------------------------------- 9 the newest device is down


@pytest.mark.parametrize("known", [True, False], ids=["known to be down", "just now"])
def test_9_the_newest_device_is_down(make_cluster: Make, known: bool) -> None:
    """The case: the newest device is down: the user is shown internal commands and paths."""
    cluster, work, _old = pair(make_cluster, copies=1)
    cluster.stop("b")
    new = cluster.commit(work, "only on a")
    cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=work)
    cluster.stop("a", how=signal.SIGTERM if known else signal.SIGKILL)
    cluster.start("b")
    cluster.commit(work, "not yet")
    for command in (["ls-remote", cluster.url("b")], ["push", cluster.url("b"), "main"]):
        done = cluster.git(*command, cwd=work)
        assert done.code != 0
        lines = [line for line in polite(cluster, done.err).splitlines() if line.startswith("remote: ")]
        state = "offline" if known else "online"
        assert lines[-2:] == [
            f"remote: cluster: error: version 2 of team/app cannot be fetched from where it is: a ({state})",
            "remote: cluster: try again when that device is back; nothing is lost",
        ], done.err
        assert not re.search(
            r"upload-pack|receive-pack|git-cluster-|fd::|fatal: .*/|Errno|\bssh\b.*-", "\n".join(lines)
        )
    cluster.start("a")
    assert acknowledged(push(cluster, "b", work))
    assert new not in shown(cluster, "b")
    works_everywhere(cluster, "b")
