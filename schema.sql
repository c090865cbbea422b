-- git-cluster's schema, and the reference of its state machine.
--
-- A repository has a newest committed version (0, 1, 2, …). Each version is one row of `push`; what it changed
-- is in `push_ref`. A replica (one repository on one device) claims a position (version + checksum); the
-- foreign keys below admit only positions that the log has.
--
-- The life of a replica's row:
--
--     absent ──sync──▶ current ──another device commits──▶ behind ──sync──▶ current
--                        │  ▲
--                 intend │  │ commit (version + 1, or the same where nothing moved)
--                        ▼  │
--                      writing ──owner died: the intent stays──▶ frozen ──heal, thaw──▶ current | quarantined
--
--     any ──content is not what the position says──▶ quarantined ──rebuilt from the log──▶ current
--
--   absent       position null
--   current      position = the repository's
--   behind       position older than the repository's
--   writing      an intent, and its owner holds the repository's write lock
--   frozen       an intent, and nobody holds the write lock (a lock is not a row: see cluster/locks.py). Where
--                healing is automatic, that lasts until its device, or a fence, has looked at it
--   quarantined  `quarantined` says why the copy is not trusted; it is neither served nor synced from
--
-- Safety does not rest on locks (guarantee G3):
--   * push's primary key admits one change for each (repository, version);
--   * push.previous refers to the version before, so the log has no gap;
--   * one intent a repository (a partial unique index);
--   * the commit compares and sets replica (version, intent_token) and repository (version) in one statement.
--
-- Applied by `git-cluster init`, inside one transaction, with search_path at a schema of its own choosing.

create table cluster (
    only_row       boolean primary key default true check (only_row),
    schema_version integer not null,
    cluster_id     uuid not null default gen_random_uuid(),  -- stands in every on-disk marker: a disk of another cluster is noticed
    name           text not null,
    created_at     timestamptz not null default now()
);

-- A machine that holds repositories.
--   enabled    serves, receives new replicas
--   draining   serves what it has; no new replicas, and peers stop staging to it
--   disabled   serves nothing
create type device_mode as enum ('enabled', 'draining', 'disabled');

create table device (
    id           bigint generated always as identity primary key,
    name         text not null unique check (name ~ '^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$'),
    ssh_url      text not null,
    http_url     text,
    host_key     text not null,                -- public, one line: peers check it strictly
    mode         device_mode not null default 'enabled',
    last_seen_at timestamptz,                  -- the daemon's heartbeat, by this database's clock
    stopped      boolean not null default false, -- said by a clean stop: offline at once, no heartbeat to wait out
    created_at   timestamptz not null default now(),
    up_since     timestamptz,                  -- since when its heartbeat came without a gap: it fences nobody sooner
    zone         text not null default '' check (zone ~ '^([a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?)?$'), -- what fails together
    disk_total   bigint,                       -- bytes of the file system that holds its repositories, and of these free
    disk_free    bigint                        -- for git-cluster; null: not said yet
);

-- A person. Devices are actors too, by their keys.
create table actor (
    id          bigint generated always as identity primary key,
    name        text not null unique check (name ~ '^[A-Za-z0-9]([A-Za-z0-9._@+-]{0,62}[A-Za-z0-9])?$'),
    created_at  timestamptz not null default now(),
    disabled_at timestamptz                    -- not null: its keys and certificates prove nobody
);

-- A set of people that grants and rules can name. Shown and written as @name.
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

-- A public key proves exactly one identity: a user, a device, or (neither) an operator: a key that an
-- administrator's command line makes for itself for one command, and that always expires.
create table key (
    fingerprint text primary key check (fingerprint like 'SHA256:%'),
    public_key  text not null,
    comment     text not null default '',
    actor_id    bigint references actor on delete cascade,
    device_id   bigint unique references device on delete cascade,
    expires_at  timestamptz,
    created_at  timestamptz not null default now(),
    check (num_nonnulls(actor_id, device_id) <= 1),
    check (num_nonnulls(actor_id, device_id) = 1 or expires_at is not null)
);
create index key_actor on key (actor_id) where actor_id is not null;
create index key_operator on key (expires_at) where actor_id is null and device_id is null;

