"""`git-cluster doctor` on real machines, each broken in one way: what it finds, what it advises, and that it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from cluster.loopback import LoopbackDevice
from tests.cluster_fixture import Cluster, Done
from tests.disk_fixture import MOUNTED, Disk, _mount, kind_here
from tests.probes import login, on_disk

ENOUGH = 60.0
"""Seconds in which it ends, whatever hangs: its own 15, and room for a machine that is busy."""

MACHINE = {"disk space", "disk writes", "open files", "clock", "git"}
"""Checks whose verdict is this machine's, not the cluster's."""

BUSY = {"database"}
"""The same for a warning, which is about how long it took."""


@dataclass(frozen=True)
class Report:
    """What it printed with --json."""

    code: int
    ok: bool
    checks: list[dict[str, str | None]]

    def __getitem__(self, check: str) -> str:
        """ "verdict: what (hint)" of the gravest finding of a check."""
        found = [c for c in self.checks if c["check"] == check]
        assert found, f"no {check} among {[c['check'] for c in self.checks]}"
        worst = max(found, key=lambda c: ["ok", "warning", "problem"].index(str(c["verdict"])))
        return f"{worst['verdict']}: {worst['what']}" + (f" ({worst['hint']})" if worst["hint"] else "")

    def __contains__(self, check: str) -> bool:
        return any(c["check"] == check for c in self.checks)

    @property
    def troubles(self) -> set[str]:
        """The checks that found a problem or have a warning."""
        found = {(str(c["check"]), c["verdict"]) for c in self.checks if c["verdict"] != "ok"}
        return {check for check, _ in found - {(check, "warning") for check in BUSY}} - MACHINE


def doctor(config: Path, **env: str) -> Report:
    done = run(config, "doctor", "--json", **env)
    assert done.code in (0, 1), done.text
    assert "Traceback" not in done.text and done.err == "", done.text
    document = json.loads(done.out)
    assert document["ok"] == (done.code == 0)
    for check in document["checks"]:
        assert check.keys() == {"check", "verdict", "what", "hint"}
        assert (check["verdict"] == "ok") == (check["hint"] is None), check
        assert check["what"].isprintable() and (check["hint"] or "").isprintable()
    assert document["ok"] == all(c["verdict"] != "problem" for c in document["checks"])
    return Report(done.code, document["ok"], document["checks"])


def run(config: Path, *arguments: str, **env: str) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "--config", str(config), *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=ENOUGH, env={**os.environ, **env},
    )  # fmt: skip
    return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def variant(device: LoopbackDevice, was: str, now: str) -> Path:
    """A second configuration of a device, beside its own, with a change in it."""
    text = device.config.read_text()
    assert was in text
    file = device.config.with_name("variant.toml")
    file.touch(mode=0o600)
    file.write_text(text.replace(was, now))
    return file


@pytest.fixture(scope="module")
def a(devices: Cluster) -> LoopbackDevice:
    """A device that is up, in a cluster that is well."""
    return devices.devices["a"]


# ----------------------------------------------------------------------------------------------- all is well


def test_all_is_well(devices: Cluster, a: LoopbackDevice) -> None:
    """On a device: every check, nothing found, and nothing on the disk or in the database is any different."""
    devices.create("team/well", min_copies=2)
    devices.wait(lambda: devices.converged("team/well"), "the copies are there")
    before, run_before = on_disk(a), sorted((a.data_dir / "run").iterdir())
    report = doctor(a.config)
    assert report.troubles == set(), report
    assert [c["check"] for c in report.checks] == [
        "configuration", "git", "openssh", "open files", "data folder", "disk space", "disk writes", "disk locks",
        "hooks", "database", "pooler", "schema", "durability", "connections", "clock", "registration", "device key",
        "host key", "daemon", "endpoint", "peer b", "peer c", "copies",
    ]  # fmt: skip
    assert on_disk(a) == before and sorted((a.data_dir / "run").iterdir()) == run_before
    assert report["open files"].split(": ")[1].startswith("the daemon may have")
    assert re.fullmatch(r"ok: online, [0-9.]+ ms away, git-cluster [0-9.]+", report["peer b"])


def test_a_machine_that_only_runs_the_command_line(devices: Cluster) -> None:
    """It asks the devices with a key of its own for the moment, which is gone afterwards."""
    report = doctor(devices.config)
    assert report.troubles == set(), report
    assert [c["check"] for c in report.checks] == [
        "configuration", "database", "pooler", "schema", "durability", "connections", "clock",
        "peer a", "peer b", "peer c", "copies",
    ]  # fmt: skip
    assert operator_keys(devices) == 0


def operator_keys(cluster: Cluster) -> int:
    return len(cluster.db._read("select 1 from key where actor_id is null and device_id is null"))


def test_lines_for_people(devices: Cluster, a: LoopbackDevice) -> None:
    """A line for each check, one below it with what to do, and the counts at the end."""
    key = a.directory / "device_ed25519"
    key.chmod(0o644)
    try:
        done = run(a.config, "doctor")
    finally:
        key.chmod(0o600)
    assert done.code == 1 and done.err == ""
    lines = done.out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("problem  device key"))
    assert "everybody on this machine can get at the private key" in lines[at] and "(mode 0644)" in lines[at]
    assert re.match(r" {23}chmod 0600 ", lines[at + 1])
    assert lines[-2] == "" and re.fullmatch(r"\d+ ok, \d+ warnings?, 1 problem", lines[-1])
    checks = [line for line in lines[:-2] if not line.startswith(" ")]
    assert all(re.match(r"(ok     |warning|problem)  [a-z]", line) for line in checks)
    assert sum(line.startswith("ok ") for line in checks) == int(lines[-1].split()[0])


def test_a_configuration_that_cannot_be_used(tmp_path: Path) -> None:
    for content, words in ((b"[cluster", "not TOML"), (b"", "[cluster] is missing")):
        (tmp_path / "c.toml").write_bytes(content)
        for arguments in (["doctor"], ["doctor", "--json"]):
            done = run(tmp_path / "c.toml", *arguments)
            assert done.code == 1 and done.out == "" and words in done.err, done.text
    assert run(tmp_path / "none", "doctor").code == 1
    assert run(tmp_path / "none", "doctor", "surplus").code == 2


def test_only_devices_and_operators_are_told_the_version(devices: Cluster) -> None:
    device = devices.devices["b"]
    with login(device, devices.identity) as user:
        answer = user.ask("git-cluster-ping")
        assert answer.code == 1 and answer.out == b"" and "a user's key may not do that" in answer.err
    with login(device, devices.devices["a"].directory / "device_ed25519") as peer:
        answer = peer.ask("git-cluster-ping")
        assert answer.code == 0 and json.loads(answer.out)["device"] == "b"
        assert peer.ask("git-cluster-ping 'x'").code == 2


# --------------------------------------------------------------------------------------------- this machine


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that everybody on this machine can get at; pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_a_configuration_with_a_password_that_others_can_read(public_folder: Path) -> None:
    file = public_folder / "config.toml"
    file.write_text('[cluster]\ndatabase = "postgresql://git:hush-5up3r@127.0.0.1:1/x"\n')
    file.chmod(0o644)
    done = run(file, "doctor")
    assert "hush-5up3r" not in done.text
    assert doctor(file)["configuration"].startswith("warning: everybody on this machine can read")
    file.write_text('[cluster]\ndatabase = "postgresql://git:@127.0.0.1:1/x"\n')
    assert doctor(file)["configuration"] == f"ok: {file}"
    file.chmod(0o646)
    assert doctor(file)["configuration"].startswith("problem: everybody on this machine can write to")
    file.chmod(0o640)
    assert doctor(file)["configuration"].startswith("ok")
    file.chmod(0o644)
    public_folder.chmod(0o750)
    assert doctor(file)["configuration"].startswith("ok")


def program(folder: Path, name: str, script: str) -> str:
    """A PATH on which a script comes before everything else."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_git_that_is_missing_old_or_none(a: LoopbackDevice, tmp_path: Path) -> None:
    report = doctor(a.config, PATH=str(tmp_path))
    assert report["git"].startswith("problem: there is no git on the PATH (install Git")
    assert report["openssh"].startswith("warning: there is no ssh")
    report = doctor(a.config, PATH=program(tmp_path, "git", "echo git version 2.20.1"))
    assert report["git"].startswith("problem: Git 2.20.1 is too old (install Git 2.37 or newer")
    report = doctor(a.config, PATH=program(tmp_path, "git", "echo hello"))
    assert report["git"].startswith("problem: the git on the PATH does not say its version")
    report = doctor(a.config, PATH=program(tmp_path, "git", "echo broken >&2; exit 1"))
    assert report["git"].startswith("problem: git version failed: broken")
    report = doctor(a.config, PATH=program(tmp_path, "git", "exec sleep 60"))
    assert report["git"].startswith("problem: git version took too long")
    assert not report.ok and "copies" in report


