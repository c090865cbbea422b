"""A cluster behind real sshds with git-cluster's hooks: the daemons have no SSH server of their own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cluster.loopback import READY, LoopbackDevice, free_port
from cluster.openssh import SOCKET
from cluster.sshd_files import HOOK, PERL, in_python, perl_serves, sshd_program
from tests.cluster_fixture import Cluster


class OpenSSHCluster(Cluster):
    """Each device has an sshd in front, from `start` to `stop`; `stop_daemon` leaves it without what is behind.

    without_daemon: devices whose daemon ends once they are set up; whatever is asked of them, a hook does by itself.
    language: "Perl", if there is one that serves, or "Python": what the hooks are written in.
    """

    def __init__(
        self,
        directory: Path,
        database: str,
        writes: Mapping[str, str],
        sections: Mapping[str, Mapping[str, str | int]] | None = None,
        *,
        without_daemon: str = "",
        language: str = "Perl",
    ) -> None:
        super().__init__(directory, database, writes, sections)
        self.without_daemon, self.language = without_daemon, language
        self._sshds: dict[str, subprocess.Popen[bytes]] = {}
        # sshd runs no program that others might have written: not from below /tmp, for example.
        root = next((path for path in (Path(__file__).parent.parent, Path("/run")) if _is_safe(path)), None)
        self.hooks = Path(tempfile.mkdtemp(prefix=".test-hooks-", dir=root))
        self.hooks.chmod(0o755)

    def roots(self) -> list[int]:
        return super().roots() + [sshd.pid for sshd in self._sshds.values()]

    def new_device(self, name: str) -> LoopbackDevice:
        return LoopbackDevice(name, self.directory / name, free_port(), user=getpass.getuser())

    def endpoint_section(self, device: LoopbackDevice) -> str:
        return ""

    def start(self, name: str, *, fault: str = "") -> None:
        if name not in self._sshds:
            self._install(self.devices[name])
            self._start_sshd(self.devices[name])
        super().start(name, fault=fault)
        if name in self.without_daemon:
            self.stop_daemon(name)

    def stop(self, name: str, *, how: signal.Signals = signal.SIGTERM, timeout: float = 30.0) -> int | None:
        self._stop_sshd(name)
        return super().stop(name, how=how, timeout=timeout)

    def stop_daemon(self, name: str, *, how: signal.Signals = signal.SIGTERM) -> None:
        """sshd stays."""
        super().stop(name, how=how)

    def kill_sshd(self, name: str) -> None:
        """The one that listens, and those that it started for its clients; not what these have started."""
        family = [self._sshds[name].pid]
        for pid in family:
            family += [child for child in _children(pid) if _program(child).startswith("sshd")]
        for pid in reversed(family):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._stop_sshd(name)

    def start_sshd(self, name: str) -> None:
        device = self.devices[name]
        self._start_sshd(device)
        self.wait(lambda: _answers(device), "sshd answers")

    def close(self) -> None:
        for name in list(self._sshds):
            self._stop_sshd(name)
        super().close()
        shutil.rmtree(self.hooks, ignore_errors=True)

    def converged(self, repository: str = "team/app") -> bool:
        for name in self.without_daemon:  # who is asked for it syncs; nobody else does so here
            if self.snapshot(repository).of(name):
                self.git("ls-remote", self.url(name, repository))
        return super().converged(repository)

    def sshd_log(self, name: str) -> str:
        return (self.devices[name].directory / "sshd.log").read_text(errors="replace")

    def hook_log(self, name: str) -> str:
        """What was done without a daemon; only where this machine has no syslog."""
        return (self.devices[name].data_dir / "run" / "hooks.log").read_text()

    def _install(self, device: LoopbackDevice) -> None:
        device.data_dir.mkdir(exist_ok=True)
        folder = self.hooks / device.name
        arguments = ["--port", str(device.port), "--user", device.user]
        done = self.admin(
            "sshd", "install", str(folder), *arguments, "--host-key", str(device.directory / "host_ed25519"),
            config=device.config,
        )  # fmt: skip
        assert done.code == 0, done.text
        if self.language == "Python":
            (folder / HOOK).write_text(in_python(device.config, str(device.data_dir / "run")))
        config = folder / "sshd_config"
        text = config.read_text().replace(f"Port {device.port}", f"ListenAddress {device.host}:{device.port}")
        # The shell that runs the forced command would read the .bashrc of whoever runs these tests.
        text = text.replace("SetEnv ", f"SetEnv HOME={device.directory} ").replace("UsePAM yes", "UsePAM no")
        if os.geteuid() != 0:
            run = PERL if self.language == "Perl" and perl_serves() else f"{_interpreter()} -IS"
            text = text.replace("AuthorizedKeysCommand /", f"AuthorizedKeysCommand {run} /")
        config.write_text(text)

    def _start_sshd(self, device: LoopbackDevice) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        with (device.directory / "sshd.log").open("ab") as log:
            self._sshds[device.name] = subprocess.Popen(
                [sshd_program(), "-D", "-e", "-f", str(self.hooks / device.name / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _stop_sshd(self, name: str) -> None:
        process = self._sshds.pop(name, None)
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _wait_until_ready(self, device: LoopbackDevice) -> None:
        deadline = time.monotonic() + READY
        super()._wait_until_ready(device)  # sshd answers
        while not _listens(device.data_dir / "run"):
            assert device.process is not None and device.process.poll() is None, device.log.read_text()
            assert time.monotonic() < deadline, "the daemon does not listen to hooks"
            time.sleep(0.02)


def _answers(device: LoopbackDevice) -> bool:
    with suppress(OSError), socket.create_connection((device.host, device.port), timeout=1) as probe:
        return probe.recv(4) == b"SSH-"
    return False


def _listens(folder: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            probe.connect(f"/proc/self/fd/{fd}/{SOCKET}")
        finally:
            os.close(fd)
        return True
    return False


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _program(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text()
    return ""


def _is_safe(path: Path) -> bool:
    return all(p.stat().st_uid == 0 and not p.stat().st_mode & 0o022 for p in (path, *path.parents))


def _interpreter() -> str:
    return shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
