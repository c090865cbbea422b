"""The examination: what is looked at, in which order, and how long each may take.

Everything that can hang (a disk, a program, the database, a peer) is asked in a thread of its own with a deadline:

    this machine      at once, beside the database
    the database      DATABASE seconds at the most
    peers, copies     at once, when the database has said who they are; until TOTAL seconds after the beginning

What is not done by then is a finding itself, and its thread is left behind.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import Event, Thread
from typing import Any, Generic, TypeVar

from cluster import keys, ping
from cluster.config import Config, SshSection
from cluster.db import Database
from cluster.doctor import copies, database, devices, keyring, machine
from cluster.doctor.database import Known
from cluster.doctor.devices import Answer
from cluster.doctor.finding import Finding, problem, warning
from cluster.doctor.judge import at_least, seconds
from cluster.errors import ClusterError, PeerFailed
from cluster.keyfiles import generate_key
from cluster.model import Device, DeviceMode
from cluster.peer import Peers, greet

DATABASE = 8.0
"""Seconds. A first host that swallows packets costs five of them."""

TOTAL = 14.0
"""Seconds for everything; taking back the key of an administrator's machine comes on top."""

FILES = 3.0
"""Seconds for a look at a few files, when everything else has been looked at or waits for it."""

PARTING = 1.0
"""Seconds for work that was broken off to remove what it made."""

KEY_SECONDS = 120
"""How long the key of an administrator's machine is valid at most."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Overdue(Exception):
    """No answer in time."""


class Work(Generic[T]):
    """Something that is being found out, in a thread of its own."""

    def __init__(self, check: str, find_out: Callable[[], T]) -> None:
        self.check = check
        self._value: list[T] = []
        self._error: BaseException | None = None
        self._done = Event()
        self._since = time.monotonic()
        self._find_out = find_out
        Thread(target=self._run, name=f"doctor {check}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._value.append(self._find_out())
        except BaseException as error:
            self._error = error
        self._done.set()

    def result(self, until: float) -> T:
        """What was found out. until: by time.monotonic(). Overdue, or whatever it raised."""
        if not self._done.wait(max(0.0, until - time.monotonic())):
            raise Overdue
        if self._error is not None:
            raise self._error
        return self._value[0]

    def part(self, within: float) -> None:
        """Give it that many seconds to come to its end."""
        self._done.wait(within)

    def failed(self, error: BaseException) -> Finding:
        """The finding where `result` raised."""
        if isinstance(error, Overdue):
            taken = seconds(time.monotonic() - self._since)
            return problem(self.check, f"no answer within {taken}", "see what hangs, then run doctor again")
        if isinstance(error, ClusterError):
            return problem(self.check, error.what, error.hint or "this device's log may say why")
        if isinstance(error, OSError):
            name = f" ({error.filename})" if error.filename else ""
            what = f"this could not be looked at: {error.strerror or error}{name}"
            return problem(self.check, what, "run doctor as the user that git-cluster runs as")
        _log.debug("the check %s failed", self.check, exc_info=error)
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        what = f"the check itself failed: {words}"
        return problem(
            self.check, what, "this is a fault of git-cluster's: `git-cluster --debug doctor` says more"
        )


def settled(work: Work[list[Finding]], until: float) -> list[Finding]:
    try:
        return work.result(until)
    except Exception as error:
        return [work.failed(error)]


def examine(config: Config) -> Generator[Finding]:
    """Every finding, as it is made, in the order in which people read them. Raises nothing but what interrupts it."""
    began = time.monotonic()
    asked: Work[Known] = Work("database", lambda: database.look(config))
    local = _this_machine(config)
    try:
        for work in local:
            yield from settled(work, began + DATABASE)
        try:
            known = asked.result(began + DATABASE)
        except Exception as error:
            known = Known([asked.failed(error)])
        yield from known.findings
        yield from _the_cluster(config, known, began + TOTAL)
    finally:
        for work in local:
            work.part(PARTING)


def _this_machine(config: Config) -> list[Work[list[Finding]]]:
    """What can be said without anybody else."""
    found = [Work("configuration", lambda: machine.configuration(config))]
    if device := config.device:
        found += [
            Work("git", machine.git_program),
            Work("openssh", machine.openssh),
            Work("open files", lambda: machine.open_files(device.data_dir)),
            Work("data folder", lambda: machine.disk(device.data_dir)),
        ]
    return found


def _the_cluster(config: Config, known: Known, until: float) -> Iterator[Finding]:
    """Who this machine is in the cluster, then everybody else. known: what the database said, which may be nothing."""
    name = config.device.name if config.device else None
    mine = known.device(name) if name else None
    key: Any = None
    if config.device:
        yield from _registered(name, mine, known)
        reading = Work("device key", lambda: _keys(config, mine))
        try:
            key, found = reading.result(time.monotonic() + FILES)
        except Exception as error:
            found = [reading.failed(error)]
        yield from found
        yield from settled(Work("daemon", lambda: [_daemon(config, mine)]), time.monotonic() + FILES)
    with _peers(config, known, mine, key, until) as peers:
        works = []
        if mine and mine.mode is not DeviceMode.DISABLED:
            works.append(Work("endpoint", lambda: [_endpoint(config.ssh, mine, peers, known)]))
        for device in known.devices:
            if device.name != name:
                works.append(Work(f"peer {device.name}", _peer(device, peers, known)))
        if db := known.db:
            works.append(Work("copies", lambda: copies.look(db, known.devices)))
        else:
            what = "neither peers nor copies were looked at: who and where they are, only the database says"
            yield warning("peers", what, "put the database right, then run doctor again")
        for work in works:
            yield from settled(work, until)


def _registered(name: str | None, mine: Device | None, known: Known) -> Iterator[Finding]:
    if known.db is None:
        return
    if mine is None:
        yield problem(
            "registration",
            f"device {name} is not registered in this cluster",
            f"register it once: git-cluster device add {name} --ssh URL --key FILE --host-key FILE",
        )


def _daemon(config: Config, mine: Device | None) -> Finding:
    assert config.device is not None
    held, _ = machine.holder(machine.daemon_lock(config.device.data_dir))
    return devices.daemon(mine, held=held)


def _keys(config: Config, mine: Device | None) -> tuple[Any, list[Finding]]:
    """The device's key where it proves this device, and what is to be said of both key files."""
    assert config.device is not None
    path = config.device.key
    key, found = keyring.load(path, "device key", "the key of this device")
    proven = key
    if key is not None:
        compared = keyring.compare("device key", key, mine.public_key if mine else None, "[device] key", path)
        if compared.hint or not found:
            found.append(compared)
        if compared.hint or mine is None or mine.mode is DeviceMode.DISABLED:
            proven = None
    if config.ssh:
        path = config.ssh.host_key
        host_key, of_host = keyring.load(path, "host key", "the host key of the SSH endpoint")
        if host_key is not None:
            compared = keyring.compare(
                "host key", host_key, mine.host_key if mine else None, "[ssh] host_key", path
            )
            twice = keyring.same(key, host_key) if key is not None else None
            of_host += [compared] if compared.hint or not (of_host or twice) else []
            of_host += [twice] if twice else []
        found += of_host
    if mine:
        found.insert(0, devices.registration(mine, config.ssh.advertise if config.ssh else None))
    return proven, found


