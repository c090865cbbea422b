"""What Git can do, it can do here: pushed to one device, seen on the others, through stock git."""

from __future__ import annotations

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from tests.cluster_fixture import Cluster, Project, RawPush
from tests.probes import archive

ENDPOINTS = True

ZERO = "0" * 40


def head(folder: Path) -> str:
    return (folder / ".git" / "HEAD").read_text().strip()


# ---------------------------------------------------------------------------------------------------- refs


def test_branches_tags_and_notes_travel(app: Project) -> None:
    one = app.git("rev-parse", "HEAD")
    app.git("tag", "light")
    app.git("tag", "-a", "-m", "the first", "v1.0")
    app.git("notes", "add", "-m", "seen by a reviewer")
    app.pushed("a", "main", "main:refs/heads/feature/x", "light", "v1.0", "refs/notes/commits")
    tag, note = app.git("rev-parse", "v1.0"), app.git("rev-parse", "refs/notes/commits")

    expected = {
        "HEAD": one,
        "refs/heads/main": one,
        "refs/heads/feature/x": one,
        "refs/tags/light": one,
        "refs/tags/v1.0": tag,
        "refs/tags/v1.0^{}": one,
        "refs/notes/commits": note,
    }
    assert app.refs("a") == app.refs("b") == app.refs("c") == expected
    clone = app.clone("c")
    assert app.git("cat-file", "-t", "v1.0", cwd=clone) == "tag"
    app.git("fetch", "--quiet", app.url("b"), "refs/notes/*:refs/notes/*", cwd=clone)
    assert app.git("notes", "show", cwd=clone) == "seen by a reviewer"
    app.converge()


def test_deletions_travel(app: Project) -> None:
    app.git("tag", "-a", "-m", "t", "v1")
    app.pushed("a", "main", "main:refs/heads/old", "v1")
    app.pushed("b", ":refs/heads/old", ":refs/tags/v1")
    assert app.refs("c").keys() == {"HEAD", "refs/heads/main"}
    assert [[u.ref for u in entry.refs if u.deletes] for entry in app.log()] == [
        [],
        ["refs/heads/old", "refs/tags/v1"],
    ]
    app.converge()


def test_the_last_branch_but_one_and_everything_can_be_deleted_again(app: Project) -> None:
    """A repository that has no ref any more is as good as a new one."""
    app.pushed("a", "main:refs/heads/only")
    app.pushed("b", ":refs/heads/only")
    assert app.refs("c") == {}
    app.converge()
    app.pushed("c", "main")
    assert app.refs("a").keys() == {"HEAD", "refs/heads/main"}
    app.converge()


def test_force_push(app: Project) -> None:
    app.pushed("a", "main")
    app.commit("two")
    app.pushed("a", "main")
    app.git("reset", "--quiet", "--hard", "HEAD~1")
    other = app.commit("another two")
    done = app.refused("b", "main")
    assert "non-fast-forward" in done.err
    app.pushed("b", "--force", "main")
    assert app.refs("c")["refs/heads/main"] == other
    stale = app.refused("c", f"--force-with-lease=main:{ZERO[:-1]}1", "main~1:refs/heads/main")
    assert "stale info" in stale.err
    app.pushed("c", f"--force-with-lease=main:{other}", "main~1:refs/heads/main")
    assert app.version == 4
    app.converge()


def test_a_branch_gives_way_to_a_folder_of_branches_and_back(app: Project) -> None:
    app.pushed("a", "main", "main:refs/heads/a")
    app.pushed("b", ":refs/heads/a")
    app.pushed("c", "main:refs/heads/a/b")
    assert app.refs("a").keys() == {"HEAD", "refs/heads/main", "refs/heads/a/b"}
    app.pushed("a", ":refs/heads/a/b")
    app.pushed("b", "main:refs/heads/a")
    assert app.refs("c").keys() == {"HEAD", "refs/heads/main", "refs/heads/a"}
    app.converge()


