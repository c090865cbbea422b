"""A real pgbouncer between git-cluster and PostgreSQL: what shares connections between transactions is refused."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import psycopg
import pytest

from cluster import embedded
from cluster.db import Database
from cluster.errors import ConfigError, DatabaseUnavailable
from cluster.loopback import Loopback
from tests.cluster_fixture import Cluster
from tests.postgres_fixture import OwnPostgres


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnPostgres]:
    """A PostgreSQL whose connections are pgbouncer's alone."""
    own = OwnPostgres(tmp_path_factory.mktemp("own") / "postgres")
    own.execute("create database cluster")
    yield own
    own.stop()


@pytest.fixture
def pooled(server: OwnPostgres, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """pooled(pool_mode="session", …): the URL of the database through a pgbouncer with these settings."""
    running: list[subprocess.Popen[bytes]] = []

    def start(**settings: object) -> str:
        folder = tmp_path / f"pgbouncer{len(running)}"
        folder.mkdir()
        embedded._Server(server.directory)._let_in(folder)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        options = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "logfile": folder / "log",
            "default_pool_size": 30,
            **settings,
        }
        config = folder / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host={server.socket.parent} port=5432 user=postgres\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in options.items())
        )
        as_user = []
        if os.geteuid() == 0:
            owner = server.directory.stat()
            shutil.chown(config, owner.st_uid)
            as_user = ["--user", pwd.getpwuid(owner.st_uid).pw_name]
        running.append(subprocess.Popen(["pgbouncer", "--quiet", *as_user, str(config)], cwd="/", env=path()))
        url = f"postgresql://postgres@127.0.0.1:{port}/cluster"
        deadline = time.monotonic() + 30
        while True:
            assert running[-1].poll() is None, (folder / "log").read_text()
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return url
            assert time.monotonic() < deadline
            time.sleep(0.02)

    yield start
    for process in running:
        process.kill()
        process.wait()


def path() -> dict[str, str]:
    """pgbouncer is in Debian's /usr/sbin, which is not on everybody's PATH."""
    return {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin"}


def refused(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        Database(url).open(any_schema=True)
    assert "pool_mode = transaction" in error.value.what and "pool_mode = session" in error.value.hint


SHARED = [
    {"pool_mode": mode, **more}
    for mode in ("transaction", "statement")
    for more in ({}, {"default_pool_size": 1}, {"server_round_robin": 1}, {"server_reset_query_always": 1})
]


@pytest.mark.parametrize("settings", SHARED, ids=lambda settings: " ".join(map(str, settings.values())))
def test_a_pool_that_is_shared_between_transactions(
    settings: dict[str, object], pooled: Callable[..., str]
) -> None:
    """With one session in the pool, with several that are idle, whichever of them is lent next."""
    url = pooled(**settings)
    refused(url)
    at_once(url, 1 if "default_pool_size" in settings else 7)
    for _ in range(5):
        refused(url)


def at_once(url: str, count: int) -> None:
    """Have the pool open so many sessions."""
    connections = [psycopg.connect(url, autocommit=True) for _ in range(count)]
    threads = [Thread(target=each.execute, args=("select pg_sleep(0.2)",)) for each in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in connections:
        each.close()


@pytest.mark.parametrize("size", [2, 4, 20])
def test_a_pool_in_which_others_are_at_work(size: int, pooled: Callable[..., str]) -> None:
    url = pooled(pool_mode="transaction", default_pool_size=size)
    with at_work(url, 6):
        for _ in range(20):
            refused(url)


@contextmanager
def at_work(url: str, count: int) -> Iterator[None]:
    """So many others who use the pool all the time."""
    stop = Event()

    def work() -> None:
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
            while not stop.is_set():
                connection.execute("select pg_sleep(0.001)")

    threads = [Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_what_is_told_to_whoever_starts_it(
    server: OwnPostgres, pooled: Callable[..., str], tmp_path: Path
) -> None:
    """`serve` and every other command: two lines, and the reason in them; nothing is changed."""
    cluster = Cluster(tmp_path / "cluster", server.reach("cluster"), {})
    cluster.set_up(["a"])
    url = pooled(pool_mode="transaction")
    for file in (cluster.config, cluster.devices["a"].config):
        file.write_text(file.read_text().replace(cluster.database, url))
    for file, command in (
        (cluster.devices["a"].config, "serve"),
        (cluster.config, "status"),
        (cluster.config, "init"),
    ):
        done = cluster.admin(command, config=file)
        assert done.code == 1 and done.out == "", done.text
        assert [line for line in done.err.splitlines() if "behind a pooler" in line], done.err
        assert "Traceback" not in done.err and "pool_mode = session" in done.err
    with psycopg.connect(server.reach("cluster")) as connection:
        connection.execute("drop schema public cascade")
        connection.execute("create schema public")


def test_what_doctor_says_of_it(pooled: Callable[..., str], tmp_path: Path) -> None:
    """The pooler is the problem, not the database behind it; one that keeps sessions is none."""
    file = tmp_path / "cluster.toml"
    for mode, verdict in (("transaction", "problem"), ("statement", "problem"), ("session", "ok")):
        file.write_text(f'[cluster]\ndatabase = "{pooled(pool_mode=mode)}"\n')
        words = [sys.executable, "-m", "cluster", "--config", str(file), "doctor", "--json"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        checks = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
        assert checks["pooler"]["verdict"] == verdict, done.stdout
        assert ("pool_mode = session" in (checks["pooler"]["hint"] or "")) == (verdict == "problem")
        assert ("database" in checks) == (verdict == "ok")


def test_a_pool_of_sessions_is_welcome(
    server: OwnPostgres, pooled: Callable[..., str], tmp_path: Path
) -> None:
    """Devices work through it, locks and wake-ups included."""

    class Pooled(Cluster):
        def database_of(self, name: str) -> str:
            return url

    url = pooled(pool_mode="session")
    cluster = Pooled(tmp_path / "cluster", server.reach("cluster"), {})
    assert isinstance(cluster, Loopback)
    try:
        cluster.set_up(["a", "b"])
        cluster.create("team/app", min_copies=2)
        for device in "ab":
            cluster.start(device)
        work = cluster.work()
        for device in "abab":
            cluster.commit(work, f"on {device}")
            cluster.ok("push", cluster.url(device), "main", cwd=work)
            cluster.wait(cluster.converged, "the other one has it, and nobody read from it")
        assert cluster.refs("a") == cluster.refs("b")
        cluster.stop_all()
    finally:
        cluster.close()


def test_a_pool_of_too_few_sessions(pooled: Callable[..., str]) -> None:
    """A device cannot work with one; it says so and does not wait for ever."""
    with pytest.raises(DatabaseUnavailable, match="no second connection") as error:
        Database(pooled(pool_mode="session", default_pool_size=1)).open(any_schema=True)
    assert "pool" in error.value.hint
