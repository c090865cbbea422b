"""Installed as a wheel, everything works as it does from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_carries_what_it_needs(tmp_path: Path, database_url: str) -> None:
    """Built, unpacked elsewhere and run there: `init` finds its schema, and nothing is read from the checkout."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), str(ROOT)],
        check=True,
    )
    (wheel,) = tmp_path.glob("git_cluster-*.whl")
    site = tmp_path / "site"
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], check=True
    )
    config = tmp_path / "cluster.toml"
    config.write_text(f'[cluster]\ndatabase = "{database_url}"\nname = "wheel"\n')
    env = {**os.environ, "PYTHONPATH": str(site)}

    def run(*arguments: str) -> str:
        command = [str(site / "bin" / "git-cluster"), "--config", str(config), *arguments]
        done = subprocess.run(
            [sys.executable, *command], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [sys.executable, "-c", "import cluster; print(cluster.__file__)"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert Path(where).is_relative_to(site)
    assert (site / "cluster" / "schema.sql").read_text() == (ROOT / "schema.sql").read_text()
    for hook in ("sshd_hooks/git-cluster-hook.pl", "sshd_hooks/git-cluster-hook.py"):
        assert (site / "cluster" / hook).read_text() == (ROOT / hook).read_text()
    run("init")
    assert '"repositories": []' in run("status", "--json")
