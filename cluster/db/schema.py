"""schema.sql: where it is, whether the database has it, and how it gets there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, LiteralString

import psycopg

from cluster.errors import SchemaMismatch

SCHEMA_VERSION = 5
"""The schema that this program speaks. schema.sql is this version; older ones are upgraded by `init`."""

UPGRADES: dict[int, LiteralString] = {
    1: """
alter table device add column up_since timestamptz;
create type distrust as enum ('damaged', 'demoted');
alter table replica
    add column distrust distrust,
    add column verified_at timestamptz,
    add column damage text,
    add column marker_version bigint,
    add column marker_checksum text;
update replica set distrust = case when quarantined like 'demoted%' then 'demoted' else 'damaged' end::distrust
 where quarantined is not null;
alter table replica
    add check ((quarantined is null) = (distrust is null)),
    add check ((marker_version is null) = (marker_checksum is null));
create type event_kind as enum ('heal', 'fence', 'thaw', 'freeze', 'quarantine', 'rebuild', 'damage', 'restore');
create table event (
    repository_id bigint not null references repository on delete cascade,
    id            bigint generated always as identity,
    at            timestamptz not null default now(),
    version       bigint not null,
    kind          event_kind not null,
    device        text not null,
    what          text not null,
    refs          jsonb not null default '[]',
    primary key (repository_id, id)
);
""",
    2: """
alter table device add column zone text not null default '' check (zone ~ '^([a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?)?$');
alter table actor add column disabled_at timestamptz;
create table actor_group (
    id         bigint generated always as identity primary key,
    name       text not null unique check (name ~ '^[A-Za-z0-9]([A-Za-z0-9._+-]{0,62}[A-Za-z0-9])?$'),
    created_at timestamptz not null default now()
);
create table group_member (
    group_id bigint not null references actor_group on delete cascade,
    actor_id bigint not null references actor on delete cascade,
    primary key (group_id, actor_id)
);
create index group_member_actor on group_member (actor_id);
alter table access_grant
    add column group_id bigint references actor_group on delete cascade,
    add column wildcard boolean not null generated always as (strpos(pattern, '*') > 0) stored,
    drop constraint access_grant_actor_id_pattern_key,
    add constraint access_grant_once unique nulls not distinct (actor_id, group_id, pattern),
    add constraint access_grant_to_one check (num_nonnulls(actor_id, group_id) <= 1);
create index access_grant_name on access_grant (pattern) where not wildcard;
create index access_grant_wildcard on access_grant (actor_id, group_id) where wildcard;
create type ref_action as enum ('create', 'push', 'force', 'delete');
create table ref_rule (
    actor_id    bigint references actor on delete cascade,
    group_id    bigint references actor_group on delete cascade,
    pattern     text not null,
    ref_pattern text not null,
    may         ref_action[] not null,
    created_at  timestamptz not null default now(),
    wildcard    boolean not null generated always as (strpos(pattern, '*') > 0) stored,
    constraint ref_rule_once unique nulls not distinct (actor_id, group_id, pattern, ref_pattern),
    constraint ref_rule_to_one check (num_nonnulls(actor_id, group_id) <= 1)
);
create index ref_rule_name on ref_rule (pattern) where not wildcard;
create index ref_rule_wildcard on ref_rule (actor_id, group_id) where wildcard;
create table placement_rule (
    pattern    text primary key,
    copies     integer not null check (copies between 1 and 9),
    min_copies integer check (min_copies between 1 and copies),
    created_at timestamptz not null default now()
);
alter table replica add column moves_to bigint references device on delete set null;
create index replica_moves_to on replica (moves_to) where moves_to is not null;
""",
    3: """
