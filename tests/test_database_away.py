"""PostgreSQL away: refused, hanging, restarted, failed over; and reads of what is here meanwhile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from cluster import stale
from cluster.db import Copy, Database, lock_label
from cluster.db.link import reason
from cluster.errors import ClusterError, ConfigError, DatabaseUnavailable
from cluster.loopback import LoopbackDevice
from cluster.marker import Marker
from cluster.model import Actor, ActorKind, Checksum, Level, Position, Repository, Request, Service, WhenShort
from cluster.versions import checksum_of
from tests.breaking import hold, polite, push
from tests.cluster_fixture import Cluster, Done
from tests.postgres_fixture import OwnPostgres
from tests.proxy import CuttingProxy

PASSWORD = "hush-5up3r"


class Apart(Cluster):
    """A cluster whose devices reach the database through a proxy, and whose test reaches it past that."""

    def __init__(self, directory: Path, server: OwnPostgres, database: str, writes: dict[str, str]) -> None:
        super().__init__(directory, server.reach(database), writes)
        self.server, self._name = server, database
        self.proxy = CuttingProxy(server.socket)

    def database_of(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.proxy.port}/{self._name}"

    def new_device(self, name: str) -> LoopbackDevice:
        device = super().new_device(name)
        device.directory.mkdir()
        return device

    def allow_stale(self) -> None:
        for device in self.devices.values():
            with device.config.open("a") as config:
                config.write('\n[reads]\nstale = "allow"\n')

    def close(self) -> None:
        self.proxy.heal()
        super().close()
        self.proxy.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnPostgres]:
    """A PostgreSQL of this file's own; each test leaves it running."""
    own = OwnPostgres(tmp_path_factory.mktemp("own") / "postgres")
    yield own
    own.stop()


@pytest.fixture
def make(server: OwnPostgres, tmp_path: Path) -> Iterator[Callable[..., Apart]]:
    """make(): devices a and b that are up, and the repository team/app with one commit, on both."""
    with ExitStack() as stack:

        def make(*, stale: bool = False, **writes: str) -> Apart:
            database = stack.enter_context(server.database())
            cluster = Apart(tmp_path / "cluster", server, database, writes)
            stack.callback(cluster.close)
            stack.callback(server.start)
            cluster.set_up(["a", "b"])
            cluster.create("team/app")
            for device in "ab":
                cluster.start(device)
            cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=cluster.work())
            cluster.converge()
            if stale:
                cluster.allow_stale()
                for device in "ab":
                    restart(cluster, device)
            return cluster

        yield make


def told_once(cluster: Cluster, done: Done) -> Done:
    """Assert that a request was refused, with one line of why that speaks of the database and nothing else."""
    assert done.code != 0, done.text
    assert "Permission denied" not in polite(cluster, done.text)
    errors = [line for line in done.err.splitlines() if "cluster: error:" in line]
    assert len(errors) == 1 and "database" in errors[0], done.err
    return done


def refused_everywhere(cluster: Apart) -> float:
    """What everybody is told on both devices, asked at the same time; the longest that one of them waited."""
    work = cluster.directory / "work"

    def ask(device: str, write: bool) -> float:
        begun = time.monotonic()
        command = (
            ("push", cluster.url(device), "main:refs/heads/x")
            if write
            else ("ls-remote", cluster.url(device))
        )
        told_once(cluster, cluster.git(*command, cwd=work))
        return time.monotonic() - begun

    with ThreadPoolExecutor(4) as threads:
        return max(threads.map(ask, "aabb", (False, True, False, True)))


def nothing_unforeseen(cluster: Cluster) -> None:
    for device in cluster.devices.values():
        assert "level=error" not in device.log.read_text()


# ------------------------------------------------------------------------------------------------- refused, hanging


def test_a_database_that_is_down_is_told_at_once(make: Callable[..., Apart]) -> None:
    """Nobody waits for a time-out, or is told that their key is wrong; the first push after it is back goes through."""
    cluster = make()
    work = cluster.directory / "work"
    cluster.server.stop()
    for key in (
        new_key(cluster, "stranger"),
        cluster.devices["b"].directory / "device_ed25519",
        cluster.identity,
    ):
        told_once(cluster, as_(cluster, key, "team/app"))
    assert refused_everywhere(cluster) < 6, "a refused connection is no news after milliseconds"
    oid = cluster.commit(work, "afterwards")
    cluster.server.start()
    cluster.ok("push", cluster.url("b"), "main", cwd=work)
    assert cluster.refs("a")["refs/heads/main"] == oid


