"""What devices count of their work (docs/monitoring.md), added up over a cluster and taken as differences."""

from __future__ import annotations

import math
import urllib.request
from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""By a sample's name and labels."""


def scrape(addresses: Iterable[str]) -> Figures:
    """The sum of what the devices at these addresses of HTTP count."""
    total: Figures = {}
    for address in addresses:
        with urllib.request.urlopen(f"{address}/-/metrics", timeout=30) as answer:
            text = answer.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                total[key] = total.get(key, 0.0) + sample.value
    return total


def difference(after: Figures, before: Figures) -> Figures:
    return {key: value - before.get(key, 0.0) for key, value in after.items()}


def mean(figures: Figures, name: str, **labels: str) -> float:
    """Of a histogram: nan where nothing was counted."""
    key = frozenset(labels.items())
    count = figures.get((f"{name}_count", key), 0.0)
    return figures[f"{name}_sum", key] / count if count else math.nan


def quantile(figures: Figures, name: str, share: float, **labels: str) -> float:
    """Of a histogram without further labels, as Prometheus does it: evenly spread within a bucket. nan: empty."""
    wanted = set(labels.items())
    buckets = []
    for (sample, found), value in figures.items():
        edge = dict(found).get("le")
        if sample == f"{name}_bucket" and edge is not None and found - {("le", edge)} == wanted:
            buckets.append((float(edge), value))
    buckets.sort()
    if not buckets or not buckets[-1][1]:
        return math.nan
    rank, below, start = share * buckets[-1][1], 0.0, 0.0
    for bound, count in buckets:
        if count >= rank and count > below:
            return start if math.isinf(bound) else start + (bound - start) * (rank - below) / (count - below)
        below, start = count, bound
    return start
