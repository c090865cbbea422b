"""Requests to the wrong device, whatever endpoint stands at the devices' URLs: a transcript. A device without a daemon
passes requests on; to it none is passed on, as it has no heartbeat."""

from __future__ import annotations

import pytest

from tests.cluster_fixture import Cluster, Project
from tests.probes import archive

ENDPOINTS = ("built-in", "openssh", "http")


@pytest.mark.parametrize("front", ["a", "c"])
def test_a_repository_of_one_device_is_used_through_another(devices: Cluster, front: str) -> None:
    name = f"team/by-way-of-{front}"
    devices.create(name, devices="b")
    project = Project(devices, name)
    project.pushed(front, "main")
    for protocol in "012":
        version = f"protocol.version={protocol}"
        new = project.commit(f"by protocol {protocol}")
        done = project.pushed(front, "main", config=[version])
        assert "remote:" not in done.err
        listed = devices.git("-c", version, "ls-remote", project.url(front))
        assert (listed.code, listed.err) == (0, "") and f"{new}\trefs/heads/main" in listed.out
        assert project.git("rev-parse", "HEAD", cwd=project.clone(front)) == new
    assert b"by-protocol-2.txt" in archive(project, front, "main")
    refused = project.refused(front, "--delete", "main")
    assert "refusing to delete the current branch" in refused.err
    entry = project.log()[-1]
    assert (entry.actor, entry.device, entry.address) == ("demo", "b", "127.0.0.1")