def test_a_database_that_swallows_everything(make: Callable[..., Apart]) -> None:
    """Neither refused nor reset: what hangs is given up after seconds; who comes later is told at once; and it goes
    on by itself."""
    cluster = make()
    work = cluster.directory / "work"
    cluster.proxy.hang()
    assert refused_everywhere(cluster) < 30
    assert refused_everywhere(cluster) < 10
    cluster.proxy.heal()
    oid = cluster.commit(work, "afterwards")
    cluster.wait(lambda: push(cluster, "a", work).code == 0, "a push goes through again")
    cluster.wait(lambda: cluster.git("ls-remote", cluster.url("b")).code == 0, "b answers again")
    assert cluster.refs("b")["refs/heads/main"] == oid
    cluster.converge()
    cluster.wait(lambda: all(device.online for device in cluster.db.devices()), "both are online")


def test_a_commit_whose_answer_is_lost_counts_once(make: Callable[..., Apart]) -> None:
    """G2, G3: PostgreSQL committed and its answer never comes. The device gives the connection up, asks again when it
    can, and finds its push in the log."""
    cluster = make()
    work = cluster.directory / "work"
    held = hold(cluster, "a")
    new = cluster.commit(work, "deaf")
    pushing = cluster.spawn("push", "--progress", cluster.url("a"), "main", cwd=work)
    cluster.wait(lambda: held.reached, "Git is about to move the ref")
    cluster.proxy.deafen()
    held.let_go()
    cluster.wait(lambda: cluster.version() == 2, "the commit got through")
    assert pushing.stdout is not None
    said = ""
    for line in pushing.stdout:
        said += line
        if "the database is away; still trying to commit this push" in line:
            break
    cluster.proxy.heal()
    said += pushing.communicate(timeout=60)[0]
    assert pushing.returncode == 0, polite(cluster, said)
    assert cluster.version() == 2
    assert cluster.refs("b")["refs/heads/main"] == new


# --------------------------------------------------------------------------------------------------------- restarted


@pytest.mark.parametrize("end", [OwnPostgres.stop, OwnPostgres.crash], ids=["stop", "crash"])
def test_after_a_restart_no_lock_is_stuck_and_no_wake_up_lost(
    end: Callable[[OwnPostgres], None], make: Callable[..., Apart]
) -> None:
    """Who waited for a lock is told; who held it has lost it; what is pushed to one device reaches the other."""
    cluster = make()
    work = cluster.directory / "work"
    number = cluster.snapshot().repository.id
    with cluster.db.dedicated() as connection:
        assert cluster.db.try_write_lock(connection, number, lock_label("c", "eve"))
        cluster.commit(work, "in the queue")
        waiting = cluster.spawn("push", "--progress", cluster.url("a"), "main", cwd=work)
        assert waiting.stdout is not None
        said = next(line for line in waiting.stdout if "waiting for the write lock" in line)
        end(cluster.server)
        begun = time.monotonic()
        said += waiting.communicate(timeout=60)[0]
    told_once(
        cluster, Done(waiting.returncode, "", said.replace("[remote rejected] main", "cluster: error:"))
    )
    assert time.monotonic() - begun < 10
    cluster.server.start()
    cluster.ok("push", cluster.url("a"), "main", cwd=work)
    assert cluster.db.write_lock_holder(number) is None
    cluster.converge()
    begun = time.monotonic()
    for count in range(8):  # by its sweep alone, b would need five seconds for each
        cluster.commit(work, f"number {count}")
        cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=work)
        cluster.wait(cluster.converged, "b has it, and nobody read from b")
    assert time.monotonic() - begun < 25
    cluster.wait(lambda: all(device.online for device in cluster.db.devices()), "both are online")
    nothing_unforeseen(cluster)


def test_a_listener_that_hears_much_looks_around_all_the_same(database_url: str) -> None:
    with (
        Database(database_url).open(any_schema=True) as db,
        psycopg.connect(database_url, autocommit=True) as other,
    ):
        heard = db.listen()
        assert next(heard) == "", "what came before it listened is looked for at once"
        numbers = 0
        while True:
            other.execute("select pg_notify('git_cluster', '7')")
            if (payload := next(heard)) == "":
                break
            assert payload == "7"
            numbers += 1
        assert numbers > 10


