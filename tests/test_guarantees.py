"""The guarantees of docs/architecture.md, each held to its word: G1, G2, G4, G5 and G9, over real devices."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from cluster import keys
from cluster.db import Database
from cluster.keyfiles import write_keypair
from cluster.model import Level
from tests.cluster_fixture import Cluster, Project, RawPush

ZERO = "0" * 40
Make = Callable[..., Cluster]


def project(cluster: Cluster, **options: int) -> Project:
    return Project.named(cluster, "team/app", **options)


def state(cluster: Cluster, device: str) -> str:
    """The process state of a device, as the kernel calls it: T is stopped."""
    with open(f"/proc/{cluster.devices[device].pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def pause(cluster: Cluster, device: str) -> None:
    process = cluster.devices[device].process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    paused(cluster, device)


def paused(cluster: Cluster, device: str) -> None:
    cluster.wait(lambda: state(cluster, device) == "T", f"{device} stands still")


def resume(cluster: Cluster, device: str) -> None:
    process = cluster.devices[device].process
    assert process is not None
    process.send_signal(signal.SIGCONT)


def dead(cluster: Cluster, device: str) -> None:
    """Wait for a device that is about to kill itself (a fault)."""
    process = cluster.devices[device].process
    assert process is not None
    process.wait(60)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=60)
    return process.returncode, out


def pack(app: Project, *revisions: str) -> bytes:
    lines = "".join(f"{revision}\n" for revision in revisions).encode()
    return subprocess.run(
        ["git", "pack-objects", "--stdout", "-q", "--revs"],
        input=lines, capture_output=True, cwd=app.work, check=True,
    ).stdout  # fmt: skip


def staged_refs(app: Project, devices: str = "abc") -> list[str]:
    """What is left of staging on the disks of all devices."""
    return [
        f"{device} {ref}"
        for device in devices
        for ref in app.git(f"--git-dir={app.disk(device)}", "for-each-ref", "refs/cluster").splitlines()
    ]


def untouched(app: Project, version: int) -> None:
    """G4: nothing in the database nor on any disk says that somebody tried."""
    snapshot = app.cluster.snapshot(app.name)
    assert snapshot.repository.version == version
    assert [replica.device.name for replica in snapshot.replicas if replica.intent] == []
    assert [replica.device.name for replica in snapshot.leaders] == ["a", "b", "c"]
    assert app.cluster.converged(app.name)
    app.cluster.wait(lambda: not staged_refs(app), "nothing is staged any more")
    disks = [app.disk(device) / "objects" for device in "abc"]
    app.cluster.wait(
        lambda: not any(list(disk.glob("tmp_objdir*")) for disk in disks), "no quarantine is left"
    )


# ------------------------------------------------------------------------------------------- G1 fresh reads


def test_g1_every_other_device_has_it_right_after_each_push(make_cluster: Make) -> None:
    app = project(make_cluster("abc"), min_copies=2)
    app.pushed("a", "main")
    clones = {device: app.clone(device) for device in "abc"}
    for number, device in enumerate("abcacb"):
        oid = app.commit(f"change {number}")
        app.pushed(device, "main")
        for other in "cab":
            app.git("fetch", "--quiet", "origin", cwd=clones[other])
            assert app.git("rev-parse", "origin/main", cwd=clones[other]) == oid
    app.converge()


def test_g1_a_device_that_stood_still_during_the_push_shows_it(make_cluster: Make) -> None:
    """Its background sync has had no chance: the read itself must bring it up to date."""
    app = project(make_cluster("abc"))
    app.pushed("a", "main")
    app.converge()
    for device, other in ("ab", "bc", "ca"):
        pause(app.cluster, other)
        oid = app.commit(f"while {other} stands still")
        app.pushed(device, "main")
        assert app.version > 0
        reader = app.cluster.spawn("ls-remote", app.url(other), "refs/heads/main")
        resume(app.cluster, other)
        assert end(reader) == (0, f"{oid}\trefs/heads/main\n")
    app.converge()


def test_g1_a_device_that_was_down_for_many_pushes_shows_the_last(make_cluster: Make) -> None:
    app = project(make_cluster("abc"), min_copies=2)
    app.pushed("a", "main")
    app.converge()
    app.cluster.stop("c", how=signal.SIGKILL)
    for number in range(12):
        oid = app.commit(f"change {number}")
        app.pushed("ab"[number % 2], "main", f"main:refs/heads/b{number}")
    app.cluster.start("c")
    assert app.refs("c")["refs/heads/main"] == oid
    assert len(app.refs("c")) == 14
    app.converge()


def test_g1_nobody_is_shown_a_push_that_is_not_committed_yet(make_cluster: Make) -> None:
    """Between the moved refs and the commit, a reader on any device waits, and says for whom."""
    cluster = make_cluster("abc", start="bc")
    cluster.start("a", fault="commit:pause")
    app = project(cluster)
    first = cluster.spawn("push", app.url("a"), "main", cwd=app.work)
    paused(cluster, "a")
    readers = [cluster.spawn("ls-remote", app.url(device), "refs/heads/main") for device in "bc"]
    for reader in readers:
        assert reader.stdout is not None
        waits = "remote: cluster: waiting for a push by demo on a that is being committed\n"
        assert reader.stdout.readline() == waits
    assert [reader.poll() for reader in readers] == [None, None]
    assert app.version == 0
    resume(cluster, "a")
    code, said = end(first)
    assert code == 0, said
    oid = app.git("rev-parse", "HEAD")
    for reader in readers:
        code, said = end(reader)
        assert code == 0
        shown = [line for line in said.splitlines() if not line.startswith("remote: cluster: syncing from ")]
        assert shown == [f"{oid}\trefs/heads/main"]
    app.converge()


# --------------------------------------------------------------------------------- G2 honest acknowledgement


def test_g2_the_client_hears_nothing_before_the_commit_and_ok_after_it(make_cluster: Make) -> None:
    """The device stands still right before its commit, then right before it lets the report go."""
    cluster = make_cluster("ab", start="b")
    app = project_without_devices(cluster)
    oid = app.git("rev-parse", "HEAD")
    old = ZERO
    for step, committed in (("commit", 0), ("mark", 2), ("acknowledge", 3)):
        cluster.start("a", fault=f"{step}:pause")
        raw = RawPush(cluster, "a", app.name)
        raw.propose((old, oid, "refs/heads/main"))
        raw.send(pack(app, "HEAD"))
        paused(cluster, "a")
        assert app.version == committed
        assert not readable(raw), f"no report at {step}"
        resume(cluster, "a")
        assert raw.report() == ["unpack ok", "ok refs/heads/main"]
        assert app.version == max(1, committed)
        raw.finish()
        cluster.stop("a")
        old, oid = oid, app.commit(f"after {step}")
    app.cluster.start("a")
    app.converge()


def project_without_devices(cluster: Cluster, min_copies: int = 1) -> Project:
    cluster.create("team/app", min_copies=min_copies)
    return Project(cluster, "team/app")


def readable(raw: RawPush) -> bool:
    """Whether something has come for the client that it has not read yet."""
    assert raw.process.stdout is not None
    ready, _, _ = select.select([raw.process.stdout], [], [], 0.3)
    return bool(ready)


def test_g2_a_push_whose_claim_was_withdrawn_fails_and_says_so(make_cluster: Make) -> None:
    """The database refuses the commit after the refs have moved on disk: what another device's fencing does."""
    cluster = make_cluster("abc", start="bc")
    cluster.start("a", fault="commit:pause")
    app = project(cluster)
    app.pushed("b", "main")
    old = app.git("rev-parse", "HEAD")
    new = app.commit("two")
    pusher = cluster.spawn("push", app.url("a"), "main", cwd=app.work)
    paused(cluster, "a")
    intent = next(r.intent for r in cluster.snapshot(app.name).replicas if r.intent)
    assert cluster.db.clear_intent(cluster.snapshot(app.name).repository.id, intent.token)
    resume(cluster, "a")
    code, said = end(pusher)
    assert code == 1
    assert "[remote rejected] main -> main (this push's claim was withdrawn before it was committed" in said
    assert "remote: cluster: push again" in said
    assert app.version == 1
    for device in "abc":
        assert app.refs(device)["refs/heads/main"] == old
    app.cluster.wait(lambda: app.cluster.converged(app.name), "a has given it up")
    assert new in app.git(f"--git-dir={app.disk('a')}", "for-each-ref", "refs/cluster/lost"), (
        "G8: given up, kept"
    )