alter table device add column disk_total bigint, add column disk_free bigint;
create table token (
    id             bigint generated always as identity primary key,
    digest         bytea not null unique check (length(digest) = 32),
    actor_id       bigint not null references actor on delete cascade,
    comment        text not null default '',
    read_only      boolean not null,
    expires_at     timestamptz,
    created_at     timestamptz not null default now(),
    last_used_at   timestamptz,
    last_used_from text
);
create index token_actor on token (actor_id);
create table web_session (
    digest     bytea primary key check (length(digest) = 32),
    token_id   bigint not null references token on delete cascade,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null
);
create index web_session_token on web_session (token_id);
alter table push add column number bigint;
create sequence push_number;
create unique index push_by_number on push (number) where number is not null;
create index push_unnumbered on push (at) where number is null;
create index push_lately on push (at);
create index event_lately on event (at);
create table webhook (
    id            bigint generated always as identity primary key,
    repository_id bigint not null references repository on delete cascade,
    url           text not null,
    secret        text not null,
    enabled       boolean not null default true,
    delivered     bigint not null,
    created_at    timestamptz not null default now(),
    created_by    text not null,
    leased_until  timestamptz,
    leased_by     text,
    delivered_at  timestamptz,
    attempts      integer not null default 0,
    last_error    text,
    last_status   integer,
    next_try_at   timestamptz,
    unique (repository_id, url)
);
create table measurement (
    device_id bigint not null references device on delete cascade,
    at        timestamptz not null,
    pushes    integer not null default 0,
    reads     integer not null default 0,
    failures  integer not null default 0,
    push_p50  real,
    push_p99  real,
    read_p50  real,
    read_p99  real,
    behind    integer not null default 0,
    lag       real,
    primary key (device_id, at)
);
create index measurement_at on measurement (at);
create table copies (
    repository_id bigint not null references repository on delete cascade,
    at            timestamptz not null default now(),
    copies        integer not null,
    wanted        integer not null,
    primary key (repository_id, at)
);
""",
    # On a live cluster: from the first statement to the end, all in one transaction, nobody else can read or write
    # `repository`, `replica` and `webhook`: requests wait, as for a database that is away, and go on. `repository` and
    # `replica` are written twice and their indexes built anew; docs/scale.md says how long that takes. Devices that
    # still run the program before this one go on working afterwards: what is new is kept by triggers.
    4: """
lock table repository, replica, webhook in access exclusive mode;
alter table repository add column replicas integer not null default 0;
update repository p set replicas = r.count
  from (select repository_id, count(*) as count from replica group by repository_id) r where r.repository_id = p.id;
alter table repository
    add column unfit boolean not null generated always as (frozen is not null or replicas < min_copies) stored;
create index repository_unfit on repository (id) where unfit;
create index repository_deleted on repository (id) where name is null;
drop index replica_of_device;
alter table replica add column newest bigint;
update replica r set newest = p.version from repository p where p.id = r.repository_id;
alter table replica
    alter column newest set not null,
    add column unfit boolean not null generated always as (
        version is distinct from newest or quarantined is not null or intent_token is not null
        or marker_version is not null or damage is not null) stored;
create index replica_of_device on replica (device_id, repository_id);
create index replica_unfit on replica (device_id, next_try_at nulls first, repository_id) where unfit;
create index replica_verified on replica (device_id, verified_at nulls first) where not unfit;
create index replica_damaged on replica (device_id) where damage is not null;
alter table webhook add column newest bigint;
update webhook w set newest = p.version from repository p where p.id = w.repository_id;
alter table webhook
    alter column newest set not null,
    add column due boolean not null generated always as (enabled and delivered < newest) stored;
create index webhook_due on webhook (id) where due;
create index key_operator on key (expires_at) where actor_id is null and device_id is null;
create index web_session_over on web_session (expires_at);
create table counted (
    device_id bigint references device on delete cascade,
    shard     integer not null,
    count     bigint not null,
    constraint counted_once unique nulls not distinct (device_id, shard)
);
create function count_in(device bigint, more bigint) returns void language sql as $$
    insert into counted (device_id, shard, count) values (device, pg_backend_pid() % 8, more)
        on conflict on constraint counted_once do update set count = counted.count + excluded.count;
$$;
create function repository_turned() returns trigger language plpgsql as $$
begin
    update replica set newest = new.version where repository_id = new.id and newest <> new.version;
    update webhook set newest = new.version where repository_id = new.id and newest <> new.version;
    return null;
