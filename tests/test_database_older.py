"""A database that came back older than the disks (G7): noticed by every device, refused to writers, told by `status`,
and put back from the journals exactly as it was, or not at all.

One cluster with a repository for each case; the database is saved in the middle of its life and comes back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import history, journal, rounds
from cluster.config import WritesSection
from cluster.model import EventKind, LogEntry
from cluster.node import Node
from cluster.peer import Peers
from cluster.store import Store
from tests.backups import Backup
from tests.breaking import (
    hold,
    polite,
    status,
)
from tests.cluster_fixture import Cluster, Done, Project
from tests.conftest import new_database

MANY = journal.MOST_REFS + 100
"""Refs of a version that the journal has without them."""


class Older:
    """A cluster whose database came back, and what its log was before that."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.projects: dict[str, Project] = {}
        self.logs: dict[str, list[LogEntry]] = {}

    def project(self, name: str) -> Project:
        self.cluster.create(f"team/{name}", min_copies=2)
        self.cluster.wait(lambda: self.cluster.converged(f"team/{name}"), "the new repository is everywhere")
        project = self.projects[name] = Project(self.cluster, f"team/{name}")
        project.pushed("a", "main")
        return project

    def journal(self, device: str, name: str) -> Path:
        return self.projects[name].disk(device) / "cluster" / "journal"

    def thaw(self, name: str, *options: str) -> Done:
        done = self.cluster.admin("thaw", f"team/{name}", *options, timeout=90)
        polite(self.cluster, done.text)
        return done

    def is_as_it_was(self, name: str) -> None:
        """The log, entry by entry, and every disk; nothing was taken for damaged on the way."""
        project = self.projects[name]
        project.converge()
        assert project.log() == self.logs[name]
        subject = self.cluster.snapshot(project.name)
        assert subject.repository.frozen is None and subject.intent_owner is None
        assert not any(replica.marker for replica in subject.replicas)
        events = self.cluster.db.events(subject.repository.id)
        assert {event.kind for event in events} <= {EventKind.FREEZE, EventKind.RESTORE, EventKind.THAW}
        for device in self.cluster.devices:
            assert not lost_refs(project, device)


def lost_refs(project: Project, device: str) -> str:
    return project.cluster.ok(f"--git-dir={project.disk(device)}", "for-each-ref", "refs/cluster/lost")


def settled(project: Project) -> None:
    """Every disk, with its marker, is at the newest version."""
    project.converge()
    newest = project.cluster.snapshot(project.name).repository.position

    def marked() -> bool:
        files = [project.disk(device) / "cluster" / "position" for device in project.cluster.devices]
        return all(json.loads(file.read_text())["version"] == newest.version for file in files)

    project.cluster.wait(marked, "every disk is marked")


@pytest.fixture(scope="module")
def older(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Older]:
    with new_database(postgres) as url:
        cluster = Cluster(tmp_path_factory.mktemp("older") / "cluster", url, {})
        backup = None
        try:
            cluster.set_up(list("abc"))
            for device in "abc":
                cluster.start(device)
            older = Older(cluster)
            names = ["all", "same", "many", "bare", "one", "gone", "lies", "half", "hand", "begun"]
            projects = {name: older.project(name) for name in names}
            cluster.admin("freeze", "team/hand", "--reason", "moving disks")
            held = hold(cluster, "a", repository="team/begun")
            projects["begun"].commit("begun")
            begun = cluster.spawn("push", projects["begun"].url("a"), "main", cwd=projects["begun"].work)
            cluster.wait(lambda: held.reached, "a push is between intend and commit")
            backup = Backup(cluster)
            held.let_go()
            said, _ = begun.communicate(timeout=60)
            assert begun.returncode == 0, said
            cluster.admin("thaw", "team/hand")
            for name in set(names) - {"same"}:
                after(older, name, projects[name])
            older.project("new").pushed("b", "main:other")
            for project in older.projects.values():
                settled(project)
            for name, project in older.projects.items():
                older.logs[name] = project.log()
            spoil(older)
            backup.restore()
            yield older
        finally:
            cluster.close()
            if backup is not None:
                backup.drop()


def after(older: Older, name: str, project: Project) -> None:
    """What the backup does not have."""
    if name in ("many", "bare"):
        project.commit("many")
        project.pushed("b", "main", *(f"main:refs/tags/t{n}" for n in range(MANY)))
    if name == "bare":
        project.pushed("b", *(f":refs/tags/t{n}" for n in range(MANY)))
    project.commit("two")
    project.pushed("b", "main", "main:side")
    project.commit("three")
    project.pushed("c", "--force", "main", ":side", "main:refs/tags/v3")


def spoil(older: Older) -> None:
    """What has become of the journals meanwhile."""
    older.journal("a", "one").write_text("")
    for device in "abc":
        lines = older.journal(device, "gone").read_bytes().splitlines(keepends=True)
        older.journal(device, "gone").write_bytes(lines[-1])
        half = older.journal(device, "half").read_bytes()
        older.journal(device, "half").write_bytes(half[:-30])
        entries = journal.read(older.journal(device, "lies"))
        two = entries[-2]
        lie = replace(two, refs=(replace(two.refs[0], new="1" * 40), *two.refs[1:]))
        older.journal(device, "lies").unlink()
        journal.append(older.journal(device, "lies"), [*entries[:-2], lie, entries[-1]])