# --------------------------------------------------------------------------------------------- fail-over, read-only


def test_a_fail_over_to_a_standby(tmp_path: Path) -> None:
    """G1, G2, G6: the primary dies in the middle of a push; the standby takes over and has all that was acknowledged;
    devices go on by themselves, the push ends, and nobody types anything."""
    first = OwnPostgres(tmp_path / "first")
    servers = [first]
    both = f"postgresql:///%s?user=postgres&port=5432&host={first.socket.parent},{tmp_path / 'second'}"
    cluster = Cluster(tmp_path / "cluster", both % "postgres", {})
    try:
        cluster.set_up(["a", "b"])
        servers.append(first.standby(tmp_path / "second"))
        second = servers[1]
        cluster.create("team/app")
        for device in "ab":
            cluster.start(device)
        work = cluster.work()
        acknowledged = [cluster.commit(work, f"number {count}") for count in range(3)]
        cluster.ok("push", cluster.url("a"), "main", cwd=work)
        only_the_standby = tmp_path / "standby.toml"
        only_the_standby.write_text(f'[cluster]\ndatabase = "{second.url}"\n')
        done = cluster.admin("status", config=only_the_standby)
        assert done.code == 1 and "read-only" in done.err and "takes writes" in done.err, done.text

        held = hold(cluster, "a")
        late = cluster.commit(work, "late")
        pushing = cluster.spawn("push", "--progress", cluster.url("a"), "main", cwd=work)
        cluster.wait(lambda: held.reached, "Git is about to move the ref")
        first.crash()
        held.let_go()
        told_once(cluster, cluster.git("ls-remote", cluster.url("b")))
        second.promote()
        said, _ = pushing.communicate(timeout=60)
        assert pushing.returncode == 0, polite(cluster, said)
        cluster.wait(lambda: cluster.git("ls-remote", cluster.url("b")).code == 0, "b answers")
        assert cluster.refs("a")["refs/heads/main"] == cluster.refs("b")["refs/heads/main"] == late
        assert cluster.ok("merge-base", "--is-ancestor", acknowledged[-1], late, cwd=work) == ""
        oid = cluster.commit(work, "afterwards")
        cluster.ok("push", cluster.url("b"), "main", cwd=work)
        assert cluster.refs("a")["refs/heads/main"] == oid
        cluster.converge()
        assert cluster.admin("status", "--check").code == 0
        nothing_unforeseen(cluster)
        for log in (device.log.read_text() for device in cluster.devices.values()):
            assert "the database is away" in log and "the database is back" in log
    finally:
        cluster.close()
        for each in servers:
            each.stop()


def test_a_server_that_becomes_read_only(make: Callable[..., Apart], tmp_path: Path) -> None:
    """A clear line, no traceback, and nothing is read from a server that may have been replaced; then it goes on."""
    cluster = make()
    work = cluster.directory / "work"
    cluster.server.execute("alter system set default_transaction_read_only = on", "select pg_reload_conf()")
    try:
        cluster.wait(lambda: cluster.git("ls-remote", cluster.url("a")).code != 0, "reads are refused")
        refused_everywhere(cluster)
        with pytest.raises(DatabaseUnavailable, match="read-only") as error:
            Database(cluster.database).open()
        assert "takes writes" in error.value.hint
    finally:
        with psycopg.connect(cluster.server.url, autocommit=True) as connection:
            connection.execute("set default_transaction_read_only = off")
            connection.execute("alter system reset default_transaction_read_only")
            connection.execute("select pg_reload_conf()")
    cluster.wait(lambda: push(cluster, "b", work).code == 0, "writes go through again")
    nothing_unforeseen(cluster)


def test_several_hosts_one_of_which_is_up(server: OwnPostgres) -> None:
    """The first that takes writes is used, whichever place it has; then it is tried first."""
    folder = server.socket.parent
    for hosts in (f"{folder},/nowhere", f"/nowhere,{folder}", f"/nowhere,127.0.0.1,{folder}"):
        for url in (
            f"postgresql://postgres@/postgres?host={hosts}",
            f"user=postgres dbname=postgres host={hosts}",
        ):
            with Database(url).open(any_schema=True) as db:
                assert db._read("select 1 as one") == [{"one": 1}]


