"""One request from its beginning to its end, whichever endpoint it came in by. A push is the function `push`."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from uuid import uuid4

from cluster import access, git
from cluster.client import Client
from cluster.db import no_repository
from cluster.errors import ClientGone, GitFailed, NotFound, Refused
from cluster.faults import Step
from cluster.gate import fresh, refuse_frozen, refuse_unspeakable, writing
from cluster.model import ActorKind, DeviceMode, Level, Request, Snapshot
from cluster.node import Node
from cluster.receive import Receiving
from cluster.stage import staged

CHUNK = 65536


def serve(node: Node, request: Request, client: Client) -> int:
    """Answer one request; the exit code for the client. A ClusterError is the endpoint's to show."""
    return push(node, request, client) if request.service.writes else read(node, request, client)


def read(node: Node, request: Request, client: Client) -> int:
    """A clone, fetch, listing or archive. A device is served what is here; everybody else what is newest."""
    snapshot = authorize(node, request)
    if request.actor.kind is not ActorKind.DEVICE:
        fresh(node, snapshot, client.say, lambda: client.gone)
    return _run_git(node, request, snapshot, client)


def push(node: Node, request: Request, client: Client) -> int:
    """A push. The steps, and what a failure at each of them leaves behind: docs/write-protocol.md."""
    node.reach(Step.AUTHORIZE)
    snapshot = authorize(node, request)
    node.reach(Step.CATCH_UP)
    snapshot = fresh(node, snapshot, client.say, lambda: client.gone)
    repository = snapshot.repository
    node.reach(Step.RECEIVE)
    with receiving(node, request, snapshot, client) as git_push:
        if proposal := git_push.proposal():
            with git_push.explaining():
                node.reach(Step.PROPOSE)
                refuse_unspeakable(proposal.updates)
                refuse_frozen(node, repository.id, git_push.say, lambda: client.gone)
                push_id = uuid4()
                with (
                    staged(
                        node, snapshot, push_id, proposal.updates, proposal.quarantine, git_push.say
                    ) as copies,
                    writing(node, repository, request, git_push.lock, git_push.say, client) as write,
                ):
                    write.settle(git_push.say, lambda: client.gone)
                    conflicts = write.conflicts(proposal.updates)
                    git_push.refuse_hopeless(conflicts)
                    write.intend(push_id, proposal.updates)
                    node.reach(Step.APPLY)
                    write.begins()
                    copies.keep = True
                    moved = write.really_moved(git_push.apply(conflicts))
                    if moved:
                        position = write.commit(moved, git_push.say)
                        write.mark(position)
                    else:
                        write.withdraw()
                        copies.keep = False
                node.reach(Step.ACKNOWLEDGE)
                git_push.acknowledge()
        code = git_push.finish()
    node.reach(Step.DONE)
    return code


def authorize(node: Node, request: Request) -> Snapshot:
    """May this actor do that? The repository as it is now. Refused, or NotFound: to a stranger the same words."""
    snapshot = node.db.snapshot(request.repository, request.actor)
    actor, name = request.actor, request.repository
    if not snapshot.actor_known:
        raise Refused("this key is not registered here any more", hint="ask an administrator")
    if actor.kind is ActorKind.DEVICE and request.service.writes:
        raise Refused("a device key may not push", hint="push with a user's key")
    decision = access.decide(snapshot.grants, actor, name)
    if not decision.allows(Level.READ):
        raise no_repository(name)
    if request.service.writes and not decision.allows(Level.WRITE):
        raise Refused(
            f"you may read {name} but not push to it",
            hint=f"an administrator can: git-cluster grant write {actor.name} {name}",
        )
    mine = snapshot.of(node.name)
    if mine is not None and mine.device.mode is DeviceMode.DISABLED:
        raise Refused(
            f"device {node.name} is disabled", hint="use another device; an administrator can enable it"
        )
    if mine is None:
        urls = " or ".join(f"{r.device.ssh_url}/{name}" for r in snapshot.replicas if r.device.online)
        raise NotFound(
            f"{name} is not kept on device {node.name}",
            hint=f"use {urls}" if urls else "none of its devices is online",
        )
    return snapshot


@contextmanager
def receiving(node: Node, request: Request, snapshot: Snapshot, client: Client) -> Iterator[Receiving]:
    """receive-pack on this device's replica, with the replica's write lock (not taken yet) among its open files."""
    lock = node.store.write_lock(snapshot.repository.id)
    try:
        with Receiving(
            node.store.path(snapshot.repository.id),
            node.store.run_directory(),
            client,
            lock,
            protocol=request.protocol,
            environment={
                "GIT_CLUSTER_ACTOR": request.actor.name,
                "GIT_CLUSTER_REPOSITORY": snapshot.repository.name,
                "GIT_CLUSTER_DEVICE": node.name,
                "GIT_CLUSTER_VIA": request.via,
                "GIT_CLUSTER_ADDRESS": request.address,
            },
        ) as git_push:
            yield git_push
    finally:
        lock.close()


_READ_CONFIG = {**git.HIDDEN, "uploadpack.allowFilter": "true"}
_DEVICE_CONFIG = {**_READ_CONFIG, "uploadpack.allowAnySHA1InWant": "true"}
"""A device asks for object ids: those of a version that may have been superseded meanwhile."""


def _run_git(node: Node, request: Request, snapshot: Snapshot, client: Client) -> int:
    """upload-pack or upload-archive between this client and this disk; its exit code."""
    config = _DEVICE_CONFIG if request.actor.kind is ActorKind.DEVICE else _READ_CONFIG
    env = git.environment(config, **({"GIT_PROTOCOL": request.protocol} if request.protocol else {}))
    program = request.service.removeprefix("git-")
    try:
        process = subprocess.Popen(
            ["git", program, str(node.store.path(snapshot.repository.id))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        raise GitFailed("git could not be started", hint="is Git installed on this device?") from error
    with process:
        upload = Thread(target=_upload, args=(process, client), daemon=True, name=f"{program} upload")
        path = os.fsencode(node.store.path(snapshot.repository.id))
        errors = Thread(target=_errors, args=(process, client, path), daemon=True, name=f"{program} errors")
        upload.start()
        errors.start()
        assert process.stdout is not None
        try:
            while data := os.read(process.stdout.fileno(), CHUNK):
                client.write(data)
        except ClientGone:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        errors.join()
        return process.wait()


def _upload(process: subprocess.Popen[bytes], client: Client) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError, ClientGone, ValueError):
        while data := client.read(CHUNK):
            process.stdin.write(data)
    with suppress(BrokenPipeError, ValueError):
        process.stdin.close()


def _errors(process: subprocess.Popen[bytes], client: Client, path: bytes) -> None:
    """Git's words for the person, without this server's path."""
    assert process.stderr is not None
    while data := os.read(process.stderr.fileno(), CHUNK):
        client.write_error(data.replace(path, b"the repository"))
