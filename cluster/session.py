"""One request from its beginning to its end, whichever endpoint it came in by. A push is the function `push`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import getrandbits
from uuid import uuid4

from cluster import access
from cluster.archive import archive
from cluster.client import Client
from cluster.db import key_gone, no_repository
from cluster.errors import DatabaseUnavailable, NotFound, Refused
from cluster.faults import Step
from cluster.gate import fresh, refuse_frozen, refuse_unspeakable, writing
from cluster.measure import ReadStep
from cluster.model import ActorKind, DeviceMode, Exchange, Level, Request, Snapshot
from cluster.node import Node
from cluster.protection import forbidden
from cluster.proxy import pass_on
from cluster.receive import Hopeless, Receiving
from cluster.router import Way, way_of
from cluster.stage import Staged, staged
from cluster.upload import Settle, upload
from cluster.verify import doubt


def serve(node: Node, request: Request, client: Client) -> int:
    """Answer one request; the exit code for the client. A ClusterError is the endpoint's to show.

    While the database is away nobody can say who may what and what is newest: cluster/stale.py.
    """
    if request.moves_refs:
        node.reach(Step.AUTHORIZE)
    else:
        node.measures.step(ReadStep.AUTHORIZE)
    try:
        snapshot = authorize(node, request)
        way = route(node, request, snapshot)
    except DatabaseUnavailable as error:
        snapshot = remembered(node, request, client, error)
        return answer(node, request, snapshot, client, settling(node, client))

    def here(client: Client) -> int:
        return (push if request.moves_refs else read)(node, request, snapshot, client)

    if way.elsewhere:
        node.measures.step(ReadStep.PASS_ON)
        return pass_on(node, request, way.elsewhere, client, here if way.here else None)
    return here(client)


def read(node: Node, request: Request, snapshot: Snapshot, client: Client) -> int:
    """A clone, fetch, listing or archive, or the look around before a push over HTTP.

    A device is served what is here; everybody else what is newest."""
    if request.actor.kind is ActorKind.DEVICE:
        return answer(node, request, snapshot, client, None)
    node.measures.step(ReadStep.CATCH_UP)
    settle = settling(node, client)
    try:
        snapshot = settle(snapshot)
    except DatabaseUnavailable as error:
        snapshot = remembered(node, request, client, error)
    return answer(node, request, snapshot, client, settle)


def answer(node: Node, request: Request, snapshot: Snapshot, client: Client, settle: Settle | None) -> int:
    """A read, from this disk."""
    node.measures.step(ReadStep.SERVE)
    program = archive if request.exchange is Exchange.ARCHIVE else upload
    return program(node, request, snapshot, client, settle)


def push(node: Node, request: Request, snapshot: Snapshot, client: Client) -> int:
    """A push. The steps, and what a failure at each of them leaves behind: docs/write-protocol.md."""
    node.reach(Step.CATCH_UP)
    snapshot = fresh(node, snapshot, client.say, lambda: client.gone)
    node.reach(Step.RECEIVE)
    with receiving(node, request, snapshot, client) as git_push:
        if proposal := git_push.proposal():
            with git_push.explaining(), node.measures.told():
                node.reach(Step.PROPOSE)
                refuse_unspeakable(proposal.updates)
                # The upload may have taken long: who may do what is asked anew.
                now = authorize(node, request, snapshot)
                if refused := forbidden(node, request, now, proposal, client):
                    raise Hopeless(refused)
                refuse_frozen(node, now, git_push.say, lambda: client.gone)
                push_id = uuid4()
                with (
                    staged(
                        node, snapshot, push_id, proposal.updates, proposal.quarantine, git_push.say
                    ) as copies,
                    writing(
                        node, after(node, now, copies), request, git_push.lock, git_push.say, client
                    ) as write,
                ):
                    write.settle(git_push.say, lambda: client.gone)
                    conflicts = write.conflicts(proposal.updates)
                    git_push.refuse_hopeless(conflicts)
                    write.intend(push_id, proposal.updates, [device.name for device in copies.devices])
                    node.reach(Step.APPLY)
                    write.begins()
                    copies.keep = True
                    moved = write.really_moved(git_push.apply(conflicts, write.lock_socket, write.lock_lost))
                    if moved:
                        write.mark(write.commit(moved, git_push.say))
                    else:
                        write.withdraw()
                        copies.keep = False
                node.reach(Step.ACKNOWLEDGE)
                git_push.acknowledge()
        code = git_push.finish()
    node.reach(Step.DONE)
    return code


def after(node: Node, snapshot: Snapshot, copies: Staged) -> Snapshot:
    """The repository after staging, which takes as long as the network and the pack want; where nothing was sent
    anywhere, what was seen before is as good."""
    return node.db.snapshot_of(snapshot.repository.id) if copies.devices else snapshot


def authorize(node: Node, request: Request, begun: Snapshot | None = None) -> Snapshot:
    """May this actor do that? The repository as it is now, with what concerns the actor. Refused, or NotFound: to a
    stranger the same words, whether there is none or it is closed to them.

    begun: what the request began with, where it is asked again.
    """
    snapshot = node.db.snapshot(request.repository, request.actor)
    actor, name = request.actor, request.repository
    if not snapshot.actor_known:
        raise key_gone()
    if actor.kind is ActorKind.DEVICE and request.service.writes:
        raise Refused("a device key may not push", hint="push with a user's key")
    if actor.read_only and request.service.writes:
        raise Refused("this token may only read", hint="push with a token that was not made with --read-only")
    decision = access.decide(snapshot.grants, actor, name)
    if not decision.allows(Level.READ):
        raise no_repository(name)
    if request.service.writes and not decision.allows(Level.WRITE):
        raise Refused(
            f"you may read {name} but not push to it",
            hint=f"an administrator can: git-cluster grant write {actor.name} {name}",
        )
    if begun is not None and begun.repository.id != snapshot.repository.id:
        raise Refused(f"{name} is another repository than when this push began", hint="push again")
    return snapshot


def route(node: Node, request: Request, snapshot: Snapshot) -> Way:
    """Whether this device answers, or which others are asked to. Refused, or NotFound where nobody can."""
    mine, name = snapshot.of(node.name), request.repository
    device = mine.device if mine else node.db.device(node.name)
    if device.mode is DeviceMode.DISABLED:
        raise Refused(
            f"device {node.name} is disabled", hint="use another device; an administrator can enable it"
        )
    way = way_of(snapshot, request, device.name, device.zone, node.proxy, seed=getrandbits(32))
    if not way.here and not way.elsewhere:
        urls = " or ".join(f"{r.device.ssh_url}/{name}" for r in snapshot.replicas if r.device.online)
        raise NotFound(
            f"{name} is not kept on device {node.name}",
            hint=f"use {urls}" if urls else "none of its devices is online",
        )
    return way


def settling(node: Node, client: Client) -> Settle:
    """From a look at the repository to one whose newest version is on this disk; the client hears what that takes."""
    return lambda snapshot: fresh(node, snapshot, client.say, lambda: client.gone)


def remembered(node: Node, request: Request, client: Client, away: DatabaseUnavailable) -> Snapshot:
    """What this device knows of the repository while the database is `away`, which is raised where that is nothing."""
    found = None
    if (
        node.memory and not request.through
    ):  # a device passes on what others can answer: let it ask another one
        found = node.memory.settle(request, node.store, client.say)
    if found is None:
        raise away
    return found


@contextmanager
def receiving(node: Node, request: Request, snapshot: Snapshot, client: Client) -> Iterator[Receiving]:
    """receive-pack on this device's replica, with the replica's write lock (not taken yet) among its open files."""
    lock = node.store.write_lock(snapshot.repository.id)
    limited = request.actor.kind is not ActorKind.OPERATOR  # who imports brings what there is
    try:
        with (
            node.store.adding_objects(snapshot.repository.id) as objects,
            Receiving(
                node.store.path(snapshot.repository.id),
                node.store.run_directory(),
                client,
                lock,
                objects=objects,
                protocol=request.protocol,
                environment={
                    "GIT_CLUSTER_ACTOR": request.actor.name,
                    "GIT_CLUSTER_REPOSITORY": snapshot.repository.name,
                    "GIT_CLUSTER_DEVICE": node.name,
                    "GIT_CLUSTER_VIA": request.via,
                    "GIT_CLUSTER_ADDRESS": request.address,
                },
                most_bytes=node.limits.push_size if limited else None,
                most_refs=node.limits.push_refs if limited else None,
                stateless=request.exchange is Exchange.STATELESS,
            ) as git_push,
        ):
            yield git_push
        if error := doubt(node, snapshot, git_push.complaint):
            raise error
    finally:
        lock.close()