def test_a_replica_that_slept_through_such_an_exchange_catches_up_in_one_step(app: Project) -> None:
    cluster = app.cluster
    app.pushed("a", "main", "main:refs/heads/a", "main:refs/heads/x/y")
    app.converge()
    cluster.stop("c")
    app.pushed("a", ":refs/heads/a", ":refs/heads/x/y")
    app.pushed("b", "main:refs/heads/a/b", "main:refs/heads/x")
    cluster.start("c")
    assert app.refs("c").keys() == {"HEAD", "refs/heads/main", "refs/heads/a/b", "refs/heads/x"}
    app.converge()


def test_names_that_git_allows(app: Project) -> None:
    odd = [
        "refs/heads/ünïcode/日本",
        "refs/heads/with'quote",
        'refs/heads/with"double',
        "refs/heads/$HOME`x`;&|",
    ]
    odd += [
        "refs/heads/@/-dash",
        "refs/heads/HEAD",
        "refs/anything/at-all",
        "refs/heads/" + "long/" * 40 + "x",
    ]
    app.pushed("a", "main", *(f"main:{ref}" for ref in odd))
    listing = app.refs("c").keys()
    assert listing >= set(odd)
    app.pushed("b", *(f":{ref}" for ref in odd))
    assert app.refs("a").keys() == {"HEAD", "refs/heads/main"}
    app.converge()


def test_mirror(app: Project) -> None:
    app.git("branch", "kept")
    app.git("tag", "v1")
    app.pushed("a", "main", "main:refs/heads/not-here", "main:refs/pull/1/head")
    app.pushed("b", "--mirror")
    assert app.refs("c").keys() == {"HEAD", "refs/heads/main", "refs/heads/kept", "refs/tags/v1"}
    mirror = app.clone("a", "--mirror")
    assert app.git("for-each-ref", cwd=mirror) == app.git("for-each-ref")
    app.converge()


def test_the_default_branch_travels(app: Project) -> None:
    app.git("branch", "trunk")
    app.commit("only on main")
    app.pushed("a", "main", "trunk")
    assert all(head(app.clone(device)) == "ref: refs/heads/main" for device in "abc")

    done = app.cluster.admin("repo", "set", app.name, "--default-branch", "trunk")
    assert done.code == 0, done.text
    for device in "abc":
        clone = app.clone(device)
        assert head(clone) == "ref: refs/heads/trunk"
        assert not (clone / "only-on-main.txt").exists()
        assert app.refs(device)["HEAD"] == app.git("rev-parse", "trunk")
    assert [(u.ref, u.new) for u in app.log()[-1].refs] == [("HEAD", "ref: refs/heads/trunk")]
    app.commit("more")
    app.pushed("b", "main:trunk")
    app.converge()


def test_the_default_branch_is_not_deleted_by_a_push(app: Project) -> None:
    app.pushed("a", "main", "main:refs/heads/other")
    done = app.refused("b", ":refs/heads/main")
    assert "deletion of the current branch prohibited" in done.err
    assert app.version == 1
    assert app.cluster.admin("repo", "set", app.name, "--default-branch", "other").code == 0
    app.pushed("b", ":refs/heads/main")
    assert app.refs("c").keys() == {"HEAD", "refs/heads/other"}
    app.converge()


def test_an_unborn_default_branch_is_known_to_a_clone(app: Project) -> None:
    assert app.cluster.admin("repo", "set", app.name, "--default-branch", "trunk").code == 0
    for device in "abc":
        assert head(app.clone(device)) == "ref: refs/heads/trunk"


def test_refs_cluster_is_not_to_be_written_nor_seen(app: Project) -> None:
    app.pushed("a", "main")
    for ref in ("refs/cluster/x", "refs/cluster/staged/x", "refs/cluster/lost/x"):
        done = app.refused("b", f"main:{ref}")
        assert "deny updating a hidden ref" in done.err
    mixed = app.refused("b", "main:refs/heads/good", "main:refs/cluster/x")
    assert "[new branch]" in mixed.err and "deny updating a hidden ref" in mixed.err
    assert app.refs("c").keys() == {"HEAD", "refs/heads/main", "refs/heads/good"}
    assert app.version == 2
    app.converge()


