"""The status page in a browser: a person on duty walks it while the cluster breaks and is mended.

Headless Chromium, with nothing between it and two real devices. What the page says over HTTP is in test_pages.py.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psycopg
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.breaking import interrupt
from tests.conftest import new_cluster, new_database
from tests.http_fixture import HttpCluster

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
DEADLINE = 45_000.0


@pytest.fixture(scope="module")
def site(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpCluster]:
    """Devices a and b, which leave an interrupted write to a person; team/app with two versions."""
    with new_database(postgres) as url:
        site = new_cluster("http", tmp_path_factory.mktemp("pages") / "cluster", url, {"heal": "manual"})
        assert isinstance(site, HttpCluster)
        try:
            site.set_up(["a", "b"])
            for device in "ab":
                site.start(device)
            site.create("team/app", min_copies=2)
            work = site.work()
            site.ok("push", "--quiet", site.url("a"), "main", "main:other", cwd=work)
            site.converge()
            yield site
        finally:
            site.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "there is no Chromium here: .ci/system-packages names it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(
    chromium: Browser, site: HttpCluster, *, width: int = 1280, scheme: str = "light", script: bool = True
) -> Iterator[Page]:
    """A page of somebody who has signed in as demo on device a. Whatever its console complains of fails the test."""
    context = chromium.new_context(
        base_url=site.base("a"),
        viewport={"width": width, "height": 800},
        color_scheme="dark" if scheme == "dark" else "light",
        java_script_enabled=script,
        reduced_motion="reduce",
    )
    context.set_default_timeout(DEADLINE)
    complaints: list[str] = []
    page = context.new_page()
    page.on(
        "console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto("/-/login")
    page.get_by_label("Your token").fill(site.token)
    page.get_by_role("main").get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/-/")
    yield page
    # Chromium complains of each answer that is an error, and of a device that is stopped on purpose.
    expected = ("ERR_CONNECTION", "ERR_EMPTY_RESPONSE", "the server responded with a status of")
    assert not [text for text in complaints if not any(each in text for each in expected)]
    context.close()


def faults(page: Page) -> list[str]:
    """What axe finds serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{v['id']}: {[node['html'][:200] for node in v['nodes']]}"
        for v in found
        if v["impact"] in ("serious", "critical")
    ]


PATHS = [
    "/-/",
    "/-/repositories",
    "/-/repositories/team/app",
    "/-/versions/1/team/app",
    "/-/events",
    "/-/login",
]


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")]
)
def test_every_page_can_be_read_by_everybody(
    site: HttpCluster, chromium: Browser, width: int, scheme: str
) -> None:
    with opened(chromium, site, width=width, scheme=scheme) as page:
        for path in PATHS:
            page.goto(path)
            assert faults(page) == [], path
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} is too wide"
        page.goto("/-/repositories/team/app")
        page.get_by_role("button", name="See what it would do").click()
        expect(page.get_by_role("main")).to_contain_text("nothing to do")
        assert faults(page) == []


def test_it_is_read_without_a_script_and_with_a_keyboard(site: HttpCluster, chromium: Browser) -> None:
    with opened(chromium, site, script=False) as page:
        expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("Healthy"))
        page.get_by_label("A part of its name").fill("APP")
        page.get_by_role("button", name="Find").click()
        page.get_by_role("link", name="team/app").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("team/app")
        page.get_by_role("button", name="Verify now").click()
        expect(page.get_by_role("main")).to_contain_text("verified")
    with opened(chromium, site) as page:
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        page.get_by_role("link", name="week").focus()
        before = page.locator("#as-of time").inner_text()
        expect(page.locator("#as-of time")).not_to_have_text(before, timeout=DEADLINE)
        expect(page.get_by_role("link", name="week")).to_be_focused()


