"""What an administrator gets wrong, or what breaks under a device: one line of what, one of what to do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from cluster import embedded
from tests.cluster_fixture import Cluster, Done

PASSWORD = "hush-5up3r"


def run(config: Path, *arguments: str, env: dict[str, str] | None = None) -> Done:
    """The real command line. `serve` is not expected to get as far as serving."""
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "--config", str(config), *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=60, env={**os.environ, **(env or {})},
    )  # fmt: skip
    return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def complains(done: Done, *words: str, code: int = 1) -> None:
    """Exactly two lines, what and what to do, with these words in them; and nothing that nobody should see."""
    text = "\n".join(line for line in done.err.splitlines() if not line.startswith("time="))
    assert done.code == code, done.text
    assert done.out == ""
    assert re.fullmatch(r"git-cluster: \S[^\n]*\n  \S[^\n]*", text), done.text
    assert "something went wrong" not in text, text
    for word in words:
        assert word in text, text
    assert "Traceback" not in done.text
    assert PASSWORD not in done.text


@pytest.fixture
def bare(make_cluster: Callable[..., Cluster]) -> Cluster:
    """A cluster with the devices a and b registered, neither of which runs."""
    return make_cluster("ab", start="")


def rewritten(cluster: Cluster, device: str, was: str, now: str) -> Path:
    """A device's configuration with a change in it."""
    file = cluster.devices[device].config
    text = file.read_text()
    assert was in text
    file.write_text(text.replace(was, now))
    return file


# ---------------------------------------------------------------------------------------- the configuration


@pytest.mark.parametrize(
    "command", [["status"], ["serve"], ["init"], ["device", "list"], ["log", "team/app"]]
)
def test_no_configuration(tmp_path: Path, command: list[str]) -> None:
    complains(run(tmp_path / "none.toml", *command), "no such configuration file", "--config")


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    complains(run(tmp_path, "status"), "cannot be read")
    if os.geteuid() != 0:
        file = tmp_path / "secret.toml"
        file.touch(mode=0)
        complains(run(file, "status"), "cannot be read")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0\1\2\xff\xfe", ["UTF-8"]),
        (b"\0\1\2", ["not TOML"]),
        (b"this is = no [toml", ["not TOML", "line 1"]),
        (b"[cluster", ["not TOML"]),
        (b"", ["[cluster] is missing"]),
        (b"cluster = 7", ["must be a table"]),
        (b"[cluster]", ["database is missing"]),
        (b'[cluster]\ndatabase = "embedded"\n', ["[device]"]),
        (b'[cluster]\ndatabase = "mysql://x"\n', ["database must be"]),
        (b'[cluster]\ndatabase = 7\n', ["database must be"]),
        (b'[cluster]\ndatabase = "dbname=x"\ndatabse = "y"\n', ["databse is unknown", "Did you mean database?"]),
        (b'[cluster]\ndatabase = "dbname=x"\n[device]\nnam = "a"\n', ["nam is unknown", "Did you mean name?"]),
        (b'[cluster]\ndatabase = "dbname=x"\n[sssh]\n', ["[sssh] is unknown", "Did you mean ssh?"]),
        (b'[cluster]\ndatabase = "dbname=x"\n[writes]\nlock_timeout = "soon"\n', ["lock_timeout must be"]),
        (b'[cluster]\ndatabase = "dbname=x"\n[writes]\nlock_timeout = -1\n', ["lock_timeout must be"]),
        (b'[cluster]\ndatabase = "dbname=x"\n[writes]\nheal = "perhaps"\n', ["heal must be"]),
        (b'[cluster]\ndatabase = "dbname=x"\n[writes]\nheal = true\n', ["heal must be"]),
        (b'[cluster]\ndatabase = "dbname=x"\n[device]\nname = "A b"\ndata_dir = "d"\nkey = "k"\n', ["name must be"]),
    ],
)  # fmt: skip
def test_a_wrong_configuration(tmp_path: Path, content: bytes, words: list[str]) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    complains(run(file, "serve"), str(file), *words)


