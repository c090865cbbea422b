"""Behind a real sshd: what is peculiar to the hooks, and whatever ends in the middle of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dulwich.protocol import Protocol

from cluster.keyfiles import write_keypair
from cluster.openssh import fingerprint_of
from cluster.sshd_files import in_perl, in_python, perl_serves
from tests.cluster_fixture import Cluster, Done, RawPush
from tests.openssh_fixture import OpenSSHCluster

MEGABYTES = 8
"""More than the pipes and windows between Git and a client that reads nothing can hold."""


@pytest.fixture
def behind(database_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[OpenSSHCluster]:
    """Devices a and b behind sshds, their daemons up; team/app with one commit that is large."""
    language = getattr(request, "param", "Perl")
    cluster = OpenSSHCluster(tmp_path / "cluster", database_url, {}, language=language)
    try:
        cluster.set_up(["a", "b"])
        cluster.start("a")
        cluster.start("b")
        cluster.create("team/app")
        work = cluster.work()
        (work / "data").write_bytes(os.urandom(MEGABYTES << 20))
        cluster.commit(work, "large", note="x")
        cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=work)
        cluster.converge()
        yield cluster
    finally:
        cluster.close()


IN_BOTH = pytest.mark.parametrize("behind", ["Perl", "Python"], indirect=True)
"""A test of what the hook does itself, in either language."""


def ssh(cluster: Cluster, device: str, command: str, *options: str, key: Path | None = None) -> Done:
    words = ["ssh", "-F", str(cluster.ssh_config), "-p", str(cluster.devices[device].port), *options]
    words += ["-i", str(key)] if key else []
    done = subprocess.run([*words, "127.0.0.1", *([command] if command else [])], stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=60)  # fmt: skip
    return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


class StalledClone:
    """A client that has asked for everything, and reads nothing of it."""

    def __init__(self, cluster: Cluster, device: str) -> None:
        port = str(cluster.devices[device].port)
        self.process = subprocess.Popen(
            ["ssh", "-F", str(cluster.ssh_config), "-p", port, "127.0.0.1", "git-upload-pack 'team/app'"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin and self.process.stdout
        git = Protocol(self.process.stdout.read, self.process.stdin.write)
        refs = dict(line.rstrip(b"\n").partition(b"\0")[0].split(b" ")[::-1] for line in git.read_pkt_seq())
        git.write_pkt_line(b"want %s side-band-64k ofs-delta\n" % refs[b"refs/heads/main"])
        git.write_pkt_line(None)
        git.write_pkt_line(b"done\n")
        self.process.stdin.flush()

    def finish(self) -> Done:
        out, err = self.process.communicate(timeout=60)
        return Done(self.process.returncode, repr(out[-100:]), err.decode(errors="replace"))


def processes(pattern: str) -> list[int]:
    """Ids of the processes whose command line matches."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if re.search(pattern, words):
            found.append(int(path.parent.name))
    return found


def at_work(cluster: Cluster, device: str) -> list[int]:
    """Git processes on a device's copy."""
    return processes(rf"git.*{re.escape(str(cluster.disk(device)))}")


def hooks(cluster: OpenSSHCluster, device: str) -> list[int]:
    return processes(rf"{re.escape(str(cluster.hooks))}/{device}/git-cluster-hook serve")


# --------------------------------------------------------------------------------------------- who may come in


@IN_BOTH
def test_nobody_gets_more_than_git(behind: OpenSSHCluster) -> None:
    """A greeting, and words for whatever is no request; neither a terminal, nor forwarding, nor sftp."""
    greeting = ssh(behind, "a", "")
    assert greeting.code == 1
    assert greeting.out.startswith("Hello demo: you have reached device a")
    refused = ssh(behind, "a", "cat /etc/passwd")
    assert refused.code == 2
    assert "remote: cluster: error: git-cluster runs git-upload-pack" in refused.err
    assert ssh(behind, "a", "git-upload-pack 'no/such'").err.startswith(
        "remote: cluster: error: there is no repository no/such here, or you may not read it"
    )
    tty = ssh(behind, "a", "git-upload-pack 'no/such'", "-tt")
    assert "PTY allocation request failed" in tty.err
    sftp = ssh(behind, "a", "sftp", "-s")
    assert sftp.code != 0
    assert "root:" not in sftp.out
    forward = ssh(behind, "a", "", "-W", "127.0.0.1:1")
    assert forward.code != 0
    assert "forwarding failed" in forward.err


