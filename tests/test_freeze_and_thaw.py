"""A frozen repository: what is said of it, what still works, and every way out (G6, G8), as transcripts."""

from __future__ import annotations

import json
import re
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

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
from tests.cluster_fixture import Cluster, Done

ZERO = "0" * 40


@pytest.fixture
def pair(make_cluster: MakeCluster) -> Cluster:
    """Devices a and b, and team/app with nothing in it."""
    cluster = make_cluster("ab", heal="manual")
    cluster.create("team/app")
    return cluster


def first_push(cluster: Cluster, device: str = "a") -> tuple[Path, str]:
    work = cluster.work()
    oid = cluster.commit(work, "acknowledged")
    cluster.ok("push", "--quiet", cluster.url(device), "main", "main:other", cwd=work)
    cluster.converge()
    return work, oid


def thaw(cluster: Cluster, *options: str) -> Done:
    done = cluster.admin("thaw", "team/app", *options, timeout=90)
    polite(cluster, done.text)
    return done


# ------------------------------------------------------------------------------------------ what is said of it


def test_status_shows_who_where_since_when_and_which_refs(pair: Cluster) -> None:
    """G6: an interrupted write is never silent."""
    work, _ = first_push(pair)
    pair.commit(work, "interrupted")
    begun = datetime.now(UTC)
    interrupt(pair, "a", "commit", work, "main", "main:other")
    entry = status(pair)
    assert entry["state"] == "frozen"
    assert "write by demo on device a" in entry["reason"]
    assert "refs/heads/main" in entry["reason"] and "refs/heads/other" in entry["reason"]
    frozen = replica(pair, "a")
    assert frozen["state"] == "frozen"
    assert frozen["is_writing"] is True
    assert frozen["writer"] == "demo"
    since = datetime.fromisoformat(frozen["writing_since"])
    assert abs(since - begun) < timedelta(seconds=20)
    assert replica(pair, "b")["state"] == "current" and replica(pair, "b")["is_writing"] is False
    for text in (pair.admin("status").out, pair.admin("status", "team/app").out):
        assert "team/app is frozen" in text and "demo" in text and "device a" in text
        assert f"{since.astimezone(UTC):%Y-%m-%d %H:%M:%S}" in text
        assert "refs/heads/main" in text and "thaw team/app" in text
    assert pair.admin("status", "--check").code == 1


def test_a_frozen_repository_refuses_writes_and_goes_on_being_read(pair: Cluster) -> None:
    """G1, G6: pushes say "frozen" and what to do, before anything is uploaded; b serves what was acknowledged."""
    work, old = first_push(pair)
    new = pair.commit(work, "interrupted")
    interrupt(pair, "a", "commit", work)
    refused = push(pair, "b", work, "HEAD:refs/heads/third")
    assert refused.code != 0
    assert "team/app is frozen: a push by demo on a was interrupted at" in refused.err
    assert "git-cluster thaw team/app" in refused.err
    assert shown(pair, "b") == {old}
    pair.ok("clone", "--quiet", pair.url("b"), str(pair.directory / "clone"))
    # a itself has moved refs that no version accounts for: it shows nothing, and says where to go.
    pair.start("a")
    elsewhere = pair.git("ls-remote", pair.url("a"))
    assert elsewhere.code != 0 and new not in elsewhere.text
    assert f"read from {pair.devices['b'].url} meanwhile" in polite(pair, elsewhere.err)
    assert thaw(pair).code == 0
    works_everywhere(pair, "a")


