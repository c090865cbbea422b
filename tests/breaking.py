"""What the fault tests share: hold a push still at a point of its life, kill what carries it, look at what is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from tests.cluster_fixture import Cluster, Done

SQL = re.compile(
    r"psycopg|\b(select|insert into|delete from|update replica|update repository)\b", re.IGNORECASE
)


def polite(cluster: Cluster, text: str) -> str:
    """Assert that what a client was told holds no traceback, no path of the server and no SQL; returns it."""
    assert "Traceback" not in text, text
    assert 'File "' not in text, text
    assert str(cluster.directory) not in text, text
    assert ".git/" not in text, text
    assert not SQL.search(text), text
    return text


def push(cluster: Cluster, device: str, work: Path, *refs: str, options: tuple[str, ...] = ()) -> Done:
    """`git push` of `refs` (default: main), whatever becomes of it; what it said is polite."""
    done = cluster.git("push", *options, cluster.url(device), *(refs or ("main",)), cwd=work)
    polite(cluster, done.text)
    return done


def acknowledged(done: Done, ref: str = "main") -> bool:
    """Whether the pusher was told that the ref moved."""
    return bool(re.search(rf"^[ *+-] +\S.*\b{re.escape(ref)}$", done.err, re.MULTILINE)) and done.code == 0


@dataclass
class HeldHook:
    """A hook of a repository on one device that waits in a named place until it is let go.

    update: between intend and commit, before its ref moves. pre-receive: before anything is proposed.
    """

    folder: Path

    @property
    def reached(self) -> bool:
        return (self.folder / "reached").exists()

    @property
    def pid(self) -> int:
        """Of the hook itself."""
        return int((self.folder / "reached").read_text().split()[0])

    @property
    def git(self) -> int:
        """Of the receive-pack that runs it."""
        return int((self.folder / "reached").read_text().split()[1])

    def let_go(self) -> None:
        (self.folder / "go").touch()


def hold(
    cluster: Cluster, device: str, hook: str = "update", *, only: str = "", repository: str = "team/app"
) -> HeldHook:
    """Make every push to `device` wait in `hook` (for the ref `only`, where it is given)."""
    folder = cluster.directory / f"held-{device}-{hook}-{repository.replace('/', '-')}"
    folder.mkdir()
    path = cluster.disk(device, repository) / "hooks" / hook
    unless = f'[ "$1" = "{only}" ] || exit 0\n' if only else ""
    path.write_text(
        f"""#!/bin/sh
{unless}[ -e {folder}/go ] && exit 0
echo $$ $PPID >{folder}/.reached
mv {folder}/.reached {folder}/reached
while [ ! -e {folder}/go ] && [ -e {folder} ]; do sleep 0.02; done
"""
    )
    path.chmod(0o755)
    return HeldHook(folder)


def interrupt(cluster: Cluster, device: str, step: str, work: Path, *refs: str) -> Done:
    """A push to `device` that dies with its daemon at `step`; the device stays down."""
    cluster.stop(device)
    cluster.start(device, fault=f"{step}:kill")
    done = push(cluster, device, work, *refs)
    process = cluster.devices[device].process
    assert process is not None and process.wait(10) == -signal.SIGKILL
    cluster.stop(device)
    cluster.wait(lambda: lock_holder(cluster) is None, "PostgreSQL notices that the writer died")
    return done


def lock_holder(cluster: Cluster, repository: str = "team/app") -> object:
    return cluster.db.write_lock_holder(cluster.snapshot(repository).repository.id)


def stopped(pid: int) -> bool:
    """Whether a process is in SIGSTOP's sleep."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a client with the ssh that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def status(cluster: Cluster, repository: str = "team/app") -> dict[str, Any]:
    """The repository's entry in `status --json`."""
    entry: dict[str, Any] = cluster.admin_json("status", repository)["repositories"][0]
    return entry


def replica(cluster: Cluster, device: str) -> dict[str, Any]:
    """The replica's entry in `status --json`."""
    return next(r for r in status(cluster)["replicas"] if r["device"] == device)


def lost(cluster: Cluster, device: str) -> dict[str, str]:
    """What is kept on a device's disk under refs/cluster/lost/: original ref name → object id."""
    lines = cluster.ok(
        f"--git-dir={cluster.disk(device)}",
        "for-each-ref",
        "--format=%(objectname) %(refname)",
        "refs/cluster/lost/",
    ).splitlines()
    return {f"refs/{ref.split('/', 4)[4]}": oid for oid, ref in (line.split(" ") for line in lines)}


def shown(cluster: Cluster, device: str) -> set[str]:
    """Every object id that a client's ls-remote shows on a device."""
    refs = cluster.refs(device)
    assert not [ref for ref in refs if ref.startswith("refs/cluster/")]
    return set(refs.values())


def works_everywhere(cluster: Cluster, base: str, devices: str | None = None) -> None:
    """The next push on every device goes through, and afterwards all copies are equal and sound."""
    work = cluster.directory / "afterwards"
    cluster.ok("clone", "--quiet", cluster.url(base), str(work))
    for device in devices or cluster.devices:
        oid = cluster.commit(work, f"afterwards on {device}")
        done = push(cluster, device, work)
        assert done.code == 0, done.text
        for other in devices or cluster.devices:
            assert oid in shown(cluster, other)
    cluster.converge()


def sql(cluster: Cluster, *statements: str) -> None:
    """Change the database behind everybody's back, in one transaction."""
    with psycopg.connect(cluster.database) as connection:
        for statement in statements:
            connection.execute(statement)


def on_disk(cluster: Cluster, device: str, *arguments: str) -> str:
    """Git run on a device's bare repository, behind its back."""
    return cluster.ok(f"--git-dir={cluster.disk(device)}", *arguments).strip()


MakeCluster = Callable[..., Cluster]
