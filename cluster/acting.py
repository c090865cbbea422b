"""What somebody who may administer a repository does to it by way of this device: sync, verify, freeze, thaw, set.

The same as the commands of the same names, for the API and for the status page:

    outcome = acting.thaw(node, actor, "team/app", dry_run=True, expected=7)
    outcome.lines     what a person reads, in order
    outcome.result    the same for programs: what `--json` of the command prints

Each of them first looks whether `actor` may: admin on the repository, with what proved them still counting, and not by
a token that may only read. Refused otherwise; NotFound, in the same words as for one that is not there, where they may
not even read it. What is done stands in the log under their name: as the actor of a version, in the words of an event.

Every call waits for as long as it takes (a sync may fetch gigabytes, a verification reads every object), so it wants a
thread of its own: `await site.act(lambda: …)`. A caller who goes away does not stop it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from cluster import access, admin, names, operator
from cluster import thaw as thawing
from cluster.db import Database, key_gone, no_repository
from cluster.errors import NoSource, NotFound, PeerFailed, Refused, UsageError
from cluster.logs import fields
from cluster.model import Actor, Device, EventKind, Level, Snapshot, WhenShort
from cluster.node import Node
from cluster.operator import Ask
from cluster.placement import check_copies
from cluster.versions import refuse_other_version

Say = Callable[[str], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done. lines: for a person. result: for programs, fit for JSON. ok: whether all of it was."""

    lines: tuple[str, ...]
    result: Any
    ok: bool = True


# ------------------------------------------------------------------------------------------------ who may


def may(db: Database, actor: Actor, name: str, level: Level = Level.ADMIN) -> Snapshot:
    """The repository, for somebody who may do `level` to it. NotFound: it is not there, or they may not read it;
    Refused: they may not do that, or what proved them does so no more. UsageError: that is no name."""
    name = names.repository_name(name)
    snapshot = db.snapshot(name, actor)
    if not snapshot.actor_known:
        raise key_gone()
    decision = access.decide(snapshot.grants, actor, name)
    if not decision.allows(Level.READ):
        raise no_repository(name)
    if level is not Level.READ:
        refuse_read_only(actor)
    if not decision.allows(level):
        raise Refused(
            f"you may {decision.level} {name} but not {level} it",
            hint=f"an administrator can let you: git-cluster grant {level} {actor.name} {name}",
        )
    return snapshot


def refuse_read_only(actor: Actor) -> None:
    if actor.read_only:
        raise Refused("this token may only read", hint="use a token that was not made with --read-only")


# ------------------------------------------------------------------------------------------------ what they do


def sync(node: Node, actor: Actor, name: str, devices: Sequence[str] = (), say: Say | None = None) -> Outcome:
    """Bring its replicas (those on `devices`, or all) to the newest version now. A row for each: `operator.on_each`."""
    return _on_replicas(node, actor, name, "sync", devices, say)


def verify(
    node: Node, actor: Actor, name: str, devices: Sequence[str] = (), say: Say | None = None
) -> Outcome:
    """Hold its replicas against the database now; a bad copy is rebuilt from another device."""
    return _on_replicas(node, actor, name, "verify", devices, say)


def freeze(node: Node, actor: Actor, name: str, reason: str, *, expected: int | None = None) -> Outcome:
    """Take no more writes, until a thaw. Reads go on. Again with the same reason: nothing changes."""
    reason = names.reason(reason)
    subject = may(node.db, actor, name).repository
    refuse_other_version(subject.name, subject.version, expected)
    lines = [f"{subject.name} is frozen: {reason}"]
    if subject.frozen and subject.frozen != reason:
        lines.append(f"it was frozen already: {subject.frozen}")
    node.db.freeze(subject.id, reason, device=node.name, by=actor.name)
    _note("freeze", actor, subject.name, reason)
    return Outcome(tuple(lines), {"repository": subject.name, "frozen": reason, "before": subject.frozen})


def thaw(
    node: Node,
    actor: Actor,
    name: str,
    *,
    demote: str | None = None,
    promote: str | None = None,
    dry_run: bool = False,
    accept_loss: bool = False,
    expected: int | None = None,
    say: Say | None = None,
) -> Outcome:
    """Resolve an interrupted write, end a freeze, or put back versions that the database lost.

    dry_run: only say what would be done, and what would be lost; nothing changes. expected: the version at which the
    dry run was looked at; WriteConflict where there is another by now. thaw.LossRefused: acknowledged versions would be
    lost, which its `report` lists, and accept_loss was not said.
    """
    if demote and promote:
        raise UsageError("demote and promote exclude each other", hint="Try one as a dry run first.")
    snapshot = may(node.db, actor, name)
    with _asking(node, say) as ask:
        report = thawing.thaw(
            node.db,
            snapshot.repository.name,
            demote=names.device_name(demote) if demote else None,
            promote=names.device_name(promote) if promote else None,
            dry_run=dry_run,
            accept_loss=accept_loss,
            ask=ask,
            say=say or _silent,
            by=actor.name,
            expected=expected,
        )
    if not dry_run:
        if demote or promote or snapshot.intent_owner:
            deed = f"demoted {demote}" if demote else f"promoted {promote}" if promote else "thawed it"
            node.db.record(snapshot.repository.id, EventKind.THAW, node.name, f"{actor.name} {deed}")
        _note("thaw", actor, snapshot.repository.name, "; ".join(report.lines[:3]))
    return Outcome(tuple(report.lines), report.as_json())


