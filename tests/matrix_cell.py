"""One cell of the fault matrix: a push that is hit by a fault at a step, and what came of it.

A cell, on devices a, b and c with `heal = "auto"` and a repository that asks for two copies:

    1. A push is acknowledged, and all three have it.
    2. Another push, to a, is stopped at the step. The fault happens, and the push goes on as well as it can.
    3. At once somebody else pushes another branch, to b and c in turn, until that is acknowledged.
    4. The fault is lifted. That it lasted is part of it: a cut or a power failure lasts until the others have done
       without the device, a pause for longer than every time-out.
    5. Everything has to come back by itself: nobody types `thaw`, and a takes a push again without a restart.

It holds where no acknowledged push is gone, all three devices are equal and sound, nothing is frozen, no intent is
left, and nobody was told anything that is not for them (a traceback, a path, SQL).
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from cluster import embedded
from cluster.faults import Step
from cluster.model import EventKind, WhenShort
from tests.breaking import polite, stopped
from tests.cluster_fixture import DEADLINE, Project
from tests.network import Network, NetworkCluster


class Outage(StrEnum):
    """A fault of the matrix, by its name on the command line."""

    KILL = "kill"
    DROP_DB = "drop-db"
    POSTGRES = "postgres"
    DEVICE = "device"
    CUT_DATABASE = "cut-database"
    CUT_PEERS = "cut-peers"
    CUT_BOTH = "cut-both"
    PAUSE = "pause"


TITLES = {
    Outage.KILL: "process killed",
    Outage.DROP_DB: "database connections cut",
    Outage.POSTGRES: "PostgreSQL killed and restarted",
    Outage.DEVICE: "device killed and brought back",
    Outage.CUT_DATABASE: "device cut off from the database",
    Outage.CUT_PEERS: "device cut off from its peers",
    Outage.CUT_BOTH: "device cut off from both",
    Outage.PAUSE: "process paused",
}


LASTING = (Outage.DEVICE, Outage.CUT_DATABASE, Outage.CUT_PEERS, Outage.CUT_BOTH, Outage.PAUSE)
"""What lasts until it is lifted. Of each there is a brief form, over before anybody can have drawn a conclusion."""


@dataclass(frozen=True)
class Times:
    """Seconds. The first three are the cluster's settings; how long faults last follows from them.

    database_down: between PostgreSQL's death and its restart.
    until_next: how long somebody else's push is tried for.
    until_back: how long everything may take to be as before, once the fault is lifted.
    brief: how long a fault lasts, where it is not to last until the others have done without the device.
    """

    fence_after: float = 3.0
    lock_timeout: float = 20.0
    commit_timeout: float = 15.0
    database_down: float = 2.0
    until_next: float = 90.0
    until_back: float = DEADLINE
    brief: float | None = None

    @property
    def writes(self) -> dict[str, str]:
        return {
            "heal": "auto",
            "fence_after": f"{self.fence_after:g}s",
            "lock_timeout": f"{self.lock_timeout:g}s",
            "commit_timeout": f"{self.commit_timeout:g}s",
        }

    @property
    def cut(self) -> float:
        """A cut lasts at least so long: the others have fenced the device by then, where they may."""
        return self.fence_after + 3.0

    @property
    def pause(self) -> float:
        return max(self.fence_after, self.lock_timeout, self.commit_timeout) + 1.0


FULL = Times()
BRIEF = Times(brief=1.0)
SHORT = Times(lock_timeout=8.0, commit_timeout=6.0, database_down=0.5)


class Saw(StrEnum):
    """What the client of the push that was hit was told."""

    OK = "ok"
    REJECTED = "rejected"
    HUNG_UP = "hung up"
    NOTHING = "no answer"


@dataclass(frozen=True)
class Told:
    """The end of a push, as its client saw it: when (time.monotonic), and all that was printed."""

    saw: Saw
    at: float
    text: str

    @property
    def why(self) -> str:
        """The reason of a rejection, with what differs from cell to cell left out."""
        found = re.search(r"! \[remote rejected\] \S+ -> \S+ \((.*)\)", self.text) or re.search(
            r"remote: cluster: error: (.*)", self.text
        )
        if found is None or self.saw is not Saw.REJECTED:
            return ""
        return re.sub(r"\bteam/\S+", "team/app", re.sub(r"\d\d:\d\d:\d\d", "hh:mm:ss", found[1])).strip()


@dataclass
class Cell:
    """One step × one fault: what came of it. Seconds count from the moment of the fault.

    next: until somebody else's push was acknowledged. told: until the client had its answer.
    stands: whether the push that was hit is in the log in the end, whatever its client was told.
    back: from when the fault was lifted until all devices were equal. did: the events in the repository's log.
    """

    step: Step
    outage: Outage
    brief: bool = False
    told: Told | None = None
    answered: float | None = None
    stands: bool = False
    next: float | None = None
    back: float | None = None
    did: list[str] = field(default_factory=list)
    acknowledged: int = 0
    lost: int = 0
    thaws: int = 0
    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.step} × {self.outage}{', brief' if self.brief else ''}"

    @property
    def line(self) -> str:
        saw = (
            f"{self.told.saw} after {self.answered:.1f} s" if self.told and self.answered is not None else "?"
        )
        why = f" ({self.told.why})" if self.told and self.told.why else ""
        stands = ", and it stands" if self.stands else ""
        next = f"{self.next:.1f} s" if self.next is not None else "never"
        back = f"{self.back:.1f} s" if self.back is not None else "never"
        did = f"; {', '.join(self.did)}" if self.did else ""
        verdict = "FAILED" if self.wrong else "ok"
        lines = [
            f"{verdict:6} {self.name:33} next push {next:>7}, all equal {back:>7}; client: {saw}{why}{stands}{did}"
        ]
        return "\n".join(
            [*lines, *(f"       ! {w}" for w in self.wrong), *(f"       - {n}" for n in self.notes)]
        )


# -------------------------------------------------------------------------------------------------- the two pushes


class Hit:
    """The push that is hit: runs by itself until its client has an answer, or is given up."""

    def __init__(self, project: Project, device: str, branch: str) -> None:
        self.oid = project.commit(branch)
        self._process = project.cluster.spawn("push", project.url(device), f"HEAD:refs/heads/{branch}",
                                              cwd=project.work)  # fmt: skip
        self.told: Told | None = None
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        text, _ = self._process.communicate()
        code = self._process.returncode
        if code == 0:
            saw = Saw.OK
        elif code < 0:
            saw = Saw.NOTHING
        elif "! [remote rejected]" in text or "remote: cluster: error" in text:
            saw = Saw.REJECTED
        else:
            saw = Saw.HUNG_UP
        self.told = Told(saw, time.monotonic(), text)

    def finish(self, seconds: float) -> Told:
        """What the client was told; one that is still without an answer after so long is ended, as a person would."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            os.killpg(self._process.pid, signal.SIGKILL)
            self._thread.join()
        assert self.told is not None
        return self.told


