"""The other side of each ratio: stock sshd, stock Git."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from pathlib import Path

from cluster.loopback import free_port
from tests.cluster_fixture import Cluster


class PlainGit:
    """A stock sshd with an authorized_keys file, and stock Git behind it.

    Its user has an empty home: the shell that runs each command would read the .bashrc of whoever runs this, which may
    do far more than Git does.
    """

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        self.directory, self.port, self._cluster = directory, free_port(), cluster
        directory.mkdir()
        key = directory / "host"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        keys = directory / "authorized_keys"
        keys.write_text(Path(f"{cluster.identity}.pub").read_text())
        keys.chmod(0o600)
        config = directory / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {key}\nAuthorizedKeysFile {keys}\nUsePAM no\n"
            f"StrictModes no\nPasswordAuthentication no\nAcceptEnv GIT_PROTOCOL\nPidFile none\nPermitRootLogin yes\n"
            f"MaxStartups 1000\nSetEnv HOME={directory / 'home'}\n"
        )
        (directory / "home").mkdir()
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program, "sshd is needed for the other side of each ratio"
        self.process = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stderr=subprocess.DEVNULL)
        self.known_to(cluster)

    def known_to(self, cluster: Cluster) -> None:
        """Have the client of `cluster` take this server's host key, and this server take the client's key."""
        host = (self.directory / "host.pub").read_text().split()
        with (cluster.directory / "known_hosts").open("a") as known:
            known.write(f"[127.0.0.1]:{self.port} {host[0]} {host[1]}\n")
        if cluster is not self._cluster:
            with (self.directory / "authorized_keys").open("a") as keys:
                keys.write(Path(f"{cluster.identity}.pub").read_text())

    def url(self, name: str) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{self.path(name)}"

    def path(self, name: str) -> Path:
        """Where a repository lies."""
        return self.directory / f"{name}.git"

    def create(self, name: str) -> str:
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(self.path(name))], check=True)
        return self.url(name)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
