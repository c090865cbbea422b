"""A torture run on a real cluster: clients and nemesis at work, everything made whole, then checks and figures."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from cluster.model import LogEntry, is_zero
from tests.history import ABSENT, Entry, Operation, Outcome, Violation, against_registers, check, line
from tests.network import NetworkCluster, cluster_on, network
from tests.torture.clients import Client, History
from tests.torture.nemesis import Nemesis, Struck
from tests.torture.plan import Action, Plan, Wish

WRITES = {"heal": "auto", "fence_after": "3s", "lock_timeout": "20s", "commit_timeout": "20s"}
PAUSE = 0.3
"""Seconds after an operation that did not go well: a device that is down refuses a hundred of them in that time."""

TELL = 10.0
SETTLE = 60.0
"""Seconds in which, once all faults are lifted, every device has to take a push and all copies to be equal."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run."""

    plan: Plan
    history: Sequence[Operation]
    log: Sequence[Entry]
    struck: Sequence[Struck]
    violations: Sequence[Violation]
    thaws: int
    seconds: float

    @property
    def lost(self) -> int:
        """Pushes that were acknowledged and of which the push log knows nothing."""
        return sum("not in the push log" in violation.what for violation in self.violations)

    def slowest(self, *, alone: bool) -> tuple[float, Struck | None]:
        """Seconds from the end of a fault to the next acknowledged push: the longest, and after which fault.

        alone: only where no other fault was there between the two.
        """
        acknowledged = sorted(o.ended for o in self.history if o.writes and _ok(o) and o.ended is not None)
        longest: tuple[float, Struck | None] = (0.0, None)
        for struck in self.struck:
            until = next((t for t in acknowledged if t > struck.ended), float("inf"))
            if alone and any(o.begun < until and o.ended > struck.ended for o in self.struck):
                continue
            longest = max(longest, (until - struck.ended, struck), key=lambda pair: pair[0])
        return longest

    def figures(self) -> str:
        """A small table."""
        (alone, after), (among, after_among) = self.slowest(alone=True), self.slowest(alone=False)
        outcomes = Counter(part.outcome for o in self.history if o.writes for part in o.parts)
        rows = [
            ("seed", str(self.plan.seed)),
            ("operations checked", str(len(self.history))),
            ("  pushes to a ref", ", ".join(f"{n} {outcome}" for outcome, n in sorted(outcomes.items()))),
            ("  reads answered", str(sum(_ok(o) for o in self.history if not o.writes))),
            ("versions", str(len(self.log))),
            ("faults injected", str(len(self.struck))),
            *(
                (f"  {fault}", str(n))
                for fault, n in sorted(Counter(s.blow.fault for s in self.struck).items())
            ),
            ("acknowledged pushes lost", str(self.lost)),
            ("other violations", str(len(self.violations) - self.lost)),
            ("manual thaws", str(self.thaws)),
            ("slowest recovery, end of fault to next push", f"{alone:.1f} s" + _after(after)),
            ("  with other faults meanwhile", f"{among:.1f} s" + _after(after_among)),
            ("took", f"{self.seconds:.0f} s"),
        ]
        return "\n".join(f"{name:<42} {value}" for name, value in rows)

    def story(self) -> str:
        """Every operation and every fault, in the order of their begin."""
        told = [(operation.begun, line(operation)) for operation in self.history]
        told += [(s.begun, f"  {s.begun:8.3f} to {s.ended:8.3f} s  *** {s.blow}") for s in self.struck]
        return "\n".join(text for _, text in sorted(told))

    def report(self) -> str:
        """The violations, then the figures."""
        return "\n\n".join([*(v.describe(self.plan.seed) for v in self.violations), self.figures()])


def _after(struck: Struck | None) -> str:
    return f" after: {struck.blow}" if struck else ""


def _ok(operation: Operation) -> bool:
    return all(part.outcome is Outcome.OK for part in operation.parts)


Say = Callable[[str], None]