def test_a_server_that_may_be_a_standby_is_not_asked_for(server: OwnPostgres) -> None:
    for wanted in ("any", "standby", "prefer-standby", "read-only"):
        with pytest.raises(ConfigError, match=f"target_session_attrs={wanted}"):
            Database(f"{server.url}&target_session_attrs={wanted}").open(any_schema=True)
    for wanted in ("primary", "read-write"):
        Database(f"{server.url}&target_session_attrs={wanted}").open(any_schema=True).close()


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://git:{PASSWORD}@127.0.0.1:1,127.0.0.1:2/cluster",
        f"postgresql://git:{PASSWORD}@no-such-host.invalid:1,127.0.0.1:2/cluster?target_session_attrs=read-write",
        f"host=127.0.0.1,127.0.0.1 port=1,2 user=git password={PASSWORD}",
        f"host=127.0.0.1,127.0.0.1 port=1,2,3 user=git password={PASSWORD}",
        f"postgresql://git:{PASSWORD}@127.0.0.1:1,/cluster?target_session_attrs=any",
        f"postgresql://git:{PASSWORD}@127.0.0.1:1,[::1/cluster",
    ],
)
def test_no_host_of_several_can_be_reached(url: str) -> None:
    """One line that names each of them, and no password."""
    with pytest.raises(ClusterError) as raised:
        Database(url).open()
    text = " ".join(raised.value.lines())
    assert PASSWORD not in text and "database" in text and "\n" not in text
    if "port=1,2 " in url:
        assert "port 1 failed" in text and "port 2 failed" in text


def test_what_libpq_says_in_one_line() -> None:
    error = psycopg.OperationalError(
        'connection failed: connection to server at "::1", port 1 failed: Connection refused\n'
        "\tIs the server running on that host and accepting TCP/IP connections?"
    )
    assert reason(error) == 'connection to server at "::1", port 1 failed: Connection refused'


def test_postgresql_notices_a_device_that_is_gone(server: OwnPostgres) -> None:
    """Over TCP, where a device can vanish without a word, each of its sessions has PostgreSQL look for it."""
    port = _free_port()
    server.execute("alter system set listen_addresses = '127.0.0.1'", f"alter system set port = {port}")
    with (server.directory / "pg_hba.conf").open("a") as rules:
        rules.write("host all all 127.0.0.1/32 trust\n")
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    server.stop()
    try:
        server.start()
        with Database(url).open(any_schema=True) as db, db.dedicated() as connection:
            shown = {}
            for name in (
                "tcp_keepalives_idle",
                "tcp_keepalives_interval",
                "tcp_keepalives_count",
                "tcp_user_timeout",
            ):
                row = connection.execute(f"show {name}").fetchone()
                assert row is not None
                shown[name] = row[name]
            assert list(shown.values()) == ["10", "5", "3", "20000"]
    finally:
        with psycopg.connect(url, autocommit=True) as again:
            again.execute("alter system reset listen_addresses")
            again.execute("alter system reset port")
        server.stop()
        server.start()


def _free_port() -> int:
    proxy = CuttingProxy(Path("/nowhere"))
    proxy.close()
    return proxy.port


# ------------------------------------------------------------------------------------------------------ stale reads

AS_OF = r"remote: cluster: the database is away: this is as of (\S+ \S+) UTC, (\d+) s ago: newer pushes may be missing"


