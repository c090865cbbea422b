"""Where copies are put, and which may be taken away. Pure: what is known of the devices in, names out.

`choose`, for each copy that is still to be placed; `surplus`, for each that is one too many. The first row in which two
devices differ decides:

    choose                                                  surplus
    ─────────────────────────────────────────────────────   ──────────────────────────────────────────────────────────
    only enabled devices that are not chosen yet            never a fixed one, nor one without which nobody leads
    online before offline                                   draining, disabled or offline before the others
    a zone without a copy before one that has one           a zone with another copy before one without
    the least load                                          the most load
    the first by name                                       the last by name

A zone is what fails together; a device that names none is a zone of its own. Load: the replicas that a device holds.

The invariant of every removal (`refuse_removal`): another device is left that is up and holds the newest version, and
no write is between its intent and its commit, so that the copies which it counted on are there when it commits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster import names
from cluster.errors import NotFound, Refused, StillNeeded, UsageError
from cluster.model import Device, DeviceMode, PlacementRule, Replica, Snapshot


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device as placement sees it. load: replicas that it holds. leads: it holds the newest version, trusted."""

    name: str
    zone: str = ""
    load: int = 0
    online: bool = True
    mode: DeviceMode = DeviceMode.ENABLED
    leads: bool = False

    @property
    def place(self) -> tuple[str, str]:
        """Equal for devices that fail together."""
        return (self.zone, "") if self.zone else ("", self.name)

    @property
    def up(self) -> bool:
        """Whether others can fetch from it now."""
        return self.online and self.mode is not DeviceMode.DISABLED


def candidates(
    devices: Iterable[Device], loads: Mapping[str, int], leaders: Collection[str] = ()
) -> list[Candidate]:
    """Devices with their loads. leaders: the names of those that hold the newest version of the repository."""
    return [
        Candidate(d.name, d.zone, loads.get(d.name, 0), d.online, d.mode, d.name in leaders) for d in devices
    ]


def choose(candidates: Sequence[Candidate], copies: int, keep: Collection[str] = ()) -> list[str]:
    """`keep` and the best devices for the rest of `copies`, in the order of choice; fewer where there are no more.

    keep: names among `candidates` that are chosen already, whatever their mode.
    """
    chosen = list(dict.fromkeys(keep))
    used = {candidate.place for candidate in candidates if candidate.name in chosen}
    free = [c for c in candidates if c.mode is DeviceMode.ENABLED and c.name not in chosen]
    while free and len(chosen) < copies:
        best = min(free, key=lambda c: (not c.online, c.place in used, c.load, c.name))
        free.remove(best)
        chosen.append(best.name)
        used.add(best.place)
    return chosen


def surplus(holders: Sequence[Candidate], copies: int, keep: Collection[str] = ()) -> list[str]:
    """Which holders to take away so that `copies` are left; fewer where the rest has to stay. keep: who stays."""
    left = list(holders)
    gone: list[str] = []

    def may_go(candidate: Candidate) -> bool:
        return candidate.name not in keep and any(c.leads and c.up for c in left if c is not candidate)

    def worth(candidate: Candidate) -> tuple[bool, bool, int, str]:
        fit = candidate.mode is DeviceMode.ENABLED and candidate.online
        doubled = any(c.place == candidate.place for c in left if c is not candidate)
        return not fit, doubled, candidate.load, candidate.name

    while len(left) > copies and (free := [c for c in left if may_go(c)]):
        worst = max(free, key=worth)
        left.remove(worst)
        gone.append(worst.name)
    return gone


# --------------------------------------------------------------------------------------------- changing a placement


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of a repository's placement, by names of devices. after: all that hold it then, sorted."""

    add: tuple[str, ...]
    remove: tuple[str, ...]
    after: tuple[str, ...]


