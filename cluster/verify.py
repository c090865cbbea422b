"""Verification: hold a replica against the log and against itself, and make a bad one anew.

    check      its refs, against its position, under the replica's write lock (the moment of one listing);
               then `git fsck` of a frozen view of its objects (objects.py, `frozen`), which takes no lock: what pushes,
               syncs and repacks do meanwhile neither waits nor disturbs
    again      a fault is looked at twice; the second time nothing of ours repacks meanwhile
    repair     refs that differ are put right in place, from the log (sync.py); what no version held is kept below
               refs/cluster/lost/. A copy whose objects are missing or damaged is quarantined, set aside and made anew
               from a leader (aside.py), and that is checked in the same way before the damaged copy goes

Where no other device can be synced from, nothing is touched, and a person is told exactly what is wrong: in the log
once, and by `git-cluster status` until a later verification finds the copy whole.

What `git fsck` says of the form of objects (a date out of range, a path twice in a tree) is no damage: they are as
they were pushed, and the same on every device.
"""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from cluster import aside, git
from cluster.background import Done
from cluster.errors import (
    DatabaseUnavailable,
    Frozen,
    GitFailed,
    LockTimeout,
    NotFound,
    Refused,
    ReplicaUnfit,
)
from cluster.history import other_history
from cluster.model import EventKind, RefUpdate, Replica, Repository, Snapshot
from cluster.node import Node
from cluster.refs import OURS, STAGED
from cluster.sync import Say, catch_up
from cluster.versions import checksum_of, difference, head_of, sources

_log = logging.getLogger(__name__)

SHOWN = 3
"""Refs or objects that are named; the others are counted."""

WRITE_WAIT = 30.0
"""Seconds to wait for a write of this replica: from intend to mark it takes milliseconds."""

SYNC_WAIT = 300.0
"""Seconds to wait for a sync of this replica to end before it is set aside."""

PATIENCE = 600.0
"""Seconds to wait for another verification of this replica, and for a repack before the second look."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a copy, in exact words. in_objects: its refs are right, but what they reach is not whole."""

    what: str
    in_objects: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A copy that is whole now. fault: what was wrong and has been put right. notes: what else a person should know."""

    fault: str | None = None
    notes: tuple[str, ...] = ()


def verify(node: Node, repository_id: int, say: Say) -> Verdict:
    """Verify this device's replica, and put right what can be put right.

    Refused where it is damaged and cannot be made anew now; Frozen where an interrupted write is in the way;
    GitFailed, LockTimeout where nothing was found out; NotFound.
    """
    with node.store.holding(repository_id, "verify", PATIENCE) as mine:
        if not mine:
            raise LockTimeout("this copy is being verified already", hint="try again later")
        return _verify(node, repository_id, say)


def _verify(node: Node, repository_id: int, say: Say) -> Verdict:
    snapshot, mine = _mine(node, repository_id)
    repository = snapshot.repository
    if mine.position is None:
        return Verdict()
    if mine.quarantined or other_history(node, snapshot) is not None:
        catch_up(node, repository_id, say)
    fault, first = _fault(node, repository_id), None
    for _ in range(2):  # what is wrong with the objects may come out when the refs have been put right
        if fault is None:
            break
        first = first or fault.what
        say(f"{repository.name} on {node.name}: {fault.what}")
        _log.warning("%s: %s", repository.name, fault.what)
        _repair(node, repository_id, fault, say)
        fault = check(node, repository_id)
    if fault is not None:
        raise Refused(
            f"{repository.name} on {node.name} was made anew and is still not whole: {fault.what}",
            hint="the damaged copy is kept in this device's trash; look at its disk",
        )
    return _whole(node, repository, first or mine.quarantined)


def _fault(node: Node, repository_id: int) -> Fault | None:
    """What is wrong, where two looks say so."""
    if check(node, repository_id) is None:
        return None
    with node.store.holding(repository_id, "upkeep", PATIENCE) as still:
        if not still:
            raise LockTimeout("this copy is being repacked", hint="try again later")
        return check(node, repository_id, names=True)


def _whole(node: Node, repository: Repository, fault: str | None) -> Verdict:
    if dropped := node.store.drop_damaged_indexes(repository):
        _log.warning("%s: dropped what was damaged: %s", repository.name, ", ".join(dropped))
    notes = aside.finish(node.store, repository)
    for note in notes:
        _log.warning("%s: %s", repository.name, note)
        node.db.record(repository.id, EventKind.REBUILD, node.name, note)
    node.db.note_verified(repository.id, node.name)
    return Verdict(fault, tuple(notes))


# ----------------------------------------------------------------------------------------------------- looking


def check(node: Node, repository_id: int, *, names: bool = False) -> Fault | None:
    """Hold a replica against its position and against itself. names: say how damaged objects are reached."""
    fault, repository, refs = _hold_refs(node, repository_id)
    if fault is not None or not refs:
        return fault
    kept = {ref: value for ref, value in refs.items() if not ref.startswith(STAGED)}
    with node.store.frozen(repository, kept) as env:
        done = node.background.run(
            ["fsck", "--full", "--no-dangling", "--no-progress", *(["--name-objects"] if names else [])],
            env=env,
            config={"core.commitGraph": "false", "core.multiPackIndex": "false"},
        )
    what = damage(done, kept)
    return Fault(what, in_objects=True) if what else None


def differs(node: Node, repository_id: int) -> bool:
    """Whether a replica's refs are not those of its position."""
    return _hold_refs(node, repository_id)[0] is not None


