"""Resolve a freeze by a person's decision. The command line's half; the devices' half is in cluster/admin.py.

    thaw                 put back what the database lost (cluster/restore.py); else what healing would do, by the device
                         that owns the write; or end a freeze by hand
    thaw --demote D      give up D's claim: its intent is withdrawn, its copy rebuilt from the others
    thaw --promote D     D's refs are the truth: what differs from the newest version is committed as the next one

Numbers never go back. Where a decision gives versions up, the next version is the one that says so, and every
device applies it like any other; refs that it takes back stay on the devices that had them (guarantee G8).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from cluster import git, restore
from cluster.db import Database
from cluster.errors import NotFound, PeerFailed, Refused
from cluster.heal import describe
from cluster.locks import Turns, write_lock
from cluster.model import LogEntry, Replica, Snapshot
from cluster.restore import Ask
from cluster.versions import checksum_of, difference, newest_without, refuse_other_version

Say = Callable[[str], None]


@dataclass(slots=True)
class ThawReport:
    """What a thaw did, or (dry run) would do."""

    repository: str
    dry_run: bool
    lines: list[str] = field(default_factory=list)
    lost_versions: list[int] = field(default_factory=list)
    restored_versions: list[int] = field(default_factory=list)
    by: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "repository": self.repository,
            "dry_run": self.dry_run,
            "lost_versions": self.lost_versions,
            "restored_versions": self.restored_versions,
            "lines": self.lines,
        }


def thaw(
    db: Database,
    name: str,
    *,
    demote: str | None,
    promote: str | None,
    dry_run: bool,
    accept_loss: bool,
    ask: Ask,
    say: Say,
    by: str = "",
    expected: int | None = None,
) -> ThawReport:
    """Carry out a person's decision, or (dry run) say what it would do. Refused where it would lose or overtake.

    by: the user who decides, for the log; "": an administrator's command line. expected: the version at which they
    looked; WriteConflict where there is another by now.
    """
    snapshot = db.snapshot(name)
    refuse_other_version(name, snapshot.repository.version, expected)
    report = ThawReport(name, dry_run, by=by)
    if demote is not None:
        _demote(db, snapshot, _replica(snapshot, demote), report, accept_loss=accept_loss, ask=ask, say=say)
    elif promote is not None:
        _promote(db, snapshot, _replica(snapshot, promote), report, accept_loss=accept_loss, ask=ask, say=say)
    else:
        _resolve(db, snapshot, report, ask=ask)
    return report


def _resolve(db: Database, snapshot: Snapshot, report: ThawReport, *, ask: Ask) -> None:
    if _doubtful(snapshot):
        found = restore.survey(snapshot, ask)
        snapshot = db.snapshot(snapshot.repository.name)
        if plan := restore.plan(snapshot.repository, found):
            _restore(db, snapshot, plan, report)
            return
    repository, owner = snapshot.repository, snapshot.intent_owner
    if repository.frozen is not None:
        if not report.dry_run:
            db.freeze(repository.id, None, by=report.by)
        ended = "would be" if report.dry_run else "is"
        report.lines.append(f"the freeze {ended} ended: {repository.frozen}")
    if owner is None:
        if not report.lines:
            report.lines.append(f"{repository.name} is not frozen: nothing to do")
            if not snapshot.leaders and repository.version:
                report.lines.append(
                    f"but it is unavailable: `git-cluster status {repository.name}` says what to do"
                )
        return
    try:
        answer = ask(owner.device, "resolve", {"repository": repository.name, "dry_run": report.dry_run})
    except PeerFailed as error:
        raise Refused(
            f"the interrupted write is device {owner.device.name}'s, and that cannot be asked: {error.what}",
            hint=f"start it again, or give its claim up with `--demote {owner.device.name}` (try --dry-run first)",
        ) from error
    report.lines += [str(line) for line in answer["lines"]]


def _doubtful(snapshot: Snapshot) -> bool:
    """Whether this database may be older than the disks: only then is anything frozen."""
    knowing = any(replica.knows_more for replica in snapshot.replicas)
    return snapshot.repository.frozen is not None or snapshot.intent_owner is not None or knowing


def _restore(db: Database, snapshot: Snapshot, plan: restore.Plan, report: ThawReport) -> None:
    report.lines += restore.words(plan, dry_run=report.dry_run)
    report.restored_versions = [entry.version for entry in plan.entries]
    if not report.dry_run:
        restore.restore(db, snapshot, plan)


def _given_up(found: restore.Survey, device: str, report: ThawReport) -> None:
    """What a disk knows that the database does not, where that does not count any more."""
    for told in found.ahead:
        if told.device == device:
            report.lines.append(
                f"GIVEN UP: what only the disk of {device} knows, up to its version {told.version}; "
                "it stays there as lost refs"
            )
            report.lines += restore.shown(told.entries)


def _demote(
    db: Database,
    snapshot: Snapshot,
    replica: Replica,
    report: ThawReport,
    *,
    accept_loss: bool,
    ask: Ask,
    say: Say,
) -> None:
    repository, device = snapshot.repository, replica.device.name
    truth = newest_without(snapshot, device)
    if truth is None:
        raise Refused(
            f"no other device holds {repository.name}, so device {device}'s copy is the only one",
            hint=f"`git-cluster thaw {repository.name} --promote {device}` keeps it as it is",
        )
    lost = _entries_after(db, snapshot, truth.version)
    found = restore.survey(replace(snapshot, replicas=(replica,)), ask)
    snapshot = db.snapshot_of(repository.id)
    _explain(
        report, replica, lost, f"device {device}'s claim is given up; its copy is rebuilt from the others"
    )
    _given_up(found, device, report)
    _require_acceptance(report, lost, f"demoting {device}", accept_loss)
    _require_dead(db, snapshot, ask, say)
    if report.dry_run:
        return
    with write_lock(Turns(), db, repository.id, device="-", actor="thaw", timeout=10.0) as held:
        now, connection = held.seen, held.connection
        if now.repository.position != repository.position or _intent(now) != _intent(snapshot):
            raise Refused(f"{repository.name} changed meanwhile", hint="look again with --dry-run")
        with connection.transaction():
            db.demote(
                repository.id, device, "demoted by an administrator", replica.intent, connection=connection
            )
            if lost:
                refs = db.refs_at(repository.id, truth.version)
                zero = git.ZERO[repository.object_format]
                changes = difference(db.refs_at(repository.id, repository.version), refs, zero)
                db.commit_decree(
                    repository.id,
                    repository.position,
                    checksum_of(refs),
                    uuid4(),
                    changes,
                    actor=report.by or "operator",
                    device=device,
                    via="thaw",
                    connection=connection,
                )
    now = db.snapshot_of(repository.id)
    if knowing := [r.device.name for r in now.replicas if r.knows_more]:
        report.lines.append(
            f"{repository.name} stays frozen: the disk of {', '.join(knowing)} is ahead as well"
        )
    elif now.repository.frozen is not None:
        db.freeze(repository.id, None, by=report.by)


def _promote(
    db: Database,
    snapshot: Snapshot,
    replica: Replica,
    report: ThawReport,
    *,
    accept_loss: bool,
    ask: Ask,
    say: Say,
) -> None:
    repository, device = snapshot.repository, replica.device
    lost = _entries_after(db, snapshot, replica.version or 0)
    found = restore.survey(snapshot, ask)
    snapshot = db.snapshot_of(repository.id)
    _explain(report, replica, lost, f"what device {device.name} holds becomes the newest version")
    for told in found.ahead:
        if told.device != device.name:
            _given_up(found, told.device, report)
    _require_acceptance(report, lost, f"promoting {device.name}", accept_loss)
    _require_dead(db, snapshot, ask, say)
    try:
        answer = ask(
            device,
            "promote",
            {
                "repository": repository.name,
                "dry_run": report.dry_run,
                "base": repository.version,
                "by": report.by,
            },
        )
    except PeerFailed as error:
        raise Refused(
            f"device {device.name} has to be up to be promoted: {error.what}", hint="start it, then try again"
        ) from error
    report.lines += [str(line) for line in answer["lines"]]


def _explain(report: ThawReport, replica: Replica, lost: list[LogEntry], first: str) -> None:
    report.lines.append(first)
    if replica.intent:
        report.lines.append(
            f"interrupted push by {replica.intent.actor} ({replica.intent.at:%Y-%m-%d %H:%M:%S %Z}):"
        )
        report.lines += [describe(update) for update in replica.intent.refs]
    report.lost_versions = [entry.version for entry in lost]
    for entry in lost:
        report.lines.append(
            f"LOST: version {entry.version}, acknowledged to {entry.actor} on {entry.device} "
            f"at {entry.at:%Y-%m-%d %H:%M:%S %Z}"
        )
        report.lines += [describe(update) for update in entry.refs]


def _require_acceptance(report: ThawReport, lost: list[LogEntry], deed: str, accept_loss: bool) -> None:
    if lost and not accept_loss and not report.dry_run:
        versions = ", ".join(str(entry.version) for entry in lost)
        raise LossRefused(
            report,
            f"{deed} would lose acknowledged versions that no other device holds: {versions}",
            hint="bring a device back that holds them, or say --accept-loss",
        )


class LossRefused(Refused):
    """A thaw that would lose acknowledged versions; `report` lists each of them."""

    def __init__(self, report: ThawReport, what: str, *, hint: str) -> None:
        super().__init__(what, hint=hint)
        self.report = report

    def lines(self) -> list[str]:
        return [self.what, *self.report.lines, self.hint]


def _require_dead(db: Database, snapshot: Snapshot, ask: Ask, say: Say) -> None:
    """Refuse while the interrupted write's process may still live: a thaw never wins over it.

    Its device is asked. One that cannot be reached counts as dead only when its heartbeat stopped, too; a commit
    that it tries all the same fails in the database, because its token is withdrawn.
    """
    owner = snapshot.intent_owner
    holder = db.write_lock_holder(snapshot.repository.id)
    if holder is not None:
        raise Refused(
            f"{snapshot.repository.name} is being written by {holder.actor} on {holder.device} right now",
            hint="wait for that push to end, then look again",
        )
    if owner is None:
        return
    told = False
    while True:
        try:
            answer = ask(owner.device, "alive", {"repository": snapshot.repository.name})
        except PeerFailed as error:
            if not db.device(owner.device.name).online:
                return
            if not told:
                say(
                    f"device {owner.device.name} does not answer ({error.what}); waiting until it does or is offline"
                )
                told = True
            time.sleep(0.5)
            continue
        if answer["alive"]:
            raise Refused(
                f"the write on device {owner.device.name} is still being carried on by its process",
                hint="it commits or gives up by itself; try again in a moment",
            )
        return


def _entries_after(db: Database, snapshot: Snapshot, version: int) -> list[LogEntry]:
    """The log after `version`, oldest first: what is lost when that becomes the truth."""
    count = snapshot.repository.version - version
    return list(reversed(db.log(snapshot.repository.id, limit=count))) if count > 0 else []


def _intent(snapshot: Snapshot) -> object:
    owner = snapshot.intent_owner
    return owner.intent if owner else None


def _replica(snapshot: Snapshot, device: str) -> Replica:
    replica = snapshot.of(device)
    if replica is None:
        names = ", ".join(r.device.name for r in snapshot.replicas)
        raise NotFound(f"device {device} does not hold {snapshot.repository.name}", hint=f"these do: {names}")
    return replica
