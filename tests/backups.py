"""Backups of the cluster's database, made and put back while devices are up or down.

PostgreSQL copies the database itself (`create database … template …`): what comes back is what pg_dump and pg_restore
would make, and needs no client programs of the same version.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg

from tests.cluster_fixture import Cluster


class Backup:
    """What a cluster's database was when this was made."""

    def __init__(self, cluster: Cluster) -> None:
        self._name = urlsplit(cluster.database).path.lstrip("/")
        self._copy = f"{self._name}_backup"
        self._server = cluster.database.replace(f"/{self._name}?", "/postgres?", 1)
        with self._alone() as connection:
            connection.execute(f"create database {self._copy} template {self._name}".encode())

    def restore(self) -> None:
        """Put it back. Devices that are up lose their connections, as in a fail-over, and come back to this."""
        with self._alone() as connection:
            connection.execute(f"drop database {self._name} with (force)".encode())
            connection.execute(f"create database {self._name} template {self._copy}".encode())

    def drop(self) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(f"drop database if exists {self._copy} with (force)".encode())

    @contextmanager
    def _alone(self) -> Iterator[psycopg.Connection]:
        """A connection to the server while nobody is in the database, nor can come in."""
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(f"alter database {self._name} allow_connections false".encode())
            connection.execute(
                "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = %s",
                (self._name,),
            )
            try:
                yield connection
            finally:
                connection.execute(f"alter database {self._name} allow_connections true".encode())
