"""Clients that mean harm, against a whole cluster: refused, logged once each, and the daemon is as it was before.

docs/hostile-clients.md is what this suite shows. Which endpoint they come in by is a parameter; where endpoints differ
is in one table, LOGGED. What a command may say is in test_hostile_commands.py, the bare wire in test_ssh_hostile.py.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, LiteralString
from uuid import uuid4

import paramiko  # type: ignore[import-untyped,unused-ignore]
import pytest
from dulwich.protocol import pkt_line

from cluster import keys
from cluster.model import Level
from tests.conftest import new_cluster, new_database
from tests.endpoint_fixture import Endpoint
from tests.probes import PATIENCE, Login, device_key, new_user, no_git_left, presentable, rest

ENDPOINTS = ("built-in", "openssh")

LOGGED = {
    "terminal": {"built-in": r"refused a terminal"},
    "X11": {"built-in": r"refused X11 forwarding"},
    "agent": {"built-in": r"refused agent forwarding"},
    "subsystem": {"built-in": r"refused the subsystem"},
    "channel": {"built-in": r"refused a channel of the kind"},
    "forward": {"built-in": r"refused port forwarding"},
    "request": {"built-in": r"refused the request"},
    "variable": {"built-in": r"refused the variable"},
    "second": {"built-in": r"refused a second command"},
    "command": {"built-in": r"refused a command", "openssh": r"refused a command"},
    "too long": {"built-in": r"hung up on: a packet of|refused a command"},
    "stranger": {"built-in": r"ended before logging in"},
    "turned away": {"built-in": r"turned away|to make room"},
    "service": {"built-in": r"msg=git-\S+ .* exit=failed", "openssh": r"msg=git-\S+ .* exit=failed"},
    "device": {"built-in": r"msg=refused ", "openssh": r"msg=refused "},
}
"""What the daemon logs of each kind of refusal, by endpoint. Absent: another program than the daemon refuses it."""

PUSH = "5f0c2f3e-0d5b-4f0e-9a55-2f6f3c1f9f10"
LISTING = "git-upload-pack 'team/app'"


@pytest.fixture(scope="module")
def endpoint(
    request: pytest.FixtureRequest, postgres: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    """Device a of two, with team/app on both and team/mine on a alone, and every connection to the database made."""
    with new_database(postgres) as url:
        # So many failed logins that none of them is told in short.
        sections = {"limits": {"failed_logins": 1_000_000}}
        cluster = new_cluster(request.param, tmp_path_factory.mktemp("victim"), url, {}, sections)
        try:
            cluster.set_up(["a", "b"])
            for name in "ab":
                cluster.start(name)
            cluster.create("team/app")
            cluster.ok("push", cluster.url("a"), "main", cwd=cluster.work())
            cluster.converge()
            cluster.create("team/mine", devices="a")
            device = cluster.devices["a"]
            yield Endpoint(
                kind=request.param,
                cluster=cluster,
                device="a",
                host=device.host,
                port=device.port,
                host_key=(device.directory / "host_ed25519.pub").read_text(),
                user=cluster.identity,
            )
        finally:
            cluster.close()


@pytest.fixture(autouse=True)
def unmoved(endpoint: Endpoint) -> Iterator[None]:
    """Afterwards: no version, no Git, no more threads, descriptors and processes than before; as quick as before."""
    cluster = endpoint.cluster
    with (
        endpoint.login() as user,
        ExitStack() as stack,
    ):  # the database's pool grows to what so many need at once
        for channel in [user.channel(b"git-upload-pack 'team/app'") for _ in range(8)]:
            stack.callback(channel.close)
            channel.recv(1)
    no_git_left(cluster)
    usual = max(endpoint.seconds_to_list() for _ in range(3))
    cluster.wait(lambda: endpoint.counts().children == 0, "nothing runs")
    before, version, since = endpoint.counts(), cluster.version(), len(endpoint.log())
    yield
    no_git_left(cluster)
    cluster.wait(lambda: endpoint.counts().within(before), f"as few as {before}, not {endpoint.counts()}")
    cluster.wait(lambda: endpoint.seconds_to_list() < 2 * usual + 0.5, "as quick as before")
    assert cluster.version() == version and cluster.snapshot().intent_owner is None
    assert "Traceback" not in endpoint.log()[since:]
    assert ": unexpected" not in endpoint.log()[since:]


@pytest.fixture
def logged(endpoint: Endpoint) -> Callable[..., None]:
    """Assert that since the test began the log has so many lines (default: one) about a kind of refusal."""
    since = len(endpoint.log())

    def check(kind: str, count: int = 1) -> None:
        pattern = LOGGED[kind].get(endpoint.kind)
        if pattern is not None:
            wanted = f"{count} lines like {pattern!r}"
            endpoint.cluster.wait(lambda: len(endpoint.lines(pattern, since)) >= count, wanted, PATIENCE)
            found = endpoint.lines(pattern, since)
            assert len(found) == count, "\n".join(found)

    return check


def served(user: Login) -> None:
    """The connection is of use yet."""
    answer = user.ask(LISTING, b"0000")
    assert answer.code == 0 and b"refs/heads/main" in answer.out, answer


def turned_down(endpoint: Endpoint, user: Login, command: str | bytes, data: bytes = b"") -> str:
    """A command that is refused; what the client is told."""
    answer = user.ask(command, data)
    assert answer.code not in (0, None) and answer.out == b"", answer
    assert answer.err
    presentable(answer.err, endpoint.cluster)
    return answer.err


# ------------------------------------------------------------------------------------------- all that SSH offers


def _x11(channel: Any) -> None:
    channel.request_x11()


def _agent(channel: Any) -> None:
    """paramiko asks without wanting a reply; here one is wanted."""
    message = paramiko.Message()
    message.add_byte(b"\x62")  # SSH_MSG_CHANNEL_REQUEST
    message.add_int(channel.remote_chanid)
    message.add_string("auth-agent-req@openssh.com")
    message.add_boolean(True)
    channel._event_pending()
    channel.transport._send_user_message(message)
    channel._wait_for_event()


ASKS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "a terminal": ("terminal", lambda t: t.open_session().get_pty()),
    "sftp": ("subsystem", lambda t: t.open_session().invoke_subsystem("sftp")),
    "netconf": ("subsystem", lambda t: t.open_session().invoke_subsystem("net\x1b[2Jconf" + "x" * 5000)),
    "X11": ("X11", lambda t: _x11(t.open_session())),
    "the agent": ("agent", lambda t: _agent(t.open_session())),
    "a way to a port": (
        "channel",
        lambda t: t.open_channel("direct-tcpip", ("127.0.0.1", 22), ("127.0.0.1", 1), timeout=PATIENCE),
    ),
    "a way to a socket": ("channel", lambda t: t.open_channel("direct-streamlocal@openssh.com")),
    "a tunnel": ("channel", lambda t: t.open_channel("tun@openssh.com")),
    "an agent's channel": ("channel", lambda t: t.open_channel("auth-agent@openssh.com")),
    "nonsense": ("channel", lambda t: t.open_channel("\x1b]0;x" + "x" * 5000)),
    "a port": ("forward", lambda t: t.request_port_forward("127.0.0.1", 0)),
}


@pytest.mark.parametrize("what", ASKS)
def test_whatever_else_ssh_offers(endpoint: Endpoint, logged: Callable[..., None], what: str) -> None:
    kind, ask = ASKS[what]
    with endpoint.login() as user:
        for _ in range(12):
            with pytest.raises((paramiko.SSHException, EOFError)):
                ask(user.transport)
            for channel in list(user.transport._channels.values()):
                channel.close()
        if endpoint.kind == "built-in":  # sshd hangs up on an opening that lacks what belongs to its kind
            served(user)
    logged(kind)
    with endpoint.login() as user:
        served(user)


def test_a_socket_to_listen_on(endpoint: Endpoint, logged: Callable[..., None]) -> None:
    with endpoint.login() as user:
        for _ in range(12):
            assert user.transport.global_request("streamlocal-forward@openssh.com", ("/tmp/x",)) is None
        served(user)
    logged("request")


def test_a_shell_is_a_greeting(endpoint: Endpoint) -> None:
    with endpoint.login() as user:
        answer = user.ask(None, b"id\nexec sh\n")
        assert answer.code == 1 and b"uid=" not in answer.out
        assert "no shell" in answer.out.decode()
        served(user)


def test_variables(endpoint: Endpoint, logged: Callable[..., None], tmp_path: Path) -> None:
    """None reaches Git. Those that stock clients send to everybody are not worth a line."""
    variables = {
        "LD_PRELOAD": "/tmp/evil.so", "GIT_DIR": str(tmp_path), "PATH": str(tmp_path), "GIT_EXEC_PATH": str(tmp_path),
        "GIT_CONFIG_COUNT": "1", "GIT_TRACE": str(tmp_path / "trace"), "BASH_ENV": "/tmp/x",
        "GIT_PROTOCOL": "version=2;id",
        "X" * 5000: "y" * 50_000, "A\nB": "\0", "LANG": "C", "LC_ALL": "C",
    }  # fmt: skip
    with endpoint.login() as user:
        for _ in range(3):
            channel = user.transport.open_session(timeout=PATIENCE)
            for name, value in variables.items():
                channel.set_environment_variable(name, value)
            channel.exec_command(LISTING)
            channel.sendall(b"0000")
            channel.shutdown_write()
            answer = rest(channel)
            assert answer.code == 0 and b"refs/heads/main" in answer.out, answer
            assert b"version 2" not in answer.out
    assert list(tmp_path.iterdir()) == []
    logged("variable")


# ------------------------------------------------------------------------------------------------------ channels


def test_many_commands_on_one_connection(endpoint: Endpoint) -> None:
    with endpoint.login() as user:
        for _ in range(20):
            served(user)
        channels = [user.channel(b"git-receive-pack 'team/app'") for _ in range(10)]
        for channel in channels:
            assert channel.recv(4)
        with pytest.raises(paramiko.ChannelException):
            user.transport.open_session(timeout=PATIENCE)
        for channel in channels:
            channel.close()
        no_git_left(endpoint.cluster)
        endpoint.cluster.wait(lambda: _opens(user), "there is room again", PATIENCE)


def _serves(user: Login) -> bool:
    """Whether there is room for one more command, which is then answered."""
    try:
        served(user)
    except paramiko.ChannelException:
        return False
    return True


def _opens(user: Login) -> bool:
    try:
        user.transport.open_session(timeout=PATIENCE).close()
    except paramiko.ChannelException:
        return False
    return True


def test_a_second_command_on_a_channel(endpoint: Endpoint, logged: Callable[..., None]) -> None:
    with endpoint.login() as user:
        channel = user.channel(b"git-receive-pack 'team/app'")
        with pytest.raises(paramiko.SSHException):
            channel.exec_command(b"git-receive-pack 'team/app'")
        served(user)
    logged("second")


SIZES = [0, 1, 100, 2**31, 2**32 - 1]


@pytest.mark.parametrize("window", SIZES)
@pytest.mark.parametrize("packet", SIZES)
def test_absurd_windows_and_packets(endpoint: Endpoint, window: int, packet: int) -> None:
    with endpoint.login() as user:
        transport = user.transport
        transport._sanitize_window_size = transport._sanitize_packet_size = lambda size: size
        channel = transport.open_channel(
            "session", window_size=window, max_packet_size=packet, timeout=PATIENCE
        )
        channel.exec_command(LISTING)
        if window >= 100 and (packet or endpoint.kind == "built-in"):  # sshd sends no packet of no bytes
            answer = b""
            channel.settimeout(PATIENCE)
            channel.sendall(b"0000")
            while data := channel.recv(1000):
                answer += data
                if window == 100:  # paramiko's client gives nothing back of such a window
                    break
            assert answer.startswith(b"0") and (window == 100 or b"refs/heads/main" in answer)
        if window == 2**32 - 1:
            for _ in range(10):
                message = paramiko.Message()
                message.add_byte(b"\x5d")  # SSH_MSG_CHANNEL_WINDOW_ADJUST
                message.add_int(channel.remote_chanid)
                message.add_int(2**32 - 1)
                with suppress(OSError, EOFError, paramiko.SSHException):
                    transport._send_user_message(message)
    with endpoint.login() as user:
        served(user)


def test_data_before_a_command(endpoint: Endpoint) -> None:
    """It waits, and is the command's input. sshd lets nothing be sent before there is a command."""
    if endpoint.kind != "built-in":
        return
    with endpoint.login() as user:
        channel = user.transport.open_session(timeout=PATIENCE)
        channel.sendall(b"0000")
        channel.exec_command(LISTING)
        answer = rest(channel)
        assert answer.code == 0 and b"refs/heads/main" in answer.out
        silent = user.transport.open_session(timeout=PATIENCE)
        silent.sendall(b"x" * 1_000_000)
        served(user)