def test_freeze_and_thaw_by_hand(pair: Cluster) -> None:
    work, old = first_push(pair)
    frozen = pair.admin("freeze", "team/app", "--reason", "moving house until Monday")
    assert frozen.code == 0 and "moving house until Monday" in frozen.out
    new = pair.commit(work, "refused")
    for device in "ab":
        refused = push(pair, device, work)
        assert refused.code != 0
        assert "team/app is frozen: moving house until Monday" in refused.err
        assert "git-cluster thaw team/app" in refused.err
        assert shown(pair, device) == {old}
    assert status(pair)["state"] == "frozen"
    assert "moving house until Monday" in pair.admin("status").out
    assert pair.admin("freeze", "team/app", "--reason", " ").code == 2
    assert "the freeze would be ended: moving house" in thaw(pair, "--dry-run").out
    assert status(pair)["state"] == "frozen"
    assert "the freeze is ended" in thaw(pair).out
    assert "nothing to do" in thaw(pair).out
    assert push(pair, "b", work).code == 0
    assert shown(pair, "a") == {old, new}
    works_everywhere(pair, "a")


def test_a_freeze_while_a_push_uploads_refuses_that_push(pair: Cluster) -> None:
    """A freeze is not overtaken by what was begun before it, as long as that has not written its intent."""
    work, old = first_push(pair)
    held = hold(pair, "a", "pre-receive")
    pair.commit(work, "late")
    pushing = pair.spawn("push", pair.url("a"), "main", cwd=work)
    pair.wait(lambda: held.reached, "the upload is done")
    assert pair.admin("freeze", "team/app", "--reason", "stop").code == 0
    held.let_go()
    said, _ = pushing.communicate(timeout=30)
    assert "! [remote rejected] main -> main (team/app is frozen: stop)" in polite(pair, said)
    assert thaw(pair).code == 0
    assert shown(pair, "b") == {old}
    works_everywhere(pair, "a")


# ----------------------------------------------------------------------------------------- every way out of it

STATES = ["none", "all", "some", "elsewhere"]


def interrupted(cluster: Cluster, state: str) -> tuple[str, str]:
    """A push of main and other to a, cut off, with `state` of its refs moved; a is up again. The old and new oid.

    What a dying Git would have left is made by hand where it cannot be hit: only main moved, or main elsewhere.
    """
    work, old = first_push(cluster)
    new = cluster.commit(work, "interrupted")
    interrupt(cluster, "a", "apply" if state == "none" else "commit", work, "main", "main:other")
    if state == "some":
        on_disk(cluster, "a", "update-ref", "refs/heads/other", old, new)
    if state == "elsewhere":
        on_disk(
            cluster, "a", "update-ref", "refs/heads/other", on_disk(cluster, "a", "rev-parse", f"{old}^"), new
        )
    cluster.start("a")
    assert replica(cluster, "a")["state"] == "frozen"
    return old, new


def untouched(cluster: Cluster, refs: dict[str, str]) -> None:
    """A dry run, or a refusal, changed nothing."""
    assert cluster.version() == 1
    assert replica(cluster, "a")["state"] == "frozen"
    assert disk_refs(cluster, "a") == refs
    assert lost(cluster, "a") == {}


def disk_refs(cluster: Cluster, device: str) -> dict[str, str]:
    lines = on_disk(
        cluster, device, "for-each-ref", "--format=%(refname) %(objectname)", "refs/heads"
    ).splitlines()
    return {line.split(" ")[0]: line.split(" ")[1] for line in lines}


def changes(done: Done) -> list[str]:
    """The refs that a thaw lists, with their old and new values."""
    return [line for line in done.out.splitlines() if line.startswith("  ")]


@pytest.mark.parametrize("state", STATES)
def test_thaw_does_what_the_disk_shows(state: str, pair: Cluster) -> None:
    """G6, G8: nothing moved: called off; all: committed; a part: put back and kept; elsewhere: a person decides."""
    old, new = interrupted(pair, state)
    before = disk_refs(pair, "a")
    dry = thaw(pair, "--dry-run")
    untouched(pair, before)
    done = thaw(pair)
    assert changes(dry) == changes(done), "a dry run says what would be done, ref by ref"
    if state == "elsewhere":
        assert done.code == 1
        assert "refs/heads/other is at" in done.err and "refs/heads/main" not in done.err
        assert "--promote a" in done.err and "--demote a" in done.err
        untouched(pair, before)
        return
    assert done.code == 0, done.text
    assert pair.version() == (2 if state == "all" else 1)
    assert shown(pair, "a") == shown(pair, "b") == {new if state == "all" else old}
    assert lost(pair, "a") == ({"refs/heads/main": new} if state == "some" else {})
    if state != "none":
        assert "refs/heads/main" in done.out and new[:12] in done.out
    assert "nothing to do" in thaw(pair).out
    if state == "all":
        entry = pair.admin_json("log", "team/app")[0]
        assert entry["version"] == 2 and entry["actor"] == "demo" and entry["device"] == "a"
        assert entry["refs"] == [
            {"ref": "refs/heads/main", "old": old, "new": new},
            {"ref": "refs/heads/other", "old": old, "new": new},
        ]
    works_everywhere(pair, "b")