def test_a_data_dir_that_is_not_there(devices: Cluster, a: LoopbackDevice, tmp_path: Path) -> None:
    """And a device that is alive, but not from it: a second machine with the same configuration."""
    report = doctor(variant(a, 'data_dir = "data"', f'data_dir = "{tmp_path}/none"'))
    assert report["data folder"].startswith(f"problem: {tmp_path}/none is not there (is its disk mounted?")
    assert report["daemon"].startswith("warning: device a is alive, but nobody serves from this data_dir")
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    report = doctor(variant(a, 'data_dir = "data"', f'data_dir = "{tmp_path}/file"'))
    assert report["data folder"].startswith(f"problem: {tmp_path}/file is no folder")


def test_a_data_dir_that_is_open_to_others_or_theirs(a: LoopbackDevice, tmp_path: Path) -> None:
    config = variant(a, 'data_dir = "data"', f'data_dir = "{tmp_path}/data"')
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o755)
    assert doctor(config)["data folder"].startswith("warning: everybody on this machine can list")
    data.chmod(0o777)
    assert doctor(config)["data folder"].startswith("problem: everybody on this machine can write to")
    data.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(data, 12345, 12345)
        report = doctor(config)
        assert report["data folder"].startswith(f"warning: {data} belongs to user 12345, not to root")
        assert "sudo -u" in report["data folder"]
    assert list(data.iterdir()) == []


