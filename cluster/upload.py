"""`git upload-pack` and `git upload-archive` for one client, who is shown only refs that a version has (G2, G6).

`gate.fresh` has looked at the refs; Git reads them later, with protocol v2 as late as the client pleases. A push may be
moving them by then, and may still fail. So what Git lists is held back until it is sure that no ref moved meanwhile;
where one did, the newest version is waited for, and Git lists again.

    v0, v1     the advertisement, which comes before the client has said anything: Git is started anew
    v2         the answer to each "ls-refs", by a Git process of its own that gets that one request; what comes before
               it lists nothing, and is remembered
    archive    what follows the client's request, up to its first piece: Git is started anew with the same request
    over HTTP  the advertisement, of receive-pack, too, is a request of its own, and each further request another one

Objects need no such care: a client asks for them by what it was shown.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from threading import Thread
from typing import IO

from cluster import git
from cluster.client import Client, Input, write_all
from cluster.errors import ClientGone, ClusterError, GitFailed, LockTimeout, UsageError
from cluster.model import Exchange, Request, Service, Snapshot
from cluster.names import shown
from cluster.node import Node
from cluster.verify import doubt

CHUNK = 65536
TRIES = 20
"""Listings that moving refs spoiled, before the client is told to come again: each waited for a commit."""

MOST_REQUEST = 1 << 20
"""Bytes of a request that has to be kept: about 10,000 prefixes in an ls-refs. A longer one is refused."""

_LENGTH = re.compile(rb"[0-9A-Fa-f]{4}")
DELIMITER = b"0001"
"""The pkt-line between the keys of a request and its arguments."""

MOST_SAID = 4096
"""Bytes of Git's last words that are kept."""

FLUSH = b"0000"

FORGET = 600.0
MOST_KNOWN = 4096
"""Seconds, and number of repositories, for which it is kept what Git says first: its program may be replaced."""

Settle = Callable[[Snapshot], Snapshot]
"""From a look at the repository to one whose newest version is on this disk (gate.fresh)."""


def upload(node: Node, request: Request, snapshot: Snapshot, client: Client, settle: Settle | None) -> int:
    """Run Git between this client and this disk; its exit code. Raises what `settle` raises.

    snapshot: what `settle` found last. settle: None for who asked for what is here, whatever that is (a device).
    """
    return _Upload(node, request, client, Steady(node, snapshot, settle)).run()


class Steady:
    """Repeats a listing until no ref moved while it was made."""

    def __init__(self, node: Node, snapshot: Snapshot, settle: Settle | None) -> None:
        self.node, self.snapshot, self._settle = node, snapshot, settle
        self.here = settle is None  # whatever is here, whether it is the newest or not

    def listing(self, produce: Callable[[], bytes]) -> bytes:
        for _ in range(TRIES):
            before = self._witness()
            listing = produce()
            if self._settle is None or (before is not None and self._witness() == before):
                return listing
            self.snapshot = self._settle(self.node.db.snapshot_of(self.snapshot.repository.id))
        raise LockTimeout("this repository changes faster than it can be listed", hint="try again")

    def _witness(self) -> object | None:
        if self._settle is None:
            return None
        repository = self.snapshot.repository
        return self.node.store.witness(repository.id, repository.position.checksum)


