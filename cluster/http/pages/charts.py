"""Figures as lines and bars: numbers in, what an inline SVG is drawn from out. Pure; templates/chart.html draws it.

A chart is WIDTH × HEIGHT units, stretched to where it is shown; what is written beside it is HTML, so that it keeps its
size on a phone. Two lines differ in more than colour: each has a dash of its own, and the figures follow in a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cluster.db import Count, Piece
from cluster.http.pages.words import duration

WIDTH, HEIGHT = 600.0, 120.0
MOST_LINES = 6
"""Lines that can be told apart; of more devices the worst are drawn."""

RANGES = {"hour": (1, 1), "day": (24, 15), "week": (168, 120)}
"""What can be looked at: hours in all, and minutes of each point."""


@dataclass(frozen=True, slots=True)
class Line:
    """One series. path: of SVG. values: one for each time, None where nothing was measured."""

    name: str
    path: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """id: of its heading. bars: whether its first line is drawn as bars. top: the value at its upper edge, in words.
    times: of the points. until: its right edge. said: what it shows, in one sentence, for who does not see it."""

    id: str
    title: str
    lines: tuple[Line, ...]
    bars: bool
    top: str
    times: tuple[datetime, ...]
    said: str
    words: Callable[[float], str]

    until: datetime

    @property
    def empty(self) -> bool:
        return not any(value is not None for line in self.lines for value in line.values)


def charts(buckets: Sequence[Piece], now: datetime, span: str) -> list[Chart]:
    """Pushes, sync lag and latency over one of RANGES."""
    hours, minutes = RANGES[span]
    times = moments(now, hours, minutes)
    devices = sorted({bucket.device for bucket in buckets})
    by_time: dict[datetime, list[Piece]] = {}
    for bucket in buckets:
        by_time.setdefault(bucket.at, []).append(bucket)

    def over(value: Callable[[Piece], float | None], *, device: str = "") -> tuple[float | None, ...]:
        return tuple(
            max(
                (
                    found
                    for bucket in by_time.get(at, ())
                    if not device or bucket.device == device
                    if (found := value(bucket)) is not None
                ),
                default=None,
            )
            for at in times
        )

    pushes = tuple(
        float(sum(bucket.pushes for bucket in by_time[at])) if at in by_time else None for at in times
    )
    reads = sum(bucket.reads for bucket in buckets)
    failures = sum(bucket.failures for bucket in buckets)
    lags = [(device, over(lambda b: b.lag, device=device)) for device in devices]
    # A device that was measured and had nothing to catch up with lagged by nothing.
    measured = {(bucket.device, bucket.at) for bucket in buckets}
    lags = [
        (
            device,
            tuple(
                v if v is not None or (device, at) not in measured else 0.0
                for at, v in zip(times, values, strict=True)
            ),
        )
        for device, values in lags
    ]
    lags.sort(key=lambda pair: -max((value or 0.0 for value in pair[1]), default=0.0))
    return [
        chart(
            "pushes",
            f"Pushes in each {'minute' if minutes == 1 else f'{minutes} min'}",
            [("pushes", pushes)],
            times,
            _number,
            bars=True,
            said=f"{sum(v or 0 for v in pushes):,.0f} pushes, {reads:,} reads, {failures:,} failed, in the last {span}",
        ),
        chart("lag", "Sync lag", sorted(lags[:MOST_LINES]), times, duration, said=_worst(lags, span)),
        chart(
            "latency",
            "Latency",
            [
                ("push, 99 of 100", over(lambda b: b.push_p99)),
                ("push, half", over(lambda b: b.push_p50)),
                ("read, 99 of 100", over(lambda b: b.read_p99)),
                ("read, half", over(lambda b: b.read_p50)),
            ],
            times,
            duration,
            said=_latest(over(lambda b: b.push_p99), over(lambda b: b.read_p99), span),
        ),
    ]


def copies(counts: Sequence[Count], now: datetime) -> Chart | None:
    """How many copies a repository had, from its newest changes (the newest first), up to now; None: nothing is known.
    A change lasts until the next one, so the points are those at which something changed."""
    if not counts:
        return None
    rows = list(reversed(counts))
    first, last = rows[0].at, max(now, rows[-1].at + timedelta(seconds=1))
    top = max(max(row.copies, row.wanted) for row in rows) or 1
    width = (last - first).total_seconds()

    def steps(value: Callable[[Count], int]) -> str:
        path, y = "", 0.0
        for row in rows:
            x, y = WIDTH * (row.at - first).total_seconds() / width, _y(value(row), top)
            path += f"H{x:.1f}V{y:.1f}" if path else f"M{x:.1f} {y:.1f}"
        return f"{path}H{WIDTH:.1f}"

    return Chart(
        "copies",
        "Copies over time",
        (
            Line("copies", steps(lambda row: row.copies), tuple(float(row.copies) for row in rows)),
            Line("wanted", steps(lambda row: row.wanted), tuple(float(row.wanted) for row in rows)),
        ),
        False,
        _number(top),
        tuple(row.at for row in rows),
        f"{rows[-1].copies} of {rows[-1].wanted} copies now; at the fewest {min(row.copies for row in rows)}",
        _number,
        last,
    )


def moments(now: datetime, hours: int, minutes: int) -> tuple[datetime, ...]:
    """The beginnings of the pieces of time that are drawn: whole ones since 1970, as date_bin makes them."""
    step = timedelta(minutes=minutes)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    last = epoch + step * ((now - epoch) // step)
    count = hours * 60 // minutes
    return tuple(last - step * (count - 1 - index) for index in range(count))


def chart(
    id: str,
    title: str,
    series: Sequence[tuple[str, Sequence[float | None]]],
    times: Sequence[datetime],
    words: Callable[[float], str],
    *,
    said: str,
    bars: bool = False,
) -> Chart:
    values = [value for _, each in series for value in each if value is not None]
    top = nice(max(values, default=0.0))
    lines = tuple(
        Line(name, bar_path(each, top) if bars else line_path(each, top), tuple(each))
        for name, each in series
    )
    return Chart(id, title, lines, bars, words(top), tuple(times), said, words, times[-1])


def nice(most: float) -> float:
    """The least of 1, 2, 5 × 10ⁿ that is not less; at least 0.001, as less cannot be measured."""
    scale = 0.001
    while True:
        for factor in (1, 2, 5):
            if factor * scale >= most:
                return factor * scale
        scale *= 10


def line_path(values: Sequence[float | None], top: float) -> str:
    """A line through the values, with gaps where there is none; a lone one is a dot, by its round end."""
    step, path, drawing = WIDTH / max(1, len(values) - 1), [], False
    for index, value in enumerate(values):
        if value is None:
            drawing = False
            continue
        x, y = index * step, _y(value, top)
        path.append(f"L{x:.1f} {y:.1f}" if drawing else f"M{x:.1f} {y:.1f}h0")
        drawing = True
    return "".join(path)


def bar_path(values: Sequence[float | None], top: float) -> str:
    width = WIDTH / max(1, len(values))
    return "".join(
        f"M{index * width + width * 0.1:.1f} {HEIGHT:g}V{_y(value, top):.1f}h{width * 0.8:.1f}V{HEIGHT:g}z"
        for index, value in enumerate(values)
        if value
    )


def _y(value: float, top: float) -> float:
    return HEIGHT * (1 - min(value, top) / top)


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _worst(lags: Sequence[tuple[str, Sequence[float | None]]], span: str) -> str:
    """lags: the worst first."""
    worst = max((value or 0.0 for value in lags[0][1]), default=0.0) if lags else 0.0
    if not worst:
        return f"no device lagged in the last {span}"
    return f"at most {duration(worst)}, on {lags[0][0]}, in the last {span}"


def _latest(pushes: Sequence[float | None], reads: Sequence[float | None], span: str) -> str:
    words = []
    for name, values in (("pushes", pushes), ("reads", reads)):
        if known := [value for value in values if value is not None]:
            words.append(f"99 of 100 {name} within {duration(max(known))} at the worst")
    return "; ".join(words) or f"nothing was measured in the last {span}"
