"""The SSH endpoint, with clients that want more than they get: paramiko's, and bare sockets."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import paramiko  # type: ignore[import-untyped,unused-ignore]
import pytest

from cluster import limits
from tests.ssh_fixture import Place, until


def test_there_is_nothing_but_exec(place: Place) -> None:
    def refused(request: Callable[[Any], Any]) -> None:
        with place.raw() as transport, pytest.raises((paramiko.SSHException, EOFError)):
            request(transport)

    refused(lambda transport: transport.open_session().get_pty())
    refused(lambda transport: transport.open_session().invoke_subsystem("sftp"))
    refused(lambda transport: transport.open_session().request_x11())
    refused(lambda transport: transport.open_channel("direct-tcpip", ("127.0.0.1", 22), ("127.0.0.1", 1)))
    refused(lambda transport: transport.open_channel("direct-streamlocal@openssh.com"))
    refused(lambda transport: transport.open_channel("x11", src_addr=("127.0.0.1", 1)))
    refused(lambda transport: transport.open_forward_agent_channel())
    refused(lambda transport: transport.request_port_forward("127.0.0.1", 0))
    with place.raw() as transport:
        assert transport.global_request("streamlocal-forward@openssh.com", ("/tmp/x",)) is None
        assert transport.global_request("nonsense") is None
    assert not place.handlers.calls
    assert place.run("sftp", "-s").returncode != 0
    assert (
        b"forwarding failed"
        in place.ask("hello", "-o", "ExitOnForwardFailure=yes", "-R", "0:localhost:1").stderr
    )


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("GIT_PROTOCOL", "version=2", True),
        ("GIT_PROTOCOL", "version=1:object-format=sha256", True),
        ("GIT_PROTOCOL", "version=2\n", False),
        ("GIT_PROTOCOL", "version=3", False),
        ("GIT_PROTOCOL", "version=2:$(x)", False),
        ("GIT_PROTOCOL", "version=2" + ":a" * 200, False),
        ("GIT_PROTOCOL", "versión=2", False),
        ("GIT_DIR", "version=2", False),
        ("LD_PRELOAD", "version=2", False),
    ],
)
def test_one_variable_is_taken(place: Place, name: str, value: str, taken: bool) -> None:
    with place.raw() as transport:
        channel = transport.open_session()
        channel.set_environment_variable(name, value)
        channel.exec_command("git-upload-pack 'protocol'")
        assert channel.makefile().read().decode() == (value if taken else "")


def test_ten_commands_at_once_and_no_more(place: Place) -> None:
    with place.raw() as transport:
        channels = [transport.open_session() for _ in range(10)]
        for channel in channels:
            channel.exec_command("git-upload-pack 'stall'")
            assert channel.recv(1) == b"+"
        with pytest.raises(paramiko.ChannelException):
            transport.open_session()
        # A command that runs counts, although its client has closed the channel.
        channels[0].close()
        place.handlers.go.set()
        until(lambda: not place.handlers.running, "all ended")
        assert place.handlers.most == 10
        for _ in range(50):
            channel = transport.open_session()
            channel.exec_command("git-upload-pack 'hello'")
            assert channel.makefile().read() == b"out\n"
            assert channel.recv_exit_status() == 7
            channel.close()
        for _ in range(50):  # opened, and closed without a command
            transport.open_session().close()


def test_a_channel_runs_one_command(place: Place) -> None:
    with place.raw() as transport:
        channel = transport.open_session()
        channel.exec_command("git-upload-pack 'stall'")
        with pytest.raises(paramiko.SSHException):
            channel.exec_command("git-upload-pack 'stall'")
    until(lambda: place.handlers.ended, "the command ends")
    assert len(place.handlers.calls) == 1


def test_no_password_no_other_way_in(place: Place) -> None:
    with place.raw(key="") as transport:
        with pytest.raises(paramiko.BadAuthenticationType) as caught:
            transport.auth_password("root", "root", fallback=False)
        assert caught.value.allowed_types == ["publickey"]
        with pytest.raises(paramiko.BadAuthenticationType):
            transport.auth_none("root")
        with pytest.raises(paramiko.BadAuthenticationType):
            transport.auth_interactive("root", lambda *_: [])
        with pytest.raises(paramiko.ChannelException):
            transport.open_session(timeout=5)


def test_a_signature_by_another_key_is_refused(place: Place) -> None:
    class Forged(paramiko.Ed25519Key):  # type: ignore[misc,unused-ignore]
        def sign_ssh_data(self, data: Any, algorithm: Any = None) -> Any:
            return paramiko.PKey.from_path(place.folder / "other").sign_ssh_data(data, algorithm)

    with place.raw(key="") as transport:
        with pytest.raises(paramiko.AuthenticationException):
            transport.auth_publickey("git", Forged(filename=str(place.folder / "user")))
        with pytest.raises(paramiko.ChannelException):
            transport.open_session(timeout=5)
    assert len(place.handlers.asked) == 1


def test_a_key_of_an_unknown_kind_does_not_end_the_connection(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People offer security keys before the key that fits."""

    other = paramiko.PKey.from_path(place.folder / "other")
    monkeypatch.setattr(other, "get_name", lambda: "sk-ssh-ed25519@openssh.com")
    with place.raw(key="") as transport:
        for _ in range(3):
            with pytest.raises(paramiko.AuthenticationException, match=r"Authentication failed\."):
                transport.auth_publickey("git", other)
        transport.auth_publickey("git", paramiko.PKey.from_path(place.folder / "user"))
        assert transport.is_authenticated()


