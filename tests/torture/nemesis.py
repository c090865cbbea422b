"""The nemesis: breaks what the plan says, and makes it whole again when its time is up."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

import psycopg

from cluster import embedded
from cluster.errors import ClusterError
from tests.network import NetworkCluster
from tests.torture.plan import AT_A_STEP, AT_ONCE, Blow, Fault, Plan

DATABASE, BETWEEN = "postgresql", "the network between devices"
"""What is broken by one fault at a time, besides the devices."""

START = 60.0
"""Seconds in which a device that is started again has to come up: PostgreSQL may be away at first."""

UNTIL_A_PUSH = 3.0
"""Seconds to wait for a push to come to the step at which a device is to fail."""

OTHERS = 2.0
"""Seconds to wait until all other devices hold the newest version, before a disk is wiped."""

FINISH = 0.5
"""Seconds for what a device was doing, before it is restarted without the fault."""

LEAD = 8
"""Operations that clients may begin ahead of a fault that is due: with all of them done, there is nothing to break."""


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault that was injected: when it began, and when everything was whole again (seconds of the history)."""

    blow: Blow
    begun: float
    ended: float


class Nemesis:
    """Carries out a plan's blows; several at a time where they do not hit the same thing."""

    def __init__(self, cluster: NetworkCluster, plan: Plan, clock: Callable[[], float]) -> None:
        self._cluster, self._plan, self._clock = cluster, plan, clock
        self._locks = {name: Lock() for name in [*plan.devices, DATABASE, BETWEEN]}
        self._blows = list(plan.blows)
        self._mutex = Lock()
        self._lurking = 0
        """Faults that wait for a push to come."""
        self.struck: list[Struck] = []

    def work(self, begun: Callable[[], int], over: Event) -> None:
        """One pair of hands: take the next blow, wait until it is due, strike. Ends with the operations."""
        while True:
            with self._mutex:
                blow = self._blows.pop(0) if self._blows and self._blows[0].at <= begun() else None
            if blow is not None:
                self.strike(blow)
            elif over.wait(0.02) or not self._blows:
                return

    def ahead(self, begun: int) -> bool:
        """Whether so many operations are too many, as a fault that was to come before has not begun."""
        with self._mutex:
            return bool(self._blows) and not self._lurking and begun > self._blows[0].at + LEAD

    def strike(self, blow: Blow) -> None:
        """Inject one fault, let it last, undo it. Nothing is struck where there was nothing to hit."""
        with ExitStack() as locks:
            for name in _hit_by(blow):
                locks.enter_context(self._locks[name])
            start = self._clock()
            with _BY_FAULT[blow.fault](self, blow) as hit:
                if hit:
                    self._last(blow)
            if hit:
                with self._mutex:
                    self.struck.append(Struck(blow, start, self._clock()))

    def _last(self, blow: Blow) -> None:
        """For as long as the blow says."""
        if blow.fault not in AT_ONCE:
            time.sleep(blow.seconds)

    # ------------------------------------------------------------------------- each: break, yield, make whole

    @contextmanager
    def _kill(self, blow: Blow) -> Iterator[bool]:
        self._cluster.stop(blow.device, how=signal.SIGKILL)
        yield True
        self._start(blow.device)

    @contextmanager
    def _stop(self, blow: Blow) -> Iterator[bool]:
        self._cluster.stop(blow.device)
        yield True
        self._start(blow.device)

    @contextmanager
    def _at_a_step(self, blow: Blow) -> Iterator[bool]:
        """Where no push comes to that step in time, nothing was hit."""
        device = self._cluster.devices[blow.device]
        self._cluster.stop(blow.device)
        told = device.log.stat().st_size
        self._start(blow.device, f"{blow.step}:{AT_A_STEP[blow.fault]}")
        hit = self._lurk(UNTIL_A_PUSH, lambda: b"fault: " in device.log.read_bytes()[told:])
        yield hit
        if device.process is not None and device.process.poll() is None:
            device.process.send_signal(signal.SIGCONT)
            time.sleep(FINISH)  # what was paused goes on, and may be too late
        self._cluster.stop(blow.device, timeout=FINISH)  # it may come to the same step again
        self._start(blow.device)

    @contextmanager
    def _power(self, blow: Blow) -> Iterator[bool]:
        self._cluster.network.unplug(self._cluster.devices[blow.device])
        self._cluster.stop(blow.device, how=signal.SIGKILL)
        yield True
        self._cluster.network.lift(blow.device)
        self._start(blow.device)

    @contextmanager
    def _pause(self, blow: Blow) -> Iterator[bool]:
        process = self._cluster.devices[blow.device].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        yield True
        process.send_signal(signal.SIGCONT)

    @contextmanager
    def _database_down(self, blow: Blow) -> Iterator[bool]:
        embedded.crash(self._cluster.network.postgres)
        yield True
        embedded.start(self._cluster.network.postgres)

    @contextmanager
    def _cut_off(self, blow: Blow) -> Iterator[bool]:
        self._cluster.network.cut(
            blow.device, database=blow.fault is not Fault.NO_PEERS, peers=blow.fault is not Fault.NO_DATABASE
        )
        yield True
        self._cluster.network.lift(blow.device)

    @contextmanager
    def _wipe(self, blow: Blow) -> Iterator[bool]:
        """A disk is wiped only while every other one holds the newest version: else the last copy may be on it."""
        self._cluster.stop(blow.device, how=signal.SIGKILL)
        deadline = time.monotonic() + OTHERS
        while not (wiped := self._others_are_current(blow.device)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if wiped:
            shutil.rmtree(self._cluster.devices[blow.device].data_dir / "repositories", ignore_errors=True)
        yield wiped
        self._start(blow.device)

    def _others_are_current(self, device: str) -> bool:
        try:
            leaders = {replica.device.name for replica in self._cluster.snapshot().leaders}
        except ClusterError:
            return False
        return leaders >= set(self._plan.devices) - {device}

    @contextmanager
    def _kill_git(self, blow: Blow) -> Iterator[bool]:
        """The first Git process that the device starts, whatever it does."""
        pid = self._cluster.devices[blow.device].pid
        assert pid is not None
        yield self._lurk(UNTIL_A_PUSH, lambda: any(map(_killed, _git_processes(pid))))

    def _lurk(self, seconds: float, struck: Callable[[], bool]) -> bool:
        """Wait for an occasion, which takes a client; whether it came."""
        with self._mutex:
            self._lurking += 1
        deadline = time.monotonic() + seconds
        try:
            while not (hit := struck()) and time.monotonic() < deadline:
                time.sleep(0.005)
            return hit
        finally:
            with self._mutex:
                self._lurking -= 1

    @contextmanager
    def _cut_connections(self, blow: Blow) -> Iterator[bool]:
        """At PostgreSQL's end, as an administrator or a fail-over would."""
        try:
            with psycopg.connect(self._cluster.database, autocommit=True) as connection:
                connection.execute(
                    """select pg_terminate_backend(pid) from pg_stat_activity
                        where datname = current_database() and (application_name = %(idle)s
                              or application_name like %(writing)s)""",
                    {
                        "idle": f"git-cluster {blow.device}",
                        "writing": f"git-cluster write % {blow.device} %",
                    },
                )
        except psycopg.OperationalError:  # PostgreSQL is down just now
            yield False
        else:
            yield True

    def _start(self, device: str, fault: str = "") -> None:
        """Start it as a service manager would: again, until it stays up."""
        deadline = time.monotonic() + START
        while True:
            try:
                return self._cluster.start(device, fault=fault)
            except ClusterError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


_BY_FAULT = {
    Fault.KILL: Nemesis._kill,
    Fault.STEP_KILL: Nemesis._at_a_step,
    Fault.STEP_PAUSE: Nemesis._at_a_step,
    Fault.STEP_DROP: Nemesis._at_a_step,
    Fault.STOP: Nemesis._stop,
    Fault.POWER: Nemesis._power,
    Fault.PAUSE: Nemesis._pause,
    Fault.DATABASE_DOWN: Nemesis._database_down,
    Fault.NO_DATABASE: Nemesis._cut_off,
    Fault.NO_PEERS: Nemesis._cut_off,
    Fault.ALONE: Nemesis._cut_off,
    Fault.WIPE: Nemesis._wipe,
    Fault.GIT_KILLED: Nemesis._kill_git,
    Fault.CONNECTIONS_CUT: Nemesis._cut_connections,
}


def _hit_by(blow: Blow) -> list[str]:
    """What nobody else may break meanwhile; in an order that all keep."""
    if blow.fault is Fault.DATABASE_DOWN:
        return [DATABASE]
    network = blow.fault in (Fault.NO_PEERS, Fault.ALONE, Fault.POWER)
    return [blow.device, BETWEEN] if network else [blow.device]


def _killed(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _git_processes(pid: int) -> list[int]:
    """Git's processes that a device runs now, however deep."""
    found = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                if Path(f"/proc/{child}/comm").read_text().startswith("git"):
                    found.append(child)
                found += _git_processes(child)
    return found