# ------------------------------------------------------------------------------------------------ protocol


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_every_version_of_the_protocol(
    devices: Cluster, request: pytest.FixtureRequest, protocol: int
) -> None:
    app = Project.named(devices, request.node.name)
    chosen = ("-c", f"protocol.version={protocol}")
    app.pushed("a", "main", config=[f"protocol.version={protocol}"])
    clone = devices.directory / f"protocol{protocol}"
    devices.ok(*chosen, "clone", "--quiet", app.url("b"), str(clone))
    oid = app.commit("two")
    app.pushed("b", "main", config=[f"protocol.version={protocol}"])
    devices.ok(*chosen, "fetch", "--quiet", app.url("c"), "main", cwd=clone)
    assert devices.ok("rev-parse", "FETCH_HEAD", cwd=clone).strip() == oid
    app.converge()


def test_atomic_push(app: Project) -> None:
    app.pushed("a", "--atomic", "main", "main:refs/heads/x", "main:refs/tags/t")
    assert app.version == 1
    old = app.git("rev-parse", "HEAD")
    app.commit("two")
    stranger = app.clone("b")
    app.git("commit", "--quiet", "--allow-empty", "-m", "theirs", cwd=stranger)
    app.pushed("b", "HEAD:refs/heads/x", cwd=stranger)

    raw = RawPush(app.cluster, "c", app.name)  # stock git would not even try
    new = raw.refs["refs/heads/x"]
    raw.propose(
        (old, new, "refs/heads/main"),
        (old, new, "refs/heads/x"),  # not its old value any more
        capabilities="report-status atomic",
    )
    raw.send(empty_pack(app))
    assert raw.report() == [
        "unpack ok",
        "ng refs/heads/main the push is atomic, and another ref of it failed",
        f"ng refs/heads/x fetch first: refs/heads/x moved to {new[:12]} by demo on b",
    ]
    raw.finish()
    done = app.refused("c", "--atomic", "main", "main:refs/heads/x")
    assert "atomic push failed" in done.err
    assert app.refs("a")["refs/heads/main"] == old
    assert app.version == 2
    app.converge()


def empty_pack(app: Project) -> bytes:
    done = subprocess.run(
        ["git", "pack-objects", "--stdout", "-q"], input=b"", capture_output=True, cwd=app.work
    )
    return done.stdout


def pack(app: Project, *revisions: str) -> bytes:
    """What these revisions reach, as `git push` would send it."""
    lines = "".join(f"{revision}\n" for revision in revisions).encode()
    return subprocess.run(
        ["git", "pack-objects", "--stdout", "-q", "--revs"],
        input=lines,
        capture_output=True,
        cwd=app.work,
        check=True,
    ).stdout


def test_without_atomic_good_refs_land_and_bad_ones_do_not(app: Project) -> None:
    old = app.git("rev-parse", "HEAD")
    app.pushed("a", "main", "main:refs/heads/x")
    two = app.commit("two")
    app.pushed("b", "main:refs/heads/x")
    raw = RawPush(app.cluster, "c", app.name)
    raw.propose((old, two, "refs/heads/main"), (old, ZERO, "refs/heads/x"))
    raw.send(empty_pack(app))
    assert raw.report() == [
        "unpack ok",
        "ok refs/heads/main",
        f"ng refs/heads/x fetch first: refs/heads/x moved to {two[:12]} by demo on b",
    ]
    raw.finish()
    assert app.refs("a") == {"HEAD": two, "refs/heads/main": two, "refs/heads/x": two}
    assert [u.ref for u in app.log()[-1].refs] == ["refs/heads/main"]
    app.converge()


def test_a_signed_push_is_refused_politely(app: Project) -> None:
    done = app.refused("a", "--signed=true", "main")
    assert "the receiving end does not support --signed push" in done.err
    app.pushed("a", "--signed=if-asked", "main")
    app.converge()


