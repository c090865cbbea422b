"""The SSH endpoint, with OpenSSH's client and git."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path

import paramiko  # type: ignore[import-untyped,unused-ignore]
import pytest

import cluster.ssh_wire
import cluster.wire
from cluster.errors import ConfigError, SchemaMismatch
from cluster.keyfiles import write_keypair
from cluster.peer import Peers
from cluster.ssh import SshServer
from tests.ssh_fixture import BIG, BLOCK, Place, git, until


def test_a_command_has_output_errors_and_a_status(place: Place) -> None:
    result = place.ask("hello")
    assert result.stdout == b"out\n"
    assert result.stderr == b"err\nremote: cluster: a line for you?[31m\n"
    assert result.returncode == 7
    (actor, command, protocol, address), = place.handlers.calls  # fmt: skip
    assert (actor.name, str(command), protocol, address) == (
        "ada",
        "git-upload-pack 'hello'",
        "",
        "127.0.0.1",
    )
    assert actor.fingerprint in place.handlers.asked
    assert re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", actor.fingerprint)


def test_a_key_is_looked_up_once_a_connection(place: Place) -> None:
    place.ask("hello")
    assert len(place.handlers.asked) == 1


@pytest.mark.parametrize("cipher", ["aes128-gcm@openssh.com", "aes128-ctr"])
def test_all_of_a_large_output_arrives_with_its_status(place: Place, cipher: str) -> None:
    result = place.ask("big", "-c", cipher)
    assert result.returncode == 3
    assert result.stdout == BLOCK * (BIG // len(BLOCK))


def test_stock_openssh_gets_the_fast_cipher(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.ssh_wire, "HEAR_MS", 10_000)  # this machine may be busy
    result = place.ask("hello", "-v", "-o", "LogLevel=DEBUG")
    assert b"server->client cipher: aes128-gcm@openssh.com" in result.stderr
    assert b"kex: algorithm: curve25519-sha256" in result.stderr


def test_a_large_input_and_echo(place: Place) -> None:
    data = BLOCK * (BIG // len(BLOCK))
    assert place.ask("digest", input=data).stdout.decode() == hashlib.sha256(data).hexdigest()
    assert place.ask("echo", input=data[: 4 << 20]).stdout == data[: 4 << 20]


@pytest.mark.parametrize("kind", [("rsa", "2048"), ("ecdsa", "256"), ("ecdsa", "521"), ("ed25519", "256")])
def test_the_kinds_of_keys(place: Place, kind: tuple[str, str]) -> None:
    path = place.folder / "another"
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-t", kind[0], "-b", kind[1], "-f", path], check=True)
    assert place.ask("hello", key="another").returncode == 255
    place.handlers.known.add(" ".join(path.with_suffix(".pub").read_text().split()[:2]))
    assert place.ask("hello", key="another").returncode == 7


def test_a_host_key_of_another_kind(place: Place) -> None:
    path = place.folder / "rsa"
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-t", "rsa", "-b", "2048", "-f", path], check=True)
    place.server.close(0)
    place.server = SshServer(("127.0.0.1", 0), path, place.handlers)
    place.address = place.server.start()
    assert place.ask("hello").returncode == 7
    peers = Peers.from_file(place.folder / "user")
    with peers.run(
        place.device(host_key=path.with_suffix(".pub").read_text()), "git-upload-pack 'hello'"
    ) as remote:
        assert remote.finish(10) == 7
    peers.close()


def test_an_unknown_key_is_refused(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    result = place.ask("hello", key="other")
    assert result.returncode == 255
    assert b"Permission denied (publickey)" in result.stderr
    assert not place.handlers.calls
    until(
        lambda: [each for each in caplog.messages if "ended before logging in" in each], "a line in the log"
    )


def test_without_a_command_there_is_a_greeting(place: Place) -> None:
    result = place.run("", "-T")
    assert (result.stdout, result.returncode) == (b"Hello ada, there is no shell here.\n", 1)
    near, far = os.openpty()
    process = subprocess.Popen(place.ssh(""), stdin=far, stdout=far, stderr=far, start_new_session=True)
    assert process.wait(20) == 1
    lines = os.read(near, 1000).decode().splitlines()
    assert lines == ["PTY allocation request failed on channel 0", "Hello ada, there is no shell here."]
    os.close(near)
    os.close(far)


def test_an_error_is_told_in_its_own_words(place: Place) -> None:
    result = place.ask("frozen")
    assert result.stderr == b"remote: cluster: error: it is frozen\nremote: cluster: ask Ada\n"
    assert (result.stdout, result.returncode) == (b"", 1)


@pytest.mark.parametrize(
    "command", ["rm -rf /", "git-upload-pack", "git-upload-pack '../x'", "\udcff", " ", "x" * 9000]
)
def test_a_command_that_is_none_is_a_usage_error(place: Place, command: str) -> None:
    result = place.run(command)
    assert result.stderr.startswith(b"remote: cluster: error: ")
    assert (result.stdout, result.returncode) == (b"", 2)
    assert not place.handlers.calls


def test_what_nobody_foresaw_is_a_number_here_and_a_traceback_in_the_log(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    result = place.ask("bug")
    assert result.returncode == 1
    line = re.fullmatch(
        r"remote: cluster: error: something went wrong on this device; "
        r"the administrator finds it in the log as ([0-9a-f]{8})\n",
        result.stderr.decode(),
    )
    assert line
    (record,) = [each for each in caplog.records if each.name == "cluster.endpoint" and each.exc_info]
    assert line[1] in record.getMessage()
    assert "secret /path" in caplog.text


def test_the_database_is_away(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user reads why, though the key cannot be looked up; nothing can be run; a device is not held back."""

    def too_old(*_: str) -> None:
        raise SchemaMismatch("the schema is too old")

    place.handlers.away = True
    for command in ("git-upload-pack 'hello'", "rm"):
        result = place.run(command)
        away = b"remote: cluster: error: the cluster's database is away; try again in a moment\n"
        assert (result.stderr, result.stdout, result.returncode) == (away, b"", 1)
    assert place.run("", "-T").returncode == 1
    assert not place.handlers.calls
    assert "10.0.0.9" in caplog.text
    with place.raw() as transport:
        channel = transport.open_session()
        channel.exec_command("git-upload-pack 'hello'")
        assert channel.recv_exit_status() == 1
        place.handlers.away = False
        with pytest.raises(paramiko.ChannelException):
            transport.open_session()
    assert not place.handlers.calls
    monkeypatch.setattr(place.handlers, "authenticate", too_old)
    assert b"error: the schema is too old\n" in place.ask("hello").stderr


