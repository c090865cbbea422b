"""What all processes of a device say together, for /-/metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.samples import Sample

from cluster.db.pool import Usage

LEAST = {"process_start_time_seconds", "process_max_fds"}
"""Of these the smallest is the device's; of all else the sum."""


@dataclass(frozen=True, slots=True)
class Figures:
    """counted: what is counted. connections: open now, by endpoint. pools: to the database. processes: their ids."""

    counted: Sequence[Metric]
    connections: Mapping[str, int]
    pools: Mapping[str, Usage]
    processes: Sequence[int]


def together(many: Iterable[Iterable[Metric]]) -> list[Metric]:
    """The same metrics of several processes as those of one."""
    found: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, frozenset[tuple[str, str]]], Sample]] = {}
    for metric in (metric for each in many for metric in each):
        if metric.name not in found:
            found[metric.name] = Metric(metric.name, metric.documentation, metric.type)
            values[metric.name] = {}
        samples, add = values[metric.name], min if metric.name in LEAST else _sum
        for sample in metric.samples:
            key = sample.name, frozenset(sample.labels.items())
            before = samples.get(key)
            samples[key] = (
                sample if before is None else sample._replace(value=add(before.value, sample.value))
            )
    for name, metric in found.items():
        metric.samples = list(values[name].values())
    return list(found.values())


def _sum(one: float, other: float) -> float:
    return one + other


def of_processes(processes: Iterable[int]) -> list[Metric]:
    """What the kernel says of them: their memory, their time, their open files."""
    return together(ProcessCollector(pid=_always(each), registry=None).collect() for each in processes)


def _always(number: int) -> Callable[[], int]:
    return lambda: number


def pools_together(many: Iterable[Mapping[str, Usage]]) -> dict[str, Usage]:
    """The pools of several processes as those of one."""
    found: dict[str, Usage] = {}
    for name, usage in (item for each in many for item in each.items()):
        before = found.get(name, Usage(0, 0, 0, 0))
        found[name] = Usage(
            before.most + usage.most,
            before.taken + usage.taken,
            before.idle + usage.idle,
            before.waits + usage.waits,
        )
    return found