def test_the_variable_names_the_configuration_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "status"],
        capture_output=True, text=True, env={**os.environ, "GIT_CLUSTER_CONFIG": str(tmp_path / "none")},
    )  # fmt: skip
    complains(
        Done(done.returncode, done.stdout, done.stderr), str(tmp_path / "none"), "no such configuration file"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"], ["status", "--no-such-option"], ["serve", "surplus"], ["device", "add", "a"],
        ["log"], ["log", "../x"], ["status", "a b"], ["repo", "create", "-x"], ["grant", "everything", "ann", "*"],
        ["device", "add", "A", "--ssh", "ssh://git@a", "--key", "k", "--host-key", "h"],
    ],
)  # fmt: skip
def test_wrong_usage(tmp_path: Path, arguments: list[str]) -> None:
    done = run(tmp_path / "none.toml", *arguments)
    assert done.code == 2, done.text
    assert "Traceback" not in done.text and len(done.err.splitlines()) <= 2


def test_a_machine_that_is_no_device_cannot_serve(bare: Cluster) -> None:
    complains(run(bare.config, "serve"), "no [device] section")


# ---------------------------------------------------------------------------------------------- the database


@pytest.fixture(scope="module")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A PostgreSQL of this file's own, to be taken away; users other than postgres need a password."""
    directory = tmp_path_factory.mktemp("own") / "data"
    url = embedded.start(directory)
    (directory / "pg_hba.conf").write_text("local all postgres trust\nlocal all all scram-sha-256\n")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create role git login password 'right'")
        connection.execute("select pg_reload_conf()")
    yield directory, url
    embedded.stop(directory)


def with_database(tmp_path: Path, database: str) -> Path:
    file = tmp_path / "cluster.toml"
    file.write_text(f"[cluster]\ndatabase = '''{database}'''\n")
    return file


@pytest.mark.parametrize("command", [["status"], ["init"], ["user", "list"]])
@pytest.mark.parametrize(
    "database",
    [
        f"postgresql://git:{PASSWORD}@127.0.0.1:1/cluster",
        f"host=127.0.0.1 port=1 user=git password={PASSWORD}",
        f"postgresql://git:{PASSWORD}@no-such-host.invalid/cluster",
        f"postgresql://git:{PASSWORD}@127.0.0.1:notaport/cluster",
        f"postgresql://git:{PASSWORD}@[::1/cluster",
        f"postgresql://git:{PASSWORD}@127.0.0.1/cluster?no_such_option=1",
        f"host=127.0.0.1 password={PASSWORD} nonsense",
        f"host=127.0.0.1 password='{PASSWORD}",
        f"host=127.0.0.1 no_such_option=1 password={PASSWORD}",
    ],
)
def test_a_database_that_cannot_be_reached(tmp_path: Path, database: str, command: list[str]) -> None:
    complains(run(with_database(tmp_path, database), *command), "database")


def test_a_wrong_password_and_a_database_that_is_not_there(
    tmp_path: Path, own_postgres: tuple[Path, str]
) -> None:
    _, url = own_postgres
    for database in (
        url.replace("postgres:@", f"git:{PASSWORD}@"),
        url.replace("postgres:@", "git@"),
        url.replace("postgres:@", f"nobody:{PASSWORD}@"),
    ):
        complains(run(with_database(tmp_path, database), "status"), "no connection to the cluster's database")
    complains(run(with_database(tmp_path, url.replace("/postgres?", "/nowhere?")), "status"), "nowhere")


def test_a_role_that_may_not_read_the_tables(tmp_path: Path, own_postgres: tuple[Path, str]) -> None:
    _, url = own_postgres
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create database someones")
    theirs = url.replace("/postgres?", "/someones?")
    done = run(with_database(tmp_path, theirs), "init")
    assert done.code == 0, done.text
    mine = theirs.replace("postgres:@", "git:right@")
    for command in ("status", "init"):
        complains(run(with_database(tmp_path, mine), command), "database", "permission")


def test_a_database_without_a_schema(tmp_path: Path, database_url: str) -> None:
    complains(
        run(with_database(tmp_path, database_url), "status"), "no git-cluster schema", "git-cluster init"
    )


def test_a_schema_that_is_newer(bare: Cluster) -> None:
    with psycopg.connect(bare.database, autocommit=True) as connection:
        connection.execute("update cluster set schema_version = 999")
    for command in (["status"], ["init"]):
        complains(run(bare.config, *command), "schema 999", "upgrade git-cluster")
    complains(run(bare.devices["a"].config, "serve"), "schema 999", "upgrade git-cluster")