-- What proves a user over HTTP: a secret that is shown once, of which only the digest is kept. It has 256 random bits,
-- so a fast hash is enough.
create table token (
    id             bigint generated always as identity primary key,
    digest         bytea not null unique check (length(digest) = 32), -- SHA-256 of the secret
    actor_id       bigint not null references actor on delete cascade,
    comment        text not null default '',
    read_only      boolean not null,
    expires_at     timestamptz,                -- null: never
    created_at     timestamptz not null default now(),
    last_used_at   timestamptz,                -- to the minute
    last_used_from text                        -- an address
);
create index token_actor on token (actor_id);

-- A browser that was shown a token. It ends with the token.
create table web_session (
    digest     bytea primary key check (length(digest) = 32),         -- SHA-256 of the cookie
    token_id   bigint not null references token on delete cascade,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null
);
create index web_session_token on web_session (token_id);
create index web_session_over on web_session (expires_at);

create type access_level as enum ('read', 'write', 'admin');

-- Who may do what. Neither actor nor group: everyone with a key here. cluster/access.py decides among several.
create table access_grant (
    actor_id   bigint references actor on delete cascade,
    pattern    text not null,
    level      access_level not null,
    created_at timestamptz not null default now(),
    group_id   bigint references actor_group on delete cascade,
    wildcard   boolean not null generated always as (strpos(pattern, '*') > 0) stored, -- else it names one repository
    constraint access_grant_once unique nulls not distinct (actor_id, group_id, pattern),
    constraint access_grant_to_one check (num_nonnulls(actor_id, group_id) <= 1)
);
create index access_grant_name on access_grant (pattern) where not wildcard;
create index access_grant_wildcard on access_grant (actor_id, group_id) where wildcard;

-- What a push may do to a ref.
--   create   a ref that is not there
--   push     move it forward, to a descendant
--   force    move it anywhere else; a tag is never moved forward
--   delete   it
create type ref_action as enum ('create', 'push', 'force', 'delete');

