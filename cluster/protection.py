"""The rules on refs, held against a push: which of its refs may not be moved, and why.

Asked at "propose": what the push brings is in its quarantine, and nothing has moved, been sent on or locked.
"""

from __future__ import annotations

from cluster import git, ref_rules
from cluster.client import Client
from cluster.errors import ClientGone, DiskFailed, GitFailed
from cluster.model import RefAction, RefUpdate, Request, Snapshot
from cluster.node import Node
from cluster.receive import Proposal

OTHERS = "another ref of this push is refused"


def forbidden(
    node: Node, request: Request, snapshot: Snapshot, proposal: Proposal, client: Client
) -> dict[str, str]:
    """Why each ref of a push does not move, where a rule refuses one of them; empty: the rules allow it all.

    snapshot: with the rules that concern the actor. Git is asked only where a rule makes a difference between a push
    and a force, once for each such ref. ClientGone where nobody waits for the answer any more.
    """
    rules = ref_rules.concerning(snapshot.rules, request.actor, snapshot.repository.name)
    if not rules:
        return {}
    refused: dict[str, str] = {}
    for update in proposal.updates:
        decision = ref_rules.decide(rules, request.actor, snapshot.repository.name, update.ref)
        if decision.may == ref_rules.ALL:
            continue
        action = ref_rules.action_of(update)
        moves = decision.may & {RefAction.PUSH, RefAction.FORCE}
        if action is None and len(moves) == 1:
            if client.gone:
                raise ClientGone("the client hung up")
            forward = _forward(node, snapshot, proposal, update)
            action = RefAction.PUSH if forward else RefAction.FORCE
        if action not in decision.may and not (action is None and moves):
            refused[update.ref] = decision.refusal(action)
    others = dict.fromkeys((update.ref for update in proposal.updates), OTHERS) if refused else {}
    return others | refused


def _forward(node: Node, snapshot: Snapshot, proposal: Proposal, update: RefUpdate) -> bool:
    """Whether a ref's new value is a descendant of its old one. Not, where one of them is no commit."""
    path = node.store.path(snapshot.repository.id)
    env = {}
    if proposal.quarantine is not None:
        env = {
            "GIT_OBJECT_DIRECTORY": str(proposal.quarantine),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(path / "objects"),
        }
    try:
        git.run(["merge-base", "--is-ancestor", update.old, update.new], git_dir=path, env=env)
    except DiskFailed:
        raise
    except GitFailed:
        return False
    return True
