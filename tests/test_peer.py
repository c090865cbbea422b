"""The connections between devices: Peers, the commands that run over them, and their pipes for git."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import cluster.peer
import cluster.remote
import cluster.ssh
import cluster.wire
from cluster.errors import PeerFailed
from cluster.keyfiles import load_key
from cluster.peer import Peers
from cluster.wire import Wire
from tests.ssh_fixture import Place, git, until


def test_a_command_on_another_device(place: Place, peers: Peers) -> None:
    with peers.run(place.device(), "git-upload-pack 'echo'", protocol="version=2") as remote:
        remote.send(b"x" * 3000)
        remote.send_eof()
        data = b""
        while more := remote.receive(100):
            assert len(more) <= 100
            data += more
        assert data == b"x" * 3000
        assert remote.finish(10) == 0
    assert place.handlers.calls[0][2] == "version=2"
    with peers.run(place.device(), "git-upload-pack 'frozen'") as remote:
        assert remote.finish(10) == 1
        assert remote.stderr == "error: it is frozen\nask Ada"


def test_a_command_that_ends_without_reading_is_told_from_a_connection_that_is_lost(
    place: Place, peers: Peers
) -> None:
    """An older git-cluster does so to a command that it does not know; its connection is as good as before."""
    for _ in range(20):
        with peers.run(place.device(), "git-upload-pack 'frozen'") as remote:
            with pytest.raises(PeerFailed):
                for _ in range(1000):
                    remote.send(b"x" * 100_000)
            assert remote.over
            assert remote.finish(10) == 1
            assert remote.stderr == "error: it is frozen\nask Ada"
    assert len(place.handlers.asked) == 1


def test_a_command_is_not_waited_for_before_it_is_talked_to(
    place: Place, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The channel is one round trip, the answer one; there is no third for "exec"."""
    asked = threading.Event()
    grant = cluster.ssh._Connection.check_channel_exec_request

    def late(connection: Any, channel: Any, command: bytes) -> bool:
        assert asked.wait(30), "whoever asks waits for this"
        return grant(connection, channel, command)

    monkeypatch.setattr(cluster.ssh._Connection, "check_channel_exec_request", late)
    with peers.run(place.device(), "git-upload-pack 'echo'") as remote:
        remote.send(b"before it has begun")
        remote.send_eof()
        asked.set()
        assert remote.receive(100) == b"before it has begun"
        assert remote.finish(10) == 0


def test_a_command_that_a_device_does_not_take_ends_at_once(
    place: Place, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.ssh._Connection, "check_channel_exec_request", lambda *_: False)
    for _ in range(3):
        with peers.run(place.device(), "git-upload-pack 'echo'") as remote:
            with pytest.raises(PeerFailed, match="the connection to device b was lost"):
                assert remote.receive(100) == b""
                remote.finish(10)
    monkeypatch.undo()
    with peers.run(place.device(), "git-upload-pack 'hello'") as remote:
        assert remote.finish(10) == 7


def test_a_connection_is_reused(place: Place, peers: Peers) -> None:
    for _ in range(20):
        with peers.run(place.device(), "git-upload-pack 'hello'") as remote:
            assert remote.finish(10) == 7
    assert len(place.handlers.asked) == 1
    (connection,) = place.server._connections
    assert connection._wire.remote_cipher == "aes128-gcm@openssh.com"


def test_commands_at_once_have_connections_of_their_own(place: Place, peers: Peers) -> None:
    done: list[int] = []

    def one() -> None:
        with peers.run(place.device(), "git-upload-pack 'stall'") as remote:
            assert remote.receive(1) == b"+"
            done.append(remote.finish(30))

    threads = [threading.Thread(target=one) for _ in range(25)]
    for thread in threads:
        thread.start()
    until(lambda: place.handlers.running == 25, "all run at once")
    place.handlers.go.set()
    for thread in threads:
        thread.join()
    assert done == [0] * 25
    until(lambda: len(place.server._connections) == cluster.peer.KEPT, "some are kept")