class Next:
    """Somebody else's push of another branch: to each of `devices` in turn until one acknowledges it."""

    def __init__(self, project: Project, devices: str, branch: str, seconds: float) -> None:
        self._project, self._devices, self._branch = project, devices, branch
        self._deadline = time.monotonic() + seconds
        self._clone = project.work.with_name(f"{project.work.name}-{branch}")
        project.cluster.ok("clone", "--quiet", str(project.work), str(self._clone))
        self.oid = project.cluster.commit(self._clone, branch)
        self.at: float | None = None
        self.device = ""
        self.texts: list[str] = []
        self._thread = threading.Thread(target=self._push, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _push(self) -> None:
        for device in itertools.cycle(self._devices):
            if (left := self._deadline - time.monotonic()) <= 0:
                return
            try:
                done = self._project.cluster.git(
                    "push", self._project.url(device), f"HEAD:refs/heads/{self._branch}", cwd=self._clone,
                    timeout=left,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                self.texts.append(f"(no answer from {device})")
                return
            self.texts.append(f"{device}: {done.text}")
            if done.code == 0:
                self.at, self.device = time.monotonic(), device
                return
            time.sleep(0.1)

    def wait(self) -> None:
        self._thread.join()


# ------------------------------------------------------------------------------------------------------- the faults


@dataclass
class Scene:
    """What a fault is done to: device a, with a push that stands at a step."""

    network: Network
    cluster: NetworkCluster
    times: Times
    next: Next
    hit_at: float = 0.0

    @contextmanager
    def moment(self) -> Iterator[None]:
        """The fault happens inside. All seconds count from its begin; when it has happened, the next push begins."""
        self.hit_at = time.monotonic()
        yield
        self.next.start()

    def lasts(self, seconds: float) -> None:
        """Until the others have done without the device, and for so many seconds since the fault at least."""
        if self.times.brief is not None:
            time.sleep(self.times.brief)
            return
        self.next.wait()
        time.sleep(max(0.0, self.hit_at + seconds - time.monotonic()))

    def resume(self) -> None:
        process = self.cluster.devices["a"].process
        assert process is not None
        process.send_signal(signal.SIGCONT)

    # Each returns when the fault is lifted.

    def kill(self) -> None:
        """The process has killed itself. What supervises it starts it again at once."""
        with self.moment():
            self.cluster.stop("a")
        self.cluster.start("a")

    def drop_db(self) -> None:
        """The process has cut them, and can make new ones."""
        with self.moment():
            pass

    def postgres(self) -> None:
        with self.moment():
            embedded.crash(self.network.postgres)
        self.resume()
        time.sleep(self.times.database_down)
        embedded.start(self.network.postgres)

    def device(self) -> None:
        """Nobody hears of it: no connection is ended. It stays away until the others have done without it."""
        with self.moment():
            self.network.unplug(self.cluster.devices["a"])
            self.cluster.stop("a")
        self.lasts(self.times.cut)
        self.network.lift("a")
        self.cluster.start("a")

    def cut(self, *, database: bool = False, peers: bool = False) -> None:
        with self.moment():
            self.network.cut("a", database=database, peers=peers)
        self.resume()
        self.lasts(self.times.cut)
        self.network.lift("a")

    def pause(self) -> None:
        with self.moment():
            pass
        self.lasts(self.times.pause)
        self.resume()


FAULTS: dict[Outage, tuple[str, Callable[[Scene], None]]] = {
    Outage.KILL: ("kill", Scene.kill),
    Outage.DROP_DB: ("drop-db", Scene.drop_db),
    Outage.POSTGRES: ("pause", Scene.postgres),
    Outage.DEVICE: ("pause", Scene.device),
    Outage.CUT_DATABASE: ("pause", lambda scene: scene.cut(database=True)),
    Outage.CUT_PEERS: ("pause", lambda scene: scene.cut(peers=True)),
    Outage.CUT_BOTH: ("pause", lambda scene: scene.cut(database=True, peers=True)),
    Outage.PAUSE: ("pause", Scene.pause),
}
"""What GIT_CLUSTER_FAULT does at the step, and what is done then from outside."""


# --------------------------------------------------------------------------------------------------------- a cell


def run(place: Network, cluster: NetworkCluster, step: Step, outage: Outage, times: Times = FULL) -> Cell:
    """One cell on a cluster that is whole; it is whole again afterwards unless something is wrong."""
    cell = Cell(step, outage, brief=times.brief is not None)
    try:
        _run(place, cluster, cell, times)
    except Exception as error:  # whatever it is, the other cells are run
        cell.wrong.append(f"{type(error).__name__}: {str(error)[:500]}")
    return cell


def _run(place: Network, cluster: NetworkCluster, cell: Cell, times: Times) -> None:
    how, happens = FAULTS[cell.outage]
    cluster.stop("a")
    log = cluster.devices["a"].log
    before = log.stat().st_size
    cluster.start("a", fault=f"{cell.step}:{how}:once")
    project = _project(cluster, f"{cell.step}-{cell.outage}")
    pushed = {"main": project.git("rev-parse", "main")}
    next = Next(project, "bc", "next", times.until_next)
    scene = Scene(place, cluster, times, next)

    hit = Hit(project, "a", "hit")
    cluster.wait(lambda: f"{how} at {cell.step}" in _since(log, before), f"a push reaches {cell.step}", 20)
    if how == "pause":
        pid = cluster.devices["a"].pid
        assert pid is not None
        cluster.wait(lambda: stopped(pid), f"the device stops at {cell.step}", 20)
    happens(scene)
    lifted = time.monotonic()
    next.wait()
    if next.at is None:
        cell.wrong.append(f"no other push within {times.until_next:g} s: {next.texts[-1][-300:]}")
    else:
        cell.next = next.at - scene.hit_at
        pushed["next"] = next.oid
    told = cell.told = hit.finish(0.0 if cell.outage is Outage.DEVICE else times.until_back)
    cell.answered = max(0.0, told.at - scene.hit_at)
    if told.saw is Saw.OK:
        pushed["hit"] = hit.oid
    elif told.saw is Saw.NOTHING and cell.outage is not Outage.DEVICE:
        cell.wrong.append("the client was never answered")
    cluster.wait(lambda: cluster.converged(project.name), "the devices are equal", times.until_back)
    cell.back = time.monotonic() - lifted

    last = Next(project, "a", "last", times.until_back)
    last.start()
    last.wait()
    if last.at is None:
        cell.wrong.append(f"a takes no push any more: {last.texts[-1][-300:]}")
    else:
        pushed["last"] = last.oid
    _check(cell, project, pushed, [told.text, *next.texts, *last.texts])
    cell.stands = ("refs/heads/hit", hit.oid) in _logged(project)
    if cell.stands and told.saw is Saw.REJECTED and "not committed" not in told.why:
        cell.wrong.append("the client was told that its push is not there, and it is")
    cell.notes += [
        f"in a's log: {line[:300]}" for line in _since(log, before).splitlines() if "level=error" in line
    ]


def _project(cluster: NetworkCluster, name: str) -> Project:
    """A repository with one acknowledged push that every device has."""
    project = Project.named(cluster, name, min_copies=2)
    cluster.db.set_repository(project.name, when_short=WhenShort.REFUSE)
    project.pushed("b", "main")
    cluster.wait(lambda: cluster.converged(project.name), "every device has the first push")
    return project


def _check(cell: Cell, project: Project, pushed: dict[str, str], texts: Iterable[str]) -> None:
    """Hold the end of a cell against what was promised."""
    cluster = project.cluster
    project.converge()
    logged = _logged(project)
    shown = {device: project.refs(device) for device in cluster.devices}
    for branch, oid in pushed.items():
        ref = f"refs/heads/{branch}"
        gone = [device for device, refs in shown.items() if refs.get(ref) != oid]
        if (ref, oid) not in logged:
            gone.append("the push log")
        if gone:
            cell.lost += 1
            cell.wrong.append(f"the acknowledged push of {branch} is not on {', '.join(gone)}")
    cell.acknowledged = len(pushed)
    if len({tuple(sorted(refs.items())) for refs in shown.values()}) != 1:
        cell.wrong.append(f"the devices show different refs: {shown}")
    if (owner := cluster.snapshot(project.name).intent_owner) is not None:
        cell.wrong.append(f"an intent is left on {owner.device.name}")
    state = cluster.admin_json("status", project.name)["repositories"][0]["state"]
    if state == "frozen":
        cell.wrong.append("it is frozen")
    events = cluster.db.events(cluster.snapshot(project.name).repository.id)
    cell.did = [event.kind.value for event in events[::-1]]
    cell.thaws = sum(event.kind is EventKind.THAW for event in events)
    if cell.thaws:
        cell.wrong.append("somebody typed thaw")
    for text in texts:
        try:
            polite(cluster, text)
        except AssertionError:
            cell.wrong.append(f"not for a client: {text[-300:]}")


def _logged(project: Project) -> set[tuple[str, str]]:
    """Every (ref, object id) that a version brought."""
    return {(update.ref, update.new) for entry in project.log() for update in entry.refs}


def _since(log: Path, offset: int) -> str:
    with log.open("rb") as file:
        file.seek(offset)
        return file.read().decode(errors="replace")
