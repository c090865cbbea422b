"""`python -m tests.bench.explain`: what each statement costs with a thousand and with a million repositories, and how
PostgreSQL goes about those of the hot path. Writes docs/plans.md.

    python -m tests.bench.explain                 a million; about five minutes and 6 GB
    python -m tests.bench.explain --many 100000   fewer
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from cluster import embedded
from cluster.db import Database
from tests.bench import machine, statements, things
from tests.bench.statements import Statement

FEW, MANY = 1000, 1_000_000
WARM, ROUNDS = 8, 25

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "plans.md"

HEAD = """# What each statement costs, and how PostgreSQL goes about it

Made by `python -m tests.bench.explain` on {today}: {cpu}, {cores} cores, PostgreSQL {postgres}, caches warm.
[scale.md](scale.md) says what it means. `tests/test_plans.py` fails where a statement of the hot path, of the sweeps or
of the status page reads a large table from one end to the other.

## Costs

Milliseconds, with {few:,} and with {many:,} repositories of three replicas each.

| statement | when | {few:,} | {many:,} | ratio | |
|---|---|--:|--:|--:|---|
"""

LARGE = (
    "access_grant|actor|actor_group|copies|event|group_member|key|push|push_ref|ref_rule|replica|repository|token|"
    "web_session|webhook"
)
"""Tables that grow with what there is: with repositories, users, pushes."""

SCAN = re.compile(rf"Seq Scan on ({LARGE})\b")


@contextmanager
def opened(url: str) -> Iterator[Database]:
    """On one connection, so that statements are prepared on it."""
    with Database(url, connections=1).open() as db:
        yield db


def plans(url: str, statement: Statement) -> list[tuple[str, str]]:
    """What it asks, and the plan of each: EXPLAIN (ANALYZE, BUFFERS). What that did is taken back before it is run."""
    seen: list[tuple[str, str]] = []

    class Explaining(psycopg.Cursor[Any]):
        def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
            if re.match(r"\s*(select|with|insert|update|delete)\b", query) and "_lock(" not in query:
                with psycopg.Cursor(self.connection, row_factory=tuple_row) as cursor:
                    with self.connection.transaction(force_rollback=True):
                        cursor.execute(f"explain (analyze, buffers, timing off, summary off) {query}", params)
                        plan = "\n".join(line for (line,) in cursor.fetchall())
                    if "Scan" in plan:
                        seen.append((query, plan))
            return super().execute(query, params, **options)

    with opened(url) as db:
        for pool in (db._pool, db._lock_pool):
            link = pool.take()
            link.cursor_factory = Explaining
            pool.give(link)
        statement.ask(db)
    return seen


def cost(dbs: tuple[Database, Database], statement: Statement) -> tuple[float, float]:
    """Seconds with few and with many: lower quartiles of runs in turn; one run each, where it takes seconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(WARM + ROUNDS):
        for db, took in zip(dbs, times, strict=True):
            begun = time.perf_counter()
            statement.ask(db)
            took.append(time.perf_counter() - begun)
        if number == 0 and times[1][0] > 1.0:
            return times[0][0], times[1][0]
    few, many = (statistics.quantiles(took[WARM:], n=4)[0] for took in times)
    return few, many


def sizes(url: str) -> list[tuple[str, int, int, int]]:
    """Of each table with more than a megabyte: its name, rows, and bytes, and those of each of its indexes."""
    with psycopg.connect(url) as connection:
        return connection.execute(
            """select * from (
                   select c.relname::text as name, c.reltuples::bigint as rows, pg_relation_size(c.oid) as bytes,
                          case c.relkind when 'r' then c.oid else i.indrelid end::bigint as of
                     from pg_class c left join pg_index i on i.indexrelid = c.oid
                    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'i')) s
                where bytes > 1000000
                order by (select relname from pg_class where oid = s.of), name <> (
                          select relname from pg_class where oid = s.of), name"""
        ).fetchall()


def document(few: str, many: str, count: int) -> Iterator[str]:
    """docs/plans.md, piece by piece."""
    facts = machine.facts(few)
    yield HEAD.format(
        today=machine.today(),
        cpu=facts["cpu"],
        cores=facts["cores"],
        postgres=facts["postgres"],
        few=FEW,
        many=count,
    )
    with opened(few) as a, opened(many) as b:
        groups = (statements.HOT, statements.SWEEP, statements.LOOKS, statements.GROWS)
        for each in (each for group in groups for each in group):
            small, large = cost((a, b), each)
            note = f"grows: {each.grows}" if each.grows else ""
            row = (
                each.name,
                each.when,
                f"{small * 1000:.2f}",
                f"{large * 1000:.2f}",
                f"{large / small:.2f}",
                note,
            )
            yield f"| {' | '.join(row)} |\n"
    yield f"\n## Sizes with {count:,} repositories\n\n| table, or index of it | rows | MB |\n|---|--:|--:|\n"
    for name, rows, size, _ in sizes(many):
        yield f"| `{name}` | {rows:,} | {size / 1e6:,.0f} |\n"
    yield f"\n## Plans with {count:,} repositories\n\nOf the hot path and the sweeps; one for each statement.\n"
    for each in (*statements.HOT, *statements.SWEEP):
        yield f"\n### {each.name}\n" + (f"\n{each.when[0].upper()}{each.when[1:]}.\n" if each.when else "")
        for _, plan in plans(many, each):
            yield f"\n```text\n{plan}\n```\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.explain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--many", type=int, default=MANY, help="repositories")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = Path(tempfile.mkdtemp(prefix="git-cluster-explain-"))
    try:
        url = embedded.start(directory / "postgres")
        few, many = (things.database(url, name, n) for name, n in (("few", FEW), ("many", options.many)))
        DOCUMENT.write_text("".join(document(few, many, options.many)))
    finally:
        embedded.stop(directory / "postgres")
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