-- Rules on refs. Where one matches, a push may do to the ref what the deciding rule says, and nothing else; where none
-- does, whatever the grant of write allows. cluster/access.py decides among several.
create table ref_rule (
    actor_id    bigint references actor on delete cascade,        -- neither actor nor group: everyone
    group_id    bigint references actor_group on delete cascade,
    pattern     text not null,                 -- of repositories, as in a grant
    ref_pattern text not null,                 -- of full ref names, such as refs/heads/main or refs/tags/*
    may         ref_action[] not null,
    created_at  timestamptz not null default now(),
    wildcard    boolean not null generated always as (strpos(pattern, '*') > 0) stored,
    constraint ref_rule_once unique nulls not distinct (actor_id, group_id, pattern, ref_pattern),
    constraint ref_rule_to_one check (num_nonnulls(actor_id, group_id) <= 1)
);
create index ref_rule_name on ref_rule (pattern) where not wildcard;
create index ref_rule_wildcard on ref_rule (actor_id, group_id) where wildcard;

-- Where new repositories are placed, by their names; the most specific pattern decides. None: on every enabled device.
create table placement_rule (
    pattern    text primary key,
    copies     integer not null check (copies between 1 and 9),
    min_copies integer check (min_copies between 1 and copies),   -- null: 2, or 1 where there is one copy
    created_at timestamptz not null default now()
);

create type short_policy as enum ('warn', 'refuse');

create table repository (
    id            bigint generated always as identity primary key,
    name          text unique,                 -- null: deleted; devices then drop their copies
    object_format text not null default 'sha1' check (object_format in ('sha1', 'sha256')),
    version       bigint not null default 0 check (version >= 0),
    checksum      bytea not null check (length(checksum) = 128),
    min_copies    integer not null check (min_copies between 1 and 9),
    when_short    short_policy not null default 'warn',
    frozen        text,                        -- why a person (or a database older than the disks) froze it
    frozen_at     timestamptz,
    created_at    timestamptz not null default now(),
    replicas      integer not null default 0,  -- how many devices it is placed on; a trigger counts
    -- A person may have to see to it, whatever its replicas say. A column of its own, and not only the index's condition,
    -- because PostgreSQL knows how often a column is true.
    unfit         boolean not null generated always as (frozen is not null or replicas < min_copies) stored,
    check ((frozen is null) = (frozen_at is null))
);
-- What needs attention, and what devices have still to drop: found without a look at the others.
create index repository_unfit on repository (id) where unfit;
create index repository_deleted on repository (id) where name is null;

-- The push log: every committed change, in order. Version 0 is the creation, so that every position refers to a row.
create table push (
    repository_id bigint not null references repository on delete cascade,
    version       bigint not null check (version >= 0),
    previous      bigint generated always as (nullif(version, 0) - 1) stored,
    checksum      bytea not null check (length(checksum) = 128),  -- of all refs and HEAD after this change
    push_id       uuid not null,
    actor         text not null,               -- names, not ids: history outlives users and devices
    device        text not null,
    via           text not null,               -- ssh, http, import, set, thaw, heal, mirror, create
    address       text not null default '',
    at            timestamptz not null default now(),
    number        bigint,                      -- its place among the changes of all repositories; null: not given yet
    primary key (repository_id, version),
    unique (repository_id, version, checksum),
    unique (repository_id, push_id),
    foreign key (repository_id, previous) references push (repository_id, version)
);

-- Numbers are given afterwards, by one writer at a time, so that whoever reads them in order misses none: a sequence
-- in the commit itself would show 8 before 7.
create sequence push_number;
create unique index push_by_number on push (number) where number is not null;
create index push_unnumbered on push (at) where number is null;
-- Of one repository's newest changes: when, for the page of what happened lately.
create index push_lately on push (at);

alter table repository add foreign key (id, version, checksum)
    references push (repository_id, version, checksum) deferrable initially deferred;

-- What a change did, ref by ref. Zeros: no such ref. HEAD's values are "ref: refs/heads/…".
create table push_ref (
    repository_id bigint not null,
    version       bigint not null,
    ref           text not null,
    old           text not null,
    new           text not null check (new <> old),
    primary key (repository_id, version, ref),
    foreign key (repository_id, version) references push on delete cascade
);
-- The refs as they stood at any version, from the newest entry of each.
create index push_ref_history on push_ref (repository_id, ref, version desc) include (new);

-- Why a quarantined copy is not trusted.
--   damaged   its content is not what its position says; what it holds beyond that may still be committed history
--   demoted   a person or a heal gave its claim up: nothing that it says of itself counts
create type distrust as enum ('damaged', 'demoted');

create table replica (
    repository_id  bigint not null references repository on delete cascade,
    device_id      bigint not null references device on delete restrict,
    version        bigint,                     -- null: absent
    checksum       bytea,
    quarantined    text,                       -- why the copy is not trusted
    -- the intent: written before refs move, cleared by the commit
    intent_token   uuid,
    intent_push    uuid,
    intent_actor   text,
    intent_via     text,
    intent_address text,
    intent_at      timestamptz,
    intent_refs    jsonb,                      -- [[ref, old, new], …]
    -- the state of syncing: what a sweep retries, and when
    synced_at      timestamptz,
    attempts       integer not null default 0,
    last_error     text,
    next_try_at    timestamptz,
    distrust       distrust,                   -- with quarantined: what its own words still count for
    -- verification: when the copy was last held against the log and against itself, and what is wrong with one that
    -- cannot be rebuilt, because no other device holds the newest version
    verified_at    timestamptz,
    damage         text,
    -- what the disk's marker says where it knows a version that this database does not (guarantee G7)
    marker_version  bigint,
    marker_checksum text,
    -- the device that is to hold this copy instead: `device drain --move` waits until that one is current, then removes
    -- this one; cut off and begun again, it finds here what it had chosen
    moves_to        bigint references device on delete set null,
    -- the repository's version, so that one row says whether this replica is behind, and an index finds those that are;
    -- a trigger keeps the two the same
    newest          bigint not null,
    -- whether a sweep, `status` or a person may have something to do here
    unfit           boolean not null generated always as (
                        version is distinct from newest or quarantined is not null or intent_token is not null
                        or marker_version is not null or damage is not null) stored,
    primary key (repository_id, device_id),
    foreign key (repository_id, version, checksum) references push (repository_id, version, checksum),
    check ((version is null) = (checksum is null)),
    check (num_nulls(intent_token, intent_push, intent_actor, intent_via, intent_address, intent_at, intent_refs) in (0, 7)),
    check (intent_token is null or version is not null),
    check ((quarantined is null) = (distrust is null)),
    check ((marker_version is null) = (marker_checksum is null))
);
create unique index replica_one_intent on replica (repository_id) where intent_token is not null;
create index replica_of_device on replica (device_id, repository_id);
create index replica_moves_to on replica (moves_to) where moves_to is not null;
-- In the order in which a sweep tries them.
create index replica_unfit on replica (device_id, next_try_at nulls first, repository_id) where unfit;
-- The one that was verified longest ago comes first.
create index replica_verified on replica (device_id, verified_at nulls first) where not unfit;
create index replica_damaged on replica (device_id) where damage is not null;

-- How many repositories there are (device_id null), and how many of them each device holds; deleted ones do not count.
-- The sum over the shards: those who create or place at the same moment do not wait for one another.
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

-- What follows from another row is kept by triggers, so that no statement, nor a device that still runs an older
-- program, can forget it. A version and what it makes of the replicas are one transaction.
--
-- A replica that is placed while a push is committed waits for that (the repository's row is locked), so that it begins
-- with the version that there is by then. Commits lock the repository's row before any replica's, as everybody does who
-- locks both.
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

-- What happened to a repository beside its pushes, as `git-cluster log` shows it between them.
--   heal        an interrupted write was resolved without a person
--   fence       a silent device's interrupted write was given up, so that others may write
--   thaw        a person resolved it, or ended a freeze
--   freeze      writes were stopped, by a person or because a disk knows more than this database
--   quarantine  a copy is not trusted any more
--   rebuild     it was made anew and is trusted again
--   damage      the only newest copy is damaged: nothing was touched, a person is needed
--   restore     versions that this database had lost were put back from a disk
create type event_kind as enum ('heal', 'fence', 'thaw', 'freeze', 'quarantine', 'rebuild', 'damage', 'restore');

create table event (
    repository_id bigint not null references repository on delete cascade,
    id            bigint generated always as identity,
    at            timestamptz not null default now(),
    version       bigint not null,             -- the newest version when it happened
    kind          event_kind not null,
    device        text not null,               -- who did it: a device's name, or "-" for an administrator's command line
    what          text not null,               -- one line, for people
    refs          jsonb not null default '[]', -- [[ref, old, new], …] where it is about refs
    primary key (repository_id, id)
);
-- What happened lately, in any repository.
create index event_lately on event (at);

-- A URL that hears of each change of one repository, in order, at least once. What it has not heard of yet is a query
-- (versions after `delivered`), so nothing that is due can be lost.
create table webhook (
    id            bigint generated always as identity primary key,
    repository_id bigint not null references repository on delete cascade,
    url           text not null,
    secret        text not null,               -- signs each delivery, so it is kept as it is
    enabled       boolean not null default true,
    delivered     bigint not null,             -- every version up to this one was taken
    created_at    timestamptz not null default now(),
    created_by    text not null,
    leased_until  timestamptz,                 -- until when the device that took it on delivers alone
    leased_by     text,
    -- the state of delivering, as a replica's state of syncing
    delivered_at  timestamptz,
    attempts      integer not null default 0,
    last_error    text,
    last_status   integer,                     -- of HTTP
    next_try_at   timestamptz,
    newest        bigint not null,             -- the repository's version, as in `replica`
    due           boolean not null generated always as (enabled and delivered < newest) stored,
    unique (repository_id, url)
);
create index webhook_due on webhook (id) where due;

-- How a device did, a row a minute, for the charts of the status page. Times in seconds; null where there was nothing.
create table measurement (
    device_id bigint not null references device on delete cascade,
    at        timestamptz not null,            -- the minute's beginning
    pushes    integer not null default 0,      -- acknowledged
    reads     integer not null default 0,      -- clones, fetches, listings, archives
    failures  integer not null default 0,      -- of either
    push_p50  real,
    push_p99  real,
    read_p50  real,
    read_p99  real,
    behind    integer not null default 0,      -- replicas here that are not at the newest version
    lag       real,                            -- for how long the one that is behind for longest has been that
    primary key (device_id, at)
);
create index measurement_at on measurement (at);

-- How many trusted copies of the newest version a repository had: a row where a look, once a minute, found another number
-- than the row before.
create table copies (
    repository_id bigint not null references repository on delete cascade,
    at            timestamptz not null default now(),
    copies        integer not null,
    wanted        integer not null,            -- replicas that it is placed on
    primary key (repository_id, at)
);