def test_a_key_that_nobody_registered_gets_nowhere(behind: OpenSSHCluster, tmp_path: Path) -> None:
    write_keypair(tmp_path / "stranger", "stranger")
    options = [
        "-F",
        "none",
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=no",
    ]
    options += ["-o", f"UserKnownHostsFile={tmp_path / 'known'}", "-o", "IdentityAgent=none"]
    device = behind.devices["a"]
    done = subprocess.run(
        ["ssh", *options, "-i", str(tmp_path / "stranger"), "-p", str(device.port), f"{device.user}@{device.host}"],
        capture_output=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 255
    assert b"Permission denied (publickey)" in done.stderr
    assert device.log.read_text().count("is nobody's") == 1


def test_a_removed_key_is_out_with_the_next_command_of_an_open_connection(
    behind: OpenSSHCluster, tmp_path: Path
) -> None:
    master = tmp_path / "m"
    multiplexed = ["-o", f"ControlPath={master}", "-o", "ControlMaster=auto", "-o", "ControlPersist=60"]
    assert ssh(behind, "a", "git-upload-archive 'no/such'", *multiplexed).code == 1
    try:
        key = behind.admin_json("key", "list", "demo")[0]["fingerprint"]
        assert behind.admin("key", "remove", key).code == 0
        done = ssh(behind, "a", "git-upload-pack 'team/app'", *multiplexed)
        assert done.code == 1
        assert "this key is not registered here any more" in done.err
    finally:
        ssh(behind, "a", "", *multiplexed, "-O", "exit")


# ------------------------------------------------------------------------------------- whatever ends in the middle


def kill_client(cluster: OpenSSHCluster, clone: StalledClone) -> None:
    clone.process.kill()


def kill_hook(cluster: OpenSSHCluster, clone: StalledClone) -> None:
    for pid in hooks(cluster, "a"):
        os.kill(pid, signal.SIGKILL)


def kill_sshd(cluster: OpenSSHCluster, clone: StalledClone) -> None:
    cluster.kill_sshd("a")


def kill_daemon(cluster: OpenSSHCluster, clone: StalledClone) -> None:
    cluster.stop_daemon("a", how=signal.SIGKILL)


# Without a daemon it is git-cluster that is killed, whichever hook has become that.
@pytest.mark.parametrize(
    ("behind", "daemon"), [("Perl", True), ("Python", True), ("Perl", False)], indirect=["behind"]
)
@pytest.mark.parametrize("kill", [kill_client, kill_hook, kill_sshd, kill_daemon])
def test_no_git_outlives_whoever_ends_in_the_middle_of_a_clone(
    behind: OpenSSHCluster, kill: Callable[[OpenSSHCluster, StalledClone], None], daemon: bool
) -> None:
    if not daemon:
        behind.stop_daemon("a")
        if kill in (kill_daemon, kill_hook):  # the hook has become git-cluster itself
            kill = kill_alone
    clone = StalledClone(behind, "a")
    behind.wait(lambda: at_work(behind, "a"), "upload-pack is at work")
    kill(behind, clone)
    behind.wait(lambda: not at_work(behind, "a"), "no Git is left")
    behind.wait(lambda: not hooks(behind, "a"), "no hook is left")
    done = clone.finish()
    assert done.code != 0
    if kill is kill_daemon:
        assert "this device's git-cluster ended in the middle of the request" in done.err
    if kill is kill_sshd:
        behind.start_sshd("a")
    assert behind.refs("a") == behind.refs("b")


def kill_alone(cluster: OpenSSHCluster, clone: StalledClone) -> None:
    for pid in processes(rf"cluster --config {re.escape(str(cluster.devices['a'].config))} sshd serve"):
        os.kill(pid, signal.SIGKILL)


@IN_BOTH
def test_g4_a_push_whose_hook_is_killed_leaves_nothing(behind: OpenSSHCluster) -> None:
    push = RawPush(behind, "a")
    push.propose(("0" * 40, push.refs["refs/heads/main"], "refs/heads/other"))
    behind.wait(lambda: at_work(behind, "a"), "receive-pack is at work")
    kill_hook(behind, None)  # type: ignore[arg-type]
    assert push.finish().code != 0
    behind.wait(lambda: not at_work(behind, "a"), "no Git is left")
    assert behind.version() == 1
    assert "refs/heads/other" not in behind.refs("a")


@IN_BOTH
def test_a_daemon_that_is_stopped_is_not_waited_for_for_ever(behind: OpenSSHCluster) -> None:
    process = behind.devices["a"].process
    assert process
    process.send_signal(signal.SIGSTOP)
    try:
        done = ssh(behind, "a", "git-upload-pack 'team/app'")
        assert done.code == 255
        assert "Permission denied" in done.err  # sshd has asked for the key in vain
        assert "does not answer" in behind.sshd_log("a")
    finally:
        process.send_signal(signal.SIGCONT)
    assert behind.refs("a") == behind.refs("b")


# -------------------------------------------------------------------------------------------- without a daemon


def test_pushes_count_without_a_daemon_and_the_device_is_known_to_be_there(behind: OpenSSHCluster) -> None:
    behind.stop_daemon("a")
    assert {d["name"]: d["state"] for d in behind.admin_json("status")["devices"]}["a"] == "offline"
    work = behind.directory / "work"
    push = RawPush(behind, "a")
    behind.wait(
        lambda: {d["name"]: d["state"] for d in behind.admin_json("status")["devices"]}["a"] == "online",
        "the device is online while somebody pushes to it",
    )
    push.kill()
    oid = behind.commit(work, "another")
    behind.ok("push", "--quiet", behind.url("a"), "main", cwd=work)
    assert behind.refs("b")["refs/heads/main"] == oid
    behind.wait(
        lambda: {d["name"]: d["state"] for d in behind.admin_json("status")["devices"]}["a"] == "offline",
        "it is offline again",
    )
    assert [entry["via"] for entry in behind.admin_json("log", "team/app")][:2] == ["ssh", "ssh"]


def test_a_certificate_is_enough_without_a_daemon(behind: OpenSSHCluster) -> None:
    folder = behind.directory
    for name in ("ca", "holder"):
        write_keypair(folder / name, name)
    words = [
        "ssh-keygen",
        "-q",
        "-s",
        str(folder / "ca"),
        "-I",
        "x",
        "-n",
        "demo",
        str(folder / "holder.pub"),
    ]
    subprocess.run(words, check=True)
    with behind.devices["a"].config.open("a") as config:
        config.write(f'\n[login]\ntrusted_ca = "{folder / "ca.pub"}"\n')
    behind.stop_daemon("a")
    only = ["-F", "none", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes"]
    only += ["-o", f"UserKnownHostsFile={folder / 'known_hosts'}", "-i", str(folder / "holder")]
    device = behind.devices["a"]
    ask = ["ssh", *only, "-p", str(device.port), f"{device.user}@{device.host}", "whoami"]
    done = subprocess.run(ask, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert done.stdout.startswith(b"user:    demo\nproof:   certificate for key SHA256:"), done


@IN_BOTH
def test_who_comes_while_the_database_is_away_too_is_told_so(
    behind: OpenSSHCluster, database_url: str
) -> None:
    behind.stop_daemon("a")
    config = behind.devices["a"].config
    text = config.read_text()
    config.write_text(text.replace(database_url, "postgresql://127.0.0.1:1/nothing"))
    done = ssh(behind, "a", "git-upload-pack 'team/app'")
    assert (done.code, done.err) == (
        1,
        "remote: cluster: error: the cluster's database is away; try again in a moment\n",
    )
    config.write_text("nonsense")
    done = ssh(behind, "a", "git-upload-pack 'team/app'")
    assert "Permission denied" in done.err
    config.write_text(text)


# ---------------------------------------------------------------------------------------- whose key it is


@pytest.mark.parametrize("daemon", [True, False])
def test_the_hook_says_the_same_in_both_languages(
    behind: OpenSSHCluster, tmp_path: Path, *, daemon: bool
) -> None:
    """The one in Perl is there because it starts faster."""
    assert perl_serves()
    if not daemon:
        behind.stop_daemon("a")
    device = behind.devices["a"]
    hook = tmp_path / "git-cluster-hook"
    key = behind.identity.with_suffix(".pub").read_text().split()[:2]
    asked = {
        "a user's key": ["keys", *key],
        "nobody's": ["keys", *(device.directory / "host_ed25519.pub").read_text().split()[:2]],
        "no key": ["keys", "ssh-ed25519", "it's \\ none"],
        "too little": ["keys", "ssh-ed25519"],
        "a command": ["serve", "unknown", fingerprint_of(key[1])],
        "of a stranger": ["serve", "unknown", "SHA256:x"],
        "of nobody": ["serve"],
        "nothing": [],
        "something else": ["shell"],
    }
    for what, words in asked.items():
        said = []
        for text in (in_perl, in_python):
            hook.write_text(text(device.config, str(device.data_dir / "run")))
            hook.chmod(0o755)
            done = subprocess.run(
                [hook, *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                cwd="/",
                env={**os.environ, "SSH_ORIGINAL_COMMAND": "git-upload-pack 'no/sü\udcff'"},
            )
            said.append((done.returncode, done.stdout, done.stderr))
        assert said[0] == said[1], what
        assert ("git-cluster-hook serve user" in said[0][1]) == (what == "a user's key"), what
        assert ("is not a repository name" in said[0][2]) == (what == "a command"), what


def test_a_language_that_this_machine_does_not_know_is_no_matter(behind: OpenSSHCluster) -> None:
    """Where sshd is told to accept the client's, Perl would complain of it, in the middle of a push."""
    config = behind.hooks / "a" / "sshd_config"
    config.write_text(
        config.read_text().replace("AcceptEnv GIT_PROTOCOL", "AcceptEnv GIT_PROTOCOL LANG LC_*")
    )
    behind.kill_sshd("a")
    behind.start_sshd("a")
    done = ssh(behind, "a", "whoami", "-o", "SetEnv=LC_ALL=tlh_KX.UTF-8")
    assert done.out.startswith("user:    demo")
    assert done.err == ""


# -------------------------------------------------------------------------------------------------- installing


def test_install_says_what_it_wrote_and_what_sshd_will_not_take(
    behind: OpenSSHCluster, tmp_path: Path
) -> None:
    config = behind.devices["a"].config
    done = behind.admin("sshd", "install", str(tmp_path / "h"), config=config)
    assert done.code == 0
    assert "warning: sshd runs nothing below" in done.err
    assert sorted(path.name for path in (tmp_path / "h").iterdir()) == [
        "git-cluster-hook",
        "match_git.conf",
        "sshd_config",
    ]
    assert os.access(tmp_path / "h" / "git-cluster-hook", os.X_OK)
    assert "@" not in (tmp_path / "h" / "sshd_config").read_text()
    without = behind.admin("sshd", "install", str(tmp_path / "h"))
    assert without.code == 1
    assert "has no [device] section" in without.err
    spaces = behind.admin("sshd", "install", str(tmp_path / "with space"), config=config)
    assert spaces.code == 1
    assert "sshd_config cannot hold" in spaces.err
