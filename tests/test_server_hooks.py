"""A repository's own server-side hooks run as stock Git would run them: once for a push, where it was pushed to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cluster_fixture import Cluster, Project, RawPush
from tests.test_git_features import ZERO, empty_pack, pack

ENDPOINTS = True

NOTE = """#!/bin/sh
case "${0##*/}" in update | post-update) said= ;; *) said=$(tr '\\n' ';') ;; esac
printf '%s %s [%s] %s\\n' "${GIT_CLUSTER_DEVICE:-stock}" "${0##*/}" "$*" "$said" >>"{{notes}}"
"""
ALL = ("pre-receive", "update", "reference-transaction", "post-receive", "post-update")


def hook(app: Project, name: str, script: str, *, devices: str = "abc", folder: str = "hooks") -> None:
    for device in devices:
        path = app.disk(device) / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)


@pytest.fixture
def notes(app: Project, tmp_path: Path) -> Path:
    """A file in which every hook of `app`, on every device, notes how it was called."""
    notes = tmp_path / "notes"
    notes.touch()
    for name in ALL:
        hook(app, name, NOTE.replace("{{notes}}", str(notes)))
    return notes


def test_each_hook_runs_once_and_hears_what_stock_git_tells_it(
    app: Project, notes: Path, tmp_path: Path
) -> None:
    stock = tmp_path / "stock.git"
    app.git("init", "--quiet", "--bare", "-b", "main", str(stock))
    for name in ALL:
        (stock / "hooks" / name).write_text(NOTE.replace("{{notes}}", str(tmp_path / "stock")))
        (stock / "hooks" / name).chmod(0o755)
    for refs in (["main", "main:refs/tags/t"], ["main"], ["main", ":refs/tags/t", "main:refs/heads/x"]):
        app.commit("one more")
        app.git("push", "--quiet", str(stock), *refs)
        app.pushed("b", *refs)
    app.converge()
    expected = (tmp_path / "stock").read_text().replace("stock ", "b ")
    assert expected.count("reference-transaction") >= 10
    assert notes.read_text() == expected


def test_hooks_that_come_later_and_go_again(app: Project, notes: Path) -> None:
    app.pushed("a", "main")
    assert "a post-receive" in notes.read_text()
    for device in "abc":
        for path in (app.disk(device) / "hooks").iterdir():
            path.chmod(0o644)
    notes.write_text("")
    app.commit("two")
    app.pushed("a", "main")
    assert notes.read_text() == ""
    app.converge()


def test_a_failed_push_runs_no_post_hook(app: Project, notes: Path) -> None:
    app.pushed("a", "main")
    oid = app.git("rev-parse", "HEAD")
    notes.write_text("")
    raw = RawPush(app.cluster, "b", app.name)
    raw.propose((ZERO, oid, "refs/heads/main"))
    raw.send(empty_pack(app))
    assert raw.report()[1].startswith("ng refs/heads/main fetch first")
    raw.finish()
    assert [line.split()[1] for line in notes.read_text().splitlines()] == ["pre-receive"]


@pytest.mark.parametrize("name", ["pre-receive", "update", "reference-transaction"])
def test_g4_a_hook_that_says_no_makes_no_version_and_is_heard(
    devices: Cluster, request: pytest.FixtureRequest, name: str
) -> None:
    app = Project.named(devices, request.node.name, min_copies=2)
    app.pushed("a", "main")
    hook(app, name, "#!/bin/sh\ncat >/dev/null\necho 'tickets only, please'\nexit 1\n")
    app.commit("two")
    done = app.refused("b", "main")
    assert "tickets only, please" in done.err
    if name != "reference-transaction":  # at which receive-pack gives up altogether, as everywhere
        assert "remote: tickets only, please" in done.err
        assert (
            f"[remote rejected] main -> main ({'pre-receive ' if name == 'pre-receive' else ''}hook declined)"
            in done.err
        )
    assert app.version == 1
    assert not any(replica.intent for replica in devices.snapshot(app.name).replicas)
    for device in "abc":
        (app.disk(device) / "hooks" / name).unlink()
    app.converge()
    app.pushed("c", "main")
    assert app.version == 2
    app.converge()


def test_g4_update_may_refuse_one_ref_of_several(app: Project) -> None:
    hook(app, "update", '#!/bin/sh\n[ "$1" != refs/heads/closed ] || { echo "it is closed"; exit 1; }\n')
    done = app.refused("a", "main", "main:refs/heads/closed", "main:refs/heads/open")
    assert "remote: it is closed" in done.err
    assert "closed (hook declined)" in done.err
    assert app.refs("b").keys() == {"HEAD", "refs/heads/main", "refs/heads/open"}
    assert [[u.ref for u in entry.refs] for entry in app.log()] == [["refs/heads/main", "refs/heads/open"]]
    nothing = app.refused("c", "--atomic", "main:refs/heads/closed", "main:refs/heads/more")
    assert "hook declined" in nothing.err
    assert app.version == 1
    app.converge()


def test_g2_post_receive_runs_after_the_commit_and_sees_it_everywhere(app: Project, tmp_path: Path) -> None:
    """The hook asks another device, as a user would; what it was called for must be there."""
    env = app.cluster.git_environment()
    seen = tmp_path / "seen"
    hook(
        app,
        "post-receive",
        f"""#!/bin/sh