def test_a_night_on_duty(site: HttpCluster, chromium: Browser) -> None:
    """Healthy; device b goes and comes back; a write is interrupted and thawed from the page. Nothing is reloaded."""
    work = site.directory / "work"
    with opened(chromium, site) as page:
        headline = page.locator("#headline h1")
        expect(headline).to_have_text("Healthy", timeout=DEADLINE)
        page.evaluate("window.same = true")
        site.stop("b")
        expect(headline).to_have_text("Device b is offline; 1 repository is degraded", timeout=DEADLINE)
        expect(page.locator("#said")).to_have_text(headline.inner_text())
        expect(page.locator("#devices tbody tr").nth(1)).to_contain_text("offline")
        expect(page.locator("#attention")).to_contain_text("device b is offline")
        assert faults(page) == []
        site.start("b")
        expect(headline).to_have_text("Healthy", timeout=DEADLINE)

        new = site.commit(work, "interrupted")
        interrupt(site, "a", "commit", work, "main", "main:other")
        expect(page.locator("#stale")).to_contain_text("does not answer", timeout=DEADLINE)
        site.start("a")
        expect(headline).to_have_text(re.compile("1 repository is frozen"), timeout=DEADLINE)
        expect(page.locator("#stale")).to_be_hidden()
        assert page.evaluate("window.same") is True
        assert faults(page) == []

        page.locator("#headline").get_by_role("link", name="team/app").click()
        expect(page.locator("#headline")).to_contain_text("a write by demo on device a was interrupted")
        expect(page.locator("#replicas tbody tr").first).to_contain_text("frozen")
        page.get_by_role("button", name="See what it would do").click()
        dry = site.admin("thaw", "team/app", "--dry-run").out
        assert dry.split() == page.locator("pre.lines").inner_text().split()
        assert site.version() == 1
        assert faults(page) == []
        page.get_by_role("button", name="Thaw team/app").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Thawed: team/app")
        assert site.version() == 2 and set(site.refs("b").values()) == {new}
        page.get_by_role("link", name="Back to team/app").click()
        expect(page.locator("#headline")).to_contain_text("healthy at version 2", timeout=DEADLINE)
        expect(page.locator("#events")).to_contain_text("thaw")


def test_what_would_be_lost_is_named_and_typed(site: HttpCluster, chromium: Browser) -> None:
    """The interrupted write's claim is given up: the page names its refs, and wants the repository's name."""
    work = site.directory / "work"
    old = site.refs("b")["refs/heads/main"]
    new = site.commit(work, "given up")
    interrupt(site, "a", "commit", work, "main")
    site.start("a")
    with opened(chromium, site, width=360, scheme="dark") as page:
        page.goto("/-/repositories/team/app")
        page.get_by_label("Thaw").select_option(value="demote a")
        page.get_by_role("button", name="See what it would do").click()
        lines = page.locator("pre.lines")
        expect(lines).to_contain_text("interrupted push by demo")
        expect(lines).to_contain_text(f"refs/heads/main {old[:12]} → {new[:12]}")
        assert faults(page) == []
        page.get_by_label("To go on, type team/app").fill("team/other")
        page.get_by_role("button", name="Thaw team/app").click()
        expect(page.get_by_role("alert")).to_contain_text("nothing was done")
        assert site.db.snapshot("team/app").intent_owner is not None
        page.get_by_label("To go on, type team/app").fill("team/app")
        page.get_by_role("button", name="Thaw team/app").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Thawed: team/app")
    site.converge()
    assert site.refs("a")["refs/heads/main"] == old


@contextmanager
def without_database(postgres: str, site: HttpCluster) -> Iterator[None]:
    name = site.database.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"alter database {name} allow_connections false")
        try:
            connection.execute(
                f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"
            )
            yield
        finally:
            connection.execute(f"alter database {name} allow_connections true")


def test_the_database_is_away(postgres: str, site: HttpCluster, chromium: Browser) -> None:
    """The page that is open goes on showing what was last seen, and says so; a new one says what is wrong."""
    with opened(chromium, site) as page:
        expect(page.locator("#headline h1")).to_have_text("Healthy", timeout=DEADLINE)
        with without_database(postgres, site):
            expect(page.locator("#stale")).to_contain_text("database does not answer", timeout=DEADLINE)
            expect(page.locator("#headline h1")).to_have_text("Healthy")
            answer = httpx.get(f"{site.base('a')}/-/", timeout=60)
            assert answer.status_code == 503 and answer.headers["retry-after"]
            assert "database does not answer" in answer.text and "psycopg" not in answer.text
            assert httpx.get(f"{site.base('a')}/-/login", timeout=60).status_code == 200
        expect(page.locator("#stale")).to_be_hidden(timeout=DEADLINE)