def _hold_refs(node: Node, repository_id: int) -> tuple[Fault | None, Repository, dict[str, str]]:
    """What is wrong with the refs; else all that there are, none where the replica is absent."""
    store = node.store
    with _still(node, repository_id) as (snapshot, mine):
        repository, position = snapshot.repository, mine.position
        if position is None:
            return None, repository, {}
        if mine.quarantined:
            return Fault(mine.quarantined), repository, {}
        if store.foreign(repository_id):
            return Fault("its disk is another device's, or another cluster's"), repository, {}
        if not store.exists(repository_id):
            return Fault("its disk holds no copy, though it should"), repository, {}
        store.forget(repository_id)
        try:
            refs = store.every_ref(repository_id)
        except ReplicaUnfit as error:
            return Fault(f"its refs cannot be read{_why(error.__cause__)}"), repository, {}
    shown = {ref: value for ref, value in refs.items() if not ref.startswith(OURS)}
    if checksum_of(shown) != position.checksum:
        zero = git.ZERO[repository.object_format]
        wrong = difference(shown, node.db.refs_at(repository_id, position.version), zero)
        what = f"its refs are not those of version {position.version}{_differences(wrong)}"
        return Fault(what), repository, {}
    return None, repository, refs


@contextmanager
def _still(node: Node, repository_id: int) -> Iterator[tuple[Snapshot, Replica]]:
    """Hold the replica's write lock inside: its refs and its row belong together."""
    with node.store.holding(repository_id, "write", WRITE_WAIT) as got:
        if not got:
            raise LockTimeout("a write to this replica is still going on", hint="try again in a moment")
        snapshot, mine = _mine(node, repository_id)
        if mine.intent is not None:
            raise Frozen(
                f"{snapshot.repository.name} has an interrupted write on {node.name}",
                hint=f"resolve it first: `git-cluster thaw {snapshot.repository.name} --dry-run` says how",
            )
        yield snapshot, mine


def _mine(node: Node, repository_id: int) -> tuple[Snapshot, Replica]:
    snapshot = node.db.snapshot_of(repository_id)
    mine = snapshot.of(node.name)
    if mine is None:
        raise NotFound(f"device {node.name} does not hold {snapshot.repository.name}")
    return snapshot, mine


def _why(cause: BaseException | None) -> str:
    """What Git, or the disk, said."""
    if isinstance(cause, GitFailed):
        return f": {cause.what.rpartition(' failed: ')[2]}"
    return f": {cause.strerror}" if isinstance(cause, OSError) else ""


def _differences(wrong: Iterable[RefUpdate]) -> str:
    """Refs as they are (old) and as they should be (new)."""
    words = []
    for update in wrong:
        if update.creates:
            words.append(f"{update.ref} is not there and should be at {update.new}")
        elif update.deletes:
            words.append(f"{update.ref} is at {update.old} and should not be there")
        else:
            words.append(f"{update.ref} is at {update.old} and should be at {update.new}")
    return f": {_counted(words)}" if words else ""


def _counted(words: list[str]) -> str:
    return "; ".join(words[:SHOWN]) + (f"; and {len(words) - SHOWN} more" if len(words) > SHOWN else "")


_OID = r"([0-9a-f]{64}|[0-9a-f]{40})"
_MISSING = re.compile(rf"missing (\w+) {_OID}(?: \((.+)\))?")
_POINTER = re.compile(rf"error: (refs/.+): invalid sha1 pointer {_OID}")
_DAMAGED = re.compile(
    rf"error: {_OID}: object corrupt or missing"
    rf"|(?:fatal|error): (?:loose object|packed object|packed) {_OID} .*is corrupt"
    rf"|error: cannot unpack {_OID} from"
)
_PACK = re.compile(r"(?:fatal|error): .*\b(pack-[0-9a-f]+)\.(?:pack|idx)\b")


