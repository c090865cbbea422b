"""The plots of docs/scale-model.md: SVG, in colours that can be read on white and on black."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from tests.model.curves import Curve

INK = "#808790"
COLOURS = ("#3b82f6", "#e07b00", "#2f9e5f", "#b455d0")

plt.rcParams.update(
    {
        "svg.hashsalt": "git-cluster",  # the same data make the same file
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.fontsize": 8,
    }
)


class Panel:
    """One of the fields of a plot. marks: what was measured, in the colour of the curve of the same number."""

    def __init__(self, title: str, x: str, curves: Sequence[Curve], marks: Sequence[Curve] = ()) -> None:
        self.title, self.x, self.curves, self.marks = title, x, curves, marks

    def draw(self, axes: Axes) -> None:
        for number, curve in enumerate(self.curves):
            axes.plot(curve.x, curve.y, color=COLOURS[number], label=curve.name, linewidth=1.6)
        for number, mark in enumerate(self.marks):
            label = "measured" if number == 0 else None
            axes.plot(mark.x, mark.y, "o", color=COLOURS[number], label=label, markersize=5)
        axes.set_xscale("log")
        ticks = sorted({place for curve in self.curves for place in curve.x})
        axes.set_xticks(ticks, minor=False)
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(_plain))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axes.set_title(self.title, fontsize=10, loc="left")
        axes.set_xlabel(self.x)
        axes.grid(color=INK, alpha=0.2, linewidth=0.6)
        axes.legend()


def _plain(value: float, _: Any) -> str:
    return f"{value:g}"


def draw(file: Path, panels: Sequence[Panel], columns: int = 2) -> None:
    """Write an SVG."""
    rows = -(-len(panels) // columns)
    figure, fields = plt.subplots(rows, columns, figsize=(4.9 * columns, 3.5 * rows), squeeze=False)
    for panel, axes in zip(panels, fields.flat, strict=False):
        panel.draw(axes)
    for axes in list(fields.flat)[len(panels) :]:
        axes.set_visible(False)
    figure.tight_layout()
    figure.savefig(file, transparent=True, metadata={"Date": None})
    plt.close(figure)
    # matplotlib ends lines with blanks
    file.write_text("\n".join(line.rstrip() for line in file.read_text().splitlines()) + "\n")