unset $(git rev-parse --local-env-vars)
export GIT_SSH_COMMAND='{env["GIT_SSH_COMMAND"]}'
git ls-remote {app.url("c")} refs/heads/main >>"{seen}" 2>&1
""",
    )
    for number in range(3):
        oid = app.commit(f"change {number}")
        app.pushed("a", "main")
        assert seen.read_text().splitlines()[-1] == f"{oid}\trefs/heads/main"
    app.converge()


def test_a_slow_post_receive_delays_neither_the_acknowledgement_nor_the_next_push(
    app: Project, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    hook(app, "post-receive", f'#!/bin/sh\necho waiting\nread line <"{gate}"\necho "$line"\n', devices="a")
    oid = app.git("rev-parse", "HEAD")
    raw = RawPush(app.cluster, "a", app.name)
    raw.propose((ZERO, oid, "refs/heads/main"))
    raw.send(pack(app, "HEAD"))
    assert raw.report() == ["unpack ok", "ok refs/heads/main"]
    assert app.refs("b")["refs/heads/main"] == oid

    two = app.commit("two")
    app.pushed("b", "main")
    assert app.refs("a")["refs/heads/main"] == two, "the hook on a still runs"
    assert raw.process.poll() is None
    gate.write_text("done\n")
    done = raw.finish()
    assert (done.code, done.err) == (0, "waiting\ndone\n")
    app.converge()


def test_a_failing_post_receive_fails_nothing(app: Project) -> None:
    hook(app, "post-receive", "#!/bin/sh\necho 'mail server away'\nexit 3\n")
    done = app.pushed("a", "main")
    assert "remote: mail server away" in done.err
    assert app.version == 1


def test_push_options_reach_the_hooks(app: Project, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = f'#!/bin/sh\necho "${{0##*/}}: $GIT_PUSH_OPTION_COUNT $GIT_PUSH_OPTION_0/$GIT_PUSH_OPTION_1" >>"{seen}"\n'
    hook(app, "pre-receive", script)
    hook(app, "post-receive", script)
    app.pushed("b", "--push-option=ci.skip", "--push-option=topic=a b", "main")
    assert seen.read_text() == "pre-receive: 2 ci.skip/topic=a b\npost-receive: 2 ci.skip/topic=a b\n"


def test_hooks_know_who_pushes_and_see_the_new_objects(app: Project, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = f"""#!/bin/sh
while read -r old new ref; do
    echo "$GIT_CLUSTER_ACTOR $GIT_CLUSTER_REPOSITORY $GIT_CLUSTER_DEVICE $(git log -1 --format=%s "$new")" >>"{seen}"
done
"""
    hook(app, "pre-receive", script)
    hook(app, "post-receive", script)
    app.pushed("c", "main")
    assert seen.read_text() == f"demo {app.name} c one\n" * 2


@pytest.mark.parametrize("where", ["relative", "absolute"])
def test_the_repositorys_own_hooks_path_is_respected(
    devices: Cluster, request: pytest.FixtureRequest, where: str, tmp_path: Path
) -> None:
    app = Project.named(devices, request.node.name)
    seen = tmp_path / "seen"
    hook(app, "pre-receive", "#!/bin/sh\nexit 1\n", devices="a")
    hook(app, "update", f'#!/bin/sh\necho "$0" >>"{seen}"\n', devices="a", folder="our hooks")
    folder = "our hooks" if where == "relative" else str(app.disk("a") / "our hooks")
    app.git("config", "--file", str(app.disk("a") / "config"), "core.hooksPath", folder)
    app.pushed("a", "main")
    assert [Path(line).name for line in seen.read_text().splitlines()] == ["update"]
