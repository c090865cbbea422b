"""A database full of things: repositories with three replicas each, users, keys, tokens, grants, pushes.

Written with PostgreSQL's triggers and foreign keys off (session_replication_role), so what those would keep is written
here. Whatever the number of repositories, the same few of them are not as they should be, and as much happened lately.
"""

from __future__ import annotations

import psycopg

from cluster.db import Database

DEVICES = 12
TROUBLED = 20
"""Repositories that are behind, frozen, quarantined, damaged or in the middle of a write."""

_SETTINGS = """
set session_replication_role = replica;
set synchronous_commit = off;
set maintenance_work_mem = '256MB';
set work_mem = '128MB';
"""

_FILL = """
insert into device (name, ssh_url, http_url, host_key, last_seen_at, up_since)
    select 'd' || i, 'ssh://git@d' || i, 'https://d' || i, 'ssh-ed25519 k' || i, now() + interval '1 day', now()
      from generate_series(1, {devices}) i;
insert into device (name, ssh_url, host_key) values ('spare', 'ssh://git@spare', 'ssh-ed25519 spare');
insert into key (fingerprint, public_key, device_id)
    select 'SHA256:device' || id, 'ssh-ed25519 k' || id, id from device;
insert into actor (name) select 'u' || i from generate_series(1, {users}) i;
insert into key (fingerprint, public_key, actor_id) select 'SHA256:' || name, 'ssh-ed25519 x', id from actor;
insert into token (digest, actor_id, read_only, last_used_at, last_used_from)
    select sha256(name::bytea), id, false, now(), '192.0.2.1' from actor;
insert into web_session (digest, token_id, expires_at)
    select sha256(('session of ' || id)::bytea), id, now() + interval '1 day' from token;
insert into actor_group (name) select 'g' || i from generate_series(1, greatest(1, {users} / 2)) i;
insert into group_member select 1 + id % greatest(1, {users} / 2), id from actor;
insert into access_grant (actor_id, pattern, level) select id, 'team5/app5', 'write' from actor;
insert into access_grant (actor_id, pattern, level) select id, 'team' || id % 1000 || '/app' || id, 'write' from actor
    where id <> 5;
insert into access_grant (actor_id, pattern, level)
    select id, 'own/' || name || '/*', 'write' from actor where id % 10 = 0;
insert into access_grant (pattern, level) select 'public' || i || '/*', 'read' from generate_series(1, 10) i;
insert into access_grant (group_id, pattern, level) select id, 'group/' || name || '/*', 'read' from actor_group;
insert into access_grant (actor_id, pattern, level) values (1, '*', 'admin');
insert into ref_rule (pattern, ref_pattern, may) values ('team5/*', 'refs/heads/main', '{{create,push}}');
insert into ref_rule (actor_id, pattern, ref_pattern, may)
    select id, 'team5/app5', 'refs/heads/main', '{{push}}' from actor;

insert into repository (name, checksum, min_copies, version, created_at, replicas, frozen, frozen_at)
    select 'team' || i % 1000 || '/app' || i, decode(repeat('5a', 128), 'hex'), 2,
           case when i <= {pushed} then 10 else 0 end, now() - interval '1 year' + make_interval(secs => i % 31000000),
           3, case when i between 17 and 20 then 'for a reason' end, case when i between 17 and 20 then now() end
      from generate_series(1, {n}) i;
insert into push (repository_id, version, checksum, push_id, actor, device, via, at, number)
    select id, 0, checksum, gen_random_uuid(), 'operator', '', 'create', created_at, id from repository order by id;
insert into push (repository_id, version, checksum, push_id, actor, device, via, address, at, number)
    select id, v, checksum, gen_random_uuid(), 'u' || id, 'd1', 'ssh', '192.0.2.1',
           now() - make_interval(secs => 7200 * (11 - v)) + make_interval(secs => id), {n} + (v - 1) * {pushed} + id
      from repository, generate_series(1, 10) v where id <= {pushed} order by v, id;
select setval('push_number', (select max(number) from push));
insert into push_ref (repository_id, version, ref, old, new)
    select id, 0, 'HEAD', '', 'ref: refs/heads/main' from repository order by id;
insert into push_ref (repository_id, version, ref, old, new)
    select repository_id, version, 'refs/heads/main', lpad(to_hex(version - 1), 40, '0'), lpad(to_hex(version), 40, '0')
      from push where version > 0;

create temporary table placed as
    select p.id, 1 + (p.id + d * (1 + p.id / {devices} % 3)) % {devices} as device, d
      from repository p, generate_series(0, 2) d;
insert into replica (repository_id, device_id, version, checksum, newest, synced_at, verified_at, attempts, last_error,
                     quarantined, distrust, damage, intent_token, intent_push, intent_actor, intent_via, intent_address,
                     intent_at, intent_refs)
    select p.id, t.device, p.version - behind, p.checksum, p.version, now(),
           now() - make_interval(secs => p.id % 500000),
           case when behind > 0 then 2 else 0 end, case when behind > 0 then 'no device answers' end,
           quarantined, case when quarantined is not null then 'damaged'::distrust end, damage,
           case when intent then gen_random_uuid() end, case when intent then gen_random_uuid() end,
           case when intent then 'u5' end, case when intent then 'ssh' end, case when intent then '' end,
           case when intent then now() - interval '1 minute' end,
           case when intent then '[["refs/heads/main", "1", "2"]]'::jsonb end
      from placed t join repository p on p.id = t.id
           cross join lateral (select case when t.d = 2 and p.id <= 8 then 1 else 0 end as behind,
                  case when t.d = 1 and p.id between 9 and 12 then 'its refs are not those of its position' end
                      as quarantined,
                  case when t.d = 0 and p.id between 13 and 14 then 'an object is missing' end as damage,
                  t.d = 0 and p.id between 15 and 16 as intent) w
     order by p.id;
insert into counted (device_id, shard, count) select null, 0, {n};
insert into counted (device_id, shard, count) select device, 0, count(*) from placed group by device;
drop table placed;
insert into copies (repository_id, at, copies, wanted) select id, created_at, 3, 3 from repository order by id;
insert into event (repository_id, version, kind, device, what, at)
    select 1 + i % {pushed}, 1, 'heal', 'd1', 'an interrupted write was resolved', now() - make_interval(mins => i)
      from generate_series(1, 1000) i;
insert into measurement (device_id, at, pushes, reads, push_p50, push_p99, read_p50, read_p99)
    select id, date_trunc('minute', now()) - make_interval(mins => i), 3, 20, 0.01, 0.05, 0.005, 0.03
      from device, generate_series(1, 8 * 1440) i where name <> 'spare';
insert into webhook (repository_id, url, secret, delivered, newest, created_by)
    select id, 'https://hooks.example/' || id, 's', version - case when id <= 5 then 1 else 0 end, version, 'u1'
      from repository where id <= greatest(20, {n} / 10);
"""


def filled(url: str, repositories: int) -> None:
    """Make git-cluster's schema in an empty database, and fill it: with a tenth as many users as repositories.

    PostgreSQL has statistics of it afterwards, as autovacuum makes them within a minute. About 70 s for a million.
    """
    with Database(url).open(any_schema=True) as db:
        db.init("things")
    values = {
        "n": repositories,
        "devices": DEVICES,
        "users": max(10, repositories // 10),
        "pushed": min(500, repositories),
    }
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_SETTINGS)
        for statement in _FILL.format(**values).split(";\n"):
            if statement.strip():
                connection.execute(statement)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("vacuum (analyze)")


def database(server: str, name: str, repositories: int) -> str:
    """The URL of a new database on a server, filled."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'create database "{name}"')
    url = server.replace("/postgres?", f"/{name}?", 1)
    filled(url, repositories)
    return url