def test_reads_while_the_database_is_away(make: Callable[..., Apart]) -> None:
    """Clones, fetches, listings and archives are served from this disk and say how old that is; nobody can push."""
    cluster = make(stale=True)
    work, before = cluster.directory / "work", datetime.now(UTC)
    for device in "ab":
        assert cluster.git("ls-remote", cluster.url(device)).err == "", "no word while it is there"
    clone = cluster.directory / "clone"
    cluster.ok("clone", "--quiet", cluster.url("b"), str(clone))
    new = cluster.commit(work, "before it goes")
    cluster.ok("push", cluster.url("a"), "main", cwd=work)
    cluster.converge()
    cluster.server.stop()

    listed = cluster.git("ls-remote", cluster.url("a"))
    assert listed.code == 0 and new in listed.out, listed.text
    found = re.search(AS_OF, listed.err)
    assert found and len(listed.err.splitlines()) == 1, listed.err
    at = datetime.fromisoformat(f"{found[1]}+00:00")
    assert abs((at - before).total_seconds()) < 60 and int(found[2]) < 60
    for version in ("0", "1", "2"):
        options = ("-c", f"protocol.version={version}")
        fetched = cluster.git(*options, "fetch", cluster.url("b"), "main", cwd=clone)
        assert fetched.code == 0 and re.search(AS_OF, fetched.err), fetched.text
    cloned = cluster.git("clone", cluster.url("b"), str(cluster.directory / "second"))
    assert cloned.code == 0 and re.search(AS_OF, cloned.err), cloned.text
    archive = cluster.git("archive", f"--remote={cluster.url('a')}", "main")
    assert archive.code == 0 and re.search(AS_OF, archive.err), archive.err

    cluster.commit(work, "too late")
    for device in "ab":
        told_once(cluster, push(cluster, device, work))
    cluster.server.start()
    assert push(cluster, "b", work).code == 0
    assert "database" not in cluster.git("ls-remote", cluster.url("a")).err


def test_the_same_over_http(make: Callable[..., Apart]) -> None:
    cluster = make(stale=True)
    secret = cluster.admin("token", "add", "demo").out.strip()
    cluster.create("public/app")
    cluster.db.grant(Level.READ, None, "public/*")
    port = cluster.devices["b"].http_port
    mine, anybodys = f"http://demo:{secret}@127.0.0.1:{port}/team/app", f"http://127.0.0.1:{port}/public/app"
    assert cluster.git("ls-remote", anybodys).code == 0
    cluster.wait(lambda: cluster.converged("public/app"), "the new repository is there")
    since = cluster.wait(
        lambda: cluster.db.recall("b").tokens and cluster.git("ls-remote", mine).code == 0,
        "the token is known",
    )
    assert since
    restart(cluster, "b")  # it remembers from its start on
    cluster.server.stop()
    cloned = cluster.git("clone", mine, str(cluster.directory / "clone"))
    assert cloned.code == 0 and re.search(AS_OF, cloned.err), cloned.text
    assert cluster.git("ls-remote", anybodys).code == 0
    told_once(cluster, cluster.git("push", mine, "main", cwd=cluster.directory / "work"))
    wrong = f"http://demo:gct_{'x' * 43}@127.0.0.1:{port}/team/app"
    told_once(cluster, cluster.git("ls-remote", wrong))


def test_a_database_that_hangs_and_reads_that_need_not_wait_for_it(make: Callable[..., Apart]) -> None:
    cluster = make(stale=True)
    cluster.proxy.hang()
    listed = cluster.git("ls-remote", cluster.url("b"))
    assert listed.code == 0 and re.search(AS_OF, listed.err), listed.text
    begun = time.monotonic()
    assert cluster.git("ls-remote", cluster.url("b")).code == 0
    assert time.monotonic() - begun < 10


def test_who_may_not_read_while_the_database_is_away(make: Callable[..., Apart]) -> None:
    """Nobody may more than before; and nobody who has a key is told that their key is wrong."""
    cluster = make(stale=True)
    cluster.create("team/secret")
    cluster.db.add_user("ann")
    ann = new_key(cluster, "ann")
    cluster.db.add_key("ann", *key_of(ann))
    cluster.db.grant(Level.READ, "ann", "team/app")
    stranger = new_key(cluster, "stranger")
    cluster.wait(lambda: "refs/heads/main" in as_(cluster, ann, "team/app").out, "ann may read")
    restart(cluster, "a")  # its memory is of now
    cluster.server.crash()

    served = as_(cluster, ann, "team/app")
    assert served.code == 0 and re.search(AS_OF, served.err), served.text
    hidden, missing = as_(cluster, ann, "team/secret"), as_(cluster, ann, "team/nothing")
    assert told_once(cluster, hidden).err == told_once(cluster, missing).err
    device = as_(cluster, cluster.devices["b"].directory / "device_ed25519", "team/app")
    assert told_once(cluster, device).out == ""
    second = as_(cluster, stranger, "team/app", also=ann)
    assert second.code == 0 and re.search(AS_OF, second.err), (
        "as always, the second key counts where the first does not"
    )
    unknown = as_(cluster, stranger, "team/app")
    assert unknown.code != 0 and unknown.out == ""
    assert "cluster: the database is away; only keys that were registered before" in unknown.err, unknown.err
    command = ["ssh", "-F", str(cluster.ssh_config), "-p", str(cluster.devices["a"].port), "127.0.0.1"]
    plain = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert "Hello demo" in plain.stdout and "Permission denied" not in plain.stderr


