"""Certificates of a trusted authority, made by ssh-keygen and used by stock ssh and git."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paramiko  # type: ignore[import-untyped,unused-ignore]
import pytest

from cluster.model import Level
from tests.cluster_fixture import Cluster, Done
from tests.conftest import new_cluster, new_database
from tests.probes import Login, login

ENDPOINTS = ("built-in", "openssh")
KINDS = ("ed25519", "ecdsa", "rsa")
WELCOME = "Hello ann"


@pytest.fixture(scope="module")
def guarded(endpoint: str, postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Device a, which trusts the authorities ca-<kind>; user ann, who has no key, may write; user bob."""
    folder = tmp_path_factory.mktemp("guarded")
    with new_database(postgres) as url:
        cluster = new_cluster(endpoint, folder / "cluster", url, {})
        try:
            cluster.set_up(["a"])
            for kind in KINDS:
                make_key(cluster.directory / f"ca-{kind}", kind)
                make_key(cluster.directory / f"key-{kind}", kind)
            make_key(cluster.directory / "ca-other", "ed25519")
            authorities = [(cluster.directory / f"ca-{kind}.pub").read_text() for kind in KINDS]
            (cluster.devices["a"].directory / "authorities").write_text("# ours\n" + "".join(authorities))
            trust(cluster, "authorities")
            cluster.start("a")
            cluster.create("team/app")
            for user in ("ann", "bob"):
                cluster.db.add_user(user)
            cluster.db.grant(Level.WRITE, "ann", "team/*")
            yield cluster
        finally:
            cluster.close()


def trust(cluster: Cluster, file: str) -> None:
    with cluster.devices["a"].config.open("a") as config:
        config.write(f'\n[login]\ntrusted_ca = "{file}"\n')


def make_key(path: Path, kind: str) -> None:
    bits = ["-b", "3072"] if kind == "rsa" else []
    subprocess.run(["ssh-keygen", "-q", "-t", kind, *bits, "-N", "", "-C", "", "-f", path], check=True)


def sign(
    cluster: Cluster, *options: str, ca: str = "ed25519", key: str = "ed25519", principals: str = "ann"
) -> None:
    folder = cluster.directory
    words = ["-n", principals] if principals else []
    subprocess.run(
        [
            "ssh-keygen",
            "-q",
            "-s",
            folder / f"ca-{ca}",
            "-I",
            "x",
            *words,
            *options,
            folder / f"key-{key}.pub",
        ],
        check=True,
    )


def options(cluster: Cluster, key: str = "ed25519") -> list[str]:
    """Of ssh, with that key and its certificate alone."""
    return [
        "-F", "none", "-i", str(cluster.directory / f"key-{key}"), "-p", str(cluster.devices["a"].port),
        "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
        "-o", f"UserKnownHostsFile={cluster.directory / 'known_hosts'}", "-o", "StrictHostKeyChecking=yes",
    ]  # fmt: skip


def ssh(cluster: Cluster, *more: str, key: str = "ed25519", command: str = "") -> Done:
    whom = f"{cluster.devices['a'].user}@127.0.0.1"
    words = ["ssh", *options(cluster, key), *more, whom, *([command] if command else [])]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    return Done(done.returncode, done.stdout, done.stderr)


def log(cluster: Cluster) -> str:
    """What device a said; behind sshd, what a hook did by itself and what sshd said, too."""
    device = cluster.devices["a"]
    files = (device.log, device.data_dir / "run" / "hooks.log", device.directory / "sshd.log")
    return "".join(file.read_text() for file in files if file.exists())


@pytest.mark.parametrize("ca", KINDS)
@pytest.mark.parametrize("key", KINDS)
def test_every_kind_of_key_and_of_authority(guarded: Cluster, key: str, ca: str) -> None:
    sign(guarded, ca=ca, key=key)
    done = ssh(guarded, key=key)
    assert WELCOME in done.out, done.text


def test_git_clones_and_pushes_and_the_log_names_the_user(guarded: Cluster) -> None:
    sign(guarded, principals="someone-else,ann")
    work = guarded.work()
    env = {"GIT_SSH_COMMAND": " ".join(f"'{word}'" for word in ["ssh", *options(guarded)])}
    url = guarded.url("a")
    assert guarded.git("push", url, "main", cwd=work, env=env).code == 0
    assert guarded.git("ls-remote", url, env=env).out.endswith("refs/heads/main\n")
    assert guarded.admin_json("log", "team/app")[0]["actor"] == "ann"


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"ca": "other"}, "signed by no authority"),
        ({"options": ["-V", "20200101:20200102"]}, "has expired"),
        ({"options": ["-V", "20900101:20910101"]}, "not valid yet"),
        ({"principals": ""}, "names no principal"),
        ({"principals": "git,root"}, "none of its principals is an enabled user"),
        ({"principals": "ann,bob"}, "names several users"),
        ({"options": ["-O", "force-command=id"]}, "force-command"),
        ({"options": ["-O", "source-address=192.0.2.0/24"]}, "for other addresses"),
    ],
)
def test_who_is_not_let_in_and_the_log_says_why(guarded: Cluster, how: dict[str, object], says: str) -> None:
    before = set(log(guarded).splitlines())
    how = {**how}
    extra = how.pop("options", [])
    assert isinstance(extra, list)
    sign(guarded, *extra, **how)  # type: ignore[arg-type]
    done = ssh(guarded)
    assert done.code == 255 and "Permission denied (publickey)" in done.err
    said = "\n".join(line for line in log(guarded).splitlines() if line not in before)
    if "not from a permitted source address" not in said:  # which sshd finds out by itself
        assert said.count("a certificate proves nobody") == 1 and says in said
    assert "Traceback" not in said