@pytest.mark.parametrize("state", STATES)
def test_thaw_demote_gives_the_claim_up_and_keeps_its_refs(state: str, pair: Cluster) -> None:
    """G8: a's copy becomes that of b; what it had moved stays there, hidden."""
    old, new = interrupted(pair, state)
    before = disk_refs(pair, "a")
    dry = thaw(pair, "--demote", "a", "--dry-run")
    assert dry.code == 0 and "interrupted push by demo" in dry.out and "LOST" not in dry.out
    assert "refs/heads/main" in dry.out and new[:12] in dry.out
    untouched(pair, before)
    done = thaw(pair, "--demote", "a")
    assert done.code == 0, done.text
    assert changes(dry) == changes(done)
    assert pair.version() == 1
    pair.converge()
    assert shown(pair, "a") == shown(pair, "b") == {old}
    kept = {ref: oid for ref, oid in before.items() if oid != old}
    assert lost(pair, "a") == kept
    works_everywhere(pair, "a")


@pytest.mark.parametrize("state", STATES)
def test_thaw_promote_makes_the_disk_the_truth(state: str, pair: Cluster) -> None:
    """What a holds, whatever that is, becomes the next version, and every device follows."""
    old, _ = interrupted(pair, state)
    before = disk_refs(pair, "a")
    dry = thaw(pair, "--promote", "a", "--dry-run")
    assert dry.code == 0, dry.text
    untouched(pair, before)
    done = thaw(pair, "--promote", "a")
    assert done.code == 0, done.text
    assert changes(dry) == changes(done)
    assert pair.version() == (1 if state == "none" else 2)
    pair.converge()
    assert disk_refs(pair, "a") == disk_refs(pair, "b") == before
    assert lost(pair, "a") == {}
    # b gave up nothing that was not acknowledged before, but a thaw moved its refs: they are kept.
    assert lost(pair, "b") == {ref: old for ref, oid in before.items() if oid != old}
    if state != "none":
        assert pair.admin_json("log", "team/app")[0]["device"] == "a"
    works_everywhere(pair, "b")


@pytest.mark.parametrize("state", STATES)
def test_thaw_promote_of_another_device_overrules_the_interrupted_one(state: str, pair: Cluster) -> None:
    """G8: b's copy is the truth; the interrupted device follows, and keeps what it had moved."""
    old, _ = interrupted(pair, state)
    before = disk_refs(pair, "a")
    done = thaw(pair, "--promote", "b")
    assert done.code == 0, done.text
    assert pair.version() == 1
    pair.converge()
    assert shown(pair, "a") == shown(pair, "b") == {old}
    assert lost(pair, "a") == {ref: oid for ref, oid in before.items() if oid != old}
    works_everywhere(pair, "a")


