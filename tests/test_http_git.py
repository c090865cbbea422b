"""Git over HTTP: what is different there. What is the same stands in the tests that run over every endpoint."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dulwich.porcelain
import httpx
import pygit2
import pytest
from dulwich.client import HttpGitClient, SSHGitClient, SubprocessSSHVendor
from dulwich.protocol import pkt_line

from cluster import tokens
from cluster.model import Level
from tests.breaking import hold, polite
from tests.cluster_fixture import Cluster, Project
from tests.http_fixture import HttpCluster

ENDPOINTS = ("http",)
Make = Callable[..., HttpCluster]
ZERO = "0" * 40


@pytest.fixture
def site(devices: Cluster) -> HttpCluster:
    assert isinstance(devices, HttpCluster)
    return devices


def person(
    cluster: HttpCluster, name: str, level: Level | None, pattern: str, *, read_only: bool = False
) -> str:
    """A user without a key; their token."""
    cluster.db.add_user(name)
    if level is not None:
        cluster.db.grant(level, name, pattern)
    return cluster.make_token(name, read_only=read_only)


def address(site: HttpCluster, app: Project, who: str, device: str = "a") -> str:
    return f"{site.base(device, who)}/{app.name}"


# ------------------------------------------------------------------------------------------------ who


def test_nobody_is_asked_for_a_token_the_rest_is_told_nothing(site: HttpCluster, app: Project) -> None:
    app.pushed("a", "main")
    missing = httpx.get(f"{site.base('a')}/team/nothing.git/info/refs?service=git-upload-pack")
    closed = httpx.get(f"{address(site, app, '')}.git/info/refs?service=git-upload-pack")
    assert missing.status_code == closed.status_code == 401
    assert missing.headers["www-authenticate"] == 'Basic realm="git-cluster demo", charset="UTF-8"'
    assert missing.text.replace("team/nothing", app.name) == closed.text
    token = person(site, "stranger", None, "")
    missing, closed = (
        httpx.get(f"{site.base('a')}/{name}/info/refs?service=git-upload-pack", auth=("stranger", token))
        for name in ("team/nothing", app.name)
    )
    assert missing.status_code == closed.status_code == 404
    assert missing.text.replace("team/nothing", app.name) == closed.text
    done = site.git("ls-remote", address(site, app, f"stranger:{token}@"))
    assert (
        f"remote: cluster: error: there is no repository {app.name} here, or you may not read it" in done.err
    )


def test_what_everyone_may_read_needs_no_token_and_what_everyone_may_write_does(
    site: HttpCluster, app: Project
) -> None:
    app.pushed("a", "main")
    site.db.grant(Level.WRITE, None, app.name)
    url = address(site, app, "")
    clone = site.directory / "anonymous"
    site.ok("clone", "--quiet", url, str(clone))
    site.commit(clone, "mine")
    done = site.git("push", url, "main", cwd=clone)
    assert done.code != 0 and "could not read Username" in done.err
    answer = httpx.get(f"{url}/info/refs?service=git-receive-pack")
    assert answer.status_code == 401 and f"nobody pushes to {app.name} without a token" in answer.text
    site.db.revoke(None, app.name)
    assert site.git("ls-remote", url).code != 0
    assert app.version == 1


def test_a_token_that_only_reads(site: HttpCluster, app: Project) -> None:
    app.pushed("a", "main")
    token = person(site, "auditor", Level.ADMIN, app.name, read_only=True)
    url = address(site, app, f"auditor:{token}@")
    assert "refs/heads/main" in site.ok("ls-remote", url)
    app.commit("two")
    done = site.git("push", url, "main", cwd=app.work)
    assert done.code != 0 and "remote: cluster: error: this token may only read" in polite(site, done.err)
    assert app.version == 1


@pytest.mark.parametrize("header", ["user", "as the name", "bearer", "another name"])
def test_ways_to_say_a_token(site: HttpCluster, app: Project, header: str) -> None:
    app.pushed("a", "main")
    url = f"{address(site, app, '')}/info/refs?service=git-upload-pack"
    auth = {
        "user": ("demo", site.token),
        "as the name": (site.token, ""),
        "another name": ("git", site.token),
    }
    if header == "bearer":
        answer = httpx.get(url, headers={"Authorization": f"Bearer {site.token}"})
    else:
        answer = httpx.get(url, auth=auth[header])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-git-upload-pack-advertisement"
    assert answer.content.startswith(b"001e# service=git-upload-pack\n0000")


@pytest.mark.parametrize(
    "header",
    [
        "Bearer x",
        "Bearer",
        "Basic",
        "Basic !!",
        "Basic Og==",
        "Digest x",
        "Basic " + "A" * 20000,
        "Bearer gct_" + "x" * 43,
    ],
    ids=range(8),
)
def test_what_is_nobodys_token(site: HttpCluster, app: Project, header: str) -> None:
    """Also where no token would do."""
    site.db.grant(Level.READ, None, app.name)
    url = f"{address(site, app, '')}/info/refs?service=git-upload-pack"
    assert httpx.get(url).status_code == 200
    answer = httpx.get(url, headers={"Authorization": header})
    assert answer.status_code == 401 and "not known here" in answer.text


def test_a_token_ends_at_once(site: HttpCluster, app: Project) -> None:
    app.pushed("a", "main")
    token = person(site, "leaver", Level.READ, app.name)
    url = address(site, app, f"leaver:{token}@")
    assert site.git("ls-remote", url).code == 0
    site.db.disable_user("leaver")
    assert site.git("ls-remote", url).code != 0
    site.db.enable_user("leaver")
    assert site.git("ls-remote", url).code == 0
    (listed,) = site.admin_json("token", "list", "leaver")
    assert listed["last_used_from"] == "127.0.0.1" and listed["last_used_at"]
    assert site.admin("token", "remove", str(listed["id"])).code == 0
    assert site.git("ls-remote", url).code != 0
    secret = tokens.new()
    digest = tokens.digest(secret)
    assert digest
    site.db.add_token("leaver", digest, read_only=False, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert site.git("ls-remote", address(site, app, f"leaver:{secret}@")).code != 0


def test_the_command_line_shows_a_token_once(site: HttpCluster, app: Project) -> None:
    site.db.add_user("builder")
    done = site.admin("token", "add", "builder", "--read-only", "--expires", "90d", "--comment", "CI")
    assert re.fullmatch(r"gct_[A-Za-z0-9_-]{43}\n", done.out) and "not shown again" in done.err
    (listed,) = site.admin_json("token", "list", "builder")
    assert (listed["user"], listed["comment"], listed["read_only"]) == ("builder", "CI", True)
    assert "token" not in listed and done.out.strip() not in site.admin("token", "list").text
    site.db.grant(Level.READ, "builder", app.name)
    assert site.git("ls-remote", address(site, app, f"x:{done.out.strip()}@")).code == 0
    for words, says in {
        ("add", "nobody-here"): "there is no user nobody-here",
        ("add", "builder", "--expires", "yesterday"): "yesterday",
        ("remove", "999999"): "there is no token 999999",
    }.items():
        done = site.admin("token", *words)
        assert done.code in (1, 2) and says in done.err, done.text


# ------------------------------------------------------------------------------------------------ what is said


@pytest.mark.parametrize("protocol", ["0", "2"])
def test_what_is_waited_for_is_told_with_the_pack(
    make_cluster: Make, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing, which waits, has no place for words: they come with the next answer to that client."""
    monkeypatch.setenv("GIT_CLUSTER_LOG", "DEBUG")
    cluster = make_cluster("ab", start="b")
    cluster.create("team/app")
    app = Project(cluster, "team/app")
    app.pushed("b", "main")
    cluster.start("a", fault="commit:pause")
    cluster.wait(cluster.converged, "a has it")
    app.commit("two")
    push = cluster.spawn("push", app.url("a"), "main", cwd=app.work)
    process = cluster.devices["a"].process
    assert process is not None
    state = Path(f"/proc/{process.pid}/stat")
    cluster.wait(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "a stands still")
    clone = cluster.spawn("-c", f"protocol.version={protocol}", "clone", app.url("b"), "clone")
    log = cluster.devices["b"].log
    waits = "waiting for a push by demo on a that is being committed"
    cluster.wait(lambda: waits in log.read_text(), "the reader waits")
    process.send_signal(signal.SIGCONT)
    assert push.communicate(timeout=60) and push.returncode == 0
    said, _ = clone.communicate(timeout=60)
    assert clone.returncode == 0 and f"remote: cluster: {waits}" in said, said
    assert app.git("rev-parse", "HEAD", cwd=cluster.directory / "clone") == app.git("rev-parse", "HEAD")


