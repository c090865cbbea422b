"""The table as a picture: SVG, as its shapes are few, and as it can follow the reader's light or dark colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from xml.sax.saxutils import escape

from tests.bench.table import Row

LABELS, PLOT, VALUES, STEP, TOP, BOTTOM = 530, 480, 100, 26, 44, 30
"""Pixels: widths of the three columns, the height of a row, what stands above and below them."""

TICKS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)

LEGEND = "ratio ours/theirs: bar from minimum to maximum, dot at the median, mark at the target"

Scale = Callable[[float], float]
"""From a ratio to its place from the left."""

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.small { font-size: 11px; fill: #59636e }
.background { fill: #ffffff }
.grid { stroke: #d1d9e0 } .even { stroke: #59636e }
.met { stroke: #0969da; fill: #0969da } .missed { stroke: #bc4c00; fill: #bc4c00 }
.plain { stroke: #6e7781; fill: #6e7781 }
.target { stroke: #1f2328; stroke-width: 2.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .small { fill: #9198a1 } .background { fill: #0d1117 }
  .grid { stroke: #3d444d } .even { stroke: #9198a1 } .target { stroke: #f0f6fc }
  .met { stroke: #4493f8; fill: #4493f8 } .missed { stroke: #f0883e; fill: #f0883e }
  .plain { stroke: #9198a1; fill: #9198a1 }
}
"""


def draw(rows: Sequence[Row], title: str) -> str:
    """Each row with samples as a bar from the least ratio to the most, a dot at the median, a mark at its target."""
    shown = [row for row in rows if row.ours and all(0 < r < math.inf for r in row.ratios)]
    low, high = _range(shown)
    width, height = LABELS + PLOT + VALUES, TOP + STEP * len(shown) + BOTTOM

    def x(ratio: float) -> float:
        return round(LABELS + PLOT * math.log(ratio / low) / math.log(high / low), 1)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">',
        f"<style>{STYLE}</style>",
        f'<rect class="background" width="{width}" height="{height}"/>',
        _text(12, 20, title),
        *_axis(x, low, high, height - BOTTOM),
    ]
    for number, row in enumerate(shown):
        lines += _bar(row, x, TOP + STEP * number + STEP // 2)
    lines.append(
        _text(
            LABELS,
            height - 8,
            "ratio ours/theirs: bar from minimum to maximum, dot at the median, mark at the target",
        )
    )
    return "\n".join([*lines, "</svg>", ""])


def _range(rows: Iterable[Row]) -> tuple[float, float]:
    """The least and the most of the axis: ticks around every bar and target, and around 1."""
    values = [1.0]
    for row in rows:
        values += [row.least, row.most, row.target or 1.0]
    least = max((t for t in TICKS if t <= min(values)), default=min(values))
    most = min((t for t in TICKS if t >= max(values)), default=max(values))
    return least, most if most > least else least * 2


def _axis(x: Scale, low: float, high: float, bottom: int) -> list[str]:
    lines = []
    for tick in TICKS:
        if low <= tick <= high:
            kind = "even" if tick == 1.0 else "grid"
            lines.append(f'<line class="{kind}" x1="{x(tick)}" x2="{x(tick)}" y1="{TOP - 6}" y2="{bottom}"/>')
            lines.append(_text(x(tick), TOP - 10, f"{tick:g}", anchor="middle"))
    return lines


def _bar(row: Row, x: Scale, y: int) -> list[str]:
    kind = {True: "met", False: "missed", None: "plain"}[row.met]
    name = row.name if row.caches == "warm" else f"{row.name} ({row.caches})"
    lines = [
        _text(LABELS - 12, y + 4, name, anchor="end", small=False),
        f'<line class="{kind}" stroke-width="7" stroke-opacity=".45" stroke-linecap="round"'
        f' x1="{x(row.least)}" x2="{x(row.most)}" y1="{y}" y2="{y}"/>',
        f'<circle class="{kind}" cx="{x(row.median)}" cy="{y}" r="5"/>',
    ]
    if row.target is not None:
        at = x(row.target)
        lines.append(f'<line class="target" x1="{at}" x2="{at}" y1="{y - 9}" y2="{y + 9}"/>')
    goal = "" if row.target is None else f" ≤ {row.target:.2f}"
    lines.append(_text(LABELS + PLOT + 12, y + 4, f"{row.median:.2f}{goal}", small=False))
    return lines


def _text(x: float, y: float, words: str, *, anchor: str = "start", small: bool = True) -> str:
    kind = ' class="small"' if small else ""
    return f'<text{kind} x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'
