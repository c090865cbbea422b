"""Second copies before the first commit (guarantee G9): send a push's objects to peers, keep those of others.

The sender's side runs between "propose" and "lock", the keeper's side answers `git-cluster-stage`. What is sent is
what Git put into the push's quarantine: exactly the objects that the sender did not have. The keeper first brings
its replica to the version that the client saw, so it has everything else. It checks that by itself (index-pack
looks up every link out of the pack), and where a link is missing the sender packs again, from all its refs.

    sender ──"git-cluster-stage REPO PUSH VERSION"──▶ keeper
           ──the new object ids (pkt-lines), flush──▶
           ──a pack, or nothing──▶
           ◀──"working" now and then, at last "kept" or "incomplete"──
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from threading import Event, Thread
from uuid import UUID

from dulwich.protocol import pkt_line

from cluster import git, packs
from cluster.client import Client, Input
from cluster.errors import ClusterError, DiskFailed, GitFailed, PeerFailed, Refused, TooFewCopies
from cluster.faults import Step
from cluster.model import HEAD, Actor, Device, RefUpdate, Snapshot, WhenShort
from cluster.node import Node
from cluster.refs import staged_for
from cluster.remote import Remote
from cluster.report import packets
from cluster.spread import Attempt, Spread
from cluster.ssh_command import StageCommand, UnstageCommand
from cluster.sync import Say, catch_up
from cluster.versions import stage_peers

_log = logging.getLogger(__name__)

CHUNK = 65536
SILENCE = 8.0
"""Seconds without a sign of life after which a keeper is given up: it says "working" every 2 s."""

LOCAL_WRITE_WAIT = 5.0
"""Seconds to wait for a keeper's own write to the same repository; then another keeper is better."""

MOST_STAGED = 1_000_000
"""Objects that a push may want to be kept by name: one for each of its refs."""

CATCH_UP = 20.0
"""Seconds that a pusher waits for a keeper that is behind; longer, and the copy is made without being waited for."""


# ---------------------------------------------------------------------------------------------------- sender


@dataclass(slots=True)
class Staged:
    """Where a push's objects are kept. Unless `keep` is set, because a version may come of them now or (where the
    commit was cut off) later, leaving the context drops them there."""

    devices: list[Device]
    keep: bool = False


@contextmanager
def staged(
    node: Node,
    snapshot: Snapshot,
    push_id: UUID,
    updates: Iterable[RefUpdate],
    quarantine: Path | None,
    say: Say,
) -> Iterator[Staged]:
    """Have min_copies - 1 peers hold what this push brings. TooFewCopies where the policy says "refuse"."""
    node.reach(Step.STAGE)
    oids = sorted({update.new for update in updates if not update.deletes})
    copies = Staged([])
    try:
        if oids:
            _spread(node, snapshot, push_id, oids, quarantine, copies, say)
        yield copies
    finally:
        if copies.devices and not copies.keep:
            Thread(
                target=_drop,
                args=(node, snapshot, push_id, list(copies.devices)),
                name="unstage",
                daemon=True,
            ).start()


def _spread(
    node: Node,
    snapshot: Snapshot,
    push_id: UUID,
    oids: list[str],
    quarantine: Path | None,
    copies: Staged,
    say: Say,
) -> None:
    repository = snapshot.repository
    needed = repository.min_copies - 1

    def send(device: Device, attempt: Attempt) -> None:
        _send(node, snapshot, device, push_id, oids, quarantine, attempt)

    def failed(device: Device, error: PeerFailed) -> None:
        _log.warning("staging %s on %s failed: %s", repository.name, device.name, error.what)

    def late(device: Device) -> None:
        _drop(node, snapshot, push_id, [device])

    candidates = [peer.device for peer in stage_peers(snapshot, node.name)]
    copies.devices += Spread(send, failed=failed, late=late).run(candidates, needed)
    short = needed - len(copies.devices)
    if short <= 0:
        return
    what = f"only {repository.min_copies - short} of {repository.min_copies} copies can be made now"
    if repository.when_short is WhenShort.REFUSE:
        raise TooFewCopies(
            f"{what}, and {repository.name} asks for all of them", hint="push again when more devices are up"
        )
    say(f"warning: {what}; the others follow when their devices are back")


def _send(
    node: Node,
    snapshot: Snapshot,
    device: Device,
    push_id: UUID,
    oids: list[str],
    quarantine: Path | None,
    attempt: Attempt,
) -> None:
    objects = node.store.path(snapshot.repository.id) / "objects"
    pack: Callable[[], Iterator[bytes]] = lambda: _quarantined(objects, quarantine)  # noqa: E731
    if _offer(node, snapshot, device, push_id, oids, pack, attempt):
        return
    everything = [value for ref, value in node.store.refs(snapshot.repository.id).items() if ref != HEAD]
    pack = lambda: _reachable(objects, quarantine, oids, everything)  # noqa: E731
    if not _offer(node, snapshot, device, push_id, oids, pack, attempt):
        raise PeerFailed(f"device {device.name} lacks objects that it should have")


