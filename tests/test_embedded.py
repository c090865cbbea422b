"""cluster.embedded: real PostgreSQL servers, started, stopped, crashed and raced for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from cluster import embedded
from cluster.errors import DatabaseUnavailable

STARTER = (
    "import sys, pathlib; from cluster import embedded; print(embedded.start(pathlib.Path(sys.argv[1])))"
)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "pg"
    yield place
    embedded.stop(place)


def ask(url: str, statement: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def processes_in(directory: Path) -> list[int]:
    """Every live process whose working directory is `directory`: the server and its backends."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").samefile(directory):
                found.append(int(entry.name))
    return found


def postmaster(directory: Path) -> int:
    return int((directory / "postmaster.pid").read_text().split()[0])


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.02)


def test_starting_twice_is_one_server(directory: Path) -> None:
    url = embedded.start(directory)
    pid = postmaster(directory)
    assert embedded.start(directory) == url
    assert postmaster(directory) == pid
    assert ask(url, "SELECT current_user") == "postgres"


def test_settings(directory: Path) -> None:
    url = embedded.start(directory)
    wanted = {
        "fsync": "on",
        "synchronous_commit": "on",
        "max_connections": "200",
        "listen_addresses": "",
        "server_encoding": "UTF8",
        "unix_socket_permissions": "0700",
    }
    assert {name: ask(url, f"SHOW {name}") for name in wanted} == wanted
    (socket,) = directory.glob(".s.PGSQL.*[0-9]")
    assert socket.stat().st_mode & 0o777 == 0o700