def test_a_command_and_gone(endpoint: Endpoint) -> None:
    with endpoint.login() as user:
        for number in range(30):
            with suppress(paramiko.ChannelException):  # those before may not have ended yet
                channel = user.transport.open_session(timeout=PATIENCE)
                channel.exec_command(b"git-receive-pack 'team/app'" if number % 2 else LISTING.encode())
                channel.close()
        endpoint.cluster.wait(lambda: _serves(user), "there is room again", PATIENCE)
    for _ in range(10):
        with endpoint.login() as user:
            user.channel(LISTING.encode())


def test_two_hundred_channels_without_a_command(endpoint: Endpoint) -> None:
    with endpoint.login() as user:
        for _ in range(200):
            user.transport.open_session(timeout=PATIENCE).close()
        silent = user.transport.open_session(timeout=PATIENCE)
        served(user)
        assert not silent.closed


# ------------------------------------------------------------------------------------------------------ the wire


class Tampering:
    """A socket on which what is sent ends, or is altered, at a byte."""

    def __init__(self, sock: socket.socket, at: int, *, cut: bool) -> None:
        self._sock, self._left, self._cut = sock, at, cut

    def send(self, data: bytes) -> int:
        if not 0 <= self._left < len(data):
            self._left -= len(data)
            return self._sock.send(data)
        at, self._left = self._left, -1
        if self._cut:
            self._sock.sendall(data[:at])
            self._sock.close()
            raise EOFError
        self._sock.sendall(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@pytest.mark.parametrize("cut", [True, False], ids=["half", "altered"])
def test_half_a_handshake_and_one_that_was_altered(
    endpoint: Endpoint, logged: Callable[..., None], cut: bool
) -> None:
    """From the version line to the first encrypted packets: a length, a list, a key, a MAC."""
    failed = 0
    for at in (0, 4, 12, 24, 30, 60, 300, 700, 1000, 1300, 1700, 2100, 2500, 2540, 2580):
        sock = endpoint.socket()
        tampered: Any = Tampering(sock, at, cut=cut)
        transport = paramiko.Transport(tampered)
        transport.banner_timeout = 5
        try:
            transport.start_client(timeout=5)
            transport.auth_publickey("git", paramiko.PKey.from_path(endpoint.user))
        except Exception:
            failed += 1
        finally:
            transport.close()
            sock.close()
    assert failed >= 8
    logged("stranger", failed)


def test_the_beginnings_of_handshakes_that_wait(endpoint: Endpoint, logged: Callable[..., None]) -> None:
    begun = [endpoint.socket() for _ in range(20)]
    for number, sock in enumerate(begun):
        sock.sendall((b"", b"SSH-2.0-x", b"SSH-2.0-x\r\n", b"SSH-2.0-x\r\n\0\0\0\x0c\x0a\x14")[number % 4])
    with endpoint.login() as user:
        served(user)
    for sock in begun:
        sock.close()
    logged("stranger", len(begun))


def test_five_hundred_idle_connections(endpoint: Endpoint) -> None:
    """Whoever is in stays in; whoever was turned away is a line at the most."""
    since = len(endpoint.log())
    with endpoint.login() as user:
        idle = [endpoint.socket() for _ in range(500)]
        served(user)
        for sock in idle:
            sock.close()
        served(user)
    for kind in ("stranger", "turned away"):
        assert len(endpoint.lines(LOGGED[kind].get(endpoint.kind, "$^"), since)) <= 500
    with endpoint.login() as user:
        served(user)


def test_commands_of_a_megabyte(endpoint: Endpoint, logged: Callable[..., None]) -> None:
    for command in (b"x" * 1_000_000, b"git-upload-pack '" + b"a" * 1_000_000 + b"'"):
        with endpoint.login() as user, suppress(paramiko.SSHException, EOFError, OSError):
            answer = user.ask(command)
            assert answer.code not in (0, None)
    logged("too long", 2)


# ---------------------------------------------------------------------------------------------------------- keys


def _set(endpoint: Endpoint, sql: LiteralString, **values: str) -> None:
    endpoint.cluster.db._write(sql, values)


def test_the_key_of_a_disabled_user(endpoint: Endpoint, logged: Callable[..., None]) -> None:
    """Out at once: for the next command of an open connection, and for the next login."""
    cluster = endpoint.cluster
    path = new_user(cluster, "mallory")
    cluster.db.grant(Level.ADMIN, "mallory", "*")
    with endpoint.login(path) as user:
        served(user)
        _set(endpoint, "update actor set disabled_at = now() where name = %(name)s", name="mallory")
        assert "not registered" in turned_down(endpoint, user, LISTING, b"0000")
        turned_down(endpoint, user, "git-receive-pack 'team/app'")
    with pytest.raises(paramiko.AuthenticationException), endpoint.login(path):
        pass
    cluster.db.remove_user("mallory")
    logged("service", 2)
    logged("stranger")


def test_an_expired_key(endpoint: Endpoint, logged: Callable[..., None]) -> None:
    cluster = endpoint.cluster
    path = new_user(cluster, "trent")
    cluster.db.grant(Level.ADMIN, "trent", "*")
    fingerprint = keys.read(path.with_name(path.name + ".pub")).fingerprint
    with endpoint.login(path) as user:
        served(user)
        _set(
            endpoint,
            "update key set expires_at = now() - interval '1 second' where fingerprint = %(key)s",
            key=fingerprint,
        )
        assert "not registered" in turned_down(endpoint, user, LISTING, b"0000")
    with pytest.raises(paramiko.AuthenticationException), endpoint.login(path):
        pass
    cluster.db.remove_user("trent")
    logged("service")
    logged("stranger")


@pytest.mark.parametrize("ref", ["refs/heads/main", "refs/cluster/staged/x", "refs/cluster/lost/x"])
def test_a_device_that_pushes(endpoint: Endpoint, logged: Callable[..., None], ref: str) -> None:
    """With stock Git, and its own key, to a branch and to where staged objects are kept."""
    cluster = endpoint.cluster
    key = device_key(cluster.devices["b"])
    known = cluster.ssh_config.read_text().replace(str(cluster.identity), str(key))
    config = cluster.directory / "ssh_config_of_b"
    config.write_text(known)
    ssh = f'ssh -F "{config}"'
    done = cluster.git(
        "push", cluster.url("a"), f"HEAD:{ref}", cwd=cluster.directory / "work", env={"GIT_SSH_COMMAND": ssh}
    )
    assert done.code != 0 and "a device key may not push" in done.err, done.text
    logged("service")


def proxied(user: str, repository: str) -> list[str]:
    """What a device says that acts for a user, as a whole and in forms that are nearly right."""
    words = {
        "service": "git-upload-pack", "repository": repository, "user": user, "fingerprint": "SHA256:" + "A" * 43,
        "certified_until": None, "protocol": "", "via": "ssh", "address": "192.0.2.1",
    }  # fmt: skip
    return [
        f"git-cluster-proxy '{json.dumps(words)}'",
        f"git-cluster-proxy '{json.dumps({**words, 'service': 'git-receive-pack'})}'",
        f"git-cluster-proxy {user} git-upload-pack '{repository}'",
        "git-cluster-proxy '{}'",
        "git-cluster-proxy",
    ]


def test_acting_for_a_user_who_may_not_see_it(endpoint: Endpoint) -> None:
    """A device's key carries a user, and what that user may; a user's key carries nobody else."""
    cluster = endpoint.cluster
    path, since = new_user(cluster, "eve"), len(endpoint.log())
    try:
        commands = proxied("eve", "team/app")
        with endpoint.login(device_key(cluster.devices["b"])) as device:
            for command in commands:
                assert "refs/heads/main" not in turned_down(endpoint, device, command, b"0000")
        with endpoint.login(path) as eve:
            for command in (*commands, *proxied("demo", "team/app")):
                turned_down(endpoint, eve, command, b"0000")
        count = 3 * len(commands)
        pattern = LOGGED["command"].get(endpoint.kind)
        if pattern:
            either = rf"{pattern}|{LOGGED['device'][endpoint.kind]}|{LOGGED['service'][endpoint.kind]}"
            cluster.wait(lambda: len(endpoint.lines(either, since)) >= count, "a line for each", PATIENCE)
            assert len(endpoint.lines(either, since)) == count, endpoint.log()[since:]
    finally:
        cluster.db.remove_user("eve")


def test_staging_outside_the_staging_area(endpoint: Endpoint, logged: Callable[..., None]) -> None:
    """Where staged refs go follows from the push's id, which is a UUID and nothing else."""
    ids = ("../../heads/main", f"{PUSH}/../../../heads/x", "refs/heads/main", PUSH.upper(), "*")
    with endpoint.login(device_key(endpoint.cluster.devices["b"])) as device:
        for push in ids:
            turned_down(endpoint, device, f"git-cluster-stage 'team/app' '{push}' 1", pkt_line(None))
            turned_down(endpoint, device, f"git-cluster-unstage 'team/app' '{push}'")
    logged("command", 2 * len(ids))


def test_staging_for_a_repository_that_the_device_does_not_hold(
    endpoint: Endpoint, logged: Callable[..., None]
) -> None:
    """It takes no push to it, so it has nothing to stage; nor may it drop what others have staged."""
    cluster = endpoint.cluster
    head = cluster.refs("a")["HEAD"]
    path = cluster.disk("a", "team/mine")
    staged = f"refs/cluster/staged/{PUSH}/0"
    tree = cluster.ok(f"--git-dir={path}", "mktree", "--missing") if path.exists() else ""
    if tree:
        cluster.ok(f"--git-dir={path}", "update-ref", staged, tree.strip())
    with endpoint.login(device_key(cluster.devices["b"])) as device:
        said = turned_down(
            endpoint,
            device,
            f"git-cluster-stage 'team/mine' {uuid4()} 0",
            pkt_line(head.encode()) + pkt_line(None),
        )
        assert "team/mine is not kept on device b" in said
        turned_down(endpoint, device, f"git-cluster-unstage 'team/mine' {PUSH}")
    logged("device", 2)
    if tree:
        assert staged in cluster.ok(f"--git-dir={path}", "for-each-ref", "--format=%(refname)")


# ------------------------------------------------------------------------------------------------- all at once


def test_all_of_it_at_once(endpoint: Endpoint) -> None:
    """While others do their worst, somebody works: pushes to one device, and reads from both."""
    cluster, stop = endpoint.cluster, threading.Event()

    def harass(number: int) -> None:
        while not stop.is_set():
            with suppress(Exception), endpoint.login() as user:
                for what in list(ASKS)[number::4]:
                    with suppress(Exception):
                        ASKS[what][1](user.transport)
                user.ask(b"\xff" * 10_000)

    harassers = [threading.Thread(target=harass, args=(number,), daemon=True) for number in range(4)]
    for each in harassers:
        each.start()
    try:
        for _ in range(3):
            assert re.fullmatch(r"[0-9a-f]{40}", cluster.refs("a")["HEAD"])
            assert cluster.refs("a") == cluster.refs("b")
    finally:
        stop.set()
        for each in harassers:
            each.join()
