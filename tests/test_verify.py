"""Verification (cluster/verify.py): what is wrong is said exactly, and made anew where that can be done.

A bad copy is quarantined, set aside, made anew from another device, and removed only when the new one is found to be
whole and has everything that a person put into the old one. If the only leader is bad, nothing is touched.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import verify
from cluster.background import Done
from cluster.errors import GitFailed
from tests.breaking import (
    MakeCluster,
    hold,
    interrupt,
    lost,
    on_disk,
    polite,
    push,
    replica,
    shown,
    status,
    works_everywhere,
)
from tests.cluster_fixture import Cluster
from tests.probes import git_processes, no_git_left
from tests.upkeep_fixture import content, devices, events, loose, node, number, packed, trash


@pytest.fixture
def pair(make_cluster: MakeCluster) -> Cluster:
    """Devices a and b, with two versions of team/app on both."""
    cluster = devices(make_cluster)
    filled(cluster)
    return cluster


def filled(cluster: Cluster) -> None:
    work = cluster.work()
    cluster.commit(work, "first", **{"dir/first.txt": "first"})
    cluster.ok("push", "--quiet", cluster.url("a"), "main", "main:side", cwd=work)
    cluster.commit(work, "second")
    cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=work)
    cluster.converge()


def work(cluster: Cluster) -> Path:
    return cluster.directory / "work"


def oid(cluster: Cluster, what: str) -> str:
    return cluster.ok("rev-parse", what, cwd=work(cluster)).strip()


# ------------------------------------------------------------------------------------------------- what is found


def missing_blob(cluster: Cluster) -> str:
    blob = oid(cluster, "main:second.txt")
    loose(cluster, "b", blob).unlink()
    return f"missing blob {blob}, reached from refs/heads/main:second.txt"


def damaged_tree(cluster: Cluster) -> str:
    tree = oid(cluster, "main~1:dir")
    loose(cluster, "b", tree).write_bytes(b"not zlib")
    return f"damaged tree {tree}, reached from refs/heads/"


def empty_commit(cluster: Cluster) -> str:
    commit = oid(cluster, "main")
    loose(cluster, "b", commit).write_bytes(b"")
    return f"damaged object {commit}, reached from refs/heads/main"


def one_object_in_place_of_another(cluster: Cluster) -> str:
    blob = oid(cluster, "main:second.txt")
    shutil.copy(loose(cluster, "b", oid(cluster, "main:one.txt")), loose(cluster, "b", blob))
    return f"missing blob {blob}, reached from refs/heads/main:second.txt"


def rotten_pack(cluster: Cluster) -> str:
    pack = packed(cluster, "b")
    with pack.open("r+b") as file:
        file.seek(200)
        file.write(b"rotten")
    return f"damaged {pack.stem}"


def cut_pack(cluster: Cluster) -> str:
    pack = packed(cluster, "b")
    os.truncate(pack, 300)
    return f"damaged {pack.stem}"


def lost_index_of_a_pack(cluster: Cluster) -> str:
    packed(cluster, "b").with_suffix(".idx").unlink()
    return f"missing object {oid(cluster, 'main')}, reached from refs/heads/main"


def moved_ref(cluster: Cluster) -> str:
    on_disk(cluster, "b", "update-ref", "refs/heads/side", "refs/heads/main")
    was, now = oid(cluster, "main"), oid(cluster, "main~1")
    return f"its refs are not those of version 2: refs/heads/side is at {was} and should be at {now}"


def three_kinds_of_wrong_refs(cluster: Cluster) -> str:
    on_disk(cluster, "b", "update-ref", "refs/heads/intruder", "refs/heads/main")
    on_disk(cluster, "b", "update-ref", "-d", "refs/heads/side")
    (cluster.disk("b") / "HEAD").write_text("ref: refs/heads/side\n")
    return (
        "its refs are not those of version 2: HEAD is at ref: refs/heads/side and should be at ref: refs/heads/main; "
        f"refs/heads/intruder is at {oid(cluster, 'main')} and should not be there; "
        f"refs/heads/side is not there and should be at {oid(cluster, 'main~1')}"
    )


def ref_of_zeros(cluster: Cluster) -> str:
    (cluster.disk("b") / "refs" / "heads" / "main").write_bytes(b"\0" * 41)
    return "its refs cannot be read: warning: ignoring broken ref refs/heads/main"


def cut_packed_refs(cluster: Cluster) -> str:
    on_disk(cluster, "b", "pack-refs", "--all")
    os.truncate(cluster.disk("b") / "packed-refs", 60)
    return "its refs cannot be read"


def no_copy(cluster: Cluster) -> str:
    shutil.rmtree(cluster.disk("b"))
    return "its disk holds no copy, though it should"


DAMAGES = [
    missing_blob,
    damaged_tree,
    empty_commit,
    one_object_in_place_of_another,
    rotten_pack,
    cut_pack,
    lost_index_of_a_pack,
    moved_ref,
    three_kinds_of_wrong_refs,
    ref_of_zeros,
    cut_packed_refs,
    no_copy,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_bad_copy_is_named_exactly_and_made_anew(damage: Callable[[Cluster], str], pair: Cluster) -> None:
    expected = damage(pair)
    assert pair.admin("verify", "team/app", "--device", "a").code == 0
    found = pair.admin("verify", "team/app", "--json")
    assert found.code == 0, found.text
    assert expected in polite(pair, found.out), found.out
    assert '"verified": true' in found.out and '"verified": false' in found.out
    pair.converge()
    assert not trash(pair, "b"), "the damaged copy goes when the new one was found to be whole"
    assert events(pair, "rebuild") and not events(pair, "damage")
    (quarantined, *_) = events(pair, "quarantine")
    assert quarantined.device == "b"
    verified = replica(pair, "b")
    assert verified["verified_at"] and verified["damage"] is None and verified["state"] == "current"
    again = pair.admin("verify", "team/app")
    assert again.out.count(", verified") == 2, again.out
    works_everywhere(pair, "b")


def test_a_bad_copy_of_a_sha256_repository(make_cluster: MakeCluster) -> None:
    cluster = devices(make_cluster)
    cluster.db.delete_repository("team/app")
    cluster.create("team/app", object_format="sha256")
    cluster.ok("init", "--quiet", "-b", "main", "--object-format=sha256", str(work(cluster)))
    cluster.commit(work(cluster), "second")
    cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=work(cluster))
    cluster.converge()
    expected = missing_blob(cluster)
    found = cluster.admin("verify", "team/app")
    assert found.code == 0 and expected in found.out and ", verified" in found.out, found.text
    # The repository that was deleted above may be there by now.
    assert not [path for path in trash(cluster, "b") if "-deleted-" not in path.name]
    works_everywhere(cluster, "b")


def test_a_device_whose_disk_has_no_hard_links_to_its_repositories(pair: Cluster) -> None:
    """The folder for views of them is on another disk: verified all the same."""
    run = pair.devices["b"].data_dir / "run"
    pair.stop("b")
    shutil.rmtree(run)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        assert os.stat(elsewhere).st_dev != os.stat(pair.disk("b")).st_dev
        run.symlink_to(elsewhere)
        pair.start("b")
        assert ", verified" in pair.admin("verify", "team/app", "--device", "b").out
        expected = missing_blob(pair)
        assert expected in pair.admin("verify", "team/app", "--device", "b").out
        works_everywhere(pair, "b")
        pair.stop("b")


def test_several_missing_objects_are_counted(pair: Cluster) -> None:
    for name in ("one.txt", "dir/first.txt", "second.txt"):
        loose(pair, "b", oid(pair, f"main:{name}"))
    for name in ("main:one.txt", "main:dir", "main:second.txt", "main~1^{tree}", "main~2"):
        loose(pair, "b", oid(pair, name)).unlink()
    found = pair.admin("verify", "team/app", "--device", "b")
    assert found.code == 0 and re.search(r"rebuilt: (missing \w+ [^;]+; ){3}and \d more$", found.out, re.M), (
        found.text
    )


def test_malformed_objects_are_as_they_were_pushed(pair: Cluster) -> None:
    """Git takes them from anybody, `git fsck` complains of them: no damage, and equal on every device."""
    text = (
        f"tree {oid(pair, 'main^{tree}')}\nauthor a <a@b> 99999999999999999999 +0000\n"
        "committer a <a@b> 1 +0000\n\nfrom the year 3 trillion\n"
    )
    bad = subprocess.run(
        ["git", "hash-object", "-t", "commit", "-w", "--literally", "--stdin"],
        input=text.encode(),
        cwd=work(pair),
        check=True,
        capture_output=True,
    ).stdout.decode()
    pair.ok("push", "--quiet", pair.url("a"), f"{bad.strip()}:refs/heads/malformed", cwd=work(pair))
    pair.wait(lambda: pair.converged(), "both have it")
    for _ in range(2):
        found = pair.admin("verify", "team/app")
        assert found.code == 0 and found.out.count(", verified") == 2, found.text
        packed(pair, "a")
        packed(pair, "b")
    assert not events(pair, "quarantine")


@pytest.mark.parametrize(
    "what", ["multi-pack-index", "multi-pack-index-*.bitmap", "../info/commit-graphs/*.graph"]
)
def test_what_is_derived_from_objects_is_dropped_where_it_is_damaged(what: str, pair: Cluster) -> None:
    """Nothing is wrong with the copy: Git does without, and maintenance makes it again."""
    on_disk(pair, "b", "repack", "-a", "-d", "-q", "--write-midx", "--write-bitmap-index")
    on_disk(pair, "b", "commit-graph", "write", "--reachable", "--split")
    packs = pair.disk("b") / "objects" / "pack"
    (file,) = packs.glob(what)
    before = {path.name for path in packs.glob("*.pack")}
    file.chmod(0o644)
    with file.open("r+b") as stream:
        stream.seek(100)
        stream.write(b"rotten")
    found = pair.admin("verify", "team/app", "--device", "b")
    assert found.code == 0 and ", verified" in found.out, found.text
    assert not list(packs.glob(what)) and {path.name for path in packs.glob("*.pack")} == before
    assert not events(pair, "quarantine")
    works_everywhere(pair, "b")


FSCK_SAYS = {
    "nothing": (Done(0, b"", b""), None),
    "a name": (
        Done(2, b"broken link from x\nmissing blob " + b"1" * 40 + b" (refs/heads/main:a (b).txt)\n", b""),
        f"missing blob {'1' * 40}, reached from refs/heads/main:a (b).txt",
    ),
    "SHA-256": (Done(2, b"missing tree " + b"1" * 64 + b"\n", b""), f"missing tree {'1' * 64}"),
    "a read error": (
        Done(-signal.SIGBUS, b"", b""),
        "its disk cannot be read: an input/output error ended `git fsck`",
    ),
    "the form of an object": (
        Done(4, b"", b"error in commit " + b"1" * 40 + b": badDateOverflow: x\n"),
        None,
    ),
    "a warning": (Done(1, b"", b"warning in tree " + b"1" * 40 + b": zeroPaddedFilemode: x\n"), None),
}


@pytest.mark.parametrize(("said", "damage"), FSCK_SAYS.values(), ids=FSCK_SAYS)
def test_what_fsck_says(said: Done, damage: str | None) -> None:
    assert verify.damage(said) == damage


@pytest.mark.parametrize(
    "said",
    [
        Done(-9, b"", b""),
        Done(128, b"", b"fatal: Out of memory, malloc failed (tried to allocate 9 bytes)\n"),
    ],
)
def test_an_fsck_that_fails_says_nothing_of_the_copy(said: Done) -> None:
    with pytest.raises(GitFailed):
        verify.damage(said)


# -------------------------------------------------------------------------------------------- what is carried over


def test_what_a_person_put_into_the_copy_goes_over(pair: Cluster) -> None:
    """Hooks, configuration, description, other files; and (G8) what is kept below refs/cluster/lost/."""
    disk = pair.disk("b")
    hook = disk / "hooks" / "post-receive"
    hook.write_text("#!/bin/sh\ntouch ran\n")
    hook.chmod(0o755)
    (disk / "hooks" / "update").symlink_to("/bin/true")
    (disk / "description").write_text("ours\n")
    (disk / "info").mkdir(exist_ok=True)
    (disk / "info" / "attributes").write_text("*.x export-ignore\n")
    (disk / "lfs" / "ab").mkdir(parents=True)
    (disk / "lfs" / "ab" / "large").write_bytes(b"large")
    for value in ("one", "two"):
        on_disk(pair, "b", "config", "--add", "archive.format", value)
    stray = pair.commit(work(pair), "stray")
    on_disk(pair, "b", "fetch", "--quiet", str(work(pair)), "main")
    on_disk(pair, "b", "update-ref", "refs/cluster/lost/20260101T000000Z-abcdef/heads/main", stray)
    on_disk(pair, "b", "pack-refs", "--all")
    on_disk(pair, "b", "update-ref", "refs/cluster/lost/20260101T000000Z-abcdef/heads/other", stray)
    missing_blob(pair)
    found = pair.admin("verify", "team/app", "--device", "b")
    assert found.code == 0 and "rebuilt: missing blob" in found.out, found.text
    assert not trash(pair, "b")
    assert hook.read_text() == "#!/bin/sh\ntouch ran\n" and os.access(hook, os.X_OK)
    assert (disk / "hooks" / "update").readlink() == Path("/bin/true")
    assert (disk / "description").read_text() == "ours\n"
    assert (disk / "info" / "attributes").read_text() == "*.x export-ignore\n"
    assert (disk / "lfs" / "ab" / "large").read_bytes() == b"large"
    assert on_disk(pair, "b", "config", "--get-all", "archive.format") == "one\ntwo"
    assert lost(pair, "b") == {"refs/heads/main": stray, "refs/heads/other": stray}
    pair.ok("push", "--quiet", pair.url("b"), "main", cwd=work(pair))
    assert (disk / "ran").exists()
    works_everywhere(pair, "b")


def test_a_lost_ref_that_is_not_whole_keeps_the_copy(pair: Cluster) -> None:
    """G8: nothing that was kept may get lost; what can be taken over is, and the rest is said."""
    work_, main = work(pair), oid(pair, "main")
    good = pair.commit(work_, "good")
    pair.ok("reset", "--quiet", "--hard", main, cwd=work_)
    bad = pair.commit(work_, "bad")
    for name, commit in (("good", good), ("bad", bad)):
        on_disk(pair, "b", "fetch", "--quiet", str(work_), commit)
        on_disk(pair, "b", "update-ref", f"refs/cluster/lost/20260101T000000Z-abcdef/heads/{name}", commit)
    loose(pair, "b", oid(pair, f"{bad}:bad.txt")).unlink()
    found = pair.admin("verify", "team/app", "--device", "b")
    assert found.code == 0, found.text
    name = "refs/cluster/lost/20260101T000000Z-abcdef/heads/bad"
    assert f"missing blob {oid(pair, f'{bad}:bad.txt')}, reached from {name}:bad.txt" in found.out
    (kept,) = trash(pair, "b")
    assert (
        f"the damaged copy is kept as {kept.name} in the trash of b: what {name} names, {bad}, is not whole"
        in (polite(pair, found.out))
    )
    assert events(pair, "rebuild")[0].what in found.out
    assert lost(pair, "b") == {"refs/heads/good": good}
    assert (kept / name).read_text().strip() == bad
    works_everywhere(pair, "b")
    assert trash(pair, "b") == [kept]


@pytest.mark.parametrize("refs", ["main", "main~1:refs/heads/new"], ids=["with objects", "without"])
def test_a_push_that_was_begun_on_the_damaged_copy_is_refused(refs: str, pair: Cluster) -> None:
    """Its Git works in the folder that was set aside: what it would move there is no version of the new copy."""
    held = hold(pair, "b", "pre-receive")
    pair.commit(work(pair), "third")
    pushing = pair.spawn("push", pair.url("b"), refs, cwd=work(pair))
    pair.wait(lambda: held.reached, "the push is under way")
    bad = missing_objects_of_a_lost_ref(pair)
    assert pair.admin("verify", "team/app", "--device", "b").code == 0
    assert trash(pair, "b"), f"kept, for {bad}"
    held.let_go()
    out, _ = pushing.communicate(timeout=30)
    assert pushing.returncode != 0, out
    assert "this device's copy was made anew during the upload" in polite(pair, out) or refs == "main", out
    assert pair.version() == 2 and status(pair)["state"] == "healthy"
    assert push(pair, "b", work(pair), refs).code == 0
    works_everywhere(pair, "b")


def missing_objects_of_a_lost_ref(cluster: Cluster) -> str:
    main = oid(cluster, "main")
    bad = cluster.commit(work(cluster), "bad")
    cluster.ok("reset", "--quiet", "--hard", main, cwd=work(cluster))
    on_disk(cluster, "b", "fetch", "--quiet", str(work(cluster)), bad)
    on_disk(cluster, "b", "update-ref", "refs/cluster/lost/20260101T000000Z-abcdef/heads/bad", bad)
    loose(cluster, "b", oid(cluster, f"{bad}:bad.txt")).unlink()
    return bad


# ------------------------------------------------------------------------------------------------- the only leader


def only_on_a(cluster: Cluster) -> str:
    """A version that only a holds, and a blob of it that is not there any more."""
    cluster.stop("b")
    cluster.commit(work(cluster), "only on a")
    cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=work(cluster))
    blob = oid(cluster, "main:only-on-a.txt")
    shutil.copytree(cluster.disk("a"), cluster.directory / "backup.git")
    loose(cluster, "a", blob).unlink()
    return f"missing blob {blob}, reached from refs/heads/main:only-on-a.txt"


def test_if_the_only_leader_is_bad_nothing_is_touched_and_a_person_is_told(pair: Cluster) -> None:
    what = only_on_a(pair)
    before = content(pair.disk("a"))
    for _ in range(2):
        refused = pair.admin("verify", "team/app", "--device", "a")
        assert refused.code == 1
        assert f"damaged ({what}), and no other device holds the newest version" in polite(pair, refused.text)
        assert "nothing was touched" in refused.text and "git-cluster verify team/app" in refused.text
    assert content(pair.disk("a")) == before
    assert [event.what for event in events(pair, "damage")] == [f"its copy is damaged: {what}"], "once"
    entry = status(pair)
    assert entry["state"] == "degraded"
    assert (
        f"a: its copy is damaged: {what}; nothing was touched: bring another copy of version 3 back, or restore this "
        "one from a backup, then run `git-cluster verify team/app`"
    ) in entry["reason"]
    assert replica(pair, "a")["damage"] == f"its copy is damaged: {what}"
    assert replica(pair, "a")["state"] == "current" and pair.admin("status", "--check").code == 1
    shutil.rmtree(pair.disk("a"))
    shutil.copytree(pair.directory / "backup.git", pair.disk("a"))
    assert pair.admin("verify", "team/app", "--device", "a").code == 0
    assert replica(pair, "a")["damage"] is None
    pair.start("b")
    works_everywhere(pair, "b")
    pair.wait(lambda: status(pair)["state"] == "healthy", "all is well")


def test_the_only_leader_is_made_anew_when_another_is_back(pair: Cluster) -> None:
    """Two leaders, one of them away: nothing is touched while it is; then the damage goes by verification."""
    pair.stop("b")
    pair.wait(lambda: not pair.db.device("b").online, "b counts as offline")
    blob = oid(pair, "main:second.txt")
    loose(pair, "a", blob).unlink()
    before = content(pair.disk("a"))
    refused = pair.admin("verify", "team/app", "--device", "a")
    assert refused.code == 1 and "b, which holds it, is offline" in polite(pair, refused.text), refused.text
    assert content(pair.disk("a")) == before and status(pair)["state"] == "degraded"
    pair.start("b")
    pair.wait(lambda: pair.db.device("b").online, "b is back")
    assert pair.admin("verify", "team/app").code == 0
    assert replica(pair, "a")["damage"] is None
    works_everywhere(pair, "a")


def test_a_damage_is_not_forgotten_by_a_sync(pair: Cluster) -> None:
    """The refs of the next version say nothing of the objects below them."""
    loose(pair, "a", oid(pair, "main:second.txt")).unlink()
    pair.stop("b")
    pair.wait(lambda: not pair.db.device("b").online, "b counts as offline")
    assert pair.admin("verify", "team/app", "--device", "a").code == 1
    pair.stop("a")
    pair.start("b")
    pair.commit(work(pair), "third")
    pair.ok("push", "--quiet", pair.url("b"), "main", cwd=work(pair))
    pair.start("a")
    pair.wait(lambda: replica(pair, "a")["state"] == "current", "a follows")
    assert replica(pair, "a")["damage"]
    assert pair.admin("verify", "team/app").code == 0
    works_everywhere(pair, "a")


def test_wrong_refs_of_the_only_leader_are_put_right_from_the_log(pair: Cluster) -> None:
    """All that the log's refs reach is on its disk: nothing is lost by it, and what no version held is kept (G8)."""
    pair.stop("b")
    pair.wait(lambda: not pair.db.device("b").online, "b counts as offline")
    first, main = oid(pair, "main~1"), oid(pair, "main")
    stray = pair.commit(work(pair), "stray")
    on_disk(pair, "a", "fetch", "--quiet", str(work(pair)), "main")
    on_disk(pair, "a", "update-ref", "refs/heads/main", stray)
    found = pair.admin("verify", "team/app", "--device", "a")
    assert found.code == 0 and f"refs/heads/main is at {stray} and should be at {main}" in found.out, (
        found.text
    )
    assert shown(pair, "a") == {first, main} and lost(pair, "a") == {"refs/heads/main": stray}


