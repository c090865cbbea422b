"""A replica is what its disk holds, not what its row says (G7): wiped, restored, altered, mixed up, damaged.

Whatever is done to a disk, with the device up or down: its copy is quarantined (the log says why), rebuilt from the
others, never served meanwhile, never counted as a leader, and the others are as they were.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.breaking import (
    MakeCluster,
    interrupt,
    lost,
    on_disk,
    polite,
    push,
    replica,
    shown,
    sql,
    status,
    works_everywhere,
)
from tests.cluster_fixture import Cluster


@pytest.fixture
def pair(make_cluster: MakeCluster) -> Cluster:
    """Devices a and b, and team/app with nothing in it."""
    cluster = make_cluster("ab", heal="manual")
    cluster.create("team/app")
    return cluster


def filled(cluster: Cluster) -> tuple[Path, str, str]:
    """Two versions on every device: a working copy, and what main was in each. A copy of a's disk at the first."""
    work = cluster.work()
    first = cluster.commit(work, "first")
    cluster.ok("push", "--quiet", cluster.url("a"), "main", "main:side", cwd=work)
    cluster.converge()
    for device in cluster.devices:
        shutil.copytree(cluster.disk(device), cluster.directory / f"old-{device}.git")
    second = cluster.commit(work, "second")
    cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=work)
    cluster.converge()
    return work, first, second


def put(cluster: Cluster, device: str, copy: Path) -> None:
    """Replace a device's repository by a copy of another state, as a restored backup would."""
    shutil.rmtree(cluster.disk(device))
    shutil.copytree(copy, cluster.disk(device))


def wipe_repository(cluster: Cluster, device: str) -> None:
    shutil.rmtree(cluster.disk(device))


def wipe_everything(cluster: Cluster, device: str) -> None:
    shutil.rmtree(cluster.devices[device].data_dir)


def empty_folder(cluster: Cluster, device: str) -> None:
    disk = cluster.disk(device)
    shutil.rmtree(disk)
    disk.mkdir()


def roll_back(cluster: Cluster, device: str) -> None:
    put(cluster, device, cluster.directory / f"old-{device}.git")


def mount_the_other_device(cluster: Cluster, device: str) -> None:
    put(cluster, device, cluster.disk("b" if device == "a" else "a"))


def mount_an_old_copy_of_the_other_device(cluster: Cluster, device: str) -> None:
    put(cluster, device, cluster.directory / f"old-{'b' if device == 'a' else 'a'}.git")


def move_a_ref(cluster: Cluster, device: str) -> None:
    on_disk(cluster, device, "update-ref", "refs/heads/side", "refs/heads/main")


def delete_a_ref(cluster: Cluster, device: str) -> None:
    on_disk(cluster, device, "update-ref", "-d", "refs/heads/side")


def add_a_ref(cluster: Cluster, device: str) -> None:
    on_disk(cluster, device, "update-ref", "refs/heads/intruder", "refs/heads/main")


def truncate_packed_refs(cluster: Cluster, device: str) -> None:
    on_disk(cluster, device, "pack-refs", "--all")
    packed = cluster.disk(device) / "packed-refs"
    packed.write_text(packed.read_text()[:60])


def drop_packed_refs(cluster: Cluster, device: str) -> None:
    on_disk(cluster, device, "pack-refs", "--all")
    (cluster.disk(device) / "packed-refs").unlink()


def change_head(cluster: Cluster, device: str) -> None:
    (cluster.disk(device) / "HEAD").write_text("ref: refs/heads/side\n")


def garble_head(cluster: Cluster, device: str) -> None:
    (cluster.disk(device) / "HEAD").write_bytes(b"\xff\x00")


DAMAGES = [
    wipe_repository,
    wipe_everything,
    empty_folder,
    roll_back,
    mount_the_other_device,
    mount_an_old_copy_of_the_other_device,
    move_a_ref,
    delete_a_ref,
    add_a_ref,
    truncate_packed_refs,
    drop_packed_refs,
    change_head,
    garble_head,
]