end $$;
create trigger repository_turned after update of version on repository
    for each row when (new.version <> old.version) execute function repository_turned();
create function repository_counted() returns trigger language plpgsql as $$
declare
    more bigint := case when tg_op = 'INSERT' or (tg_op = 'UPDATE' and new.name is not null) then 1 else -1 end;
begin
    perform count_in(null, more);
    if tg_op <> 'INSERT' then
        perform count_in(r.device_id, more)
           from (select device_id from replica where repository_id = old.id order by device_id) r;
    end if;
    return coalesce(new, old);
end $$;
create trigger repository_made after insert on repository
    for each row when (new.name is not null) execute function repository_counted();
create trigger repository_deleted after update of name on repository
    for each row when ((new.name is null) <> (old.name is null)) execute function repository_counted();
create trigger repository_gone before delete on repository
    for each row when (old.name is not null) execute function repository_counted();
create function replica_begins() returns trigger language plpgsql as $$
begin
    select version into new.newest from repository where id = new.repository_id for no key update;
    return new;
end $$;
create trigger replica_begins before insert on replica for each row execute function replica_begins();
create function replica_counted() returns trigger language plpgsql as $$
declare
    more   integer := case when tg_op = 'INSERT' then 1 else -1 end;
    moved  replica := case when tg_op = 'INSERT' then new else old end;
    named  boolean;
begin
    update repository set replicas = replicas + more where id = moved.repository_id
        returning name is not null into named;
    if named then -- null: the repository is gone, and took this with it
        perform count_in(moved.device_id, more);
    end if;
    return null;
end $$;
create trigger replica_counted after insert or delete on replica for each row execute function replica_counted();
insert into counted (device_id, shard, count) select null, 0, count(*) from repository where name is not null;
insert into counted (device_id, shard, count)
    select r.device_id, 0, count(*) from replica r join repository p on p.id = r.repository_id and p.name is not null
     group by r.device_id;
""",
}
"""For each older schema, the statements that make the next one of it. `init` runs them in one transaction."""

Connection = psycopg.Connection[dict[str, Any]]


def schema_file() -> Path:
    """schema.sql: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "schema.sql"
    return inside if inside.exists() else package.parent / "schema.sql"


def schema_version_of(connection: psycopg.Connection[Any]) -> int | None:
    row = connection.execute("select to_regclass('cluster') is not null as there").fetchone()
    if not row or not row["there"]:
        return None
    try:
        row = connection.execute("select schema_version from cluster").fetchone()
    except psycopg.errors.UndefinedColumn:
        row = None
    if row is None or not isinstance(row["schema_version"], int):
        raise SchemaMismatch(
            "the database has a table `cluster` that is not git-cluster's",
            hint="give git-cluster a database of its own",
        )
    return int(row["schema_version"])


def upgrade(connection: Connection, found: int) -> None:
    """Bring an older schema to ours, step by step, within the caller's transaction."""
    if found > SCHEMA_VERSION:
        check_schema(found)
    for version in range(found, SCHEMA_VERSION):
        if version not in UPGRADES:
            raise SchemaMismatch(
                f"the database has schema {found}, which this program cannot upgrade",
                hint="upgrade it with the git-cluster release that came after the one that made it",
            )
        connection.execute(UPGRADES[version])
    connection.execute("update cluster set schema_version = %s", (SCHEMA_VERSION,))


def check_schema(found: int | None) -> None:
    if found is None:
        raise SchemaMismatch("the database has no git-cluster schema yet", hint="run `git-cluster init` once")
    if found > SCHEMA_VERSION:
        raise SchemaMismatch(
            f"the database has schema {found}, newer than this program's {SCHEMA_VERSION}",
            hint="upgrade git-cluster on this machine",
        )
    if found < SCHEMA_VERSION:
        raise SchemaMismatch(
            f"the database has schema {found}, older than this program's {SCHEMA_VERSION}",
            hint="run `git-cluster init` to upgrade it",
        )
