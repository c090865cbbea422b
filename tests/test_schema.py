"""schema.sql and the upgrades: a database that grew up is the same as one that was born yesterday."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from cluster.db import Database
from cluster.errors import SchemaMismatch

FIRST = (Path(__file__).parent / "schema_1.sql").read_text()


def described(url: str) -> list[tuple[str, ...]]:
    """Columns in their order, constraints, indexes, triggers, functions and enums, as PostgreSQL tells them."""
    with psycopg.connect(url) as connection:
        return connection.execute(
            """select 'column', table_name, ordinal_position::text, column_name, udt_name,
                      concat_ws(' ', is_nullable, column_default, is_identity, generation_expression)
                 from information_schema.columns where table_schema = 'public'
                union all
               select 'constraint', conrelid::regclass::text, '', '', contype::text, pg_get_constraintdef(oid)
                 from pg_constraint where connamespace = 'public'::regnamespace
                union all
               select 'index', tablename, '', '', '', indexdef from pg_indexes where schemaname = 'public'
                union all
               select 'trigger', tgrelid::regclass::text, '', '', '', pg_get_triggerdef(oid)
                 from pg_trigger where not tgisinternal
                union all
               select 'function', proname, '', '', '', pg_get_functiondef(oid)
                 from pg_proc where pronamespace = 'public'::regnamespace
                union all
               select 'enum', t.typname, '', '', '', string_agg(enumlabel, ' ' order by enumsortorder)
                 from pg_enum e join pg_type t on t.oid = e.enumtypid group by t.typname
                order by 1, 2, 3, 4, 5, 6"""
        ).fetchall()


def test_an_upgraded_database_is_a_new_one(database_url: str) -> None:
    """From schema 1, with content in it: `init` keeps what is there, and says what it did; twice is once."""
    with psycopg.connect(database_url) as connection:
        connection.execute(FIRST)
        connection.execute("insert into cluster (schema_version, name) values (1, 'old')")
        connection.execute(
            "insert into device (name, ssh_url, host_key) values ('old', 'ssh://git@old', 'k')"
        )
    with pytest.raises(SchemaMismatch):
        Database(database_url).open()
    with Database(database_url).open(any_schema=True) as db:
        assert db.init("old") == "upgraded"
        assert db.init("old") == "unchanged"
    upgraded = described(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("drop schema public cascade")
        connection.execute("create schema public")
    with Database(database_url).open(any_schema=True) as db:
        assert db.init("new") == "created"
    assert described(database_url) == upgraded


def test_what_was_demoted_stays_demoted(database_url: str) -> None:
    """Schema 1 told it by the first word of a sentence."""
    with psycopg.connect(database_url) as connection:
        connection.execute(FIRST)
        connection.execute("insert into cluster (schema_version, name) values (1, 'old')")
        connection.execute(
            """insert into device (name, ssh_url, host_key)
               select name, 'ssh://git@' || name, 'k' from unnest(array['a', 'b', 'c']) name"""
        )
        connection.execute(
            "insert into repository (name, checksum, min_copies) values ('app', decode(repeat('00', 128), 'hex'), 1)"
        )
        connection.execute(
            """insert into push (repository_id, version, checksum, push_id, actor, device, via)
               values (1, 0, decode(repeat('00', 128), 'hex'), gen_random_uuid(), 'x', 'a', 'create')"""
        )
        connection.execute(
            """insert into replica (repository_id, device_id, quarantined)
               select 1, id, case name when 'a' then 'demoted by an administrator'
                                       when 'b' then 'its refs cannot be read' end from device"""
        )
    with Database(database_url).open(any_schema=True) as db:
        db.init("old")
        replicas = {r.device.name: (bool(r.quarantined), r.demoted) for r in db.snapshot("app").replicas}
    assert replicas == {"a": (True, True), "b": (True, False), "c": (False, False)}


def test_what_follows_from_other_rows_is_filled_in(database_url: str) -> None:
    """Schema 5 keeps the newest version on each replica, and counts; what was there before has them, too."""
    with psycopg.connect(database_url) as connection:
        connection.execute(FIRST)
        connection.execute("insert into cluster (schema_version, name) values (1, 'old')")
        connection.execute(
            """insert into device (name, ssh_url, host_key, last_seen_at)
               select name, 'ssh://git@' || name, 'k', now() + interval '1 hour' from unnest(array['a', 'b']) name"""
        )
        connection.execute(
            """insert into repository (name, checksum, min_copies, version)
               select name, decode(repeat('00', 128), 'hex'), 1, 1 from unnest(array['app', 'lib', null]) name"""
        )
        connection.execute(
            """insert into push (repository_id, version, checksum, push_id, actor, device, via)
               select id, v, checksum, gen_random_uuid(), 'x', 'a', 'ssh' from repository, generate_series(0, 1) v"""
        )
        connection.execute(
            """insert into replica (repository_id, device_id, version, checksum)
               select p.id, d.id, case when d.name = 'a' then 1 when p.name = 'lib' then 0 end,
                      case when d.name = 'a' or p.name = 'lib' then p.checksum end from repository p, device d"""
        )
    with Database(database_url).open(any_schema=True) as db:
        db.init("old")
        assert db.how_many() == 2 and db.loads() == {"a": 2, "b": 2}
        assert db.unfit("a") == [] and db.unfit("b") == [1, 2]
        assert db.dropped("a") == [3]