def test_a_lookup_that_has_a_fault(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: str) -> None:
        raise ValueError("secret")

    monkeypatch.setattr(place.handlers, "authenticate", fault)
    result = place.ask("hello")
    assert result.returncode == 1
    assert b"something went wrong on this device" in result.stderr
    assert b"secret" not in result.stderr


@pytest.mark.parametrize("repository", ["endless", "echo", "stall"])
def test_a_client_that_is_killed_is_noticed(place: Place, repository: str) -> None:
    command = place.ssh(f"git-upload-pack '{repository}'")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    process.stdin.write(b"x" * 1000)
    process.stdin.flush()
    process.stdout.read(1)
    process.kill()
    process.communicate()
    until(lambda: place.handlers.ended, "the command ends")
    # Who echoes, or has just written, may be told so while writing, or find that there is nothing more to read.
    hows = {"endless": ["gone"], "echo": ["gone", "returned"], "stall": ["gone", "returned"]}[repository]
    assert place.handlers.ended in [[how] for how in hows]


def test_new_keys_in_the_middle_of_transfers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every megabyte, with several commands at once, their beginnings and their ends falling where they may."""
    monkeypatch.setattr(cluster.wire._BoundedPacketizer, "REKEY_BYTES", 1 << 20)
    assert place.ask("big").stdout == BLOCK * (BIG // len(BLOCK))
    data = BLOCK * (BIG // len(BLOCK))
    digest = hashlib.sha256(data).hexdigest()
    assert place.ask("digest", input=data).stdout.decode() == digest
    peers = Peers.from_file(place.folder / "user")
    failures: list[BaseException] = []

    def both() -> None:
        try:
            for _ in range(3):
                with peers.run(place.device(), "git-upload-pack 'big'") as remote:
                    assert remote.finish(60) == 3
                with peers.run(place.device(), "git-upload-pack 'digest'") as remote:
                    remote.send(data[: 8 << 20])
                    remote.send_eof()
                    assert remote.receive(64).decode() == hashlib.sha256(data[: 8 << 20]).hexdigest()
                for _ in range(20):
                    with peers.run(place.device(), "git-upload-pack 'hello'") as remote:
                        assert remote.finish(20) == 7
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=both) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    peers.close()
    assert not failures


def test_what_a_connection_says_while_keys_change_waits_for_them(place: Place) -> None:
    """paramiko alone would wait for itself, for 30 s, and then hang up."""
    with place.raw() as transport:
        channel = transport.open_session()
        (connection,) = place.server._connections
        wire = connection._wire
        wire.clear_to_send.clear()  # as between the server's KEXINIT and its new keys
        message = paramiko.Message()
        message.add_byte(bytes([98]))
        message.add_int(channel.remote_chanid)
        message.add_string("nonsense")
        message.add_boolean(True)
        started = time.monotonic()
        transport._send_message(message)
        until(lambda: wire._held, "the reply is held")
        transport.renegotiate_keys()
        assert channel.event.wait(5)
        assert time.monotonic() - started < 20
        assert not wire._held


def test_openssh_sends_the_protocol(place: Place) -> None:
    result = place.ask("protocol", "-o", "SendEnv=GIT_*", env={**os.environ, "GIT_PROTOCOL": "version=2"})
    assert result.stdout == b"version=2"


def test_git_clones_over_the_endpoint(place: Place, origin: Path, tmp_path: Path) -> None:
    env = {**os.environ, "GIT_SSH_COMMAND": " ".join(place.ssh("")[:-1]), "GIT_SSH_VARIANT": "ssh"}
    git(
        "clone", "-q", f"ssh://git@127.0.0.1:{place.address[1]}/git/origin.git", "copy", cwd=tmp_path, env=env
    )
    assert place.handlers.calls[0][2] == "version=2"
    assert git("rev-parse", "main", cwd=tmp_path / "copy") == git("rev-parse", "main", cwd=origin)


# Shutting down, and what cannot be started


def test_closing_waits_for_commands_that_run(place: Place) -> None:
    process = subprocess.Popen(place.ssh("git-upload-pack 'stall'"), stdout=subprocess.PIPE)
    with place.raw() as transport:
        assert process.stdout
        assert process.stdout.read(1) == b"+"
        closing = threading.Thread(target=place.server.close, args=(30,))
        closing.start()
        until(lambda: place.server._stopping.is_set(), "it stops")
        channel = transport.open_session()
        channel.exec_command("git-upload-pack 'hello'")
        assert channel.recv_exit_status() == 1
        told = b"remote: cluster: error: this device is shutting down\n"
        assert channel.makefile_stderr().read() == told

        def refused() -> bool:
            try:
                socket.create_connection(place.address).close()
            except OSError:
                return True
            return False

        until(refused, "no new connections")
        assert closing.is_alive()
        place.handlers.go.set()
        assert process.wait(10) == 0
        closing.join(10)
        assert not closing.is_alive()
        until(lambda: not transport.is_active(), "the open connection is hung up")
    process.communicate()


def test_closing_does_not_wait_for_ever(place: Place) -> None:
    process = subprocess.Popen(
        place.ssh("git-upload-pack 'stall'"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.read(1)
    place.server.close(0.2)
    assert process.wait(10) == 255
    process.communicate()


def test_a_port_in_use_and_keys_that_cannot_be_used(place: Place) -> None:
    def fails(listen: tuple[str, int], key: Path) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            SshServer(listen, key, place.handlers).start()
        assert caught.value.hint
        assert "\n" not in caught.value.what
        return caught.value

    good, anywhere = place.folder / "host", ("127.0.0.1", 0)
    assert "in use" in fails(place.address, good).what
    assert "192.0.2.1" in fails(("192.0.2.1", 0), good).what
    assert "no-such-host" in fails(("no-such-host.invalid", 0), good).what
    assert "there is no file" in fails(anywhere, place.folder / "nothing").what
    assert "cannot be read" in fails(anywhere, place.folder).what
    (place.folder / "text").write_text("hello")
    assert "holds no private key" in fails(anywhere, place.folder / "text").what
    assert "holds no private key" in fails(anywhere, place.folder / "host.pub").what
    for form in ("RFC4716", "PEM"):
        path = place.folder / f"secret-{form}"
        subprocess.run(["ssh-keygen", "-q", "-N", "abcde", "-t", "ecdsa", "-m", form, "-f", path], check=True)
        assert "encrypted" in fails(anywhere, path).what
    with pytest.raises(ConfigError):
        Peers.from_file(place.folder / "nothing")
    with pytest.raises(ConfigError):
        write_keypair(good, "again")
    assert good.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="Linux alone has it")
def test_what_comes_during_a_handshake_is_acknowledged_at_once() -> None:
    """OpenSSH's client, or its kernel, keeps a message back until then: 40 ms for each connection."""

    def unacknowledged(sock: socket.socket) -> bool:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        return bool(struct.unpack_from("I", info, 24)[0])

    put_off = 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as client, server.accept()[0] as accepted:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = cluster.wire._Stream(accepted)
            for _ in range(50):  # question and answer: from the second on the kernel waits for the answer
                client.sendall(b"x" * 16)
                assert stream.recv(16) == b"x" * 16
                put_off += unacknowledged(client)
                until(lambda: not unacknowledged(client), "the kernel's patience is at its end")
                stream.send(b"y" * 16)
                assert client.recv(16) == b"y" * 16
    assert put_off < 25, "a busy machine may be late now and then; put off, nearly all of them are"