def test_a_device_logs_in_anew_once_the_database_is_back(place: Place, peers: Peers) -> None:
    place.handlers.away = True
    with peers.run(place.device(), "git-upload-pack 'hello'") as remote:
        assert remote.finish(10) == 1
        assert "database is away" in remote.stderr
    place.handlers.away = False
    with peers.run(place.device(), "git-upload-pack 'hello'") as remote:
        assert remote.finish(10) == 7


def test_another_host_key_is_refused_before_anything_is_said(place: Place, peers: Peers) -> None:
    rsa = place.folder / "rsa"
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-t", "rsa", "-b", "2048", "-f", rsa], check=True)
    for wrong in (place.public["other"], rsa.with_suffix(".pub").read_text()):
        with pytest.raises(
            PeerFailed, match="device b shows another host key than the one registered"
        ) as caught:
            with peers.run(place.device(host_key=wrong), "git-upload-pack 'hello'"):
                pass
        assert caught.value.hint
    assert not place.handlers.asked
    with pytest.raises(PeerFailed, match="registered with a host key that is none"):
        with peers.run(place.device(host_key="nonsense"), "git-upload-pack 'hello'"):
            pass


def test_a_device_that_changes_its_address_is_reached_there(place: Place, peers: Peers) -> None:
    with peers.run(place.device(), "git-upload-pack 'hello'") as remote:
        remote.finish(10)
    with pytest.raises(PeerFailed, match="cannot be reached"):
        with peers.run(place.device(ssh_url="ssh://git@127.0.0.1:1"), "git-upload-pack 'hello'"):
            pass
    until(lambda: not place.server._connections, "the old connection is closed")


def test_a_key_that_the_device_does_not_know(place: Place) -> None:
    peers = Peers.from_file(place.folder / "other")
    with pytest.raises(PeerFailed, match="device b does not accept this device's key") as caught:
        with peers.run(place.device(), "git-upload-pack 'hello'"):
            pass
    assert caught.value.hint and "[device] key" in caught.value.hint


def test_a_key_that_is_not_a_devices(place: Place) -> None:
    """As an operator's: the message must not send people to look at the key of a device."""
    key = load_key(place.folder / "other", "a key")
    peers = Peers(key, whose="the key of this command", if_refused="Look there.")
    with pytest.raises(PeerFailed, match="device b does not accept the key of this command") as caught:
        with peers.run(place.device(), "git-upload-pack 'hello'"):
            pass
    assert caught.value.hint == "Look there."


def test_a_device_that_was_restarted(place: Place, peers: Peers) -> None:
    for _ in range(3):
        with peers.run(place.device(), "git-upload-pack 'hello'") as remote:
            assert remote.finish(10) == 7
        place.restart()
    with peers.run(place.device(), "git-upload-pack 'stall'") as remote:
        assert remote.receive(1) == b"+"
        place.restart()
        with pytest.raises(PeerFailed, match="connection to device b was lost"):
            remote.receive(1)
        with pytest.raises(PeerFailed, match="connection to device b was lost"):
            remote.finish(10)
        with pytest.raises(PeerFailed, match="connection to device b was lost"):
            remote.send(b"x")
    place.server.close(0)
    with pytest.raises(
        PeerFailed, match=r"device b cannot be reached at 127\.0\.0\.1 port \d+: Connection refused"
    ):
        with peers.run(place.device(), "git-upload-pack 'hello'"):
            pass


def test_a_command_that_does_not_finish(place: Place, peers: Peers) -> None:
    with peers.run(place.device(), "git-upload-pack 'stall'") as remote:
        with pytest.raises(PeerFailed, match="device b did not finish in time"):
            remote.finish(0.1)
    until(lambda: place.handlers.ended, "leaving the block ends the command")


def test_a_reader_that_stalls(place: Place, peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.remote, "STALL", 1.0)
    with peers.run(place.device(), "git-upload-pack 'stall'") as remote:
        with pytest.raises(PeerFailed, match="device b has read nothing"):
            remote.send(b"x" * (cluster.wire.WINDOW * 2))