def change(
    snapshot: Snapshot,
    devices: Sequence[Device],
    loads: Mapping[str, int],
    *,
    add: Sequence[str] = (),
    remove: Sequence[str] = (),
    copies: int | None = None,
) -> Change:
    """What `add`, `remove` and `copies` come to: the named ones are fixed, the rest is chosen.

    Refused, NotFound, UsageError: what can be known to be wrong before anything is changed. Not whether a removal has
    to wait: that is decided when it comes (`refuse_removal`).
    """
    subject = snapshot.repository.name
    holders = [replica.device.name for replica in snapshot.replicas]
    for name in remove:
        if name not in holders:
            raise NotFound(
                f"device {name} does not hold {subject}", hint=f"`git-cluster repo show {subject}` lists them"
            )
        if name in add:
            raise UsageError(
                f"device {name} cannot be both added and removed", hint="Name it in one of the two."
            )
    refuse_unfit(devices, [name for name in add if name not in holders])
    before = dict.fromkeys([*holders, *add])
    wanted = [name for name in before if name not in remove]
    known = candidates(devices, loads, [replica.device.name for replica in snapshot.leaders])
    if copies is not None and len(wanted) < copies:
        wanted = choose([c for c in known if c.name not in remove], copies, wanted)
        if len(wanted) < copies:
            raise too_few(copies, len(wanted))
    elif copies is not None:
        gone = surplus([c for c in known if c.name in wanted], copies, add)
        wanted = [name for name in wanted if name not in gone]
        if len(wanted) > copies:
            raise Refused(
                f"{subject} cannot go down to {copies} cop{'y' if copies == 1 else 'ies'} now: of "
                f"{', '.join(sorted(wanted))} each is fixed, or needed for the newest version",
                hint=f"see `git-cluster status {subject}`; try again when its copies are current",
            )
    if len(wanted) < len(holders):
        check_copies(subject, snapshot.repository.min_copies, len(wanted))
    return Change(
        add=tuple(name for name in wanted if name not in holders),
        remove=tuple(name for name in holders if name not in wanted),
        after=tuple(sorted(wanted)),
    )


def refuse_unfit(devices: Iterable[Device], wanted: Iterable[str]) -> None:
    """Raise where one of the devices that are to hold something new is not there, or takes nothing new."""
    known = {device.name: device for device in devices}
    for name in wanted:
        if name not in known:
            raise NotFound(f"there is no device {name}", hint="`git-cluster device list` shows them")
        if known[name].mode is not DeviceMode.ENABLED:
            raise Refused(
                f"device {name} is {known[name].mode.value} and takes no new repositories",
                hint=f"`git-cluster device enable {name}`, or choose another",
            )


def too_few(copies: int, found: int) -> Refused:
    """There are not enough enabled devices for so many copies."""
    return Refused(
        f"{copies} cop{'y is' if copies == 1 else 'ies are'} asked for, and only {found} "
        f"device{'' if found == 1 else 's'} could hold {'it' if found == 1 else 'them'}",
        hint="ask for fewer, or add or enable a device; `git-cluster device list` shows them",
    )


def check_copies(subject: str, min_copies: int, devices: int) -> None:
    """Raise where a repository would have fewer devices than each push has to be held by."""
    if not devices:
        raise Refused(
            f"{subject} would be on no device any more",
            hint=f"add another one, too: `git-cluster repo place {subject} --add D --remove … --wait`; "
            f"or `git-cluster repo delete {subject}`",
        )
    if min_copies > devices:
        raise Refused(
            f"{subject} asks for {min_copies} copies of each push, which is more than its "
            f"{devices} device{'' if devices == 1 else 's'}",
            hint=f"more devices: `git-cluster repo place {subject} --copies {min_copies}`; or "
            f"fewer copies: `git-cluster repo set {subject} --min-copies {devices}`",
        )


def refuse_removal(snapshot: Snapshot, device: str) -> None:
    """Raise where a device's replica cannot be removed, or (StillNeeded) cannot be removed yet.

    | it holds it | an intent anywhere | its disk knows more | another up leads | min_copies left | then     |
    |-------------|--------------------|---------------------|------------------|-----------------|----------|
    | no          |                    |                     |                  |                 | NotFound |
    | yes         | yes                |                     |                  |                 | not yet  |
    | yes         | no                 | yes                 |                  |                 | Refused  |
    | yes         | no                 | no                  | no               |                 | not yet  |
    | yes         | no                 | no                  | yes              | no              | Refused  |
    | yes         | no                 | no                  | yes              | yes             | it may   |

    A replica that holds nothing yet may go where others lead, up or not: nothing goes with it.
    """
    subject, mine = snapshot.repository, snapshot.of(device)
    if mine is None:
        raise NotFound(
            f"device {device} does not hold {subject.name}",
            hint=f"`git-cluster repo show {subject.name}` lists them",
        )
    what = f"{subject.name} cannot be removed from device {device}"
    if (owner := snapshot.intent_owner) and owner.intent:
        raise StillNeeded(
            f"{what}: a push by {owner.intent.actor} on {owner.device.name} is not committed yet",
            hint=f"try again in a moment; `git-cluster status {subject.name}` shows it",
        )
    if mine.knows_more:
        raise Refused(
            f"{what}: its disk knows versions that the database does not",
            hint=f"see `git-cluster thaw {subject.name} --dry-run`",
        )
    leaders = [replica for replica in snapshot.leaders if replica.device.name != device]
    if not any(_up(leader) for leader in leaders) and not (leaders and mine.position is None):
        raise StillNeeded(f"{what}: {_alone(snapshot, device)}", hint=_until(snapshot, device))
    check_copies(subject.name, subject.min_copies, len(snapshot.replicas) - 1)


