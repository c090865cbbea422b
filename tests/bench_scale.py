"""Logins and access checks with 100,000 of everything, against the same with 10: `python -m tests.bench_scale`.

Two databases on one PostgreSQL are asked in turn, A B A B …, on one connection each, after statements have been
prepared; the ratio is that of the lower quartiles, as this machine may be busy. Everything: users, keys, repositories
with two replicas, grants and rules. One row grants each user a repository of their own, the other grants all of them
the one that is asked for. Each is measured as it is right after the rows came, and again once PostgreSQL has statistics
of them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg

from cluster import embedded
from cluster.db import Database
from cluster.errors import NotFound
from cluster.model import Actor, ActorKind

FEW, MANY = 10, 100_000
WARM, ROUNDS = 20, 500
TARGET = 1.5

FILL = """
set session_replication_role = replica;
insert into actor (name) select 'u' || i from generate_series(1, {n}) i;
insert into key (fingerprint, public_key, actor_id) select 'SHA256:' || name, 'x', id from actor;
insert into device (name, ssh_url, host_key, last_seen_at)
    values ('a', 'ssh://a', 'k', now()), ('b', 'ssh://b', 'k', now());
insert into repository (name, checksum, min_copies)
    select 'team/u' || i, decode(repeat('00', 128), 'hex'), 1 from generate_series(1, {n}) i;
insert into push (repository_id, version, checksum, push_id, actor, device, via)
    select id, 0, checksum, gen_random_uuid(), 'x', 'a', 'create' from repository;
insert into replica (repository_id, device_id, version, checksum)
    select r.id, d.id, 0, r.checksum from repository r, device d;
insert into access_grant (actor_id, pattern, level) select id, {exact}, 'write' from actor;
insert into access_grant (actor_id, pattern, level)
    select id, 'own/' || name || '/*', 'write' from actor where id % 10 = 0;
insert into access_grant (pattern, level) select 'public' || i || '/*', 'read' from generate_series(1, 10) i;
insert into actor_group (name) select 'g' || i from generate_series(1, {n} / 10) i;
insert into group_member select 1 + id % ({n} / 10), id from actor;
insert into access_grant (group_id, pattern, level) select id, 'group/' || name || '/*', 'read' from actor_group;
insert into access_grant (group_id, pattern, level) select id, 'team/u5', 'read' from actor_group;
insert into ref_rule (pattern, ref_pattern, may) values ('team/*', 'refs/heads/main', '{{create,push}}');
insert into ref_rule (actor_id, pattern, ref_pattern, may) select id, {exact}, 'refs/heads/main', '{{push}}' from actor;
"""

ANN = Actor(ActorKind.USER, "u5", "SHA256:u5")


def filled(url: str, name: str, n: int, exact: str) -> Database:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    url = url.replace("/postgres?", f"/{name}?", 1)
    with Database(url).open(any_schema=True) as db:
        db.init("scale")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(FILL.format(n=n, exact=exact))
    return Database(url, connections=1).open()


def analyzed(db: Database) -> None:
    """As autovacuum does by itself, within a minute."""
    with psycopg.connect(db.url, autocommit=True) as connection:
        connection.execute("analyze")


def compare(name: str, ask: Callable[[Database], object], few: Database, many: Database) -> None:
    """Print the ratio many/few."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(WARM + ROUNDS):
        for db, took in zip((few, many), times, strict=True):
            begun = time.perf_counter()
            ask(db)
            if number >= WARM:
                took.append(time.perf_counter() - begun)
    small, large = (statistics.quantiles(took, n=4)[0] for took in times)
    verdict = "met" if large / small <= TARGET else "NOT met"
    print(
        f"{name:52} {large / small:5.2f}   ≤ {TARGET:.2f} {verdict:8}"
        f" {large * 1000:7.3f} ms against {small * 1000:7.3f} ms",
        flush=True,
    )


def login(db: Database) -> None:
    assert db.identity("SHA256:u5")


def access(db: Database) -> None:
    assert db.snapshot("team/u5", ANN).grants


def missing(db: Database) -> None:
    with suppress(NotFound):
        db.snapshot("team/none", ANN)
        raise AssertionError


def main() -> None:
    argparse.ArgumentParser(prog="python -m tests.bench_scale", description=__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="git-cluster-bench-") as directory:
        postgres = Path(directory) / "postgres"
        url = embedded.start(postgres)
        try:
            for what, exact in (("each a grant", "'team/' || name"), ("all on one", "'team/u5'")):
                word = what.split()[0]
                few, many = (filled(url, f"{word}_{n}", n, exact) for n in (FEW, MANY))
                with few, many:
                    for when in ("new", "analyzed"):
                        if when == "analyzed":
                            analyzed(few)
                            analyzed(many)
                        compare(f"login, {what}, {when}", login, few, many)
                        compare(f"access to a repository, {what}, {when}", access, few, many)
                        compare(f"access to one that is not there, {what}, {when}", missing, few, many)
        finally:
            embedded.stop(postgres)


if __name__ == "__main__":
    main()