def test_stderr_is_bounded_and_blocks_nobody(place: Place, peers: Peers) -> None:
    """20 MB of it, more than the window that it shares with stdout."""
    with peers.run(place.device(), "git-upload-pack 'noise'") as remote:
        assert remote.receive(100) == b"done"
        assert remote.finish(10) == 0
        assert len(remote.stderr) <= 64 * 1024
        assert remote.stderr.splitlines()[-1].startswith("019999 x")


class Relay:
    """Passes bytes on between two ends, until it is told to keep them."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.silent = threading.Event()
        self.stuck = threading.Event()
        self._target = target
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near = self.listener.accept()[0]
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                while self.stuck.is_set():
                    time.sleep(0.01)
                if not self.silent.is_set():
                    target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.stuck.clear()
        for sock in [self.listener, *self._sockets]:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


@pytest.fixture
def relay(place: Place) -> Iterator[Relay]:
    relay = Relay(place.address)
    yield relay
    relay.close()


def test_a_device_that_goes_silent(
    place: Place, peers: Peers, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.wire, "KEEPALIVE", 0.2)
    device = place.device(ssh_url=f"ssh://git@127.0.0.1:{relay.port}")
    with peers.run(device, "git-upload-pack 'stall'") as remote:
        assert remote.receive(1) == b"+"
        answered = threading.Event()
        (pool,) = peers._pools.values()
        (transport,) = pool._busy
        original = Wire._parse_request_failure

        def reply(message: Any) -> None:
            original(transport, message)
            answered.set()

        transport._handler_table[82] = reply
        assert answered.wait(10), "a device that only waits answers keepalives"
        relay.silent.set()
        with pytest.raises(PeerFailed, match="connection to device b was lost"):
            remote.receive(1)


def test_a_device_that_takes_nothing_more(
    place: Place, peers: Peers, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sending is stuck, so that no keepalive can be sent either."""
    monkeypatch.setattr(cluster.wire, "KEEPALIVE", 0.3)
    device = place.device(ssh_url=f"ssh://git@127.0.0.1:{relay.port}")
    with peers.run(device, "git-upload-pack 'digest'") as remote:
        relay.stuck.set()
        started = time.monotonic()
        with pytest.raises(PeerFailed, match="connection to device b was lost"):
            remote.send(bytes(64 << 20))
        assert time.monotonic() - started < 30