# -------------------------------------------------------------------------------------------------------- noticing


def test_every_device_notices_and_status_says_what_is_lacking(older: Older) -> None:
    cluster = older.cluster
    cluster.wait(
        lambda: all(r["disk_version"] == 3 for r in status(cluster, "team/all")["replicas"]),
        "every device has reported its marker",
    )
    entry = status(cluster, "team/all")
    assert entry["state"] == "frozen" and entry["version"] == 1
    assert entry["reason"].endswith(
        ": the database is older than the disks: it knows versions up to 1; it lacks versions 2 and 3: "
        "a, b and c hold version 3; see what would be put back: `git-cluster thaw team/all --dry-run`"
    )
    for device in entry["replicas"]:
        assert device["state"] == "frozen"
        assert device["reason"] == "its disk is at version 3, which the database does not know"
    assert entry["reason"] in cluster.admin("status").out
    events = cluster.db.events(cluster.snapshot("team/all").repository.id)
    assert [event.kind for event in events] == [EventKind.FREEZE], "one line in the log, whoever was first"


def test_a_sweep_finds_them_too(older: Older) -> None:
    """Where the database was exchanged and no connection was lost over it: a device looks at its markers by itself."""
    cluster = older.cluster
    device = cluster.devices["b"]
    store = Store(device.data_dir, "b", cluster.db.cluster_id())
    peers = Peers.from_file(device.directory / "device_ed25519")
    node = Node("b", WritesSection(), cluster.db, store, peers)
    found = {
        cluster.db.snapshot_of(held.repository_id).repository.name
        for page in rounds.pages(cluster.db, "b")
        for held in page
        if history.ahead(node, held)
    }
    assert found == {f"team/{name}" for name in set(older.projects) - {"same", "new"}}


def test_what_lost_nothing_is_as_it_was(older: Older) -> None:
    project = older.projects["same"]
    older.is_as_it_was("same")
    older.cluster.wait(lambda: status(older.cluster, project.name)["state"] == "healthy", "all are back")
    assert [r["disk_version"] for r in status(older.cluster, project.name)["replicas"]] == [None] * 3
    project.commit("more")
    project.pushed("b", "main")


def test_nothing_is_written_or_shown_meanwhile_and_whoever_asks_is_told(older: Older) -> None:
    project = older.projects["all"]
    project.commit("four")
    for device in "abc":
        for told in (
            project.refused(device, "main").err,
            project.cluster.git("ls-remote", project.url(device)).err,
        ):
            polite(project.cluster, told)
            assert (
                f"team/all is frozen: the database is older than device {device}'s disk: it knows versions up to 1, "
                "the disk is at 3" in told
            )
            assert (
                "`git-cluster thaw team/all --dry-run` shows what that is; nothing is lost meanwhile" in told
            )
    assert project.version == 1


# ------------------------------------------------------------------------------------------------------ put back


def test_the_dry_run_shows_what_thaw_then_puts_back_exactly(older: Older) -> None:
    """As a transcript: the same versions, pushers, times and refs; the log is as it was, and no copy is rebuilt."""
    project = older.projects["all"]
    two, three = older.logs["all"][1:]
    at = [f"{entry.at:%Y-%m-%d %H:%M:%S}" for entry in (two, three)]
    main = [
        update.new[:12] for entry in (two, three) for update in entry.refs if update.ref == "refs/heads/main"
    ]
    first = two.refs[0].old[:12]
    listing = f"""\
version 2, by demo on b (ssh) at {at[0]} UTC:
  refs/heads/main  {first} → {main[0]}
  refs/heads/side  (new) → {main[0]}
version 3, by demo on c (ssh) at {at[1]} UTC:
  refs/heads/main  {main[0]} → {main[1]}
  refs/heads/side  {main[0]} → (deleted)
  refs/tags/v3  (new) → {main[1]}
a, b and c hold version 3 already
"""
    dry = older.thaw("all", "--dry-run")
    assert dry.code == 0, dry.text
    assert dry.out == (
        "the database lacks versions 2 and 3; they would be put back, exactly as they were, from the disk of a:\n"
        + listing
    )
    assert project.version == 1 and status(older.cluster, project.name)["state"] == "frozen"
    as_json = json.loads(older.thaw("all", "--dry-run", "--json").out)
    assert (
        as_json["restored_versions"] == [2, 3]
        and as_json["lost_versions"] == []
        and as_json["dry_run"] is True
    )
    done = older.thaw("all")
    assert done.code == 0, done.text
    assert done.out == (
        "the database lacked versions 2 and 3; they are put back, exactly as they were, from the disk of a:\n"
        + listing
    )
    older.is_as_it_was("all")
    events = older.cluster.db.events(older.cluster.snapshot(project.name).repository.id)
    assert [(e.kind, e.version, e.device, e.what) for e in events[:1]] == [
        (
            EventKind.RESTORE,
            3,
            "-",
            "versions 2 and 3, which the database had lost, put back from the disk of a",
        )
    ]
    assert "nothing to do" in older.thaw("all").out
    for device in "abc":
        project.commit(f"afterwards on {device}")
        project.pushed(device, "main")
    project.converge()
    assert project.version == 6


