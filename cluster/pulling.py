"""Objects from another device where it is known what both have: the push log says from which values to which.

`git fetch` would find that out: it starts four processes here and two there, and asks three times. This is one
question, `git pack-objects` there and `git unpack-objects` here.

    puller ──"git-cluster-pack REPO"──▶ holder
           ──ids: wanted, and "^" before those that are known (pkt-lines), flush──▶
           ◀──a pack of what the wanted reach and the known do not──

What has come is looked through before a version is claimed, wherever it came from (sync.py).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from dulwich.protocol import pkt_line

from cluster import git, packs
from cluster.client import Client, Input
from cluster.db import key_gone
from cluster.errors import DiskFailed, GitFailed, PeerFailed, Refused
from cluster.model import Actor, Device, Repository
from cluster.node import Node
from cluster.remote import Remote
from cluster.report import packets
from cluster.ssh_command import PackCommand

_log = logging.getLogger(__name__)

MOST_NAMED = 1000
"""Ids that are named in one question. Of more refs Git's own negotiation says it shorter."""

CHUNK = 65536
LAST_WORDS = 10.0
"""Seconds for a holder to end, once its pack has."""

_NAME = re.compile(r"\^?([0-9a-f]{40}|[0-9a-f]{64})")


def few(wanted: Sequence[str], known: Sequence[str]) -> bool:
    return len(wanted) + len(known) <= MOST_NAMED


def pull(
    node: Node,
    repository: Repository,
    source: Device,
    wanted: Sequence[str],
    known: Sequence[str],
    objects: int,
    say: Callable[[str], None],
) -> bool:
    """Bring what `wanted` reach and `known` do not from `source`; whether it had it, and it was stored here.

    False where it answers, but cannot: a `git fetch` may, as where it runs an older git-cluster, or where its copy is
    without a value that is known here. PeerFailed where it does not answer. objects: the lock that Git inherits.
    """
    with node.peers.run(source, str(PackCommand(repository.name))) as remote:
        names = [*wanted, *(f"^{oid}" for oid in known)]
        try:
            remote.send(b"".join(pkt_line(name.encode()) for name in names) + pkt_line(None))
        except PeerFailed:
            if not remote.over:  # an older git-cluster reads nothing of what it does not know
                raise
        remote.send_eof()
        pieces = _received(remote, lambda line: say(f"syncing from {source.name}: {line}"))
        first = next(pieces, b"")
        if first:
            try:
                packs.stored(node.store.path(repository.id), chain([first], pieces), objects)
            except DiskFailed:
                raise
            except GitFailed as error:
                _log.warning("what %s sent of %s is not stored: %s", source.name, repository.name, error.what)
                return False
        code = remote.finish(LAST_WORDS)
        if code or not first:
            _log.info("%s has no pack of %s: %s", source.name, repository.name, remote.stderr.strip())
        return code == 0 and bool(first)


def _received(remote: Remote, tell: Callable[[str], None]) -> Iterator[bytes]:
    """What the holder sends; every few seconds whoever waits is told how much that is."""
    told, so_far = time.monotonic(), 0
    while data := remote.receive(CHUNK):
        yield data
        so_far += len(data)
        if time.monotonic() - told > git.TELL:
            told = time.monotonic()
            tell(f"{so_far >> 20} MiB received")


def give(node: Node, command: PackCommand, client: Client, actor: Actor) -> int:
    """Answer `git-cluster-pack`, to a device that holds the repository too."""
    snapshot = node.db.snapshot(command.repository, actor)
    if not snapshot.actor_known:
        raise key_gone()
    for device in (actor.name, node.name):
        if snapshot.of(device) is None:
            raise Refused(f"{command.repository} is not kept on device {device}")
    names = named(Input(client), snapshot.repository.object_format)
    options = ["--revs", "--thin", "--delta-base-offset"]
    with packs.packing(node.store.path(snapshot.repository.id), options, {}) as process:
        try:
            for piece in packs.made(process, "".join(f"{name}\n" for name in names)):
                client.write(piece)
        except BaseException:
            process.kill()
            raise
    return min(process.returncode, 1)


def named(stream: Input, object_format: str) -> list[str]:
    """What a peer wants and knows, up to the flush. PeerFailed where that is no such list."""
    names: list[str] = []
    for packet in packets(stream):  # type: ignore[arg-type]
        if packet.flush:
            return names
        name = packet.payload.decode("ascii", "replace")
        if not _NAME.fullmatch(name) or len(name.lstrip("^")) != len(git.ZERO[object_format]):
            raise PeerFailed("what the peer names are not object ids")
        if len(names) == MOST_NAMED:
            raise PeerFailed(f"the peer names more than {MOST_NAMED} objects")
        names.append(name)
    raise PeerFailed("what the peer names was cut off, or is no list")