def test_from_the_address_that_it_names(guarded: Cluster) -> None:
    sign(guarded, "-O", "source-address=127.0.0.0/8,::1")
    assert WELCOME in ssh(guarded).out


def test_a_plain_key_beside_a_bad_certificate_still_counts(guarded: Cluster) -> None:
    sign(guarded, ca="other")
    public = guarded.directory / "key-ed25519.pub"
    assert guarded.admin("key", "add", "bob", str(public)).code == 0
    done = ssh(guarded)
    fingerprint = guarded.admin_json("key", "list", "bob")[0]["fingerprint"]
    assert guarded.admin("key", "remove", fingerprint).code == 0
    assert "Hello bob" in done.out


@contextmanager
def offering(cluster: Cluster) -> Iterator[Any]:
    """A connection of plain paramiko's that logs in with the key and its certificate, whatever that is."""
    key = paramiko.PKey.from_path(cluster.directory / "key-ed25519")
    key.load_certificate(str(cluster.directory / "key-ed25519-cert.pub"))
    with socket.create_connection(("127.0.0.1", cluster.devices["a"].port), 30) as sock:
        transport = paramiko.Transport(sock)
        try:
            transport.start_client(timeout=30)
            transport.auth_publickey(cluster.devices["a"].user, key)
            yield Login(transport)
        finally:
            transport.close()


def test_a_certificate_says_who_it_is_not_the_key_in_it(guarded: Cluster) -> None:
    """The key is bob's; the certificate is ann's."""
    sign(guarded)
    public = guarded.directory / "key-ed25519.pub"
    assert guarded.admin("key", "add", "bob", str(public)).code == 0
    with offering(guarded) as connection:
        greeting = connection.ask(None)
    fingerprint = guarded.admin_json("key", "list", "bob")[0]["fingerprint"]
    assert guarded.admin("key", "remove", fingerprint).code == 0
    assert WELCOME.encode() in greeting.out


def test_a_hosts_certificate(guarded: Cluster) -> None:
    """Stock ssh would not offer it."""
    sign(guarded, "-h")
    with pytest.raises(paramiko.AuthenticationException), offering(guarded):
        pass
    assert "it is a host's certificate" in log(guarded)


def test_a_disabled_user_is_out_at_once(guarded: Cluster) -> None:
    sign(guarded)
    master = guarded.directory / "master"
    shared = ["-o", "ControlMaster=auto", "-o", f"ControlPath={master}", "-o", "ControlPersist=60"]
    ask = "git-upload-archive 'team/app'"
    try:
        assert "not registered" not in ssh(guarded, *shared, command=ask).err
        assert guarded.admin("user", "disable", "ann").code == 0
        assert "this key is not registered here any more" in ssh(guarded, *shared, command=ask).err
        assert "Permission denied" in ssh(guarded).err
        assert guarded.admin("user", "enable", "ann").code == 0
        assert "not registered" not in ssh(guarded, *shared, command=ask).err
    finally:
        ssh(guarded, "-O", "exit", *shared)
        guarded.db.enable_user("ann")


def test_a_certificate_that_ends_is_out_at_the_next_command(guarded: Cluster) -> None:
    sign(guarded, "-V", "-1m:+6s")
    shared = [
        "-o",
        "ControlMaster=auto",
        "-o",
        f"ControlPath={guarded.directory / 'ends'}",
        "-o",
        "ControlPersist=60",
    ]
    ask = "git-upload-archive 'team/app'"
    try:
        assert "not registered" not in ssh(guarded, *shared, command=ask).err
        guarded.wait(
            lambda: "this key is not registered here any more" in ssh(guarded, *shared, command=ask).err,
            "it ends",
        )
    finally:
        ssh(guarded, "-O", "exit", *shared)


def test_a_stolen_certificate_without_its_key_is_of_no_use(guarded: Cluster) -> None:
    sign(guarded)
    stolen = guarded.directory / "key-ed25519-cert.pub"
    done = ssh(guarded, "-o", f"CertificateFile={stolen}", key="rsa")
    assert done.code == 255 and WELCOME not in done.out


def test_without_an_authority_certificates_prove_nobody(cluster: Cluster) -> None:
    make_key(cluster.directory / "ca-ed25519", "ed25519")
    make_key(cluster.directory / "key-ed25519", "ed25519")
    sign(cluster, principals="demo")
    done = ssh(cluster)
    assert done.code == 255 and "Permission denied" in done.err
    assert "there is no [login] trusted_ca" in log(cluster)
    with login(cluster.devices["a"], cluster.identity) as connection:
        assert connection.ask("git-upload-pack 'team/app'", b"0000").code == 0


def test_a_file_that_cannot_be_used_stops_the_start(guarded: Cluster, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    text = guarded.devices["a"].config.read_text().replace('"authorities"', f'"{tmp_path}/file"')
    folder = guarded.devices["a"].directory
    for name in ("data", "device_ed25519", "host_ed25519"):
        text = text.replace(f'"{name}"', f'"{folder / name}"')
    config.write_text(text)
    for content, says in (
        (None, "cannot be read"),
        ("# nothing\n", "holds no public key"),
        ("x\n", "line 1"),
    ):
        if content is not None:
            (tmp_path / "file").write_text(content)
        done = guarded.admin("serve", config=config)
        assert done.code == 1
        assert "[login] trusted_ca" in done.err and says in done.err
        assert "Traceback" not in done.err