def _offer(
    node: Node,
    snapshot: Snapshot,
    device: Device,
    push_id: UUID,
    oids: list[str],
    pack: Callable[[], Iterator[bytes]],
    attempt: Attempt,
) -> bool:
    """Send one pack; whether the keeper found it complete."""
    command = StageCommand(snapshot.repository.name, push_id, snapshot.repository.version)
    with node.peers.run(device, str(command)) as remote:
        attempt.begun(remote.abandon)
        remote.send(b"".join(pkt_line(oid.encode()) for oid in oids) + pkt_line(None))
        for data in pack():
            remote.send(data)
            attempt.alive()
        remote.send_eof()
        verdict = _verdict(remote, attempt)
        remote.finish(SILENCE)
    if verdict not in ("kept", "incomplete"):
        raise PeerFailed(
            f"device {device.name} keeps no copy: {remote.stderr.strip() or 'it gave no reason'}"
        )
    return verdict == "kept"


def _verdict(remote: Remote, attempt: Attempt) -> str:
    text = b""
    while data := remote.receive(1024, SILENCE):
        attempt.alive()
        text += data
    lines = [line for line in text.decode("utf-8", "replace").splitlines() if line != "working"]
    return lines[-1] if lines else ""


def _drop(node: Node, snapshot: Snapshot, push_id: UUID, devices: list[Device]) -> None:
    for device in devices:
        with suppress(PeerFailed):
            command = UnstageCommand(snapshot.repository.name, push_id)
            with node.peers.run(device, str(command)) as remote:
                remote.send_eof()
                remote.finish(SILENCE)


def _quarantined(objects: Path, quarantine: Path | None) -> Iterator[bytes]:
    """A pack of what the client sent: the one that it came in, or one made of the loose objects."""
    if quarantine is None or not quarantine.is_dir():
        return
    packs = sorted((quarantine / "pack").glob("*.pack"))
    loose = [f"{p.parent.name}{p.name}" for p in quarantine.glob("[0-9a-f][0-9a-f]/*") if _is_object(p)]
    if len(packs) == 1 and not loose:
        with packs[0].open("rb") as file:
            while data := file.read(CHUNK):
                yield data
        return
    for pack in packs:
        index = pack.with_suffix(".idx").read_bytes()
        listing = git.run(["show-index", f"--object-format={_format(pack)}"], data=index).decode()
        loose += [line.split(" ")[1] for line in listing.splitlines()]
    if loose:
        yield from _packed(objects, quarantine, [], "".join(f"{oid}\n" for oid in loose))


def _reachable(objects: Path, quarantine: Path | None, oids: list[str], known: list[str]) -> Iterator[bytes]:
    """A pack of what `oids` reach and `known` does not, by a walk over the history."""
    lines = [*oids, *(f"^{oid}" for oid in sorted(set(known)))]
    yield from _packed(objects, quarantine, ["--revs"], "".join(f"{line}\n" for line in lines))


