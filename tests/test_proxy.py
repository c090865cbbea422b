"""Requests to the wrong device: passed on to one that has the repository, as if the client had gone there itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import paramiko  # type: ignore[import-untyped,unused-ignore]
import pytest
from dulwich.protocol import Protocol as DulwichProtocol
from dulwich.protocol import pkt_line

from cluster import keys
from cluster.disk import FileLock
from cluster.keyfiles import write_keypair
from cluster.model import DeviceMode, Level, Service
from cluster.ssh_command import UNABLE, ProxyCommand
from tests.breaking import MakeCluster, acknowledged, hold, kill_group, polite, push, sql
from tests.cluster_fixture import Cluster, Project, RawPush
from tests.probes import Answer, device_key, git_processes, login, new_user, no_git_left, presentable
from tests.proxy import CuttingProxy

DEMO = "demo"


def lone(cluster: Cluster, name: str, devices: str = "a", *, empty: bool = False) -> Project:
    """A repository that only `devices` hold, with one commit on main."""
    cluster.create(name, devices=devices)
    cluster.wait(lambda: cluster.converged(name), "the new repository is there")
    project = Project(cluster, name)
    if not empty:
        project.pushed(devices[0], "main")
        cluster.wait(lambda: cluster.converged(name), "its first version is there")
    return project


@pytest.fixture
def app(devices: Cluster, request: pytest.FixtureRequest) -> Project:
    """A repository named after the test, on device a alone."""
    words = "".join(c if c.isalnum() else "-" for c in request.node.name.removeprefix("test_"))
    return lone(devices, f"team/{words.strip('-')[:80]}")


def said_of(cluster: Cluster, device: str, *words: str) -> list[str]:
    """The lines of a device's log that hold all `words`."""
    lines = cluster.devices[device].log.read_text().splitlines()
    return [line for line in lines if all(word in line for word in words)]


# --------------------------------------------------------------------------------------------- as if it were here


@pytest.mark.parametrize("protocol", ["0", "1", "2"])
def test_clone_fetch_push_and_archive(app: Project, protocol: str) -> None:
    """All of Git's requests to c, for a repository of a; nobody is told anything, for all is well."""
    version = f"protocol.version={protocol}"
    listed = app.cluster.git("-c", version, "ls-remote", app.url("c"))
    assert (listed.code, listed.err) == (0, "")
    assert "refs/heads/main" in listed.out
    clone = app.cluster.directory / f"clone-{protocol}"
    cloned = app.cluster.git("-c", version, "clone", "--quiet", app.url("c"), str(clone))
    assert (cloned.code, cloned.err) == (0, "")
    new = app.commit("through c")
    pushed = app.pushed("c", "main", config=[version])
    assert acknowledged(pushed) and "remote:" not in pushed.err
    app.cluster.ok("-c", version, "fetch", "--quiet", "origin", cwd=clone)
    assert app.cluster.ok("rev-parse", "origin/main", cwd=clone).strip() == new
    tar = subprocess.run(
        ["git", "-c", version, "archive", f"--remote={app.url('c')}", "main"],
        env=app.cluster.git_environment(), cwd=app.cluster.directory, capture_output=True, check=True,
    )  # fmt: skip
    assert b"through-c.txt" in tar.stdout and tar.stderr == b""


def test_the_log_names_the_user_their_address_and_the_device_that_took_it(app: Project) -> None:
    app.commit("through c")
    app.pushed("c", "main")
    entry = app.log()[-1]
    assert (entry.actor, entry.device, entry.via, entry.address) == (DEMO, "a", "ssh", "127.0.0.1")
    (line,) = said_of(app.cluster, "c", "msg=proxied", app.name)
    assert "device=a" in line and "exit=0" in line and f"actor={DEMO}" in line
    assert said_of(app.cluster, "a", "git-receive-pack", app.name, "through=c", "kind=user")


def test_hooks_see_the_user_and_their_address(app: Project) -> None:
    hook = app.disk("a") / "hooks" / "pre-receive"
    hook.write_text(
        '#!/bin/sh\necho "it is $GIT_CLUSTER_ACTOR from $GIT_CLUSTER_ADDRESS on $GIT_CLUSTER_DEVICE"\n'
    )
    hook.chmod(0o755)
    app.commit("seen by a hook")
    assert f"remote: it is {DEMO} from 127.0.0.1 on a" in app.pushed("c", "main").err