@contextmanager
def _peers(
    config: Config, known: Known, mine: Device | None, key: Any, until: float
) -> Iterator[Peers | None]:
    """A way to the other devices: as this device, or as an operator where this machine is none. None: without a key
    that they know, they are only greeted."""
    with ExitStack() as stack:
        peers = None
        if key is not None and mine is not None:
            peers = Peers(key)
        elif config.device is None and known.db is not None and known.devices:
            peers = _operator(known.db, stack)
        try:
            yield peers
        finally:
            if peers:
                Work("connections", peers.close).part(PARTING)
            Work("database", stack.close).part(2 * PARTING)
            if known.db:
                known.db.close()


def _operator(db: Database, stack: ExitStack) -> Peers:
    key = generate_key()
    fingerprint, line = keys.fingerprint(key.asbytes()), keyring.line(key)
    stack.enter_context(db.operator_key(fingerprint, line, seconds=KEY_SECONDS))
    return Peers(
        key,
        whose="the key of this command",
        if_refused="This command registered it in its own database: is that the device's database too?",
    )


def _ask(device: Device, peers: Peers | None, known: Known) -> Answer | ClusterError:
    try:
        if peers is None:
            greet(device)
            return Answer()
        pong, ahead = ping.ask(peers, device)
    except PeerFailed as error:
        return error
    except ValueError:  # a port that is none
        return ClusterError(
            f"device {device.name} is registered at {device.ssh_url}, which is no SSH URL",
            hint="register it as ssh://user@host:port",
        )
    if known.skew is None or pong.version is None:
        return Answer(pong)
    return Answer(pong, at_least(ahead - known.skew, pong.taken / 2))


def _peer(device: Device, peers: Peers | None, known: Known) -> Callable[[], list[Finding]]:
    if device.mode is DeviceMode.DISABLED:
        return lambda: [devices.disabled(device)]
    return lambda: [devices.peer(device, _ask(device, peers, known))]


def _endpoint(ssh: SshSection | None, mine: Device, peers: Peers | None, known: Known) -> Finding:
    """This machine's own, at its registered address; where that does not lead here from here, where it listens.

    Without [ssh], OpenSSH serves: what is behind it is no business of its host key's.
    """
    asking = peers if ssh else None
    answer = _ask(mine, asking, known)
    if isinstance(answer, ClusterError) and ssh and ssh.listen.port and "cannot be reached" in answer.what:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(ssh.listen.host, ssh.listen.host)  # noqa: S104
        here = (
            f"ssh://git@[{host}]:{ssh.listen.port}" if ":" in host else f"ssh://git@{host}:{ssh.listen.port}"
        )
        second = _ask(replace(mine, ssh_url=here), asking, known)
        if not isinstance(second, ClusterError):
            return devices.own(mine, second, locally=True)
    return devices.own(mine, answer, locally=False)