def _up(replica: Replica) -> bool:
    return replica.device.online and replica.device.mode is not DeviceMode.DISABLED


def _alone(snapshot: Snapshot, device: str) -> str:
    others = [replica.device for replica in snapshot.leaders if replica.device.name != device]
    if others:
        named = ", ".join(f"{other.name} ({other.state})" for other in others)
        return f"the only other devices that hold its newest version are away: {named}"
    if snapshot.of(device) in snapshot.leaders:
        return f"it is the last that holds its newest version, {snapshot.repository.version}"
    return f"no other device holds its newest version, {snapshot.repository.version}"


def _until(snapshot: Snapshot, device: str) -> str:
    name = snapshot.repository.name
    others = [replica.device.name for replica in snapshot.replicas if replica.device.name != device]
    if not others:
        return f"add another device first: `git-cluster repo place {name} --add D --remove {device} --wait`"
    return (
        f"wait until {' or '.join(others)} is current, or let the command do that: "
        f"`git-cluster repo place {name} --remove {device} --wait`"
    )


# ----------------------------------------------------------------------------------------------- new repositories


def rule_for(rules: Iterable[PlacementRule], name: str) -> PlacementRule | None:
    """The rule that decides where the new repository `name` is placed: the most specific one that matches."""
    matching = [rule for rule in rules if names.matches(rule.pattern, name)]
    return max(matching, key=lambda rule: (names.specificity(rule.pattern), rule.pattern), default=None)


@dataclass(frozen=True, slots=True)
class Where:
    """Where a new repository goes. by: the pattern of the rule that said so, or "". asked: the copies it asked for."""

    devices: tuple[Device, ...]
    min_copies: int
    by: str = ""
    asked: int = 0


def where(
    name: str,
    devices: Sequence[Device],
    loads: Mapping[str, int],
    rules: Iterable[PlacementRule],
    *,
    wanted: Sequence[str] = (),
    copies: int | None = None,
    min_copies: int | None = None,
) -> Where:
    """Where the new repository `name` goes. Refused, NotFound.

    | wanted | copies | a rule matches | then                                                                     |
    |--------|--------|----------------|--------------------------------------------------------------------------|
    | yes    | no     |                | exactly there                                                            |
    | yes    | yes    |                | there, and the rest is chosen                                            |
    | no     | yes    |                | that many are chosen                                                     |
    | no     | no     | yes            | as many as the rule says, or as there are enabled devices; its min_copies|
    | no     | no     | no             | on every enabled device                                                  |
    """
    refuse_unfit(devices, wanted)
    enabled = [device for device in devices if device.mode is DeviceMode.ENABLED]
    if not enabled:
        raise Refused(
            "no device could hold it: there is none, or none is enabled",
            hint="add one with `git-cluster device add`; `git-cluster device list` shows them",
        )
    fixed = list(dict.fromkeys(wanted))
    rule = rule_for(rules, name) if not fixed and copies is None else None
    if copies is not None:
        if copies < len(fixed):
            raise UsageError(
                f"{len(fixed)} devices are named, and only {copies} cop{'y' if copies == 1 else 'ies'} asked for",
                hint="Name fewer devices, or ask for more copies.",
            )
        chosen = choose(candidates(devices, loads), copies, fixed)
        if len(chosen) < copies:
            raise too_few(copies, len(chosen))
    elif rule is not None:
        chosen = choose(candidates(devices, loads), rule.copies)
    else:
        chosen = fixed or [device.name for device in enabled]
    least = min_copies if min_copies is not None else rule.min_copies if rule is not None else None
    if least is None:
        least = min(2, len(chosen))
    elif least > len(chosen):
        raise Refused(
            f"min_copies {least} is more than its {len(chosen)} device{'' if len(chosen) == 1 else 's'}"
            + (f", which the placement rule for {rule.pattern} gives it" if rule else ""),
            hint=f"place it on more: `--copies {least}`; or ask for fewer: `--min-copies {len(chosen)}`",
        )
    known = {device.name: device for device in devices}
    return Where(
        tuple(known[found] for found in chosen),
        least,
        by=rule.pattern if rule else "",
        asked=rule.copies if rule else len(chosen),
    )
