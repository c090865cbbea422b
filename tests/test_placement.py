"""Where repositories are, with real devices: placing, taking away, moving off a device, rules for new ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from cluster import creating
from cluster.db import Database
from cluster.errors import ClusterError, Refused, StillNeeded
from cluster.model import DeviceMode, PlacementRule
from tests.cluster_fixture import Cluster, Done, Project


def holders(cluster: Cluster, repository: str) -> str:
    return "".join(replica.device.name for replica in cluster.snapshot(repository).replicas)


def refused(done: Done) -> str:
    """A command that failed, with one line of what and one of what to do; the first."""
    assert done.code == 1, done.text
    what, hint = done.err.splitlines()[-2:]
    assert what.startswith("git-cluster: ") and hint.startswith("  ")
    assert "Traceback" not in done.err
    return what


def trash(cluster: Cluster, device: str, repository_id: int) -> list[Path]:
    return sorted((cluster.devices[device].data_dir / "trash").glob(f"{repository_id}-*"))


def spawn(cluster: Cluster, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cluster", "--config", str(cluster.config), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def app(devices: Cluster, request: pytest.FixtureRequest) -> Iterator[Project]:
    """A repository with one commit, on devices a and b alone."""
    project = Project.named(devices, request.node.name)
    project.pushed("a", "main")
    project.converge()
    assert devices.admin("repo", "place", project.name, "--remove", "c").code == 0
    yield project
    for device in "abc":
        devices.db.set_device_mode(device, DeviceMode.ENABLED)
        devices.db.set_device(device, zone="")


# ------------------------------------------------------------------------------------------------------- placing


def test_a_repository_is_placed_elsewhere_and_back(app: Project) -> None:
    cluster = app.cluster
    done = cluster.admin("repo", "place", app.name, "--add", "c", "--wait")
    assert done.code == 0, done.text
    assert done.out == f"c will hold {app.name}; `git-cluster status {app.name}` shows when it does\n"
    assert app.refs("c") == app.refs("a")
    done = cluster.admin("repo", "place", app.name, "--remove", "a", "--remove", "b")
    assert done.out.splitlines() == [f"a no longer holds {app.name}", f"b no longer holds {app.name}"]
    assert holders(cluster, app.name) == "c"
    app.commit("two")
    app.pushed("c", "main")
    document = cluster.admin_json("repo", "place", app.name, "--copies", "3", "--wait")
    assert document == {
        "name": app.name,
        "added": ["a", "b"],
        "removed": [],
        "waiting": [],
        "devices": ["a", "b", "c"],
        "dry_run": False,
    }
    app.converge()
    assert app.refs("a") == app.refs("c")


def test_a_dry_run_changes_nothing(app: Project) -> None:
    cluster = app.cluster
    done = cluster.admin("repo", "place", app.name, "--add", "c", "--remove", "a", "--dry-run")
    assert done.out.splitlines() == [f"c would hold {app.name}", f"a would no longer hold {app.name}"]
    assert cluster.admin_json("repo", "place", app.name, "--copies", "3", "--dry-run")["added"] == ["c"]
    assert (
        "nothing would change" in cluster.admin("repo", "place", app.name, "--copies", "2", "--dry-run").out
    )
    assert holders(cluster, app.name) == "ab"


def test_what_cannot_be_is_said_before_anything_changes(app: Project) -> None:
    cluster, name = app.cluster, app.name
    for arguments, says in (
        (["--remove", "c"], "device c does not hold"),
        (["--add", "zz"], "there is no device zz"),
        (["--add", "c", "--remove", "zz"], "device zz does not hold"),
        (["--add", "c", "--copies", "4"], "only 3 devices could hold them"),
        (["--remove", "a", "--remove", "b"], "would be on no device any more"),
    ):
        assert says in refused(cluster.admin("repo", "place", name, *arguments))
    for arguments in (
        [],
        ["--add", "c", "--remove", "b", "--add", "b"],
        ["--copies", "0"],
        ["--copies", "x"],
    ):
        assert cluster.admin("repo", "place", name, *arguments).code == 2
    assert "there is no repository none" in refused(cluster.admin("repo", "place", "none", "--add", "c"))
    cluster.admin("repo", "set", name, "--min-copies", "2")
    done = cluster.admin("repo", "place", name, "--remove", "b")
    assert "more than its 1 device" in refused(done)
    assert f"git-cluster repo set {name} --min-copies 1" in done.err
    done = cluster.admin("repo", "set", name, "--min-copies", "3")
    assert "more than its 2 devices" in refused(done)
    assert f"git-cluster repo place {name} --copies 3" in done.err
    cluster.db.set_device_mode("c", DeviceMode.DRAINING)
    assert "device c is draining" in refused(cluster.admin("repo", "place", name, "--add", "c"))
    assert "only 2 devices could" in refused(cluster.admin("repo", "place", name, "--copies", "3"))
    assert holders(cluster, name) == "ab"
    assert cluster.admin("repo", "place", name, "--add", "a").out.startswith("nothing to change: ")


def test_the_former_options_still_work_and_are_not_shown(app: Project) -> None:
    cluster = app.cluster
    assert "--add-device" not in cluster.admin("repo", "set", "--help").out
    assert cluster.admin("repo", "set", app.name, "--add-device", "c").code == 0
    cluster.wait(lambda: cluster.converged(app.name), "c has it")
    done = cluster.admin("repo", "set", app.name, "--remove-device", "a")
    assert done.out == f"a no longer holds {app.name}\n"
    assert holders(cluster, app.name) == "bc"


def test_the_least_loaded_device_in_another_zone_is_chosen(app: Project) -> None:
    cluster = app.cluster
    for device, zone in (("a", "rack-1"), ("b", "rack-1"), ("c", "rack-2")):
        assert cluster.admin("device", "set", device, "--zone", zone).code == 0
    assert [row["zone"] for row in cluster.admin_json("device", "list")] == ["rack-1", "rack-1", "rack-2"]
    chosen = cluster.admin_json("repo", "create", f"{app.name}-two", "--copies", "2")["devices"]
    assert "c" in chosen and len(chosen) == 2
    (gone,) = cluster.admin_json("repo", "place", app.name, "--add", "c", "--copies", "2", "--wait")[
        "removed"
    ]
    assert gone in "ab"
    assert holders(cluster, app.name) == "ab".replace(gone, "") + "c"


# ----------------------------------------------------------------------------------------------- the last leader


def test_the_last_leader_stays_until_another_is_current(make_cluster: Callable[..., Cluster]) -> None:
    """X is added, Y is refused; with --wait Y goes once X is current, and the wait may be interrupted."""
    cluster = make_cluster("ab", start="a")
    cluster.create("team/app", devices="a")
    work = cluster.work()
    cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=work)
    done = cluster.admin("repo", "place", "team/app", "--add", "b", "--remove", "a")
    assert done.out.startswith("b will hold team/app")
    assert "it is the last that holds its newest version, 1" in refused(done)
    assert "wait until b is current" in done.err
    assert holders(cluster, "team/app") == "ab"
    document = json.loads(
        cluster.admin("repo", "place", "team/app", "--remove", "a", "--dry-run", "--json").out
    )
    assert document["removed"] == ["a"]

    command = ["repo", "place", "team/app", "--add", "b", "--remove", "a", "--wait"]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        waiting = spawn(cluster, *command)
        assert waiting.stderr
        assert waiting.stderr.readline() == "waiting until b is current: it is offline\n"
        waiting.send_signal(number)
        out, err = waiting.communicate(timeout=60)
        assert (waiting.returncode, out, err.strip()) == (code, "", "")
        assert holders(cluster, "team/app") == "ab"
    waiting = spawn(cluster, *command)
    cluster.start("b")
    out, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, out) == (0, "a no longer holds team/app\n"), err
    assert holders(cluster, "team/app") == "b"
    assert cluster.refs("b")["refs/heads/main"] == cluster.ok("rev-parse", "main", cwd=work).strip()


def test_a_leader_that_is_away_is_no_reason_to_remove_the_one_that_is_up(app: Project) -> None:
    cluster = app.cluster
    cluster.db.set_device_mode("b", DeviceMode.DISABLED)
    assert "are away: b (disabled)" in refused(cluster.admin("repo", "place", app.name, "--remove", "a"))
    assert cluster.admin("repo", "place", app.name, "--remove", "b").code == 0


def test_of_two_removals_at_once_one_is_refused(app: Project) -> None:
    """Each would leave the other's leader behind: the repository's row is locked first. Both orders, many times."""
    cluster = app.cluster
    id = cluster.snapshot(app.name).repository.id
    with Database(cluster.database).open() as one, Database(cluster.database).open() as two:
        for _ in range(20):
            together = threading.Barrier(2)

            def remove(db: Database, device: str, together: threading.Barrier = together) -> str:
                together.wait(10)
                try:
                    db.unplace(id, device)
                except ClusterError as error:
                    return error.what
                return device

            with ThreadPoolExecutor(2) as pool:
                first, second = pool.map(remove, (one, two), "ab")
            gone, refusal = (first, second) if first in ("a", "b") else (second, first)
            assert gone in ("a", "b") and "cannot be removed" in refusal
            assert len(cluster.snapshot(app.name).leaders) == 1
            cluster.db.place(id, gone)
            cluster.wait(lambda: cluster.converged(app.name), "both hold it again")


def test_a_removal_waits_for_another_that_has_begun(app: Project) -> None:
    """Two real transactions: the second looks only when the first has ended, whatever it had seen before."""
    cluster = app.cluster
    id = cluster.snapshot(app.name).repository.id
    outcome: list[BaseException | None] = []

    def second() -> None:
        try:
            cluster.db.unplace(id, "b")
        except ClusterError as error:
            outcome.append(error)
        else:
            outcome.append(None)

    with psycopg.connect(cluster.database) as connection:
        connection.execute("select from repository where id = %s for no key update", (id,))
        thread = threading.Thread(target=second)
        thread.start()
        with psycopg.connect(cluster.database, autocommit=True) as watching:
            blocked = "select from pg_locks where not granted and pid <> pg_backend_pid()"
            cluster.wait(lambda: watching.execute(blocked).fetchall(), "the second one waits")
        connection.execute(
            "delete from replica using device d where repository_id = %s and d.id = device_id and d.name = 'a'",
            (id,),
        )
    thread.join(30)
    assert isinstance(outcome[0], StillNeeded)
    assert holders(cluster, app.name) == "b"


# ------------------------------------------------------------------------------------------- what stays on the disk


def test_what_was_taken_away_is_refused_at_once_and_set_aside(app: Project) -> None:
    """Neither read nor written from the moment that the row is gone, but passed on; its copy goes to the trash."""
    cluster = app.cluster
    id, disk = cluster.snapshot(app.name).repository.id, app.disk("b")
    lost = app.git("rev-parse", "main")
    cluster.ok(f"--git-dir={disk}", "update-ref", "refs/cluster/lost/kept", lost)
    assert cluster.admin("repo", "place", app.name, "--remove", "b").code == 0
    app.pushed("b", "main:refs/heads/x")
    assert app.log()[-1].device != "b"
    assert app.refs("b") == app.refs("a")
    cluster.wait(lambda: not disk.exists(), "the copy is set aside")
    (aside,) = trash(cluster, "b", id)
    assert aside.name.startswith(f"{id}-removed-")
    assert cluster.ok(f"--git-dir={aside}", "rev-parse", "refs/cluster/lost/kept").strip() == lost
    app.commit("two")
    app.pushed("a", "main")

    assert cluster.admin("repo", "place", app.name, "--add", "b", "--wait").code == 0
    assert app.refs("b") == app.refs("a")
    app.converge()
    app.commit("three")
    app.pushed("b", "main")
    app.converge()


def test_a_device_that_was_off_sets_its_copy_aside_when_it_is_back(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("ab")
    cluster.create("team/app")
    work = cluster.work()
    cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=work)
    cluster.converge()
    id, disk = cluster.snapshot().repository.id, cluster.disk("b")
    cluster.stop("b")
    assert cluster.admin("repo", "place", "team/app", "--remove", "b").code == 0
    assert disk.exists()
    cluster.start("b")
    cluster.wait(lambda: not disk.exists(), "the copy is set aside")
    assert len(trash(cluster, "b", id)) == 1


def test_a_copy_that_is_added_again_before_it_is_set_aside_goes_on(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("ab")
    cluster.create("team/app")
    work = cluster.work()
    cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=work)
    cluster.converge()
    cluster.stop("b")
    assert cluster.admin("repo", "place", "team/app", "--remove", "b").code == 0
    cluster.commit(work, "two")
    cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=work)
    assert cluster.admin("repo", "place", "team/app", "--add", "b").code == 0
    cluster.start("b")
    cluster.converge()
    assert cluster.refs("b") == cluster.refs("a")
    assert not trash(cluster, "b", cluster.snapshot().repository.id)


def test_a_clone_that_has_begun_ends_though_its_copy_is_set_aside(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("ab")
    cluster.create("team/app")
    work = cluster.work()
    (work / "large").write_bytes(os.urandom(24_000_000))
    tip = cluster.commit(work, "large")
    cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=work)
    cluster.converge()
    clone = spawn_slow_clone(cluster, "b")
    disk = cluster.disk("b")
    assert cluster.admin("repo", "place", "team/app", "--remove", "b").code == 0
    cluster.wait(lambda: not disk.exists(), "the copy is set aside")
    os.kill(clone.pid, signal.SIGCONT)
    os.killpg(clone.pid, signal.SIGCONT)
    out, _ = clone.communicate(timeout=60)
    assert clone.returncode == 0, out
    assert cluster.ok("rev-parse", "HEAD", cwd=cluster.directory / "slow").strip() == tip


def spawn_slow_clone(cluster: Cluster, device: str) -> subprocess.Popen[str]:
    """A clone that is stopped once its first megabyte has come."""
    clone = cluster.spawn("clone", "--quiet", cluster.url(device), "slow")
    pack = cluster.directory / "slow/.git/objects/pack"

    def begun() -> bool:
        return any(path.stat().st_size > 500_000 for path in pack.glob("tmp_pack_*"))

    cluster.wait(begun, "the clone has begun")
    os.killpg(clone.pid, signal.SIGSTOP)
    return clone


def test_a_copy_that_knows_more_than_the_database_stays(make_cluster: Callable[..., Cluster]) -> None:
    """G7: a database from before the repository was placed here has no row of it, but the disk has the newest."""
    cluster = make_cluster("ab")
    cluster.create("team/app")
    work = cluster.work()
    cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=work)
    cluster.converge()
    cluster.stop("a")
    cluster.stop("b")
    id = cluster.snapshot().repository.id
    position = cluster.disk("b") / "cluster" / "position"
    said = json.loads(position.read_text())
    position.write_text(json.dumps(said | {"version": 7}))
    with psycopg.connect(cluster.database) as connection:
        connection.execute("delete from replica using device d where d.id = device_id and d.name = 'b'")
    cluster.start("b")
    cluster.wait(lambda: cluster.snapshot().repository.frozen, "the repository is frozen")
    assert "has a copy at version 7, which the database does not know" in str(
        cluster.snapshot().repository.frozen
    )
    assert cluster.disk("b").exists() and not trash(cluster, "b", id)


# ----------------------------------------------------------------------------------- pushes, while devices go


def test_a_push_whose_second_copy_was_taken_away_is_refused(make_cluster: Callable[..., Cluster]) -> None:
    """G9: what was staged on a device that no longer holds the repository counts for nothing."""
    cluster = make_cluster("abc", start="bc")
    cluster.create("team/app", min_copies=2)
    cluster.start("a", fault="intend:pause")
    cluster.wait(lambda: cluster.converged(), "the empty repository is everywhere")
    work = cluster.work()
    push = cluster.spawn("push", cluster.url("a"), "main", cwd=work)
    process = cluster.devices["a"].process
    assert process
    cluster.wait(lambda: stopped(process.pid), "device a stands at intend")
    staged_on = next(
        d for d in "bc" if cluster.ok(f"--git-dir={cluster.disk(d)}", "for-each-ref", "refs/cluster")
    )
    cluster.db.unplace(cluster.snapshot().repository.id, staged_on)
    process.send_signal(signal.SIGCONT)
    out, _ = push.communicate(timeout=60)
    assert push.returncode != 0
    assert "push again" in out or "changed while the push waited" in out, out
    assert cluster.version() == 0
    cluster.ok("push", "--quiet", cluster.url("bc".replace(staged_on, "")), "main", cwd=work)
    assert cluster.version() == 1


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_push_to_a_device_that_is_taken_away_meanwhile_is_refused(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("ab", start="a")
    cluster.create("team/app")
    cluster.start("b", fault="lock:pause")
    cluster.wait(lambda: cluster.converged(), "the empty repository is everywhere")
    work = cluster.work()
    push = cluster.spawn("push", cluster.url("b"), "main", cwd=work)
    process = cluster.devices["b"].process
    assert process
    cluster.wait(lambda: stopped(process.pid), "device b stands at lock")
    assert cluster.admin("repo", "place", "team/app", "--remove", "b").code == 0
    process.send_signal(signal.SIGCONT)
    out, _ = push.communicate(timeout=60)
    assert push.returncode != 0
    assert "device b does not hold team/app" in out, out
    assert cluster.version() == 0
    cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=work)


def test_nothing_is_taken_away_between_an_intent_and_its_commit(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("abc", start="bc")
    cluster.create("team/app", min_copies=2)
    cluster.start("a", fault="commit:pause")
    cluster.wait(lambda: cluster.converged(), "the empty repository is everywhere")
    push = cluster.spawn("push", cluster.url("a"), "main", cwd=cluster.work())
    process = cluster.devices["a"].process
    assert process
    cluster.wait(lambda: stopped(process.pid), "device a stands at commit")
    for name in "abc":
        done = cluster.admin("repo", "place", "team/app", "--remove", name)
        assert "a push by demo on a is not committed yet" in refused(done)
    process.send_signal(signal.SIGCONT)
    assert push.wait(60) == 0
    cluster.converge()


def test_draining_moves_everything_while_pushes_go_on(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("abc")
    names = [f"team/r{number}" for number in range(5)]
    for number, name in enumerate(names):
        cluster.create(name, devices="ab" if number % 2 else "bc", min_copies=2)
    for name in names:
        cluster.wait(lambda name=name: cluster.converged(name), "the new repository is everywhere")  # type: ignore[misc]
    cluster.create("on-b-alone", devices="b")
    done = threading.Event()
    acknowledged: dict[str, list[str]] = {name: [] for name in names}
    works = {name: cluster.work(name.replace("/", "-")) for name in names}

    def pusher(name: str) -> None:
        number = 0
        while not done.is_set() and number < 200:
            number += 1
            tip = cluster.commit(works[name], f"{name} {number}")
            for device in holders(cluster, name):
                if cluster.git("push", cluster.url(device, name), "main", cwd=works[name]).code == 0:
                    acknowledged[name].append(tip)
                    break

    threads = [threading.Thread(target=pusher, args=(name,)) for name in names[:2]]
    for thread in threads:
        thread.start()
    try:
        first = spawn(cluster, "device", "drain", "b", "--move")
        assert first.stderr
        first.stderr.readline()
        first.kill()  # begun again, it goes on from there
        first.communicate()
        moved = cluster.admin("device", "drain", "b", "--move", timeout=110)
        assert moved.code == 0, moved.text
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert "repositories moved" in moved.text
    for name in names:
        assert holders(cluster, name) == "ac"
        cluster.converge(name)
        if acknowledged[name]:
            last = acknowledged[name][-1]
            for device in "ac":
                tip = cluster.refs(device, name)["refs/heads/main"]
                cluster.ok("merge-base", "--is-ancestor", last, tip, cwd=works[name])
    assert len(holders(cluster, "on-b-alone")) == 1
    assert acknowledged[names[0]] and acknowledged[names[1]]
    assert cluster.admin("device", "remove", "b").code == 0
    assert [row["name"] for row in cluster.admin_json("device", "list")] == ["a", "c"]


def test_an_interrupted_move_makes_no_copy_too_many(make_cluster: Callable[..., Cluster]) -> None:
    """What was chosen is found again; where that device is drained, too, another one is chosen instead."""
    cluster = make_cluster("abcd", start="ab")
    cluster.create("team/app", devices="ab")
    cluster.wait(lambda: cluster.converged(), "the empty repository is everywhere")
    cluster.db.set_device_mode("d", DeviceMode.DRAINING)
    for _ in range(2):
        moving = spawn(cluster, "device", "drain", "b", "--move")
        assert moving.stderr
        assert "0 of 1 repositories moved; team/app waits for c: it is offline" in moving.stderr.readline()
        moving.send_signal(signal.SIGINT)
        moving.communicate(timeout=60)
        assert moving.returncode == 130
        assert holders(cluster, "team/app") == "abc"
    moving = spawn(cluster, "device", "drain", "b", "--move")
    assert moving.stderr
    assert "waits for c" in moving.stderr.readline()
    cluster.db.set_device_mode("d", DeviceMode.ENABLED)
    cluster.db.set_device_mode("c", DeviceMode.DRAINING)
    cluster.start("d")
    moving.communicate(timeout=60)
    assert moving.returncode == 0
    assert holders(cluster, "team/app") == "ad"


def test_a_device_that_is_enabled_again_keeps_what_it_has(app: Project) -> None:
    """What was chosen for a move that nobody wants any more is not taken for a part of the next one."""
    db, id = app.cluster.db, app.cluster.snapshot(app.name).repository.id
    db.set_device_mode("b", DeviceMode.DRAINING)
    db.place(id, "c", instead_of="b")
    assert db.moving("b") == {id: "c"}
    assert app.cluster.admin("device", "enable", "b").code == 0
    assert db.moving("b") == {}
    assert holders(app.cluster, app.name) == "abc"


def test_what_has_nowhere_to_go_is_named(devices: Cluster) -> None:
    app = Project.named(devices, "nowhere-to-go", min_copies=3)
    done = devices.admin("device", "drain", "a", "--move")
    try:
        assert "could not be moved away from device a" in refused(done)
        assert f"not moved: {app.name}: no other device could hold it" in done.err
        assert "a" in holders(devices, app.name)
        assert (
            "move them away first: `git-cluster device drain a --move`"
            in devices.admin("device", "remove", "a").err
        )
    finally:
        devices.db.set_device_mode("a", DeviceMode.ENABLED)
        devices.db.delete_repository(app.name)


# ------------------------------------------------------------------------------------------------ new repositories


def test_rules_say_where_new_repositories_go(devices: Cluster) -> None:
    admin = devices.admin
    assert admin("placement", "list").err == "no rules; new repositories go to every enabled device\n"
    assert admin("placement", "set", "lab/*", "--copies", "1").code == 0
    assert admin("placement", "set", "lab/safe-*", "--copies", "2", "--min-copies", "2").code == 0
    assert admin("placement", "set", "wide/*", "--copies", "9", "--min-copies", "1").code == 0
    assert (
        admin("placement", "set", "lab/*", "--copies", "2", "--min-copies", "1").code == 0
    )  # once more: replaced
    assert devices.admin_json("placement", "list") == [
        {"pattern": "lab/safe-*", "copies": 2, "min_copies": 2},
        {"pattern": "wide/*", "copies": 9, "min_copies": 1},
        {"pattern": "lab/*", "copies": 2, "min_copies": 1},
    ]
    for name, copies, least in (("lab/x", 2, 1), ("lab/safe-x", 2, 2), ("other", 3, 2)):
        made = devices.admin_json("repo", "create", name)
        assert (len(made["devices"]), made["min_copies"]) == (copies, least)
    assert len(devices.admin_json("repo", "create", "lab/y", "--copies", "3")["devices"]) == 3
    assert devices.admin_json("repo", "create", "lab/z", "--device", "b")["devices"] == ["b"]
    wide = admin("repo", "create", "wide/x")
    assert wide.code == 0
    assert (
        wide.err
        == "warning: the placement rule for wide/* asks for 9 copies, and only 3 devices are enabled\n"
    )
    for arguments, code in (
        (["set", "x/**", "--copies", "1"], 2),
        (["set", "x", "--copies", "0"], 2),
        (["set", "x", "--copies", "10"], 2),
        (["set", "x"], 2),
        (["set", "x", "--copies", "1", "--min-copies", "2"], 2),
        (["remove", "nope/*"], 1),
        (["remove", "lab/*"], 0),
        (["remove", "lab/*"], 1),
        (["remove", "lab/safe-*"], 0),
        (["remove", "wide/*"], 0),
    ):
        assert admin("placement", *arguments).code == code
    assert devices.admin_json("placement", "list") == []


def test_an_import_is_placed_by_the_rules_too(devices: Cluster) -> None:
    devices.db.set_placement_rule(PlacementRule("brought/*", 1, None))
    work = devices.work("to-import")
    made = devices.admin_json("repo", "import", "brought/app", str(work))
    assert (len(made["devices"]), made["min_copies"], made["version"]) == (1, 1, 1)
    assert len(devices.admin_json("repo", "import", "brought/b", str(work), "--copies", "2")["devices"]) == 2
    devices.db.remove_placement_rule("brought/*")


def test_who_made_a_repository_is_in_its_log(devices: Cluster) -> None:
    made = creating.create(devices.db, "by/anna", copies=2, actor="anna")
    with psycopg.connect(devices.database) as connection:
        row = connection.execute(
            "select actor, via from push where repository_id = %s", (made.id,)
        ).fetchone()
    assert row == ("anna", "create")
    with pytest.raises(Refused, match="there is a repository by/anna already"):
        creating.create(devices.db, "by/anna")


def test_a_repository_is_never_made_on_devices_that_are_going(devices: Cluster) -> None:
    """Devices come and go while repositories are made: each ends on devices that were enabled when it was made."""
    ended = threading.Event()
    db = devices.db

    def come_and_go() -> None:
        with Database(devices.database).open() as other:
            while not ended.is_set():
                other.set_device_mode("c", DeviceMode.DRAINING)
                other.set_device_mode("c", DeviceMode.ENABLED)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for number in range(30):
            made = creating.create(db, f"going/{number}")
            placed = {replica.device.name for replica in db.snapshot_of(made.id).replicas}
            assert placed == {device.name for device in made.devices} >= {"a", "b"}
    finally:
        ended.set()
        thread.join(30)
    db.set_device_mode("c", DeviceMode.DISABLED)
    with pytest.raises(Refused, match="device c is disabled"):
        creating.create(db, "going/named", devices=["c"])
    with pytest.raises(ClusterError, match="device c is disabled"):
        db.place(made.id, "c")
    db.set_device_mode("c", DeviceMode.ENABLED)


# ------------------------------------------------------------------------------------------------------- devices


def test_a_device_is_changed_in_place(devices: Cluster) -> None:
    admin, url = devices.admin, devices.devices["a"].url
    for arguments, says in (
        (["--ssh", "http://x"], "is not the SSH URL of a device"),
        (["--ssh", ""], "is not the SSH URL of a device"),
        (["--http", "ftp://x"], "is not the HTTP URL of a device"),
        (["--zone", "Rack 1"], "is not the name of a zone"),
        (["--zone", "-x"], "is not the name of a zone"),
        ([], "there is nothing to change"),
    ):
        done = admin("device", "set", "a", *arguments)
        assert done.code == 2 and says in done.err
    assert admin("device", "set", "zz", "--zone", "x").code == 1
    assert admin("device", "set", "a", "--zone", "x", "--http", "https://a.example/git/").code == 0
    assert admin("device", "set", "a", "--ssh", "ssh://git@a.example:2222").code == 0
    found = devices.db.device("a")
    assert (found.zone, found.http_url, found.ssh_url) == (
        "x", "https://a.example/git", "ssh://git@a.example:2222",
    )  # fmt: skip
    done = admin("device", "set", "a", "--zone", "", "--http", "", "--ssh", url)
    assert done.out == f"device a: SSH at {url}, no HTTP, no zone\n"
    found = devices.db.device("a")
    assert (found.zone, found.http_url, found.ssh_url) == ("", None, url)


def test_a_disabled_device_serves_nothing_until_it_is_enabled(devices: Cluster) -> None:
    app = Project.named(devices, "disabling")
    app.pushed("a", "main")
    app.converge()
    assert devices.admin("device", "disable", "a").out.startswith("device a is disabled")
    try:
        assert devices.db.device("a").state == "disabled"
        for done in (devices.git("ls-remote", app.url("a")), app.push("a", "main:refs/heads/x")):
            assert done.code != 0 and "device a is disabled" in done.err
        assert app.refs("b")
        assert app.name not in devices.admin("device", "disable", "b").err  # c holds it, too
    finally:
        for device in "ab":
            assert devices.admin("device", "enable", device).code == 0
    assert app.refs("a") == app.refs("b")