def test_what_was_taken_from_somebody_is_heard_of_at_once(make: Callable[..., Apart]) -> None:
    """Devices that decide by what the database said last hear of everything that makes it say less."""
    cluster = make()
    db = cluster.db
    for user in ("ann", "bob"):
        db.add_user(user)
        db.add_key(user, *key_of(new_key(cluster, user)))
        db.grant(Level.READ, user, "team/*")
    cluster.create("team/other")
    with Database(cluster.database).open() as other:
        memory = stale.Memory(other, "a")
        fingerprint = {key.user: key.fingerprint for user in ("ann", "bob", "demo") for key in db.keys(user)}

        def reads(user: str, repository: str = "team/app") -> bool:
            memory.look()
            actor = memory.actor(fingerprint[user]) or Actor(ActorKind.USER, user, fingerprint[user])
            assert memory._memory is not None
            what = memory._memory.what
            known = repository in what.copies and what.serves
            return known and stale._may_read(what, Request(actor, Service.UPLOAD_PACK, repository))

        assert reads("ann") and reads("bob") and reads("bob", "team/other") and not reads("ann", "team/none")
        with psycopg.connect(cluster.database, autocommit=True) as listening:
            listening.execute("listen git_cluster")

            def heard() -> bool:
                return [n.payload for n in listening.notifies(timeout=5, stop_after=1)] == [""]

            db.revoke("ann", "team/*")
            assert heard() and not reads("ann") and memory.actor(fingerprint["ann"])
            db.remove_key(fingerprint["ann"])
            assert heard() and not reads("ann") and not memory.actor(fingerprint["ann"])
            db.rename_repository("team/other", "team/another")
            assert heard() and not reads("bob", "team/other") and reads("bob", "team/another")
            db.delete_repository("team/another")
            assert heard() and not reads("bob", "team/another")
            db.remove_user("bob")
            assert heard() and not reads("bob")
            admin = cluster.admin("device", "drain", "a")
            assert admin.code == 0 and heard() and reads("demo"), admin.text
            cluster.db._write("update device set mode = 'disabled' where name = 'a'")
            assert not reads("demo")


def test_refs_that_are_not_committed_are_not_shown(make: Callable[..., Apart]) -> None:
    """G2, G6: the database went away between the intent and the commit. What is on that disk is nobody's yet."""
    cluster = make(stale=True)
    work = cluster.directory / "work"
    old = cluster.refs("a")["refs/heads/main"]
    held = hold(cluster, "a")
    new = cluster.commit(work, "not yet")
    pushing = cluster.spawn("push", "--progress", cluster.url("a"), "main", cwd=work)
    cluster.wait(lambda: held.reached, "Git is about to move the ref")
    cluster.server.crash()
    held.let_go()
    assert pushing.stdout is not None
    said = next(line for line in pushing.stdout if "still trying to commit" in line)
    refused = told_once(cluster, cluster.git("ls-remote", cluster.url("a")))
    assert "cannot tell which refs of team/app count" in refused.err and new not in refused.out
    elsewhere = cluster.git("ls-remote", cluster.url("b"))
    assert elsewhere.code == 0 and old in elsewhere.out and re.search(AS_OF, elsewhere.err)
    cluster.server.start()
    said += pushing.communicate(timeout=60)[0]
    assert pushing.returncode == 0, polite(cluster, said)
    assert cluster.refs("a")["refs/heads/main"] == new


def test_a_disk_that_was_put_back_is_not_shown(make: Callable[..., Apart]) -> None:
    """G7, while the database is away: an older copy of this disk, sound in itself; and one that was changed."""
    cluster = make(stale=True)
    work, disk, kept = cluster.directory / "work", cluster.disk("b"), cluster.directory / "kept.git"
    shutil.copytree(disk, kept)
    cluster.commit(work, "second")
    cluster.ok("push", cluster.url("a"), "main", cwd=work)
    cluster.converge()
    restart(cluster, "b")
    cluster.server.stop()
    assert cluster.git("ls-remote", cluster.url("b")).code == 0
    shutil.rmtree(disk)
    shutil.copytree(kept, disk)
    assert "cannot tell which refs" in told_once(cluster, cluster.git("ls-remote", cluster.url("b"))).err
    on_a = cluster.directory / "a" / disk.relative_to(cluster.directory / "b")
    cluster.ok(f"--git-dir={on_a}", "update-ref", "refs/heads/stray", "main")
    assert "cannot tell which refs" in told_once(cluster, cluster.git("ls-remote", cluster.url("a"))).err
    cluster.server.start()
    cluster.wait(cluster.converged, "both are put right again")