def test_refs_under_lost_are_hidden_and_outside_the_checksum(pair: Cluster) -> None:
    """G8: no client sees, fetches, pushes or deletes them; the replica is equal to the others with them."""
    old, new = interrupted(pair, "all")
    assert thaw(pair, "--demote", "a").code == 0
    pair.converge()
    name = on_disk(pair, "a", "for-each-ref", "--format=%(refname)", "refs/cluster/lost/").splitlines()[0]
    assert name not in pair.ok("ls-remote", pair.url("a"))
    work = pair.directory / "work"
    assert pair.git("fetch", pair.url("a"), name, cwd=work).code != 0
    clone = pair.directory / "clone"
    pair.ok("clone", "--quiet", "--mirror", pair.url("a"), str(clone))
    assert pair.git("cat-file", "-e", new, cwd=clone).code != 0
    for refspec in (
        f":{name}",
        f"main:{name}",
        "main:refs/cluster/lost/mine",
        "main:refs/cluster/staged/mine",
    ):
        refused = push(pair, "a", work, refspec)
        assert refused.code != 0, refused.text
    assert set(lost(pair, "a").values()) == {new}
    assert shown(pair, "a") == {old}
    works_everywhere(pair, "a")


# --------------------------------------------------------------------------------------- giving versions up


def test_demoting_the_only_holder_of_acknowledged_versions_asks_for_consent(pair: Cluster) -> None:
    """G8: each lost version is listed; with --accept-loss the next version says so, and all end equal."""
    work, old = first_push(pair)
    pair.stop("b")
    second, third = (pair.commit(work, text) for text in ("second", "third"))
    pair.ok("push", "--quiet", pair.url("a"), f"{second}:main", cwd=work)
    pair.ok("push", "--quiet", pair.url("a"), f"{third}:main", f"{third}:refs/heads/only-here", cwd=work)
    pair.stop("a")
    pair.start("b")
    unavailable = pair.git("ls-remote", pair.url("b"))
    assert unavailable.code != 0
    assert "version 3 of team/app cannot be fetched from where it is: a (offline)" in polite(
        pair, unavailable.err
    )
    assert status(pair)["state"] == "unavailable"

    for options in (["--demote", "a"], ["--promote", "b"]):
        refused = thaw(pair, *options)
        assert refused.code == 1
        assert "would lose acknowledged versions that no other device holds: 2, 3" in refused.err
        assert "--accept-loss" in refused.err
        dry = thaw(pair, *options, "--dry-run")
        assert dry.code == 0
        for shown_text in (refused.text, dry.text):
            assert re.search(r"LOST: version 2, acknowledged to demo on a at \d{4}-", shown_text), shown_text
            assert re.search(r"LOST: version 3, acknowledged to demo on a at \d{4}-", shown_text)
            assert (
                second[:12] in shown_text
                and third[:12] in shown_text
                and "refs/heads/only-here" in shown_text
            )
        assert pair.version() == 3
    dry_json = json.loads(pair.admin("thaw", "team/app", "--demote", "a", "--dry-run", "--json").out)
    assert dry_json["lost_versions"] == [2, 3] and dry_json["dry_run"] is True

    accepted = thaw(pair, "--demote", "a", "--accept-loss")
    assert accepted.code == 0, accepted.text
    assert pair.version() == 4, "numbers never go back"
    entry = pair.admin_json("log", "team/app")[0]
    assert {(r["ref"], r["old"], r["new"]) for r in entry["refs"]} == {
        ("refs/heads/main", third, old),
        ("refs/heads/only-here", third, ZERO),
    }
    assert shown(pair, "b") == {old}
    pair.start("a")
    pair.converge()
    assert shown(pair, "a") == {old}
    assert lost(pair, "a") == {"refs/heads/main": third, "refs/heads/only-here": third}
    works_everywhere(pair, "a")


def test_promoting_a_device_that_is_behind_gives_the_newer_versions_up(pair: Cluster) -> None:
    """G8: the device that was ahead follows, and keeps what it had."""
    work, old = first_push(pair)
    pair.stop("b")
    second = pair.commit(work, "second")
    pair.ok("push", "--quiet", pair.url("a"), "main", cwd=work)
    pair.stop("a")
    pair.start("b")
    accepted = thaw(pair, "--promote", "b", "--accept-loss")
    assert accepted.code == 0, accepted.text
    assert pair.version() == 3
    assert shown(pair, "b") == {old}
    pair.start("a")
    pair.converge()
    assert shown(pair, "a") == {old}
    assert lost(pair, "a") == {"refs/heads/main": second}
    works_everywhere(pair, "b")