def test_porcelain(app: Project) -> None:
    first = app.pushed("a", "--porcelain", "main")
    assert first.out.splitlines()[1:] == ["*\trefs/heads/main:refs/heads/main\t[new branch]", "Done"]
    old = app.git("rev-parse", "--short", "HEAD")
    app.commit("two")
    new = app.git("rev-parse", "--short", "HEAD")
    second = app.pushed("b", "--porcelain", "main")
    assert second.out.splitlines()[1:] == [f" \trefs/heads/main:refs/heads/main\t{old}..{new}", "Done"]
    third = app.pushed("c", "--porcelain", "main")
    assert third.out.splitlines()[1:] == ["=\trefs/heads/main:refs/heads/main\t[up to date]", "Done"]
    hidden = app.refused("c", "--porcelain", "main:refs/cluster/x")
    assert hidden.out.splitlines()[1] == (
        "!\trefs/heads/main:refs/cluster/x\t[remote rejected] (deny updating a hidden ref)"
    )
    assert first.err == second.err == third.err == "", "nothing is said when all is well"


def test_a_client_without_side_band(app: Project) -> None:
    oid = app.git("rev-parse", "HEAD")
    raw = RawPush(app.cluster, "a", app.name)
    assert {"report-status", "delete-refs", "side-band-64k", "atomic", "push-options"} <= raw.capabilities
    raw.propose((ZERO, oid, "refs/heads/main"))
    raw.send(pack(app, "HEAD"))
    assert raw.report() == ["unpack ok", "ok refs/heads/main"]
    assert app.version == 1, "committed by the time that the report is here"
    assert raw.finish().text == ""
    assert app.refs("b")["refs/heads/main"] == oid

    again = RawPush(app.cluster, "b", app.name)
    again.propose((ZERO, oid, "refs/heads/main"))
    again.send(empty_pack(app))
    assert again.report() == [
        "unpack ok",
        f"ng refs/heads/main fetch first: refs/heads/main moved to {oid[:12]} by demo on a",
    ]
    again.finish()
    app.converge()


def test_a_client_that_asks_for_no_report(app: Project) -> None:
    oid = app.git("rev-parse", "HEAD")
    raw = RawPush(app.cluster, "a", app.name)
    raw.propose((ZERO, oid, "refs/heads/main"), capabilities="")
    raw.send(pack(app, "HEAD"))
    done = raw.finish()
    assert (done.code, done.text) == (0, "")
    assert app.version == 1, "its exit is the acknowledgement"
    assert app.refs("c")["refs/heads/main"] == oid
    app.converge()


def test_a_client_that_asks_for_no_report_learns_of_a_refusal(app: Project) -> None:
    oid = app.git("rev-parse", "HEAD")
    app.pushed("a", "main")
    raw = RawPush(app.cluster, "b", app.name)
    raw.propose((ZERO, oid, "refs/heads/main"), capabilities="")
    raw.send(empty_pack(app))
    done = raw.finish()
    assert app.version == 1
    assert f"remote: cluster: fetch first: refs/heads/main moved to {oid[:12]} by demo on a" in done.err
    assert (done.code, done.out) == (1, "")


# ---------------------------------------------------------------------------------------- less than everything


def test_a_shallow_clone_and_a_push_from_it(app: Project) -> None:
    for number in range(5):
        app.commit(f"change {number}")
    app.pushed("a", "main")
    shallow = app.clone("b", "--depth=2")
    assert app.git("rev-list", "--count", "HEAD", cwd=shallow) == "2"
    (shallow / "new").write_text("new")
    app.git("add", "new", cwd=shallow)
    app.git("commit", "--quiet", "-m", "from a shallow clone", cwd=shallow)
    app.pushed("c", "HEAD:main", cwd=shallow)
    for device in "abc":
        assert app.git("rev-list", "--count", "HEAD", cwd=app.clone(device)) == "7"
    app.git("fetch", "--quiet", "--unshallow", app.url("a"), cwd=shallow)
    assert app.git("rev-list", "--count", "HEAD", cwd=shallow) == "7"
    app.converge()


