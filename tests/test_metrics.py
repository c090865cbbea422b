"""/-/metrics: what is counted is what happened, exactly, and nothing in it names a repository, a user or an address.

Every device here is real, and pushed to with stock Git over SSH and over HTTP.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster import tokens
from cluster.db import Database
from cluster.faults import Step
from cluster.meters import Meters
from cluster.model import EventKind, Level
from tests.cluster_fixture import Cluster, Project, RawPush

HTTP = True

Figures = Mapping[tuple[str, frozenset[tuple[str, str]]], float]
ROOT = Path(__file__).parent.parent
STEPS = [step.value for step in Step if step is not Step.DONE]


def fetch(cluster: Cluster, device: str, path: str, **headers: str) -> tuple[int, str, Mapping[str, str]]:
    request = urllib.request.Request(
        f"{cluster.devices[device].http_url}{path}",
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), dict(error.headers)


def figures(cluster: Cluster, device: str) -> Figures:
    """Every sample of a scrape, by its name and labels."""
    status, text, _ = fetch(cluster, device, "/-/metrics")
    assert status == 200, text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(found: Figures, name: str, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0.0)


class Moved:
    """How much figures moved since it was made."""

    def __init__(self, cluster: Cluster, device: str) -> None:
        self._cluster, self._device = cluster, device
        self._before = figures(cluster, device)
        self.now = self._before

    def look(self) -> None:
        self.now = figures(self._cluster, self._device)

    def by(self, name: str, **labels: str) -> float:
        return of(self.now, name, **labels) - of(self._before, name, **labels)

    def requests(self) -> dict[str, float]:
        """ "endpoint service outcome" of those requests of which there were any, but those of other devices."""
        found = {}
        for name, labels in self.now:
            label = dict(labels)
            if name == "git_cluster_requests_total" and label["endpoint"] != "peer":
                count = self.by(name, **label)
                if count:
                    found["{endpoint} {service} {outcome}".format(**label)] = count
        return found


def token(cluster: Cluster, user: str = "demo") -> str:
    secret = tokens.new()
    digest = tokens.digest(secret)
    assert digest is not None
    cluster.db.add_token(user, digest, read_only=False)
    return secret


def http(project: Project, device: str, secret: str) -> str:
    url = project.cluster.devices[device].http_url
    assert url
    return f"{url.replace('http://', f'http://demo:{secret}@')}/{project.name}"


def test_a_push_over_ssh_moves_the_counters_by_one(app: Project) -> None:
    app.pushed("a", "main")
    app.converge()
    app.commit("two")
    moved = Moved(app.cluster, "a")
    app.pushed("a", "main")
    moved.look()
    assert moved.requests() == {"ssh receive-pack ok": 1}
    assert moved.by("git_cluster_commits_total") == 1
    assert moved.by("git_cluster_request_seconds_count", endpoint="ssh", service="receive-pack") == 1
    steps = {step: moved.by("git_cluster_push_step_seconds_count", step=step) for step in STEPS}
    assert steps == dict.fromkeys(STEPS, 1)
    assert moved.by("git_cluster_write_lock_wait_seconds_count", result="got") == 1
    assert moved.by("git_cluster_write_lock_hold_seconds_count") == 1
    whole = moved.by("git_cluster_request_seconds_sum", endpoint="ssh", service="receive-pack")
    parts = sum(moved.by("git_cluster_push_step_seconds_sum", step=step) for step in STEPS)
    assert 0 < parts <= whole, "the steps are parts of the whole"


def test_a_push_over_http_moves_the_counters_by_one(app: Project) -> None:
    secret, moved = token(app.cluster), Moved(app.cluster, "a")
    app.git("push", "--quiet", http(app, "a", secret), "main")
    moved.look()
    assert moved.requests() == {
        "http listing unauthenticated": 1,  # Git says who it is once it is asked to
        "http listing ok": 1,
        "http receive-pack ok": 1,
    }
    assert moved.by("git_cluster_commits_total") == 1
    assert moved.by("git_cluster_push_step_seconds_count", step="commit") == 1


def test_a_clone_moves_the_counters(app: Project) -> None:
    app.pushed("a", "main")
    app.converge()
    moved = Moved(app.cluster, "a")
    app.clone("a")
    moved.look()
    assert moved.requests() == {"ssh upload-pack ok": 1}
    for step in ("authorize", "catch-up", "serve"):
        assert moved.by("git_cluster_read_step_seconds_count", step=step) >= 1
    assert moved.by("git_cluster_commits_total") == 0
    app.git("ls-remote", http(app, "a", token(app.cluster)))
    moved.look()
    assert moved.requests()["http upload-pack ok"] == 1


def test_what_is_refused_and_what_fails_are_told_apart(app: Project) -> None:
    app.pushed("a", "main")
    work, moved = app.commit("two"), Moved(app.cluster, "a")
    app.cluster.admin("freeze", app.name, "--reason", "a test")
    app.refused("a", "main")
    app.cluster.admin("thaw", app.name)
    moved.look()
    assert moved.requests() == {"ssh receive-pack failed": 1, "ssh operator ok": 1}  # and the thaw
    moved = Moved(app.cluster, "a")
    app.cluster.git("ls-remote", app.cluster.url("a", "team/no-such"))
    app.pushed("a", "main")
    app.refused("a", "--force", f"{work}~1:refs/cluster/mine")
    moved.look()
    assert moved.requests()["ssh upload-pack refused"] == 1
    assert moved.by("git_cluster_commits_total") == 1


def test_syncs_are_counted_where_they_happen(app: Project) -> None:
    moved = Moved(app.cluster, "b")
    app.pushed("a", "main")
    app.converge()
    moved.look()
    synced = sum(
        moved.by("git_cluster_sync_seconds_count", how=how, result="ok") for how in ("log", "rebuild")
    )
    assert synced == 1
    assert moved.requests() == {}


def test_what_runs_now(app: Project) -> None:
    app.pushed("a", "main")

    def running() -> tuple[float, float]:
        found = figures(app.cluster, "a")
        return (
            of(found, "git_cluster_git_processes", command="receive-pack"),
            of(found, "git_cluster_connections", endpoint="ssh"),
        )

    before = running()
    push = RawPush(app.cluster, "a", app.name)  # it says nothing more for now
    try:
        app.cluster.wait(lambda: running() == (before[0] + 1, before[1] + 1), "one more of each")
    finally:
        push.kill()
    app.cluster.wait(lambda: running() == before, "it is gone")
    moved = Moved(app.cluster, "a")
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: fetch(app.cluster, "a", "/-/metrics")[0], range(40)))
    moved.look()
    assert texts == [200] * 40 and moved.requests() == {}


def test_a_request_that_is_passed_on(devices: Cluster) -> None:
    """The device that answers counts it as one of a peer's; the one that was asked, as one of a person's."""
    name = "team/only-b"
    devices.create(name, devices="b")
    app = Project(devices, name)
    front, back = Moved(devices, "a"), Moved(devices, "b")
    app.pushed("a", "main")
    front.look()
    back.look()
    assert front.requests() == {"ssh receive-pack ok": 1} and back.requests() == {}
    assert front.by("git_cluster_commits_total") == 0 and back.by("git_cluster_commits_total") == 1
    peer = {"endpoint": "peer", "service": "receive-pack", "outcome": "ok"}
    assert back.by("git_cluster_requests_total", **peer) == 1
    for step, times in {"authorize": 1, "pass-on": 1, "receive": 0}.items():
        assert front.by("git_cluster_push_step_seconds_count", step=step) == times


def test_events_are_counted_once_each(devices: Cluster) -> None:
    app = Project.named(devices, "events")
    number = devices.snapshot(app.name).repository.id
    meters = Meters()
    with Database(devices.database, measures=meters).open() as db:
        for _ in range(2):  # the second time there is nothing to note
            db.freeze(number, "a test")
            db.note_damage(number, "c", "a test")
        db.freeze(number, None)
        db.freeze(number, None)
        db.note_damage(number, "c", None)
        db.record(number, EventKind.HEAL, "c", "a test")
    counted = {
        kind.value: meters.registry.get_sample_value("git_cluster_events_total", {"kind": kind.value})
        for kind in EventKind
    }
    assert {kind: count for kind, count in counted.items() if count} == {
        "freeze": 1, "thaw": 1, "damage": 1, "heal": 1,
    }  # fmt: skip


def test_the_cluster_in_numbers(devices: Cluster) -> None:
    Project.named(devices, "healthy")
    frozen = Project.named(devices, "frozen")
    devices.admin("freeze", frozen.name, "--reason", "a test")

    def counted() -> bool:
        found = figures(devices, "b")
        total = sum(of(found, "git_cluster_repositories", state=s) for s in ("healthy", "frozen"))
        return of(found, "git_cluster_repositories", state="frozen") == 1 and total >= 2

    devices.wait(counted, "one repository is frozen")
    devices.admin("thaw", frozen.name)
    devices.wait(
        lambda: of(figures(devices, "b"), "git_cluster_repositories", state="frozen") == 0, "none is frozen"
    )
    found = figures(devices, "c")
    assert all(of(found, "git_cluster_device_up", device=name) == 1 for name in "abc")
    assert all(of(found, "git_cluster_sync_lag_seconds", device=name) == 0 for name in "abc")
    assert of(found, "git_cluster_database_up") == 1
    assert of(found, "git_cluster_database_pool_size", pool="statements") == 8
    assert of(found, "git_cluster_connections", endpoint="http") >= 1
    assert found["process_resident_memory_bytes", frozenset()] > 1 << 20
    assert {kind.value for kind in EventKind} == {
        dict(labels)["kind"] for name, labels in found if name == "git_cluster_events_total"
    }


def test_nothing_names_a_repository_a_user_or_an_address(app: Project) -> None:
    app.pushed("a", "main")
    app.git("ls-remote", http(app, "a", token(app.cluster)))
    for accept in ("text/plain", "application/openmetrics-text; version=1.0.0"):
        status, text, headers = fetch(app.cluster, "a", "/-/metrics", Accept=accept)
        assert status == 200 and headers["content-type"].startswith(accept.partition(";")[0])
        assert app.name not in text and "demo" not in text and "127.0.0.1" not in text
        assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "accept", ["", "text/plain; version=abc", 'application/openmetrics-text;version="1', ",;=;," * 99, "\xff"]
)
def test_rubbish_asked_for_is_answered_in_text(devices: Cluster, accept: str) -> None:
    status, text, headers = fetch(devices, "a", "/-/metrics", Accept=accept)
    assert status == 200 and list(text_string_to_metric_families(text))
    assert headers["content-type"].partition(";")[0] in ("text/plain", "application/openmetrics-text")


def test_names_and_help(devices: Cluster) -> None:
    _, text, _ = fetch(devices, "a", "/-/metrics")
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "each is there once"
    documented = (ROOT / "docs" / "monitoring.md").read_text()
    for family in families:
        assert family.documentation
        assert family.name.startswith(("git_cluster_", "process_"))
        name = family.name + ("_total" if family.type == "counter" else "")
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
        if family.name.startswith("git_cluster_"):
            assert f"`{name}`" in documented, f"docs/monitoring.md says nothing of {name}"
    named = set(re.findall(r"`(git_cluster_\w+)`", documented))
    assert named <= {f.name + ("_total" if f.type == "counter" else "") for f in families}


def exposed(devices: Cluster) -> set[str]:
    _, text, _ = fetch(devices, "a", "/-/metrics")
    names = {"up"}
    for family in text_string_to_metric_families(text):
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}
        names |= {family.name + suffix for suffix in suffixes.get(family.type, [""])}
    return names


METRIC = re.compile(r"\b(?:git_cluster|process)_\w+")


def test_the_dashboard_asks_for_what_there_is(devices: Cluster) -> None:
    dashboard = json.loads((ROOT / "docs" / "grafana" / "dashboard.json").read_text())
    assert dashboard["title"] and dashboard["uid"] and dashboard["schemaVersion"] >= 36
    (source,) = dashboard["__inputs"]
    assert source["type"] == "datasource" and source["pluginId"] == "prometheus"
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    there = exposed(devices)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    for panel in panels:
        assert panel["title"] and panel["description"] and panel["targets"], panel["id"]
        for target in panel["targets"]:
            asked = METRIC.findall(target["expr"])
            assert asked and set(asked) <= there, target["expr"]
            assert target["datasource"]["uid"] == f"${{{source['name']}}}"


def test_the_alerts_ask_for_what_there_is(devices: Cluster) -> None:
    text = (ROOT / "docs" / "grafana" / "alerts.yml").read_text()
    rules = re.findall(r"- alert: (\w+)\n +expr: (.+)\n(?: +for: \w+\n)?", text)
    assert len(rules) == text.count("- alert:") and len(rules) > 8
    there = exposed(devices)
    for name, expression in rules:
        asked = re.findall(r"\b(?:git_cluster_\w+|process_\w+|up)\b", expression)
        assert asked and set(asked) <= there, name
    assert text.count("summary:") == text.count("description:") == text.count("severity:") == len(rules)


def test_for_administrators_only(postgres: str, tmp_path: Path) -> None:
    from tests.conftest import new_cluster, new_database

    with new_database(postgres) as url:
        cluster = new_cluster("built-in", tmp_path / "c", url, {}, {})
        try:
            cluster.set_up(["a"])
            config = cluster.devices["a"].config
            config.write_text(config.read_text().replace("[http]\n", '[http]\nmetrics = "administrators"\n'))
            cluster.start("a")
            cluster.db.add_user("ann")
            cluster.db.grant(Level.ADMIN, "ann", "team/*")
            boss, ann = token(cluster), token(cluster, "ann")
            assert fetch(cluster, "a", "/-/metrics")[0] == 401
            assert fetch(cluster, "a", "/-/metrics", Authorization="Bearer gct_nonsense")[0] == 401
            status, text, _ = fetch(cluster, "a", "/-/metrics", Authorization=f"Bearer {ann}")
            assert (status, text.count("\n")) == (403, 2) and "administrators" in text
            assert fetch(cluster, "a", "/-/metrics", Authorization=f"Bearer {boss}")[0] == 200
            assert fetch(cluster, "a", "/-/health/ready")[0] == 200, "health needs nobody to say who they are"
        finally:
            cluster.close()


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
def test_other_methods_are_refused(devices: Cluster, method: str) -> None:
    request = urllib.request.Request(f"{devices.devices['a'].http_url}/-/metrics", method=method)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code == 405
