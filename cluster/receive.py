"""`git receive-pack` under the session's control: hear what it proposes, say yes or no, hold its report back.

    client ──commands, pack──▶ receive-pack ──advertisement, progress──▶ client
                                │        ▲  └─report──▶ held here ──on acknowledge──▶ client
                          "pre", "post"  "yes", "no"
                                ▼        │
                                the session

receive-pack reports before post-receive runs (Git 2.39, builtin/receive-pack.c, cmd_receive_pack), so "ok" would
reach the client before the version is committed. The report is therefore kept, whole, until the session says what
became of the push, and then sent as Git wrote it, with better reasons, or with every "ok" turned into "ng".
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from types import TracebackType

from cluster import failing, git, hooks
from cluster.client import Client, write_all
from cluster.disk import ReplicaLock
from cluster.errors import ClientGone, ClusterError, DiskFailed, GitFailed, Refused
from cluster.limits import size
from cluster.model import RefUpdate
from cluster.outbox import Outbox
from cluster.report import Commands, Report, frame, packets, read_some, up_to_flush

CHUNK = 65536
MOST_COMPLAINT = 16384
"""Bytes of Git's last words that are kept."""

TOO_LARGE = b"pack exceeds maximum allowed size"
"""What Git's unpack-objects and index-pack say of receive.maxInputSize."""

NO_ALTERNATES = {"core.alternateRefsCommand": "true"}
"""To a Git process that looks into a quarantine, the repository's own objects are an alternate, and it asks another Git
process for the refs there: the very ones that it has looked at itself, one by one. `true` names none."""

_log = logging.getLogger(__name__)


class Hopeless(Refused):
    """No ref of a push can move, and why, by ref."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("no ref can move")
        self.reasons = reasons


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the client wants, in Git's words, and the folder with the objects that it sent (None: it sent none)."""

    updates: tuple[RefUpdate, ...]
    quarantine: Path | None