def set_repository(
    node: Node,
    actor: Actor,
    name: str,
    *,
    min_copies: int | None = None,
    when_short: WhenShort | None = None,
    branch: str | None = None,
    expected: int | None = None,
    say: Say | None = None,
) -> Outcome:
    """Change how a repository is held, and (branch: a full ref) its default branch, which is a version like any other.

    expected: the version at which they looked. Refused, NotFound, WriteConflict: then nothing was changed, but where
    only the branch was refused, by the device that was asked to change it.
    """
    if min_copies is None and when_short is None and branch is None:
        raise UsageError("there is nothing to change", hint="Give min_copies, when_short or default_branch.")
    snapshot = may(node.db, actor, name)
    subject = snapshot.repository
    refuse_other_version(subject.name, subject.version, expected)
    if min_copies is not None:
        check_copies(subject.name, min_copies, len(snapshot.replicas))
    lines, version = [], subject.version
    if min_copies is not None or when_short is not None:
        node.db.set_repository(subject.name, min_copies=min_copies, when_short=when_short, expected=expected)
        if min_copies is not None:
            lines.append(f"a push needs {min_copies} cop{'y' if min_copies == 1 else 'ies'}")
        if when_short is not None:
            lines.append(f"when short: {when_short}")
    if branch is not None:
        with _asking(node, say) as ask:
            version = set_head(snapshot, branch, ask, base=expected, by=actor.name) or version
        lines.append(f"default branch {branch.removeprefix('refs/heads/')}, version {version}")
    _note("set", actor, subject.name, "; ".join(lines))
    return Outcome(tuple(lines), {"repository": subject.name, "version": version})


def set_head(
    snapshot: Snapshot, branch: str, ask: Ask, *, base: int | None = None, by: str = ""
) -> int | None:
    """Ask a device to make `branch` the default one: leaders first, then whoever can sync. The version that did it."""
    devices = [replica.device for replica in snapshot.leaders]
    devices += [replica.device for replica in snapshot.replicas if replica.device not in devices]
    failure: PeerFailed | None = None
    name = snapshot.repository.name
    for device in devices:
        if not device.online:
            continue
        try:
            answer = ask(device, "set-head", {"repository": name, "branch": branch, "base": base, "by": by})
        except PeerFailed as error:
            failure = error
        else:
            version: int | None = answer.get("version")
            return version
    raise failure or NoSource(
        f"no device that holds {name} is online",
        hint="`git-cluster status` shows the devices; try again when one is back",
    )


# ------------------------------------------------------------------------------------------------ by whom it is done


def _on_replicas(
    node: Node, actor: Actor, name: str, verb: str, devices: Sequence[str], say: Say | None
) -> Outcome:
    snapshot = may(node.db, actor, name)
    name = snapshot.repository.name
    wanted = list(dict.fromkeys(map(names.device_name, devices)))
    targets = [(snapshot, r.device) for r in snapshot.replicas if not wanted or r.device.name in wanted]
    for device in wanted:
        if snapshot.of(device) is None:
            raise NotFound(
                f"{name} has no replica on device {device}", hint="`git-cluster status` shows where it is"
            )
    _note(verb, actor, name, " ".join(wanted))
    with _asking(node, say) as ask:
        rows = list(operator.on_each(ask, verb, targets))
    lines = [f"{row['device']}: {operator.words(row)}" for row in rows]
    return Outcome(tuple(lines), rows, ok=all(row["ok"] for row in rows))


@contextmanager
def _asking(node: Node, say: Say | None) -> Iterator[Ask]:
    """A way to every device while inside: this one is not asked by way of the network. The operator's key is made when
    the first of the others is asked."""
    said = say or _silent
    with ExitStack() as stack:
        peers: list[operator.Operator] = []

        def ask(device: Device, verb: str, arguments: Mapping[str, object]) -> dict[str, Any]:
            if device.name == node.name:
                return admin.carry_out(node, verb, arguments, said)
            if not peers:
                peers.append(stack.enter_context(operator.operator(node.db)))
            return peers[0].ask(device, verb, arguments, said)

        yield ask


def _silent(line: str) -> None:
    _log.debug("%s", line)


def _note(what: str, actor: Actor, name: str, said: str) -> None:
    _log.info("%s", what, extra=fields(repository=name, actor=actor.name, said=said[:300] or None))
