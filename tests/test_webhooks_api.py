"""Webhooks over the API: who may what, and what is said of nonsense. The router, in an application of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster import tokens
from cluster.config import load
from cluster.errors import ClusterError
from cluster.http.answers import status_of
from cluster.http.site import Site, open_site
from cluster.http.webhooks_api import router
from cluster.model import Level
from cluster.opening import open_node
from cluster.requests import Requests
from tests.cluster_fixture import Cluster
from tests.conftest import new_cluster, new_database
from tests.receiver import Receiver, verified

ALLOW = {"webhooks": {"private_addresses": "allow"}}


class Api:
    """The router below /, asked by whoever has a token."""

    def __init__(self, cluster: Cluster, site: Site) -> None:
        self.cluster = cluster
        self.app = FastAPI(exception_handlers={ClusterError: self._told})
        self.app.state.site = site
        self.app.include_router(router)
        self.tokens = {
            name: self.token(name.removesuffix(" reading"), read_only="reading" in name)
            for name in ("ann", "bob", "eve", "ann reading")
        }

    @staticmethod
    async def _told(request: Request, error: Exception) -> Response:
        assert isinstance(error, ClusterError)
        return JSONResponse({"error": error.what, "hint": error.hint}, status_of(error))

    def token(self, user: str, *, read_only: bool) -> str:
        secret = tokens.new()
        digest = tokens.digest(secret)
        assert digest is not None
        self.cluster.db.add_token(user, digest, read_only=read_only)
        return secret

    def ask(self, who: str | None, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.tokens[who]}"} if who else {}

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, client=("127.0.0.1", 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://device") as client:
                return await client.request(method, path, headers=headers, json=body)

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def api(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """No device is up: what the router does needs none but the one that it is in."""
    with new_database(postgres) as url:
        cluster = new_cluster("built-in", tmp_path_factory.mktemp("api") / "cluster", url, {}, ALLOW)
        cluster.set_up(["a"])
        cluster.create("team/app")
        for user in ("ann", "bob", "eve"):
            cluster.db.add_user(user)
        cluster.db.grant(Level.ADMIN, "ann", "team/app")
        cluster.db.grant(Level.WRITE, "bob", "team/app")
        config = load(cluster.devices["a"].config, {})
        assert config.http is not None
        node = open_node(config, {})
        try:
            yield Api(cluster, open_site(node, Requests(node), config.http))
        finally:
            node.peers.close()
            node.db.close()
            cluster.close()


def test_an_administrator_of_the_repository(api: Api) -> None:
    with Receiver() as receiver:
        made = api.ask("ann", "POST", "/webhooks/team/app", {"url": receiver.url()})
        assert made.status_code == 201
        secret = made.json()["secret"]
        number = made.json()["id"]
        shown = {key: value for key, value in made.json().items() if key != "secret"}
        assert shown["created_by"] == "ann"
        assert api.ask("ann", "GET", "/webhooks/team/app").json() == [shown]
        assert api.ask("ann reading", "GET", f"/webhook/{number}").json() == shown
        pinged = api.ask("ann", "POST", f"/webhook/{number}/test").json()
        assert pinged == {"taken": True, "status": 204, "error": ""}
        assert verified(receiver.heard[0], secret)
        receiver.answer = lambda data: 500
        pinged = api.ask("ann", "POST", f"/webhook/{number}/test").json()
        assert pinged == {"taken": False, "status": 500, "error": "it answered 500"}
        for enabled in (False, False, True, True):
            turned = api.ask("ann", "PATCH", f"/webhook/{number}", {"enabled": enabled})
            assert (turned.status_code, turned.json()["enabled"]) == (200, enabled)
        assert api.ask("ann", "DELETE", f"/webhook/{number}").status_code == 204
        assert api.ask("ann", "DELETE", f"/webhook/{number}").status_code == 404


@pytest.mark.parametrize(
    ("who", "status", "says"),
    [
        (None, 401, "this takes a token"),
        ("eve", 404, "there is no repository team/app here, or you may not read it"),
        ("bob", 403, "you may write team/app but not admin it"),
        ("ann reading", 403, "this token may only read"),
    ],
)
def test_others_may_not(api: Api, who: str | None, status: int, says: str) -> None:
    number = api.cluster.db.add_webhook("team/app", f"https://ci.example/{status}{who}", "x", created_by="-")
    answers = [
        api.ask(who, "POST", "/webhooks/team/app", {"url": "https://ci.example/"}),
        api.ask(who, "PATCH", f"/webhook/{number}", {"enabled": False}),
        api.ask(who, "DELETE", f"/webhook/{number}"),
        api.ask(who, "POST", f"/webhook/{number}/test"),
    ]
    if who != "ann reading":
        answers += [api.ask(who, "GET", "/webhooks/team/app"), api.ask(who, "GET", f"/webhook/{number}")]
    assert {answer.status_code for answer in answers} == {status}
    assert says in answers[0].json()["error"]
    assert api.cluster.db.webhook(number).enabled
    api.cluster.db.remove_webhook(number)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/webhooks/team/app", {"url": "gopher://x/"}, 400),
        ("POST", "/webhooks/team/app", {"url": "https://a:b@x/"}, 400),
        ("POST", "/webhooks/team/app", {"url": "https://x/", "secret": "short"}, 400),
        ("POST", "/webhooks/team/app", {"url": "https://x/", "more": 1}, 422),
        ("POST", "/webhooks/team/app", {"url": 7}, 422),
        ("POST", "/webhooks/team/app", {"url": "https://x/\u0000"}, 400),
        ("POST", "/webhooks/team/app", {"url": "https://x/", "secret": "whsec_\ud7ff\u0000"}, 400),
        ("POST", "/webhooks/team/app", [], 422),
        ("POST", "/webhooks/a//b", {"url": "https://x/"}, 400),
        ("GET", "/webhooks/team/none", None, 404),
        ("GET", "/webhook/0", None, 404),
        ("GET", "/webhook/-1", None, 404),
        ("GET", "/webhook/99999999999999999999999", None, 404),
        ("GET", "/webhook/x", None, 422),
        ("PATCH", "/webhook/1", {"enabled": None}, 422),
    ],
)
def test_nonsense(api: Api, method: str, path: str, body: Any, status: int) -> None:
    answer = api.ask("ann", method, path, body)
    assert answer.status_code == status, answer.text


def test_one_url_twice_and_too_many(api: Api) -> None:
    url = "https://ci.example/many"
    codes: list[int] = []

    def add() -> None:
        codes.append(api.ask("ann", "POST", "/webhooks/team/app", {"url": url}).status_code)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes.count(201) == 1 and len(set(codes)) == 2
    for number in range(19):
        api.cluster.db.add_webhook("team/app", f"{url}/{number}", "x", created_by="-")
    full = api.ask("ann", "POST", "/webhooks/team/app", {"url": f"{url}/more"})
    assert full.status_code == 403 and "has 20 webhooks already" in full.json()["error"]
    for each in api.cluster.db.webhooks("team/app"):
        api.cluster.db.remove_webhook(each.id)
