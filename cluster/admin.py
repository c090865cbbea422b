"""What an operator's command line asks a device to do: `git-cluster-operator VERB '{…}'`, answered in JSON lines.

{"say": "…"}                      progress, any number
{"result": {…}}                   done
{"error": "…", "hint": "…", "kind": "…"}       not done; kind: one of cluster/errors.py
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

from cluster import git
from cluster.client import Client
from cluster.errors import ClusterError, NotFound, Refused, ReplicaUnfit, UsageError
from cluster.gate import refuse_frozen_by_hand
from cluster.heal import alive, describe, resolve, still
from cluster.history import mark, other_history, tell
from cluster.model import HEAD, EventKind, RefUpdate, Repository, Snapshot
from cluster.names import ref_name, repository_name, user_name
from cluster.node import Node
from cluster.ssh_command import OperatorCommand
from cluster.sync import Say, catch_up
from cluster.verify import verify
from cluster.versions import checksum_of, difference, refuse_other_version, updated

OPERATOR = "operator"
"""In the push log: an administrator's command line."""

_log = logging.getLogger(__name__)


def answer(node: Node, command: OperatorCommand, client: Client) -> int:
    """Carry out one command and write its answer. Errors are answers too; the exit code says which it was."""

    def write(document: dict[str, Any]) -> None:
        client.write(json.dumps(document).encode() + b"\n")

    try:
        result = carry_out(node, command.verb, command.arguments, lambda line: write({"say": line}))
    except ClusterError as error:
        _log.warning("operator's %s: %s", command.verb, error.what, exc_info=error.__cause__)
        write({"error": error.what, "hint": error.hint, "kind": type(error).__name__})
        return error.exit_code
    write({"result": result})
    return 0


Arguments = Mapping[str, object]


def carry_out(node: Node, verb: str, arguments: Arguments, say: Say) -> dict[str, Any]:
    """One command's result. ClusterError."""
    does = _VERBS.get(verb)
    if does is None:
        raise UsageError(f"this device knows no command {verb}", hint="is it an older git-cluster?")
    snapshot = node.db.snapshot(repository_name(str(arguments.get("repository", ""))))
    if snapshot.of(node.name) is None:
        raise NotFound(f"device {node.name} does not hold {snapshot.repository.name}")
    return does(node, snapshot, arguments, say)


def _by(arguments: Arguments) -> str:
    """For whom an operator asks, for the push log: a user's name, or an operator on their own account."""
    return user_name(str(arguments.get("by") or OPERATOR))


def _sync(node: Node, snapshot: Snapshot, arguments: Arguments, say: Say) -> dict[str, Any]:
    catch_up(node, snapshot.repository.id, say)
    return _position(node, snapshot)


def _verify(node: Node, snapshot: Snapshot, arguments: Arguments, say: Say) -> dict[str, Any]:
    verdict = verify(node, snapshot.repository.id, say)
    answer = _position(node, snapshot) | {"verified": verdict.fault is None}
    if verdict.fault is not None:
        answer["fault"] = verdict.fault
    if verdict.notes:
        answer["notes"] = list(verdict.notes)
    return answer


def _alive(node: Node, snapshot: Snapshot, arguments: Arguments, say: Say) -> dict[str, Any]:
    return {"alive": alive(node, snapshot.repository.id)}


def _resolve(node: Node, snapshot: Snapshot, arguments: Arguments, say: Say) -> dict[str, Any]:
    dry_run = bool(arguments.get("dry_run"))
    return {"lines": resolve(node, snapshot.repository.id, by=EventKind.THAW, dry_run=dry_run)}


def _history(node: Node, snapshot: Snapshot, arguments: Arguments, say: Say) -> dict[str, Any]:
    return tell(node, snapshot)


