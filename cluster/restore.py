"""Put back what a database has lost that came back older than the disks (guarantee G7). The command line's half; what
the devices answer is in history.py.

    survey    every device that can be reached says what its marker names and what its journal holds beyond the log
    plan      the entries between the newest version and the newest marker, each held against the checksums; or why not
    restore   one transaction, under the write lock: the same numbers, pushes, actors, times and refs as they were

The invariant: what is put back leads, checksum by checksum, from the newest version in the log to what a marker on a
disk names, past the markers of all other disks that are ahead. So no version is made up, and none is put back that
another disk, of those that could be asked, knows otherwise. Devices then find their markers in the log again, and claim
what they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from cluster import journal
from cluster.db import Database
from cluster.errors import ClusterError, PeerFailed, Refused
from cluster.heal import describe
from cluster.locks import Turns, write_lock
from cluster.marker import number_of, text_of
from cluster.model import Device, DeviceMode, LogEntry, Position, Repository, Snapshot
from cluster.status import listed, numbers

Ask = Callable[[Device, str, dict[str, object]], dict[str, Any]]
"""Run an operator's command on a device: (device, verb, arguments) → its answer. Raises PeerFailed."""

SHOWN = 20
"""Refs of one version that are listed; the others are counted."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a device's disk knows that the database does not; its words: history.tell."""

    device: str
    version: int
    checksum: str
    fork: int | None
    exact: bool
    whole: bool
    entries: tuple[LogEntry, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """What the devices of a repository know. agree: those whose markers the log has. silent: which could not be asked,
    and why. reported: what of these was reported earlier: (version, checksum)."""

    ahead: tuple[Told, ...]
    agree: frozenset[str]
    silent: Mapping[str, str]
    reported: Mapping[str, tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is put back, from which device's disk. current: the devices whose disks are at the newest of it already."""

    entries: tuple[LogEntry, ...]
    device: str
    current: tuple[str, ...]
    later: tuple[str, ...]
    silent: Mapping[str, str]


class Undecided(Refused):
    """Nothing is put back without a person's decision; `told` is what it is about."""

    def __init__(self, what: str, told: Sequence[str] = (), *, hint: str) -> None:
        super().__init__(what, hint=hint)
        self.told = list(told)

    def lines(self) -> list[str]:
        return [self.what, *self.told, self.hint]


# -------------------------------------------------------------------------------------------------------- survey


def survey(snapshot: Snapshot, ask: Ask) -> Survey:
    """Ask every device of the repository that is up, or that has reported its marker. They report it now, too."""
    ahead, agree, silent, reported = [], set(), {}, {}
    for replica in snapshot.replicas:
        device = replica.device
        if replica.knows_more and replica.marker is not None:
            reported[device.name] = (replica.marker, replica.marker_checksum or "")
        if not (replica.knows_more or device.online) or device.mode is DeviceMode.DISABLED:
            silent[device.name] = device.state
            continue
        try:
            answer = ask(device, "history", {"repository": snapshot.repository.name})
        except ClusterError as error:
            silent[device.name] = error.what
            continue
        if answer.get("known"):
            agree.add(device.name)
            reported.pop(device.name, None)
        else:
            told = _told(device.name, answer)
            if not replica.demoted or (replica.marker, replica.marker_checksum) != (
                told.version,
                told.checksum,
            ):
                ahead.append(told)
    return Survey(tuple(ahead), frozenset(agree), silent, reported)


def _told(device: str, answer: Mapping[str, Any]) -> Told:
    try:
        fork = answer["fork"]
        return Told(
            device=device,
            version=number_of(answer["version"]),
            checksum=text_of(answer["checksum"]),
            fork=None if fork is None else number_of(fork),
            exact=bool(answer["exact"]),
            whole=bool(answer["whole"]),
            entries=tuple(journal.from_json(entry) for entry in answer["entries"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PeerFailed(
            f"device {device} gave an answer that is not understood",
            hint="Does it run the same version of git-cluster?",
        ) from error


# ---------------------------------------------------------------------------------------------------------- plan


def plan(repository: Repository, found: Survey) -> Plan | None:
    """What can be put back; None where no disk is ahead. Undecided, with what a person has to know and can do."""
    _require_one_history(repository, found)
    if not found.ahead:
        _require_the_reported(repository, found, ())
        return None
    newest = max(told.version for told in found.ahead)
    tops = sorted((t for t in found.ahead if t.version == newest), key=lambda t: (not t.whole, not t.exact))
    problems = []
    for top in tops:
        entries, problem = _chain(repository.position, top, found.ahead)
        if problem is None and not top.whole:
            problem = f"device {top.device}'s copy is not whole: its refs reach objects that are not there"
        if problem is None:
            _require_fit(repository, entries, found)
            at_newest = [t.device for t in tops if t.exact]
            later = [*(t.device for t in found.ahead if t.device not in at_newest), *sorted(found.agree)]
            return Plan(tuple(entries), top.device, tuple(at_newest), tuple(later), found.silent)
        problems.append(problem)
    name, top = repository.name, tops[0]
    raise Undecided(
        f"what the database lacks cannot be put back version by version: {problems[0]}",
        [
            *problems[1:],
            f"{_holders(found.ahead)}; the database is at version {repository.version}",
        ],
        hint=f"`git-cluster thaw {name} --promote {top.device} --dry-run` shows what device {top.device} holds as one "
        f"next version, {repository.version + 1}; the content is kept, who pushed what between is not",
    )


def _chain(base: Position, top: Told, ahead: Sequence[Told]) -> tuple[list[LogEntry], str | None]:
    """The entries from `base` to the marker of `top`: its own, and where its journal has none, those of another that
    fit. Or why there is no such chain."""
    chain: list[LogEntry] = []
    own = {entry.version: entry for entry in top.entries}
    for version in range(base.version + 1, top.version + 1):
        before = chain[-1].checksum if chain else base.checksum
        others = (entry for told in ahead for entry in told.entries if entry.version == version)
        candidates = [*([own[version]] if version in own else []), *others]
        fitting = [entry for entry in candidates if entry.refs and journal.follows(entry, before)]
        if not fitting:
            who = f"device {top.device}'s journal"
            if not candidates:
                return [], f"{who} does not reach back to version {version}"
            if not candidates[0].refs:
                return [], f"{who} has version {version} without its refs, which were too many"
            return [], (
                f"what {who} says of version {version} does not lead there from version {version - 1}: "
                "the checksums differ"
            )
        chain.append(fitting[0])
    if str(chain[-1].checksum) != top.checksum:
        return [], f"device {top.device}'s journal does not lead to what its disk holds"
    return chain, None


def _require_one_history(repository: Repository, found: Survey) -> None:
    """Undecided where a disk and the database both went on from the same version."""
    forks = [told for told in found.ahead if told.fork is not None]
    if not forks:
        return
    lines, name = [], repository.name
    for told in forks:
        lines.append(
            f"device {told.device}'s disk is at another version {told.fork} than the database's, and has:"
        )
        lines += shown(told.entries) or ["  (its journal does not say)"]
    first, names = forks[0].device, listed([told.device for told in forks])
    raise Undecided(
        f"the database came back older than the disk of {names} and has gone on from there: "
        f"from version {min(t.fork or 0 for t in forks)} on there are two histories",
        lines,
        hint=f"keep the database's, and the disk's as lost refs there: `git-cluster thaw {name} --demote {first}`; "
        f"or make the disk's the next version: `--promote {first}` (try --dry-run)",
    )


def _require_fit(repository: Repository, entries: Sequence[LogEntry], found: Survey) -> None:
    """Undecided where another disk was at something else than what would be put back."""
    leads = {entry.version: str(entry.checksum) for entry in entries}
    for told in found.ahead:
        if leads.get(told.version) != told.checksum:
            raise Undecided(
                f"the disks went different ways: device {told.device}'s version {told.version} is another one than "
                f"that of the others ({_holders(found.ahead)})",
                shown(told.entries),
                hint=f"give one of them up first: `git-cluster thaw {repository.name} --demote {told.device}` (try "
                "--dry-run); what it has stays there as lost refs",
            )
    _require_the_reported(repository, found, entries)


def _require_the_reported(repository: Repository, found: Survey, entries: Sequence[LogEntry]) -> None:
    """Undecided where a device that cannot be asked was seen to be at something that would not be put back."""
    leads = {entry.version: str(entry.checksum) for entry in entries}
    for device, (version, checksum) in found.reported.items():
        if device in found.silent and leads.get(version) != checksum:
            raise Undecided(
                f"device {device}'s disk is at version {version}, which the database does not know, and cannot be "
                f"asked: {found.silent[device]}",
                hint=f"start it again; or give up what only it knows: `git-cluster thaw {repository.name} --demote "
                f"{device}` (try --dry-run)",
            )


# ------------------------------------------------------------------------------------------------------- restore


def restore(db: Database, snapshot: Snapshot, plan: Plan) -> None:
    """Carry a plan out. WriteConflict where the repository changed meanwhile; then nothing is put back."""
    repository = snapshot.repository
    versions = [entry.version for entry in plan.entries]
    with write_lock(Turns(), db, repository.id, device="-", actor="thaw", timeout=10.0) as held:
        what = f"{numbers(versions)}, which the database had lost, put back from the disk of {plan.device}"
        db.restore(repository.id, repository.position, plan.entries, "-", what, connection=held.connection)


# --------------------------------------------------------------------------------------------------------- words


def words(plan: Plan, *, dry_run: bool) -> list[str]:
    """A plan for people."""
    versions = [entry.version for entry in plan.entries]
    one = len(versions) == 1
    lacks, does = ("lacks", "would be") if dry_run else ("lacked", "is" if one else "are")
    lines = [
        f"the database {lacks} {numbers(versions)}; {'it' if one else 'they'} {does} put back, exactly as "
        f"{'it was' if one else 'they were'}, from the disk of {plan.device}:",
        *shown(plan.entries),
    ]
    holders = f"{listed(plan.current)} {'holds' if len(plan.current) == 1 else 'hold'} version {versions[-1]} already"
    if plan.current:
        lines.append(holders + (f"; {listed(plan.later)} will sync" if plan.later else ""))
    for device, why in plan.silent.items():
        lines.append(
            f"{device} could not be asked ({why}): if its disk knows more, that shows when it is back"
        )
    return lines


def shown(entries: Sequence[LogEntry]) -> list[str]:
    """Entries of the log, each with its refs."""
    lines = []
    for entry in entries:
        at = f"{entry.at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        lines.append(f"version {entry.version}, by {entry.actor} on {entry.device} ({entry.via}) at {at}:")
        lines += [describe(update) for update in entry.refs[:SHOWN]]
        if len(entry.refs) > SHOWN:
            lines.append(f"  and {len(entry.refs) - SHOWN} more")
        if not entry.refs:
            lines.append("  (its refs were too many for the journal)")
    return lines


def _holders(ahead: Sequence[Told]) -> str:
    held: dict[int, list[str]] = {}
    for told in ahead:
        held.setdefault(told.version, []).append(told.device)
    words = [
        f"{listed(held[version])} {'holds' if len(held[version]) == 1 else 'hold'} version {version}"
        for version in sorted(held, reverse=True)
    ]
    return ", ".join(words)
