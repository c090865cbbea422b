"""A PostgreSQL of a test's own: to be stopped, crashed, copied to a standby, promoted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import psycopg

from cluster import embedded


class OwnPostgres:
    """A server in `directory`, on a Unix socket there; running from the first on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = embedded.start(directory)

    @property
    def socket(self) -> Path:
        """The socket itself, for a proxy in front of it."""
        (folder,) = parse_qs(urlsplit(self.url).query)["host"]
        return Path(folder) / ".s.PGSQL.5432"

    def start(self) -> None:
        assert embedded.start(self.directory) == self.url

    def stop(self) -> None:
        embedded.stop(self.directory)

    def crash(self) -> None:
        embedded.crash(self.directory)

    def execute(self, *statements: str) -> None:
        """Statements of the server's superuser, outside any database of a cluster."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    @contextmanager
    def database(self) -> Iterator[str]:
        """The name of an empty database, there while inside; the server runs again afterwards."""
        name = f"test_{uuid4().hex[:12]}"
        self.execute(f"create database {name}")
        yield name
        self.start()
        self.execute(f"drop database if exists {name} with (force)")

    def reach(self, database: str) -> str:
        """The URL of one of its databases."""
        return self.url.replace("/postgres?", f"/{database}?", 1)

    def standby(self, directory: Path) -> OwnPostgres:
        """A hot standby of it, which has everything that it commits from now on before it says so."""
        server = embedded._Server(directory)
        directory.mkdir(mode=0o700)
        server._let_in(directory)
        options = "--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast"
        server._run("pg_basebackup", "--dbname", self.url, "--pgdata", str(directory), *options)
        standby = OwnPostgres(directory)
        self.execute("alter system set synchronous_standby_names = '*'", "select pg_reload_conf()")
        return standby

    def promote(self) -> None:
        """Make a standby the server that takes writes."""
        self.execute("select pg_promote()")
