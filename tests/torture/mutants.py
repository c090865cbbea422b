"""Builds of git-cluster with one safety check taken out, and clusters of devices that run them.

What the history checker is worth shows only where something is wrong. Nothing of ours is mocked for it: a mutant is a
copy of the source with a few lines changed, and its devices are real ones.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import cluster as product
from cluster.loopback import LoopbackDevice
from tests.cluster_fixture import Cluster
from tests.proxy import CuttingProxy


@dataclass(frozen=True, slots=True)
class Edit:
    """In a file of the package: what stands there exactly once, and what stands there instead."""

    file: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """A build, by what it does otherwise."""

    name: str
    edits: tuple[Edit, ...] = ()

    def build(self, folder: Path) -> Path:
        """Make it in `folder`, which then goes into PYTHONPATH."""
        package = Path(product.__file__).parent
        shutil.copytree(package, folder / "cluster")
        if not (package / "schema.sql").exists():
            shutil.copy(package.parent / "schema.sql", folder)
        for edit in self.edits:
            path = folder / "cluster" / edit.file
            text = path.read_text()
            found = text.count(edit.before)
            assert found == 1, f"{self.name}: cluster/{edit.file} holds this {found} times:\n{edit.before}"
            path.write_text(text.replace(edit.before, edit.after))
        return folder


class Built(Cluster):
    """A cluster whose devices run a mutant, each with a proxy before it and one between it and PostgreSQL."""

    def __init__(self, directory: Path, database: str, writes: Mapping[str, str], mutant: Mutant) -> None:
        super().__init__(directory, database, writes)
        directory.mkdir()
        self._build = mutant.build(directory / "build")
        self.way_to_database: dict[str, CuttingProxy] = {}
        self.way_to: dict[str, CuttingProxy] = {}

    def database_of(self, name: str) -> str:
        url = urlsplit(self.database)
        (folder,) = parse_qs(url.query)["host"]
        proxy = self.way_to_database[name] = CuttingProxy(Path(folder) / ".s.PGSQL.5432")
        return f"postgresql://postgres@127.0.0.1:{proxy.port}{url.path}"

    def peer_url(self, device: LoopbackDevice) -> str:
        proxy = self.way_to.get(device.name) or CuttingProxy((device.host, device.port))
        self.way_to[device.name] = proxy
        return f"ssh://git@127.0.0.1:{proxy.port}"

    def command(self, device: LoopbackDevice) -> list[str]:
        # -P: not the cluster/ of the folder that the tests are started in.
        _, *rest = super().command(device)
        return ["env", f"PYTHONPATH={self._build}", sys.executable, "-P", *rest]

    def close(self) -> None:
        for proxy in (*self.way_to_database.values(), *self.way_to.values()):
            proxy.close()
        super().close()


NONE = Mutant("nothing taken out")

COMPARE_AND_SET_IGNORED = Mutant(
    "compare-and-set ignored: the commit takes whatever version and token it finds",
    (
        Edit(
            "db/writes.py",
            """    update repository p set version = %(next)s, checksum = %(checksum)s
     where p.id = %(id)s and p.version = %(base)s
       and exists (select from replica r join device d on d.id = r.device_id
                    where r.repository_id = p.id and d.name = %(device)s
                      and r.version = %(base)s and r.intent_token = %(token)s)
    returning p.id),""",
            """    update repository p set version = p.version + 1, checksum = %(checksum)s
     where p.id = %(id)s
    returning p.id, p.version),""",
        ),
        Edit(
            "db/writes.py",
            "    update replica r set version = %(next)s, checksum = %(checksum)s, newest = %(next)s,"
            " synced_at = now(),",
            "    update replica r set version = turned.version, checksum = %(checksum)s, newest = turned.version,"
            " synced_at = now(),",
        ),
        Edit(
            "db/writes.py",
            """
       and r.version = %(base)s and r.intent_token = %(token)s
    returning r.repository_id),""",
            """
    returning r.repository_id, r.version),""",
        ),
        Edit(
            "db/writes.py",
            "%(next)s, %(checksum)s, %(push)s, %(actor)s, %(device)s, %(via)s, %(address)s from claimed",
            "version, %(checksum)s, %(push)s, %(actor)s, %(device)s, %(via)s, %(address)s from claimed",
        ),
    ),
)

_LISTED_AT_ONCE = Edit(
    "upload.py", "if self._settle is None or (before is not None and self._witness() == before):", "if True:"
)

_CONTENT_NOT_COMPARED = (
    Edit(
        "versions.py",
        "    moved = mine.position is not None and local.checksum != mine.position.checksum\n",
        "    moved = False\n",
    ),
    Edit("sync.py", " and disk == mine.position.checksum", ""),
    _LISTED_AT_ONCE,
)

CONTENT_NOT_COMPARED = Mutant("the refs on disk are not compared with the database", _CONTENT_NOT_COMPARED)
"""By itself it breaks nothing while no disk is tampered with. Without it, it stands in for a missing intent: refs that
moved without a trace are noticed as refs that should not be there."""

INTENT_NOT_WRITTEN = Mutant(
    "intent not written, and what it leaves on disk not noticed by its content either",
    (
        Edit(
            "gate.py",
            "node.db.intend(self._connection, self._repository.id, node.name, self._base, self._intent, copies)",
            "pass",
        ),
        Edit(
            "db/writes.py",
            "                      and r.version = %(base)s and r.intent_token = %(token)s)",
            "                      and r.version = %(base)s)",
        ),
        Edit(
            "db/writes.py",
            """
       and r.version = %(base)s and r.intent_token = %(token)s
    returning r.repository_id),""",
            """
       and r.version = %(base)s
    returning r.repository_id),""",
        ),
        *_CONTENT_NOT_COMPARED,
    ),
)

REPORT_NOT_HELD = Mutant(
    "report not held: the client hears Git's ok before the commit",
    (Edit("receive.py", "if self._released and (text := ", "if (text := "),),
)

READS_NOT_GATED = Mutant(
    "reads not gated: whatever is on this disk is served",
    (
        Edit(
            "gate.py",
            "    waited = False\n    for _ in range(ROUNDS):\n",
            "    return snapshot\n    waited = False\n    for _ in range(ROUNDS):\n",
        ),
        _LISTED_AT_ONCE,
    ),
)