def test_the_environment_of_the_caller_is_about_another_server(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGPORT": "6000", "PGDATA": "/nowhere", "LC_ALL": "xx_XX.UTF-8"}.items():
        monkeypatch.setenv(name, value)
    assert ask(embedded.start(directory), "SHOW port") == "5432"


def test_data_survives_stop_and_start(directory: Path) -> None:
    url = embedded.start(directory)
    ask(url, "CREATE TABLE kept AS SELECT 7 AS n")
    embedded.stop(directory)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    assert ask(embedded.start(directory), "SELECT n FROM kept") == 7


def test_stop_leaves_no_process_and_can_be_repeated(directory: Path) -> None:
    embedded.stop(directory)  # nothing there yet
    with psycopg.connect(embedded.start(directory)):  # an open connection does not hold it up
        assert len(processes_in(directory)) > 1
        embedded.stop(directory)
    assert processes_in(directory) == []
    assert not (directory / "postmaster.pid").exists()
    embedded.stop(directory)


def test_what_was_committed_survives_a_crash(directory: Path) -> None:
    url = embedded.start(directory)
    ask(url, "CREATE TABLE kept AS SELECT 7 AS n")
    with psycopg.connect(url):
        embedded.crash(directory)
        assert processes_in(directory) == []
    assert ask(embedded.start(directory), "SELECT n FROM kept") == 7
    assert "automatic recovery" in (directory / "log").read_text()


@pytest.mark.parametrize("pid_is_now", ["gone", "a zombie", "another process"])
def test_starts_after_a_kill_whatever_became_of_the_pid(directory: Path, pid_is_now: str) -> None:
    embedded.start(directory)
    owner = directory.stat().st_uid
    os.kill(postmaster(directory), signal.SIGKILL)
    wait_until(lambda: processes_in(directory) == [])

    other = subprocess.Popen(["sleep", "60"], user=owner if os.geteuid() == 0 else None)
    try:
        if pid_is_now != "gone":
            for lock in directory / "postmaster.pid", directory / ".s.PGSQL.5432.lock":
                _, *rest = lock.read_text().splitlines(keepends=True)
                lock.write_text("".join([f"{other.pid}\n", *rest]))
        if pid_is_now == "a zombie":
            other.kill()
            wait_until(lambda: ") Z " in Path(f"/proc/{other.pid}/stat").read_text())
        assert ask(embedded.start(directory), "SELECT 1") == 1
        if pid_is_now == "another process":
            assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("name", ["with space and 'quote", "comma,comma", "per%cent é"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    try:
        assert ask(embedded.start(directory), "SELECT 1") == 1
    finally:
        embedded.stop(directory)


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    directory = tmp_path.joinpath(*(["a-rather-long-name"] * 12), "pg")
    url = embedded.start(directory)
    try:
        assert ask(url, "SHOW data_directory") == str(directory)
        assert embedded.start(directory) == url
        socket_dir = Path(str(ask(url, "SHOW unix_socket_directories")))
        assert socket_dir.stat().st_mode & 0o777 == 0o700
    finally:
        embedded.stop(directory)
    assert not socket_dir.exists()


def test_processes_that_start_it_at_once_get_one_server(directory: Path) -> None:
    command = [sys.executable, "-c", STARTER, str(directory)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    urls = {racer.communicate(timeout=60)[0].strip() for racer in racers}
    assert [racer.returncode for racer in racers] == [0, 0, 0, 0]
    (url,) = urls
    assert ask(url, "SELECT 1") == 1
    assert (directory / "log").read_text().count("starting PostgreSQL") == 1


def test_a_start_cut_off_in_initdb_is_begun_again(directory: Path) -> None:
    left = directory.with_name("pg.new")
    left.mkdir()
    (left / "PG_VERSION").write_text("18\n")
    assert ask(embedded.start(directory), "SELECT 1") == 1
    assert not left.exists()


def test_outlives_the_process_that_started_it_and_its_ctrl_c(directory: Path) -> None:
    code = STARTER + "; sys.stdout.flush(); import time; time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as starter:
        assert starter.stdout is not None
        url = starter.stdout.readline().strip()
        os.killpg(starter.pid, signal.SIGINT)  # what a terminal does
        assert starter.wait(10) != 0
    assert ask(url, "SELECT 1") == 1


def test_prints_nothing(directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", STARTER, str(directory)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("postgresql://postgres:@/postgres?host=")
    assert done.stdout.count("\n") == 1


def test_files_of_somebody_else_are_left_alone(directory: Path) -> None:
    directory.mkdir()
    (directory / "thesis.txt").write_text("the only copy")
    with pytest.raises(DatabaseUnavailable, match="holds other files"):
        embedded.start(directory)
    assert [entry.name for entry in directory.iterdir()] == ["thesis.txt"]


def test_data_of_another_major_version(directory: Path) -> None:
    directory.mkdir()
    (directory / "PG_VERSION").write_text("12\n")
    with pytest.raises(DatabaseUnavailable, match="its data is of version 12"):
        embedded.start(directory)


def test_a_server_that_cannot_start_says_where_to_look(directory: Path) -> None:
    embedded.start(directory)
    embedded.stop(directory)
    with (directory / "postgresql.conf").open("a") as configuration:
        configuration.write("no_such_setting = 1\n")
    with pytest.raises(DatabaseUnavailable) as raised:
        embedded.start(directory)
    assert "log" in raised.value.hint
    assert str(directory) not in " ".join(raised.value.lines())
    assert isinstance(raised.value.__cause__, subprocess.CalledProcessError)


def test_a_place_that_cannot_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseUnavailable, match="cannot use its directory"):
        embedded.start(tmp_path / "file" / "pg")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user for the server")
def test_as_root_a_private_parent_can_be_passed_but_not_listed(tmp_path: Path) -> None:
    parent = tmp_path / "private"
    parent.mkdir(mode=0o700)
    directory = parent / "pg"
    try:
        assert ask(embedded.start(directory), "SELECT 1") == 1
        assert parent.stat().st_mode & 0o777 == 0o701
        assert directory.stat().st_mode & 0o777 == 0o700
        assert directory.stat().st_uid != 0
    finally:
        embedded.stop(directory)