def damage(done: Done, refs: Mapping[str, str] = {}) -> str | None:
    """What a `git fsck` of `refs` that has ended found to be missing or damaged, in words; None: nothing.

    GitFailed where it was ended, or failed for another reason than that.
    """
    if done.code == 0:
        return None
    if done.code == -signal.SIGBUS:
        return "its disk cannot be read: an input/output error ended `git fsck`"
    if done.code < 0:
        raise GitFailed(f"git fsck was ended by {signal.Signals(-done.code).name}")
    found: dict[str, tuple[str, str]] = {}
    packs: dict[str, None] = {}
    tips = {oid: ref for ref, oid in refs.items()}
    said = [*done.out.decode(errors="replace").splitlines(), *done.err.decode(errors="replace").splitlines()]
    for line in said:
        if match := _MISSING.match(line):
            found[match[2]] = (f"missing {match[1]}", match[3] or found.get(match[2], ("", ""))[1])
        elif match := _POINTER.match(line):
            found.setdefault(match[2], ("missing object", match[1]))
        elif match := _PACK.match(line):
            packs[match[1]] = None
    for line in said:
        if match := _DAMAGED.match(line):
            oid = match[1] or match[2] or match[3]
            what, name = found.get(oid, ("missing object", tips.get(oid, "")))
            found[oid] = (what.replace("missing", "damaged"), name)
    words = [f"damaged {pack}" for pack in packs]
    words += [
        f"{what} {oid}" + (f", reached from {name}" if name else "") for oid, (what, name) in found.items()
    ]
    if words:
        return _counted(words)
    if any(line.startswith(("error: ", "fatal: ")) for line in said):
        raise git.failed("fsck", done.err)
    return None


_MET = re.compile(
    rb"does not match index|repository corruption|is corrupt|object file \S+ is empty|inflate: "
)
_NOT_OURS = re.compile(rb"not our ref ([0-9a-f]+)")


def doubt(node: Node, snapshot: Snapshot, said: bytes) -> ReplicaUnfit | None:
    """The error for a client, where what Git said when it failed to serve them is of damage: an object that cannot be
    read, or one that a ref names and that is not there. The copy is verified soon then."""
    repository = snapshot.repository
    refused = _NOT_OURS.search(said)
    if not _MET.search(said) and not (
        refused and refused[1].decode() in node.store.refs(repository.id).values()
    ):
        return None
    _log.error("%s: Git met damage: %s", repository.name, git.last_line(said))
    with suppress(DatabaseUnavailable):
        node.db.doubt(repository.id, node.name)
    others = [r.device.ssh_url for r in snapshot.leaders if r.device.name != node.name and r.device.online]
    urls = " or ".join(f"{url}/{repository.name}" for url in others)
    return ReplicaUnfit(
        f"device {node.name}'s copy of {repository.name} is damaged",
        hint=f"it is going to be made anew; meanwhile use {urls}"
        if urls
        else "no other device can help now; an administrator sees with `git-cluster status` what is wrong",
    )


# ------------------------------------------------------------------------------------------------------ repair


def _repair(node: Node, repository_id: int, fault: Fault, say: Say) -> None:
    """Make a bad copy anew. Refused where that cannot be done now, and nothing is touched."""
    snapshot, mine = _mine(node, repository_id)
    repository = snapshot.repository
    others = sources(snapshot, node.name)
    able = [other for other in others if other.device.online and not other.damage]
    if not able and (fault.in_objects or not log_suffices(node, snapshot)):
        node.db.note_damage(repository_id, node.name, f"its copy is damaged: {fault.what}")
        raise Refused(
            f"{repository.name} on {node.name} is damaged ({fault.what}), and {_no_help(others)}",
            hint="nothing was touched; bring another copy back, or restore this one from a backup, then run "
            f"`git-cluster verify {repository.name}`",
        )
    if fault.in_objects:
        _replace(node, snapshot, fault)
    elif not mine.quarantined:
        node.db.quarantine(repository_id, node.name, fault.what)
    catch_up(node, repository_id, say)


def _replace(node: Node, snapshot: Snapshot, fault: Fault) -> None:
    """Quarantine a copy and set it aside. No sync is under way, and a push that was begun on it is refused later."""
    repository = snapshot.repository
    head = head_of(node.db.refs_at(repository.id, repository.version))
    with node.store.holding(repository.id, "sync", SYNC_WAIT) as got:
        if not got:
            raise LockTimeout("this copy is being synced", hint="try again later")
        with _still(node, repository.id):
            node.db.quarantine(repository.id, node.name, fault.what)
            aside.replace(node.store, repository, head)


def log_suffices(node: Node, snapshot: Snapshot) -> bool:
    """Whether this disk holds everything that the refs of the newest version reach, wherever its own refs are."""
    repository = snapshot.repository
    if node.store.foreign(repository.id) or not node.store.objects(repository.id).is_dir():
        return False
    refs = node.db.refs_at(repository.id, repository.version)
    return node.store.holds(repository, [value for ref, value in refs.items() if ref != "HEAD"])


def _no_help(others: list[Replica]) -> str:
    """Why no other device helps."""
    whys = [
        f"{other.device.name}'s is damaged, too"
        if other.damage
        else f"{other.device.name}, which holds it, is {other.device.state}"
        for other in others
    ]
    return ", and ".join(whys) if whys else "no other device holds the newest version"