@pytest.mark.parametrize(
    "table",
    ["cluster (id integer)", "cluster (schema_version text)", "cluster (schema_version integer)"],
)
def test_a_table_of_somebody_elses(tmp_path: Path, database_url: str, table: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"create table {table}")
        if "text" in table:
            connection.execute("insert into cluster values ('ours')")
    for command in ("status", "init"):
        complains(
            run(with_database(tmp_path, database_url), command), "not git-cluster's", "database of its own"
        )
    with psycopg.connect(database_url, autocommit=True) as connection:
        assert connection.execute(
            "select count(*) from pg_tables where schemaname = 'public'"
        ).fetchone() == (1,)


# ------------------------------------------------------------------------------------------------ the device


@pytest.mark.parametrize(
    ("option", "purpose"), [("device_ed25519", "the key of this device"), ("host_ed25519", "the host key")]
)
def test_a_key_that_cannot_be_used(bare: Cluster, option: str, purpose: str) -> None:
    device = bare.devices["a"]
    file = device.directory / option
    good = file.read_bytes()
    file.unlink()
    complains(run(device.config, "serve"), purpose, "there is no file", "ssh-keygen")
    file.write_bytes(b"-----BEGIN OPENSSH PRIVATE KEY-----\nnonsense\n-----END OPENSSH PRIVATE KEY-----\n")
    complains(run(device.config, "serve"), purpose, "no private key that can be used", "ssh-keygen")
    for garbage in (b"", b"\0" * 100, good[:100], (device.directory / f"{option}.pub").read_bytes()):
        file.write_bytes(garbage)
        complains(run(device.config, "serve"), purpose, "no private key that can be used")
    file.write_bytes(good)
    file.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", PASSWORD, "-f", file], check=True)
    complains(run(device.config, "serve"), purpose, "encrypted", "ssh-keygen -p")
    file.unlink()
    file.mkdir()
    complains(run(device.config, "serve"), purpose, "cannot be read")


def test_a_device_that_is_not_registered(bare: Cluster) -> None:
    file = rewritten(bare, "a", 'name = "a"', 'name = "z"')
    complains(run(file, "serve"), "device z is not registered", "git-cluster device add z")


def test_a_device_with_another_key_than_the_registered_one(bare: Cluster) -> None:
    """Two devices with swapped configurations would otherwise pass for one another until the first sync."""
    other = bare.devices["b"].directory / "device_ed25519"
    file = rewritten(bare, "a", 'key = "device_ed25519"', f'key = "{other}"')
    complains(run(file, "serve"), "device a is registered with another key", "[device] key", "device list")


def test_a_port_in_use(bare: Cluster) -> None:
    bare.start("b")
    file = rewritten(bare, "a", f"127.0.0.1:{bare.devices['a'].port}", f"127.0.0.1:{bare.devices['b'].port}")
    complains(run(file, "serve"), f"port {bare.devices['b'].port}", "[ssh] listen")


def test_an_address_of_another_machine(bare: Cluster) -> None:
    file = rewritten(bare, "a", f'listen = "127.0.0.1:{bare.devices["a"].port}"', 'listen = "192.0.2.1:2222"')
    complains(run(file, "serve"), "cannot listen for SSH on 192.0.2.1", "[ssh] listen")


@pytest.mark.parametrize(
    ("data_dir", "words"),
    [
        ("config.toml", ["data_dir cannot be made"]),
        ("config.toml/data", ["data_dir cannot be made"]),
        ("/proc/git-cluster", ["data_dir cannot be made"]),
        ("/proc/self", ["data_dir cannot be written to"]),
    ],
)
def test_a_data_dir_that_cannot_be_used(bare: Cluster, data_dir: str, words: list[str]) -> None:
    complains(run(rewritten(bare, "a", 'data_dir = "data"', f'data_dir = "{data_dir}"'), "serve"), *words)


def test_no_git(bare: Cluster, tmp_path: Path) -> None:
    complains(run(bare.devices["a"].config, "serve", env={"PATH": str(tmp_path)}), "no git", "install Git")


def test_two_daemons_on_one_disk(bare: Cluster) -> None:
    bare.create("team/app")
    bare.start("a")
    file = bare.devices["a"].config
    second = file.with_name("second.toml")
    listen = f'listen = "127.0.0.1:{bare.devices["a"].port}"'
    second.write_text(file.read_text().replace(listen, 'listen = "127.0.0.1:0"'))
    complains(run(second, "serve"), "serves from this data_dir already", "stop that one")
    assert bare.git("ls-remote", bare.url("a")).code == 0
    assert bare.stop("a", how=signal.SIGKILL) == -signal.SIGKILL
    bare.start("a")  # the lock went with its process
    assert bare.git("ls-remote", bare.url("a")).code == 0