class Receiving:
    """One receive-pack, from its start to its end. A context manager: leaving it ends the process.

    complaint: what Git said, in the end, where it could not store what the client sent.

    The methods are called by one thread, in this order: proposal, then apply and acknowledge inside
    `explaining`, then finish.

    lock: the replica's write lock, not taken; receive-pack inherits its open file, and `objects`, the shared lock of
    whoever adds objects.

    most_bytes, most_refs: what this push may bring at the most, in its pack and in its list; None: anything.

    stateless: the client has seen what there is, so Git does not say it again (Exchange.STATELESS).
    """

    def __init__(
        self,
        repository: Path,
        run_directory: Path,
        client: Client,
        lock: ReplicaLock,
        *,
        objects: int,
        protocol: str,
        environment: Mapping[str, str],
        most_bytes: int | None = None,
        most_refs: int | None = None,
        stateless: bool = False,
    ) -> None:
        self.lock = lock
        self._heard = b""
        self._most_bytes = most_bytes
        self._commands = Commands(most_refs)
        self._report = Report()
        self._sending = Lock()
        self._reasons: dict[str, str] = {}
        self._repository, self._device = repository, environment["GIT_CLUSTER_DEVICE"]
        self._complained = False
        self.complaint = b""
        self._failed: str | None = None
        self._released = False
        self._advertised = stateless
        self._applied = False
        self._watched: tuple[int, Callable[[], None]] | None = None
        self._threads: list[Thread] = []
        self._ended, self._end = os.pipe()
        hear, self._answer = os.pipe()
        self._told, tell = os.pipe()
        self._poll = select.poll()  # select(2) ends at descriptor 1024
        for fd in (self._told, self._ended):
            self._poll.register(fd, select.POLLIN)
        own = hooks.own_hooks(repository)
        config = {
            **git.DURABLE,
            **git.HIDDEN,
            "core.hooksPath": str(hooks.folder(run_directory, own)),
            "receive.advertisePushOptions": "true",
            "receive.autogc": "false",
            **NO_ALTERNATES,
        }
        if most_bytes is not None:
            config["receive.maxInputSize"] = str(most_bytes)
        env = git.environment(
            config,
            GIT_CLUSTER_TELL=str(tell),
            GIT_CLUSTER_HEAR=str(hear),
            GIT_CLUSTER_HOOKS=str(own),
            **environment,
        )
        if protocol:
            env["GIT_PROTOCOL"] = protocol
        try:
            self._process = subprocess.Popen(
                ["git", "receive-pack", *(["--stateless-rpc"] if stateless else []), str(repository)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=CHUNK,
                env=env,
                pass_fds=(tell, hear, lock.fd, objects),
                start_new_session=True,
            )
        except OSError as error:
            for fd in (self._answer, self._told, self._ended, self._end):
                os.close(fd)
            raise GitFailed("git could not be started", hint="is Git installed on this device?") from error
        finally:
            os.close(hear)
            os.close(tell)
        self._client = Outbox(client)

    def __enter__(self) -> Receiving:
        for work in (self._reap, self._upload, self._download, self._errors):
            thread = Thread(target=work, daemon=True, name=f"receive-pack {work.__name__}")
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        with suppress(OSError):
            os.close(self._answer)
        if kind is not None:
            git.kill(self._process)
        self._process.wait()
        self._threads[0].join()
        for fd in (self._told, self._ended):
            os.close(fd)

    # --------------------------------------------------------------------------------- what the session does

    def proposal(self) -> Proposal | None:
        """Wait for pre-receive. None: Git ended without asking (nothing to do, rejected, or the client is gone)."""
        event = self._next_event()
        if event is None:
            return None
        self._client.urgent(True)
        first, lines = event
        _, _, quarantine = first.partition(" ")
        return Proposal(tuple(_update(line) for line in lines), Path(quarantine) if quarantine else None)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Whatever goes wrong inside is told to the pusher, ref by ref: the push failed, and this is why."""
        try:
            yield
        except Hopeless as error:
            self._refuse(error.reasons)
        except ClientGone:
            self._refuse({})
        except (ClusterError, OSError) as error:
            disk = failing.of_error(error)
            told = disk.on(self._device) if disk else error
            if isinstance(told, OSError):
                raise
            _log.warning("a push failed: %s", told.what, exc_info=error.__cause__)
            if told.hint:
                self.say(told.hint)
            if self._applied:
                self._fail(told.what)
            else:
                self._refuse({update.ref: told.what for update in self._commands.updates})

    def refuse_hopeless(self, conflicts: Mapping[str, str]) -> None:
        """End here (inside `explaining`) where `conflicts` leave no ref that could move."""
        refs = {update.ref for update in self._commands.updates}
        if conflicts and (conflicts.keys() >= refs or b"atomic" in self._commands.capabilities):
            others = dict.fromkeys(refs, "the push is atomic, and another ref of it failed")
            raise Hopeless(others | dict(conflicts))

    def _refuse(self, reasons: Mapping[str, str]) -> None:
        """Say no: no ref moves. Git reports each as "ng", with the reason given here."""
        self._reasons = dict(reasons)
        self._say("no")
        self._release()

    def apply(
        self, reasons: Mapping[str, str], lock: int | None, lost: Callable[[], None]
    ) -> tuple[RefUpdate, ...] | None:
        """Say yes, and wait until Git has moved the refs: what it moved. None: it ended without post-receive.

        reasons: why refs are not going to move, for those that are already known to fail.
        lock: the open socket of the connection that holds the write lock; where it ends meanwhile, `lost` is called.
        """
        self._reasons = dict(reasons)
        self._applied = True
        if lock is not None:
            self._watched = (lock, lost)
            self._poll.register(lock, select.POLLRDHUP)
        self._say("yes")
        event = self._next_event()
        if event is None:
            return None
        return tuple(_update(line) for line in event[1])

    def acknowledge(self) -> None:
        """Let the report go, then the repository's own post-receive hook run."""
        self._release()
        self._say("yes")

    def _fail(self, why: str) -> None:
        """Report every ref as "ng", whatever Git made of it: the version was not committed."""
        self._failed = why
        self._say("no")
        self._release()

    def finish(self) -> int:
        """Wait until receive-pack has ended and everything it said is with the client; its exit code."""
        if not self._released:  # Git ended without asking: hear all of it, then let its report go
            self._join()
            self._explain_size()
        self._release()
        self._join()
        code = self._process.wait()
        if (disk := self._disk_failed()) is not None:
            error = disk.on(self._device)
            _log.error("a push failed: %s", error.what)
            self._client.say(error.what)
        whys = [self._failed] if self._failed is not None else list(dict.fromkeys(self._reasons.values()))
        unheard = [] if self._commands.wants_report else whys
        for why in unheard:
            self._client.say(why)
        self._client.flush()
        return 1 if (self._failed is not None or unheard) and code <= 0 else code

    def _join(self) -> None:
        """Wait until all that Git said is on its way."""
        for thread in self._threads[2:]:
            thread.join()

    def _explain_size(self) -> None:
        if self._most_bytes is None or TOO_LARGE not in self.complaint:
            return
        why = f"this push is larger than {size(self._most_bytes)}, the most that this device takes"
        _log.warning("a push failed: %s", why)
        self._report.unpack_why = why
        self._reasons = {update.ref: why for update in self._commands.updates}
        self.say("push it in smaller steps, or ask an administrator")

    def _disk_failed(self) -> DiskFailed | None:
        """What Git's complaints come of, where that is the disk. None: of something else, or there are none."""
        said = failing.of_words(self.complaint)
        if not self._report.unpack_failed:
            self.complaint = b""
            if not self._complained:
                return None
        # Of a disk that is not writable it may be a hook that speaks, and of other files.
        return said if said and said.how == failing.FULL else failing.of_folder(self._repository)

    def say(self, line: str) -> None:
        """One line for the pusher, wherever their Git is looking for it now."""
        if self._advertised and self._commands.side_band:
            with self._sending, suppress(ClientGone):
                self._client.write(frame(b"\2", f"cluster: {line}\n".encode()))
        else:
            self._client.say(line)

    # ------------------------------------------------------------------------------------------ the pumps

    def _say(self, word: str) -> None:
        with suppress(OSError):
            os.write(self._answer, f"{word}\n".encode())

    def _upload(self) -> None:
        """From the client to Git, noting the commands and capabilities that come first."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError, ClientGone):
            while not self._commands.over and (data := self._client.read(CHUNK)):
                self._commands.feed(data)
                if self._commands.excess is not None:
                    self._turn_away(*self._commands.excess)
                    break
                write_all(self._process.stdin.fileno(), data)
            else:
                self._client.receive_into(self._process.stdin.fileno())
        self._commands.end()
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def _turn_away(self, what: str, hint: str) -> None:
        """The list is longer than is allowed. Git has not seen its end, so it has done nothing."""
        while not self._commands.known and (data := self._client.read(CHUNK)):
            self._commands.feed(data)
        _log.warning("a push failed: %s", what)
        self.say(hint)
        self._failed, self._report.trailer = what, b"0000" if self._commands.side_band else b""
        git.kill(self._process)

    def _download(self) -> None:
        """From Git to the client: the advertisement and progress at once, the report when it is released."""
        assert self._process.stdout is not None
        try:
            if not self._advertised:
                self._advertise()
            self._commands.wait()
            if self._commands.side_band:
                for packet in packets(self._process.stdout):
                    self._response(packet.raw, packet.payload)
            else:
                while data := read_some(self._process.stdout):
                    with self._sending:
                        self._report.feed(data)
                    self._send_report()
            self._report.end()
            self._send_report()
        except ClientGone:
            while read_some(self._process.stdout):
                pass

    def _advertise(self) -> None:
        assert self._process.stdout is not None
        for piece in up_to_flush(self._process.stdout):
            self._advertised = True
            self._forward(piece)

    def _response(self, raw: bytes, payload: bytes) -> None:
        if payload[:1] == b"\1" and len(payload) > 1:
            with self._sending:
                self._report.feed(payload[1:])
            self._send_report()
        elif raw == b"0000":
            self._report.trailer = raw
        else:
            self._forward(frame(payload[:1], self._heard_from_git(payload[1:])))

    def _forward(self, data: bytes) -> None:
        with self._sending:
            self._client.write(data)

    def _errors(self) -> None:
        assert self._process.stderr is not None
        while data := os.read(self._process.stderr.fileno(), CHUNK):
            self._client.write_error(self._heard_from_git(data))

    def _heard_from_git(self, words: bytes) -> bytes:
        """Git's words for the person, without this server's path; the last of them are kept."""
        self.complaint = (self.complaint + words)[-MOST_COMPLAINT:]
        self._complained |= b"error: " in words or b"fatal: " in words
        return words.replace(os.fsencode(self._repository) + b"/", b"")

    def _release(self) -> None:
        self._released = True
        self._client.urgent(False)
        with suppress(ClientGone):
            self._send_report()

    def _send_report(self) -> None:
        with self._sending:
            if self._released and (text := self._report.take(self._commands, self._reasons, self._failed)):
                self._client.write(text)

    def _next_event(self) -> tuple[str, list[str]] | None:
        """What a hook tells: its first line, and the updates. None when receive-pack has ended."""
        while True:
            block, end, rest = self._heard.partition(b"\n\n")
            if end:
                self._heard = rest
                first, *lines = block.decode("utf-8", "surrogateescape").split("\n")
                return first, [line for line in lines if line]
            ready = {fd for fd, _ in self._poll.poll()}
            if self._watched and self._watched[0] in ready:
                (lock, lost), self._watched = self._watched, None
                self._poll.unregister(lock)
                lost()
                continue
            data = os.read(self._told, CHUNK) if self._told in ready else b""
            if data:
                self._heard += data
            elif self._ended in ready:
                return None
            else:
                self._process.wait()

    def _reap(self) -> None:
        """Note that receive-pack has ended, for everybody who waits for something else."""
        self._process.wait()
        self._commands.end()
        os.close(self._end)


def _update(line: str) -> RefUpdate:
    old, new, ref = line.split(" ", 2)
    return RefUpdate(ref, old, new)