def test_a_rejected_push_reads_as_if_it_had_been_made_there(app: Project) -> None:
    """A hook that declines, a frozen repository, a ref that cannot be: word for word what the device itself says."""
    hook = app.disk("a") / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho not today >&2\nexit 1\n")
    hook.chmod(0o755)
    app.commit("never taken")

    def same(*refs: str) -> str:
        here, there = app.refused("a", *refs), app.refused("c", *refs)
        assert re.sub(r":\d+/", "/", here.err) == re.sub(r":\d+/", "/", there.err)
        assert here.code == there.code
        return there.err

    assert "pre-receive hook declined" in same("main")
    hook.unlink()
    app.cluster.db.freeze(app.cluster.snapshot(app.name).repository.id, "moving house")
    assert "moving house" in same("main")
    assert "moving house" in same("main", "main:refs/heads/other")
    app.cluster.db.freeze(app.cluster.snapshot(app.name).repository.id, None)
    assert "refusing to delete the current branch" in same("--delete", "main")
    assert app.version == 1


def test_who_pushed_meanwhile_is_named(app: Project) -> None:
    other = app.clone("a")
    app.pushed("c", "main:refs/heads/side")
    held = hold(app.cluster, "a", "pre-receive", repository=app.name)
    mine = app.commit("mine")
    pushing = app.cluster.spawn("push", app.url("c"), "main", cwd=app.work)
    app.cluster.wait(lambda: held.reached, "the push waits in its hook")
    (app.disk("a") / "hooks" / "pre-receive").unlink()
    app.cluster.commit(other, "theirs")
    app.pushed("b", "main", cwd=other)
    held.let_go()
    said, _ = pushing.communicate(timeout=60)
    assert pushing.returncode != 0
    assert "fetch first: refs/heads/main moved to" in said and f"by {DEMO} on a" in said, said
    assert mine not in app.refs("a").values()


@pytest.mark.parametrize("capabilities", ["report-status", "", "report-status side-band-64k"])
def test_a_client_of_few_capabilities(app: Project, capabilities: str) -> None:
    raw = RawPush(app.cluster, "c", app.name)
    raw.propose((raw.refs["refs/heads/main"], "0" * 40, "refs/heads/main"), capabilities=capabilities)
    done = raw.finish()
    # main is HEAD's target, which Git refuses to delete: the report, or stderr, says so.
    assert "refusing to delete the current branch" in done.text, done


def test_atomic_options_deletions_shallow(app: Project) -> None:
    app.git("tag", "-a", "-m", "x", "v1")
    app.pushed("c", "--atomic", "--push-option=x", "main:one", "main:two", "v1")
    app.pushed("b", "--delete", "two")
    assert set(app.refs("c")) == {
        "HEAD",
        "refs/heads/main",
        "refs/heads/one",
        "refs/tags/v1",
        "refs/tags/v1^{}",
    }
    app.commit("more")
    app.pushed("c", "main")
    shallow = app.clone("c", "--depth=1")
    assert app.cluster.ok("rev-list", "--count", "HEAD", cwd=shallow).strip() == "1"
    app.cluster.commit(shallow, "from a shallow clone")
    app.pushed("c", "main", cwd=shallow)
    partial = app.clone("b", "--filter=blob:none")
    assert app.cluster.ok("log", "--oneline", cwd=partial).count("\n") == 3


def test_a_repository_that_was_just_created(devices: Cluster) -> None:
    """Nobody has filled it yet, perhaps: the first push does not mind."""
    devices.create("team/just-created", devices="a")
    project = Project(devices, "team/just-created")
    project.pushed("c", "main")
    assert project.refs("b")["refs/heads/main"]


def test_sha256(devices: Cluster) -> None:
    devices.create("team/sha256", devices="a", object_format="sha256")
    work = devices.directory / "work-sha256"
    devices.ok("init", "-q", "-b", "main", "--object-format=sha256", str(work))
    oid = devices.commit(work, "one")
    devices.ok("push", devices.url("c", "team/sha256"), "main", cwd=work)
    assert devices.refs("b", "team/sha256")["refs/heads/main"] == oid


def test_pushes_through_two_fronts_at_once_keep_one_order(app: Project) -> None:
    """G1, G2, G3: eight pushers through b and c; what was acknowledged is a version, and is seen everywhere."""

    def pusher(number: int) -> list[str]:
        clone = app.cluster.directory / f"{app.name.replace('/', '-')}-{number}"
        app.cluster.ok("clone", "--quiet", app.url("bc"[number % 2]), str(clone))
        taken = []
        for turn in range(3):
            oid = app.cluster.commit(clone, f"{number}-{turn}")
            app.pushed("bc"[number % 2], f"main:branch-{number}", cwd=clone)
            taken.append(oid)
            assert app.refs("cb"[number % 2])[f"refs/heads/branch-{number}"] == oid  # G1
        return taken

    with ThreadPoolExecutor(8) as threads:
        taken = [oid for found in threads.map(pusher, range(8)) for oid in found]
    assert len(taken) == 24
    log = app.log()
    assert [entry.version for entry in log] == list(range(1, 26))
    assert {ref.new for entry in log for ref in entry.refs} >= set(taken)
    app.converge()


