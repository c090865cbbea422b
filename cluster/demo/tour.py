"""The tour: what a cluster does, shown with stock Git, each claim checked before it is made."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster import config
from cluster.db import Database
from cluster.demo.screen import Screen
from cluster.demo.signals import Signals
from cluster.loopback import USER, Loopback
from cluster.model import EventKind
from cluster.status import observe

FAULT = "commit:kill"
"""Git has moved the refs, the database does not know yet: the worst moment for a device to die."""

WORDS = ["", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PATIENCE = 20.0
COMMAND_TIMEOUT = 300.0


class CheckFailed(Exception):
    """A claim of the tour turned out not to be so. The person has been told."""


@dataclass(frozen=True, slots=True)
class Done:
    code: int
    text: str


class Tour:
    """Chapters that build on each other. Git works in <directory>/tour/work."""

    def __init__(
        self,
        loopback: Loopback,
        git_cluster: Sequence[str],
        repository: str,
        screen: Screen,
        signals: Signals,
    ) -> None:
        self._loopback, self._repository = loopback, repository
        self._screen, self._signals = screen, signals
        self._git_cluster = list(git_cluster)
        self._names = list(loopback.devices)
        self._home = loopback.directory / "tour"
        self._work = self._home / "work"
        self._environment = {**loopback.git_environment(), config.VARIABLE: str(loopback.config)}
        self._branch = ""
        self._commits = 0
        self._began = datetime.now(UTC)

    def run(self) -> None:
        """All chapters. CheckFailed."""
        with Database(
            self._loopback.database, application_name="git-cluster demo", connections=2
        ).open() as db:
            self._db = db
            self._run()

    def _run(self) -> None:
        self._screen.say()
        self._screen.say("The commands below run with this, and so can yours (with --serve):", 2)
        self._screen.output(
            f"export GIT_SSH_COMMAND={shlex.quote(self._environment['GIT_SSH_COMMAND'])}\n"
            f"export {config.VARIABLE}={shlex.quote(str(self._loopback.config))}"
        )
        self._push_here_clone_there()
        self._push_everywhere_at_once()
        self._cut_off()
        self._over_http()
        self._look_back()
        seconds = (datetime.now(UTC) - self._began).total_seconds()
        self._screen.heading(f"All {self._screen.checks} checks passed; the tour took {seconds:.1f} s.")

    # ---------------------------------------------------------------------------------------- the chapters

    def _push_here_clone_there(self) -> None:
        first, other = self._names[0], self._names[-1]
        self._screen.heading(f"1. Push to one device, clone from {'another' if first != other else 'it'}")
        shutil.rmtree(self._home, ignore_errors=True)
        self._home.mkdir()
        self._git("clone", "--quiet", "--origin", first, self._url(first), "work", cwd=self._home)
        for name in self._names[1:]:
            self._git("remote", "add", name, self._url(name))
        self._branch = self._ask("symbolic-ref", "--short", "HEAD")
        version = self._version()
        self._commit("A change, pushed to one device")
        self._git("push", first, self._branch)
        self._git("clone", "--quiet", self._url(other), "copy", cwd=self._home)
        mine = self._git("rev-parse", "HEAD").text
        theirs = self._git("-C", "../copy", "rev-parse", "HEAD").text
        self._check(f"device {other} has the commit that device {first} was given", mine == theirs)
        history = self._ask("rev-list", "HEAD")
        count = len(history.splitlines())
        self._check(
            f"the histories are equal, commit by commit ({count})",
            history == self._ask("-C", "../copy", "rev-list", "HEAD") and count > 0,
        )
        self._check(f"the push is version {version + 1}", self._version() == version + 1)
        self._equal()

    def _push_everywhere_at_once(self) -> None:
        pushes = [self._names[number % len(self._names)] for number in range(max(3, len(self._names)))]
        to = f"{WORDS[len(self._names)]} device{'s' if len(self._names) > 1 else ''}"
        self._screen.heading(f"2. {WORDS[len(pushes)].capitalize()} pushes at the same moment, to {to}")
        before = self._version()
        branches = [f"race-{before + 1}.{number}" for number in range(1, len(pushes) + 1)]
        for branch in branches:
            self._ask("switch", "--quiet", "--create", branch, self._branch)
            self._commit(f"One of {WORDS[len(pushes)]} at once", unseen=True)
        self._ask("switch", "--quiet", self._branch)
        racing = []
        for name, branch in zip(pushes, branches, strict=True):
            self._screen.command(f"git push {name} {branch} &")
            racing.append(self._start(["git", "push", name, branch], self._work))
        done = [self._finish(process) for process in racing]
        for push in done:
            self._screen.output("\n".join(line for line in push.text.splitlines() if "->" in line))
        self._check("every one of them landed", all(push.code == 0 for push in done))
        versions = self._versions()
        self._check(
            f"they are versions {before + 1} to {before + len(pushes)}, in one order, without a gap",
            versions == list(range(before + len(pushes), 0, -1)),
        )
        heads = {f"refs/heads/{branch}": self._ask("rev-parse", branch) for branch in branches}
        self._check(
            "every device has all of them",
            all(heads.items() <= self._refs(name).items() for name in self._names),
        )
        self._equal()

    def _cut_off(self) -> None:
        first, other = self._names[0], self._names[-1]
        self._screen.heading("3. A device dies in the middle of a push")
        self._screen.say(
            f"Device {first} is started again, told to kill itself when Git has moved the refs and the database "
            "does not know it yet.",
            2,
        )
        self._restart(first, fault=FAULT)
        before, version = self._refs(first)[f"refs/heads/{self._branch}"], self._version()
        self._commit("A push that is cut off")
        push = self._git("push", first, self._branch)
        self._check(
            "the pusher is not told that it worked",
            push.code != 0 and f"{self._branch} -> {self._branch}\n" not in f"{push.text}\n",
        )
        process = self._loopback.devices[first].process
        self._check(
            f"device {first} is dead (`status` notices after 10 s of silence)",
            process is not None and process.wait(PATIENCE) == -9,
        )
        self._wait("the repository is frozen", lambda: bool(self._entry()["state"] == "frozen"))
        self._admin("status")
        reason = str(self._entry()["reason"])
        self._check(
            f"it is frozen, and says who was writing what, and where: {self._branch} on device {first}",
            f"device {first}" in reason and f"refs/heads/{self._branch}" in reason,
        )
        waiting: subprocess.Popen[str] | None = None
        if other != first:
            seen = self._git("ls-remote", other, self._branch)
            self._check(f"reads go on: device {other} shows the version before", seen.text.startswith(before))
            self._screen.command(f"git push {other} {self._branch}:meanwhile &")
            waiting = self._start(["git", "push", other, f"{self._branch}:meanwhile"], self._work)
            self._await_line(waiting, "waiting until that is resolved")
            self._check(f"nobody overtakes it: a push to device {other} waits", waiting.poll() is None)
        self._screen.say(f"Device {first} comes back. Nobody types anything:", 2)
        self._restart(first)
        self._wait(
            f"every ref had moved, so device {first} completes the push: version {version + 1}",
            lambda: version + 1 in self._versions(),
        )
        if waiting is not None:
            done = self._finish(waiting)
            self._screen.output(done.text)
            self._check("the push that waited lands behind it", done.code == 0)
        self._check("who healed what is in the log", bool(self._events()))
        again = self._git("push", other, self._branch)
        self._check("the pusher tries again: it is all there", again.code == 0 and "up-to-date" in again.text)
        version = self._version()
        self._commit("Life goes on")
        more = self._git("push", other, self._branch)
        self._check("and pushes the next one", more.code == 0 and self._version() == version + 1)
        self._equal()

    def _over_http(self) -> None:
        device = self._loopback.devices[self._names[-1]]
        if device.http_port is None:  # of a demo that an older program has set up
            return
        self._screen.heading("4. The same over HTTP, with a token")
        token = self._admin("token", "add", USER, "--comment", "demo").text.split()[0]
        url = f"http://{USER}:{token}@{device.host}:{device.http_port}/{self._repository}"
        self._git("clone", "--quiet", url, "http", cwd=self._home)
        self._check(
            "what was pushed over SSH is cloned over HTTP",
            self._ask("-C", "../http", "rev-parse", "HEAD").strip() == self._newest(),
        )
        version = self._version()
        self._git(
            "-C", "http", "push", "--quiet", "origin", f"HEAD:refs/heads/over-http-{version}", cwd=self._home
        )
        self._check(f"a push over HTTP is version {version + 1}", self._version() == version + 1)

    def _newest(self) -> str:
        """What the default branch is now, as any device says."""
        return self._ask("ls-remote", self._url(self._names[0]), f"refs/heads/{self._branch}").split("\t")[0]

    def _look_back(self) -> None:
        self._screen.heading("5. How things stand, and how they came to stand so")
        self._equal()
        status = self._admin("status", "--check")
        self._check("all is healthy", status.code == 0)
        self._admin("log", self._repository, "--limit", "8")
        versions = self._versions()
        self._check(
            f"the push log is whole: versions 1 to {versions[0]}",
            versions == list(range(versions[0], 0, -1)),
        )

    # -------------------------------------------------------------------------------------------- checks

    def _check(self, claim: str, true: bool) -> None:
        if not true:
            self._screen.bad(claim)
            raise CheckFailed(claim)
        self._screen.good(claim)

    def _wait(self, claim: str, condition: Callable[[], bool]) -> None:
        """Give a claim some time to become true. CheckFailed when it does not."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                self._check(f"{claim}, within {PATIENCE:g} s", False)
            time.sleep(0.05)

    def _equal(self) -> None:
        """Every device holds the newest version, with the same checksum."""

        self._wait(
            "every device is current", lambda: {r["state"] for r in self._entry()["replicas"]} == {"current"}
        )
        checksums = {str(replica["checksum"]) for replica in self._entry()["replicas"]}
        on = ", ".join(self._names)
        self._check(f"the checksum of all refs on {on}: {' '.join(checksums)[:12]}", len(checksums) == 1)

    # ----------------------------------------------------------------------------- what the cluster says

    def _entry(self) -> dict[str, Any]:
        """The repository as `status --json` has it."""
        entry: dict[str, Any] = observe(self._db, "demo", self._repository)["repositories"][0]
        return entry

    def _version(self) -> int:
        return int(self._entry()["version"])

    def _versions(self) -> list[int]:
        """The versions in the push log, newest first."""
        id = self._db.snapshot(self._repository).repository.id
        return [entry.version for entry in self._db.log(id, limit=1_000_000)]

    def _events(self) -> list[str]:
        """What was healed in this tour, as the log tells it."""
        id = self._db.snapshot(self._repository).repository.id
        events = self._db.events(id)
        return [event.what for event in events if event.kind is EventKind.HEAL and event.at >= self._began]

    def _refs(self, device: str) -> dict[str, str]:
        """What a user's ls-remote shows on a device."""
        lines = self._ask("ls-remote", device).splitlines()
        return {ref: oid for oid, ref in (line.split("\t") for line in lines)}

    # ------------------------------------------------------------------------------------------- commands

    def _url(self, device: str) -> str:
        return f"{self._loopback.devices[device].url}/{self._repository}"

    def _git(self, *words: str, cwd: Path | None = None) -> Done:
        """Run Git for everybody to see; whatever its exit code."""
        self._screen.command(shlex.join(["git", *words]))
        done = self._finish(self._start(["git", *words], cwd or self._work))
        self._screen.output(done.text)
        return done

    def _ask(self, *words: str) -> str:
        """Git's answer to a question of ours, unseen. CheckFailed where it has none."""
        done = self._finish(self._start(["git", *words], self._work))
        if done.code:
            self._screen.command(shlex.join(["git", *words]))
            self._screen.output(done.text)
            self._check("this command succeeds", False)
        return done.text

    def _commit(self, message: str, *, unseen: bool = False) -> None:
        """One more commit, which adds a file."""
        if not unseen:
            self._screen.command(shlex.join(["git", "commit", "-m", message]))
        self._commits += 1
        (self._work / f"tour-{self._began:%Y%m%dT%H%M%S}-{self._commits}.txt").write_text(f"{message}\n")
        self._ask("add", "--all")
        self._ask("commit", "--quiet", "--no-gpg-sign", "-m", message)

    def _admin(self, *words: str) -> Done:
        """Run git-cluster for everybody to see."""
        self._screen.command(shlex.join(["git-cluster", *words]))
        done = self._finish(self._start([*self._git_cluster, *words], self._home))
        self._screen.output(done.text)
        return done

    def _restart(self, device: str, *, fault: str = "") -> None:
        config_file = shlex.quote(str(self._loopback.devices[device].config))
        variable = f"GIT_CLUSTER_FAULT={fault} " if fault else ""
        self._screen.command(f"{variable}git-cluster --config {config_file} serve &")
        with self._signals.deferred():
            self._loopback.stop(device)
            self._loopback.start(device, fault=fault)

    def _start(self, words: Sequence[str], cwd: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            words,
            cwd=cwd,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def _await_line(self, process: subprocess.Popen[str], words: str) -> None:
        """Show what a command that goes on says, up to a line with these words."""
        assert process.stdout is not None
        for line in process.stdout:
            self._screen.output(line.rstrip())
            if words in line:
                return

    def _finish(self, process: subprocess.Popen[str]) -> Done:
        try:
            text, _ = process.communicate(timeout=COMMAND_TIMEOUT)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return Done(process.returncode, text.rstrip())