def closed(sock: socket.socket) -> bool:
    """Whether it has been hung up on; what came before is thrown away."""
    sock.settimeout(0.01)
    try:
        while sock.recv(1000):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


def test_two_hundred_idle_connections(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """128 are waited for. Of the address with the most, who has waited longest makes room."""
    caplog.set_level(logging.INFO)
    threads = threading.active_count()
    with place.raw() as transport:
        other = socket.create_connection(place.address, source_address=("127.0.0.2", 0))
        idle = [socket.create_connection(place.address) for _ in range(200)]
        until(lambda: sum(map(closed, idle)) == 73, "the others are hung up on")
        until(lambda: len(place.server._connections) == 129, "128, and the one that has logged in")
        assert [closed(each) for each in idle] == [True] * 73 + [False] * 127
        assert not closed(other)
        assert len([each for each in caplog.messages if "to make room" in each]) == 1
        assert place.ask("hello").returncode == 7
        channel = transport.open_session()
        channel.exec_command("git-upload-pack 'hello'")
        assert channel.recv_exit_status() == 7
        place.server.room.limits = replace(place.server.room.limits, login_grace=0.5)
        until(lambda: all(map(closed, [*idle, other])), "the time to log in is over")
        until(lambda: len(place.server._connections) == 1, "they are forgotten")
        for each in [*idle, other]:
            each.close()
    until(lambda: threading.active_count() <= threads, "their threads have ended")
    assert len(caplog.messages) < 30
    assert place.ask("hello").returncode == 7


def test_a_client_that_speaks_is_waited_for_before_one_that_does_not(place: Place) -> None:
    speaking = [socket.create_connection(place.address) for _ in range(20)]
    for each in speaking:
        each.sendall(b"SSH-2.0-slow\r\n")
    until(lambda: sum(each.progress for each in place.server._connections) == 20, "they are heard")
    silent = [socket.create_connection(place.address) for _ in range(200)]
    until(lambda: sum(map(closed, silent)) == 92, "room is made")
    assert not any(map(closed, speaking))
    for each in [*speaking, *silent]:
        each.close()


def test_a_user_has_no_more_connections_than_sessions(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    place.server.room.limits = replace(place.server.room.limits, sessions_per_user=3)
    with ExitStack() as stack:
        busy = stack.enter_context(place.raw())
        channel = busy.open_session()
        channel.exec_command("git-upload-pack 'stall'")
        assert channel.recv(1) == b"+"
        idle = [stack.enter_context(place.raw()) for _ in range(5)]
        until(lambda: [each.is_active() for each in idle] == [False] * 3 + [True] * 2, "the oldest are ended")
        place.handlers.go.set()
        assert channel.recv_exit_status() == 0
    assert len([each for each in caplog.messages if "ada has too many connections" in each]) == 3


def test_who_offers_a_few_keys_gets_to_the_one_that_fits(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Also from an address whose logins fail again and again: the waiting ends long before the time to log in."""
    caplog.set_level(logging.INFO)
    place.server.room.limits = replace(place.server.room.limits, login_grace=3.0)
    for _ in range(50):
        socket.create_connection(place.address).close()
    until(lambda: any("slowed down" in each for each in caplog.messages), "it is slowed")
    with place.raw(key="") as transport:
        other, user = (paramiko.PKey.from_path(place.folder / name) for name in ("other", "user"))
        begun = time.monotonic()
        for _ in range(6):
            with pytest.raises(paramiko.AuthenticationException, match=r"Authentication failed\."):
                transport.auth_publickey("git", other)
        assert time.monotonic() - begun >= 1.5
        transport.auth_publickey("git", user)
        assert transport.is_authenticated()
    until(lambda: place.server.room.delay("127.0.0.1") == 0.0, "the address is trusted again")


def test_a_refusal_that_takes_long_holds_up_nobody_else(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(limits, "DELAYS", (100.0,))
    place.server.room.limits = replace(place.server.room.limits, login_grace=200.0)
    for _ in range(50):
        socket.create_connection(place.address).close()
    until(lambda: any("slowed down" in each for each in caplog.messages), "it is slowed")
    with place.raw(key="") as transport:
        answered = threading.Event()
        transport.auth_publickey("git", paramiko.PKey.from_path(place.folder / "other"), event=answered)
        until(lambda: place.handlers.asked, "its key is looked up")
        assert place.ask("hello").returncode == 7
        assert not answered.is_set()


def test_a_connection_is_idle_from_its_last_command_on(place: Place) -> None:
    place.server.room.limits = replace(place.server.room.limits, idle_timeout=1.0)
    with place.raw() as transport:
        channel = transport.open_session()
        channel.exec_command("git-upload-pack 'stall'")
        assert channel.recv(1) == b"+"
        time.sleep(2.5)  # longer than idle_timeout and the time between two looks
        place.handlers.go.set()
        assert channel.recv_exit_status() == 0
        until(lambda: not transport.is_active(), "it is hung up on")


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 200 + b"\n",
        b"SSH-1.5-old\r\n",
        b"SSH-2.0-scan\r\n" + b"\x00\x00\x10\x00" + b"\xff" * 300,
        b"SSH-2.0-scan\r\n" + b"\xff" * 300,
        b"SSH-2.0-scan\r\n" + b"\x7f\xff\xff\xfc" + b"\x00" * 300,
        b"",
    ],
)
def test_garbage_is_one_line_in_the_log(
    place: Place, caplog: pytest.LogCaptureFixture, garbage: bytes
) -> None:
    caplog.set_level(logging.INFO)
    with socket.create_connection(place.address) as sock:
        sock.sendall(garbage)
        with suppress(OSError):  # hung up on already
            sock.shutdown(socket.SHUT_WR)
        until(lambda: caplog.records, "a line")
        until(lambda: not place.server._connections, "the connection ends")
    (record,) = caplog.records
    assert (record.levelno, record.exc_info, record.name) == (logging.INFO, None, "cluster.ssh")
    assert record.getMessage().startswith("127.0.0.1: ended before logging in: ")
    assert record.getMessage().isprintable()


def test_a_first_line_without_an_end(place: Place) -> None:
    with socket.create_connection(place.address) as sock:
        with pytest.raises(OSError):
            for _ in range(10000):
                sock.sendall(b"x" * 10000)
    until(lambda: not place.server._connections, "the connection ends")


def test_a_client_that_waits_for_our_list_of_algorithms(place: Place) -> None:
    """Some libraries do; the endpoint waits for theirs, but not for long."""
    with socket.create_connection(place.address) as sock:
        sock.sendall(b"SSH-2.0-patient\r\n")
        sock.settimeout(10)
        received = b""
        while b"aes128-ctr" not in received:
            received += sock.recv(1000)


def test_a_packet_that_claims_to_be_large_is_not_waited_for(place: Place) -> None:
    with socket.create_connection(place.address) as sock:
        sock.sendall(b"SSH-2.0-scan\r\n" + b"\x7f\xff\xff\xfc" + b"\x00" * 300)
        until(
            lambda: len(place.handlers.asked) == 0 and not place.server._connections, "the connection ends", 5
        )


def test_a_client_that_sends_beyond_its_window_is_hung_up_on(place: Place) -> None:
    with place.raw() as transport:
        channel = transport.open_session()
        channel.exec_command("git-upload-pack 'stall'")
        channel.recv(1)
        channel.out_window_size = 1 << 30
        with pytest.raises((OSError, EOFError)):
            for _ in range(1000):
                channel.sendall(b"x" * (1 << 20))
        until(lambda: not place.server._connections, "the connection ends")