def test_an_interrupted_write_is_not_verified(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("ab", heal="manual")
    cluster.create("team/app")
    filled(cluster)
    cluster.commit(work(cluster), "interrupted")
    interrupt(cluster, "a", "commit", work(cluster))
    cluster.start("a")
    refused = cluster.admin("verify", "team/app", "--device", "a")
    assert refused.code == 1 and "interrupted write" in refused.text and "thaw team/app" in refused.text
    assert not events(cluster, "quarantine") and not trash(cluster, "a")


# ------------------------------------------------------------------------------------------------ in the background


def test_the_background_verifier_finds_and_mends(make_cluster: MakeCluster) -> None:
    cluster = devices(make_cluster, verify_every="1s")
    filled(cluster)
    cluster.wait(lambda: all(replica(cluster, d)["verified_at"] for d in "ab"), "both are verified", 30)
    missing_blob(cluster)
    cluster.wait(lambda: events(cluster, "rebuild"), "b is made anew", 30)
    cluster.wait(lambda: not trash(cluster, "b"), "and found to be whole", 30)
    assert "missing blob" in events(cluster, "quarantine")[-1].what
    works_everywhere(cluster, "b")


def test_no_false_alarm_in_a_storm(make_cluster: MakeCluster) -> None:
    """Pushes to both devices, their syncs, repacks and collects meanwhile: nothing is ever found to be wrong."""
    cluster = devices(make_cluster, copies=2, verify_every="1s", most_packs=2)
    filled(cluster)
    until = time.monotonic() + 6

    def pusher(name: int) -> int:
        mine, count = cluster.directory / f"pusher-{name}", 0
        cluster.ok("clone", "--quiet", cluster.url("ab"[name % 2]), str(mine))
        while time.monotonic() < until:
            cluster.commit(mine, f"{name} {count}")
            cluster.ok(
                "push",
                "--quiet",
                cluster.url("ab"[count % 2]),
                f"HEAD:refs/heads/p{name}-{count % 7}",
                "-f",
                cwd=mine,
            )
            count += 1
        return count

    def verifier(device: str) -> int:
        subject, count = node(cluster, device), 0
        while time.monotonic() < until:
            assert verify.verify(subject, number(cluster), lambda line: None) == verify.Verdict()
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        pushes = [pool.submit(pusher, name) for name in range(2)]
        looks = [pool.submit(verifier, device) for device in "ab"]
        assert sum(each.result() for each in pushes) > 10
        assert all(each.result() >= 2 for each in looks)
    assert not events(cluster, "quarantine") and not events(cluster, "damage")
    cluster.converge()


def test_killed_in_the_middle_of_making_a_copy_anew(make_cluster: MakeCluster) -> None:
    """The next start goes on: the copy is filled, found to be whole, gets what a person put into the old one."""
    cluster = devices(make_cluster, verify_every="1s")
    filled(cluster)
    hook = cluster.disk("b") / "hooks" / "post-update"
    hook.write_text("#!/bin/sh\n")
    on_disk(
        cluster, "b", "update-ref", "refs/cluster/lost/20260101T000000Z-abcdef/heads/x", "refs/heads/side"
    )
    source = cluster.devices["a"].process
    assert source is not None
    missing_blob(cluster)
    source.send_signal(signal.SIGSTOP)
    try:
        cluster.wait(lambda: trash(cluster, "b"), "b is set aside", 30)
        cluster.stop("b", how=signal.SIGKILL)
    finally:
        source.send_signal(signal.SIGCONT)
    assert hook.exists(), "hooks are there before the first push could come by"
    cluster.start("b")
    cluster.wait(lambda: not trash(cluster, "b"), "it is finished", 60)
    cluster.converge()
    assert lost(cluster, "b") == {"refs/heads/x": oid(cluster, "main~1")}
    works_everywhere(cluster, "b")


def test_a_device_that_stops_ends_its_verification(pair: Cluster) -> None:
    objects = b"".join(b"blob\nmark :%d\ndata 8\n%08d\n" % (number, number) for number in range(1, 40001))
    files = b"".join(b"M 100644 :%d d%d/%d\n" % (number, number % 300, number) for number in range(1, 40001))
    commit = b"commit refs/heads/large\ncommitter a <a@b> 1 +0000\ndata 1\nx\n"
    subprocess.run(
        ["git", "fast-import", "--quiet"], cwd=work(pair), input=objects + commit + files, check=True
    )
    pair.ok("push", "--quiet", pair.url("a"), "large", cwd=work(pair))
    pair.wait(pair.converged, "b has it, too")

    def checking() -> list[str]:
        return [process for process in git_processes(pair) if "fsck" in process]

    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "cluster",
            "--config",
            str(pair.config),
            "verify",
            "team/app",
            "--device",
            "b",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as asking:
        pair.wait(checking, "it is being verified")
        begun = time.monotonic()
        process = pair.devices["b"].process
        assert process is not None
        pair.stop("b")
        assert time.monotonic() - begun < 20
        assert not checking()
        assert asking.wait(30) == 1
    no_git_left(pair)
    pair.start("b")
    works_everywhere(pair, "b")