class _Upload:
    def __init__(self, node: Node, request: Request, client: Client, steady: Steady) -> None:
        self._path = node.store.path(steady.snapshot.repository.id)
        self._client, self._steady, self._service = client, steady, request.service
        self._exchange = request.exchange
        self._input = Input(client)
        self._v2 = "version=2" in request.protocol.split(":")
        config = {**git.HIDDEN, "uploadpack.allowFilter": "true"}
        if steady.here:  # of a version that may have been superseded meanwhile
            config["uploadpack.allowAnySHA1InWant"] = "true"
        if self._service.writes:
            config["receive.advertisePushOptions"] = "true"
        self._env = git.environment(
            config, **({"GIT_PROTOCOL": request.protocol} if request.protocol else {})
        )
        self._requests: Iterator[bytes] = iter(())
        self._failed: ClusterError | None = None
        self._said = b""

    def run(self) -> int:
        """From the first byte to the last. ReplicaUnfit where Git met damage."""
        code = self._run()
        if code and (error := doubt(self._steady.node, self._steady.snapshot, self._said)):
            raise error
        return code

    def _run(self) -> int:
        if self._exchange is Exchange.ADVERTISEMENT:
            return self._advertise()
        if self._service is Service.UPLOAD_ARCHIVE:
            said, whole = whole_request(self._input)
            self._refuse_hidden(said)
            return self._carry(*self._begun(said, _archive_begins, more=whole))
        if self._exchange is Exchange.STATELESS:
            return self._run_stateless()
        if not self._v2:
            return self._carry(*self._begun(b"", _advertisement))
        return self._run_v2()

    def _refuse_hidden(self, said: bytes) -> None:
        """upload-archive knows nothing of hidden refs, and makes an archive of any that is named."""
        for name in map(os.fsdecode, named(said)):
            look = ["rev-parse", "--verify", "--quiet", "--symbolic-full-name", name]
            with suppress(GitFailed):
                if b"refs/cluster/" in git.run(look, git_dir=self._path):
                    raise UsageError(f"no such ref: {shown(name)}")

    def _advertise(self) -> int:
        """What there is, alone."""
        if self._v2 and not self._service.writes and (capabilities := self._capabilities()) is not None:
            self._client.write(capabilities)
            return 0
        code = 0

        def produce() -> bytes:
            nonlocal code
            with self._start("--stateless-rpc", "--advertise-refs") as process:
                out, errors = process.communicate()
            self._complain(errors)
            code = process.returncode
            return out

        self._client.write(self._steady.listing(produce))
        return code

    def _run_stateless(self) -> int:
        """One request, said whole before Git answers."""
        if self._v2:
            self._requests = _without_listings(self._input, self._answer)
            first = next(self._requests, b"") or self._input.rest()
            if first in (b"", FLUSH):
                return 0
            self._requests = chain([first], self._requests)
        return self._carry(self._start("--stateless-rpc"), b"")

    def _run_v2(self) -> int:
        """What Git can do is told at once; a process of its starts with the first request that needs one to go on.
        For `git ls-remote` the listing is all."""
        self._requests = _without_listings(self._input, self._answer)
        capabilities = self._capabilities()
        if capabilities is None:  # Git itself says what is wrong
            return self._carry(self._start(), b"")
        self._client.write(capabilities)
        first = next(self._requests, b"") or self._input.read1()
        if first in (b"", FLUSH):
            return 0
        process = self._start()
        assert process.stdout is not None
        _advertisement(process.stdout)  # which the client has
        self._requests = chain([first], self._requests)
        return self._carry(process, b"")

    def _capabilities(self) -> bytes | None:
        """Git's first words in protocol v2, which depend on the repository's configuration. None: it has no such."""
        known, key = self._steady.node.advertised, (self._path, self._steady.here)
        try:
            stat = (self._path / "config").stat()
        except OSError:
            return None
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size, time.monotonic() // FORGET)
        found = known.get(key)
        if found is None or found[0] != stamp:
            with self._start() as process:
                out, _ = process.communicate(FLUSH)
            if process.returncode != 0:
                return None
            if len(known) >= MOST_KNOWN:
                known.clear()
            found = known[key] = (stamp, out)
        return found[1]

    def _begun(
        self, said: bytes, prefix: Callable[[IO[bytes]], bytes], *, more: bool = True
    ) -> tuple[subprocess.Popen[bytes], bytes]:
        """A Git process that was told `said`, and the beginning of its answer: that one lists refs.

        more: there may be more to tell it; else Git is not to wait for it.
        """
        processes: list[subprocess.Popen[bytes]] = []

        def produce() -> bytes:
            for spoiled in processes:
                _end(spoiled)
            processes[:] = [self._start()]
            process = processes[0]
            assert process.stdin is not None and process.stdout is not None
            with suppress(BrokenPipeError):
                process.stdin.write(said)
                if not more:
                    process.stdin.close()
            return prefix(process.stdout)

        try:
            begin = self._steady.listing(produce)
        except BaseException:
            for process in processes:
                _end(process)
            raise
        return processes[0], begin

    def _carry(self, process: subprocess.Popen[bytes], begin: bytes) -> int:
        """Pass everything on, both ways, until Git has ended; its exit code."""
        errors = Thread(target=self._errors, args=(process,), daemon=True, name="upload-pack errors")
        assert process.stdin is not None
        with process:
            errors.start()
            if not process.stdin.closed:  # there may be more to tell it
                stdin = os.dup(process.stdin.fileno())  # that thread's own: it may outlive the process
                process.stdin.close()
                listen = (process, stdin)
                Thread(target=self._listen, args=listen, daemon=True, name="upload-pack requests").start()
            assert process.stdout is not None
            try:
                if begin:
                    self._client.write(begin)
                self._client.send_from(process.stdout.fileno())
            except ClientGone:
                git.kill(process)
            errors.join()
            code = process.wait()
        if self._failed is not None:
            raise self._failed
        return code

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        program = self._service.removeprefix("git-")
        try:
            return subprocess.Popen(
                ["git", program, *options, str(self._path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=self._env,
                start_new_session=True,
            )
        except OSError as error:
            raise GitFailed("git could not be started", hint="is Git installed on this device?") from error

    def _listen(self, process: subprocess.Popen[bytes], stdin: int) -> None:
        """What the client sends, to Git; with protocol v2 an ls-refs is answered on the way. Closes `stdin`."""
        try:
            for data in self._requests:
                write_all(stdin, data)
            self._input.receive_into(stdin)
        except (BrokenPipeError, ClientGone):
            pass
        except ClusterError as error:
            self._failed = error
            git.kill(process)
        finally:
            os.close(stdin)

    def _answer(self, request: bytes) -> None:
        def produce() -> bytes:
            with self._start("--stateless-rpc") as process:
                out, errors = process.communicate(request)
            self._complain(errors)
            return out

        self._client.write(self._steady.listing(produce))

    def _errors(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        while data := os.read(process.stderr.fileno(), CHUNK):
            self._complain(data)

    def _complain(self, words: bytes) -> None:
        """Git's words for the person, without this server's path."""
        if words:
            self._said = (self._said + words)[-MOST_SAID:]
            self._client.write_error(words.replace(os.fsencode(self._path), b"the repository"))


def _end(process: subprocess.Popen[bytes]) -> None:
    git.kill(process)
    with process:
        pass


# ------------------------------------------------------------------------------------------------- pkt-lines


@dataclass(frozen=True, slots=True)
class _Packet:
    raw: bytes
    flush: bool


def _packet(stream: IO[bytes] | Input) -> _Packet | None:
    """The next pkt-line; None at the end. _NotPackets, with what was read, where Git would not take it for one."""
    digits = _exactly(stream, 4)
    if not digits:
        return None
    size = int(digits, 16) if _LENGTH.fullmatch(digits) else 3
    if size == 3:
        raise _NotPackets(digits)
    if size < 4:  # flush, delimiter, end of a response
        return _Packet(digits, size == 0)
    return _Packet(digits + _exactly(stream, size - 4), False)


class _NotPackets(Exception):
    def __init__(self, read: bytes) -> None:
        super().__init__("these are no pkt-lines")
        self.read = read


def _exactly(stream: IO[bytes] | Input, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


def whole_request(client: Input) -> tuple[bytes, bool]:
    """One request, and whether it is one: with the flush that ends it, and of a size to be kept."""
    said, size = [], 0
    try:
        while packet := _packet(client):
            said.append(packet.raw)
            size += len(packet.raw)
            if packet.flush:
                return b"".join(said), True
            if size > MOST_REQUEST:
                break
    except _NotPackets as error:
        said.append(error.read)
    return b"".join(said), False


def named(said: bytes) -> list[bytes]:
    """What may name a ref below refs/cluster/ in a request for an archive, as Git reads it: up to a NUL or a colon."""
    found, at = [], 0
    while _LENGTH.fullmatch(said, at, at + 4) and (size := int(said[at : at + 4], 16)) > 4:
        key, _, value = said[at + 4 : at + size].partition(b"\0")[0].partition(b" ")
        at += size
        name = value.partition(b":")[0].rstrip(b"\n")
        if key == b"argument" and not name.startswith(b"-") and b"cluster/" in name:
            found.append(name)
    return found


def _without_listings(client: Input, answer: Callable[[bytes], None]) -> Iterator[bytes]:
    """What the client sends, but for its ls-refs, each of which goes to `answer` whole. Ends with the pkt-lines.

    The command stands among a request's keys, in any order (Git's serve.c, process_request), so these are held back up
    to their end. UsageError where a request is too long to be held: what follows it must not get to Git unseen.
    """
    held: list[bytes] = []
    size, listing, arguments = 0, False, False
    try:
        while packet := _packet(client):
            if arguments and packet.raw in (DELIMITER, b"0002"):
                # Git before 2.34 takes what follows for the next request.
                raise UsageError("this request has more than one list of arguments")
            if arguments and not listing:
                yield packet.raw
                arguments = not packet.flush
                continue
            held.append(packet.raw)
            size += len(packet.raw)
            if size > MOST_REQUEST:
                raise UsageError("this request is too long", hint="ask for fewer refs at a time")
            listing |= not arguments and packet.raw[4:].rstrip(b"\n") == b"command=ls-refs"
            arguments |= packet.raw == DELIMITER
            if packet.flush and listing:
                answer(b"".join(held))
            elif packet.flush or (arguments and not listing):
                yield b"".join(held)
            else:
                continue
            arguments = not packet.flush
            held, size, listing = [], 0, False
    except _NotPackets as error:
        held.append(error.read)
        client.unread(b"".join(held))  # Git ends there
        return
    if listing:  # cut off: that it cannot be answered is for the same Git to say
        answer(b"".join(held))
    elif held:
        yield b"".join(held)


def _advertisement(output: IO[bytes]) -> bytes:
    """Git's list of refs, up to the flush that ends it."""
    parts = []
    try:
        while packet := _packet(output):
            parts.append(packet.raw)
            if packet.flush:
                break
    except _NotPackets as error:
        parts.append(error.read)
    return b"".join(parts)


def _archive_begins(output: IO[bytes]) -> bytes:
    """ "ACK", a flush, and the first piece: by then Git has read the ref that the client named."""
    begin = _advertisement(output)
    try:
        packet = _packet(output)
    except _NotPackets as error:
        return begin + error.read
    return begin + packet.raw if packet else begin
