"""What one client may take of a device, through the real thing: stock git and ssh, bare sockets, a real device."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from dulwich.protocol import pkt_line

from cluster.keyfiles import write_keypair
from tests.cluster_fixture import DEADLINE, Cluster, Done, Project, RawPush

MakeCluster = Callable[..., Cluster]
ZERO = "0" * 40


def one_device(make_cluster: MakeCluster, **limits: str | int) -> tuple[Cluster, Project]:
    """Device a with these limits, and a repository to which one commit was pushed before they held."""
    cluster = make_cluster("a", sections={"limits": {}})
    cluster.create("team/app")
    app = Project(cluster, "team/app")
    app.pushed("a", "main")
    limit(cluster, **limits)
    return cluster, app


def limit(cluster: Cluster, **limits: str | int) -> None:
    """From now on: [limits] is the last table of the devices' configuration."""
    for name, device in cluster.devices.items():
        cluster.stop(name)
        with device.config.open("a") as config:
            config.writelines(f"{key} = {value!r}\n" for key, value in limits.items())
        cluster.start(name)


def served(cluster: Cluster) -> None:
    """Others are served. On a machine that is busy a limit of a second may end them, too, now and then."""
    cluster.wait(lambda: cluster.git("ls-remote", cluster.url("a")).code == 0, "others are served")


def log_lines(cluster: Cluster, words: str, device: str = "a") -> list[str]:
    text = cluster.devices[device].log.read_text(errors="replace")
    return [line for line in text.splitlines() if words in line]