SUM = checksum_of({"HEAD": "ref: refs/heads/main"})
OTHER = checksum_of({"HEAD": "ref: refs/heads/other"})


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"disk": OTHER}, False),
        ({"trusted": False}, False),
        ({"version": None, "checksum": None}, False),
        ({"marker": 8}, True),  # committed after the database was last asked
        ({"marker": 6}, False),  # the disk was put back
        ({"checksum": str(OTHER)}, False),  # another history
        ({"newest": 9}, True),  # behind when it was last asked
        ({"frozen": "by hand"}, True),
        ({"frozen": "the database is older than this disk", "marker": 8}, False),
        ({"created": "2020-01-01T00:00:00+00:00"}, False),  # of another repository, which had this number
    ],
)
def test_the_table_of_what_may_be_shown(change: dict[str, object], fits: bool) -> None:
    said = {
        "disk": SUM, "trusted": True, "version": 7, "checksum": str(SUM), "marker": 7, "newest": 7,
        "frozen": None, "created": "2026-01-01T00:00:00+00:00", **change,
    }  # fmt: skip
    born = datetime(2026, 1, 1, tzinfo=UTC)
    assert (
        isinstance(said["newest"], int)
        and isinstance(said["marker"], int)
        and isinstance(said["disk"], Checksum)
    )
    repository = Repository(
        1, "team/app", "sha1", Position(said["newest"], SUM), 1, WhenShort.WARN, said["frozen"], None, born  # type: ignore[arg-type]
    )  # fmt: skip
    copy = Copy(repository, said["version"], said["checksum"], said["trusted"])  # type: ignore[arg-type]
    marker = Marker("c", 1, "a", said["marker"], str(SUM), said["created"], "team/app")  # type: ignore[arg-type]
    assert stale.fit(copy, marker, said["disk"]) is fits


def test_how_old_it_is_in_words() -> None:
    at = datetime(2026, 11, 21, 12, 0, 3, tzinfo=UTC)
    assert (
        stale._as_of(at, 42, 0)
        == "this is as of 2026-11-21 12:00:03 UTC, 42 s ago: newer pushes may be missing"
    )
    assert stale._as_of(at, 600, -1).startswith("this is as of 2026-11-21 12:00:03 UTC, 10 min ago")
    assert stale._as_of(at, 9000, 1).endswith(
        "2 h ago, when 1 version was not here yet: newer pushes are missing"
    )
    assert "when 3 versions were not here yet" in stale._as_of(at, 1, 3)


def new_key(cluster: Cluster, name: str) -> Path:
    path = cluster.directory / f"{name}_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path], check=True)
    return path


def key_of(path: Path) -> tuple[str, str, str]:
    """Fingerprint, public key and comment, as add_key takes them."""
    line = path.with_name(f"{path.name}.pub").read_text().strip()
    listed = subprocess.run(["ssh-keygen", "-l", "-f", path], check=True, capture_output=True, text=True)
    return listed.stdout.split()[1], line, path.name


def as_(cluster: Cluster, key: Path, repository: str, *, also: Path | None = None) -> Done:
    """ls-remote on a with another key, or two of them."""
    config = cluster.directory / f"ssh_config_{key.name}"
    text = (
        cluster.ssh_config.read_text().replace(str(cluster.identity), str(key)).replace("LogLevel ERROR", "")
    )
    config.write_text(text + (f'    IdentityFile "{also}"\n' if also else ""))
    command = {"GIT_SSH_COMMAND": f'ssh -F "{config}"', "HOME": os.devnull}
    return cluster.git("ls-remote", cluster.url("a", repository), env=command)


def restart(cluster: Cluster, device: str) -> None:
    assert cluster.stop(device) == 0
    cluster.start(device)
