"""The scripts that Git runs during a push, whatever the number of refs: their shell reads a short list by itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cluster import hooks


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 12, 300])
@pytest.mark.parametrize("hook", ["pre-receive", "post-receive"])
def test_every_update_is_told_as_git_gave_it(hook: str, count: int, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / hook).write_text(f"#!/bin/sh\nexec cat >'{tmp_path}/heard'\n")
    (own / hook).chmod(0o755)
    old, new = b"0" * 40, b"1" * 40
    updates = [
        old + b" " + new + b" refs/heads/b\\ranch  " + bytes([0xC3, 0x28]) + b"%s-%d" % (b"$x", number)
        for number in range(count)
    ]
    hear, answer = os.pipe()
    os.write(answer, b"yes\n")
    with (tmp_path / "told").open("wb") as file:
        done = subprocess.run(
            [hooks.folder(tmp_path / "run", own) / hook],
            input=b"".join(line + b"\n" for line in updates),
            env={
                "PATH": os.environ["PATH"],
                "GIT_QUARANTINE_PATH": "/quarantine",
                "GIT_CLUSTER_HOOKS": str(own),
                "GIT_CLUSTER_TELL": str(file.fileno()),
                "GIT_CLUSTER_HEAR": str(hear),
            },
            pass_fds=(file.fileno(), hear),
        )
    for fd in (hear, answer):
        os.close(fd)
    assert done.returncode == 0
    first, *lines = (tmp_path / "told").read_bytes().split(b"\n")
    assert first == (b"pre /quarantine" if hook == "pre-receive" else b"post")
    assert lines == [*updates, b"", b""]
    assert (tmp_path / "heard").read_bytes().splitlines() == updates