def test_a_fault_that_is_none(bare: Cluster) -> None:
    done = run(bare.devices["a"].config, "serve", env={"GIT_CLUSTER_FAULT": "lunch:nap"})
    complains(done, "GIT_CLUSTER_FAULT", "steps:")


def test_a_peer_that_shows_another_host_key(make_cluster: Callable[..., Cluster]) -> None:
    """Nothing is fetched from it, and the status says why; once the right key is registered, all is well."""
    cluster = make_cluster("ab", start="a")
    cluster.create("team/app")
    cluster.ok("push", cluster.url("a"), "main", cwd=cluster.work())
    right = cluster.db.device("a").host_key
    wrong = cluster.db.device("b").host_key

    def register(key: str) -> None:
        cluster.db._write("update device set host_key = %(key)s where name = 'a'", {"key": key})

    register(wrong)
    cluster.start("b")
    cluster.wait(lambda: [r for r in cluster.snapshot().replicas if r.attempts], "a failed sync")
    replica = cluster.snapshot().of("b")
    assert replica and replica.version is None
    assert "shows another host key than the one registered" in cluster.devices["b"].log.read_text()
    done = cluster.git("ls-remote", cluster.url("b"))
    assert done.code != 0
    assert (
        "remote: cluster: error: version 1 of team/app cannot be fetched from where it is: a (online)"
        in done.err
    )
    done = cluster.admin("sync", "team/app", "--device", "a")
    assert done.code == 1 and "another host key than the one registered" in done.text
    register(right)
    assert cluster.admin("sync", "team/app").code == 0
    cluster.converge()


# ------------------------------------------------------------------------------------ a database that goes away


@pytest.fixture
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Path]]:
    """Devices a and b on a PostgreSQL of their own, and its directory."""
    folder = tmp_path_factory.mktemp("fragile")
    cluster = Cluster(folder / "cluster", embedded.start(folder / "postgres"), {})
    try:
        cluster.set_up(["a", "b"])
        cluster.create("team/app")
        for device in "ab":
            cluster.start(device)
        yield cluster, folder / "postgres"
    finally:
        for device in cluster.devices:
            cluster.stop(device, how=signal.SIGKILL)
        cluster.close()
        embedded.stop(folder / "postgres")


@pytest.mark.parametrize("how", [embedded.stop, embedded.crash], ids=["stopped", "crashed"])
def test_a_database_that_goes_away_and_comes_back(
    fragile: tuple[Cluster, Path], how: Callable[[Path], None]
) -> None:
    cluster, postgres = fragile
    work = cluster.work()
    cluster.ok("push", cluster.url("a"), "main", cwd=work)
    cluster.converge()
    how(postgres)
    oid = cluster.commit(work, "while it is away")
    for arguments in (("ls-remote", cluster.url("a")), ("push", cluster.url("b"), "main")):
        done = cluster.git(*arguments, cwd=work)
        assert done.code != 0
        assert "remote: cluster: error: the cluster's database" in done.err, done.err
        assert "Permission denied" not in done.err and "Traceback" not in done.err
        assert sum("database" in line and "error" in line for line in done.err.splitlines()) == 1
    done = cluster.admin("status")
    complains(done, "no connection to the cluster's database")
    assert all(device.process and device.process.poll() is None for device in cluster.devices.values())
    assert embedded.start(postgres) == cluster.database
    cluster.ok("push", cluster.url("b"), "main", cwd=work)  # at once, without any restart
    assert cluster.refs("a")["refs/heads/main"] == oid
    cluster.converge()
    cluster.wait(lambda: all(device.online for device in cluster.db.devices()), "both are online again")
    for device in cluster.devices.values():
        assert "Traceback" not in device.log.read_text()
    assert cluster.admin("status", "--check").code == 0


def test_a_device_can_be_stopped_while_the_database_is_away(fragile: tuple[Cluster, Path]) -> None:
    cluster, postgres = fragile
    embedded.stop(postgres)
    assert cluster.stop("a") == 0
    complains(
        run(cluster.devices["a"].config, "serve"), "no connection to the cluster's database", "PostgreSQL"
    )
    embedded.start(postgres)
    cluster.start("a")
