"""Fixtures for the real parts: a PostgreSQL for each worker, a database and a cluster for each test that asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from cluster import embedded
from tests.cluster_fixture import Cluster


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an embedded PostgreSQL that this worker's tests share."""
    directory = tmp_path_factory.mktemp("postgres") / "data"
    yield embedded.start(directory)
    embedded.stop(directory)


@pytest.fixture
def database_url(postgres: str) -> Iterator[str]:
    """The URL of an empty database of this test's own."""
    name = f"test_{uuid4().hex[:12]}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"create database {name}")  # type: ignore[arg-type]
    yield postgres.replace("/postgres?", f"/{name}?", 1)
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"drop database if exists {name} with (force)")  # type: ignore[arg-type]


@pytest.fixture
def make_cluster(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Make a cluster of real devices on loopback: make_cluster("abc"), or with `start=""` to start some later."""
    made: list[Cluster] = []

    def make(names: str = "abc", *, start: str | None = None, **writes: str) -> Cluster:
        cluster = Cluster(tmp_path / f"cluster{len(made)}", database_url, writes)
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