def test_g2_a_push_that_cannot_be_committed_for_want_of_a_database_says_so(
    make_cluster: Make, postgres: str
) -> None:
    cluster = make_cluster("abc", start="bc", commit_timeout="2s")
    cluster.start("a", fault="commit:pause")
    app = project(cluster)
    pusher = cluster.spawn("push", app.url("a"), "main", cwd=app.work)
    paused(cluster, "a")
    with no_database(cluster, postgres):
        resume(cluster, "a")
        code, said = end(pusher)
    assert code == 1, said
    assert (
        "[remote rejected] main -> main (the database stayed away for 2 s, so this push is not committed)"
        in said
    )
    assert "remote: cluster: fetch before you push again" in said
    assert app.version == 0


def test_g2_a_database_that_is_back_in_time_costs_the_pusher_a_moment(
    make_cluster: Make, postgres: str
) -> None:
    cluster = make_cluster("abc", start="bc", commit_timeout="60s")
    cluster.start("a", fault="commit:pause")
    app = project(cluster)
    pusher = cluster.spawn("push", app.url("a"), "main", cwd=app.work)
    paused(cluster, "a")
    with no_database(cluster, postgres):
        resume(cluster, "a")
        assert pusher.stdout is not None
        assert "cluster: the database is away; still trying to commit this push" in pusher.stdout.readline()
        assert pusher.poll() is None
    code, said = end(pusher)
    assert code == 0, said
    assert app.version == 1
    app.converge()


