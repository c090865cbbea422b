"""Rules on refs: where a rule does not allow what a push does to a ref, none of it happens, and the rule is named."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.model import Level
from tests.cluster_fixture import Cluster, Done, Project, RawPush

ZERO = "0" * 40
REPORT = "report-status atomic"
EMPTY_PACK = bytes.fromhex("5041434b0000000200000000029d08823bd8a8eab510ad6ac75c823cfd3ed31e")


@pytest.fixture(autouse=True)
def _no_rules_left(devices: Cluster) -> Iterator[None]:
    yield
    for rule in devices.db.rules():
        devices.db.remove_rule(rule.actor, rule.pattern, rule.ref_pattern)


def rule(app: Project, *words: str) -> None:
    done = app.cluster.admin(*words)
    assert done.code == 0, done.text


def unmoved(app: Project, done: Done, *says: str) -> None:
    """Refused with these words, and nothing happened: no version, no intent, nothing staged on anybody's disk."""
    assert done.code != 0, done.text
    for words in says:
        assert words in done.err, done.text
    assert app.version == app.version_before  # type: ignore[attr-defined]
    assert app.cluster.snapshot(app.name).intent_owner is None
    for device in "abc":
        assert "refs/cluster" not in app.git(f"--git-dir={app.disk(device)}", "for-each-ref")


def begun(app: Project, *refs: str) -> Project:
    """With main (and `refs`) pushed."""
    app.pushed("a", "main", *refs)
    app.version_before = app.version  # type: ignore[attr-defined]
    return app


def test_a_protected_branch_takes_commits_and_nothing_else(app: Project) -> None:
    begun(app, "main:refs/heads/other")
    rule(app, "protect", app.name, "main")
    app.commit("forward")
    app.pushed("b", "main")
    app.version_before = app.version  # type: ignore[attr-defined]
    named = f"rule on refs/heads/main of {app.name}: everyone may create, push; you may not"

    app.git("commit", "--quiet", "--amend", "-m", "rewritten")
    unmoved(app, app.push("a", "--force", "main"), f"main -> main ({named} force-push it)")
    unmoved(app, app.push("c", "+main:main"), f"{named} force-push it")
    unmoved(app, app.push("a", ":main"), f"main ({named} delete it)")
    unmoved(
        app,
        app.push("b", "--force", "main", ":other", "main:refs/heads/new"),
        f"{named} force-push it",
        "other (another ref of this push is refused)",
        "main -> new (another ref of this push is refused)",
    )
    unmoved(
        app, app.push("a", "--force", "--atomic", "main", "main:refs/heads/new"), f"{named} force-push it"
    )
    unmoved(app, app.push("a", "--mirror"), f"{named} force-push it", "another ref of this push is refused")
    assert app.push("a", "main:refs/heads/other", "--force").code == 0  # of others nothing is said


def test_a_mirror_that_would_delete(app: Project) -> None:
    begun(app, "main:refs/heads/kept")
    rule(app, "rule", "set", "everyone", app.name, "kept", "none")
    unmoved(app, app.push("a", "--mirror"), "everyone may nothing; you may not delete it")


def test_tags_that_cannot_be_moved(app: Project) -> None:
    app.git("tag", "v1")
    begun(app, "v1")
    rule(app, "rule", "set", "everyone", app.name, "refs/tags/v*", "create,push")
    app.commit("more")
    app.git("tag", "--force", "v1")  # to a descendant: for a branch that would be a push
    unmoved(app, app.push("a", "--force", "v1"), "everyone may create, push; you may not force-push it")
    unmoved(app, app.push("a", ":v1"), "you may not delete it")
    app.git("tag", "v2")
    app.git("tag", "--annotate", "-m", "x", "w1")
    app.pushed("a", "v2", "w1", "main")
    app.git("tag", "--force", "--annotate", "-m", "y", "w1")
    app.pushed("b", "--force", "w1")


def test_who_may_create(app: Project) -> None:
    begun(app)
    for words in (
        ["set", "everyone", app.name, "release/*", "none"],
        ["set", "demo", app.name, "release/*", "create"],
        ["set", "everyone", app.name, "release/old/*", "none"],
    ):
        rule(app, "rule", *words)
    unmoved(
        app, app.push("a", "main:refs/heads/release/old/1"), "everyone may nothing; you may not create it"
    )
    app.pushed("a", "main:refs/heads/release/1/x")
    app.version_before = app.version  # type: ignore[attr-defined]
    app.commit("more")
    unmoved(app, app.push("b", "main:refs/heads/release/1/x"), "demo may create; you may not move it")


def test_a_rule_that_allows_only_force(app: Project) -> None:
    begun(app)
    rule(app, "rule", "set", "everyone", app.name, "main", "force")
    app.commit("more")
    unmoved(app, app.push("a", "main"), "you may not push to it")
    app.git("commit", "--quiet", "--amend", "-m", "rewritten")
    app.git("reset", "--quiet", "--hard", "HEAD^")
    app.git("commit", "--quiet", "--amend", "-m", "rewritten")
    app.pushed("a", "--force", "main")


def test_what_is_no_commit_is_never_moved_forward(app: Project) -> None:
    blobs = []
    for text in ("one", "two"):
        (app.work / text).write_text(text)
        blobs.append(app.git("hash-object", "-w", text))
    begun(app, f"{blobs[0]}:refs/blobs/x")
    rule(app, "rule", "set", "everyone", app.name, "refs/blobs/*", "create,push")
    unmoved(app, app.push("a", f"+{blobs[1]}:refs/blobs/x"), "you may not force-push it")
    app.pushed("a", f"{blobs[1]}:refs/blobs/y")