def _packed(objects: Path, quarantine: Path | None, options: list[str], names: str) -> Iterator[bytes]:
    env = {}
    if quarantine is not None:
        env = {"GIT_OBJECT_DIRECTORY": str(quarantine), "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects)}
    with packs.packing(objects.parent, options, env) as process:
        yield from packs.made(process, names)
    if process.returncode != 0:
        raise PeerFailed("the objects of this push could not be packed for a peer")


def _is_object(path: Path) -> bool:
    return len(path.name) in (38, 62)


def _format(pack: Path) -> str:
    return "sha256" if len(pack.stem.removeprefix("pack-")) == 64 else "sha1"


# ---------------------------------------------------------------------------------------------------- keeper


def keep(node: Node, command: StageCommand, client: Client, actor: Actor) -> int:
    """Answer `git-cluster-stage`: take the pack in, and hold it by refs/cluster/staged/<push>/…"""
    stop = Event()
    Thread(target=_keep_saying_working, args=(client, stop), name="stage working", daemon=True).start()
    try:
        verdict = _keep(node, command, client, actor)
    finally:
        stop.set()
    client.write(f"{verdict}\n".encode())
    return 0


def _keep_saying_working(client: Client, stop: Event) -> None:
    while not stop.wait(2):
        with suppress(ClusterError):
            client.write(b"working\n")


def _keep(node: Node, command: StageCommand, client: Client, actor: Actor) -> str:
    snapshot = _shared(node, command.repository, actor)
    repository, store = snapshot.repository, node.store
    mine = snapshot.of(node.name)
    current = mine is not None and mine.position is not None and not mine.quarantined
    if not current or (mine.version or 0) < command.version or not store.exists(repository.id):  # type: ignore[union-attr]
        _catch_up_soon(node, repository.id)
    stream = Input(client)
    oids = listed(stream, repository.object_format)
    folder = store.folder(repository.id)
    with store.adding_objects(repository.id) as objects:
        first = stream.read(1)
        pieces = chain([first], iter(stream.read1, b""))
        if first and not _index(store.path(repository.id), pieces, objects):
            return "incomplete"
        if store.existing(repository.id, oids) != set(oids):
            return "incomplete"
        with _locked(node, repository.id):
            if store.folder(repository.id) != folder:
                raise PeerFailed(f"device {node.name} made its copy anew meanwhile")
            store.remove_stale_locks(repository.id)
            store.stage_refs(repository.id, command.push_id, oids)
    return "kept"


def _shared(node: Node, name: str, actor: Actor) -> Snapshot:
    """The repository, which both devices hold: nobody else takes pushes to it, nor has anything to stage. Refused."""
    snapshot = node.db.snapshot(name)
    for device in (actor.name, node.name):
        if snapshot.of(device) is None:
            raise Refused(
                f"{name} is not kept on device {device}", hint="only devices that hold it stage for it"
            )
    return snapshot


def listed(stream: Input, object_format: str) -> list[str]:
    """The object ids that a peer wants to stage, up to the flush. PeerFailed where that is no such list."""
    oids: list[str] = []
    for packet in packets(stream):  # type: ignore[arg-type]
        if packet.flush:
            return oids
        oid = packet.payload.decode("ascii", "replace")
        if not _is_oid(oid, object_format):
            raise PeerFailed("what the peer wants to stage are not object ids")
        if len(oids) == MOST_STAGED:
            raise PeerFailed(f"the peer wants to stage more than {MOST_STAGED} objects by name")
        oids.append(oid)
    raise PeerFailed("what the peer wants to stage was cut off, or is no list")


def _catch_up_soon(node: Node, repository_id: int) -> None:
    """Catch up while a pusher waits; where that takes longer (a first copy), go on with it without them."""
    failed: list[ClusterError] = []

    def work() -> None:
        try:
            catch_up(node, repository_id)
        except ClusterError as error:
            failed.append(error)

    worker = Thread(target=work, name="catch up to stage", daemon=True)
    worker.start()
    worker.join(CATCH_UP)
    if worker.is_alive():
        raise PeerFailed(f"device {node.name} is still fetching what came before")
    if failed:
        raise failed[0]


def _index(path: Path, pieces: Iterable[bytes], lock: int) -> bool:
    """Store a pack; whether all that it refers to is here."""
    try:
        packs.indexed(path, pieces, lock, ["--check-self-contained-and-connected"])
    except DiskFailed:
        raise
    except GitFailed as error:
        if "expected object" in error.what or "unresolved delta" in error.what:
            return False
        raise
    return True


def _locked(node: Node, repository_id: int) -> AbstractContextManager[None]:
    """The replica's write lock, for the moment in which staged refs are made or dropped."""
    busy = PeerFailed(f"device {node.name} is in the middle of a write")
    return node.store.locked(repository_id, "write", LOCAL_WRITE_WAIT, busy)


def release(node: Node, command: UnstageCommand, actor: Actor) -> int:
    """Answer `git-cluster-unstage`: the push was settled without a commit."""
    snapshot = _shared(node, command.repository, actor)
    with _locked(node, snapshot.repository.id):
        node.store.unstage(snapshot.repository.id, [command.push_id])
    return 0


STAGING = 600.0
"""Seconds that a push may take to be staged on all of its peers, before it waits for the write lock."""


def sweep(node: Node, repository_id: int) -> None:
    """Drop staged refs that nobody will settle any more: committed versions that we hold, and pushes that are dead.

    A push waits for the write lock for lock_timeout at most, then its intent says that it lives. Dead is one that was
    staged longer ago than that takes, and has neither intent nor version. What it brought stays for the grace
    period of objects that no ref reaches, so a push that was slower after all finds it there.
    """
    staged_here = node.store.staged(repository_id)
    if not staged_here:
        return
    snapshot = node.db.snapshot_of(repository_id)
    owner = snapshot.intent_owner
    pending = owner.intent.push_id if owner and owner.intent else None
    mine = snapshot.of(node.name)
    done = []
    older_than = STAGING + node.writes.lock_timeout
    for push_id, refs in staged_here.items():
        position = node.db.committed(repository_id, push_id)
        applied = position is not None and mine is not None and (mine.version or 0) >= position.version
        dead = position is None and staged_for(refs) > older_than
        if push_id != pending and (applied or dead):
            done.append(push_id)
    if done:
        with _locked(node, repository_id):
            node.store.unstage(repository_id, done)


def _is_oid(text: str, object_format: str) -> bool:
    return len(text) == len(git.ZERO[object_format]) and not text.strip("0123456789abcdef")