def test_a_frozen_repository_says_so(make_cluster: Make) -> None:
    cluster = make_cluster("ab")
    cluster.create("team/app")
    app = Project(cluster, "team/app")
    app.pushed("a", "main")
    assert cluster.admin("freeze", "team/app", "--reason", "an audit").code == 0
    app.commit("two")
    done = app.refused("a", "main")
    assert "an audit" in done.err and "[remote rejected]" in done.err, done.err
    assert "git-cluster thaw team/app" in done.err
    assert app.version == 1


def test_a_rejected_ref_says_who_moved_it(site: HttpCluster, app: Project) -> None:
    app.pushed("a", "main")
    other = app.clone("b")
    app.commit("two")
    app.pushed("a", "main")
    site.commit(other, "mine")
    done = app.refused("b", "main", cwd=other)
    assert "rejected" in done.err


# ------------------------------------------------------------------------------------------------ elsewhere


@pytest.mark.parametrize("protocol", ["0", "1", "2"])
def test_what_is_kept_elsewhere_is_passed_on(site: HttpCluster, protocol: str) -> None:
    name = f"lone/by-protocol-{protocol}"
    site.create(name, devices="b")
    project = Project(site, name)
    version = f"protocol.version={protocol}"
    for _ in range(3):
        project.commit("a change", big=os.urandom(700_000).hex())
        done = project.pushed("a", "main", config=[version])
        assert "cluster:" not in done.err
    clone = site.directory / f"clone-{protocol}"
    site.ok("-c", version, "clone", "--quiet", project.url("c"), str(clone))
    assert project.git("rev-parse", "HEAD", cwd=clone) == project.git("rev-parse", "HEAD")
    entry = project.log()[-1]
    assert (entry.actor, entry.via, entry.device, entry.address) == ("demo", "http", "b", "127.0.0.1")
    site.db.grant(Level.READ, None, name)
    site.db.grant(Level.WRITE, "demo", name)
    assert "refs/heads/main" in site.ok("ls-remote", f"{site.base('a')}/{name}")
    project.commit("three")
    token = person(site, f"reader-{protocol}", Level.READ, name)
    done = site.git("push", f"{site.base('a', f'x:{token}@')}/{name}", "main", cwd=project.work)
    assert done.code != 0 and f"remote: cluster: error: you may read {name} but not push to it" in done.err
    hook = site.disk("b", name) / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho 'tickets only' >&2\nexit 1\n")
    hook.chmod(0o755)
    done = project.refused("c", "main")
    assert "remote: tickets only" in done.err and "pre-receive hook declined" in done.err
    hook.unlink()


