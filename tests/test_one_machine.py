"""One device with `database = "embedded"`: a Git host that needs nothing but this program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster.keyfiles import write_keypair


def test_one_machine_with_its_own_postgresql(tmp_path: Path) -> None:
    """Set up with the command line alone, pushed to, stopped, started again: the content is there, nothing runs."""
    for name in ("device", "host", "anna"):
        write_keypair(tmp_path / name, name)
    config = tmp_path / "config.toml"
    config.write_text(
        '[cluster]\ndatabase = "embedded"\n[device]\nname = "solo"\ndata_dir = "data"\nkey = "device"\n'
        '[ssh]\nlisten = "127.0.0.1:0"\nhost_key = "host"\n'
    )
    command = [sys.executable, "-m", "cluster", "--config", str(config)]

    def admin(*arguments: str) -> str:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    admin("init")
    admin(
        *("device", "add", "solo", "--ssh", "ssh://git@127.0.0.1:22"),
        *("--key", str(tmp_path / "device.pub"), "--host-key", str(tmp_path / "host.pub")),
    )
    admin("user", "add", "anna")
    admin("key", "add", "anna", str(tmp_path / "anna.pub"))
    admin("grant", "write", "anna", "*")
    admin("repo", "create", "app")
    env = {
        **os.environ,
        "GIT_SSH_COMMAND": f"ssh -F none -i {tmp_path / 'anna'} -o IdentitiesOnly=yes -o IdentityAgent=none "
        f"-o StrictHostKeyChecking=no -o UserKnownHostsFile={tmp_path / 'known'}",
    }
    work = tmp_path / "work"
    subprocess.run(["git", "init", "-q", "-b", "main", str(work)], check=True)
    identity = ["-c", "user.name=Anna", "-c", "user.email=anna@example.com"]
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "one"], cwd=work, check=True)
    for first in (True, False):
        with subprocess.Popen([*command, "serve"], stdout=subprocess.PIPE, text=True) as serve:
            try:
                assert serve.stdout is not None
                port = serve.stdout.readline().split()[-1]
                url = f"ssh://git@127.0.0.1:{port}/app"
                if first:
                    subprocess.run(
                        ["git", "push", "-q", url, "main"], cwd=work, env=env, check=True, timeout=60
                    )
                listing = subprocess.run(
                    ["git", "ls-remote", url, "main"], env=env, capture_output=True, text=True, timeout=60
                )
                head = subprocess.run(["git", "rev-parse", "main"], cwd=work, capture_output=True, text=True)
                assert listing.stdout.split() == [head.stdout.strip(), "refs/heads/main"], listing.stderr
            finally:
                serve.send_signal(signal.SIGTERM)
        assert serve.returncode == 0
        deadline = time.monotonic() + 30
        while (tmp_path / "data" / "postgres" / "postmaster.pid").exists():
            assert time.monotonic() < deadline, "the embedded PostgreSQL goes on running"
            time.sleep(0.05)