@contextmanager
def no_database(cluster: Cluster, postgres: str) -> Iterator[None]:
    """Inside, the cluster's database takes no connection, and those it had are cut."""
    name = cluster.database.partition("?")[0].rpartition("/")[2]
    cluster.db.close()
    cluster._db = None
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"alter database {name} with allow_connections false")
        admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,))
        try:
            yield
        finally:
            admin.execute(f"alter database {name} with allow_connections true")


# --------------------------------------------------------------------------- G4 a failed push costs nothing


def test_g4_who_may_not_write_costs_nothing(make_cluster: Make) -> None:
    cluster = make_cluster("abc")
    app = project(cluster, min_copies=2)
    app.pushed("a", "main")
    app.converge()
    app.commit("two")
    key = keys.parse(write_keypair(cluster.directory / "reader", "reader"))
    stranger = keys.parse(write_keypair(cluster.directory / "stranger", "stranger"))
    assert stranger
    cluster.db.add_user("reader")
    cluster.db.add_key("reader", key.fingerprint, key.line, "reader")
    ssh = f'ssh -F "{cluster.ssh_config}" -i "{cluster.directory}/'

    def push(who: str) -> str:
        done = cluster.git(
            "push",
            app.url("b"),
            "main",
            cwd=app.work,
            env={"GIT_SSH_COMMAND": f'{ssh}{who}" -o IdentityFile=none'},
        )
        assert done.code == 128, done.text
        return done.err

    said = push("reader")
    assert f"remote: cluster: error: there is no repository {app.name} here, or you may not read it" in said
    cluster.db.grant(Level.READ, "reader", app.name)
    said = push("reader")
    assert f"remote: cluster: error: you may read {app.name} but not push to it" in said
    assert f"git-cluster grant write reader {app.name}" in said
    untouched(app, 1)


