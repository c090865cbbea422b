"""The API as its users meet it: plain HTTP, each of the roles, transcripts (docs/api.md)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from cluster import tokens
from cluster.keyfiles import generate_key
from cluster.model import Level
from tests.cluster_fixture import Cluster, Project

HTTP = True

ROLES = ("nobody", "reader", "owner", "admin", "read_only")


@dataclass
class Api:
    """What each role says to device a."""

    cluster: Cluster
    clients: dict[str, httpx.Client]

    def __call__(self, who: str, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        kwargs = {"json": body} if body is not None else {}
        return self.clients[who].request(method, path, **kwargs, **more)

    def ok(self, who: str, method: str, path: str, body: Any = None, status: int = 200, **more: Any) -> Any:
        answer = self(who, method, path, body, **more)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    def refused(self, who: str, method: str, path: str, status: int, body: Any = None, **more: Any) -> str:
        """The sentence of an error; each has the one form."""
        answer = self(who, method, path, body, **more)
        assert answer.status_code == status, answer.text
        document = answer.json()
        assert {"error", "hint"} <= document.keys() <= {"error", "hint", "lines"}
        assert "Traceback" not in answer.text and str(self.cluster.directory) not in answer.text
        return str(document["error"])


@pytest.fixture(scope="module")
def api(devices: Cluster) -> Iterator[Api]:
    db = devices.db
    for user in ("reader", "owner", "stranger"):
        db.add_user(user)
    db.grant(Level.READ, "reader", "team/*")
    db.grant(Level.ADMIN, "owner", "team/*")

    def client(user: str | None, *, read_only: bool = False) -> httpx.Client:
        headers = {}
        if user:
            secret = tokens.new()
            digest = tokens.digest(secret)
            assert digest
            db.add_token(user, digest, read_only=read_only)
            headers = {"Authorization": f"Bearer {secret}"}
        base = f"http://127.0.0.1:{devices.devices['a'].http_port}/-/api/v1"
        return httpx.Client(base_url=base, headers=headers, timeout=60)

    clients = {
        "nobody": client(None),
        "reader": client("reader"),
        "owner": client("owner"),
        "admin": client("demo"),
        "read_only": client("demo", read_only=True),
        "stranger": client("stranger"),
    }
    yield Api(devices, clients)
    for each in clients.values():
        each.close()


@pytest.fixture
def name(app: Project) -> str:
    return app.name


def public_key(comment: str = "laptop") -> str:
    key = generate_key()
    return f"{key.get_name()} {key.get_base64()} {comment}"


# ------------------------------------------------------------------------------------------------ who sees what


def test_the_cluster_at_a_glance(api: Api, name: str) -> None:
    seen = api.ok("reader", "GET", "/status")
    assert seen["counts"]["devices"] == {"online": 3, "offline": 0, "draining": 0, "disabled": 0}
    assert [device["name"] for device in seen["devices"]] == ["a", "b", "c"]
    anonymous = api.ok("nobody", "GET", "/status")
    assert anonymous["counts"].keys() == {"devices", "repositories"}
    assert anonymous["devices"] is None
    assert api.ok("nobody", "GET", "/whoami") == {
        "user": None, "groups": [], "administers": False, "read_only": True,
    }  # fmt: skip
    assert api.ok("admin", "GET", "/whoami")["administers"] is True
    assert api.ok("owner", "GET", "/whoami")["administers"] is False
    assert api.ok("read_only", "GET", "/whoami") == {
        "user": "demo", "groups": [], "administers": True, "read_only": True,
    }  # fmt: skip


def test_a_repository_is_the_entry_of_status(api: Api, app: Project) -> None:
    app.pushed("a", "main")
    app.converge()
    entry = app.cluster.admin_json("repo", "show", app.name)
    seen = api.ok("reader", "GET", f"/repositories/{app.name}")
    for volatile in ("created_at",):
        assert seen.pop(volatile)[:19] == entry.pop(volatile)[:19]
    for replica in (*seen["replicas"], *entry["replicas"]):
        for time in ("last_synced_at", "verified_at", "writing_since"):
            replica.pop(time)
    assert seen == entry


def test_a_missing_and_an_unreadable_repository_look_the_same(api: Api, name: str) -> None:
    for who in ("stranger", "nobody"):
        for path in ("/repositories/{}", "/log/{}"):
            closed = api(who, "GET", path.format(name))
            missing = api(who, "GET", path.format("team/none"))
            assert closed.status_code == missing.status_code == 404
            assert closed.text.replace(name, "team/none") == missing.text
            assert closed.headers.keys() == missing.headers.keys()
    for verb, body in (("sync", {}), ("verify", {}), ("freeze", {"reason": "x"}), ("thaw", {})):
        there = api.refused("stranger", "POST", f"/{verb}/{name}", 404, body)
        assert api.refused("stranger", "POST", f"/{verb}/team/none", 404, body) == there.replace(
            name, "team/none"
        )


def test_anonymous_sees_what_everyone_may_read_and_no_devices(api: Api, app: Project) -> None:
    app.pushed("a", "main")
    app.cluster.db.grant(Level.READ, None, app.name)
    try:
        seen = api.ok("nobody", "GET", f"/repositories/{app.name}")
        assert seen["version"] == 1 and seen["replicas"] == [] and seen["urls"] == []
        listed = api.ok("nobody", "GET", "/repositories")["repositories"]
        assert [each["name"] for each in listed] == [app.name]
        assert api.ok("nobody", "GET", f"/log/{app.name}")["entries"][0]["version"] == 1
        assert api.refused("nobody", "GET", "/devices", 401) == "this takes a token"
        assert api.refused("nobody", "POST", f"/sync/{app.name}", 401, {}) == "this takes a token"
        challenge = api("nobody", "GET", "/devices").headers["WWW-Authenticate"]
        assert challenge.startswith("Basic ")
    finally:
        app.cluster.db.revoke(None, app.name)


def test_lists_are_paged_and_filtered(api: Api) -> None:
    names = [f"paged/r{number:02}" for number in range(7)]
    for each in names:
        api.cluster.create(each)
    api.cluster.db.grant(Level.READ, "stranger", "paged/*")
    api.cluster.db.grant(Level.READ, "stranger", "aside/one")
    api.cluster.create("aside/one")
    found: list[str] = []
    after, pages = None, 0
    while True:
        page = api.ok(
            "stranger", "GET", "/repositories", params={"limit": 3} | ({"after": after} if after else {})
        )
        found += [each["name"] for each in page["repositories"]]
        pages += 1
        if (after := page["next"]) is None:
            break
    assert found == ["aside/one", *names] and pages == 3
    searched = api.ok("stranger", "GET", "/repositories", params={"search": "R03"})
    assert [each["name"] for each in searched["repositories"]] == ["paged/r03"]
    id = api.cluster.snapshot("paged/r05").repository.id
    api.cluster.db.freeze(id, "moving")
    frozen = api.ok("stranger", "GET", "/repositories", params={"state": "frozen"})
    assert [each["name"] for each in frozen["repositories"]] == ["paged/r05"]
    assert api.refused("stranger", "GET", "/repositories?limit=1001", 422).startswith("query.limit: ")
    assert api.refused("stranger", "GET", "/repositories?limt=3", 400) == "there is no parameter 'limt' here"


def test_the_push_log_and_what_happened(api: Api, app: Project) -> None:
    for number in range(5):
        app.commit(f"number {number}")
        app.pushed("ab"[number % 2], "main")
    whole = app.cluster.admin_json("log", app.name)
    first = api.ok("reader", "GET", f"/log/{app.name}", params={"limit": 2})
    second = api.ok("reader", "GET", f"/log/{app.name}", params={"limit": 2, "before": first["next"]})
    third = api.ok("reader", "GET", f"/log/{app.name}", params={"limit": 2, "before": second["next"]})
    assert [e["version"] for e in first["entries"] + second["entries"] + third["entries"]] == [5, 4, 3, 2, 1]
    assert third["next"] is None
    for mine, theirs in zip(first["entries"], whole, strict=False):
        assert {**mine, "at": None} == {**theirs, "at": None}
    api.ok("owner", "POST", f"/freeze/{app.name}", {"reason": "moving house"})
    happened = api.ok("reader", "GET", f"/history/{app.name}")
    assert (happened[0]["kind"], happened[0]["what"]) == ("freeze", "moving house (by owner)")


# ------------------------------------------------------------------------------------------------ what may be done


def test_sync_and_verify(api: Api, app: Project) -> None:
    app.pushed("b", "main")
    synced = api.ok("owner", "POST", f"/sync/{app.name}", {})
    assert synced["ok"] and [row["device"] for row in synced["replicas"]] == ["a", "b", "c"]
    assert synced["lines"][0] == "a: ok  version 1"
    verified = api.ok("owner", "POST", f"/verify/{app.name}", {"devices": ["b"]})
    assert verified["lines"] == ["b: ok  version 1, verified"]
    assert api.refused("owner", "POST", f"/sync/{app.name}", 404, {"devices": ["z"]}) == (
        f"{app.name} has no replica on device z"
    )
    assert (
        api.refused("reader", "POST", f"/sync/{app.name}", 403, {})
        == f"you may read {app.name} but not admin it"
    )
    assert api.refused("read_only", "POST", f"/sync/{app.name}", 403, {}) == "this token may only read"


def test_freeze_and_thaw(api: Api, app: Project) -> None:
    app.pushed("a", "main")
    frozen = api.ok("owner", "POST", f"/freeze/{app.name}", {"reason": "moving house", "expected_version": 1})
    assert frozen["lines"] == [f"{app.name} is frozen: moving house"]
    api.ok("owner", "POST", f"/freeze/{app.name}", {"reason": "moving house"})  # again: nothing new
    assert len(api.ok("owner", "GET", f"/history/{app.name}")) == 1
    app.commit("refused")
    assert "moving house" in app.refused("a", "main").text
    dry = api.ok("owner", "POST", f"/thaw/{app.name}", {"dry_run": True})
    assert dry["lines"] == ["the freeze would be ended: moving house"]
    assert app.cluster.snapshot(app.name).repository.frozen == "moving house"
    assert api.refused("owner", "POST", f"/thaw/{app.name}", 409, {"expected_version": 7}) == (
        f"{app.name} is at version 1 by now, and not at version 7"
    )
    assert api.refused("reader", "POST", f"/thaw/{app.name}", 403, {}).endswith("but not admin it")
    assert app.cluster.snapshot(app.name).repository.frozen == "moving house"
    api.ok("owner", "POST", f"/thaw/{app.name}", {"expected_version": 1})
    assert api.ok("owner", "GET", f"/history/{app.name}")[0]["what"] == "the freeze is ended (by owner)"
    app.pushed("b", "main")


def test_a_thaw_that_loses_something_says_what(api: Api, app: Project) -> None:
    """Version 2 is on device a alone: another one that holds version 1 is away."""
    db = app.cluster.db
    app.pushed("a", "main")
    app.converge()
    snapshot = app.cluster.snapshot(app.name)
    id, first = snapshot.repository.id, snapshot.repository.position
    api.ok("owner", "PATCH", f"/repositories/{app.name}", {"min_copies": 1})
    for other in "bc":
        api.ok("admin", "POST", f"/place/{app.name}", {"remove": [other]})
    app.commit("alone")
    app.pushed("a", "main")
    away = {"ssh": "ssh://git@127.0.0.1:9", "key": public_key(), "host_key": public_key()}
    api.ok("admin", "PUT", "/devices/away", away, status=201)
    try:
        db.place(id, "away")
        with db.dedicated() as connection:
            db.claim(id, "away", first, connection=connection)
        dry = api.ok("owner", "POST", f"/thaw/{app.name}", {"demote": "a", "dry_run": True})
        assert dry["lost_versions"] == [2]
        refused = api("owner", "POST", f"/thaw/{app.name}", {"demote": "a", "expected_version": 2})
        assert refused.status_code == 409
        assert refused.json()["error"] == (
            "demoting a would lose acknowledged versions that no other device holds: 2"
        )
        assert refused.json()["lines"] == dry["lines"]
        assert any(line.startswith("LOST: version 2, acknowledged to demo on a") for line in dry["lines"])
        assert app.version == 2
    finally:
        db.delete_repository(app.name)
        db.remove_device("away")


def test_a_thaw_is_named_in_the_log(api: Api, app: Project) -> None:
    app.pushed("a", "main")
    app.converge()
    api.ok("owner", "POST", f"/thaw/{app.name}", {"demote": "b", "expected_version": 1})
    said = [each["what"] for each in api.ok("owner", "GET", f"/history/{app.name}")]
    assert "owner demoted b" in said[:2]  # b may be trusted again already
    app.converge()


def test_settings(api: Api, app: Project) -> None:
    app.pushed("a", "main", "main:other")
    seen = api.ok("owner", "PATCH", f"/repositories/{app.name}", {"min_copies": 1, "when_short": "refuse"})
    assert (seen["min_copies"], seen["when_short"], seen["version"]) == (1, "refuse", 1)
    seen = api.ok(
        "owner", "PATCH", f"/repositories/{app.name}", {"default_branch": "other", "expected_version": 1}
    )
    assert (seen["default_branch"], seen["version"]) == ("other", 2)
    newest = api.ok("owner", "GET", f"/log/{app.name}")["entries"][0]
    assert (newest["actor"], newest["via"]) == ("owner", "set")
    path = f"/repositories/{app.name}"
    assert "at version 2 by now" in api.refused(
        "owner", "PATCH", path, 409, {"default_branch": "main", "expected_version": 1}
    )
    assert "at version 2 by now" in api.refused(
        "owner", "PATCH", path, 409, {"min_copies": 2, "expected_version": 1}
    )
    assert "has no branch nowhere" in api.refused("owner", "PATCH", path, 404, {"default_branch": "nowhere"})
    assert "asks for 9 copies" in api.refused("owner", "PATCH", path, 403, {"min_copies": 9})
    assert api.refused("owner", "PATCH", path, 400, {}) == "there is nothing to change"
    assert api.refused("owner", "PATCH", path, 422, {"mincopies": 1}).startswith("body.mincopies: ")


def test_making_renaming_and_deleting(api: Api) -> None:
    made = api.ok("owner", "PUT", "/repositories/team/made", {}, status=201)
    assert (made["version"], made["state"] in ("healthy", "degraded"), made["default_branch"]) == (
        0,
        True,
        "main",
    )
    assert api.ok("owner", "PUT", "/repositories/team/made", {})["name"] == "team/made"
    other = {"object_format": "sha256"}
    assert api.refused("owner", "PUT", "/repositories/team/made", 409, other) == (
        "there is a repository team/made already"
    )
    assert api.refused("owner", "PUT", "/repositories/other/made", 403, {}) == "you may not create other/made"
    assert api.refused("owner", "PUT", "/repositories/team/more", 403, {"copies": 2}).startswith(
        "this takes an admin"
    )
    assert api.refused("reader", "PUT", "/repositories/team/more", 403, {}) == "you may not create team/more"
    assert api.ok("admin", "PUT", "/repositories/other/two", {"copies": 2}, status=201)["min_copies"] == 2
    assert api.refused("owner", "POST", "/rename/team/made", 403, {"to": "other/new"}) == (
        "you may not name a repository other/new"
    )
    assert api.ok("owner", "POST", "/rename/team/made", {"to": "team/new"})["name"] == "team/new"
    api.refused("owner", "POST", "/rename/team/made", 404, {"to": "team/new"})
    assert "at version 0 by now" in api.refused(
        "owner", "DELETE", "/repositories/team/new", 409, params={"expected_version": 3}
    )
    assert api.refused("reader", "DELETE", "/repositories/team/new", 403).endswith("but not admin it")
    api.ok("owner", "DELETE", "/repositories/team/new", status=204, params={"expected_version": 0})
    api.refused("owner", "DELETE", "/repositories/team/new", 404)


def test_placement(api: Api, app: Project) -> None:
    dry = api.ok("admin", "POST", f"/place/{app.name}", {"remove": ["c"], "dry_run": True})
    assert (dry["removed"], dry["devices"], dry["dry_run"]) == (["c"], ["a", "b"], True)
    assert api.ok("admin", "POST", f"/place/{app.name}", {"remove": ["c"]})["devices"] == ["a", "b"]
    waited = api.ok("admin", "POST", f"/place/{app.name}", {"copies": 3, "wait": True})
    assert (waited["added"], waited["waiting"]) == (["c"], [])
    assert api.refused("owner", "POST", f"/place/{app.name}", 403, {"copies": 3}).startswith(
        "this takes an admin"
    )
    rule = {"pattern": "deep/*", "copies": 2, "min_copies": 1}
    assert api.ok("admin", "PUT", "/placement/deep/*", {"copies": 2, "min_copies": 1}) == rule
    assert api.ok("owner", "GET", "/placement") == [rule]
    assert "more than copies" in api.refused(
        "admin", "PUT", "/placement/deep/*", 400, {"copies": 1, "min_copies": 2}
    )
    api.ok("admin", "DELETE", "/placement/deep/*", status=204)
    api.refused("admin", "DELETE", "/placement/deep/*", 404)


def test_devices(api: Api, name: str) -> None:
    new = {"ssh": "ssh://git@z.example:2222", "key": public_key(), "host_key": public_key(), "zone": "rack-9"}
    assert api.refused("owner", "PUT", "/devices/z", 403, new).startswith("this takes an administrator")
    made = api.ok("admin", "PUT", "/devices/z", new, status=201)
    assert (made["state"], made["zone"], made["repositories"]) == ("offline", "rack-9", 0)
    assert api.ok("admin", "PUT", "/devices/z", new) == made
    assert "registered already" in api.refused("admin", "PUT", "/devices/z", 409, new | {"zone": "rack-1"})
    assert api.refused("admin", "PUT", "/devices/y", 400, new | {"ssh": "-oProxyCommand=x"}).endswith(
        "is not the SSH URL of a device"
    )
    changed = api.ok("admin", "PATCH", "/devices/z", {"http": "https://z.example", "mode": "draining"})
    assert (changed["http"], changed["mode"]) == ("https://z.example", "draining")
    assert api.ok("admin", "PATCH", "/devices/z", {"http": ""})["http"] is None
    assert api.ok("admin", "POST", "/devices/z/move", {})["lines"] == [
        "0 repositories moved away from device z"
    ]
    assert api.ok("reader", "GET", "/devices/z")["mode"] == "draining"
    api.ok("admin", "DELETE", "/devices/z", status=204)
    assert api.refused("admin", "DELETE", "/devices/z", 404) == "there is no device z"
    assert "still holds" in api.refused("admin", "DELETE", "/devices/a", 409)


@pytest.mark.parametrize("what", ["users", "groups", "grants", "rules"])
def test_lists_of_who_and_what_are_paged(api: Api, what: str) -> None:
    """Each item once, whatever the size of a page; what is behind an item that is gone is still found."""
    for name in ("p1", "p2", "p3"):
        for path, body in ((f"/users/{name}", None), (f"/groups/{name}", None)):
            api.ok("admin", "PUT", path, body, status=201) if what in path else None
        if what == "grants":
            api.ok("admin", "PUT", f"/grants/everyone/paged/{name}", {"level": "read"})
        if what == "rules":
            api.ok("admin", "PUT", f"/rules/everyone/paged/{name}", {"may": ["push"]}, params={"ref": "main"})
    whole = api.ok("admin", "GET", f"/{what}", params={"limit": 1000})
    assert whole["next"] is None and len(whole[what]) >= 3
    found, after = [], None
    while True:
        page = api.ok("admin", "GET", f"/{what}", params={"limit": 2} | ({"after": after} if after else {}))
        found += page[what]
        assert len(page[what]) <= 2
        if (after := page["next"]) is None:
            break
    assert found == whole[what]
    api.ok("admin", "GET", f"/{what}", params={"after": "nobody at all"})
    api.refused("admin", "GET", f"/{what}", 422, params={"limit": 0})


def test_users_groups_keys(api: Api) -> None:
    assert api.ok("admin", "PUT", "/users/ann", status=201)["keys"] == 0
    assert api.ok("admin", "PUT", "/users/ann")["disabled"] is False
    assert "cannot be called everyone" in api.refused("admin", "PUT", "/users/everyone", 400)
    assert api.refused("owner", "GET", "/users", 403).startswith("this takes an administrator")
    assert api.ok("owner", "GET", "/users/owner")["name"] == "owner"
    api.refused("owner", "GET", "/users/ann", 403)
    key = {"public_key": public_key(), "user": "ann", "expires": "90d"}
    added = api.ok("admin", "POST", "/keys", key, status=201)
    assert (added["user"], added["comment"]) == ("ann", "laptop")
    assert api.ok("admin", "POST", "/keys", key)["fingerprint"] == added["fingerprint"]
    assert api.refused("owner", "POST", "/keys", 409, {"public_key": key["public_key"]}) == (
        "this key is registered already"
    )
    assert api.refused("owner", "DELETE", f"/keys/{added['fingerprint']}", 404).startswith("you have no key")
    api.ok("admin", "DELETE", f"/keys/{added['fingerprint']}", status=204)
    own = api.ok("owner", "POST", "/keys", {"public_key": public_key()}, status=201)
    assert [each["fingerprint"] for each in api.ok("owner", "GET", "/keys")] == [own["fingerprint"]]
    api.ok("owner", "DELETE", f"/keys/{own['fingerprint']}", status=204)
    private = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----"
    assert "private" in api.refused("owner", "POST", "/keys", 400, {"public_key": private})
    api.ok("admin", "PUT", "/groups/dev", status=201)
    assert api.ok("admin", "PUT", "/groups/dev/members/ann")["members"] == ["ann"]
    assert api.ok("admin", "PUT", "/groups/dev/members/ann")["members"] == ["ann"]
    api.ok("admin", "DELETE", "/groups/dev/members/ann", status=204)
    assert api.refused("admin", "DELETE", "/groups/dev/members/ann", 404) == "ann is not in @dev"
    api.ok("admin", "DELETE", "/groups/dev", status=204)
    assert api.ok("admin", "PATCH", "/users/ann", {"disabled": True})["disabled"] is True
    api.ok("admin", "DELETE", "/users/ann", status=204)
    api.refused("admin", "DELETE", "/users/ann", 404)


def test_tokens(api: Api) -> None:
    made = api.ok("owner", "POST", "/tokens", {"expires": "1d", "comment": "ci"}, status=201)
    with httpx.Client(base_url=api.clients["owner"].base_url, auth=("x", made["token"])) as short:
        assert short.get("/whoami").json()["user"] == "owner"
        longer = short.post("/tokens", json={"expires": "90d"}).json()
        assert longer["expires_at"] == made["expires_at"], "a token makes none that outlives it"
        key = short.post("/keys", json={"public_key": public_key()}).json()
        assert key["expires_at"] == made["expires_at"], "nor a key"
        api.ok("owner", "DELETE", f"/keys/{key['fingerprint']}", status=204)
        listed = api.ok("owner", "GET", "/tokens")
        assert made["id"] in [each["id"] for each in listed] and made["token"] not in str(listed)
        assert (
            api.refused("reader", "DELETE", f"/tokens/{made['id']}", 404) == f"there is no token {made['id']}"
        )
        api.ok("owner", "DELETE", f"/tokens/{made['id']}", status=204)
        assert short.get("/whoami").status_code == 401
    assert api.refused("owner", "POST", "/tokens", 403, {"user": "reader"}).startswith("this takes an admin")
    api.refused("owner", "GET", "/tokens", 403, params={"user": "reader"})
    assert (
        api.ok("admin", "POST", "/tokens", {"user": "reader", "read_only": True}, status=201)["user"]
        == "reader"
    )
    assert api.refused("read_only", "POST", "/tokens", 403, {}) == "this token may only read"
    assert "is in the past" in api.refused("owner", "POST", "/tokens", 400, {"expires": "2020-01-01"})


def test_grants_rules_and_access_explained(api: Api, name: str) -> None:
    assert api.ok("admin", "PUT", f"/grants/stranger/{name}", {"level": "write"}) == {
        "actor": "stranger", "level": "write", "pattern": name,
    }  # fmt: skip
    told = api.ok("stranger", "GET", f"/access/{name}", params={"ref": "main"})
    assert (told["level"], told["may"]) == ("write", ["create", "push", "force", "delete"])
    assert told["because"] == f"stranger may write: grant write to stranger on {name}"
    assert api.refused("stranger", "GET", f"/access/{name}", 403, params={"user": "owner"}).startswith(
        "you may not ask about others"
    )
    assert api.ok("owner", "GET", f"/access/{name}", params={"user": "stranger"})["level"] == "write"
    rule = api.ok(
        "admin", "PUT", f"/rules/everyone/{name}", {"may": ["create", "push"]}, params={"ref": "main"}
    )
    assert rule == {"actor": "everyone", "pattern": name, "ref": "refs/heads/main", "may": ["create", "push"]}
    assert rule in api.ok("stranger", "GET", "/rules")["rules"]
    assert api.ok("stranger", "GET", f"/access/{name}", params={"ref": "main"})["may"] == ["create", "push"]
    api.ok("admin", "DELETE", f"/rules/everyone/{name}", status=204, params={"ref": "main"})
    api.refused("admin", "DELETE", f"/rules/everyone/{name}", 404, params={"ref": "main"})
    mine = api.ok("stranger", "GET", "/grants")["grants"]
    assert {each["actor"] for each in mine} <= {"stranger", "everyone"}
    api.refused("stranger", "GET", "/grants", 403, params={"actor": "owner"})
    assert api.refused("owner", "PUT", f"/grants/owner/{name}", 403, {"level": "admin"}).startswith(
        "this takes"
    )
    api.ok("admin", "DELETE", f"/grants/stranger/{name}", status=204)
    api.refused("admin", "DELETE", f"/grants/stranger/{name}", 404)
    assert api.refused("admin", "PUT", "/grants/nobody-here/x", 404, {"level": "read"}) == (
        "there is no user nobody-here"
    )


# ------------------------------------------------------------------------------------------------ rubbish


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("PUT", "/repositories/team/x", b"{", 422),
        ("PUT", "/repositories/team/x", b"[" * 100_000, 400),
        ("PUT", "/repositories/team/x", b'{"copies": ' + b"9" * 5000 + b"}", 400),
        ("PUT", "/repositories/team/x", b'{"copies": "2"}', 422),
        ("PUT", "/repositories/team/x", b'{"copies": NaN}', 422),
        ("PUT", "/repositories/team/x", b'{"\xff": 1}', 400),
        ("PUT", "/repositories/team/x", b'{"\\ud800": 1}', 422),
        ("PUT", "/repositories/team/x", b'{"default_branch": "\\ud800"}', 400),
        ("PUT", "/repositories/team/x", b"", 422),
        ("PUT", "/repositories/team/x", b"null", 422),
        ("PUT", "/repositories/..%2f..%2fetc", b"{}", 400),
        ("PUT", "/repositories/a%00b", b"{}", 400),
        ("PUT", "/repositories/" + "a" * 300, b"{}", 400),
        ("GET", "/repositories/", b"", 400),
        ("GET", "/repositories?search=%00", b"", 400),
        ("GET", "/repositories?after=%ff", b"", 400),
        ("POST", "/freeze/team/x", b'{"reason": "\\u0000 \\n"}', 404),
        ("POST", "/tokens", b'{"comment": "a\\u0000"}', 400),
        ("POST", "/tokens", b'{"expires": "\\ud800"}', 400),
        ("POST", "/keys", b'{"public_key": "\\u0000\\ud800"}', 422),
        ("DELETE", "/tokens/99999999999999999999999", b"", 422),
        ("GET", "/log/team/x?before=99999999999999999999", b"", 422),
        ("GET", "/nothing", b"", 404),
        ("POST", "/status", b"{}", 405),
    ],
)  # fmt: skip
def test_rubbish_gets_a_sentence(api: Api, method: str, path: str, content: bytes, status: int) -> None:
    said = api.refused(
        "admin", method, path, status, content=content, headers={"Content-Type": "application/json"}
    )
    assert said and said.isprintable()


def test_a_body_of_another_kind_or_too_large(api: Api) -> None:
    headers = {"Content-Type": "text/plain"}
    api.refused("admin", "PUT", "/repositories/team/x", 422, content=b"{}", headers=headers)
    large = b'{"default_branch": "' + b"x" * (1 << 20) + b'"}'
    assert (
        api.refused("admin", "PUT", "/repositories/team/x", 413, content=large)
        == "the body of this request has more than 1 MiB"
    )
    assert api.refused(
        "admin", "PUT", "/repositories/team/x", 413, content=(b"x" * 4096 for _ in range(300))
    ) == "the body of this request has more than 1 MiB"  # fmt: skip


def test_a_browsers_session_changes_nothing_by_itself(api: Api) -> None:
    """What another site can have a browser send along is not enough."""
    import hashlib

    cookie = "c" * 43
    actor = api.cluster.db.whose_token(
        tokens.digest(api.clients["admin"].headers["Authorization"].removeprefix("Bearer ")) or b"", "test"
    )
    assert actor
    api.cluster.db.begin_web_session(hashlib.sha256(cookie.encode()).digest(), actor, seconds=600)
    with httpx.Client(
        base_url=api.clients["nobody"].base_url, cookies={"git_cluster_session": cookie}
    ) as browser:
        assert browser.get("/whoami").json()["user"] == "demo"
        refused = browser.put("/users/forged")
        assert (
            refused.status_code == 403
            and refused.json()["error"] == "a session of a browser changes nothing here"
        )
        from cluster.http.who import csrf_token

        assert browser.put("/users/forged", headers={"X-CSRF-Token": csrf_token(cookie)}).status_code == 201


def test_a_client_that_stops_in_its_body_is_let_go(api: Api) -> None:
    port = api.cluster.devices["a"].http_port
    assert port
    with socket.create_connection(("127.0.0.1", port), 10) as raw:
        raw.sendall(b"PUT /-/api/v1/users/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert api.ok("admin", "GET", "/whoami")["user"] == "demo"


def test_a_method_that_an_address_does_not_take(api: Api) -> None:
    assert api("admin", "POST", "/repositories/team/x", {}).headers["Allow"] == "DELETE, GET, PATCH, PUT"


def test_errors_are_json_wherever_they_come_from(api: Api) -> None:
    """Also from what stands before the API, and from what shares its prefix."""
    for path in ("/events?after=x", "/repositories/a%0ab", "/%0a"):
        assert api.refused("admin", "GET", path, 404 if "%0a" in path else 400)


def test_answers_are_not_kept_and_load_nothing(api: Api) -> None:
    answer = api("reader", "GET", "/openapi.json")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    document = answer.json()
    assert document["servers"] == [{"url": "/-/api/v1"}]
    assert document["components"]["securitySchemes"].keys() == {"bearer", "basic"}
    for path in ("/docs", "/redoc"):
        api.refused("reader", "GET", path, 404)
