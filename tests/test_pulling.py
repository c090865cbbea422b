"""Objects from another device where it is known what both have (cluster/pulling.py): counted, and where that fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dulwich.protocol import pkt_line

from tests.cluster_fixture import Cluster, Project
from tests.counting import Programs
from tests.probes import device_key, login
from tests.test_hostile_commands import refused
from tests.test_metrics import Moved
from tests.test_sync_cost import fetches

HTTP = True


def pulled(moved: Moved, outcome: str = "ok") -> float:
    """How often other devices were given a pack by this one, or were not."""
    moved.look()
    return moved.by("git_cluster_requests_total", endpoint="peer", service="pack", outcome=outcome)


@pytest.fixture
def counted(database_url: str, tmp_path: Path) -> Iterator[tuple[Cluster, dict[str, Programs]]]:
    """Two devices, and what each of them starts."""
    cluster = Cluster(tmp_path / "cluster", database_url, {})
    programs = {name: Programs(tmp_path / f"programs-{name}") for name in "ab"}
    cluster.set_up(list("ab"))
    for name in "ab":
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", programs[name].path)
            cluster.start(name)
    yield cluster, programs
    cluster.close()


def test_a_push_is_fetched_by_one_process_there_and_three_here(
    counted: tuple[Cluster, dict[str, Programs]],
) -> None:
    cluster, programs = counted
    app = Project.named(cluster, "few")
    app.pushed("a", "main")
    app.converge()
    for number in range(4):
        app.commit(f"number {number}")
        for each in programs.values():
            each.started()
        app.pushed("a", "main")
        app.converge()
        assert programs["b"].started() == {"unpack-objects": 1, "rev-list": 1, "update-ref": 1}
        assert programs["a"].started()["pack-objects"] == 1


def test_a_large_push_is_kept_as_the_pack_that_it_came_in(devices: Cluster) -> None:
    app = Project.named(devices, "large")
    app.pushed("a", "main")
    app.converge()
    leader = Moved(app.cluster, "a")
    app.commit("many files", **{f"file{number}": str(number) for number in range(200)})
    app.pushed("a", "main")
    app.converge()
    assert 1 <= pulled(leader) <= 2  # the third device may ask the second
    for device in "bc":
        objects = app.disk(device) / "objects"
        assert len(list(objects.glob("pack/*.pack"))) == len(list(objects.glob("pack/*.idx"))) == 1
        assert not list(objects.glob("tmp_*"))
        app.git(f"--git-dir={app.disk(device)}", "fsck", "--strict", "--connectivity-only")


@pytest.mark.parametrize("shape", ["branch", "delete", "force", "tag", "blob", "tree", "many"])
def test_every_kind_of_push_reaches_the_others(app: Project, shape: str) -> None:
    first = app.commit("first")
    app.commit("second")
    app.pushed("a", "main")
    app.pushed("a", "main:refs/heads/old")
    app.converge()
    leader = Moved(app.cluster, "a")
    if shape == "branch":  # nothing to send
        app.pushed("a", f"{first}:refs/heads/another")
    elif shape == "delete":
        app.pushed("a", ":refs/heads/old")
    elif shape == "force":
        app.git("checkout", "--quiet", "--orphan", "other")
        app.commit("nothing in common")
        app.pushed("a", "--force", "other:refs/heads/main")
    elif shape == "tag":
        app.git("tag", "-a", "-m", "a release", "v1")
        app.pushed("a", "v1")
    elif shape in ("blob", "tree"):
        (app.work / "alone").write_text("a file that no commit has")
        blob = app.git("hash-object", "-w", "alone")
        tree = app.git("mktree")
        app.pushed("a", f"{blob if shape == 'blob' else tree}:refs/tags/{shape}")
    else:
        tree = app.git("rev-parse", "HEAD^{tree}")
        tips = [app.git("commit-tree", "-p", first, "-m", str(number), tree) for number in range(150)]
        app.pushed("a", *(f"{tip}:refs/heads/n{number}" for number, tip in enumerate(tips)))
    app.converge()
    leader.look()
    assert pulled(leader, "failed") == 0
    for device in "bc":
        app.git(f"--git-dir={app.disk(device)}", "fsck", "--strict", "--connectivity-only")


def test_what_the_leader_has_given_up_is_fetched_as_git_does(make_cluster: Callable[..., Cluster]) -> None:
    """b knows a value that a has not any more, so what b names does not help a: Git's own negotiation does."""
    cluster = make_cluster("ab")
    app = Project.named(cluster, "pruned")
    app.pushed("a", "main")
    app.git("checkout", "--quiet", "-b", "wip")
    app.commit("on the way out")
    app.pushed("a", "wip")
    app.converge()
    cluster.stop("b")
    app.git("reset", "--quiet", "--hard", "main")
    app.commit("instead")
    app.pushed("a", "--force", "wip")
    disk = app.disk("a")
    app.git(f"--git-dir={disk}", "-c", "gc.pruneExpire=now", "gc", "--prune=now", "--quiet")
    leader = Moved(cluster, "a")
    cluster.start("b")
    app.converge()
    assert pulled(leader, "failed") == 1
    assert fetches(leader) == 1
    assert app.refs("b")["refs/heads/wip"] == app.git("rev-parse", "wip")


