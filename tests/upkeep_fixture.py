"""What the tests of verification and maintenance share: devices with short intervals, damage, a look at a disk."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

from cluster.background import Background
from cluster.config import UpkeepSection, WritesSection
from cluster.model import Event
from cluster.node import Node
from cluster.peer import Peers
from cluster.store import Store
from tests.breaking import MakeCluster, on_disk
from tests.cluster_fixture import Cluster
from tests.probes import device_key


def devices(make_cluster: MakeCluster, names: str = "ab", *, copies: int = 1, **upkeep: object) -> Cluster:
    """Devices that are up, with these keys in [upkeep], and team/app on all of them, empty."""
    cluster = make_cluster(names, start="")
    for device in cluster.devices.values():
        with device.config.open("a") as file:
            file.write("\n[upkeep]\n")
            for key, value in upkeep.items():
                file.write(f"{key} = {json.dumps(value)}\n")
    for name in names:
        cluster.start(name)
    cluster.create("team/app", min_copies=copies)
    return cluster


def node(cluster: Cluster, device: str, **upkeep: float) -> Node:
    """A device at work, beside its daemon: on its disk, with its locks."""
    return Node(
        name=device,
        writes=WritesSection(),
        db=cluster.db,
        store=Store(cluster.devices[device].data_dir, device, cluster.db.cluster_id()),
        peers=Peers.from_file(device_key(cluster.devices[device])),
        upkeep=UpkeepSection(**upkeep),  # type: ignore[arg-type]
        background=Background(),
    )


def number(cluster: Cluster) -> int:
    """The id of team/app."""
    return cluster.snapshot().repository.id


def events(cluster: Cluster, kind: str) -> list[Event]:
    """What the log of team/app says of this kind, newest first."""
    return [event for event in cluster.db.events(number(cluster)) if event.kind == kind]


def trash(cluster: Cluster, device: str) -> list[Path]:
    folder = cluster.devices[device].data_dir / "trash"
    return sorted(folder.iterdir()) if folder.exists() else []


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder, with a digest of what is in it."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def loose(cluster: Cluster, device: str, oid: str) -> Path:
    """The file of an object on a device's disk, writable; unpacked if need be."""
    path = cluster.disk(device) / "objects" / oid[:2] / oid[2:]
    if not path.exists():
        packs, aside = cluster.disk(device) / "objects" / "pack", cluster.directory / f"packs-{device}"
        shutil.move(packs, aside)
        packs.mkdir()
        for pack in aside.glob("*.pack"):
            with pack.open("rb") as file:
                subprocess.run(
                    ["git", f"--git-dir={cluster.disk(device)}", "unpack-objects", "-q"],
                    stdin=file,
                    check=True,
                )
    path.chmod(0o644)
    return path


def packed(cluster: Cluster, device: str) -> Path:
    """The one pack that everything on a device's disk is in, writable."""
    on_disk(cluster, device, "repack", "-a", "-d", "-q")
    (pack,) = (cluster.disk(device) / "objects" / "pack").glob("*.pack")
    pack.chmod(0o644)
    return pack
