"""`make bench`, a short run of it: it measures, and says so in JSON and as a picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.report import rows_of


@pytest.mark.timeout(300)
def test_a_short_run(tmp_path: Path) -> None:
    document, plot = tmp_path / "bench.json", tmp_path / "bench.svg"
    command = [sys.executable, "-m", "tests.bench", "--only", "ls_remote", "--rounds", "2"]
    done = subprocess.run(
        [*command, "--json", str(document), "--plot", str(plot)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(document.read_text())
    names = [row["name"] for row in found["rows"]]
    assert names == ["ls-remote, in sync", "ls-remote, OpenSSH with the hooks", "64 ls-remote, 8 at once"]
    for row in rows_of(found):
        assert (len(row.ours), len(row.theirs), row.failures) == (2, 2, 0)
        assert row.median > 0 and row.line() in done.stdout
    many = rows_of(found)[2]
    assert many.cpu_ours and many.cpu_theirs and many.cpu_ours.server > 0 and many.cpu_theirs.server > 0
    assert many.cpu_ours.postgres > 0 and many.cpu_theirs.postgres == 0
    assert set(found["machine"]) == {
        "cpu", "cores", "memory_gib", "kernel", "git", "ssh", "postgres", "python",
    }  # fmt: skip
    assert str(tmp_path) not in document.read_text()
    assert "64 ls-remote, 8 at once" in plot.read_text()