def test_a_device_that_is_down_is_passed_over(make_cluster: Make) -> None:
    cluster = make_cluster("abc")
    cluster.create("team/app", devices="bc", min_copies=1)
    app = Project(cluster, "team/app")
    app.pushed("a", "main")
    cluster.wait(cluster.converged, "both have it")
    cluster.stop("b", how=signal.SIGKILL)
    oid = app.commit("two")
    app.pushed("a", "main")
    assert cluster.refs("a")["HEAD"] == oid
    cluster.stop("c", how=signal.SIGKILL)
    app.commit("three")
    done = cluster.git("ls-remote", cluster.url("a"))
    assert done.code != 0 and "team/app is not kept on device a" in done.err
    done = app.refused("a", "main")
    assert "team/app is not kept on device a" in done.err


# ------------------------------------------------------------------------------------------------ the protocol


def test_the_dumb_protocol_is_refused_with_a_hint(site: HttpCluster, app: Project) -> None:
    app.pushed("a", "main")
    for path in ("info/refs", "HEAD", "objects/info/packs", "objects/ab/" + "c" * 38):
        answer = httpx.get(f"{address(site, app, '')}/{path}", auth=("demo", site.token))
        assert answer.status_code == 403 and "smart protocol only" in answer.text
    done = site.git("ls-remote", site.url("a", app.name), env={"GIT_SMART_HTTP": "0"})
    assert (
        done.code != 0 and "remote: cluster: error: this server speaks Git's smart protocol only" in done.err
    )


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "git-upload-pack", {}, 400),
        ("POST", "git-upload-pack", {}, 400),
        ("POST", "git-upload-pack", {"Content-Type": "text/plain"}, 400),
        ("POST", "git-upload-pack", {"Content-Encoding": "br"}, 400),
        ("GET", "info/refs?service=git-upload-archive", {}, 400),
        ("GET", "info/refs?service=git-shell", {}, 400),
        ("GET", "info/refs?service=", {}, 403),
        ("GET", "%2e%2e/x/info/refs?service=git-upload-pack", {}, 400),
        ("GET", "x%00y/info/refs?service=git-upload-pack", {}, 400),
        ("DELETE", "git-receive-pack", {}, 400),
    ],
)
def test_what_is_no_request_of_git(
    site: HttpCluster, app: Project, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    kind = {"Content-Type": "application/x-git-upload-pack-request", **headers} if headers else {}
    request = httpx.Request(method, f"{address(site, app, '')}/{path}", headers=kind, content=b"0000")
    with httpx.Client(auth=("demo", site.token)) as client:
        answer = client.send(request)
    assert answer.status_code == status, answer.text
    assert answer.text.startswith("cluster: error: ") and "Traceback" not in answer.text


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_bodies(site: HttpCluster, app: Project, packed: bool, chunked: bool) -> None:
    """As they are, compressed, and in pieces."""
    app.pushed("a", "main")
    body = b"".join([pkt_line(b"command=ls-refs\n"), b"0001", pkt_line(b"ref-prefix refs/heads/\n"), b"0000"])
    headers = {"Content-Type": "application/x-git-upload-pack-request", "Git-Protocol": "version=2"}
    if packed:
        body, headers = gzip.compress(body), {**headers, "Content-Encoding": "gzip"}
    content = iter([body[:7], body[7:11], body[11:]]) if chunked else body
    answer = httpx.post(
        f"{address(site, app, '')}/git-upload-pack",
        content=content,
        headers=headers,
        auth=("demo", site.token),
    )
    assert answer.status_code == 200 and answer.headers["cache-control"].startswith("no-cache")
    oid = app.git("rev-parse", "main")
    assert answer.content == pkt_line(f"{oid} refs/heads/main\n".encode()) + b"0000"


def test_a_push_in_small_pieces_and_one_without_side_band(site: HttpCluster, app: Project) -> None:
    app.commit("big", big=os.urandom(2_000_000).hex())
    app.pushed("a", "main", config=["http.postBuffer=65536"])
    oid = app.git("rev-parse", "main")
    for capabilities, says in ((b"report-status", b"ok refs/heads/x1"), (b"", b"")):
        number = app.version
        body = pkt_line(f"{ZERO} {oid} refs/heads/x{number}".encode() + b"\0" + capabilities) + b"0000"
        pack = subprocess.run(
            ["git", "pack-objects", "--stdout", "--revs"],
            cwd=app.work,
            input=b"",
            capture_output=True,
            check=True,
        ).stdout
        answer = httpx.post(
            f"{address(site, app, '')}/git-receive-pack",
            content=body + pack,
            headers={"Content-Type": "application/x-git-receive-pack-request"},
            auth=("demo", site.token),
        )
        assert answer.status_code == 200 and says in answer.content
        assert app.version == number + 1


def test_a_repository_with_dot_git_and_a_browser_at_its_url(site: HttpCluster, app: Project) -> None:
    app.pushed("a", "main")
    assert "refs/heads/main" in site.ok("ls-remote", f"{site.url('a', app.name)}.git")
    assert "refs/heads/main" in site.ok("ls-remote", f"{site.url('a', app.name)}.git/")


# ------------------------------------------------------------------------------------------------ large


def peak(pid: int) -> int:
    """KiB that a process has had in memory at the most."""
    found = re.search(r"^VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def test_200_mb_are_pushed_and_cloned_with_flat_memory(make_cluster: Make) -> None:
    cluster = make_cluster("a")
    cluster.create("team/app")
    app = Project(cluster, "team/app")
    app.pushed("a", "main")
    shutil.rmtree(app.clone("a"))
    pid = cluster.devices["a"].pid
    assert pid
    before = peak(pid)
    for number in range(4):
        (app.work / f"big{number}").write_bytes(os.urandom(50_000_000))
    app.git("add", ".")
    app.git("commit", "-qm", "big")
    app.pushed("a", "main", config=["core.compression=0"])
    pushed = peak(pid)
    clone = app.clone("a")
    cloned = peak(pid)
    assert app.git("rev-parse", "HEAD", cwd=clone) == app.git("rev-parse", "HEAD")
    print(
        f"memory of the daemon, at the most: {before} KiB before, {pushed} after a push, {cloned} after a clone"
    )
    assert cloned - before < 30_000


def test_a_push_under_way_is_finished_when_its_device_stops(make_cluster: Make) -> None:
    cluster = make_cluster("ab")
    cluster.create("team/app")
    cluster.converge()
    app = Project(cluster, "team/app")
    held = hold(cluster, "a")
    push = cluster.spawn("push", app.url("a"), "main", cwd=app.work)
    cluster.wait(lambda: held.reached, "the hook waits under the lock")
    process = cluster.devices["a"].process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    port = cluster.devices["a"].http_port
    cluster.wait(lambda: socket.socket().connect_ex(("127.0.0.1", port)) != 0, "no new connections are taken")
    assert process.poll() is None
    held.let_go()
    said, _ = push.communicate(timeout=60)
    assert push.returncode == 0, said
    assert process.wait(30) == 0 and app.version == 1


# ----------------------------------------------------------------------------------------- other people's clients


@pytest.fixture(params=["http", "ssh"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_libgit2_clones_fetches_and_pushes(site: HttpCluster, app: Project, way: str) -> None:
    app.pushed("a", "main")
    key = site.identity
    if way == "ssh":
        if not pygit2.features & pygit2.enums.Feature.SSH:
            pytest.fail("this libgit2 has no SSH")
        credentials: pygit2.Keypair | pygit2.UserPass = pygit2.Keypair("git", str(key) + ".pub", str(key), "")
        url = f"{site.devices['b'].url}/{app.name}"
    else:
        credentials = pygit2.UserPass("demo", site.token)
        url = f"{site.base('b')}/{app.name}"

    class Callbacks(pygit2.RemoteCallbacks):  # type: ignore[misc,unused-ignore]
        def certificate_check(self, certificate: object, valid: bool, host: object) -> bool:
            return True

        def push_update_reference(self, refname: str, message: str | None) -> None:
            assert message is None, message

    callbacks = Callbacks(credentials=credentials)
    folder = site.directory / f"pygit2-{way}"
    repository = pygit2.clone_repository(url, str(folder), callbacks=callbacks)
    assert str(repository.head.target) == app.git("rev-parse", "main")
    new = app.commit("two")
    app.pushed("c", "main")
    repository.remotes["origin"].fetch(callbacks=callbacks)
    assert str(repository.lookup_reference("refs/remotes/origin/main").target) == new
    author = pygit2.Signature("Demo", "demo@example.com")
    mine = repository.create_commit(
        f"refs/heads/by-{way}",
        author,
        author,
        "mine",
        repository.head.peel().tree.id,
        [repository.head.target],
    )
    repository.remotes["origin"].push([f"refs/heads/by-{way}"], callbacks=callbacks)
    assert app.refs("a")[f"refs/heads/by-{way}"] == str(mine)
    repository.remotes["origin"].push([f":refs/heads/by-{way}"], callbacks=callbacks)
    assert f"refs/heads/by-{way}" not in app.refs("a")


def test_dulwich_clones_fetches_and_pushes(site: HttpCluster, app: Project, way: str) -> None:
    app.pushed("a", "main")
    folder = site.directory / f"dulwich-{way}"
    if way == "ssh":
        device = site.devices["b"]
        client: HttpGitClient | SSHGitClient = SSHGitClient(
            device.host,
            port=device.port,
            username="git",
            vendor=SubprocessSSHVendor(),
            ssh_command=f"ssh -F {site.ssh_config}",
        )
        path = f"/{app.name}"
    else:
        client = HttpGitClient(site.base("b"), username="demo", password=site.token)
        path = f"/{app.name}"
    repository = client.clone(path, str(folder), mkdir=True)
    assert repository.head().decode() == app.git("rev-parse", "main")
    new = app.commit("two")
    app.pushed("c", "main")
    fetched = client.fetch(path, repository)
    assert dict(fetched.refs)[b"refs/heads/main"] == new.encode()  # type: ignore[index,unused-ignore]
    dulwich.porcelain.reset(repository, "hard", new)
    (folder / "file").write_text("x")
    dulwich.porcelain.add(repository, [str(folder / "file")])
    mine = dulwich.porcelain.commit(repository, message=b"mine", author=b"d <d@e>", committer=b"d <d@e>")

    def update(refs: dict[bytes, bytes]) -> dict[bytes, bytes]:
        return {f"refs/heads/by-{way}".encode(): mine}

    def objects(have: object, want: object, **_: object) -> object:
        return repository.object_store.generate_pack_data(have, want)  # type: ignore[arg-type]

    result = client.send_pack(path.encode(), update, objects)  # type: ignore[arg-type]
    assert not any((result.ref_status or {}).values())
    assert app.refs("a")[f"refs/heads/by-{way}"] == mine.decode()
