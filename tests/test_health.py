"""/-/health: ready means that a read here is fresh. Devices whose database, disk or end is near."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cluster.loopback import LoopbackDevice
from tests.cluster_fixture import Cluster, Project
from tests.conftest import new_database
from tests.disk_fixture import MOUNTED, Disk, kind_here
from tests.proxy import CuttingProxy

LINGER = 30


class OnProxy(Cluster):
    """A cluster whose device a reaches the database through a proxy, and is on a disk that can be made read-only."""

    def __init__(self, directory: Path, server: str) -> None:
        super().__init__(directory, server, {})
        info = psycopg.conninfo.conninfo_to_dict(server)
        self._info, self.proxy = info, CuttingProxy(Path(f"{info['host']}/.s.PGSQL.{info.get('port', 5432)}"))
        self.kind = kind_here()
        self.disk_of_a: Disk | None = None

    def database_of(self, name: str) -> str:
        if name != "a":
            return self.database
        return f"postgresql://{self._info['user']}@127.0.0.1:{self.proxy.port}/{self._info['dbname']}"

    def http_section(self, device: LoopbackDevice) -> str:
        return f'{super().http_section(device)}\nlinger = "{LINGER}s"\n'

    def command(self, device: LoopbackDevice) -> list[str]:
        words = super().command(device)
        return self.disk_of_a.command(words) if device.name == "a" and self.disk_of_a else words

    def stop_all(self) -> None:
        for device in self.devices.values():
            if device.process is not None:
                device.process.send_signal(signal.SIGTERM)  # the second one ends the lingering
        super().stop_all()

    def close(self) -> None:
        super().close()
        self.proxy.close()
        if self.disk_of_a is not None:
            self.disk_of_a.close()


@pytest.fixture(scope="module")
def cluster(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnProxy]:
    with new_database(postgres) as url:
        cluster = OnProxy(tmp_path_factory.mktemp("health") / "cluster", url)
        try:
            cluster.set_up(["a", "b"])
            cluster.disk_of_a = Disk(cluster.kind, cluster.devices["a"])
            for name in "ab":
                cluster.start(name)
            yield cluster
        finally:
            cluster.proxy.heal()
            cluster.close()


def ask(cluster: Cluster, device: str, path: str = "/-/health", method: str = "GET") -> tuple[int, Any]:
    port = cluster.devices[device].http_port
    assert port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.headers["cache-control"] == "no-store"
        return answer.status, json.loads(body) if body else None
    finally:
        connection.close()


def not_ready(cluster: Cluster, device: str, *why: str) -> None:
    """Wait until it says so, with exactly these reasons; it lives on."""
    expected = (503, {"live": True, "ready": False, "reasons": list(why)})
    cluster.wait(lambda: ask(cluster, device, "/-/health/ready") == expected, f"not ready: {why}")
    assert ask(cluster, device) == expected
    assert ask(cluster, device, "/-/health/live") == (200, {"live": True})


def ready(cluster: Cluster, device: str) -> None:
    expected = (200, {"live": True, "ready": True, "reasons": []})
    cluster.wait(lambda: ask(cluster, device) == expected, "ready")


def test_ready_and_head(cluster: OnProxy) -> None:
    ready(cluster, "a")
    for path in ("/-/health", "/-/health/ready", "/-/health/live"):
        assert ask(cluster, "a", path, "HEAD") == (200, None)


def test_a_database_that_is_cut_off_and_back(cluster: OnProxy) -> None:
    ready(cluster, "a")
    cluster.proxy.cut()
    try:
        not_ready(cluster, "a", "the cluster's database does not answer")
        assert ask(cluster, "a", method="HEAD") == (503, None)
        ready(cluster, "b")
    finally:
        cluster.proxy.heal()
    ready(cluster, "a")


def test_a_database_that_hangs_is_told_of_in_seconds(cluster: OnProxy) -> None:
    ready(cluster, "a")
    cluster.proxy.hang()
    try:
        not_ready(cluster, "a", "the cluster's database does not answer")
        metrics = http.client.HTTPConnection("127.0.0.1", cluster.devices["a"].http_port or 0, timeout=9)
        metrics.request("GET", "/-/metrics")  # within the time that Prometheus waits
        assert b"git_cluster_database_up 0.0" in metrics.getresponse().read()
        metrics.close()
    finally:
        cluster.proxy.heal()
    ready(cluster, "a")


def test_a_disk_that_cannot_be_written_to(cluster: OnProxy) -> None:
    if cluster.kind != MOUNTED:
        pytest.skip("nothing may be mounted here, and to root no permission means anything")
    assert cluster.disk_of_a
    with cluster.disk_of_a.read_only():
        why = "the disk of this device cannot be written to; an administrator has to look at it"
        not_ready(cluster, "a", why)
    ready(cluster, "a")
    with cluster.disk_of_a.full():
        not_ready(cluster, "a", "the disk of this device is full; an administrator has to make room")
    ready(cluster, "a")


def test_draining_and_disabled(cluster: OnProxy) -> None:
    cluster.admin("device", "drain", "b")
    not_ready(cluster, "b", "this device is draining")
    cluster.admin("device", "disable", "b")
    not_ready(cluster, "b", "this device is disabled")
    cluster.admin("device", "enable", "b")
    ready(cluster, "b")


def test_a_schema_of_another_program(cluster: OnProxy) -> None:
    with psycopg.connect(cluster.database, autocommit=True) as database:
        database.execute("update cluster set schema_version = schema_version + 1")
        try:
            cluster.wait(lambda: ask(cluster, "b")[0] == 503, "it is noticed")
            (why,) = ask(cluster, "b")[1]["reasons"]
            assert "newer than this program's" in why
        finally:
            database.execute("update cluster set schema_version = schema_version - 1")
    ready(cluster, "b")


def test_a_copy_that_is_behind_is_no_reason_and_one_that_cannot_be_synced_is(cluster: OnProxy) -> None:
    app = Project.named(cluster, "stuck")
    app.pushed("a", "main")
    app.converge()
    with psycopg.connect(cluster.database, autocommit=True) as database:
        behind = (
            "update replica set version = null, checksum = null, attempts = {}, last_error = 'x', "
            "next_try_at = now() + interval '1 hour' where device_id = (select id from device where name = 'b')"
        )
        database.execute(behind.format(0))
        cluster.wait(lambda: ask(cluster, "b")[0] == 200, "behind is no reason")
        database.execute(behind.format(2))
        not_ready(cluster, "b", "1 copy cannot be synced, and another device has the newest version")
    assert app.refs("b") == app.refs("a"), "whoever reads here all the same syncs it"
    ready(cluster, "b")


def test_a_flood_of_questions_is_one_question_to_the_database(cluster: OnProxy) -> None:
    def asked() -> int:
        with psycopg.connect(cluster.database, autocommit=True) as database:
            database.execute("select pg_stat_clear_snapshot()")
            row = database.execute(
                "select xact_commit from pg_stat_database where datname = current_database()"
            ).fetchone()
            assert row is not None
            return int(row[0])

    ready(cluster, "b")
    before = asked()
    port = cluster.devices["b"].http_port or 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for _ in range(500):
        connection.request("GET", "/-/health/ready")
        answer = connection.getresponse()
        assert answer.status == 200 and answer.read()
    connection.close()
    assert asked() - before < 250


def test_sigterm_is_not_ready_before_connections_close(cluster: OnProxy) -> None:
    """The last one of this file: it stops device b."""
    app = Project.named(cluster, "goodbye")
    app.pushed("a", "main")
    ready(cluster, "b")
    process = cluster.devices["b"].process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    not_ready(cluster, "b", "this device stops")
    assert app.refs("b") == app.refs("a"), "it still answers"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", cluster.devices["b"].http_port or 0), timeout=5)


def test_a_hook_without_a_daemon_imports_nothing_for_it() -> None:
    code = "import sys, cluster.alone, cluster.session; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