def test_a_push_that_would_make_the_repository_shallow_is_refused(app: Project) -> None:
    app.commit("two")
    app.pushed("a", "main")
    shallow = app.clone("b", "--depth=1")
    other = Project.named(app.cluster, "shallow-target")
    done = other.refused("a", "HEAD:main", cwd=shallow)
    assert "shallow update not allowed" in done.err
    assert other.version == 0


def test_a_partial_clone_fetches_blobs_when_it_needs_them(app: Project) -> None:
    app.commit("two", big="x" * 100_000)
    app.pushed("a", "main")
    for device in "abc":
        partial = app.clone(device, "--filter=blob:none", "--no-checkout")
        missing = app.git("rev-list", "--objects", "--all", "--missing=print", cwd=partial)
        assert sum(line.startswith("?") for line in missing.splitlines()) == 2
        app.git("checkout", "--quiet", "main", cwd=partial)
        assert (partial / "big").read_text() == "x" * 100_000
    (partial / "big").write_text("y")
    app.git("commit", "--quiet", "-am", "from a partial clone", cwd=partial)
    app.pushed("b", "HEAD:main", cwd=partial)
    assert (app.clone("a") / "big").read_text() == "y"
    app.converge()


def test_archive(app: Project) -> None:
    app.commit("two", **{"folder/file": "content"})
    app.pushed("a", "main")
    for device in "bc":
        with tarfile.open(fileobj=BytesIO(archive(app, device, "main", "folder"))) as tar:
            file = tar.extractfile("folder/file")
            assert file is not None and file.read() == b"content"


def test_a_sha256_repository(devices: Cluster) -> None:
    devices.create("team/sha256", min_copies=2, object_format="sha256")
    path = devices.directory / "sha256-work"
    devices.ok("init", "--quiet", "--object-format=sha256", "-b", "main", str(path))
    for number, device in enumerate("abc"):
        oid = devices.commit(path, f"change {number}")
        devices.ok("push", "--quiet", devices.url(device, "team/sha256"), "main", f"main:x{number}", cwd=path)
        assert len(oid) == 64
        assert all(devices.refs(other, "team/sha256")["refs/heads/main"] == oid for other in "abc")
    devices.ok("push", "--quiet", devices.url("a", "team/sha256"), ":x0", cwd=path)
    clone = devices.directory / "sha256-clone"
    devices.ok("clone", "--quiet", devices.url("b", "team/sha256"), str(clone))
    assert devices.ok("rev-parse", "HEAD", cwd=clone).strip() == oid
    assert devices.version("team/sha256") == 4
    devices.converge("team/sha256")


def test_ten_thousand_refs(app: Project, endpoint: str) -> None:
    """Over one endpoint: what takes long is the same behind all of them."""
    count = 10_000 if endpoint == "built-in" else 1_000
    oid = app.git("rev-parse", "HEAD")
    lines = "".join(f"create refs/heads/b/{n:05d} {oid}\n" for n in range(count)).encode()
    subprocess.run(["git", "update-ref", "--stdin"], input=lines, cwd=app.work, check=True)
    app.pushed("a", "--quiet", "refs/heads/*:refs/heads/*")
    app.commit("one more")
    app.pushed("b", "main")
    assert len(app.log()[0].refs) == count + 1
    assert [u.ref for u in app.log()[1].refs] == ["refs/heads/main"]
    assert len(app.refs("c")) == count + 2
    clone = app.clone("c")
    assert app.git("rev-parse", "HEAD", cwd=clone) == app.git("rev-parse", "HEAD")
    app.pushed(
        "c", "--quiet", "--prune", "refs/heads/main:refs/heads/main", "refs/heads/b/0000*:refs/heads/b/0000*"
    )
    app.converge()