def test_groups_and_several_rules(app: Project) -> None:
    begun(app, "main:refs/heads/x")
    for words in (
        ["group", "add", "ops"],
        ["group", "add", "@devs"],
        ["group", "join", "ops", "demo"],
        ["rule", "set", "everyone", app.name, "refs/*", "all"],
        ["rule", "set", "@ops", app.name, "refs/*", "create"],
    ):
        rule(app, *words)
    unmoved(app, app.push("a", ":x"), f"rule on refs/* of {app.name}: @ops may create; you may not delete it")
    rule(app, "group", "join", "@devs", "demo")
    rule(app, "rule", "set", "@devs", app.name, "refs/*", "delete")
    app.pushed("a", ":x", "main:refs/heads/y")
    for name in ("ops", "devs"):
        rule(app, "group", "remove", name)


def test_a_client_that_hears_no_report(app: Project) -> None:
    begun(app, "main:refs/heads/x")
    rule(app, "protect", app.name, "x")
    raw = RawPush(app.cluster, "a", app.name)
    raw.propose((raw.refs["refs/heads/x"], ZERO, "refs/heads/x"), capabilities="delete-refs")
    unmoved(app, raw.finish(), "you may not delete it")


def test_lies_about_old_values(app: Project) -> None:
    """What a client says of a ref's old value decides about the action, and Git holds it against the ref itself."""
    begun(app)
    main = app.git("rev-parse", "main")
    rule(app, "protect", app.name, "main")
    tree = app.git("commit-tree", "-m", "root", "main^{tree}")
    app.pushed("a", f"{tree}:refs/heads/unrelated")
    app.version_before = app.version  # type: ignore[attr-defined]
    for old, new in ((ZERO, tree), (tree, tree), ("1" * 40, tree), ("1" * 40, ZERO), (ZERO, ZERO)):
        raw = RawPush(app.cluster, "b", app.name)
        raw.propose((old, new, "refs/heads/main"), capabilities="report-status delete-refs")
        if new != ZERO:
            raw.send(EMPTY_PACK)
        report = raw.report()
        raw.finish()
        assert not any(line.startswith("ok") for line in report) or old == new, report
        assert app.refs("a")["refs/heads/main"] == main
    assert app.version == app.version_before  # type: ignore[attr-defined]


def test_what_changes_during_the_upload_counts(app: Project) -> None:
    begun(app, "main:refs/heads/x", "main:refs/heads/y")

    def delete(ref: str, change: tuple[str, ...]) -> list[str]:
        raw = RawPush(app.cluster, "a", app.name)
        rule(app, *change)
        raw.propose((raw.refs[ref], ZERO, ref), capabilities="report-status delete-refs")
        report = raw.report()
        raw.finish()
        return report

    unpacked, why = delete("refs/heads/x", ("protect", app.name, "x"))
    assert unpacked == "unpack ok"
    assert why == (
        f"ng refs/heads/x rule on refs/heads/x of {app.name}: everyone may create, push; you may not delete it"
    )
    _, why = delete("refs/heads/y", ("grant", "read", "demo", app.name))
    assert why == f"ng refs/heads/y you may read {app.name} but not push to it"
    app.cluster.db.grant(Level.ADMIN, "demo", app.name)
    _, why = delete("refs/heads/y", ("user", "disable", "demo"))
    rule(app, "user", "enable", "demo")
    assert why == "ng refs/heads/y this key is not registered here any more"
    assert app.version == app.version_before  # type: ignore[attr-defined]
    _, why = delete("refs/heads/y", ("repo", "rename", app.name, f"{app.name}-new"))
    assert why.startswith(f"ng refs/heads/y there is no repository {app.name} here")
    rule(app, "repo", "rename", f"{app.name}-new", app.name)


def test_an_operator_is_not_bound(app: Project) -> None:
    begun(app)
    rule(app, "rule", "set", "everyone", "*", "refs/*", "none")
    rule(app, "repo", "import", f"{app.name}-copy", str(app.work))
    assert app.cluster.version(f"{app.name}-copy") == 1
    unmoved(app, app.push("a", ":main"), "rule on refs/* of *: everyone may nothing")


def test_a_repository_of_sha_256_and_a_shallow_clone(devices: Cluster) -> None:
    devices.create("team/sha256", object_format="sha256")
    work, url = devices.directory / "sha256", devices.url("a", "team/sha256")
    devices.ok("init", "--quiet", "-b", "main", "--object-format=sha256", str(work))
    for message in ("one", "two"):
        devices.commit(work, message)
    devices.ok("push", "--quiet", url, "main", cwd=work)
    assert devices.admin("protect", "team/sha256", "*").code == 0
    shallow = devices.directory / "shallow"
    devices.ok("clone", "--quiet", "--depth=1", url, str(shallow))
    devices.commit(shallow, "from a shallow clone")
    devices.ok("push", "--quiet", url, "main", cwd=shallow)
    done = devices.git("push", "--force", url, "main~1:main", cwd=work)
    assert "you may not force-push it" in done.err
    devices.commit(work, "another")
    done = devices.git("push", "--force", url, "main", cwd=work)
    assert "you may not force-push it" in done.err
    devices.ok("pull", "--quiet", "--rebase", url, "main", cwd=work)
    devices.ok("push", "--quiet", url, "main", cwd=work)
    assert devices.version("team/sha256") == 3