def test_a_device_that_never_answers(place: Place, peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its callers wait at the same time, not one after another, and callers of other devices not at all."""
    monkeypatch.setattr(cluster.wire, "AUTH_TIMEOUT", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        device = place.device(ssh_url=f"ssh://git@127.0.0.1:{mute.getsockname()[1]}")
        failures: list[PeerFailed] = []

        def one() -> None:
            try:
                with peers.run(device, "git-upload-pack 'hello'"):
                    pass
            except PeerFailed as failure:
                failures.append(failure)

        threads = [threading.Thread(target=one) for _ in range(8)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        with peers.run(
            place.device(id=3), "git-upload-pack 'hello'"
        ) as remote:  # not held up by the mute one
            assert remote.finish(10) == 7
        assert time.monotonic() - started < 2
        for thread in threads:
            thread.join()
        assert time.monotonic() - started < 10
        assert len(failures) == 8
        assert "device b did not complete the SSH handshake" in failures[0].what


# Pipes, for git


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    git("init", "-q", "--bare", "empty.git", cwd=tmp_path)
    return tmp_path / "empty.git"


@pytest.mark.parametrize("protocol", ["version=2", "version=1", ""])
def test_git_fetches_through_pipes(
    place: Place, peers: Peers, origin: Path, empty: Path, protocol: str
) -> None:
    tip = git("rev-parse", "main", cwd=origin)
    version = (protocol or "version=0").removeprefix("version=")
    trace = empty.parent / "trace"
    with peers.run(place.device(), "git-upload-pack 'git/origin'", protocol=protocol) as remote:
        with remote.pipes() as (read, write):
            git(
                *("-c", f"protocol.version={version}"),
                *("fetch", "-q", f"fd::{read},{write}", "refs/heads/*:refs/heads/*"),
                cwd=empty,
                pass_fds=(read, write),
                env={**os.environ, "GIT_TRACE_PACKET": str(trace)},
            )
        assert remote.finish(10) == 0
        assert remote.stderr == ""
    assert git("rev-parse", "main", cwd=empty) == tip
    git("fsck", "--strict", cwd=empty)
    spoken = re.search(r"fetch< version (\d)", trace.read_text())
    assert (spoken[1] if spoken else "0") == version
    # Nothing new: the helper must not wait for more than there is.
    with peers.run(place.device(), "git-upload-pack 'git/origin'", protocol=protocol) as remote:
        with remote.pipes() as (read, write):
            git(
                "fetch",
                "-q",
                f"fd::{read},{write}",
                "refs/heads/*:refs/heads/*",
                cwd=empty,
                pass_fds=(read, write),
            )
        assert remote.finish(10) == 0
    assert len(place.handlers.asked) == 1


def test_git_pushes_through_pipes(place: Place, peers: Peers, origin: Path, empty: Path) -> None:
    place.handlers.repositories["git/empty"] = empty
    with peers.run(place.device(), "git-receive-pack 'git/empty'") as remote:
        with remote.pipes() as (read, write):
            git("push", "-q", f"fd::{read},{write}", "main", cwd=origin, pass_fds=(read, write))
        assert remote.finish(10) == 0
    assert git("rev-parse", "main", cwd=empty) == git("rev-parse", "main", cwd=origin)


def test_pipes_leave_nothing_behind(place: Place, peers: Peers) -> None:
    """Neither when all goes well, nor when the child stops half-way, nor when the block is left by an error."""
    with peers.run(place.device(), "git-upload-pack 'hello'") as remote:
        remote.finish(10)

    def open_files() -> set[str]:
        return set(os.listdir("/proc/self/fd"))

    threads, files = threading.active_count(), len(open_files())
    for _ in range(5):
        with peers.run(place.device(), "git-upload-pack 'echo'") as remote:
            with remote.pipes() as (read, write):
                os.write(write, b"hello")
                assert os.read(read, 100) == b"hello"
            assert remote.finish(10) == 0
        with peers.run(place.device(), "git-upload-pack 'endless'") as remote:
            with remote.pipes() as (read, write):
                subprocess.run(["head", "-c", "100000"], stdin=read, stdout=subprocess.DEVNULL, check=True)
        with peers.run(place.device(), "git-upload-pack 'stall'") as remote:
            with pytest.raises(KeyError), remote.pipes() as (read, write):
                raise KeyError
    until(lambda: threading.active_count() <= threads, "no thread is left")
    assert len(open_files()) <= files  # one may have been about to be closed


def test_a_grandchild_that_stays_holds_nothing_up(place: Place, peers: Peers) -> None:
    """As git's own maintenance does, in the background."""
    with peers.run(place.device(), "git-upload-pack 'digest'") as remote:
        with remote.pipes() as (read, write):
            stays = subprocess.Popen(["sleep", "60"], pass_fds=(read, write))
            os.write(write, b"x" * 100_000)
        assert remote.finish(10) == 0
    stays.kill()
    stays.wait()


def test_a_child_sees_the_end_of_a_connection_that_is_lost(place: Place, peers: Peers) -> None:
    with peers.run(place.device(), "git-upload-pack 'endless'") as remote:
        with remote.pipes() as (read, _):
            child = subprocess.Popen(["cat"], stdin=read, stdout=subprocess.DEVNULL)
            place.server.close(0)
            assert child.wait(10) == 0
        with pytest.raises(PeerFailed):
            remote.finish(10)