@pytest.fixture
def small(a: LoopbackDevice, tmp_path: Path) -> Iterator[tuple[Disk, Path]]:
    """A file system of 32 MB, and a configuration of device a that has its data_dir there."""
    if kind_here() != MOUNTED:
        pytest.skip("file systems cannot be mounted here")
    disk = Disk(MOUNTED, LoopbackDevice("small", tmp_path, 1))
    yield disk, variant(a, 'data_dir = "data"', f'data_dir = "{disk.path}"')
    disk.close()


def test_a_disk_that_is_full(small: tuple[Disk, Path]) -> None:
    disk, config = small
    with disk.full():
        report = doctor(config)
        assert report["disk space"].startswith("problem: 0 KiB free of 32.0 MiB (0%) (make room")
        assert "problem: nothing can be written to" in report["disk writes"]
        assert "make room: pushes and syncs fail" in report["disk writes"]
    with disk.without_inodes():
        room = [str(c["what"]) for c in doctor(config).checks if c["check"] == "disk space"]
        assert any("more files" in what for what in room), room
    assert doctor(config)["disk locks"] == "ok: flock works"


def test_a_disk_that_is_read_only(small: tuple[Disk, Path]) -> None:
    disk, config = small
    with disk.read_only():
        report = doctor(config)
        assert re.match(
            r"problem: nothing can be written to \S+: Read-only file system \(mount it", report["disk writes"]
        )


