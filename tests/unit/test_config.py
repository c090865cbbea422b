"""The configuration file: what it may say, and what a person is told where it says something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import config, names
from cluster.errors import ConfigError, UsageError

FULL = """
[cluster]
database = "postgresql://ann:hunter2@db.example/cluster"
name = "example"

[device]
name = "a"
data_dir = "/var/lib/git-cluster"
key = "keys/device_ed25519"

[ssh]
listen = "0.0.0.0:2222"
advertise = "ssh://git@a.example:2222"
host_key = "/etc/git-cluster/ssh_host_ed25519"

[http]
listen = "[::1]:8080"

[writes]
lock_timeout = "2m"
commit_timeout = 5.5
fence_after = "500ms"
heal = "auto"

[reads]
stale = "allow"

[upkeep]
verify_every = "30d"
prune_after = "36h"
most_packs = 50

[limits]
login_grace = "10s"
sessions_per_address = 20
sessions_per_user = 10
idle_timeout = "5m"
session_timeout = "24h"
push_size = "500MiB"
push_refs = 1000
failed_logins = 3
"""

CLUSTER = '[cluster]\ndatabase = "host=db"\n'
HTTP = CLUSTER + "[http]\nlisten = '127.0.0.1:80'\n"
DEVICE = '[device]\nname = "a"\ndata_dir = "d"\nkey = "k"\n'


def load(folder: Path, text: str) -> config.Config:
    file = folder / "config.toml"
    file.write_text(text)
    return config.load(file, {})


def test_everything(tmp_path: Path) -> None:
    loaded = load(tmp_path, FULL)
    assert loaded == config.Config(
        path=tmp_path / "config.toml",
        cluster=config.ClusterSection("postgresql://ann:hunter2@db.example/cluster", "example"),
        device=config.DeviceSection("a", Path("/var/lib/git-cluster"), tmp_path / "keys/device_ed25519"),
        ssh=config.SshSection(
            listen=config.Address("0.0.0.0", 2222),
            advertise="ssh://git@a.example:2222",
            host_key=Path("/etc/git-cluster/ssh_host_ed25519"),
        ),
        http=config.HttpSection(config.Address("::1", 8080)),
        writes=config.WritesSection(lock_timeout=120.0, commit_timeout=5.5, fence_after=0.5, heal="auto"),
        reads=config.ReadsSection(stale="allow"),
        upkeep=config.UpkeepSection(verify_every=30 * 86400.0, prune_after=36 * 3600.0, most_packs=50),
        limits=config.LimitsSection(
            login_grace=10.0,
            sessions_per_address=20,
            sessions_per_user=10,
            idle_timeout=300.0,
            session_timeout=86400.0,
            push_size=500 * 2**20,
            push_refs=1000,
            failed_logins=3,
        ),
    )
    assert loaded.http
    assert str(loaded.http.listen) == "[::1]:8080"


def test_the_least(tmp_path: Path) -> None:
    loaded = load(tmp_path, '[cluster]\ndatabase = "host=db dbname=cluster"\n')
    assert (loaded.device, loaded.ssh, loaded.http) == (None, None, None)
    assert loaded.writes == config.WritesSection(120.0, 300.0, 30.0, config.DEFAULT_HEAL)
    assert loaded.reads == config.ReadsSection("refuse")
    assert loaded.upkeep == config.UpkeepSection(7 * 86400.0, 14 * 86400.0, 20)
    assert loaded.limits == config.LimitsSection(30.0, 200, 100, 1800.0, 43200.0, 10 * 2**30, 100_000, 10)
    assert not loaded.cluster.embedded


def test_where_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(f'[cluster]\ndatabase = "host=db"\nname = "{name}"\n')
    environ = {config.VARIABLE: str(tmp_path / "two")}
    assert config.load(tmp_path / "one", environ).cluster.name == "one"
    assert config.load(None, environ).cluster.name == "two"
    monkeypatch.chdir(tmp_path)
    assert config.load(Path("one"), {}).path == tmp_path / "one"
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "one")
    assert config.load(None, {config.VARIABLE: ""}).cluster.name == "one"


@pytest.mark.parametrize(
    "database", ["embedded", "postgresql://h/d", "postgres://h", "host=h", " dbname = d"]
)
def test_databases(tmp_path: Path, database: str) -> None:
    loaded = load(tmp_path, f'[cluster]\ndatabase = "{database}"\n{DEVICE}')
    assert loaded.cluster.database == database
    assert loaded.cluster.embedded is (database == "embedded")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ('"120s"', 120),
        ('"5m"', 300),
        ('"1h"', 3600),
        ('"500ms"', 0.5),
        ('"90"', 90),
        ("90", 90),
        ("1.5", 1.5),
        ('"1d"', 86400),
    ],
)
def test_durations(tmp_path: Path, value: str, seconds: float) -> None:
    assert load(tmp_path, f"{CLUSTER}[writes]\nlock_timeout = {value}\n").writes.lock_timeout == seconds


@pytest.mark.parametrize("value", ["1" + "0" * 400, "-1" + "0" * 400, "0x" + "f" * 4500])
@pytest.mark.parametrize("key", ["[writes]\nlock_timeout", "[upkeep]\nmost_packs", "[limits]\npush_size"])
def test_a_number_that_nobody_can_mean(tmp_path: Path, key: str, value: str) -> None:
    """float() overflows on the first, str() refuses the last: neither is a traceback for an administrator."""
    file = tmp_path / "config.toml"
    file.write_text(f'[cluster]\ndatabase = "postgresql://x"\n{key} = {value}\n')
    with pytest.raises(ConfigError, match="not what is there"):
        config.load(file, {})


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("1", 1),
        ('"1"', 1),
        ('"10 KiB"', 10240),
        ('"500MiB"', 500 * 2**20),
        ('"2GiB"', 2**31),
        ('"1024TiB"', 2**50),
        ("1125899906842624", 2**50),
    ],
)
def test_sizes(tmp_path: Path, value: str, size: int) -> None:
    assert load(tmp_path, f"{CLUSTER}[limits]\npush_size = {value}\n").limits.push_size == size


@pytest.mark.parametrize(
    "value", ["0", "-1", "1.5", '"10GB"', '"1.5GiB"', '"1025TiB"', "true", "''", "[1]", "2e3"]
)
def test_what_is_no_size(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"\[limits\] push_size must be bytes as a whole number"):
        load(tmp_path, f"{CLUSTER}[limits]\npush_size = {value}\n")


@pytest.mark.parametrize("key", ["sessions_per_address", "sessions_per_user", "push_refs", "failed_logins"])
@pytest.mark.parametrize("value", ["0", "-1", "10000001", "1.0", "true", "'5'", "inf"])
def test_what_is_no_count(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[limits\] {key} must be a whole number from 1 to 10000000"):
        load(tmp_path, f"{CLUSTER}[limits]\n{key} = {value}\n")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["[cluster] is missing"]),
        ("[cluster]\nname = 'x'\n", ["[cluster] database is missing"]),
        ("[cluster]\ndatabase = 'host=db'\n\nname 'x'\n", ["not TOML", "line 4"]),
        (CLUSTER + "[write]\n", ["[write] is unknown", "[cluster], [device]", "[writes]", "mean writes?"]),
        (CLUSTER + "[zzz]\n", ["[zzz] is unknown"]),
        ("colour = 1\n" + CLUSTER, ["colour is unknown", "allowed: [cluster]"]),
        ("device = 1\n" + CLUSTER, ["device must be a table"]),
        ("[[cluster]]\ndatabase = 'x'\n", ["cluster must be a table"]),
        (
            CLUSTER + "[writes]\nlock_time = 1\n",
            [
                "[writes] lock_time is unknown; allowed: lock_timeout, commit_timeout, fence_after, heal",
                "mean lock_timeout?",
            ],
        ),
        (CLUSTER + '[writes]\n"a\\nb" = 1\n', ["[writes] a?b is unknown"]),
        (
            CLUSTER + "[writes]\nlock_timeout = 'soon'\n",
            ["[writes] lock_timeout must be", '"5m"', "not 'soon'"],
        ),
        (CLUSTER + "[writes]\nlock_timeout = 0\n", ["more than 0"]),
        (CLUSTER + "[writes]\nlock_timeout = -1\n", ["more than 0"]),
        (CLUSTER + "[writes]\nlock_timeout = '25h'\n", ["24 hours"]),
        (CLUSTER + "[writes]\nlock_timeout = inf\n", ["not inf"]),
        (CLUSTER + "[writes]\nlock_timeout = nan\n", ["not nan"]),
        (CLUSTER + "[writes]\nlock_timeout = true\n", ["not True"]),
        (CLUSTER + "[writes]\nlock_timeout = ['1s']\n", ["not a list"]),
        (CLUSTER + "[writes]\nheal = 'maybe'\n", ['[writes] heal must be "manual" or "auto"', "not 'maybe'"]),
        (CLUSTER + "[writes]\nlock_timeout = '2d'\n", ["24 hours", "not '2d'"]),
        (CLUSTER + "[reads]\nstale = true\n", ['[reads] stale must be "refuse" or "allow"', "not True"]),
        (CLUSTER + "[reads]\nfresh = 1\n", ["[reads] fresh is unknown; allowed: stale"]),
        (
            CLUSTER + "[upkeep]\nverify_every = '367d'\n",
            ["[upkeep] verify_every must be", '"7d"', "366 days"],
        ),
        (CLUSTER + "[upkeep]\nprune_after = '10m'\n", ["[upkeep] prune_after must be", "at least an hour"]),
        (
            CLUSTER + "[upkeep]\nmost_packs = 1\n",
            ["[upkeep] most_packs must be a whole number from 2 to 1000"],
        ),
        (CLUSTER + "[upkeep]\nmost_packs = true\n", ["most_packs", "not True"]),
        (CLUSTER + "[upkeep]\nverify = 1\n", ["[upkeep] verify is unknown", "mean verify_every?"]),
        (CLUSTER + "[limits]\npush_sise = 1\n", ["[limits] push_sise is unknown", "mean push_size?"]),
        (CLUSTER + "[limits]\nlogin_grace = 0\n", ["[limits] login_grace must be", "more than 0"]),
        (CLUSTER + "[limits]\nidle_timeout = '25h'\n", ["[limits] idle_timeout must be", "24 hours"]),
        (CLUSTER + "[limits]\nsession_timeout = 'never'\n", ["[limits] session_timeout must be"]),
        (CLUSTER + "[http]\n", ["[http] listen is missing"]),
        (CLUSTER + "[http]\nlisten = 8080\n", ["[http] listen must be", '"host:port"', "not 8080"]),
        (HTTP + 'metrics = "nobody"\n', ["[http] metrics must be", "everyone", "administrators"]),
        (HTTP + 'linger = "2m"\n', ["[http] linger must be", "at most a minute"]),
        (HTTP + "linger = -1\n", ["[http] linger must be"]),
        (HTTP + "linger = true\n", ["[http] linger must be"]),
        (HTTP + "linger = []\n", ["[http] linger must be"]),
        (CLUSTER + "[http]\nlisten = ':8080'\n", ["[http] listen must be"]),
        (CLUSTER + "[http]\nlisten = '::1:8080'\n", ['"[::1]:2222"']),
        (CLUSTER + "[http]\nlisten = 'a:70000'\n", ["not 'a:70000'"]),
        (CLUSTER + "[http]\nlisten = 'a:\u0661'\n", ["[http] listen must be"]),
        (CLUSTER + DEVICE.replace('"a"', '"A"'), ["[device] name must be 1 to 63 lower-case letters"]),
        (CLUSTER + DEVICE.replace('"d"', '"~/d"'), ["[device] data_dir must be a path", "without '~'"]),
        (CLUSTER + DEVICE.replace('"k"', '""'), ["[device] key must be a path"]),
        (
            CLUSTER + "[device]\nname = 'a'\n",
            ["[device] data_dir is missing; the table needs name, data_dir, key"],
        ),
        (CLUSTER + "[ssh]\nlisten = 'a:1'\nhost_key = 'k'\n", ["[ssh] needs a table [device]"]),
        ("[cluster]\ndatabase = 'embedded'\n", ['database = "embedded" needs a table [device]']),
        ("[cluster]\ndatabase = 'host=db'\nname = ''\n", ["[cluster] name must be text"]),
        ("[cluster]\ndatabase = 5\n", ["[cluster] database must be", "postgresql://"]),
    ],
)
def test_an_error_names_the_file_the_key_and_what_is_allowed(
    tmp_path: Path, text: str, parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    what = caught.value.what
    assert what.startswith(f"{tmp_path / 'config.toml'}: ")
    assert caught.value.hint
    for part in parts:
        assert part in " ".join(caught.value.lines())
    assert all(line.isprintable() for line in caught.value.lines())


@pytest.mark.parametrize(
    "url",
    [
        "http://git@a",
        "ssh://a",
        "ssh://git@a/x",
        "ssh://git@a:0",
        "ssh://git@-oProxyCommand=x",
        "ssh://-x@a",
        "ssh://git@a:99999",
        "git@a:x",
        "ssh://git:hunter2@a",
    ],
)
def test_what_is_no_advertise_url(tmp_path: Path, url: str) -> None:
    text = f"{CLUSTER}{DEVICE}[ssh]\nlisten = 'a:1'\nhost_key = 'k'\nadvertise = '{url}'\n"
    with pytest.raises(ConfigError, match=r"\[ssh\] advertise must be \"ssh://user@host\"") as caught:
        load(tmp_path, text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["ssh://git@a", "ssh://git@a.example:22", "ssh://git@[::1]:2222", "ssh://git@a/"]
)
def test_advertise_urls(tmp_path: Path, url: str) -> None:
    loaded = load(tmp_path, f"{CLUSTER}{DEVICE}[ssh]\nlisten = 'a:1'\nhost_key = 'k'\nadvertise = '{url}'\n")
    assert loaded.ssh
    assert loaded.ssh.advertise == url.rstrip("/")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file") as caught:
        config.load(tmp_path / "none.toml", {})
    assert "--config" in caught.value.hint
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        config.load(tmp_path, {})
    (tmp_path / "latin").write_bytes(b"[cluster]\nname = '\xe9'\n")
    with pytest.raises(ConfigError, match="line 2 is not UTF-8"):
        config.load(tmp_path / "latin", {})


@pytest.mark.parametrize(
    "line",
    [
        "database = 'mysql://ann:hunter2@db'",
        "database = 'ann:hunter2@db'",
        "database = ['postgresql://ann:hunter2@db']",
        "database = 'postgresql://ann:hunter2@db",
        "databse = 'postgresql://ann:hunter2@db'",
    ],
)
def test_no_error_echoes_the_password(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"[cluster]\n{line}\n")
    assert "hunter2" not in " ".join(caught.value.lines())


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("postgresql://ann:hunter2@db:5432/x", "postgresql://ann:***@db:5432/x"),
        ("postgresql://ann@db/x", "postgresql://ann@db/x"),
        ("postgresql://db:5432/x", "postgresql://db:5432/x"),
        ("postgresql://:hunter2@db/x", "postgresql://:***@db/x"),
        ("postgresql://ann:hun/ter@2?@db/x", "postgresql://ann:***@db/x"),
        (
            "postgres://db/x?user=ann&password=hunter2&sslmode=require",
            "postgres://db/x?user=ann&password=***&sslmode=require",
        ),
        ("host=db password=hunter2 dbname=x", "host=db password=*** dbname=x"),
        ("host=db password = 'hunter\\' 2' dbname=x", "host=db password = *** dbname=x"),
        ("host=db password='hunter 2", "host=db password=***"),
        ("host=db password=hunter\\ 2 dbname=x", "host=db password=*** dbname=x"),
        ("host=db password=a://hunter2", "host=db password=***"),
        ("host=db password='hunter2\\", "host=db password=***"),
        ("dbname=postgresql://ann:hunter2@db", "dbname=postgresql://ann:***@db"),
        ("host=db sslpassword=hunter2", "host=db sslpassword=***"),
        ("embedded", "embedded"),
    ],
)
def test_redact(url: str, redacted: str) -> None:
    assert config.redact(url) == redacted


@pytest.mark.parametrize("name", ["a", "git-1.example", "a" * 63, "a" * 64, "A", "-a", "a-", "a_b"])
def test_a_device_name_is_one_in_the_file_exactly_where_it_is_elsewhere(tmp_path: Path, name: str) -> None:
    try:
        names.device_name(name)
    except UsageError:
        with pytest.raises(ConfigError):
            load(tmp_path, CLUSTER + DEVICE.replace('"a"', f'"{name}"'))
    else:
        load(tmp_path, CLUSTER + DEVICE.replace('"a"', f'"{name}"'))


@pytest.mark.parametrize(("said", "seconds"), [("0", 0), ('"0s"', 0), ('"0"', 0), ('"5s"', 5), ("2.5", 2.5)])
def test_how_long_http_lingers(tmp_path: Path, said: str, seconds: float) -> None:
    file = tmp_path / "config.toml"
    file.write_text(HTTP + f"linger = {said}\nmetrics = 'administrators'\n")
    http = config.load(file, {}).http
    assert http is not None and (http.linger, http.metrics) == (seconds, "administrators")
