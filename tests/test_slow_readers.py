"""A reader who is slow to ask is shown committed refs all the same (G1, G2, G6): Git reads the refs when it is asked,
and a push may be moving them by then."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from dulwich.protocol import Protocol, pkt_line

from tests.breaking import hold, shown
from tests.cluster_fixture import Cluster


class SlowReader:
    """A protocol v2 client that has connected, and asks when it is told to."""

    def __init__(self, cluster: Cluster, device: str) -> None:
        port = str(cluster.devices[device].port)
        self.process = subprocess.Popen(
            ["ssh", "-F", str(cluster.ssh_config), "-o", "SendEnv=GIT_PROTOCOL", "-p", port, "127.0.0.1",
             "git-upload-pack 'team/app'"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "GIT_PROTOCOL": "version=2"},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.git = Protocol(self.process.stdout.read, self._write)
        assert b"version 2\n" in list(self.git.read_pkt_seq())

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def ask(self) -> None:
        self._write(pkt_line(b"command=ls-refs\n") + b"0001" + pkt_line(b"peel\n") + b"0000")

    def answer(self) -> dict[str, str]:
        lines = [line.decode().split() for line in self.git.read_pkt_seq()]
        return {words[1]: words[0] for words in lines}


@contextmanager
def reader(cluster: Cluster, device: str) -> Iterator[SlowReader]:
    slow = SlowReader(cluster, device)
    try:
        yield slow
    finally:
        slow.process.kill()
        slow.process.communicate()


def test_a_listing_waits_for_the_commit_of_what_it_would_show(cluster: Cluster) -> None:
    """Connected before the push, asked in the middle of it, when one of its two refs has moved already."""
    work = cluster.work()
    cluster.ok("push", "-q", cluster.url("a"), "main", cwd=work)
    with reader(cluster, "a") as slow:
        held = hold(cluster, "a", only="refs/heads/second")
        new = cluster.commit(work, "not committed yet")
        pushing = cluster.spawn("push", cluster.url("a"), "main:first", "main:second", cwd=work)
        cluster.wait(lambda: held.reached, "one ref has moved")
        slow.ask()
        assert shown(cluster, "b") != {new}, "the others show the version before"
        assert slow.process.poll() is None
        held.let_go()
        assert pushing.wait(30) == 0
        refs = slow.answer()
        assert refs["refs/heads/first"] == refs["refs/heads/second"] == new
        slow.ask()
        assert slow.answer() == refs


def test_a_listing_never_shows_what_is_put_back(cluster: Cluster) -> None:
    """The push is given up by another device after one of its refs has moved: the reader gets a version."""
    work = cluster.work()
    cluster.ok("push", "-q", cluster.url("a"), "main", cwd=work)
    cluster.converge()
    before = cluster.refs("a")
    with reader(cluster, "b") as slow:
        held = hold(cluster, "b", only="refs/heads/second")
        cluster.commit(work, "never committed")
        pushing = cluster.spawn("push", cluster.url("b"), "main:first", "main:second", cwd=work)
        cluster.wait(lambda: held.reached, "one ref has moved")
        slow.ask()
        snapshot = cluster.snapshot()
        owner = snapshot.intent_owner
        assert owner is not None
        with cluster.db.dedicated() as connection:
            cluster.db.demote(snapshot.repository.id, "b", "fenced", owner.intent, connection=connection)
        held.let_go()
        said, _ = pushing.communicate(timeout=30)
        assert pushing.returncode != 0 and "remote rejected" in said, said
        assert slow.answer() == before
    cluster.converge()
    assert cluster.refs("b") == before


@pytest.mark.parametrize("protocol", ["0", "1", "2"])
def test_every_protocol_lists_clones_and_fetches(cluster: Cluster, protocol: str) -> None:
    work = cluster.work()
    oid = cluster.commit(work, "two")
    cluster.ok("push", "-q", cluster.url("a"), "main", "main:refs/tags/t", cwd=work)
    version = ("-c", f"protocol.version={protocol}")
    listed = cluster.ok(*version, "ls-remote", cluster.url("b"))
    assert f"{oid}\trefs/heads/main" in listed and f"{oid}\trefs/tags/t" in listed
    clone = cluster.directory / "clone"
    cluster.ok(*version, "clone", "-q", cluster.url("c"), str(clone))
    new = cluster.commit(work, "three")
    cluster.ok("push", "-q", cluster.url("a"), "main", cwd=work)
    cluster.ok(*version, "fetch", "-q", "origin", cwd=clone)
    assert cluster.ok("rev-parse", "origin/main", cwd=clone).strip() == new
    tar = subprocess.run(
        ["git", "archive", f"--remote={cluster.url('b')}", "main"],
        env=cluster.git_environment(), cwd=cluster.directory, capture_output=True, check=True,
    )  # fmt: skip
    assert b"three.txt" in tar.stdout


@pytest.mark.parametrize("said", [
    b"rubbish",
    b"0014command=ls-refs\n",
    b"0014command=ls-refs\nffff",
    b"0014command=ls-refs\nzzzz",
    b"00000000",
    b"0014command=nothing\n0000",
    b"0003",
])  # fmt: skip
def test_rubbish_ends_with_git_s_own_words(cluster: Cluster, said: bytes) -> None:
    work = cluster.work()
    cluster.ok("push", "-q", cluster.url("a"), "main", cwd=work)
    with reader(cluster, "a") as slow:
        _, err = slow.process.communicate(said, timeout=30)
        assert b"Traceback" not in err and str(cluster.directory).encode() not in err
    assert cluster.refs("a")
