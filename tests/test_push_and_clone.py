"""One history on every device, as a transcript."""

from __future__ import annotations

from tests.cluster_fixture import Cluster

ENDPOINTS = True


def test_what_is_pushed_to_any_device_is_cloned_from_any(cluster: Cluster) -> None:
    work = cluster.work()
    for number, device in enumerate("abcabc"):
        oid = cluster.commit(work, f"change {number}")
        cluster.ok("push", "--quiet", cluster.url(device), "main", cwd=work)
        for other in "abc":
            assert cluster.refs(other) == {"HEAD": oid, "refs/heads/main": oid}
    assert [entry.version for entry in cluster.db.log(cluster.snapshot().repository.id)] == [6, 5, 4, 3, 2, 1]
    cluster.converge()