def test_g4_pushes_that_change_nothing_cost_nothing(make_cluster: Make) -> None:
    app = project(make_cluster("abc"), min_copies=2)
    app.pushed("a", "main")
    app.converge()
    for device in "abc":
        assert app.pushed(device, "main").err == "Everything up-to-date\n"
        assert "deleting a non-existent ref" in app.pushed(device, ":refs/heads/not-there").err
        assert app.pushed(device, "--dry-run", "main:refs/heads/dry").code == 0
    untouched(app, 1)


def test_g4_a_lost_race_costs_nothing_and_names_the_winner(make_cluster: Make) -> None:
    app = project(make_cluster("abc"), min_copies=2)
    app.pushed("a", "main")
    old = app.git("rev-parse", "HEAD")
    clone = app.clone("b")
    raw = RawPush(app.cluster, "c", app.name)
    theirs = app.commit("theirs")
    app.pushed("b", "main")
    app.git("commit", "--quiet", "--allow-empty", "-m", "mine", cwd=clone)
    mine = app.git("rev-parse", "HEAD", cwd=clone)
    raw.propose((old, mine, "refs/heads/main"), capabilities="report-status")
    app.git("fetch", "--quiet", str(clone), "main")
    raw.send(pack(app, mine, f"^{old}"))
    assert raw.report() == [
        "unpack ok",
        f"ng refs/heads/main fetch first: refs/heads/main moved to {theirs[:12]} by demo on b",
    ]
    raw.finish()
    app.cluster.wait(lambda: app.cluster.converged(app.name), "all have the winner's")
    untouched(app, 2)


def test_g4_an_upload_that_is_cut_off_costs_nothing(make_cluster: Make) -> None:
    app = project(make_cluster("abc"), min_copies=2)
    app.pushed("a", "main")
    app.converge()
    old, new = app.git("rev-parse", "HEAD"), app.commit("two", big=os.urandom(500_000).hex())
    data = pack(app, new, f"^{old}")
    for sent in (0, 11, 400_000, len(data) - 1):
        raw = RawPush(app.cluster, "b", app.name)
        raw.propose((old, new, "refs/heads/main"), capabilities="report-status side-band-64k")
        raw.send(data[:sent])
        raw.kill()
    damaged = RawPush(app.cluster, "b", app.name)
    damaged.propose((old, new, "refs/heads/main"))
    damaged.send(data[:-1000] + bytes(1000))
    report = damaged.report()
    assert report[0].startswith("unpack ") and report[0] != "unpack ok"
    assert report[1:] == ["ng refs/heads/main unpacker error"]
    damaged.finish()
    incomplete = RawPush(app.cluster, "b", app.name)
    incomplete.propose((old, new, "refs/heads/main"))
    incomplete.send(pack(app, old))
    assert incomplete.report()[1].startswith("ng refs/heads/main")
    incomplete.finish()
    untouched(app, 1)
    app.pushed("c", "main")
    app.converge()


def test_g4_a_frozen_repository_refuses_each_ref_and_stages_nothing(make_cluster: Make) -> None:
    app = project(make_cluster("abc"), min_copies=2)
    app.pushed("a", "main")
    app.converge()
    id = app.cluster.snapshot(app.name).repository.id
    app.cluster.db.freeze(id, "we move house")
    app.commit("two")
    done = app.refused("b", "main")
    assert f"main -> main ({app.name} is frozen: we move house)" in done.err
    assert f"git-cluster thaw {app.name}" in done.err
    untouched(app, 1)
    app.cluster.db.freeze(id, None)
    app.pushed("b", "main")


# ---------------------------------------------------------------------------------- G5 slow clients hold nothing


