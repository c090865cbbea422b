"""What a failed Git process is quoted with."""

from __future__ import annotations

import pytest

from cluster.git import last_line


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        (b"", "no message"),
        (b"warning: a\nsomething\n", "something"),
        (
            b"fatal: Unable to create '/srv/data/repositories/000/1.git/refs/heads/main.lock': File exists.\n\n"
            b"remove the file manually to continue.\n",
            "fatal: Unable to create 'main.lock': File exists.",
        ),
        (
            b"fatal: Could not read from remote repository.\n\nPlease make sure you have the correct access rights\n"
            b"and the repository exists.\n",
            "fatal: Could not read from remote repository.",
        ),
        (
            b"error: unable to write file /data/x/objects/ab/cdef: No space left on device\nfatal: it failed\n",
            "error: unable to write file cdef: No space left on device",
        ),
        (b"fatal: repository 'ssh://a.example/t/app' not found", "fatal: repository 'ssh://a.example/t/app' not found"),
    ],
)  # fmt: skip
def test_last_line(stderr: bytes, said: str) -> None:
    assert last_line(stderr) == said