@pytest.mark.parametrize("running", [True, False], ids=["up", "down"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_disk_that_is_not_what_it_should_be(
    damage: Callable[[Cluster, str], None], running: bool, pair: Cluster
) -> None:
    """G7: noticed before it is served, quarantined, rebuilt; the other device is never touched."""
    _work, first, second = filled(pair)
    expected = {"HEAD": second, "refs/heads/main": second, "refs/heads/side": first}
    if running:
        damage(pair, "a")
    else:
        pair.stop("a")
        damage(pair, "a")
        pair.start("a")
    assert pair.refs("a") == expected
    assert pair.refs("b") == expected
    pair.converge()
    log = pair.devices["a"].log.read_text()
    assert "quarantined" in log or "rebuil" in log
    assert pair.version() == 2
    works_everywhere(pair, "a")
    assert status(pair)["state"] == "healthy"


@pytest.mark.parametrize(
    "damage", [wipe_repository, wipe_everything, roll_back, move_a_ref], ids=lambda d: d.__name__
)
def test_a_push_to_a_disk_that_is_not_what_it_should_be(
    damage: Callable[[Cluster, str], None], pair: Cluster
) -> None:
    """G7: the push itself notices; it is made on the rebuilt copy, with nothing of the others lost."""
    work, first, _ = filled(pair)
    damage(pair, "a")
    third = pair.commit(work, "third")
    done = push(pair, "a", work)
    assert done.code == 0, done.text
    expected = {"HEAD": third, "refs/heads/main": third, "refs/heads/side": first}
    assert pair.refs("a") == pair.refs("b") == expected
    works_everywhere(pair, "b")


def test_a_copy_that_is_rebuilt_is_no_leader(pair: Cluster) -> None:
    """G7: what was noticed on a and cannot be repaired (b is down) is shown, not counted, not served."""
    filled(pair)
    pair.stop("b")
    roll_back(pair, "a")
    refused = pair.git("ls-remote", pair.url("a"))
    assert refused.code != 0
    assert "version 2 of team/app cannot be fetched from where it is: b (offline)" in polite(
        pair, refused.err
    )
    shown_state = replica(pair, "a")
    assert shown_state["state"] == "quarantined" and "version 2" in shown_state["reason"]
    assert status(pair)["copies"] == 1
    assert status(pair)["state"] == "unavailable"
    assert "b (offline)" in pair.admin("status").out
    pair.start("b")
    pair.converge()
    works_everywhere(pair, "a")


def test_refs_altered_by_hand_are_kept_before_they_are_put_back(pair: Cluster) -> None:
    """G8: what no version ever held is under refs/cluster/lost/."""
    work, first, second = filled(pair)
    stray = pair.commit(work, "stray")
    on_disk(pair, "a", "fetch", "--quiet", str(work), "main")
    on_disk(pair, "a", "update-ref", "refs/heads/main", stray)
    assert shown(pair, "a") == {first, second}
    pair.converge()
    assert lost(pair, "a") == {"refs/heads/main": stray}


def test_the_only_leader_is_wiped(pair: Cluster) -> None:
    """G7: the others are not emptied, and status says what to do; giving the lost version up is a person's decision."""
    work, first, second = filled(pair)
    pair.stop("b")
    third = pair.commit(work, "only on a")
    pair.ok("push", "--quiet", pair.url("a"), "main", cwd=work)
    wipe_repository(pair, "a")
    pair.start("b")
    for device in "ab":
        refused = pair.git("ls-remote", pair.url(device))
        assert refused.code != 0
        polite(pair, refused.err)
    pair.wait(lambda: replica(pair, "a")["state"] == "quarantined", "the loss is noticed")
    refused = push(pair, "b", work)
    assert refused.code != 0
    assert "no device holds version 3 of team/app any more" in refused.err
    assert on_disk(pair, "b", "rev-parse", "refs/heads/main") == second
    assert status(pair)["state"] == "unavailable"
    told = pair.admin("status").out
    assert "no trusted copy of version 3 is left" in told and "git-cluster thaw team/app" in told
    done = pair.admin("thaw", "team/app", "--promote", "b", "--accept-loss")
    assert done.code == 0, done.text
    assert "LOST: version 3" in done.out and third[:12] in done.out
    pair.converge()
    assert pair.version() == 4
    assert shown(pair, "a") == shown(pair, "b") == {first, second}
    works_everywhere(pair, "a")


@pytest.mark.parametrize("damage", [truncate_packed_refs, garble_head], ids=lambda damage: damage.__name__)
def test_the_only_leader_with_refs_that_cannot_be_read(
    damage: Callable[[Cluster, str], None], pair: Cluster
) -> None:
    """G7: the push log has its refs and the disk its objects: it is put together again, and nothing is lost."""
    work, first, _ = filled(pair)
    pair.stop("b")
    third = pair.commit(work, "only on a")
    pair.ok("push", "--quiet", pair.url("a"), "main", cwd=work)
    damage(pair, "a")
    assert pair.refs("a") == {"HEAD": third, "refs/heads/main": third, "refs/heads/side": first}
    assert "quarantined: its refs cannot be read" in pair.devices["a"].log.read_text()
    pair.start("b")
    works_everywhere(pair, "b")


def test_an_interrupted_write_on_a_disk_whose_other_refs_changed(pair: Cluster) -> None:
    """G6, G7: every ref of the push moved, but no version is what this disk holds: put back, kept, rebuilt."""
    work, first, second = filled(pair)
    third = pair.commit(work, "interrupted")
    interrupt(pair, "a", "commit", work)
    on_disk(pair, "a", "update-ref", "refs/heads/side", third)
    pair.start("a")
    thawed = pair.admin("thaw", "team/app")
    assert thawed.code == 0 and "cannot become a version any more: it is put back" in thawed.out, thawed.text
    pair.converge()
    assert pair.version() == 2
    assert shown(pair, "a") == {first, second}
    assert lost(pair, "a") == {"refs/heads/main": third, "refs/heads/side": third}
    works_everywhere(pair, "a")


def test_a_quarantined_leader_whose_disk_comes_back(pair: Cluster) -> None:
    """G7: the disk that was not mounted is mounted after all: what it holds is what it should, so it is trusted."""
    _work, first, second = filled(pair)
    pair.stop("b")
    away = pair.directory / "unmounted"
    shutil.move(pair.disk("a"), away)
    assert pair.git("ls-remote", pair.url("a")).code != 0
    assert replica(pair, "a")["state"] == "quarantined"
    shutil.rmtree(pair.disk("a"))
    shutil.move(away, pair.disk("a"))
    assert shown(pair, "a") == {first, second}
    pair.start("b")
    works_everywhere(pair, "b")


# --------------------------------------------------------------------------------- the database is an older one


def older(cluster: Cluster, version: int = 1) -> None:
    """The database as a dump from the time of `version` would have it."""
    sql(
        cluster,
        f"update repository p set version = {version}, checksum = u.checksum from push u"
        f" where u.repository_id = p.id and u.version = {version}",
        f"update replica r set version = {version}, checksum = u.checksum from push u"
        f" where u.repository_id = r.repository_id and u.version = {version}",
        f"delete from push_ref where version > {version}",
        f"delete from push where version > {version}",
    )


@pytest.mark.parametrize("running", [True, False], ids=["up", "down"])
def test_a_database_older_than_the_disks_freezes(running: bool, pair: Cluster) -> None:
    """G7: nothing is served or written, and neither the disks nor the log are changed."""
    work, _first, second = filled(pair)
    if running:
        older(pair)
    else:
        pair.stop_all()
        older(pair)
        pair.start("a")
        pair.start("b")
    pair.commit(work, "third")
    for device in "ab":
        for told in (pair.git("ls-remote", pair.url(device)).err, push(pair, device, work).err):
            assert "team/app is frozen: the database is older than device" in polite(pair, told), told
            assert "thaw team/app" in told
        assert on_disk(pair, device, "rev-parse", "refs/heads/main") == second
    assert status(pair)["state"] == "frozen"
    assert "the database is older than" in pair.admin("status").out
    assert pair.version() == 1


def test_a_database_older_than_the_disks_by_versions_that_cancel_out(pair: Cluster) -> None:
    """G7: the refs of version 3 are those of version 1; only the markers tell, and they count."""
    work, first, _second = filled(pair)
    pair.ok("push", "--quiet", "--force", pair.url("a"), f"{first}:main", cwd=work)
    pair.converge()
    older(pair)
    for device in "ab":
        refused = push(pair, device, work)
        assert refused.code != 0 and "the database is older than device" in refused.err, refused.text
    assert pair.version() == 1 and status(pair)["state"] == "frozen"


def test_promoting_a_disk_over_an_older_database(pair: Cluster) -> None:
    """G7: what the disk holds becomes a version again, and every device follows it, also one that is ahead, too."""
    work, first, _second = filled(pair)
    third = pair.commit(work, "third")
    pair.ok("push", "--quiet", pair.url("a"), "main", cwd=work)
    pair.converge()
    older(pair)
    assert "is frozen" in push(pair, "a", work).err
    done = pair.admin("thaw", "team/app", "--promote", "a")
    assert done.code == 0, done.text
    pair.converge()
    assert pair.version() == 2
    assert shown(pair, "a") == shown(pair, "b") == {first, third}
    assert lost(pair, "b") == {}
    works_everywhere(pair, "b")


def test_giving_up_what_an_older_database_does_not_know(pair: Cluster) -> None:
    """G8: each device is demoted, becomes what the database says, and keeps what it had."""
    work, first, second = filled(pair)
    older(pair)
    assert "is frozen" in push(pair, "a", work).err
    for device in "ab":
        done = pair.admin("thaw", "team/app", "--demote", device)
        assert done.code == 0, done.text
    pair.converge()
    assert shown(pair, "a") == shown(pair, "b") == {first}
    for device in "ab":
        assert lost(pair, device) == {"refs/heads/main": second}
    works_everywhere(pair, "a")


def test_an_older_database_that_is_replaced_by_the_right_one(pair: Cluster) -> None:
    """G7: plain thaw ends the freeze; nothing was changed meanwhile."""
    work, first, second = filled(pair)
    number = pair.snapshot().repository.id
    sql(
        pair,
        "create table saved_push as select * from push",
        "create table saved_ref as select * from push_ref",
    )
    older(pair)
    assert "is frozen" in push(pair, "a", work).err
    sql(
        pair,
        "insert into push (repository_id, version, checksum, push_id, actor, device, via, address, at)"
        " select repository_id, version, checksum, push_id, actor, device, via, address, at from saved_push"
        " where version > 1",
        "insert into push_ref select * from saved_ref where version > 1",
        f"update repository set version = 2, checksum = (select checksum from saved_push where version = 2"
        f" and repository_id = {number})",
        f"update replica set version = 2, checksum = (select checksum from saved_push where version = 2"
        f" and repository_id = {number})",
    )
    assert pair.admin("thaw", "team/app").code == 0
    assert shown(pair, "a") == shown(pair, "b") == {first, second}
    works_everywhere(pair, "b")


# ------------------------------------------------------------------------------------------------ objects


def loose(cluster: Cluster, device: str, oid: str) -> Path:
    """The file of an object on a device's disk, unpacked if need be."""
    path = cluster.disk(device) / "objects" / oid[:2] / oid[2:]
    if not path.exists():
        packs = cluster.disk(device) / "objects" / "pack"
        aside = cluster.directory / f"packs-{device}"
        shutil.move(packs, aside)
        for pack in aside.glob("*.pack"):
            with pack.open("rb") as file:
                subprocess.run(
                    ["git", f"--git-dir={cluster.disk(device)}", "unpack-objects", "-q"],
                    stdin=file,
                    check=True,
                )
        packs.mkdir()
    assert path.exists()
    return path


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_verify_finds_a_bad_object_and_rebuilds(how: str, pair: Cluster) -> None:
    """G7: from another device; the damaged copy is set aside until the new one is found to be whole."""
    _work, _first, second = filled(pair)
    victim = loose(pair, "b", on_disk(pair, "b", "rev-parse", f"{second}:second.txt"))
    victim.chmod(0o644)
    if how == "missing":
        victim.unlink()
    else:
        victim.write_bytes(b"not zlib")
    assert pair.admin("verify", "team/app", "--device", "a").code == 0
    found = pair.admin("verify", "team/app")
    assert found.code == 0, found.text
    what = f"rebuilt: {how} blob {victim.parent.name}{victim.name}, reached from refs/heads/main:second.txt"
    assert what in polite(pair, found.text)
    pair.converge()
    again = pair.admin("verify", "team/app")
    assert again.out.count("verified") == 2, again.out
    assert not list((pair.devices["b"].data_dir / "trash").iterdir()), "kept until the new one was verified"
    works_everywhere(pair, "b")


def test_verify_does_not_touch_the_last_copy(pair: Cluster) -> None:
    """G7: damaged, and nobody else has it: said, and left as it is."""
    work, _first, _second = filled(pair)
    pair.stop("b")
    third = pair.commit(work, "only on a")
    pair.ok("push", "--quiet", pair.url("a"), "main", cwd=work)
    loose(pair, "a", on_disk(pair, "a", "rev-parse", f"{third}:only-on-a.txt")).unlink()
    refused = pair.admin("verify", "team/app", "--device", "a")
    assert refused.code == 1
    assert "is damaged" in refused.text and "no other device holds the newest version" in refused.text
    assert on_disk(pair, "a", "rev-parse", "refs/heads/main") == third


def test_a_leader_with_a_bad_object_empties_nobody(make_cluster: MakeCluster) -> None:
    """G7: who syncs from it gets an error and goes on to the next leader."""
    cluster = make_cluster("abc", heal="manual")
    cluster.create("team/app")
    work, first, _second = filled(cluster)
    cluster.stop("c")
    third = cluster.commit(work, "third")
    cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=work)
    cluster.wait(lambda: replica(cluster, "b")["state"] == "current", "b follows")
    loose(cluster, "b", on_disk(cluster, "b", "rev-parse", f"{third}:third.txt")).unlink()
    cluster.start("c")
    assert shown(cluster, "c") == {first, third}
    assert cluster.admin("verify", "team/app").code == 0
    works_everywhere(cluster, "c")


# ------------------------------------------------------------------------------------- a sync that was cut off


@pytest.mark.parametrize("copy", ["behind", "wiped"])
def test_a_sync_killed_while_it_fetches(pair: Cluster, copy: str) -> None:
    """G7: what it had fetched does no harm; the next sync brings the version. A wiped copy is fetched in Git's way."""
    work, first, _ = filled(pair)
    pair.stop("b")
    if copy == "wiped":
        pair.disk("b").rename(pair.disk("b").with_name("elsewhere"))
    third = pair.commit(work, "third")
    pair.ok("push", "--quiet", pair.url("a"), "main", cwd=work)
    source = pair.devices["a"].process
    assert source is not None
    source.send_signal(signal.SIGSTOP)
    scratch, log = pair.devices["b"].data_dir / "run", pair.devices["b"].data_dir.parent / "serve.log"
    fetched = log.read_text().count("syncing from a")
    pair.start("b")
    if copy == "wiped":
        pair.wait(lambda: list(scratch.glob("scratch-*")), "b fetches")
    else:
        pair.wait(lambda: log.read_text().count("syncing from a") > fetched, "b fetches")
    pair.stop("b", how=signal.SIGKILL)
    source.send_signal(signal.SIGCONT)
    (pair.disk("b") / "objects" / "pack" / "tmp_pack_half").write_bytes(b"PACK half of it")
    pair.start("b")
    assert shown(pair, "b") == {first, third}
    pair.wait(lambda: not list(scratch.glob("scratch-*")), "what the killed sync left is gone")
    works_everywhere(pair, "b")


def test_a_sync_killed_between_the_refs_and_the_row(pair: Cluster) -> None:
    """G7: refs of version 3, a row that says 2: the next look finds that nothing is left to do but say so."""
    work, first, _ = filled(pair)
    pair.stop("b")
    third = pair.commit(work, "third")
    pair.ok("push", "--quiet", pair.url("a"), "main", cwd=work)
    on_disk(pair, "b", "fetch", "--quiet", str(work), "main")
    on_disk(pair, "b", "update-ref", "refs/heads/main", third)
    pair.start("b")
    assert shown(pair, "b") == {first, third}
    pair.converge()
    assert lost(pair, "b") == {}
    works_everywhere(pair, "b")


def test_a_sync_killed_between_two_refs(pair: Cluster) -> None:
    """G7: a part of the refs moved: the rest follows."""
    work, _first, _ = filled(pair)
    pair.stop("b")
    third = pair.commit(work, "third")
    pair.ok("push", "--quiet", pair.url("a"), "main", "main:side", "main:new", cwd=work)
    on_disk(pair, "b", "fetch", "--quiet", str(work), "main")
    on_disk(pair, "b", "update-ref", "refs/heads/side", third)
    pair.start("b")
    assert shown(pair, "b") == {third}
    pair.converge()
    works_everywhere(pair, "b")


def test_a_wiped_disk_under_an_interrupted_write(pair: Cluster) -> None:
    """G6, G7: nothing is left to resolve it from: not taken for "no ref moved"; its claim is given up."""
    work, first, second = filled(pair)
    pair.commit(work, "interrupted")
    interrupt(pair, "a", "commit", work)
    wipe_repository(pair, "a")
    pair.start("a")
    assert status(pair)["state"] == "frozen"
    assert shown(pair, "b") == {first, second}
    done = pair.admin("thaw", "team/app")
    assert done.code == 0 and "nothing of the push by demo is left on this disk" in done.out, done.text
    pair.converge()
    assert shown(pair, "a") == {first, second}
    works_everywhere(pair, "a")