def advisory_locks(db: Database) -> int:
    with psycopg.connect(db.url) as connection:
        row = connection.execute(
            """select count(*) from pg_locks where locktype = 'advisory'
                and database = (select oid from pg_database where datname = current_database())"""
        ).fetchone()
    assert row is not None
    return int(row[0])


def connections(db: Database) -> dict[str, int]:
    """How many connections each device has, and whether one of them is in a transaction."""
    with psycopg.connect(db.url) as connection:
        rows = connection.execute(
            """select application_name || case when state like 'idle in %' then ' in a transaction' else '' end,
                      count(*) from pg_stat_activity
                where datname = current_database() and application_name like 'git-cluster%' group by 1"""
        ).fetchall()
    return dict(rows)


def test_g5_a_paused_upload_delays_nobody(make_cluster: Make) -> None:
    cluster = make_cluster("abc")
    app = project(cluster, min_copies=2)
    app.pushed("a", "main")
    old = app.git("rev-parse", "HEAD")
    before = connections(cluster.db)
    new = app.commit("slow", big=os.urandom(500_000).hex())
    data = pack(app, new, f"^{old}")
    slow: list[RawPush] = []
    for device in "abcabcabcabc":
        raw = RawPush(cluster, device, app.name)
        raw.propose((ZERO, new, f"refs/heads/slow{len(slow)}"))
        raw.send(data[: len(data) // 2])
        slow.append(raw)

    for number, device in enumerate("abc" * 2):
        app.pushed(device, f"main~1:refs/heads/quick{number}")
        app.clone("bca"["abc".index(device)])
    assert advisory_locks(cluster.db) == 0
    now = connections(cluster.db)
    assert not [name for name in now if "transaction" in name]
    assert sum(now.values()) <= sum(before.values()) + 6, "connections do not grow with clients"

    for raw in slow:
        raw.send(data[len(data) // 2 :])
        assert raw.report()[1].startswith("ok ")
        raw.finish()
    assert app.version == 1 + 6 + 12
    app.converge()


SLOW = """#!/bin/sh
wait_for_gate() { stdbuf -o0 head -c {{after}}; touch "{{folder}}/reached"; cat "{{folder}}/gate" >/dev/null; cat; }
if [ {{way}} = up ]; then wait_for_gate | {{ssh}} "$@"; else {{ssh}} "$@" | wait_for_gate; fi
"""


class SlowLine:
    """An ssh for stock git that stands still after so many bytes "up" or "down", until `go_on`."""

    def __init__(self, cluster: Cluster, way: str, after: int) -> None:
        self._cluster = cluster
        self.folder = cluster.directory / f"slow-{way}"
        self.folder.mkdir()
        os.mkfifo(self.folder / "gate")
        script = self.folder / "ssh"
        ssh = cluster.git_environment()["GIT_SSH_COMMAND"]
        values = {"after": str(after), "folder": str(self.folder), "way": way, "ssh": ssh}
        text = SLOW
        for name, value in values.items():
            text = text.replace("{{" + name + "}}", value)
        script.write_text(text)
        script.chmod(0o755)
        self._options = ("-c", f"core.sshCommand={script}", "-c", "ssh.variant=ssh")

    def git(self, *arguments: str, app: Project) -> subprocess.Popen[str]:
        env = self._cluster.git_environment()
        del env["GIT_SSH_COMMAND"]
        process = subprocess.Popen(
            ["git", *self._options, *arguments], cwd=app.work, env=env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._cluster.wait((self.folder / "reached").exists, "it stands still in the middle")
        return process

    def go_on(self) -> None:
        (self.folder / "gate").write_text("")


def test_g5_a_paused_stock_client_delays_nobody(make_cluster: Make) -> None:
    """`git push` stands still in its upload; then `git clone` in its download."""
    cluster = make_cluster("ab")
    app = project(cluster, min_copies=2)
    app.pushed("a", "main")
    app.commit("big", big=os.urandom(4_000_000).hex())

    line = SlowLine(cluster, "up", 1_000_000)
    push = line.git("push", "--quiet", app.url("a"), "main:refs/heads/big", app=app)
    app.pushed("b", "main~1:refs/heads/x")
    app.pushed("a", "main~1:refs/heads/y")
    assert app.refs("b").keys() >= {"refs/heads/x", "refs/heads/y"}
    assert "refs/heads/big" not in app.refs("a")
    assert advisory_locks(cluster.db) == 0
    assert push.poll() is None
    line.go_on()
    assert end(push) == (0, "")

    line = SlowLine(cluster, "down", 1_000_000)
    clone = line.git(
        "clone", "--quiet", "--branch=big", app.url("b"), str(cluster.directory / "slow"), app=app
    )
    for device in "ab":
        app.pushed(device, f"main~1:refs/heads/z{device}")
    assert advisory_locks(cluster.db) == 0
    assert clone.poll() is None
    line.go_on()
    assert end(clone) == (0, "")
    app.converge()


def test_g5_a_client_that_reads_nothing_delays_nobody(make_cluster: Make) -> None:
    """Not even when the repository's `update` hook, which runs under the write lock, has very much to tell it."""
    cluster = make_cluster("ab", lock_timeout="10s")
    app = project(cluster)
    app.pushed("a", "main")
    app.converge()
    hook = app.disk("a") / "hooks" / "update"
    hook.write_text("#!/bin/sh\nhead -c 20000000 /dev/zero | tr '\\0' x | fold -w 100\n")
    hook.chmod(0o755)
    oid = app.git("rev-parse", "HEAD")
    deaf = []
    for number, capabilities in enumerate(("report-status", "report-status side-band-64k")):
        raw = RawPush(cluster, "a", app.name)
        raw.propose((ZERO, oid, f"refs/heads/deaf{number}"), capabilities=capabilities)
        raw.send(pack(app, "HEAD"))
        cluster.wait(lambda: app.version == number + 2, "it is committed")  # noqa: B023
        deaf.append(raw)
    app.pushed("b", "main:refs/heads/x")
    assert advisory_locks(cluster.db) == 0
    assert "ok refs/heads/deaf0" in deaf[0].finish().out
    assert "ok refs/heads/deaf1" in deaf[1].finish().out
    app.converge()


# --------------------------------------------------------------------------------------------------- G9 copies


@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize("step", ["mark", "done"])
def test_g9_what_is_committed_outlives_the_device_that_took_it(
    make_cluster: Make, copies: int, step: str
) -> None:
    """a dies for ever right after the commit, before (mark) or after (done) it could tell the pusher."""
    cluster = make_cluster("abc", start="bc")
    app = project_without_devices(cluster, min_copies=copies)
    app.pushed("b", "main")
    cluster.start("a", fault=f"{step}:kill")
    cluster.wait(lambda: cluster.converged(app.name), "a has caught up")
    oid = app.commit("two", big=os.urandom(100_000).hex())
    done = app.push("a", "main")
    dead(cluster, "a")
    assert app.version == 2
    assert f"..{oid[:7]}  main -> main" in done.err if step == "done" else "main -> main" not in done.err
    if step == "done":  # G1 holds from the acknowledgement on
        for device in "cb":
            assert app.refs(device)["refs/heads/main"] == oid
    clone = cluster.wait(lambda: cluster.git("ls-remote", app.url("b"), "main").out, "b has it")
    assert clone.split()[0] == oid
    for device in "bc":
        path = app.clone(device)
        assert app.git("rev-parse", "HEAD", cwd=path) == oid
        app.git("fsck", "--full", cwd=path)
    three = app.commit("three")
    app.pushed("c", "main")
    assert app.refs("b")["refs/heads/main"] == three
    cluster.wait(lambda: not staged_refs(app, "bc"), "nothing is staged any more")


def test_g9_the_only_other_copy_catches_up_while_it_is_asked(make_cluster: Make) -> None:
    """The keeper stands still from the commit on, the pusher's device dies: whoever asks the third gets the push."""
    cluster = make_cluster("abc", start="bc")
    cluster.start("a", fault="commit:pause")
    app = project(cluster, min_copies=2)
    pusher = cluster.spawn("push", "--quiet", app.url("a"), "main", cwd=app.work)
    paused(cluster, "a")
    keeper = next(device for device in "bc" if staged_refs(app, device))
    third = "bc".replace(keeper, "")
    pause(cluster, keeper)
    resume(cluster, "a")
    assert end(pusher) == (0, "")
    cluster.stop("a", how=signal.SIGKILL)
    reader = cluster.spawn("ls-remote", app.url(third), "refs/heads/main")
    resume(cluster, keeper)
    code, said = end(reader)
    assert code == 0, said
    assert said.splitlines()[-1].split()[0] == app.git("rev-parse", "HEAD")


def test_g9_with_one_device_up_warn_accepts_and_says_so(make_cluster: Make) -> None:
    cluster = make_cluster("abc")
    app = project(cluster, min_copies=3)
    app.pushed("a", "main")
    app.converge()
    cluster.stop("b")
    app.commit("two")
    done = app.pushed("a", "main")
    assert "remote: cluster: warning: only 2 of 3 copies can be made now" in done.err
    cluster.stop("c")
    app.commit("three")
    done = app.pushed("a", "main")
    assert "remote: cluster: warning: only 1 of 3 copies can be made now" in done.err
    for device in "bc":
        cluster.start(device)
    app.converge()
    app.commit("four")
    assert "cluster" not in app.pushed("b", "main").err
    app.converge()


def test_g9_with_one_device_up_refuse_refuses_before_anything_moves(make_cluster: Make) -> None:
    cluster = make_cluster("abc")
    app = project(cluster, min_copies=2)
    done = cluster.admin("repo", "set", app.name, "--when-short", "refuse")
    assert done.code == 0, done.text
    app.pushed("a", "main")
    app.converge()
    cluster.stop("b")
    cluster.stop("c")
    old = app.git("rev-parse", "HEAD")
    app.commit("two")
    done = app.refused("a", "main")
    assert f"(only 1 of 2 copies can be made now, and {app.name} asks for all of them)" in done.err
    assert "remote: cluster: push again when more devices are up" in done.err
    assert app.version == 1
    assert app.git(f"--git-dir={app.disk('a')}", "rev-parse", "main") == old
    cluster.start("c")
    app.pushed("a", "main")
    cluster.start("b")
    app.converge()


def test_g9_a_keeper_that_stands_still_is_given_up(make_cluster: Make) -> None:
    """It is still taken for online, and answers nothing: the other one keeps the copy."""
    cluster = make_cluster("abc")
    app = project(cluster, min_copies=2)
    app.pushed("a", "main")
    app.converge()
    pause(cluster, "b")
    app.commit("two")
    done = app.pushed("a", "main")
    assert "warning" not in done.err, "c keeps the second copy"
    resume(cluster, "b")
    app.converge()
    cluster.wait(lambda: not staged_refs(app), "nothing is staged any more", timeout=90)


def test_g9_nothing_stays_staged(make_cluster: Make) -> None:
    """After pushes that landed, were refused by a hook, lost a race, or were cut off while they waited."""
    cluster = make_cluster("abc")
    app = project(cluster, min_copies=3)
    app.pushed("a", "main", "main:refs/tags/t")
    app.pushed("b", ":refs/tags/t")
    hook = app.disk("a") / "hooks" / "update"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    app.commit("two")
    app.refused("a", "main")
    app.pushed("c", "main")
    app.converge()
    cluster.wait(lambda: not staged_refs(app), "nothing is staged any more")