# ---------------------------------------------------------------------------------------------- who is down


def test_a_device_that_is_down_is_passed_over(make_cluster: MakeCluster) -> None:
    """a is killed, and counts as online for a while: nobody notices that b answers in its place."""
    cluster = make_cluster("abc")
    project = lone(cluster, "team/app", "ab")
    cluster.refs("c")
    cluster.stop("a", how=signal.SIGKILL)
    for _ in range(6):  # whichever of the two is preferred
        done = cluster.git("ls-remote", project.url("c"))
        assert (done.code, done.err) == (0, ""), done.text
    new = project.commit("b alone")
    assert acknowledged(push(cluster, "c", project.work))
    assert project.refs("c")["refs/heads/main"] == new
    tar = subprocess.run(
        ["git", "archive", f"--remote={project.url('c')}", "main"],
        env=cluster.git_environment(), cwd=cluster.directory, capture_output=True, check=True,
    )  # fmt: skip
    assert b"b-alone.txt" in tar.stdout


def test_when_nobody_answers_the_client_is_told_whom_was_tried(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("abc")
    project = lone(cluster, "team/app", "ab")
    for device in "ab":
        cluster.stop(device, how=signal.SIGKILL)
    done = polite(cluster, cluster.git("ls-remote", project.url("c")).err)
    errors = [line for line in done.splitlines() if "cluster: error:" in line]
    assert len(errors) == 1, done
    assert re.search(
        r"team/app is not kept on device c, and no device that has it answers: tried [ab] and [ab]$",
        errors[0],
    )
    cluster.wait(
        lambda: not cluster.db.device("a").online and not cluster.db.device("b").online, "they are offline"
    )
    done = polite(cluster, cluster.git("ls-remote", project.url("c")).err)
    assert "is not kept on device c" in done and "none of its devices is online" in done


def test_a_device_that_stands_still_is_passed_over(make_cluster: MakeCluster) -> None:
    """SIGSTOP: its ports still take connections, also those that are kept from before."""
    cluster = make_cluster("abc")
    project = lone(cluster, "team/app", "ab")
    for _ in range(6):
        cluster.refs("c")
    process = cluster.devices["a"].process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        done = cluster.git("ls-remote", project.url("c"), timeout=45)
        assert (done.code, done.err) == (0, ""), done.text
    finally:
        process.send_signal(signal.SIGCONT)


def test_a_device_that_is_disabled_is_not_asked(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("abc")
    project = lone(cluster, "team/app", "ab")
    cluster.db.set_device_mode("a", DeviceMode.DISABLED)
    for _ in range(6):
        assert project.refs("c")
    assert not said_of(cluster, "a", "git-upload-pack", "through=c")
    cluster.db.set_device_mode("c", DeviceMode.DISABLED)
    assert "device c is disabled" in cluster.git("ls-remote", project.url("c")).err
    cluster.db.set_device_mode("c", DeviceMode.ENABLED)
    cluster.db.set_device_mode("b", DeviceMode.DISABLED)
    done = cluster.git("ls-remote", project.url("c"))
    assert done.code != 0 and "is not kept on device c" in polite(cluster, done.err)


def test_a_device_that_shuts_down_is_passed_over(make_cluster: MakeCluster) -> None:
    """It still serves a slow client, and its connections are open: whoever comes now is answered by the other."""
    cluster = make_cluster("abc")
    project = lone(cluster, "team/app", "ab")
    for _ in range(8):
        cluster.refs("c")
    raw = RawPush(cluster, "a", project.name)  # keeps it from ending at once
    process = cluster.devices["a"].process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    cluster.wait(lambda: said_of(cluster, "a", "device a stops"), "it is told to stop")
    try:
        while process.poll() is None:
            done = cluster.git("ls-remote", project.url("c"))
            assert (done.code, done.err) == (0, ""), done.text
    finally:
        raw.kill()


class OneApart(Cluster):
    """Device a reaches the database through a proxy of its own."""

    def __init__(self, directory: Path, database: str) -> None:
        super().__init__(directory, database, {})
        (folder,) = parse_qs(urlsplit(database).query)["host"]
        self.proxy = CuttingProxy(Path(folder) / ".s.PGSQL.5432")

    def database_of(self, name: str) -> str:
        if name != "a":
            return self.database
        return f"postgresql://postgres@127.0.0.1:{self.proxy.port}/{urlsplit(self.database).path.strip('/')}"


def test_a_device_without_its_database_is_passed_over(database_url: str, tmp_path: Path) -> None:
    """It could not say what is newest. Whether c knows it from before or logs in anew, another one is asked."""
    cluster = OneApart(tmp_path / "cluster", database_url)
    try:
        cluster.set_up(["a", "b", "c"])
        for device in "abc":
            cluster.start(device)
        project = lone(cluster, "team/app", "ab")
        warm(project)
        cluster.proxy.cut()
        for _ in range(6):
            done = cluster.git("ls-remote", project.url("c"))
            assert (done.code, done.err) == (0, ""), done.text
        for command in (str(asked(project, DEMO, cluster.identity)), "git-cluster-proxy '{}'"):
            with login(cluster.devices["a"], device_key(cluster.devices["c"])) as connection:
                answer = connection.ask(command)
                assert (answer.code, answer.out, answer.err) == (UNABLE, b"", "")
    finally:
        cluster.close()
        cluster.proxy.close()


def test_a_key_that_is_not_taken_is_told(make_cluster: MakeCluster) -> None:
    """a does not know c's key any more, or shows another host key: no device answers, and the log of c says why."""
    cluster = make_cluster("abc")
    project = lone(cluster, "team/app")
    host = cluster.db.device("b").host_key
    sql(cluster, f"update device set host_key = '{host}' where name = 'a'")
    done = cluster.git("ls-remote", project.url("c"))
    assert done.code != 0 and "no device that has it answers: tried a" in polite(cluster, done.err)
    assert said_of(cluster, "c", "another host key")


# ---------------------------------------------------------------------------------------------------- behind


@contextmanager
def behind(make_cluster: MakeCluster, when: str) -> Iterator[Project]:
    """a and c hold the repository; c has the objects of the newest version, and cannot come to apply them."""
    cluster = make_cluster("ac", start="a")
    with cluster.devices["c"].config.open("a") as config:
        config.write(f'\n[proxy]\nwhen = "{when}"\n')
    cluster.start("c")
    cluster.create("team/app", min_copies=2)
    project = Project(cluster, "team/app")
    project.pushed("a", "main")
    cluster.converge()
    number = cluster.snapshot().repository.id
    lock = FileLock(cluster.devices["c"].data_dir / "locks" / f"{number}.sync")
    assert lock.acquire(10)
    try:
        project.commit("missed by c")
        project.pushed("a", "main")
        yield project
    finally:
        lock.close()


def is_behind(project: Project, device: str) -> bool:
    replica = project.cluster.snapshot().of(device)
    assert replica is not None and replica.version is not None
    return replica.version < project.version


def test_one_that_is_behind_passes_requests_on(make_cluster: MakeCluster) -> None:
    with behind(make_cluster, "behind") as project:
        newest = project.git("rev-parse", "main")
        assert project.refs("c")["refs/heads/main"] == newest  # G1, without waiting for a sync
        assert project.git("-C", str(project.clone("c")), "rev-parse", "HEAD") == newest
        newest = project.commit("by way of c")
        project.pushed("c", "main")
        assert project.log()[-1].device == "a"
        assert project.refs("c")["refs/heads/main"] == newest
        assert is_behind(project, "c")
        asked = len(said_of(project.cluster, "c", "msg=proxied"))
        assert asked == 4
    project.converge()
    project.refs("c")
    assert len(said_of(project.cluster, "c", "msg=proxied")) == asked, "what is newest here is served here"


def test_one_that_is_behind_syncs_where_it_is_not_to_pass_on(make_cluster: MakeCluster) -> None:
    with behind(make_cluster, "absent") as project:
        listing = project.cluster.spawn("ls-remote", project.url("c"))
        assert is_behind(project, "c")
    said, _ = listing.communicate(timeout=30)
    assert project.git("rev-parse", "main") in said
    assert not said_of(project.cluster, "c", "msg=proxied")


@pytest.mark.parametrize("what", ["ls-remote", "archive", "push"])
def test_one_that_is_behind_helps_itself_when_no_leader_answers(make_cluster: MakeCluster, what: str) -> None:
    """a is killed, and counts as online for a while. What c was sent with the push is enough for it to catch up."""
    with behind(make_cluster, "behind") as project:
        cluster = project.cluster
        cluster.stop("a", how=signal.SIGKILL)
        newest = project.git("rev-parse", "main")
        command = {
            "ls-remote": ["ls-remote", project.url("c")],
            "archive": ["archive", f"--remote={project.url('c')}", "main"],
            "push": ["push", project.url("c"), "main:other"],
        }[what]
        asking = cluster.spawn(*command, cwd=project.work)
        cluster.wait(lambda: said_of(cluster, "c", "the next device is asked"), "a was tried")
        assert is_behind(project, "c")
    said, _ = asking.communicate(timeout=60)
    assert asking.returncode == 0, said
    if what == "archive":
        assert "missed-by-c.txt" in said
    assert project.refs("c")["refs/heads/main"] == newest


# --------------------------------------------------------------------------------- who may act for a user


def fingerprint(path: Path) -> str:
    return keys.parse(Path(f"{path}.pub").read_text()).fingerprint


def asked(app: Project, user: str, key: Path | str, **changes: object) -> ProxyCommand:
    """What device c asks for when `user`, by `key`, lists the repository there."""
    plain = ProxyCommand(
        Service.UPLOAD_PACK,
        app.name,
        user=user,
        fingerprint=key if isinstance(key, str) else fingerprint(key),
        certified_until=None,
        protocol="version=2",
        via="ssh",
        address="192.0.2.7",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def ask(app: Project, command: object, *, to: str = "a", by: str = "c") -> Answer:
    """The same from somebody with the key of device `by`."""
    with login(app.cluster.devices[to], device_key(app.cluster.devices[by])) as connection:
        return connection.ask(str(command), b"0000")


def refused(answer: Answer, app: Project, why: str) -> None:
    assert answer.code not in (0, None) and answer.out == b"", answer
    assert answer.lines[0].startswith("remote: cluster: error: ") and why in answer.lines[0], answer
    assert len(answer.lines) <= 2
    presentable(answer.err, app.cluster)


NOT_THERE = "here, or you may not read it"
NOT_REGISTERED = "not registered here any more"


def test_a_device_may_act_for_a_user(app: Project) -> None:
    done = ask(app, asked(app, DEMO, app.cluster.identity))
    assert done.code == 0 and b"version 2" in done.out
    assert said_of(app.cluster, "a", "192.0.2.7", app.name, "through=c")


def test_a_user_s_key_may_act_for_nobody(app: Project) -> None:
    for key, user in (
        (app.cluster.identity, DEMO),
        (new_user(app.cluster, "eve"), DEMO),
        (app.cluster.identity, "eve"),
    ):
        with login(app.cluster.devices["a"], key) as connection:
            refused(
                connection.ask(str(asked(app, user, app.cluster.identity))),
                app,
                "a user's key may not do that",
            )


def test_an_operator_s_key_may_act_for_nobody(app: Project) -> None:
    path = app.cluster.directory / "operator_ed25519"
    key = keys.parse(write_keypair(path, "operator"))
    with app.cluster.db.operator_key(key.fingerprint, key.line, seconds=60):
        with login(app.cluster.devices["a"], path) as connection:
            refused(
                connection.ask(str(asked(app, DEMO, app.cluster.identity))),
                app,
                "operator's key may not do that",
            )
        # Nor can a device act for an operator, whatever it calls them.
        for name in ("operator", DEMO):
            refused(ask(app, asked(app, name, path)), app, NOT_REGISTERED)


def test_a_device_can_act_for_nobody_but_an_enabled_user_by_their_own_key(app: Project) -> None:
    cluster = app.cluster
    eve = new_user(cluster, f"eve{app.version}{os.getpid()}x")
    name = eve.name.removesuffix("_ed25519")
    refused(ask(app, asked(app, DEMO, eve)), app, NOT_REGISTERED)  # another's key
    refused(ask(app, asked(app, name, cluster.identity)), app, NOT_REGISTERED)
    refused(ask(app, asked(app, "nobody", cluster.identity)), app, NOT_REGISTERED)
    refused(ask(app, asked(app, DEMO, "SHA256:" + "A" * 43)), app, NOT_REGISTERED)
    for device in "abc":  # a device is no user, though everybody may read
        refused(ask(app, asked(app, device, device_key(cluster.devices[device]))), app, NOT_REGISTERED)
    refused(ask(app, asked(app, name, eve)), app, NOT_THERE)
    cluster.db.grant(Level.READ, name, app.name)
    assert ask(app, asked(app, name, eve)).code == 0
    refused(ask(app, asked(app, name, eve, service=Service.RECEIVE_PACK)), app, "you may read")
    sql(cluster, f"update actor set disabled_at = now() where name = '{name}'")
    refused(ask(app, asked(app, name, eve)), app, NOT_REGISTERED)
    sql(cluster, f"update actor set disabled_at = null where name = '{name}'")
    sql(cluster, f"update key set expires_at = now() where fingerprint = '{fingerprint(eve)}'")
    refused(ask(app, asked(app, name, eve)), app, NOT_REGISTERED)


def test_a_device_can_act_for_a_user_with_a_certificate_until_it_ends(app: Project) -> None:
    """The key of such a user is in no table: the device at which they logged in has seen their certificate."""
    now, strange = datetime.now(UTC), "SHA256:" + "B" * 43
    ends = now + timedelta(hours=1)
    assert ask(app, asked(app, DEMO, strange, certified_until=ends)).code == 0
    refused(
        ask(app, asked(app, DEMO, strange, certified_until=now - timedelta(seconds=1))), app, NOT_REGISTERED
    )
    for name in ("nobody", "operator", "a", "c"):
        refused(ask(app, asked(app, name, strange, certified_until=ends)), app, NOT_REGISTERED)


def test_a_repository_that_may_not_be_seen_is_not_there_by_any_way(app: Project) -> None:
    """The same words at the device itself, at one that would pass it on, and for what does not exist."""
    eve = new_user(app.cluster, f"stranger{os.getpid()}")
    said = set()
    for device, name in (("a", app.name), ("c", app.name), ("a", "team/nothing"), ("c", "team/nothing")):
        with login(app.cluster.devices[device], eve) as connection:
            for service in Service:
                said.add(connection.ask(f"{service} '{name}'").err.replace(name, "NAME"))
    assert len(said) == 1 and NOT_THERE in said.pop()


def test_what_came_by_a_device_is_never_passed_on(app: Project) -> None:
    """Device b has no copy either: it refuses what c would have passed on to it, and tells nobody else of it."""
    before = said_of(app.cluster, "a", app.name)
    refused(ask(app, asked(app, DEMO, app.cluster.identity), to="b"), app, "is not kept on device b")
    refused(
        ask(app, asked(app, DEMO, app.cluster.identity, service=Service.RECEIVE_PACK), to="b"),
        app,
        "is not kept on device b",
    )
    assert said_of(app.cluster, "a", app.name) == before


def test_a_device_is_told_what_is_not_here_and_an_operator_too(app: Project) -> None:
    with login(app.cluster.devices["b"], device_key(app.cluster.devices["c"])) as connection:
        refused(connection.ask(f"git-upload-pack '{app.name}'"), app, "is not kept on device b")
        refused(connection.ask(f"git-receive-pack '{app.name}'"), app, "a device key may not push")
    path = app.cluster.directory / "another_operator_ed25519"
    key = keys.parse(write_keypair(path, "operator"))
    with app.cluster.db.operator_key(key.fingerprint, key.line, seconds=60):
        with login(app.cluster.devices["b"], path) as connection:
            refused(connection.ask(f"git-upload-pack '{app.name}'"), app, "is not kept on device b")


def test_a_user_is_out_at_once(app: Project) -> None:
    """On a connection that is open, with the next command: disabled, or without the key."""
    path = new_user(app.cluster, f"leaver{os.getpid()}")
    name = path.name.removesuffix("_ed25519")
    app.cluster.db.grant(Level.WRITE, name, app.name)
    with login(app.cluster.devices["c"], path) as connection:
        assert connection.ask(f"git-upload-pack '{app.name}'", b"0000").code == 0
        sql(app.cluster, f"update actor set disabled_at = now() where name = '{name}'")
        refused(connection.ask(f"git-upload-pack '{app.name}'", b"0000"), app, NOT_REGISTERED)
        sql(app.cluster, f"update actor set disabled_at = null where name = '{name}'")
        app.cluster.db.remove_key(fingerprint(path))
        refused(connection.ask(f"git-upload-pack '{app.name}'", b"0000"), app, NOT_REGISTERED)


def test_a_device_that_is_disabled_acts_for_nobody(make_cluster: MakeCluster) -> None:
    """Also on a connection from before."""
    cluster = make_cluster("abc")
    project = lone(cluster, "team/app")
    command = str(asked(project, DEMO, cluster.identity))
    with login(cluster.devices["a"], device_key(cluster.devices["c"])) as connection:
        assert connection.ask(command, b"0000").code == 0
        cluster.db.set_device_mode("c", DeviceMode.DISABLED)
        refused(connection.ask(command, b"0000"), project, NOT_REGISTERED)
    with (
        pytest.raises(paramiko.AuthenticationException),
        login(cluster.devices["a"], device_key(cluster.devices["c"])),
    ):
        pass


RUBBISH = {
    "no argument": "",
    "two": "'{}' '{}'",
    "no object": "'[]'",
    "empty": "'{}'",
    "open": "'{",
    "no JSON": "'{]'",
    "deep": "'" + "[" * 3000 + "'",
}


@pytest.mark.parametrize("what", RUBBISH)
def test_rubbish_of_a_device(app: Project, what: str) -> None:
    refused(ask(app, f"git-cluster-proxy {RUBBISH[what]}"), app, "")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("service", "git-cluster-stage"),
        ("service", "sh"),
        ("service", 1),
        ("repository", "../../etc/passwd"),
        ("repository", "/team/app.git"),
        ("repository", "x" * 201),
        ("repository", ""),
        ("user", "-u"),
        ("user", "@staff"),
        ("user", "x" * 65),
        ("user", None),
        ("user", ["demo"]),
        ("user", "de\nmo"),
        ("fingerprint", "SHA256:short"),
        ("fingerprint", None),
        ("fingerprint", "MD5:" + "a" * 43),
        ("certified_until", "tomorrow"),
        ("certified_until", "2026-13-01T00:00:00+00:00"),
        ("certified_until", "2026-01-01T00:00:00"),
        ("certified_until", "2026-01-01T00:00:00+01:00"),
        ("certified_until", 1_900_000_000),
        ("certified_until", True),
        ("protocol", "version=9"),
        ("protocol", "version=2:" + "a" * 300),
        ("protocol", "version=2\n"),
        ("protocol", None),
        ("via", "a b"),
        ("via", ""),
        ("via", "x" * 21),
        ("address", "a b"),
        ("address", "x" * 65),
        ("address", "192.0.2.1\nforged"),
        ("address", {"a": 1}),
        ("more", "x"),
    ],
)
def test_a_field_that_is_not_of_its_form(app: Project, key: str, value: object) -> None:
    words = json.loads(str(asked(app, DEMO, app.cluster.identity)).partition(" ")[2].strip("'"))
    assert key == "more" or key in words
    text = json.dumps({**words, key: value})
    done = ask(app, f"git-cluster-proxy '{text}'")
    assert done.code == 2, done
    refused(done, app, "")
    if key in words:
        del words[key]
        refused(ask(app, f"git-cluster-proxy '{json.dumps(words)}'"), app, "takes exactly")


# ---------------------------------------------------------------------------------------------- cut off


@pytest.fixture(scope="module")
def big(devices: Cluster) -> Project:
    """A repository of 64 MB, on device a alone: more than all windows together."""
    project = lone(devices, "team/big")
    grow(project)
    return project


def grow(project: Project) -> None:
    """64 MB more, which Git sends as they are: how long it takes to compress them is not what is tested here."""
    for setting in ("core.compression", "pack.window"):
        project.git(f"--git-dir={project.disk('a')}", "config", setting, "0")
    for number in range(16):
        (project.work / f"{number}.bin").write_bytes(os.urandom(4 << 20))
    project.git("config", "core.compression", "0")
    project.commit("big")
    project.pushed("a", "main", config=["pack.window=0"])


def threads(cluster: Cluster, device: str) -> int:
    return len(list(Path(f"/proc/{cluster.devices[device].pid}/task").iterdir()))


@contextmanager
def nothing_left(cluster: Cluster, *devices: str) -> Iterator[None]:
    """Afterwards: no Git process, and no thread (each connection has one) more than before."""
    before = {device: threads(cluster, device) for device in devices}
    yield
    no_git_left(cluster)
    cluster.wait(
        lambda: all(threads(cluster, device) <= before[device] + 1 for device in devices),
        "no thread is left",
        30,
    )


def paused_clone(project: Project, device: str) -> subprocess.Popen[bytes]:
    """An ssh that has asked for everything and reads nothing but the first piece of it."""
    port = str(project.cluster.devices[device].port)
    newest = project.git("rev-parse", "main")
    process = subprocess.Popen(
        ["ssh", "-F", str(project.cluster.ssh_config), "-p", port, "127.0.0.1", f"git-upload-pack '{project.name}'"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    list(DulwichProtocol(process.stdout.read, lambda data: None).read_pkt_seq())
    process.stdin.write(
        pkt_line(f"want {newest} side-band-64k ofs-delta\n".encode()) + b"0000" + pkt_line(b"done\n")
    )
    process.stdin.flush()
    assert process.stdout.read(100_000)
    return process


def test_a_client_killed_in_mid_clone_leaves_nothing(big: Project) -> None:
    warm(big)
    with nothing_left(big.cluster, "a", "c"):
        for _ in range(3):
            paused = paused_clone(big, "c")
            assert git_processes(big.cluster)
            paused.kill()
            paused.communicate()
            no_git_left(big.cluster)


def warm(project: Project) -> None:
    """As many connections from c to a as are kept with nothing to do."""
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: project.refs("c"), range(12)))


def test_a_client_that_reads_nothing_holds_nothing(big: Project) -> None:
    """G5: its answer waits on the disk it comes from, not in the memory of the two devices; others are served."""
    warm(big)
    before = resident(big.cluster, "c")
    held = [paused_clone(big, "c") for _ in range(2)]
    try:
        big.cluster.wait(lambda: asleep(big.cluster), "the devices have filled all windows")
        side = big.cluster.ok("push", "--quiet", big.url("c"), "main:refs/heads/side", cwd=big.work)
        assert side == ""
        big.pushed("c", "--delete", "side")
        assert resident(big.cluster, "c") - before < 110 << 20
    finally:
        for process in held:
            process.kill()
            process.communicate()
    no_git_left(big.cluster)


def resident(cluster: Cluster, device: str) -> int:
    """Bytes of memory that a device's daemon has now."""
    status = Path(f"/proc/{cluster.devices[device].pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def asleep(cluster: Cluster) -> bool:
    """Whether device c has sent and received nothing for a while."""

    def moved() -> str:
        return Path(f"/proc/{cluster.devices['c'].pid}/io").read_text()

    first = moved()
    time.sleep(0.5)
    return moved() == first


def test_a_client_killed_in_mid_push_leaves_nothing(big: Project) -> None:
    warm(big)
    version = big.version
    with nothing_left(big.cluster, "a", "c"):
        raw = RawPush(big.cluster, "c", big.name)
        raw.propose(("0" * 40, big.git("rev-parse", "main"), "refs/heads/cut"))
        raw.send(b"PACK" + (2).to_bytes(4, "big") + (1000).to_bytes(4, "big"))
        assert git_processes(big.cluster)
        raw.kill()
    assert big.version == version and big.cluster.snapshot(big.name).intent_owner is None


def test_a_device_killed_in_mid_clone_is_told_at_once(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("ac")
    project = lone(cluster, "team/app")
    grow(project)
    warm(project)
    with nothing_left(cluster, "c"):
        paused = paused_clone(project, "c")
        cluster.stop("a", how=signal.SIGKILL)
        begun = time.monotonic()
        _, err = paused.communicate(timeout=30)
        assert time.monotonic() - begun < 20
    assert paused.returncode not in (0, None)
    lines = polite(cluster, err.decode()).splitlines()
    assert lines[0] == "remote: cluster: error: the connection to device a, which has team/app, was lost"
    assert len(lines) == 2


def test_a_device_killed_in_mid_push_is_told_at_once(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("ac")
    project = lone(cluster, "team/app")
    held = hold(cluster, "a")
    project.commit("perhaps")
    pushing = cluster.spawn("push", project.url("c"), "main", cwd=project.work)
    cluster.wait(lambda: held.reached, "its ref is about to move")
    cluster.stop("a", how=signal.SIGKILL)
    said, _ = pushing.communicate(timeout=30)
    assert pushing.returncode != 0
    assert "error: the connection to device a, which has team/app, was lost" in polite(cluster, said)
    assert "fetch to see" in said
    held.let_go()
    cluster.start("a")
    cluster.wait(lambda: cluster.snapshot().intent_owner is None, "the write is healed")
    project.pushed("c", "main")


def test_a_front_that_is_killed_leaves_nothing_on_the_device(make_cluster: MakeCluster) -> None:
    cluster = make_cluster("ac")
    project = lone(cluster, "team/app")
    raw = RawPush(cluster, "c", project.name)
    raw.propose(("0" * 40, project.git("rev-parse", "main"), "refs/heads/cut"))
    assert git_processes(cluster)
    cluster.stop("c", how=signal.SIGKILL)
    assert raw.finish().code != 0
    no_git_left(cluster)
    assert project.version == 1


def test_a_client_that_gives_up_while_the_device_waits(app: Project) -> None:
    """Before a byte has come: the push that it waits behind is held in its hook."""
    held = hold(app.cluster, "a", repository=app.name)
    app.commit("slow")
    pushing = app.cluster.spawn("push", app.url("a"), "main", cwd=app.work)
    app.cluster.wait(lambda: held.reached, "its ref is about to move")
    reading = app.cluster.spawn("ls-remote", app.url("c"))
    try:
        assert reading.stdout is not None
        said = reading.stdout.readline()
        assert "remote: cluster: waiting for a push by demo on a" in said
        kill_group(reading)
        app.cluster.wait(
            lambda: said_of(app.cluster, "c", "msg=proxied", app.name, "exit=failed"), "c has noticed", 10
        )
    finally:
        held.let_go()
        pushing.communicate(timeout=30)
    assert pushing.returncode == 0
