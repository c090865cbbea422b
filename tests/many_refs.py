"""A repository of very many refs, in seconds: pushed one by one, 100,000 would take Git minutes of flushing."""

from __future__ import annotations

from uuid import uuid4

from cluster.model import RefUpdate
from cluster.versions import updated
from tests.cluster_fixture import Cluster


def branch(number: int) -> str:
    return f"refs/heads/many/{number:06d}"


def give_refs(cluster: Cluster, name: str, count: int) -> None:
    """Make `count` more branches of a repository that has main everywhere, all at main's commit, as one version."""
    snapshot = cluster.snapshot(name)
    repository = snapshot.repository
    devices = [replica.device.name for replica in snapshot.replicas]
    main = cluster.ok(f"--git-dir={cluster.disk(devices[0], name)}", "rev-parse", "main").strip()
    refs = {branch(number): main for number in range(count)}
    for device in devices:
        disk = cluster.disk(device, name)
        lines = sorted([("refs/heads/main", main), *refs.items()])
        (disk / "packed-refs").write_text(
            "# pack-refs with: peeled fully-peeled sorted \n"
            + "".join(f"{oid} {ref}\n" for ref, oid in lines)
        )
    updates = [RefUpdate(ref, "0" * len(oid), oid) for ref, oid in refs.items()]
    with cluster.db.dedicated() as connection:
        now = cluster.db.commit_decree(
            repository.id,
            repository.position,
            updated(repository.position.checksum, updates),
            uuid4(),
            updates,
            actor="test",
            device="test",
            via="import",
            connection=connection,
        )
        for device in devices:
            cluster.db.claim(repository.id, device, now, connection=connection)
