"""The simulation: pushes and reads go through devices, cores, locks and the database, by the steps of design.md.

    client ──▶ connect, authorize, catch-up, receive, propose, stage ──▶ lock ─┐ clear, settle, intend, apply, commit
               (distance and cores only)                                      └──▶ mark ──▶ acknowledge
                                                     commit ──▶ every device is notified ──▶ replicas sync

What is waited for: cores (a device's own, or one machine's for all), the daemon's interpreter (one thread of it runs
at a time), PostgreSQL's cores and its disk (which takes many commits at once), the turn for a repository within a
device, the write lock between devices, another's sync, a commit in flight. Everything else passes as time. Nothing is
random but the order of arrival, and that is the same in every run.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from random import Random
from typing import Any

import simpy

from cluster.faults import Step
from cluster.locks import AT_MOST, IN_A_ROW
from cluster.measure import ReadStep
from tests.model.constants import CONNECT, Constants, Cost, Work
from tests.model.parts import QUANTUM, Cores, Lock, Outcome, Process, Repository, Setting

Costs = Mapping[str, Cost]

CLOSING = 0.2
"""Of the seconds of "connect", the part that comes after the answer: programs end, connections are closed."""


class World:
    """One run."""

    def __init__(self, constants: Constants, setting: Setting, seed: int = 1) -> None:
        self.env = env = simpy.Environment()
        self.constants, self.setting, self.random = constants, setting, Random(seed)
        shared = Cores(env, setting.one_machine) if setting.one_machine else None
        self.cores = [shared or Cores(env, setting.cores) for _ in range(setting.devices)]
        self.interpreters = [Cores(env, setting.daemons) for _ in range(setting.devices)]
        self.database_cores = shared or Cores(env, setting.database_cores)
        self.client_cores = shared
        self.flush_until = 0.0
        self.outcome = Outcome()
        count = min(setting.replicas, setting.devices)
        self.repositories = [
            Repository(env, n, [(n + i) % setting.devices for i in range(count)])
            for n in range(setting.repositories)
        ]

    # --------------------------------------------------------------------------------------- running

    def run(self) -> Outcome:
        """All clients at it for `warm` seconds, then `seconds` that count."""
        setting = self.setting
        for number in range(setting.pushers):
            self.env.process(self._pusher(number))
        for number in range(setting.readers):
            self.env.process(self._reader(number))
        self.env.run(until=setting.warm + setting.seconds)
        self.outcome.pushes /= setting.seconds
        self.outcome.reads /= setting.seconds
        return self.outcome

    @property
    def counts(self) -> bool:
        return self.env.now >= self.setting.warm

    def _place(self, number: int) -> tuple[Repository, int]:
        repository = self.repositories[number % len(self.repositories)]
        turn = number // len(self.repositories) if self.setting.spread else 0
        return repository, repository.holders[turn % len(repository.holders)]

    def _pusher(self, number: int) -> Process:
        repository, device = self._place(number)
        yield self.env.timeout(self.random.random() * 0.05)
        while True:
            begun = self.env.now
            yield from self.push(repository, device)
            if self.counts:
                self.outcome.pushes += 1
                self.outcome.latencies.append(self.env.now - begun)
            if self.setting.read_after_push:
                begun = self.env.now
                yield from self.read(repository, repository.holders[1])
                if self.counts:
                    self.outcome.after.append(self.env.now - begun)
                yield self.env.timeout(2.0)  # until all is quiet again

    def _reader(self, number: int) -> Process:
        repository = self.repositories[number % len(self.repositories)]
        device = repository.holders[number // len(self.repositories) % len(repository.holders)]
        yield self.env.timeout(self.random.random() * 0.05)
        while True:
            begun = self.env.now
            yield from self.read(repository, device)
            if self.counts:
                self.outcome.reads += 1
                self.outcome.read.append(self.env.now - begun)

    # --------------------------------------------------------------------------------------- what takes time

    def trip(self, rtt: float, count: float = 1.0) -> Process:
        yield self.env.timeout(rtt * max(0.0, count))

    def ask(self, count: float = 1.0) -> Process:
        """Trips to the database: distance, and PostgreSQL's work."""
        yield from self.trip(self.setting.rtt_database, count)
        yield from self.database_cores.use(self.constants.statement * count)

    def flush(self) -> Process:
        """A commit reaches the disk: with all others that are ready when the disk begins."""
        now = self.env.now
        if self.flush_until > now:  # under way without us: wait for the next one
            yield self.env.timeout(self.flush_until - now)
            if self.flush_until <= self.env.now:
                self.flush_until = self.env.now + self.constants.flush
            yield self.env.timeout(self.flush_until - self.env.now)
        else:
            self.flush_until = now + self.constants.flush
            yield self.env.timeout(self.constants.flush)

    def work(self, device: int, work: Work, at_least: float = 0.0) -> Process:
        """CPU of a device, and the rest of `at_least` seconds as time: disks, pipes, processes that are started."""
        yield from self._python(device, work.daemon)
        yield from self.cores[device].use(work.git)
        if (rest := at_least - work.all) > 0:
            yield self.env.timeout(rest)

    def _python(self, device: int, seconds: float) -> Process:
        """The interpreter and a core at once."""
        left = seconds
        while left > 1e-9:
            part = min(left, QUANTUM)
            with self.interpreters[device]._cores.request() as turn:
                yield turn
                yield from self.cores[device].use(part)
            left -= part

    def _share(self, costs: Costs, step: str, work: Work, *, most: float | None = None) -> Work:
        """Of a push's CPU what falls to a step ("stage" has its own): as its seconds at no distance. Not more than
        those."""
        mine = self.own(costs, step)
        whole = sum(self.own(costs, each) for each in costs if each != Step.STAGE)
        part = mine / whole if whole > 0 else 0.0
        part = min(part, (mine if most is None else most) / work.all if work.all else 0.0)
        return Work(work.daemon * part, work.git * part)

    def own(self, costs: Costs, step: str) -> float:
        """A step's seconds at no distance without the client's and PostgreSQL's parts: those are spent elsewhere."""
        cost = costs[step]
        others = cost.database * self.constants.statement + (
            self.constants.client if step == CONNECT else 0.0
        )
        return max(0.0, cost.seconds - others)

    def _step(self, device: int, costs: Costs, step: str, work: Work) -> Process:
        cost, setting = costs[step], self.setting
        yield self.env.timeout(setting.rtt_peers * cost.peers + setting.rtt_clients * cost.clients)
        yield from self.ask(cost.database)
        yield from self.work(device, self._share(costs, step, work), self.own(costs, step))

    def _connect(self, device: int, costs: Costs, work: Work) -> Process:
        """The client's programs, and all of "connect" but what comes after the answer."""
        cost, setting = costs[CONNECT], self.setting
        if self.client_cores:
            yield from self.client_cores.use(self.constants.client)
        else:
            yield self.env.timeout(self.constants.client)
        yield from self.trip(setting.rtt_clients, cost.clients)
        yield from self.ask(cost.database)
        own = (1 - CLOSING) * self.own(costs, CONNECT)
        yield from self.work(device, self._share(costs, CONNECT, work, most=own), own)

    # --------------------------------------------------------------------------------------- a push

    def push(self, repository: Repository, device: int) -> Process:
        """The steps, as `push` in cluster/session.py has them."""
        constants, setting = self.constants, self.setting
        copies = min(setting.min_copies, len(repository.holders))
        costs = constants.push[min(copies, 2)]
        work = constants.work_push
        yield from self._connect(device, costs, work)
        yield from self._step(device, costs, Step.AUTHORIZE, work)
        yield from self._step(device, costs, Step.CATCH_UP, work)
        yield from self.fresh(repository, device)
        seen = repository.at[device]
        yield from self._step(device, costs, Step.RECEIVE, work)
        yield from self._step(device, costs, Step.PROPOSE, work)
        if repository.intent is not None:
            yield from self.ask()  # is it alive?
        keepers = self._keepers(repository, device, copies - 1)
        yield from self._stage(repository, seen, device, keepers)
        if repository.at[device] < repository.version and repository.intent is None:
            yield from self.sync(repository, device)
        turn = repository.turns[device].request()
        yield turn
        lock = yield from self._locked(repository, device, costs[Step.LOCK])
        known = self.env.now
        replica, settled = yield from self._held(repository, device, costs, work, keepers)
        version = repository.at[device]
        if self.counts:
            self.outcome.held.append(self.env.now - known)
        since = settled or lock.since
        if lock.row < IN_A_ROW and self.env.now - since < AT_MOST and repository.turns[device].queue:
            repository.handed[device] = Lock(lock.place, lock.granted, since, lock.row + 1)
        else:
            self.env.process(self._release(repository, lock))
        repository.turns[device].release(turn)
        yield from self._step(device, costs, Step.MARK, work)
        repository.files[device].release(replica)
        yield from self._step(device, costs, Step.ACKNOWLEDGE, work)
        repository.acknowledged_at[version] = self.env.now
        yield self.env.timeout(CLOSING * self.own(costs, CONNECT))

    def _keepers(self, repository: Repository, device: int, count: int) -> list[int]:
        """Who has the newest version first, as stage_peers prefers them."""
        others = [other for other in repository.holders if other != device]
        return sorted(others, key=lambda other: -repository.at[other])[:count]

    def _stage(self, repository: Repository, seen: int, device: int, keepers: list[int]) -> Process:
        """One keeper after another is asked, brings itself to what the client saw, and takes the objects."""
        constants = self.constants
        base, more = constants.push[1][Step.STAGE], constants.push[2][Step.STAGE]
        each = Cost(more.seconds - base.seconds, more.database - base.database, more.peers - base.peers)
        yield from self.ask(base.database)
        yield self.env.timeout(max(0.0, base.seconds - base.database * constants.statement))
        for keeper in keepers:
            yield self.env.timeout(self.setting.rtt_peers * each.peers)
            yield from self.ask(each.database)
            if repository.at[keeper] < seen:
                yield from self.sync(repository, keeper)
            yield from self.work(device, constants.work_send)
            yield from self.work(keeper, constants.work_keep)
            spent = constants.work_send.all + constants.work_keep.all + each.database * constants.statement
            yield self.env.timeout(max(0.0, each.seconds - spent))

    def _release(self, repository: Repository, lock: Lock) -> Process:
        """The lock is the next one's when PostgreSQL hears of it, whoever waits for its answer."""
        yield from self.trip(self.setting.rtt_database, 0.5)
        repository.lock.release(lock.place)
        if self.counts:
            self.outcome.locked.append((self.env.now - lock.granted) / lock.row)

    def _locked(self, repository: Repository, device: int, cost: Cost) -> Generator[Any, Any, Lock]:
        """The write lock, once the device knows that it has it: from the one before on this device, or PostgreSQL's."""
        place, setting, constants = repository.lock, self.setting, self.constants
        if handed := repository.handed.pop(device, None):
            yield from self.ask(1)
            return handed
        yield from self.ask(cost.database - 1)
        yield from self.trip(setting.rtt_database, 0.5)
        if not place.users and not place.queue:
            request = place.request()
            yield request
            granted = self.env.now
            yield from self.trip(setting.rtt_database, 0.5)
            return Lock(request, granted, self.env.now)
        yield from self.trip(setting.rtt_database, 0.5)
        yield from self.ask(constants.wait_before - 1)
        yield from self.trip(setting.rtt_database, 0.5)
        request = place.request()
        yield request
        granted = self.env.now
        yield from self.trip(setting.rtt_database, 0.5)
        yield from self.ask(constants.wait_after)
        return Lock(request, granted, self.env.now)

    def _held(
        self, repository: Repository, device: int, costs: Costs, work: Work, keepers: list[int]
    ) -> Generator[Any, Any, tuple[simpy.resources.resource.Request, float | None]]:
        """From "clear" to "commit"; the replica's lock, which goes on to be held, and when a sync ended, if there was
        one."""
        settled = None
        yield from self._step(device, costs, Step.CLEAR, work)
        yield from self._step(device, costs, Step.SETTLE, work)
        if repository.at[device] < repository.version:
            yield from self.sync(repository, device)
            settled = self.env.now
        replica = repository.files[device].request()
        yield replica
        yield from self._step(device, costs, Step.INTEND, work)
        repository.intents += 1
        repository.intent = (repository.intents, device)
        yield from self._step(device, costs, Step.APPLY, work)
        commit = costs[Step.COMMIT]
        yield from self.trip(self.setting.rtt_database, commit.database - 0.5)
        yield from self.database_cores.use(self.constants.statement * commit.database)
        yield from self.flush()
        self._commit(repository, device, keepers)
        yield from self.trip(self.setting.rtt_database, 0.5)
        yield from self.work(device, self._share(costs, Step.COMMIT, work), self.own(costs, Step.COMMIT))
        return replica, settled

    def _commit(self, repository: Repository, device: int, keepers: list[int]) -> None:
        repository.version += 1
        repository.at[device] = repository.version
        repository.intent = None
        repository.kept[repository.version] = {device, *keepers}
        repository.committed_at[repository.version] = self.env.now
        repository.committed.succeed()
        repository.committed = self.env.event()
        for other in range(self.setting.devices):
            if other != device:
                self.env.process(self._notified(repository, other))

    # --------------------------------------------------------------------------------------- a sync, a read

    def _notified(self, repository: Repository, device: int) -> Process:
        """What NOTIFY sets off on another device: where it has a replica, a sync."""
        yield from self.trip(self.setting.rtt_database, 0.5)
        if device in repository.holders and repository.at[device] < repository.version:
            yield from self.sync(repository, device)
        yield from self.database_cores.use(self.constants.statement * self.constants.notified)
        yield from self.work(device, self.constants.work_notified)

    def sync(self, repository: Repository, device: int) -> Process:
        """Bring a replica to the version that is newest when its turn comes; who waits for another's looks again."""
        constants, setting = self.constants, self.setting
        with repository.syncs[device].request() as turn:
            yield turn
            if repository.at[device] >= repository.version:
                yield from self.ask()  # the look by which it finds that out
                return
            target = repository.version
            missing = range(repository.at[device] + 1, target + 1)
            staged = all(device in repository.kept[version] for version in missing)
            cost = constants.kept if staged else constants.fetched
            work = constants.work_kept if staged else constants.work_fetched
            # Counted from the commit to the claim: half of a trip that the notification takes, the sync's own, and half
            # of the claim's.
            trips = max(0.0, cost.database - 1.0)
            yield self.env.timeout(setting.rtt_database * trips + setting.rtt_peers * cost.peers)
            yield from self.database_cores.use(constants.statement * cost.database)
            yield from self.work(device, work, max(0.0, cost.seconds - cost.database * constants.statement))
            if not staged:
                source = max(repository.holders, key=lambda other: repository.at[other])
                yield from self.work(source, constants.work_serve)
            yield from self.flush()
            yield from self.trip(setting.rtt_database, 0.5)
            for version in range(repository.at[device] + 1, target + 1):
                self._holds(repository, version)
            repository.at[device] = max(repository.at[device], target)
            yield from self.trip(setting.rtt_database, 0.5)

    def _holds(self, repository: Repository, version: int) -> None:
        if self.counts:
            self.outcome.fresh.append(self.env.now - repository.committed_at[version])
            if version in repository.acknowledged_at:
                self.outcome.stale.append(self.env.now - repository.acknowledged_at[version])

    def fresh(self, repository: Repository, device: int) -> Process:
        """From the look that `authorize` was to a replica that may be shown (gate.fresh)."""
        waited = False
        while True:
            intent = repository.intent
            if intent is not None and (not waited or intent[1] == device):
                waited = True
                yield from self.ask()
                pause = 0.002
                while True:
                    yield from self.ask()
                    if repository.intent is None or repository.intent[0] != intent[0]:
                        break
                    yield from self.ask()
                    yield repository.committed | self.env.timeout(pause)  # NOTIFY, or to be sure
                    pause = min(pause * 1.5, 0.1)
            elif repository.at[device] < repository.version:
                yield from self.sync(repository, device)
            else:
                return
            yield from self.ask()

    def read(self, repository: Repository, device: int) -> Process:
        """The steps of a read, on a device that holds the repository."""
        constants = self.constants
        costs, work = constants.read, constants.work_read
        yield from self._connect(device, costs, work)
        yield from self._step(device, costs, ReadStep.AUTHORIZE, work)
        yield from self._step(device, costs, ReadStep.CATCH_UP, work)
        yield from self.fresh(repository, device)
        yield from self._step(device, costs, ReadStep.SERVE, work)
        yield self.env.timeout(CLOSING * self.own(costs, CONNECT))


def simulate(constants: Constants, setting: Setting) -> Outcome:
    """One run of the model."""
    return World(constants, setting).run()