def ssh(cluster: Cluster, command: str, *options: str) -> subprocess.Popen[bytes]:
    """Stock ssh, with pipes."""
    device = cluster.devices["a"]
    return subprocess.Popen(
        ["ssh", "-F", str(cluster.ssh_config), *options, "-p", str(device.port), "127.0.0.1", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def idle(cluster: Cluster) -> subprocess.Popen[bytes]:
    """A fetch that has begun and asks for nothing."""
    process = ssh(cluster, "git-upload-pack 'team/app'")
    assert process.stdout is not None
    assert process.stdout.read(4) != b""
    return process


def ended(process: subprocess.Popen[bytes]) -> Done:
    """Wait until it is hung up on: our side stays open until then."""
    process.wait(DEADLINE)
    out, err = process.communicate(timeout=DEADLINE)
    return Done(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


def untouched(cluster: Cluster, version: int) -> None:
    """G4: no version, nothing frozen, no objects left in the quarantine."""
    snapshot = cluster.snapshot()
    assert snapshot.repository.version == version
    assert snapshot.intent_owner is None and snapshot.repository.frozen is None
    objects = cluster.disk("a") / "objects"
    cluster.wait(
        lambda: not [*objects.glob("tmp_objdir*"), *objects.glob("incoming*"), *objects.glob("*/tmp_*")],
        "the quarantine is gone",
    )


# ------------------------------------------------------------------------------------------ commands at once


def test_sessions_of_one_user(make_cluster: MakeCluster) -> None:
    cluster, app = one_device(make_cluster, sessions_per_user=2)
    sessions = [idle(cluster) for _ in range(2)]
    refused = cluster.git("ls-remote", app.url("a"))
    assert refused.code != 0
    assert "cluster: error: you have 2 sessions open on this device, the most that one user" in refused.err
    assert "cluster: end some, or try again when they have ended" in refused.err
    assert len(log_lines(cluster, "sessions of this user are open")) == 1
    for each in sessions:
        each.stdin.close()  # type: ignore[union-attr]
        each.wait(DEADLINE)
    cluster.wait(lambda: cluster.git("ls-remote", app.url("a")).code == 0, "there is room again")


def test_sessions_of_one_address(make_cluster: MakeCluster) -> None:
    cluster, app = one_device(make_cluster, sessions_per_address=1)
    session = idle(cluster)
    refused = app.push("a", "main:refs/heads/other")
    assert "127.0.0.1 has 1 session open on this device, the most that one address may have" in refused.err
    elsewhere = cluster.git(
        "-c", "core.sshCommand=", "ls-remote", app.url("a"), env=from_address(cluster, "127.0.0.2")
    )
    assert elsewhere.code == 0, elsewhere.text
    session.kill()
    session.communicate()
    cluster.wait(lambda: app.push("a", "main:refs/heads/other").code == 0, "there is room again")


def test_peers_and_operators_are_not_counted(make_cluster: MakeCluster) -> None:
    """A cluster whose users may have one session at a time pushes with a second copy, syncs and verifies."""
    limits = {"sessions_per_user": 1, "sessions_per_address": 1, "push_refs": 1, "push_size": "2KiB"}
    cluster = make_cluster("ab", sections={"limits": limits})
    cluster.create("team/app", min_copies=2)
    app = Project(cluster, "team/app")
    app.pushed("a", "main")
    app.converge()
    done = cluster.admin("verify", "team/app")
    assert done.code == 0, done.text
    app.commit("two", big=os.urandom(20_000).hex())
    app.git("branch", "second")
    imported = cluster.admin("repo", "import", "team/whole", str(app.work))
    assert imported.code == 0, imported.text
    assert len(cluster.refs("b", "team/whole")) >= 3


def from_address(cluster: Cluster, address: str) -> dict[str, str]:
    return {"GIT_SSH_COMMAND": f'ssh -F "{cluster.ssh_config}" -o BindAddress={address}'}


# ------------------------------------------------------------------------------------------ time


def test_a_silent_command_is_ended(make_cluster: MakeCluster) -> None:
    cluster, _ = one_device(make_cluster, idle_timeout="1s")
    done = ended(idle(cluster))
    assert "cluster: error: nothing was sent for 1 second" in done.err
    assert done.code != 0
    assert len(log_lines(cluster, "ended a session: nothing was sent for 1 second")) == 1
    served(cluster)


def test_a_silent_push_is_ended_and_leaves_nothing(make_cluster: MakeCluster) -> None:
    cluster, app = one_device(make_cluster, idle_timeout="1s")
    push = RawPush(cluster, "a")
    push.propose((ZERO, app.git("rev-parse", "main"), "refs/heads/other"))
    push.send(b"PACK\0\0\0\2")
    done = ended(push.process)
    assert "nothing was sent for 1 second" in done.err
    untouched(cluster, 1)


def test_a_command_that_goes_on_and_on_is_ended(make_cluster: MakeCluster) -> None:
    """Neither silent nor done: its client names one more ref now and then."""
    cluster, app = one_device(make_cluster, session_timeout="2s", idle_timeout="1m")
    push = RawPush(cluster, "a")
    commit, begun = app.git("rev-parse", "main"), time.monotonic()
    with suppress(OSError):
        while push.process.poll() is None and time.monotonic() < begun + DEADLINE:
            push.send(pkt_line(f"{ZERO} {commit} refs/heads/{time.monotonic_ns()}\0report-status".encode()))
            time.sleep(0.1)
    done = ended(push.process)
    assert "cluster: error: a session lasts at most 2 seconds" in done.err
    untouched(cluster, 1)


def test_a_client_that_takes_nothing_is_ended(make_cluster: MakeCluster) -> None:
    """It is stopped; its window and its socket are full, so not even the reason can be told."""
    cluster, app = one_device(make_cluster)
    app.commit("large", large=os.urandom(30 << 20).hex())
    app.pushed("a", "main")
    limit(cluster, idle_timeout="2s")
    reader = ssh(cluster, "git-upload-pack 'team/app'")
    want = app.git("rev-parse", "main")
    reader.stdin.write(pkt_line(f"want {want} side-band-64k".encode()) + b"0000" + pkt_line(b"done\n"))  # type: ignore[union-attr]
    reader.stdin.flush()  # type: ignore[union-attr]
    cluster.wait(lambda: log_lines(cluster, "ended a session: nothing was sent for 2 seconds"), "it is ended")
    cluster.wait(lambda: not git_processes(cluster), "its Git has ended")
    reader.kill()
    reader.communicate()
    served(cluster)


def git_processes(cluster: Cluster) -> list[str]:
    """The processes that the device has started."""
    pid = cluster.devices["a"].pid
    out = subprocess.run(["ps", "-o", "args=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [line for line in out.splitlines() if "pack" in line]


@pytest.mark.parametrize("fault", ["apply", "commit", "mark", "acknowledge"])
def test_a_push_that_is_ended_between_intend_and_acknowledge_is_completed(
    make_cluster: MakeCluster, fault: str
) -> None:
    """As with any client that hangs up there."""
    cluster, app = one_device(make_cluster, session_timeout="2s")
    cluster.stop("a")
    cluster.start("a", fault=f"{fault}:pause")
    app.commit("two")
    push = cluster.spawn("push", app.url("a"), "main", cwd=app.work)
    pid = cluster.devices["a"].pid
    assert pid is not None
    cluster.wait(lambda: stopped(pid), "the device is paused")
    time.sleep(2.5)  # the session is overdue the moment the device goes on
    os.kill(pid, 18)
    push.communicate(timeout=DEADLINE)
    cluster.wait(lambda: cluster.version() == 2, "it is committed")
    app.converge()
    served(cluster)


def stopped(pid: int) -> bool:
    return re.search(r"\) T ", Path(f"/proc/{pid}/stat").read_text()) is not None


def test_a_connection_without_a_command_is_closed(make_cluster: MakeCluster) -> None:
    """A multiplexing client's, say. One of a device is not."""
    cluster = make_cluster("ab", sections={"limits": {}})
    cluster.create("team/app", min_copies=2)
    app = Project(cluster, "team/app")
    app.pushed("a", "main")
    limit(cluster, idle_timeout="2s")
    app.commit("two")
    cluster.wait(lambda: app.push("a", "main").code == 0, "b keeps a copy, over a connection of a's")
    lasting = ssh(cluster, "", "-N")
    assert lasting.wait(DEADLINE) == 255
    assert len(log_lines(cluster, "hung up: no command in 2 seconds")) == 1
    assert not log_lines(cluster, "hung up: no command", device="b")


# ------------------------------------------------------------------------------------------ logging in


def test_who_does_not_log_in_in_time_is_hung_up_on(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("a", sections={"limits": {"login_grace": "1s"}})
    with socket.create_connection(("127.0.0.1", cluster.devices["a"].port)) as sock:
        sock.sendall(b"SSH-2.0-slow\r\n")
        sock.settimeout(DEADLINE)
        with suppress(ConnectionResetError):
            while sock.recv(4096):
                pass
    cluster.wait(lambda: log_lines(cluster, "not logged in after 1 second"), "it is said")


def usage(cluster: Cluster) -> tuple[int, int]:
    """Threads and descriptors of the device."""
    process = Path(f"/proc/{cluster.devices['a'].pid}")
    return len(list((process / "task").iterdir())), len(list((process / "fd").iterdir()))


def test_five_hundred_idle_connections_keep_nobody_out(make_cluster: MakeCluster) -> None:
    cluster, app = one_device(make_cluster)
    port = cluster.devices["a"].port
    served(cluster)
    before = usage(cluster)
    flood = [socket.create_connection(("127.0.0.1", port)) for _ in range(500)]
    try:
        for address in ("127.0.0.1", "127.0.0.2"):
            done = cluster.git("ls-remote", app.url("a"), env=from_address(cluster, address))
            assert done.code == 0, done.text
        threads, _ = usage(cluster)
        assert threads < before[0] + 200, "not a thread for each of them"
    finally:
        for each in flood:
            each.close()
    cluster.wait(
        # Beside them, a device has connections to the database, and a few threads at work in the background.
        lambda: all(now <= then + 8 for now, then in zip(usage(cluster), before, strict=True)),
        "nothing is left of them",
    )
    assert len(log_lines(cluster, "connections have not logged in yet: ended")) in (1, 2)
    assert len(log_lines(cluster, "127.0.0.1")) < 50, "a few lines, not one for each"


def test_an_address_whose_logins_fail_is_slowed_until_one_succeeds(make_cluster: MakeCluster) -> None:
    cluster, app = one_device(make_cluster, failed_logins=2)
    write_keypair(cluster.directory / "nobody", "nobody")
    port = str(cluster.devices["a"].port)

    def attempt(address: str) -> float:
        begun = time.monotonic()
        options = ["-o", "IdentitiesOnly=yes", "-i", str(cluster.directory / "nobody"), "-b", address]
        options += [
            "-o",
            f"UserKnownHostsFile={cluster.directory / 'known_hosts'}",
            "-o",
            "IdentityAgent=none",
        ]
        done = subprocess.run(
            ["ssh", "-F", "none", "-o", "BatchMode=yes", *options, "-p", port, "git@127.0.0.1", "x"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE,
        )
        assert done.returncode == 255
        assert b"Permission denied (publickey)" in done.stderr
        return time.monotonic() - begun

    for _ in range(3):
        attempt("127.0.0.1")
    cluster.wait(lambda: log_lines(cluster, "127.0.0.1: more than 2 failed logins in a minute"), "it is said")
    assert attempt("127.0.0.1") >= 1.0
    assert attempt("127.0.0.1") >= 2.0
    assert len(log_lines(cluster, "more than 2 failed logins")) == 1
    assert app.refs("a")  # who has a key is served at once, and the address is trusted again
    for _ in range(2):
        attempt("127.0.0.1")
    assert len(log_lines(cluster, "more than 2 failed logins")) == 1
    attempt("127.0.0.2")


# ------------------------------------------------------------------------------------------ one push


@pytest.mark.parametrize("objects", [1, 200], ids=["unpack-objects", "index-pack"])
def test_a_push_that_is_too_large(make_cluster: MakeCluster, objects: int) -> None:
    cluster, app = one_device(make_cluster, push_size="100KiB")
    version, files = app.version, count_files(cluster)
    app.commit("large", **{f"file{n}": os.urandom(200_000 // objects).hex() for n in range(objects)})
    done = app.refused("a", "main")
    why = "this push is larger than 100 KiB, the most that this device takes"
    assert f"! [remote rejected] main -> main ({why})" in done.err
    assert "cluster: push it in smaller steps, or ask an administrator" in done.err
    untouched(cluster, version)
    assert count_files(cluster) == files
    assert len(log_lines(cluster, why)) == 1
    app.git("reset", "--hard", "HEAD~1")
    app.commit("small")
    app.pushed("a", "main")


def count_files(cluster: Cluster) -> int:
    return sum(1 for each in (cluster.disk("a") / "objects").rglob("*") if each.is_file())


def test_a_push_that_is_far_too_large_is_not_received_whole(make_cluster: MakeCluster) -> None:
    cluster, app = one_device(make_cluster, push_size="1MiB")
    app.commit("large", large=os.urandom(40 << 20).hex())
    done = app.refused("a", "main")
    assert "push it in smaller steps, or ask an administrator" in done.err
    assert "this push is larger than 1 MiB, the most that this device takes" in done.err
    untouched(cluster, 1)


@pytest.mark.parametrize(
    "capabilities", ["report-status", "report-status side-band-64k", "side-band-64k", ""]
)
def test_a_push_that_is_too_large_of_any_client(make_cluster: MakeCluster, capabilities: str) -> None:
    cluster, app = one_device(make_cluster, push_size="1KiB")
    commit = app.commit("large", large=os.urandom(20_000).hex())
    pack = subprocess.run(
        ["git", "pack-objects", "--stdout", "--revs", "-q"],
        input=f"{commit}\n".encode(),
        cwd=app.work,
        capture_output=True,
        check=True,
    ).stdout
    push = RawPush(cluster, "a")
    push.propose((ZERO, commit, "refs/heads/large"), capabilities=capabilities)
    push.send(pack)
    done = push.finish()
    assert done.code == (0 if "report-status" in capabilities else 1), "as Git does"
    assert "push it in smaller steps" in done.text
    if "report-status" in capabilities:
        assert (
            "ng refs/heads/large this push is larger than 1 KiB, the most that this device takes" in done.out
        )
        assert "unpack this push is larger than 1 KiB" in done.out
    else:
        assert "this push is larger than 1 KiB, the most that this device takes" in done.text
    untouched(cluster, 1)


def test_a_push_of_too_many_refs(make_cluster: MakeCluster) -> None:
    cluster, app = one_device(make_cluster, push_refs=3)
    app.commit("two")
    for number in range(5):
        app.git("branch", f"b{number}")
    done = app.refused("a", "main", "b0", "b1", "b2", "b3", "b4")
    why = "this push changes more than 3 refs, the most that this device takes in one"
    for number in range(5):
        assert f"! [remote rejected] b{number} -> b{number} ({why})" in done.err
    assert f"! [remote rejected] main -> main ({why})" in done.err
    assert "cluster: push fewer refs at a time, or ask an administrator" in done.err
    untouched(cluster, 1)
    assert len(log_lines(cluster, why)) == 1
    app.pushed("a", "b0", "b1", "b2")
    app.refused("a", "--delete", "--", "b0", "b1", "b2", "main")
    app.pushed("a", "b3", "b4", "main")


def test_a_list_of_refs_that_never_ends(make_cluster: MakeCluster) -> None:
    """Memory stays bounded, and the client hears why it is hung up on."""
    cluster, app = one_device(make_cluster, push_refs=3)
    commit = app.git("rev-parse", "main")
    app.refs("a")
    before = memory(cluster)
    push = RawPush(cluster, "a")
    lines = b"".join(
        pkt_line(f"{ZERO} {commit} refs/heads/{'x' * 50}{n}\0report-status side-band-64k".encode())
        for n in range(1000)
    )
    sent = 0
    with suppress(OSError):
        while sent < 1 << 30:
            push.send(lines)
            sent += len(lines)
    done = ended(push.process)
    assert sent < 100 << 20
    assert "cluster: this push changes more than 3 refs" in done.err
    assert done.code != 0
    assert memory(cluster) < before + (150 << 20)
    untouched(cluster, 1)


def memory(cluster: Cluster) -> int:
    """The most that the device ever had in memory."""
    status = Path(f"/proc/{cluster.devices['a'].pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


@pytest.mark.parametrize(
    "capabilities", ["report-status", "report-status side-band-64k", "side-band-64k", ""]
)
def test_a_push_of_too_many_refs_of_any_client(make_cluster: MakeCluster, capabilities: str) -> None:
    cluster, app = one_device(make_cluster, push_refs=1)
    commit = app.git("rev-parse", "main")
    push = RawPush(cluster, "a")
    push.propose((ZERO, commit, "refs/heads/x"), (ZERO, commit, "refs/heads/y"), capabilities=capabilities)
    done = push.finish()
    assert done.code == 1
    why = "this push changes more than 1 ref, the most that this device takes in one"
    if "report-status" in capabilities:
        assert f"ng refs/heads/x {why}" in done.out and f"ng refs/heads/y {why}" in done.out
    assert why in done.text and "push fewer refs at a time" in done.text
    assert done.text.count(why) <= 2
    untouched(cluster, 1)


def test_push_options_without_an_end(make_cluster: MakeCluster) -> None:
    cluster, app = one_device(make_cluster)
    commit = app.git("rev-parse", "main")
    push = RawPush(cluster, "a")
    push.propose((ZERO, commit, "refs/heads/x"), capabilities="report-status push-options")
    with suppress(OSError):
        for _ in range(1000):
            push.send(pkt_line(b"x" * 1000))
    done = ended(push.process)
    assert "ng refs/heads/x the options of this push are too long" in done.out
    assert "push with fewer options" in done.err
    untouched(cluster, 1)
    assert app.pushed("a", "main:refs/heads/x", config=["push.pushOption=a"])