def test_a_version_of_very_many_refs_is_worked_out_from_the_disk(older: Older) -> None:
    """The journal has the import without its refs; the disk and the versions after it say what they were."""
    dry = older.thaw("many", "--dry-run")
    assert f"  and {MANY + 1 - 20} more" in dry.out, dry.text
    assert older.thaw("many").code == 0
    older.is_as_it_was("many")


def test_another_device_s_journal_helps_out(older: Older) -> None:
    """a's is empty; what b's says fits a's disk just as well."""
    done = older.thaw("one")
    assert done.code == 0, done.text
    older.is_as_it_was("one")


def test_a_write_of_which_the_backup_has_only_the_intent(older: Older) -> None:
    """It became version 2 after the backup was made. Nobody heals it by what a newer disk shows; it is put back too."""
    cluster, project = older.cluster, older.projects["begun"]
    before = cluster.snapshot(project.name)
    assert before.intent_owner is not None and before.intent_owner.device.name == "a"
    for device in "abc":
        told = project.refused(device, "main").err
        assert "team/begun is frozen: the database is older than device" in told, told
    assert cluster.snapshot(project.name).intent_owner is not None
    assert older.thaw("begun").code == 0
    older.is_as_it_was("begun")
    assert older.logs["begun"][1].push_id == before.intent_owner.intent.push_id  # type: ignore[union-attr]


def test_a_backup_that_was_made_while_it_was_frozen_by_hand(older: Older) -> None:
    """What the person said stays said, with what the database lacks; thaw sees to both."""
    entry = status(older.cluster, "team/hand")
    assert ": moving disks; it lacks versions 2 and 3: a, b and c hold version 3;" in entry["reason"]
    done = older.thaw("hand")
    assert done.code == 0 and "versions 2 and 3" in done.out, done.text
    older.is_as_it_was("hand")


# ------------------------------------------------------------------------------------------------ and when it cannot


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gone", "device a's journal does not reach back to version 2"),
        ("bare", "device a's journal has version 2 without its refs, which were too many"),
        (
            "lies",
            "what device a's journal says of version 2 does not lead there from version 1: the checksums differ",
        ),
        ("half", "device a's journal does not reach back to version 2"),
    ],
)
def test_what_cannot_be_put_back_is_said_and_what_remains(name: str, why: str, older: Older) -> None:
    """Lines cut off, refs left out, or another thing than happened: nothing of it gets into the log. A person may keep
    the content as one version."""
    project, newest = older.projects[name], len(older.logs[name])
    for options in (["--dry-run"], []):
        refused = older.thaw(name, *options)
        assert refused.code == 1
        assert f"cannot be put back version by version: {why}" in refused.err
        assert f"a, b and c hold version {newest}; the database is at version 1" in refused.err
        assert f"`git-cluster thaw team/{name} --promote a --dry-run`" in refused.err
    assert project.version == 1 and status(older.cluster, project.name)["state"] == "frozen"
    promoted = older.thaw(name, "--promote", "a")
    assert promoted.code == 0, promoted.text
    project.converge()
    assert project.version == 2
    want = project.git("rev-parse", "HEAD")
    for device in "abc":
        assert project.refs(device)["refs/heads/main"] == want
    project.commit("afterwards")
    project.pushed("c", "main")


def test_a_repository_that_the_database_never_knew_keeps_its_copies(older: Older) -> None:
    """It was created after the backup. Its number is given anew: the copies are set aside, never overwritten, and no
    part of the new repository, which begins empty."""
    cluster, old = older.cluster, older.projects["new"]
    number = old_number(older)
    for device in "abc":
        assert (
            f"the database does not know the repository team/new, whose copy 000/{number}.git is here, at version 2"
            in cluster.devices[device].log.read_text()
        )
    wanted = old.git("rev-parse", "HEAD")
    new = Project(cluster, "team/newer")
    cluster.create("team/newer", min_copies=2)
    assert cluster.snapshot("team/newer").repository.id == number, "the number is given anew"
    new.commit("its own")
    new.pushed("a", "main")
    new.converge()
    assert new.version == 1
    for device in "abc":
        (aside,) = (cluster.devices[device].data_dir / "trash").glob(f"{number}-former-*.git")
        assert cluster.ok(f"--git-dir={aside}", "rev-parse", "refs/heads/other").strip() == wanted
        assert lost_refs(new, device) == ""
    told = [event.what for event in cluster.db.events(number) if event.kind is EventKind.QUARANTINE]
    assert len(told) == 3
    assert set(told) == {
        "its copy is not trusted any more: its disk held the copy of a former repository with its number "
        "(team/new, at version 2); that is in the trash now"
    }


def old_number(older: Older) -> int:
    last = max(
        older.cluster.snapshot(f"team/{name}").repository.id for name in older.projects if name != "new"
    )
    return last + 1