def test_a_disk_on_which_nothing_can_be_executed(small: tuple[Disk, Path]) -> None:
    disk, config = small
    assert doctor(config)["hooks"] == "ok: can be run"
    assert _mount("-o", "remount,noexec", str(disk.path))
    report = doctor(config)
    assert report["hooks"].startswith(
        "problem: this device cannot run hooks (mount the disk of data_dir without noexec"
    )
    assert not [path for path in disk.path.rglob("*") if "scratch" in path.name]


# ----------------------------------------------------------------------------------------------------- keys


def test_a_key_file_that_hangs(a: LoopbackDevice) -> None:
    """A named pipe, or a file on a server that is gone: the rest is looked at none the less."""
    pipe = a.directory / "pipe"
    os.mkfifo(pipe, 0o600)
    report = doctor(variant(a, 'key = "device_ed25519"', 'key = "pipe"'))
    assert report["device key"].startswith("problem: no answer within ")
    assert report["daemon"].startswith("ok") and report["peer b"].startswith("ok") and report["copies"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_else_asks(a: LoopbackDevice, public_folder: Path) -> None:
    """Who may not look at the device's files is told so, and nothing that is not true."""
    config = public_folder / "config.toml"
    config.write_text(a.config.read_text().replace('"data"', f'"{public_folder}/data"'))
    config.chmod(0o644)
    (public_folder / "data").mkdir(mode=0o700)
    words = [
        "setpriv",
        "--reuid=65534",
        "--clear-groups",
        sys.executable,
        "-m",
        "cluster",
        "--config",
        str(config),
    ]
    done = subprocess.run(
        [*words, "doctor", "--json"], capture_output=True, timeout=ENOUGH, cwd=Path(__file__).parent.parent
    )
    if done.returncode not in (0, 1):  # the checkout is not for everybody's eyes
        pytest.skip("nobody may read this checkout")
    document = json.loads(done.stdout)
    report = Report(done.returncode, document["ok"], document["checks"])
    assert "belongs to root, not to the user that runs this" in report["data folder"]
    assert "Permission denied (it must belong to the user" in report["disk writes"]
    assert report["daemon"].startswith("problem: this could not be looked at: Permission denied")


@contextmanager
def swapped(file: Path, content: bytes | None) -> Iterator[None]:
    """A file with other content inside; None: it is gone."""
    kept = file.with_name(f"{file.name}.kept")
    shutil.copy2(file, kept)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    try:
        yield
    finally:
        kept.rename(file)


@pytest.mark.parametrize(("check", "file"), [("device key", "device_ed25519"), ("host key", "host_ed25519")])
def test_keys_that_are_not_what_they_should_be(
    devices: Cluster, a: LoopbackDevice, check: str, file: str
) -> None:
    path, other = a.directory / file, devices.devices["b"].directory / file
    with swapped(path, None):
        report = doctor(a.config)
        assert "there is no file" in report[check] and "ssh-keygen" in report[check]
        assert report["peer b"].startswith("ok: online")  # greeted, where it cannot log in
    with swapped(path, other.read_bytes()):
        assert "is another key than the one that is registered" in doctor(a.config)[check]
        assert doctor(a.config)["peer b"].startswith("ok: online")
    with swapped(path, b"nonsense"):
        assert "holds no private key that can be used" in doctor(a.config)[check]
    with swapped(path, path.read_bytes()):
        subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", path], check=True)
        assert "is encrypted with a passphrase" in doctor(a.config)[check]
    path.chmod(0o640)
    assert doctor(a.config)[check].startswith("warning: the group of")
    path.chmod(0o644)
    assert doctor(a.config)[check].startswith("problem: everybody on this machine can get at the private key")
    path.chmod(0o600)
    assert doctor(a.config)[check] == f"ok: {path}, as registered"


def test_one_key_for_two_purposes(a: LoopbackDevice) -> None:
    report = doctor(variant(a, 'host_key = "host_ed25519"', 'host_key = "device_ed25519"'))
    keys = [c["what"] for c in report.checks if c["check"] == "host key"]
    assert "the host key is the device key, too" in keys


# ------------------------------------------------------------------------------------------------ the cluster


def test_a_device_that_is_not_registered(a: LoopbackDevice) -> None:
    report = doctor(variant(a, 'name = "a"', 'name = "z"'))
    assert report["registration"].startswith(
        "problem: device z is not registered in this cluster (register it once"
    )
    assert report["peer a"] == "ok: online; it answers with the registered host key"
    assert "endpoint" not in report


def test_an_address_that_is_not_the_registered_one(devices: Cluster, a: LoopbackDevice) -> None:
    report = doctor(variant(a, f'advertise = "{a.url}"', 'advertise = "ssh://git@a.example"'))
    assert report["registration"].startswith("warning: device a is registered at ssh://git@127.0.0.1")
    with registered(devices, "a", ssh_url="ssh://git@127.0.0.1:1"):
        report = doctor(a.config)
        assert report["endpoint"].startswith(
            "warning: it answers where it listens, but from here not at ssh://"
        )
    with registered(devices, "a", ssh_url=devices.devices["b"].url):
        assert "shows another host key than the one registered" in doctor(a.config)["endpoint"]


@contextmanager
def registered(cluster: Cluster, device: str, **changes: str) -> Iterator[None]:
    """A device's row with other values inside."""
    for column, value in changes.items():
        (row,) = cluster.db._read("select * from device where name = %(name)s", {"name": device})
        update = f"update device set {column} = %(value)s where name = %(name)s"
        cluster.db._write(update, {"name": device, "value": value})
        try:
            yield
        finally:
            cluster.db._write(update, {"name": device, "value": row[column]})


def test_a_peer_with_another_host_key(devices: Cluster, a: LoopbackDevice) -> None:
    wrong = devices.db.device("c").host_key
    with registered(devices, "b", ssh_url="ssh://git@127.0.0.1:99999"):
        assert doctor(a.config)["peer b"].startswith(
            "problem: device b is registered at ssh://git@127.0.0.1:99999, which"
        )
    for key in (wrong, "nonsense"):
        with registered(devices, "b", host_key=key):
            for config in (a.config, devices.config):
                report = doctor(config)
                assert report["peer b"].startswith("problem: device b "), report["peer b"]
                assert "host key" in report["peer b"]
                assert report.troubles == {"peer b"}


def test_a_device_that_openssh_serves(devices: Cluster, a: LoopbackDevice) -> None:
    """Without [ssh], what answers at its address only has to have the registered host key."""
    text = a.config.read_text()
    config = variant(a, text[text.index("[ssh]") : text.index("[writes]")], "")
    report = doctor(config)
    assert report["endpoint"] == f"ok: {a.url} answers with the registered host key"
    assert "host key" not in report and report.troubles == set()
    with registered(devices, "a", ssh_url="ssh://git@127.0.0.1:1"):
        assert doctor(config)["endpoint"].startswith(
            "problem: device a cannot be reached at 127.0.0.1 port 1"
        )


def test_modes_of_devices(make_cluster: Callable[..., Cluster]) -> None:
    """Disabled is what somebody wanted; offline is not, and why is told apart."""
    cluster = make_cluster("abcd", start="abc")
    a = cluster.devices["a"].config
    cluster.db._write("update device set mode = 'draining' where name = 'b'")
    report = doctor(a)
    assert report["peer b"].startswith("ok: draining, ")
    assert report["peer d"].startswith("problem: it was never started: device d cannot be reached")
    cluster.stop("c")
    report = doctor(a)
    assert report["peer c"].startswith("problem: offline: it was stopped ")
    assert "device drain c" in report["peer c"]
    for device in "cd":
        cluster.db._write("update device set mode = 'disabled' where name = %(name)s", {"name": device})
    report = doctor(a)
    assert report["peer c"] == report["peer d"] == "ok: disabled: not asked"
    assert report.ok
    cluster.db._write("update device set mode = 'disabled' where name = 'a'")
    report = doctor(a)
    assert report["registration"].startswith("warning: device a is disabled: it serves nobody")
    assert report["peer b"] == "ok: draining; it answers with the registered host key"


def test_peers_that_are_killed_or_hang(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("abc")
    a, b = cluster.devices["a"].config, cluster.devices["b"]
    assert b.process is not None
    b.process.send_signal(signal.SIGSTOP)
    for config in (a, cluster.config):
        began = time.monotonic()
        report = doctor(config)
        assert report["peer b"].startswith("problem: "), report["peer b"]
        assert report["peer c"].startswith("ok: online, ")
        assert report.troubles == {"peer b"}
        assert time.monotonic() - began < ENOUGH
    assert operator_keys(cluster) == 0
    cluster.stop("b", how=signal.SIGKILL)
    cluster.wait(lambda: not cluster.db.device("b").online, "b counts as offline")
    report = doctor(a)
    assert re.match(r"problem: offline: last seen \d.* ago: device b cannot be reached", report["peer b"])
    cluster.stop("a", how=signal.SIGKILL)
    report = doctor(a)
    assert report["daemon"].startswith(("problem: no daemon", "warning: device a is alive"))
    assert report["endpoint"].startswith("problem: device a cannot be reached")
    cluster.wait(lambda: not cluster.db.device("a").online, "a counts as offline")
    assert doctor(a)["daemon"].startswith("problem: no daemon serves from this data_dir (start it")


def test_who_is_interrupted_takes_its_key_back(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("a")
    process = cluster.devices["a"].process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    command = [sys.executable, "-m", "cluster", "--config", str(cluster.config), "doctor"]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as examining:
            cluster.wait(lambda: operator_keys(cluster), "it has a key")
            examining.send_signal(number)
            assert examining.wait(ENOUGH) == code
            assert examining.stderr and b"Traceback" not in examining.stderr.read()
        assert operator_keys(cluster) == 0


def test_a_device_that_has_lost_the_database(make_cluster: Callable[..., Cluster], postgres: str) -> None:
    """It answers its peers and runs, but gives no sign of life."""
    cluster = make_cluster("ab")
    report = doctor(cluster.devices["a"].config)
    assert report.troubles == set(), report
    process = cluster.devices["b"].process
    assert process is not None
    process.send_signal(signal.SIGSTOP)  # its heart stops
    cluster.wait(lambda: not cluster.db.device("b").online, "b counts as offline")
    cluster.db._write(
        "alter table device add column held bigint"
    )  # a table lock is not needed: a trigger swallows it
    cluster.db._write("create function mute() returns trigger language plpgsql as 'begin return null; end'")
    cluster.db._write(
        "create trigger mute before update on device for each row when (old.name = 'b') execute function mute()"
    )
    process.send_signal(signal.SIGCONT)
    report = doctor(cluster.devices["a"].config)
    assert report["peer b"].startswith(
        "problem: it answers, and the database has had no sign of life from it for "
    )
    report = doctor(cluster.devices["b"].config)
    assert report["daemon"].startswith(
        "problem: it runs, and the database has had no sign of life from it for "
    )


def test_repositories_that_need_somebody(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("ab", start="a")
    a = cluster.devices["a"].config
    assert doctor(a)["copies"] == "ok: no repositories yet"
    cluster.create("team/one", devices="a")
    cluster.create("team/two", devices="a", min_copies=2)
    cluster.create("team/both")
    report = doctor(a)
    assert re.match(r"warning: of 3 repositories: \d degraded \(", report["copies"]), report["copies"]
    assert "team/both" in report["copies"] and "`git-cluster status` says why" in report["copies"]
    assert report["min_copies"].startswith(
        "warning: 1 repository is on fewer devices than min_copies asks for: team/two"
    )
    cluster.db._write("update device set zone = 'east'")
    assert "zones" not in doctor(a)
    cluster.db._write("update device set zone = 'west' where name = 'b'")
    assert "zones" not in doctor(a)
    cluster.db.freeze(cluster.snapshot("team/one").repository.id, "moving")
    report = doctor(a)
    assert report["copies"].startswith("problem: of 3 repositories: 1 frozen (team/one)")
    assert cluster.admin("doctor").code == 1


INTENT = """intent_token = gen_random_uuid(), intent_push = gen_random_uuid(), intent_actor = 'x', intent_via = 'ssh',
            intent_address = '', intent_at = now(), intent_refs = '[["refs/heads/x", "0", "1"]]'"""


def test_repositories_are_put_together_only_where_status_says_the_same(
    make_cluster: Callable[..., Cluster],
) -> None:
    """doctor looks at one of each kind, so that a hundred thousand repositories cost no more than a few."""
    cluster = make_cluster("abc", start="")
    conditions = [
        ("", []),
        ("frozen = 'by hand', frozen_at = now()", []),
        ("", ["version = null, checksum = null"]),
        ("", ["version = null, checksum = null", "version = null, checksum = null"]),
        ("", ["quarantined = 'x', distrust = 'damaged'"]),
        ("", ["quarantined = 'x', distrust = 'demoted'", "version = null, checksum = null"]),
        ("", ["damage = 'missing blob'"]),
        ("", ["marker_version = 7, marker_checksum = 'x'"]),
        ("", [INTENT]),
    ]
    with psycopg.connect(cluster.database, autocommit=True) as connection:
        connection.execute("update device set last_seen_at = now() + interval '1 hour' where name <> 'c'")
        for number, (repository, replicas) in enumerate(conditions):
            for copy in "xyz":
                places = "abc" if copy == "z" else "ab"
                id = cluster.create(f"team/{number}{copy}", devices=places, min_copies=2)
                connection.execute(
                    f"update replica set version = 0, checksum = p.checksum from repository p where p.id = {id}"
                    f" and repository_id = {id}"
                )
                if repository:
                    connection.execute(f"update repository set {repository} where id = {id}")
                for device, change in zip("ab", replicas, strict=False):
                    connection.execute(
                        f"update replica set {change} where repository_id = {id}"
                        f" and device_id = (select id from device where name = '{device}')"
                    )
    states = {e["name"]: e["state"] for e in cluster.admin_json("status")["repositories"]}
    assert set(states.values()) == {"healthy", "frozen", "degraded"} and len(states) == 3 * len(conditions)
    alike = cluster.db.alike()
    assert sum(each.count for each in alike) == len(states)
    assert sorted(name for each in alike for name in each.names) == sorted(states)
    for each in alike:
        assert len({states[name] for name in each.names}) == 1, each
    assert len(alike) < len(states)
    count = {state: sum(s == state for s in states.values()) for state in ("frozen", "degraded")}
    told = doctor(cluster.config)["copies"]
    assert all(f"{count[state]} {state} (" in told for state in count), told


# ------------------------------------------------------------------------------------------------ the database


def test_a_database_that_is_away(devices: Cluster, a: LoopbackDevice) -> None:
    report = doctor(variant(a, devices.database, "postgresql://git:hush@127.0.0.1:1/x"))
    assert report["database"].startswith("problem: no connection to the cluster's database: ")
    assert "Connection refused" in report["database"]
    assert report["device key"].startswith("ok") and report["daemon"] == "ok: it runs"
    assert report["peers"].startswith("warning: neither peers nor copies were looked at")
    assert report.troubles == {"database", "peers"}


@pytest.mark.parametrize(
    "database",
    [
        "postgresql://git:hush-5up3r@no-such-host.invalid/cluster",
        "postgresql://git:hush-5up3r@127.0.0.1:notaport/cluster",
        "postgresql://git:hush-5up3r@127.0.0.1/cluster?no_such_option=1",
        "host=127.0.0.1 password='hush-5up3r",
        "postgresql://git:hush-5up3r@127.0.0.1/cluster?target_session_attrs=any",
    ],
)
def test_a_database_that_is_none(tmp_path: Path, database: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'[cluster]\ndatabase = """{database}"""\n')
    report = doctor(file)
    assert report["database"].startswith("problem: ")
    assert "hush-5up3r" not in str(report)


def test_a_database_that_takes_no_writes(devices: Cluster, a: LoopbackDevice) -> None:
    with psycopg.connect(devices.database, autocommit=True) as connection:
        connection.execute("drop role if exists idle")
        connection.execute("create role idle login")
        connection.execute("alter role idle set default_transaction_read_only = on")
        try:
            report = doctor(variant(a, "postgres:@", "idle:@"))
        finally:
            connection.execute("drop role idle")
    assert report["database"].startswith("problem: no connection to the cluster's database: ")
    assert "read-only" in report["database"] and "name the server that takes writes" in report["database"]


def test_a_database_that_hangs(devices: Cluster, a: LoopbackDevice) -> None:
    """One that takes connections and says nothing, alone and as two hosts."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        for host in (f"127.0.0.1:{port}", ",".join([f"127.0.0.1:{port}"] * 3)):
            began = time.monotonic()
            report = doctor(variant(a, devices.database, f"postgresql://git@{host}/x"))
            assert report["database"].startswith(("problem: no connection", "problem: no answer within"))
            assert report["daemon"] == "ok: it runs"
            assert time.monotonic() - began < ENOUGH


NEW = "drop schema public cascade; create schema public"
SCHEMAS = {
    NEW: "the database has no git-cluster schema yet (run `git-cluster init` once)",
    "update cluster set schema_version = 999": "the database has schema 999, newer than",
    "update cluster set schema_version = 1": "the database has schema 1, older than",
    f"{NEW}; create table cluster (id integer)": "the database has a table `cluster` that is not git-cluster's",
}


@pytest.mark.parametrize(("statement", "words"), SCHEMAS.items())
def test_another_schema(make_cluster: Callable[..., Cluster], statement: str, words: str) -> None:
    cluster = make_cluster("a", start="")
    with psycopg.connect(cluster.database, autocommit=True) as connection:
        for each in statement.split(";"):
            connection.execute(each)
    for config in (cluster.config, cluster.devices["a"].config):
        report = doctor(config)
        assert report["schema"].startswith(f"problem: {words}"), report["schema"]
        assert report["clock"] and report["durability"].startswith("ok")
        assert report["peers"].startswith("warning")


def test_a_role_that_may_not_write(devices: Cluster, a: LoopbackDevice) -> None:
    with psycopg.connect(devices.database, autocommit=True) as connection:
        connection.execute("drop role if exists reader")
        connection.execute("create role reader login connection limit 12")
        connection.execute("grant select on all tables in schema public to reader")
        try:
            report = doctor(variant(a, "postgres:@", "reader:@"))
        finally:
            connection.execute("drop owned by reader")
            connection.execute("drop role reader")
    assert "this role may not write to git-cluster's tables" in report["database"]
    assert report["connections"].startswith(
        ("warning: 12 database sessions for 3 devices, which may need 70", "problem:")
    )


def test_a_database_that_is_not_durable(devices: Cluster, a: LoopbackDevice) -> None:
    with psycopg.connect(devices.database, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"alter database {name} set synchronous_commit = off")
    try:
        report = doctor(a.config)
    finally:
        with psycopg.connect(devices.database, autocommit=True) as connection:
            connection.execute(f"alter database {name} reset synchronous_commit")
    assert report["durability"].startswith("warning: synchronous_commit is off")
    assert report.ok or report.troubles <= MACHINE | {"durability"}


def test_an_embedded_database_that_does_not_run(make_cluster: Callable[..., Cluster]) -> None:
    """It is not started for a look at it."""
    cluster = make_cluster("a", start="")
    device = cluster.devices["a"]
    device.data_dir.mkdir(mode=0o700)
    report = doctor(variant(device, cluster.database, "embedded"))
    assert report["database"].startswith("problem: the embedded PostgreSQL does not run")
    assert list(device.data_dir.iterdir()) == []