def _promote(node: Node, snapshot: Snapshot, arguments: Arguments, say: Say) -> dict[str, Any]:
    """Commit what this disk holds as the next version. The command line has asked for consent to every loss."""
    repository, dry_run = snapshot.repository, bool(arguments.get("dry_run"))
    if repository.version != arguments.get("base"):
        raise Refused(f"{repository.name} changed meanwhile", hint="look again with --dry-run")
    with still(node, repository.id, "thaw") as connection:
        snapshot = node.db.snapshot_of(repository.id)
        mine = snapshot.of(node.name)
        assert mine is not None
        if snapshot.repository.version != arguments.get("base"):
            raise Refused(f"{repository.name} changed meanwhile", hint="look again with --dry-run")
        refs = _readable_refs(node, repository)
        values = {value for ref, value in refs.items() if ref != HEAD}
        if not node.store.connected(repository.id, values, []):
            raise Refused(
                f"device {node.name}'s copy is not whole: its refs reach objects that are not there",
                hint="promote another device",
            )
        zero = git.ZERO[repository.object_format]
        changes = difference(node.db.refs_at(repository.id, repository.version), refs, zero)
        lines = [f"the next version changes {len(changes)} ref{'' if len(changes) == 1 else 's'}:"]
        lines = (
            [*lines, *(describe(change) for change in changes)]
            if changes
            else ["its refs are those of the log"]
        )
        if dry_run:
            return {"lines": lines}
        owner = snapshot.intent_owner
        position = snapshot.repository.position
        # Where the database is an older one, the other disks are likely to be ahead of it as well.
        ahead = other_history(node, snapshot) is not None
        with connection.transaction():
            for replica in snapshot.replicas:
                if replica is owner or ((ahead or replica.knows_more) and replica is not mine):
                    node.db.demote(
                        repository.id,
                        replica.device.name,
                        "demoted by an administrator",
                        replica.intent,
                        connection=connection,
                    )
            if changes:
                position = node.db.commit_decree(
                    repository.id,
                    position,
                    checksum_of(refs),
                    uuid4(),
                    changes,
                    actor=owner.intent.actor if owner and owner.intent and owner is mine else _by(arguments),
                    device=node.name,
                    via="thaw",
                    connection=connection,
                )
            node.db.claim(repository.id, node.name, position, connection=connection)
        if snapshot.repository.frozen is not None:
            node.db.freeze(repository.id, None, by=str(arguments.get("by") or ""))
        node.store.remember(repository.id, position.checksum)
        mark(node, repository, position)
        return {"lines": lines, "version": position.version}


def _readable_refs(node: Node, repository: Repository) -> dict[str, str]:
    try:
        return node.store.refs(repository.id)
    except ReplicaUnfit as error:
        raise Refused(
            f"device {node.name}'s copy cannot be read, so it cannot be the truth",
            hint=f"put its disk back, or promote another device: `git-cluster status {repository.name}` shows them",
        ) from error


def _set_head(node: Node, snapshot: Snapshot, arguments: Arguments, say: Say) -> dict[str, Any]:
    """Make another branch the default one: a version like any other, so it travels."""
    repository = snapshot.repository
    branch = ref_name(str(arguments.get("branch", "")))
    catch_up(node, repository.id, say)
    by, base = _by(arguments), arguments.get("base")
    with node.write_lock(repository.id, actor=by, timeout=node.writes.lock_timeout) as held:
        snapshot = catch_up(node, repository.id, say)
        refuse_frozen_by_hand(snapshot)
        refuse_other_version(repository.name, snapshot.repository.version, base)
        refs = node.store.values(repository.id, [HEAD, branch])
        if branch not in refs and snapshot.repository.version > 0:
            raise NotFound(
                f"{repository.name} has no branch {branch.removeprefix('refs/heads/')}", hint="push it first"
            )
        change = RefUpdate(HEAD, refs[HEAD], f"ref: {branch}")
        if change.old != change.new:
            base = snapshot.repository.position
            node.db.commit_decree(
                repository.id,
                base,
                updated(base.checksum, [change]),
                uuid4(),
                [change],
                actor=by,
                device=node.name,
                via="set",
                connection=held.connection,
            )
    catch_up(node, repository.id, say)
    return _position(node, snapshot)


def _position(node: Node, snapshot: Snapshot) -> dict[str, Any]:
    mine = node.db.snapshot_of(snapshot.repository.id).of(node.name)
    assert mine is not None
    return {
        "version": mine.version,
        "checksum": str(mine.position.checksum) if mine.position else None,
    }


_VERBS: dict[str, Callable[[Node, Snapshot, Arguments, Say], dict[str, Any]]] = {
    "sync": _sync,
    "verify": _verify,
    "alive": _alive,
    "resolve": _resolve,
    "history": _history,
    "promote": _promote,
    "set-head": _set_head,
}