def torture(
    directory: Path, plan: Plan, *, kind: str = "", hands: int = 2, say: Say = lambda line: None
) -> Result:
    """Carry out `plan` under `directory`. AssertionError where the cluster does not become whole again.

    kind: of the network (tests/network.py); hands: how many faults may be there at the same time.
    """
    began = time.monotonic()
    with (
        network(kind, directory, plan.devices) as net,
        cluster_on(net, directory / "cluster", WRITES, plan.devices) as cluster,
    ):
        cluster.create("team/app", min_copies=min(2, len(plan.devices)))
        cluster.converge()
        history = History(cluster, plan.refs)
        nemesis = Nemesis(cluster, plan, history.clock)
        try:
            _work(plan, history, nemesis, hands, say)
            say("all faults are lifted; every device has to take a push, and all copies to be equal")
            _afterwards(plan, history)
            return finish(cluster, plan, history, nemesis.struck, time.monotonic() - began)
        except AssertionError as error:
            error.add_note(f"seed {plan.seed}; the last faults:")
            for struck in nemesis.struck[-5:]:
                error.add_note(f"  {struck.begun:8.3f} to {struck.ended:8.3f} s  {struck.blow}")
            error.add_note(cluster.admin("status").text)
            for violation in against_registers(history.operations):
                error.add_note(violation.describe(plan.seed))
            raise


def finish(
    cluster: NetworkCluster, plan: Plan, history: History, struck: Sequence[Struck], seconds: float
) -> Result:
    """Hold the history against the push log, once all copies are equal."""
    cluster.wait(cluster.converged, "the replicas are equal again", SETTLE)
    cluster.converge()
    entries = cluster.db.log(cluster.snapshot().repository.id, limit=1_000_000)[::-1]
    log = [as_entry(entry) for entry in entries]
    operations = sorted(history.operations, key=lambda o: o.begun)
    thaws = sum(entry.via == "thaw" for entry in entries)
    return Result(plan, operations, log, struck, check(operations, log), thaws, seconds)


def as_entry(entry: LogEntry) -> Entry:
    """A row of the push log as the checker sees it."""
    return Entry(entry.version, {u.ref: (_value(u.old), _value(u.new)) for u in entry.refs})


def _value(oid: str) -> str:
    return ABSENT if is_zero(oid) else oid


def _work(plan: Plan, history: History, nemesis: Nemesis, hands: int, say: Say) -> None:
    """Clients and nemesis side by side, until the clients are done and the nemesis has undone everything."""
    over, begun = Event(), [0] * len(plan.clients)

    def client(number: int, wishes: Sequence[Wish]) -> None:
        one = Client(history, f"c{number}")
        for wish in wishes:
            while nemesis.ahead(sum(begun)) and not over.wait(0.02):
                pass
            if over.is_set():  # something failed
                break
            begun[number] += 1
            if not one.carry_out(wish):
                over.wait(PAUSE)
        one.close()

    with ThreadPoolExecutor(len(plan.clients) + hands) as threads:
        breaking = [threads.submit(nemesis.work, lambda: sum(begun), over) for _ in range(hands)]
        clients = [threads.submit(client, number, wishes) for number, wishes in enumerate(plan.clients)]
        try:
            while [done for done in clients if not done.done()]:
                finished, _ = wait([*clients, *breaking], TELL, FIRST_EXCEPTION)
                for thread in finished:
                    thread.result()
                say(f"{sum(begun)} operations, {len(nemesis.struck)} of {len(plan.blows)} faults")
        finally:
            over.set()
        for thread in breaking:
            thread.result()


def _afterwards(plan: Plan, history: History) -> None:
    """A push to every device has to go through, and a listing from every device, with nobody's help."""
    last = Client(history, "last")
    for device in plan.devices:
        wish = Wish(Action.FORCE_PUSH, device, plan.refs[:1])
        _until(history, last, wish)
    for device in plan.devices:
        _until(history, last, Wish(Action.LIST, device, plan.refs))
    last.close()


def _until(history: History, last: Client, wish: Wish) -> None:
    """Try until it is acknowledged."""
    deadline = time.monotonic() + SETTLE
    while not last.carry_out(wish):
        assert time.monotonic() < deadline, (
            f"no {wish.action} on {wish.device} within {SETTLE:g} s, though all faults are lifted:\n{last.said}"
        )
