"""The pure parts of `make bench`: ratios, the table in its three shapes, processes' figures, histograms."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.bench import __main__ as bench
from tests.bench import report
from tests.bench.cold import evict, resident
from tests.bench.figures import difference, mean, quantile
from tests.bench.plot import draw
from tests.bench.table import Cpu, Row, percentile
from tests.bench.trees import Process, family, load, parse

ROW = Row(
    "ls-remote",
    0.5,
    ours=(0.1, 0.3, 0.2),
    theirs=(1.0, 1.0, 0.5),
    cpu_ours=Cpu(0.05, 0.01),
    cpu_theirs=Cpu(0.2),
    notes={"held": "3 ms"},
)
MISSED = Row("a | b", 0.5, (1.0,), (1.0,), failures=2, caches="cold")
EMPTY = Row("never", 0.5, (), (), failures=3)
LOOKED_AT = Row("memory", None, (2.0,), (4.0,), unit="MiB")
ALL = [ROW, MISSED, EMPTY, LOOKED_AT]
PAGE = f"# A page\n\nbefore\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n"


def document() -> dict[str, Any]:
    machine = {
        "cpu": "A <fast> one", "cores": 2, "memory_gib": 8, "kernel": "Linux 6", "git": "2.39",
        "ssh": "OpenSSH_9", "postgres": "18.4", "python": "3.11",
    }  # fmt: skip
    rows = [row.document() for row in ALL]
    return {"date": "2026-01-02", "commit": "abc", "machine": machine, "rows": rows}


def test_ratios_are_taken_pair_by_pair() -> None:
    assert ROW.ratios == pytest.approx([0.1, 0.3, 0.4])
    assert (ROW.least, ROW.median, ROW.most) == pytest.approx((0.1, 0.3, 0.4))
    assert ROW.cores == pytest.approx([0.25, 0.24])
    assert Row("x", 1.0, (1.0,), (0.0,)).median == math.inf


@pytest.mark.parametrize(
    ("row", "met", "verdict"),
    [(ROW, True, "met"), (MISSED, False, "NOT met"), (EMPTY, False, "NOT met"), (LOOKED_AT, None, "")],
)
def test_verdicts(row: Row, met: bool | None, verdict: str) -> None:
    assert row.met is met
    assert row.verdict == verdict
    assert verdict in row.line()


def test_lines_for_a_terminal() -> None:
    assert re.search(r"^ls-remote +0\.10 +0\.30 +0\.40 +≤ 0\.50 met +200\.0 ms +1000\.0 ms", ROW.line())
    assert ROW.line().endswith("50 ms + PostgreSQL 10 ms against 200 ms\n    held: 3 ms")
    assert "(cold)" in MISSED.line() and "2 FAILED" in MISSED.line()
    assert "nan" in EMPTY.line() and "3 FAILED" in EMPTY.line()
    assert "2.00 MiB" in LOOKED_AT.line()


@pytest.mark.parametrize("row", ALL)
def test_json_holds_all_of_a_row(row: Row) -> None:
    text = json.dumps(row.document(), allow_nan=False)
    assert Row.of(json.loads(text)) == row


def test_the_page_gets_the_table_and_keeps_the_rest() -> None:
    page = report.replaced(PAGE, report.markdown(document()))
    assert (
        page.startswith("# A page\n\nbefore\n\n<!--")
        and page.endswith("-->\n\nafter\n")
        and "\nold\n" not in page
    )
    assert "A <fast> one, 2 cores, 8 GiB; Linux 6; 2026-01-02, commit abc; git 2.39" in page
    assert (
        "| ls-remote | ≤ 0.50 | 0.10 | **0.30** | 0.40 | met | 200.0 ms | 1000.0 ms | 50 ms + 10 | 200 ms | 3 |"
        in page
    )
    assert "| a \\| b (cold) | ≤ 0.50 | 1.00 | **1.00** | 1.00 | NOT met 2 failed |" in page
    assert "| never | ≤ 0.50 | – | **–** | – | NOT met 3 failed | – | – | – | – | 0 |" in page
    assert "- ls-remote: held: 3 ms." in page
    assert report.replaced(page, report.markdown(document())) == page, "twice is once"


@pytest.mark.parametrize("page", ["", report.BEGIN, report.END + report.BEGIN, PAGE + PAGE])
def test_a_page_without_one_place_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="exactly one place"):
        report.replaced(page, "")


def test_docs_have_the_place() -> None:
    assert report.replaced((report.DOCS / "performance.md").read_text(), "")


def test_the_picture_shows_every_row_that_has_samples() -> None:
    picture = ET.fromstring(draw(ALL, "on <this> & that"))
    words = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "on <this> & that" in words and "never" not in words
    assert {"ls-remote", "a | b (cold)", "memory", "0.30 ≤ 0.50", "0.50"} <= set(words)
    kinds = [element.get("class") for element in picture.iter("{http://www.w3.org/2000/svg}circle")]
    assert kinds == ["met", "missed", "plain"]
    assert "prefers-color-scheme: dark" in draw(ALL, "")


def test_a_picture_of_nothing() -> None:
    assert ET.fromstring(draw([EMPTY], "")).get("role") == "img"
    ET.fromstring(draw([Row("as fast", None, (1.0,), (1.0,))], ""))


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([3, 1, 2], 0.5, 2), ([1, 2], 0.5, 1), (list(range(1, 201)), 0.99, 198), ([7], 0.99, 7), ([7], 0, 7)],
)
def test_percentiles(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_no_percentile_of_nothing() -> None:
    assert math.isnan(percentile([], 0.5))


def test_a_line_of_proc() -> None:
    line = f"42 (a (odd) name) S 7 {' '.join('0' * 9)} 1 2 30 400 20 0"
    assert parse(line) == Process(42, 7, 433)


def test_a_tree_is_all_that_descends() -> None:
    table = [Process(5, 3, 40), Process(3, 1, 8), Process(1, 0, 1000), Process(4, 1, 500), Process(6, 5, 2)]
    assert [process.pid for process in family([3], table)] == [3, 5, 6]
    assert [process.pid for process in family([3, 5, 99], table)] == [3, 5, 6], "each once; one is gone"
    assert load([3], table).count == 3
    assert load([3], table).seconds / load([6], table).seconds == pytest.approx(25)


def histogram(*counts: float) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    bounds = ("0.1", "0.2", "+Inf")
    return {("h_bucket", frozenset({("le", b), ("x", "y")})): n for b, n in zip(bounds, counts, strict=True)}


def test_histograms() -> None:
    figures = histogram(10, 20, 20)
    assert quantile(figures, "h", 0.25, x="y") == pytest.approx(0.05)
    assert quantile(figures, "h", 0.75, x="y") == pytest.approx(0.15)
    assert quantile(histogram(0, 1, 2), "h", 0.99, x="y") == 0.2, "beyond the last bound nothing is known"
    assert math.isnan(quantile(figures, "h", 0.5)) and math.isnan(
        quantile(histogram(0, 0, 0), "h", 0.5, x="y")
    )
    key = frozenset({("x", "y")})
    assert mean({("h_sum", key): 3.0, ("h_count", key): 2.0}, "h", x="y") == 1.5
    assert math.isnan(mean({}, "h"))
    assert difference({("a", key): 3.0, ("b", key): 1.0}, {("a", key): 1.0}) == {
        ("a", key): 2.0,
        ("b", key): 1.0,
    }


def test_cold_files(tmp_path: Path) -> None:
    """Whether the kernel lets go of them is its own affair (in a folder in memory it never does)."""
    (tmp_path / "below").mkdir()
    file = tmp_path / "below" / "file"
    file.write_bytes(b"x" * 100_000)
    (tmp_path / "empty").touch()
    assert resident(file) == (25, 25), "just written"
    kept = evict(tmp_path)
    assert kept == resident(file)[0] / 25
    assert evict(tmp_path / "empty") == 0


def test_every_module_of_rows_is_found() -> None:
    found = [row.__name__ for row in bench.rows()]
    assert len(found) == len(set(found))
    assert {"ls_remote", "fetch_when_behind", "hot_repository", "many_at_once"} <= set(found)
    folder = Path(bench.__file__).parent
    assert len(found) >= len(list(folder.glob("rows_*.py")))
