"""Clients of a torture run: stock Git over ssh, and a record of what was asked, answered, and when."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from threading import Lock

from dulwich.objects import Blob, Commit, ObjectID, Tree
from dulwich.repo import Repo

from tests.cluster_fixture import Cluster, Done
from tests.history import ABSENT, Operation, Outcome, Part
from tests.torture.plan import Action, Wish

DEADLINE = 60.0
"""Seconds for one git command; then it is killed, and what became of a push is unknown."""

PATIENCE = "-o ConnectTimeout=10 -o ServerAliveInterval=3 -o ServerAliveCountMax=3"
"""ssh's own deadlines: a device that has lost its power says nothing any more, and nothing would end the wait."""

MAYBE = re.compile("stayed away|remote failed to report")
"""Rejections after which a push may still come true: its intent stands, and healing may complete it."""


class History:
    """What all clients did so far, and what they make their commits in: one repository that they share."""

    def __init__(self, cluster: Cluster, refs: tuple[str, ...]) -> None:
        self.cluster, self.refs = cluster, refs
        self.objects = cluster.directory / "objects.git"
        self.objects.mkdir()
        Repo.init_bare(str(self.objects)).close()
        self._mutex = Lock()
        self._numbers = itertools.count()
        self._began = time.monotonic()
        self.operations: list[Operation] = []

    def clock(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def begin(self) -> tuple[int, float]:
        """The number of a new operation, and its time."""
        with self._mutex:
            return next(self._numbers), self.clock()

    def record(self, operation: Operation) -> None:
        with self._mutex:
            self.operations.append(operation)


class Client:
    """One person with a name, who knows what they were told."""

    def __init__(self, history: History, name: str) -> None:
        self.name = name
        self._history, self._cluster = history, history.cluster
        self._store = Repo(str(history.objects))
        self._scratch = self._cluster.directory / f"{name}.git"
        self._known: dict[str, str] = {}
        self._made = itertools.count()
        self._outdated = False
        self.said = ""
        environment = self._cluster.git_environment()
        self._environment = {
            **environment,
            "GIT_SSH_COMMAND": f"{environment['GIT_SSH_COMMAND']} {PATIENCE}",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "core.abbrev",
            "GIT_CONFIG_VALUE_0": "no",
        }

    def close(self) -> None:
        self._store.close()

    def carry_out(self, wish: Wish) -> bool:
        """One operation, or two: whoever was told to fetch first looks first. Whether it was acknowledged."""
        if wish.action is Action.LIST:
            return self.look(wish.device)
        if wish.action is Action.FETCH:
            return self.fetch(wish.device)
        if self._outdated:
            self._outdated = not self.look(wish.device)
        if wish.action is Action.DELETE and (old := self._known.get(wish.refs[0], ABSENT)) != ABSENT:
            lease = f"--force-with-lease={wish.refs[0]}:{old}"
            return self._push(wish, "delete", {wish.refs[0]: ABSENT}, [lease], {wish.refs[0]: old})
        name = Action.PUSH if wish.action is Action.DELETE else wish.action
        options = {Action.FORCE_PUSH: ["--force"], Action.PUSH_ATOMIC: ["--atomic"]}.get(wish.action, [])
        return self._push(wish, name, {ref: self._commit(ref) for ref in wish.refs}, options, {})

    # --------------------------------------------------------------------------------------------- reading

    def look(self, device: str) -> bool:
        """`git ls-remote`."""
        number, begun = self._history.begin()
        done = self._git(["ls-remote", self._cluster.url(device), "refs/heads/*"])
        lines = [line.split("\t") for line in done.out.splitlines()]
        return self._saw(number, begun, device, "list", done, {ref: oid for oid, ref in lines})

    def fetch(self, device: str) -> bool:
        """`git fetch` of everything, objects and all, into a repository of one's own."""
        if not self._scratch.exists():
            self._cluster.ok("init", "--quiet", "--bare", str(self._scratch))
        number, begun = self._history.begin()
        done = self._git(
            [
                f"--git-dir={self._scratch}",
                "fetch",
                "--quiet",
                "--prune",
                "--no-tags",
                "--no-auto-maintenance",
                self._cluster.url(device),
                "+refs/heads/*:refs/heads/*",
            ]
        )
        values = {}
        if done.code == 0:
            for line in (self._scratch / "FETCH_HEAD").read_text().splitlines():
                oid, branch = re.match(r"(\w+)\t.*?branch '([^']+)'", line).groups()  # type: ignore[union-attr]
                values[f"refs/heads/{branch}"] = oid
        else:
            shutil.rmtree(self._scratch)  # it may have been killed in the middle
        return self._saw(number, begun, device, "fetch", done, values)

    def _saw(
        self, number: int, begun: float, device: str, name: str, done: Done, values: dict[str, str]
    ) -> bool:
        outcome = Outcome.OK if done.code == 0 else Outcome.UNKNOWN
        parts = tuple(Part(ref, values.get(ref, ABSENT), None, outcome) for ref in self._history.refs)
        self._history.record(
            Operation(number, self.name, device, name, False, begun, self._history.clock(), parts)
        )
        if outcome is Outcome.OK:
            self._known = {part.ref: part.value for part in parts}
        return outcome is Outcome.OK

    # --------------------------------------------------------------------------------------------- writing

    def _push(
        self, wish: Wish, name: str, values: dict[str, str], options: list[str], olds: dict[str, str]
    ) -> bool:
        specs = [f"{value}:{ref}" for ref, value in values.items()]
        number, begun = self._history.begin()
        done = self._git(
            [
                f"--git-dir={self._history.objects}",
                "push",
                "--porcelain",
                *options,
                self._cluster.url(wish.device),
                *specs,
            ]
        )
        parts = []
        for ref, value in values.items():
            outcome, old = answer(done.out, ref)
            parts.append(Part(ref, value, olds.get(ref, old), outcome))
            if outcome is Outcome.OK:
                self._known[ref] = value
        ended = self._history.clock()
        self._history.record(
            Operation(number, self.name, wish.device, name, True, begun, ended, tuple(parts))
        )
        self._outdated |= any(part.outcome is not Outcome.OK for part in parts)
        return all(part.outcome is Outcome.OK for part in parts)

    def _commit(self, ref: str) -> str:
        """A new commit on top of what this client knows of `ref`; its like was never made before."""
        blob = Blob.from_string(
            f"{self.name} {next(self._made)} {self._history.cluster.directory}\n".encode()
        )
        tree = Tree()
        tree.add(b"file", 0o100644, blob.id)
        commit = Commit()
        commit.tree = tree.id
        known = self._known.get(ref, ABSENT)
        commit.parents = [ObjectID(known.encode())] if known else []
        commit.author = commit.committer = f"{self.name} <{self.name}@example.com>".encode()
        commit.author_time = commit.commit_time = int(time.time())
        commit.author_timezone = commit.commit_timezone = 0
        commit.message = blob.data
        for item in (blob, tree, commit):
            self._store.object_store.add_object(item)
        return commit.id.decode()

    def _git(self, arguments: list[str]) -> Done:
        """Stock git, killed with its ssh when it takes too long (exit code -9)."""
        process = subprocess.Popen(
            ["git", *arguments],
            cwd=self._cluster.directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
        self.said = err
        return Done(process.returncode, out, err)


def answer(said: str, ref: str) -> tuple[Outcome, str | None]:
    """What `git push --porcelain` says became of a ref, and of its old value (None: not said)."""
    for line in said.splitlines():
        flag, _, rest = line.partition("\t")
        names, _, summary = rest.partition("\t")
        if len(flag) != 1 or names.rpartition(":")[2] != ref:
            continue
        if flag == "!":
            return (Outcome.UNKNOWN if MAYBE.search(summary) else Outcome.REFUSED), None
        if flag == "*":
            return Outcome.OK, ABSENT
        moved = re.match(r"([0-9a-f]{40,64})\.\.", summary)
        return Outcome.OK, moved[1] if moved else None
    return Outcome.UNKNOWN, None