def test_a_damaged_leader_gives_nothing_and_the_next_one_does(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("abc")
    app = Project.named(cluster, "damaged")
    app.pushed("a", "main")
    app.converge()
    cluster.stop("c")
    tip = app.commit("the newest")
    app.pushed("a", "main")
    cluster.wait(lambda: cluster.snapshot(app.name).of("b").version == app.version, "b has it")  # type: ignore[union-attr]
    tree = app.git("rev-parse", "main^{tree}")
    file = app.disk("a") / "objects" / tree[:2] / tree[2:]
    file.chmod(0o644)
    file.write_bytes(b"rubbish")
    cluster.start("c")
    assert app.refs("c")["refs/heads/main"] == tip
    app.git(f"--git-dir={app.disk('c')}", "fsck", "--strict", "--connectivity-only")


def test_a_wiped_copy_is_made_anew_by_git_fetch(app: Project) -> None:
    """Nothing is known then that could be named."""
    app.commit("more")
    app.pushed("a", "main")
    app.converge()
    leaders = [Moved(app.cluster, device) for device in "ac"]
    app.cluster.stop("b")
    disk = app.disk("b")
    disk.rename(disk.with_name("elsewhere"))
    app.cluster.start("b")
    assert app.refs("b")["refs/heads/main"] == app.git("rev-parse", "main")
    app.converge()
    assert sum(map(pulled, leaders)) == 0
    assert sum(map(fetches, leaders)) == 1


def test_only_a_device_that_holds_the_repository_is_given_a_pack(
    make_cluster: Callable[..., Cluster],
) -> None:
    cluster = make_cluster("abc")
    cluster.create("team/app", devices="ab")
    app = Project(cluster, "team/app")
    tip = app.commit("more")
    app.pushed("a", "main")
    app.converge()
    ask, names = "git-cluster-pack 'team/app'", pkt_line(tip.encode()) + pkt_line(None)
    with login(cluster.devices["a"], device_key(cluster.devices["b"])) as peer:
        assert peer.ask(ask, names).out.startswith(b"PACK")
        assert peer.ask(ask, pkt_line(None)).out.startswith(b"PACK"), "nothing wanted: a pack of nothing"
        for rubbish in (
            b"",
            b"zzzz",
            pkt_line(b"--all") + pkt_line(None),
            pkt_line(b"refs/heads/main") + pkt_line(None),
            pkt_line(f"^^{tip}".encode()) + pkt_line(None),
            pkt_line(f"{tip}\n--all".encode()) + pkt_line(None),
            pkt_line(tip.encode() * 2) + pkt_line(None),
            pkt_line(tip.encode()),
            pkt_line(tip.encode()) * 1001 + pkt_line(None),
            os.urandom(4096),
        ):
            refused(peer.ask(ask, rubbish), cluster)
        unknown = peer.ask(ask, pkt_line(b"a" * 40) + pkt_line(None))
        assert unknown.code != 0 and unknown.out == b""
        refused(peer.ask("git-cluster-pack 'team/none'", names), cluster)
    with login(cluster.devices["a"], device_key(cluster.devices["c"])) as stranger:
        answer = stranger.ask(ask, names)
        refused(answer, cluster)
        assert "not kept on device c" in answer.err
    with login(cluster.devices["a"], cluster.identity) as user:
        refused(user.ask(ask, names), cluster)
