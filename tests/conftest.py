"""Fixtures for the real parts: a PostgreSQL for each worker, a database and a cluster for each test that asks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from cluster import embedded
from cluster.peer import Peers
from tests.cluster_fixture import Cluster, Project
from tests.http_fixture import HttpCluster
from tests.openssh_fixture import OpenSSHCluster
from tests.ssh_fixture import Place, git, until


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an embedded PostgreSQL that this worker's tests share."""
    directory = tmp_path_factory.mktemp("postgres") / "data"
    yield embedded.start(directory)
    embedded.stop(directory)


@contextmanager
def new_database(postgres: str) -> Iterator[str]:
    """The URL of an empty database on `postgres`, there while inside."""
    name = f"test_{uuid4().hex[:12]}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    yield postgres.replace("/postgres?", f"/{name}?", 1)
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"drop database if exists {name} with (force)")


@pytest.fixture
def database_url(postgres: str) -> Iterator[str]:
    """The URL of an empty database of this test's own."""
    with new_database(postgres) as url:
        yield url


ENDPOINTS = ("built-in", "openssh", "openssh, no daemon on a", "http")
"""What may stand at the URL of a device. A file that says `ENDPOINTS = True` has all its tests run with each; one that
names some, with those."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = getattr(metafunc.module, "ENDPOINTS", None)
    if wanted and "endpoint" in metafunc.fixturenames:
        which = ENDPOINTS if wanted is True else wanted
        metafunc.parametrize("endpoint", which, indirect=True, scope="module")


def serves_http(request: pytest.FixtureRequest) -> bool:
    """Whether the built-in endpoint's devices serve HTTP, too: in a file that says `HTTP = True`. It makes each of them
    start in twice the time."""
    return bool(getattr(request.module, "HTTP", False))


@pytest.fixture(scope="module")
def endpoint(request: pytest.FixtureRequest) -> str:
    """One of ENDPOINTS."""
    return str(getattr(request, "param", ENDPOINTS[0]))


def new_cluster(
    endpoint: str,
    directory: Path,
    database: str,
    writes: Mapping[str, str],
    sections: Mapping[str, Mapping[str, str | int]] | None = None,
    *,
    http: bool = True,
) -> Cluster:
    if endpoint == "built-in":
        return Cluster(directory, database, writes, sections, http=http)
    if endpoint == "http":  # and, so that these are tried as well, with workers
        return HttpCluster(directory, database, writes, {"device": {"workers": 2}, **(sections or {})})
    without = "a" if "no daemon" in endpoint else ""
    return OpenSSHCluster(directory, database, writes, sections, without_daemon=without)


@pytest.fixture
def make_cluster(
    endpoint: str, database_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Cluster]]:
    """Make a cluster of real devices on loopback: make_cluster("abc"), or with `start=""` to start some later.

    sections: tables of the devices' configuration: make_cluster("a", sections={"limits": {"push_refs": 3}}).
    """
    made: list[Cluster] = []

    def make(
        names: str = "abc",
        *,
        start: str | None = None,
        sections: Mapping[str, Mapping[str, str | int]] | None = None,
        **writes: str,
    ) -> Cluster:
        folder, http = tmp_path / f"cluster{len(made)}", serves_http(request)
        cluster = new_cluster(endpoint, folder, database_url, writes, sections, http=http)
        made.append(cluster)
        cluster.set_up(list(names))
        for name in names if start is None else start:
            cluster.start(name)
        return cluster

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """Three devices a, b and c that are up, and one empty repository team/app on all of them."""
    cluster = make_cluster("abc")
    cluster.create("team/app")
    return cluster


@pytest.fixture(scope="module")
def devices(
    endpoint: str, postgres: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Cluster]:
    """Devices a, b and c that are up, shared by a file whose tests break nothing and have a repository each."""
    folder = tmp_path_factory.mktemp("devices") / "cluster"
    with new_database(postgres) as url:
        cluster = new_cluster(endpoint, folder, url, {}, http=serves_http(request))
        try:
            cluster.set_up(list("abc"))
            for device in "abc":
                cluster.start(device)
            yield cluster
        finally:
            cluster.close()


@pytest.fixture
def app(devices: Cluster, request: pytest.FixtureRequest) -> Project:
    """A repository named after the test, with min_copies 2, and a working copy with one commit on main."""
    return Project.named(devices, request.node.name, min_copies=2)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An SSH endpoint and its keys. Whatever thread it started has ended when the test has."""
    before = set(threading.enumerate())
    place = Place(tmp_path)
    yield place
    place.handlers.go.set()
    place.server.close(5)

    def left() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread not in before and thread.is_alive()]

    until(lambda: not left(), f"no thread is left over: {left()}")


@pytest.fixture
def peers(place: Place) -> Iterator[Peers]:
    """The connections of a device whose key that endpoint knows."""
    peers = Peers.from_file(place.folder / "user")
    yield peers
    peers.close()


@pytest.fixture
def origin(place: Place, tmp_path: Path) -> Path:
    """A bare repository of some megabytes, served as git/origin."""
    work = tmp_path / "work"
    work.mkdir()
    git("init", "-q", cwd=work)
    for number in range(30):
        (work / "file").write_bytes(os.urandom(200_000))
        git("add", ".", cwd=work)
        git("commit", "-qm", f"number {number}", cwd=work)
    git("clone", "-q", "--bare", ".", str(tmp_path / "origin.git"), cwd=work)
    place.handlers.repositories["git/origin"] = tmp_path / "origin.git"
    return tmp_path / "origin.git"