def test_the_only_copy_cannot_be_demoted(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("a")
    cluster.create("team/app")
    first_push(cluster)
    refused = thaw(cluster, "--demote", "a", "--accept-loss")
    assert refused.code == 1 and "--promote a" in refused.err
    assert thaw(cluster, "--demote", "nowhere").code == 1
    assert thaw(cluster, "--demote", "a", "--promote", "a").code == 2
    works_everywhere(cluster, "a")


# ------------------------------------------------------------------------------------------ from afar


def test_thaw_while_the_interrupted_device_is_down_and_after(pair: Cluster) -> None:
    """From the administrator's configuration: plain thaw needs the device; --demote waits until it is offline."""
    work, old = first_push(pair)
    new = pair.commit(work, "interrupted")
    interrupt(pair, "a", "commit", work)
    plain = thaw(pair)
    assert plain.code == 1 and "cannot be asked" in plain.err and "--demote a" in plain.err
    absent = thaw(pair, "--promote", "a")
    assert absent.code == 1
    done = thaw(pair, "--demote", "a")
    assert done.code == 0, done.text
    assert push(pair, "b", work).code == 0, "b takes writes without a"
    assert pair.version() == 2
    pair.start("a")
    pair.converge()
    assert shown(pair, "a") == {old, new}
    works_everywhere(pair, "a")


def test_a_thaw_never_wins_over_a_write_that_lives(pair: Cluster) -> None:
    """G6: the push commits; the thaws tried meanwhile are refused and change nothing."""
    work, old = first_push(pair)
    held = hold(pair, "a")
    new = pair.commit(work, "alive")
    pushing = pair.spawn("push", pair.url("a"), "main", cwd=work)
    pair.wait(lambda: held.reached, "the commit is in flight")
    for options in ([], ["--demote", "a"], ["--promote", "a"], ["--promote", "b"]):
        refused = thaw(pair, *options)
        assert refused.code == 1, refused.text
    assert pair.version() == 1 and replica(pair, "a")["state"] == "writing"
    held.let_go()
    said, _ = pushing.communicate(timeout=30)
    assert pushing.returncode == 0, said
    assert shown(pair, "b") == {old, new}
    works_everywhere(pair, "a")


def test_a_device_paused_in_its_write_and_demoted_meanwhile_is_told_no(pair: Cluster) -> None:
    """G2, G3: the demoted claim's late commit matches no row; its refs are given up, kept, and rebuilt."""
    work, old = first_push(pair)
    held = hold(pair, "a")
    new = pair.commit(work, "overtaken")
    pushing = pair.spawn("push", pair.url("a"), "main", cwd=work)
    pair.wait(lambda: held.reached, "the commit is in flight")
    # The device is cut off from everybody but its disk: paused, and its connections ended by the database.
    process = pair.devices["a"].process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    terminate_connections(pair, "a")
    done = thaw(pair, "--demote", "a")  # waits until a's heartbeat has stopped
    assert done.code == 0, done.text
    other = pair.directory / "other-work"
    pair.ok("clone", "--quiet", pair.url("b"), str(other))
    second = pair.commit(other, "second")
    assert push(pair, "b", other).code == 0
    process.send_signal(signal.SIGCONT)
    held.let_go()
    said, _ = pushing.communicate(timeout=60)
    assert pushing.returncode != 0
    assert "! [remote rejected] main -> main" in polite(pair, said)
    pair.converge()
    assert shown(pair, "a") == {old, second}
    assert lost(pair, "a") == {"refs/heads/main": new}
    works_everywhere(pair, "a")


def terminate_connections(cluster: Cluster, device: str) -> None:
    from tests.breaking import sql

    sql(
        cluster,
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
        f" and (application_name = 'git-cluster {device}' or application_name like 'git-cluster write % {device} %')",
    )
