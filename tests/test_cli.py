"""The command line as a process: what it prints, where, and how it exits. The database is real."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cluster.db import Database, lock_label
from cluster.keyfiles import write_keypair
from cluster.model import Intent, Level, RefUpdate
from tests.cluster_fixture import Cluster, Done

ZERO, ONE = "0" * 40, "1" * 40
ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "cluster"]


class Cli:
    """A cluster that is a database and a configuration, and the command line to it. No device runs."""

    def __init__(self, directory: Path, url: str) -> None:
        self.directory, self.url = directory, url
        self.online: set[str] = set()
        self.config = directory / "config.toml"
        self.config.write_text(f'[cluster]\ndatabase = "{url}"\nname = "example"\n')

    def environment(self, **more: str) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("GIT_", "COLUMNS", "PYTHON"))
        }
        return {**kept, "PYTHONPATH": str(ROOT), "GIT_CLUSTER_CONFIG": str(self.config), **more}

    def __call__(self, *arguments: str | Path, code: int = 0, data: str = "") -> Done:
        done = subprocess.run(
            [*PROGRAM, *map(str, arguments)],
            env=self.environment(),
            cwd=self.directory,
            input=data,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json").out)

    def fails(self, *arguments: str | Path, code: int = 1, data: str = "") -> str:
        """A command that must say, on stderr alone, what is wrong in one line and what to do in a second."""
        done = self(*arguments, code=code, data=data)
        what, hint = done.err.splitlines()
        assert what.startswith("git-cluster: ")
        assert hint.startswith("  ")
        assert done.out == ""
        return what.removeprefix("git-cluster: ")

    def key(self, name: str) -> Path:
        write_keypair(self.directory / name, name)
        return self.directory / f"{name}.pub"

    def add_device(self, name: str, port: int = 2222, *, online: bool = True) -> None:
        key, host_key = self.key(f"{name}_key"), self.key(f"{name}_host")
        self(
            "device",
            "add",
            name,
            "--ssh",
            f"ssh://git@127.0.0.1:{port}",
            "--key",
            key,
            "--host-key",
            host_key,
        )
        if online:
            self.online.add(name)
            with self.db() as db:
                db.heartbeat(name)

    @contextmanager
    def db(self) -> Iterator[Database]:
        with Database(self.url).open() as db:
            yield db


@pytest.fixture
def bare(tmp_path: Path, database_url: str) -> Cli:
    """A database that `init` has not seen yet."""
    return Cli(tmp_path, database_url)


@pytest.fixture
def cli(bare: Cli) -> Iterator[Cli]:
    """A cluster without devices. The hearts of those that a test adds as online beat until it ends."""
    bare("init")
    ended = threading.Event()

    def beat() -> None:
        with bare.db() as db:
            while not ended.wait(1.0):
                for name in list(bare.online):
                    db.heartbeat(name)

    heart = threading.Thread(target=beat)
    heart.start()
    yield bare
    ended.set()
    heart.join()


@pytest.fixture
def nowhere(tmp_path: Path) -> Cli:
    """For what must be found wrong before any database is asked."""
    return Cli(tmp_path, "postgresql://127.0.0.1:1/none")


# ------------------------------------------------------------------------------------------ the frame


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["repo", "import", "--help"], ["status", "--help"]]
)
def test_help_and_version_import_nothing_slow(arguments: list[str]) -> None:
    script = (
        "import sys, cluster.cli\n"
        f"try: cluster.cli.main({arguments!r})\n"
        "finally: print([m for m in ('psycopg', 'paramiko', 'rich', 'cryptography') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(nowhere: Cli) -> None:
    assert re.fullmatch(r"git-cluster \d+\.\d+\.\d+\n", nowhere("--version").out)


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["user"],
        ["user", "add"],
        ["repo", "create", "a", "--min-copies", "0"],
        ["repo", "create", "../a"],
        ["device", "drain", "A"],
        ["status", "--watch"],
        ["status", "--nonsense"],
        ["thaw", "a", "--demote", "a", "--promote", "b"],
        ["grant", "own", "ann", "*"],
        ["repo", "create", "a", "--object-format", "md5"],
        ["repo", "set", "a"],
        ["log", "a", "--limit", "0"],
    ],
)
def test_wrong_usage_exits_2(nowhere: Cli, arguments: list[str]) -> None:
    if arguments == ["user"]:
        assert "Commands:" in nowhere("user", code=2).err
    else:
        nowhere.fails(*arguments, code=2)


def test_config_stands_before_or_after_the_subcommand(cli: Cli) -> None:
    other = cli.directory / "other.toml"
    other.write_text(cli.config.read_text().replace("example", "other"))
    for arguments in (
        ["--config", str(other), "status"],
        ["status", "--config", str(other)],
    ):
        assert cli.json(*arguments)["cluster"] == "other"
    cli("user", "--config", other, "list")
    assert cli.json("status")["cluster"] == "example"
    assert "there is no such configuration file" in cli.fails("status", "--config", cli.directory / "none")


def test_init_is_safe_to_repeat(bare: Cli) -> None:
    assert "no git-cluster schema yet" in bare.fails("status")
    assert bare("init").out == "cluster example: schema 5 created\n"
    assert bare("init").out == "cluster example: schema 5 unchanged\n"
    assert bare.json("init")["outcome"] == "unchanged"


def test_a_database_that_is_not_there(bare: Cli) -> None:
    bare.config.write_text('[cluster]\ndatabase = "postgresql://ann:secret@127.0.0.1:1/x"\n')
    done = bare("status", code=1)
    assert "no connection to the cluster's database" in done.err
    assert "secret" not in done.text


def test_something_unforeseen_is_one_line_unless_debug_is_on(cli: Cli) -> None:
    with cli.db() as db, db.dedicated() as connection:
        connection.execute("alter table access_grant rename to other")
    what = cli.fails("grant", "list")
    assert what.startswith("something went wrong: UndefinedTable: ")
    done = subprocess.run(
        [*PROGRAM, "grant", "list", "--debug"],
        env=cli.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr


def test_a_reader_that_goes_away_is_no_error(cli: Cli) -> None:
    with cli.db() as db:
        for number in range(2000):
            db.grant(Level.READ, None, f"{'x' * 90}/{number}")
    for arguments in (["grant", "list"], ["grant", "list", "--json"]):
        with subprocess.Popen(
            [*PROGRAM, *arguments], env=cli.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout and process.stderr
            process.stdout.read(1)
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(60) == 141


@contextmanager
def in_terminal(
    cli: Cli, *arguments: str, columns: int = 100
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[..., str]]]:
    """A command in a terminal of its own, and a way to wait until it shows something."""
    ours, theirs = pty.openpty()
    environment = cli.environment(TERM="xterm-256color", COLUMNS=str(columns), LINES="40")
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = ""

    def until(text: str = "", timeout: float = 30.0) -> str:
        """What it showed so far, once `text` is in it; without a text, once it ends."""
        nonlocal shown
        deadline = time.monotonic() + timeout
        while not (text and text in shown):
            assert time.monotonic() < deadline, f"{text!r} is not in {shown!r}"
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    data = os.read(ours, 65536)
                except OSError:  # Linux's end of file on a terminal
                    data = b""
                if not data:
                    assert not text, f"{text!r} is not in {shown!r}"
                    break
                shown += data.decode()
        return shown

    try:
        yield process, until
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_colours_in_a_terminal_and_none_in_a_pipe(cli: Cli) -> None:
    cli.add_device("a")
    with in_terminal(cli, "status") as (process, until):
        assert "\x1b[32monline" in until()
        assert process.wait(30) == 0
    assert cli("status").out.startswith("cluster example\n\nDEVICE  STATE   LAST_SEEN\na       online  ")


def test_plain_tables_are_never_cut(cli: Cli) -> None:
    name = "x" * 60 + "/" + "y" * 90
    cli.add_device("a", online=False)
    cli("repo", "create", name)
    for command in (["repo", "list"], ["status"]):
        assert any(line.startswith(name + "  ") for line in cli(*command).out.splitlines())


def test_watch_shows_what_changes_until_ctrl_c(cli: Cli) -> None:
    with in_terminal(cli, "status", "--watch") as (process, until):
        until("no device yet")
        cli.add_device("a")
        until("online")
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in until()
        assert process.wait(30) == 130


# ------------------------------------------------------------------------------------------ who may what


def test_users_keys_grants(cli: Cli) -> None:
    assert cli("user", "list").out == ""
    cli("user", "add", "ann")
    assert cli.fails("user", "add", "ann") == "there is a user ann already"
    for name in ("everyone", "Everyone", "operator"):
        assert "cannot be called" in cli.fails("user", "add", name, code=2)
    cli.fails("user", "add", "-x", code=2)
    cli.fails("user", "add", "a b", code=2)

    public = cli.key("id")
    fingerprint = re.findall(r"SHA256:\S+", cli("key", "add", "ann", public).out)[0]
    assert cli.fails("key", "add", "ann", public) == "this key is registered already"
    assert cli.fails("key", "add", "bob", cli.key("other")) == "there is no user bob"
    assert "private key" in cli.fails("key", "add", "ann", cli.directory / "id", code=2)
    cli.fails("key", "add", "ann", cli.directory / "none", code=2)
    more = cli.key("third").read_text()
    cli("key", "add", "ann", "-", data=more)
    listed = cli.json("key", "list", "ann")
    assert [key["user"] for key in listed] == ["ann", "ann"]
    assert listed[0]["fingerprint"] == fingerprint
    assert listed[0]["comment"] == "id"
    assert listed[1]["public_key"] == " ".join(more.split()[:2])
    cli("key", "remove", fingerprint)
    assert "no user has the key" in cli.fails("key", "remove", fingerprint)
    cli.fails("key", "remove", "MD5:00", code=2)

    cli("grant", "read", "everyone", "team/*")
    cli("grant", "write", "ann", "team/app")
    cli("grant", "admin", "ann", "team/app")
    assert cli.json("grant", "list") == [
        {"actor": "everyone", "level": "read", "pattern": "team/*"},
        {"actor": "ann", "level": "admin", "pattern": "team/app"},
    ]
    cli("revoke", "ann", "team/app")
    assert "no grant on team/app" in cli.fails("revoke", "ann", "team/app")
    cli("user", "remove", "ann")
    assert cli.json("key", "list") == []
    assert cli.fails("user", "remove", "ann") == "there is no user ann"


def test_a_user_who_is_not_there_is_not_everyone(cli: Cli) -> None:
    """Everyone is stored as null, and so is what a look-up of nobody finds."""
    cli("grant", "read", "everyone", "team/*")
    assert "nobody has no grant" in cli.fails("revoke", "nobody", "team/*")
    assert cli.fails("grant", "admin", "nobody", "*") == "there is no user nobody"
    assert cli.fails("grant", "list", "nobody") == "there is no user nobody"
    assert cli.json("grant", "list") == [{"actor": "everyone", "level": "read", "pattern": "team/*"}]


def test_access_explains(cli: Cli) -> None:
    cli("user", "add", "ann")
    cli("grant", "read", "everyone", "*")
    cli("grant", "write", "ann", "team/*")
    out = cli("access", "ann", "team/app").out
    assert out.splitlines() == [
        "ann may write: grant write to ann on team/*",
        "there is no repository team/app yet",
        "ann has no key yet: `git-cluster key add ann FILE`",
    ]
    found = cli.json("access", "everyone", "team/app")
    assert (found["level"], found["pattern"], found["exists"]) == ("read", "*", False)
    cli("revoke", "everyone", "*")
    assert cli.json("access", "ann", "other")["level"] is None
    assert cli.fails("access", "nobody", "team/app") == "there is no user nobody"


# ------------------------------------------------------------------------------------------ what is where


def test_the_life_of_a_device(cli: Cli) -> None:
    cli.add_device("a")
    cli.add_device("b", online=False)
    key = cli.directory / "a_key.pub"
    assert "registered already" in cli.fails(
        "device", "add", "c", "--ssh", "ssh://git@h", "--key", key, "--host-key", key
    )
    listed = {device["name"]: device for device in cli.json("device", "list")}
    assert (listed["a"]["state"], listed["b"]["state"], listed["b"]["last_seen_at"]) == (
        "online",
        "offline",
        None,
    )
    assert listed["a"]["ssh"] == "ssh://git@127.0.0.1:2222"
    cli("repo", "create", "team/app")
    assert "team/app" in cli("device", "drain", "a").out
    assert cli.json("device", "list")[0]["state"] == "draining"
    assert "takes no new repositories" in cli.fails("repo", "create", "other", "--device", "a")
    assert cli.fails("device", "remove", "a") == "device a still holds replicas"
    cli("device", "enable", "a")
    assert cli.json("device", "list")[0]["mode"] == "enabled"
    cli("device", "drain", "b")
    assert cli.fails("device", "drain", "zz") == "there is no device zz"
    cli("repo", "delete", "team/app")
    with cli.db() as db:
        for number in db.held("b"):
            db.forget_replica(number, "b")  # as b's daemon does, once it has dropped its copy
    cli("device", "remove", "b")
    assert [device["name"] for device in cli.json("device", "list")] == ["a"]


@pytest.mark.parametrize(
    "url",
    [
        "https://h",
        "ssh://h",
        "ssh://git@h/path",
        "ssh://git:pw@h",
        "ssh://git@-oProxyCommand=x",
        "ssh://git@h:0",
        "git@h:x",
    ],
)
def test_the_ssh_url_of_a_device_is_checked(nowhere: Cli, url: str) -> None:
    key = nowhere.key("k")
    assert "not the SSH URL" in nowhere.fails(
        "device", "add", "a", "--ssh", url, "--key", key, "--host-key", key, code=2
    )


def test_repositories(cli: Cli) -> None:
    assert cli.fails("repo", "create", "team/app").startswith("no device could hold it")
    cli.add_device("a")
    assert cli.json("repo", "create", "one")["min_copies"] == 1
    cli.add_device("b")
    cli.add_device("c")
    assert cli.json("repo", "create", "team/app.git") == {
        "name": "team/app",
        "devices": ["a", "b", "c"],
        "min_copies": 2,
        "urls": ["ssh://git@127.0.0.1:2222/team/app"] * 3,
    }
    assert cli.json("repo", "create", "two", "--device", "c", "--device", "a", "--device", "c")[
        "devices"
    ] == ["c", "a"]
    assert cli.fails("repo", "create", "two") == "there is a repository two already"
    assert "more than its 1 device" in cli.fails("repo", "create", "x", "--device", "a", "--min-copies", "2")
    assert cli.fails("repo", "create", "x", "--device", "zz") == "there is no device zz"
    cli("repo", "create", "fine", "--default-branch", "trunk", "--object-format", "sha256")
    shown = cli.json("repo", "show", "fine")
    assert (shown["default_branch"], shown["object_format"], shown["version"]) == ("trunk", "sha256", 0)
    assert "default branch: trunk" in cli("repo", "show", "fine").out
    assert [row["name"] for row in cli.json("repo", "list")] == ["fine", "one", "team/app", "two"]

    cli("repo", "rename", "two", "team/two")
    assert cli.fails("repo", "rename", "two", "x") == "there is no repository two"
    assert cli.fails("repo", "rename", "one", "team/two") == "there is a repository team/two already"
    cli("repo", "delete", "team/two")
    for command in (
        ["repo", "show"],
        ["repo", "delete"],
        ["log"],
        ["status"],
        ["freeze", "--reason", "x"],
        ["sync"],
    ):
        assert cli.fails(*command, "team/two") == "there is no repository team/two"
    assert cli.json("log", "one") == []


def test_repo_set_checks_everything_before_it_changes_anything(cli: Cli) -> None:
    for name in "abc":
        cli.add_device(name)
    cli("repo", "create", "r", "--device", "a", "--device", "b")
    for arguments, says in (
        (["--min-copies", "3"], "more than its 2 devices"),
        (["--remove-device", "b"], "more than its 1 device"),
        (["--remove-device", "c"], "does not hold r"),
        (["--add-device", "c", "--remove-device", "c"], "does not hold r"),
        (["--add-device", "zz"], "there is no device zz"),
        (["--add-device", "a"], "holds this repository already"),
    ):
        assert says in cli.fails("repo", "set", "r", *arguments)
    before = cli.json("repo", "show", "r")
    assert [replica["device"] for replica in before["replicas"]] == ["a", "b"]
    cli("repo", "set", "r", "--add-device", "c", "--min-copies", "3", "--when-short", "refuse")
    after = cli.json("repo", "show", "r")
    assert (after["min_copies"], after["when_short"], len(after["replicas"])) == (3, "refuse", 3)
    assert "cannot be removed" in cli.fails("repo", "set", "r", "--remove-device", "c", "--min-copies", "1")


def test_status_follows_the_write_lock(cli: Cli) -> None:
    """An intent is "writing" while its lock is held, and "frozen" from the moment that it is not."""
    cli.add_device("a")
    assert cli("status", "--check").code == 0
    cli("repo", "create", "r")
    cli("status", "--check", code=1)  # the device has no copy yet
    with cli.db() as db:
        snapshot = db.snapshot("r")
        id, base = snapshot.repository.id, snapshot.repository.position
        db.synced(id, "a", None, base)
        assert "healthy" in cli("status", "r", "--check").out
        update = RefUpdate("refs/heads/main", ZERO, ONE)
        intent = Intent(uuid4(), uuid4(), "ann", "ssh", "", datetime.now(UTC), (update,))
        with db.dedicated() as connection:
            assert db.try_write_lock(connection, id, lock_label("a", "ann"))
            db.intend(connection, id, "a", base, intent)
            (replica,) = cli.json("status", "r")["repositories"][0]["replicas"]
            assert (replica["state"], replica["is_writing"], replica["writer"]) == ("writing", True, "ann")
            cli("status", "--check")
        entry = cli.json("status")["repositories"][0]
        assert (entry["state"], entry["replicas"][0]["state"]) == ("frozen", "frozen")
        assert "git-cluster thaw r --dry-run" in entry["reason"]
        cli("status", "--check", "--json", code=1)
        assert "r is frozen: a write by ann on device a was interrupted" in cli("status").out
        assert db.clear_intent(id, intent.token)
    cli("freeze", "r", "--reason", "moving\nhouse \x1b[31m")
    assert "moving house ?[31m" in cli.json("status")["repositories"][0]["reason"]
    assert cli.fails("freeze", "r", "--reason", " ", code=2) == "--reason is empty"


# ------------------------------------------------------------------------------------------ imports that fail


def operator_keys(cli: Cli) -> int:
    with cli.db() as db, db.dedicated() as connection:
        rows = connection.execute("select from key where actor_id is null and device_id is null").fetchall()
        return len(rows)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository with a commit."""
    path = tmp_path / "source"
    subprocess.run(["git", "init", "--quiet", "-b", "trunk", path], check=True)
    who = ["-c", "user.name=ann", "-c", "user.email=ann@example.org"]
    subprocess.run(["git", "-C", path, *who, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    return path


def test_an_import_that_cannot_begin_says_why(cli: Cli, source: Path, tmp_path: Path) -> None:
    cli.add_device("a")
    assert cli.fails("repo", "import", "r", tmp_path / "none").startswith("there is nothing at ")
    (tmp_path / "folder").mkdir()
    assert "is not a Git repository" in cli.fails("repo", "import", "r", tmp_path / "folder")
    assert "cannot be fetched" in cli.fails("repo", "import", "r", f"file://{tmp_path}/none")
    subprocess.run(
        ["git", "clone", "-q", "--depth", "1", f"file://{source}", tmp_path / "shallow"], check=True
    )
    assert "shallow" in cli.fails("repo", "import", "r", tmp_path / "shallow")
    cli("repo", "create", "taken")
    assert cli.fails("repo", "import", "taken", source) == "there is a repository taken already"
    assert [row["name"] for row in cli.json("repo", "list")] == ["taken"]


def test_an_empty_repository_is_imported_without_any_device(cli: Cli, tmp_path: Path) -> None:
    cli.add_device("a", online=False)
    subprocess.run(
        ["git", "init", "-q", "--object-format=sha256", "-b", "dev", tmp_path / "empty"], check=True
    )
    made = cli.json("repo", "import", "r", str(tmp_path / "empty"))
    assert (made["refs"], made["version"], made["default_branch"], made["pushed_to"]) == (0, 0, "dev", None)
    assert cli.json("repo", "show", "r")["object_format"] == "sha256"


def test_a_failed_push_leaves_nothing_of_an_import(cli: Cli, source: Path) -> None:
    cli.add_device("a", online=False)
    assert "no device that would hold it is online" in cli.fails("repo", "import", "r", source)
    with socket.create_server(("127.0.0.1", 0)) as server:  # something answers there, and it is not a device

        def hang_up() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=hang_up, daemon=True).start()
        cli.add_device("b", server.getsockname()[1])
        assert "the push to device b failed" in cli.fails("repo", "import", "r", source)
    assert cli.json("repo", "list") == []
    assert operator_keys(cli) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_import_leaves_nothing(
    cli: Cli, source: Path, number: signal.Signals, code: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes connections, and never says a word
        cli.add_device("a", server.getsockname()[1])
        with subprocess.Popen(
            [*PROGRAM, "repo", "import", "r", str(source)],
            env=cli.environment(TMPDIR=str(cli.directory)),
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            deadline = time.monotonic() + 30
            while operator_keys(cli) == 0:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(number)
            assert process.wait(30) == code
            assert process.stderr and "Traceback" not in process.stderr.read()
    assert cli.json("repo", "list") == []
    assert operator_keys(cli) == 0
    assert not list(cli.directory.glob("git-cluster-*"))


# ------------------------------------------------------------------------------------------ with real devices


def test_an_import_is_one_version_with_every_ref(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("ab")
    work = cluster.work("source")
    cluster.commit(work, "two")
    cluster.ok("branch", "other", "HEAD~1", cwd=work)
    cluster.ok("tag", "-a", "-m", "a tag", "v1", cwd=work)
    for ref in ("refs/pull/1/head", "refs/notes/commits", "refs/cluster/lost/x"):
        cluster.ok("update-ref", ref, "HEAD", cwd=work)
    cluster.ok("checkout", "--quiet", "--detach", cwd=work)
    made = cluster.admin_json("repo", "import", "team/copy", str(work))
    assert (made["version"], made["refs"], made["default_branch"]) == (1, 5, "main")
    wanted = {
        ref: oid
        for oid, ref in (line.split("\t") for line in cluster.ok("ls-remote", str(work)).splitlines())
        if not ref.startswith("refs/cluster/")
    }
    assert cluster.refs("b", "team/copy") == wanted
    (entry,) = cluster.admin_json("log", "team/copy")
    assert sorted(entry) == ["actor", "at", "device", "events", "refs", "version", "via"]
    assert len(entry["refs"]) == 5
    cluster.converge("team/copy")
    assert "operator" in cluster.admin("log", "team/copy").out


def test_a_sha256_repository_is_imported_as_one(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("a")
    path = cluster.directory / "fine"
    cluster.ok("init", "--quiet", "--object-format=sha256", "-b", "dev", str(path))
    cluster.commit(path, "one")
    cluster.admin_json("repo", "import", "fine", str(path))
    shown = cluster.admin_json("repo", "show", "fine")
    assert (shown["object_format"], shown["default_branch"], shown["state"]) == ("sha256", "dev", "healthy")


def test_devices_do_what_an_operator_asks(cluster: Cluster) -> None:
    work = cluster.work()
    cluster.ok("push", "--quiet", cluster.url("a"), "main", "main:refs/heads/next", cwd=work)
    rows = cluster.admin_json("sync")
    assert [(row["device"], row["ok"], row["result"]["version"]) for row in rows] == [
        ("a", True, 1), ("b", True, 1), ("c", True, 1),
    ]  # fmt: skip
    assert (
        cluster.admin("verify", "team/app", "--device", "b").out == "team/app on b  ok  version 1, verified\n"
    )
    assert (
        "default branch next, version 2"
        in cluster.admin("repo", "set", "team/app", "--default-branch", "next").out
    )
    assert cluster.admin_json("repo", "show", "team/app")["default_branch"] == "next"
    missing = cluster.admin("repo", "set", "team/app", "--default-branch", "none")
    assert (missing.code, missing.err.splitlines()[0]) == (1, "git-cluster: team/app has no branch none")

    cluster.stop("c")
    done = cluster.admin("sync", "team/app")
    assert done.code == 1
    assert "team/app on b  ok  version 2" in done.out
    assert "team/app on c  failed  device c cannot be reached" in done.out
    assert cluster.admin("status", "--check").code == 1

    cluster.admin("freeze", "team/app", "--reason", "moving house")
    refused = cluster.git("push", cluster.url("a"), "main:refs/heads/more", cwd=work)
    assert refused.code != 0
    assert "moving house" in refused.err
    assert cluster.admin("thaw", "team/app", "--dry-run").code == 0
    assert cluster.snapshot().repository.frozen
    assert cluster.admin_json("thaw", "team/app")["dry_run"] is False
    cluster.ok("push", "--quiet", cluster.url("a"), "main:refs/heads/more", cwd=work)
    with cluster.db.dedicated() as connection:
        assert not connection.execute(
            "select from key where actor_id is null and device_id is null"
        ).fetchall()
