"""The status page at /-/, over HTTP: who sees what, forms that only our own pages can send, nothing that becomes HTML.

What a browser makes of it is in test_pages_browser.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import psycopg
import pytest

from cluster.http.who import COOKIE
from cluster.model import Level
from tests.breaking import sql
from tests.cluster_fixture import Cluster, Project
from tests.http_fixture import HttpCluster

ENDPOINTS = ("http",)
HOSTILE = "<script>alert(1)</script>\"'&"


@pytest.fixture(scope="module")
def site(devices: Cluster) -> HttpCluster:
    assert isinstance(devices, HttpCluster)
    return devices


class Browser(httpx.Client):
    """What a browser does: it keeps cookies, and sends the hidden fields of a form along."""

    def __init__(self, site: HttpCluster, device: str = "a") -> None:
        super().__init__(base_url=site.base(device), timeout=60)

    def sign_in(self, token: str, back: str = "/-/") -> httpx.Response:
        return self.post("/-/login", data={**hidden(self.get("/-/login").text), "token": token, "next": back})

    def submit(self, page: str, action: str, **fields: str) -> httpx.Response:
        """The form on `page` that goes to `action`."""
        found = re.search(rf'(?s)<form[^>]* action="{re.escape(action)}".*?</form>', self.get(page).text)
        assert found, f"{page} has no form that goes to {action}"
        return self.post(action, data={**hidden(found[0]), **fields})


def hidden(text: str) -> dict[str, str]:
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', text))


@pytest.fixture
def browser(site: HttpCluster) -> Iterator[Browser]:
    with Browser(site) as browser:
        yield browser


@pytest.fixture(scope="module")
def admin(site: HttpCluster) -> Iterator[Browser]:
    """The user demo, who may do everything, signed in."""
    with Browser(site) as browser:
        assert browser.sign_in(site.token).status_code == 303
        yield browser


@pytest.fixture(scope="module")
def project(site: HttpCluster) -> Project:
    """A repository with one version."""
    project = Project.named(site, "pages", min_copies=2)
    project.pushed("a", "main")
    project.converge()
    return project


def user(site: HttpCluster, name: str, *grants: tuple[Level, str], read_only: bool = False) -> str:
    site.db.add_user(name)
    for level, pattern in grants:
        site.db.grant(level, name, pattern)
    return site.make_token(name, read_only=read_only)


def main(response: httpx.Response) -> str:
    """What stands in <main>, without tags."""
    found = re.search(r"(?s)<main.*</main>", response.text)
    assert found, response.text
    return " ".join(re.sub(r"(?s)<[^>]*>", " ", found[0]).split())


# ------------------------------------------------------------------------------------------------ what each page has


def test_every_page_has_its_headers_and_no_script_or_style_of_its_own(
    site: HttpCluster, admin: Browser, project: Project
) -> None:
    pages = [
        "/-/",
        "/-/?span=week",
        "/-/repositories?q=pages",
        "/-/repositories?state=attention",
        f"/-/repositories/{project.name}",
        f"/-/versions/1/{project.name}",
        "/-/events",
        "/-/login",
        "/-/repositories/no/such",
        "/-/repositories/..%2f..%2fetc",
        f"/-/versions/99/{project.name}",
    ]
    for path in pages:
        response = admin.get(path)
        csp = response.headers["content-security-policy"]
        assert "default-src 'none'" in csp and "frame-ancestors 'none'" in csp and "unsafe" not in csp
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cross-origin-opener-policy"] == "same-origin"
        assert response.headers["referrer-policy"] == "same-origin"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert "strict-transport-security" not in response.headers  # it is plain HTTP here
        assert not re.search(
            r"<script(?! src=\"/-/static/)|<style|\sstyle=|\son\w+=|javascript:", response.text
        )
        assert not re.search(r"(src|href)=\"(https?:)?//", response.text)
        assert '<html lang="en">' in response.text and '<main id="main"' in response.text
    assert admin.get("/-/repositories/no/such").status_code == 404
    assert admin.get(f"/-/versions/99/{project.name}").status_code == 404
    assert admin.get("/-").headers["location"] == "/-/"
    assert admin.head("/-/").status_code == 200


def test_assets_are_ours_and_kept(browser: Browser) -> None:
    page = browser.get("/-/").text
    for path in re.findall(r'(?:src|href)="(/-/static/[^"]+)"', page):
        asset = browser.get(path)
        assert asset.status_code == 200 and "immutable" in asset.headers["cache-control"]
    assert browser.get("/-/static/..%2frender.py").status_code == 404
    assert browser.get("/-/static/render.py").status_code == 404


def test_the_first_page_in_five_seconds(site: HttpCluster, admin: Browser, project: Project) -> None:
    site.wait(lambda: "✓" not in main(admin.get("/-/")) and "Healthy" in main(admin.get("/-/")), "healthy")
    shown = main(admin.get("/-/"))
    assert re.search(r"Healthy \d+ repositor(y|ies) on 3 devices", shown)
    assert re.search(r"a online none \d+ [GT]iB of \d", shown)
    assert "Repositories that need attention None." in shown
    for chart in ("Pushes in each minute", "Sync lag", "Latency"):
        assert chart in shown


def test_a_repository_says_all_of_itself(site: HttpCluster, admin: Browser, project: Project) -> None:
    sql(
        site,
        f"insert into copies select id, now() - interval '1 hour', 1, 3 from repository where name = '{project.name}'",
        f"insert into copies select id, now(), 3, 3 from repository where name = '{project.name}'",
    )
    response = admin.get(f"/-/repositories/{project.name}")
    shown = main(response)
    assert f"{project.name} is healthy at version" in shown and "3 of 3 copies current" in shown
    assert f"git clone {site.devices['a'].url}/{project.name}" in shown
    assert f"git clone {site.devices['a'].http_url}/{project.name}" in shown
    checksum = str(site.snapshot(project.name).repository.position.checksum)
    assert response.text.count(checksum) == 3
    assert re.search(r"1 \d+ \w+ ago demo a http main new [0-9a-f]{8}", shown)
    assert "3 of 3 copies now; at the fewest 1" in shown and 'role="img"' in response.text


def test_a_push_of_many_refs_is_paged(site: HttpCluster, admin: Browser) -> None:
    project = Project.named(site, "many refs")
    refs = [f"main:refs/heads/b{number:04d}" for number in range(600)]
    project.pushed("a", *refs)
    page = admin.get(f"/-/repositories/{project.name}").text
    assert page.count('class="ref"') == 12 and "all of them" in page
    first = admin.get(f"/-/versions/1/{project.name}").text
    assert first.count('class="ref"') == 500
    further = re.search(r'rel="next" href="([^"]+)"', first)
    assert further
    assert admin.get(further[1].replace("&amp;", "&")).text.count('class="ref"') == 100


def test_the_address_of_a_repository_leads_a_browser_to_its_page(browser: Browser, project: Project) -> None:
    html = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for path in (f"/{project.name}", f"/{project.name}.git", f"/{project.name}/"):
        answer = browser.get(path, headers=html)
        assert answer.status_code == 302
        assert answer.headers["location"] == f"/-/repositories/{project.name}"
    assert browser.get(f"/{project.name}").status_code == 404
    assert browser.get("/a..b//evil.example", headers=html).status_code == 404


# ------------------------------------------------------------------------------------------------ signing in


def test_signing_in_and_out(site: HttpCluster, browser: Browser) -> None:
    wrong = browser.sign_in("gct_" + "x" * 43)
    assert wrong.status_code == 401 and "this token is not known here" in main(wrong)
    assert COOKIE not in browser.cookies
    done = browser.sign_in(site.token, "/-/events")
    assert done.status_code == 303 and done.headers["location"] == "/-/events"
    cookie = next(c for c in done.headers.get_list("set-cookie") if c.startswith(COOKIE))
    assert "HttpOnly" in cookie and "samesite=lax" in cookie.lower() and "Path=/" in cookie
    assert "secure" not in cookie.lower()
    assert site.token not in done.text + str(done.headers)
    assert "demo" in browser.get("/-/").text
    kept = browser.cookies[COOKIE]
    assert browser.submit("/-/", "/-/logout").status_code == 303
    browser.cookies.set(COOKIE, kept)
    assert browser.get("/-/events").status_code == 303  # the session itself has ended, not only the cookie


def test_signing_in_leads_nowhere_else(site: HttpCluster, browser: Browser) -> None:
    for back in ("https://evil.example/", "//evil.example/-/", "/\\evil.example", "/-/\r\nX: y"):
        assert browser.sign_in(site.token, back).headers["location"] == "/-/"


def test_a_token_that_is_removed_ends_its_sessions(site: HttpCluster, browser: Browser) -> None:
    token = user(site, "leaver", (Level.READ, "team/*"))
    browser.sign_in(token)
    assert "leaver" in browser.get("/-/").text
    site.db.remove_token(site.db.tokens("leaver")[0].id)
    assert "leaver" not in browser.get("/-/").text


# ------------------------------------------------------------------------------------------------ forms


def test_only_a_form_of_ours_is_heard(site: HttpCluster, admin: Browser, project: Project) -> None:
    page, action = f"/-/repositories/{project.name}", f"/-/act/sync/{project.name}"
    fields = hidden(admin.get(page).text)
    assert admin.post(action, data=fields).status_code == 200
    refused = [
        admin.post(action),
        admin.post(action, data={}),
        admin.post(action, data={"csrf": "0" * 64}),
        admin.post(action, data={"csrf": "é"}),
        admin.post(action, data=fields, headers={"origin": "https://evil.example"}),
        admin.post(action, data=fields, headers={"origin": "null"}),
        admin.post(action, data=fields, headers={"sec-fetch-site": "cross-site"}),
        admin.post(action, data=fields, headers={"sec-fetch-site": "same-site"}),
        admin.post(
            action, content=b"\xff\0=&", headers={"content-type": "application/x-www-form-urlencoded"}
        ),
        admin.post(action, content=b"{}", headers={"content-type": "application/json"}),
        admin.post(action, data={**fields, "long": "x" * 100_000}),
        admin.post(f"/-/act/drop/{project.name}", data=fields),
        httpx.post(site.base("a") + action, data=fields),
        httpx.post(site.base("a") + action, data=fields, headers={"authorization": f"Bearer {site.token}"}),
    ]
    assert [response.status_code for response in refused] == [400, 400, *[403] * 7, 400, 400, 400, 403, 403]
    for response in refused:
        assert response.headers["content-type"].startswith("text/html") and "Traceback" not in response.text
    with Browser(site) as other:
        other.sign_in(site.token)
        assert other.post(action, data=fields).status_code == 403  # of another session
        assert other.post("/-/logout", data=fields).status_code == 403
        assert other.post("/-/login", data={"token": site.token, "csrf": "0"}).status_code == 403
    assert admin.get(action).status_code == 405


def test_sync_and_verify(admin: Browser, project: Project) -> None:
    page = f"/-/repositories/{project.name}"
    synced = admin.submit(page, f"/-/act/sync/{project.name}")
    assert synced.status_code == 200 and re.search(r"Synced.*a: .*version \d.*b: .*c: ", main(synced))
    verified = admin.submit(page, f"/-/act/verify/{project.name}")
    assert verified.status_code == 200 and main(verified).count("verified") == 3


def test_a_thaw_is_of_what_was_looked_at(site: HttpCluster, admin: Browser) -> None:
    project = Project.named(site, "moved on")
    project.pushed("a", "main")
    page, action = f"/-/repositories/{project.name}", f"/-/act/thaw/{project.name}"
    nothing = admin.submit(page, action)
    assert "is not frozen: nothing to do" in main(nothing) and 'name="seen"' not in nothing.text
    assert site.admin("freeze", project.name, "--reason", "one reason").code == 0
    seen = admin.submit(page, action)
    dry = site.admin("thaw", project.name, "--dry-run").out
    assert dry.strip() in main(seen)
    site.db.freeze(site.snapshot(project.name).repository.id, "another reason")
    late = admin.post(action, data=hidden(seen.text.partition("<main")[2]))
    assert late.status_code == 409 and "has moved on since you looked: nothing was done" in main(late)
    assert site.snapshot(project.name).repository.frozen == "another reason"
    done = admin.post(action, data=hidden(late.text.partition("<main")[2]))
    assert done.status_code == 200 and "the freeze is ended: another reason" in main(done)
    assert site.snapshot(project.name).repository.frozen is None
    again = admin.post(action, data=hidden(late.text.partition("<main")[2]))
    assert again.status_code == 409


# ------------------------------------------------------------------------------------------------ who sees what


def test_nobody_in_particular_reads_counts_and_what_everyone_may(
    site: HttpCluster, browser: Browser, project: Project
) -> None:
    shown = browser.get("/-/")
    assert shown.status_code == 200
    assert "Healthy" in main(shown) or "repositor" in main(shown)
    assert project.name not in shown.text and "Devices" not in main(shown) and "Latency" not in main(shown)
    assert browser.get("/-/events").headers["location"].startswith("/-/login")
    closed, missing = (browser.get(f"/-/repositories/{n}") for n in (project.name, "team/not-here"))
    assert closed.status_code == missing.status_code == 404
    assert main(closed).replace(project.name, "X") == main(missing).replace("team/not-here", "X")
    assert "None that you may see" in main(browser.get("/-/repositories"))
    public = Project.named(site, "public")
    site.db.grant(Level.READ, None, public.name)
    try:
        assert public.name in main(browser.get("/-/repositories"))
        assert "Push log" in main(browser.get(f"/-/repositories/{public.name}"))
        assert "/-/act/" not in browser.get(f"/-/repositories/{public.name}").text
    finally:
        site.db.revoke(None, public.name)


def test_a_reader_sees_theirs_and_does_nothing(site: HttpCluster, browser: Browser, project: Project) -> None:
    other = Project.named(site, "not for readers")
    sql(
        site,
        "insert into event (repository_id, version, kind, device, what) select id, 0, 'heal', 'a', 'healed ' || name"
        f" from repository where name in ('{other.name}', '{project.name}')",
    )
    browser.sign_in(user(site, "reader", (Level.READ, project.name)))
    assert "Last contact" in main(browser.get("/-/"))
    for path in ("/-/", "/-/events", "/-/repositories", "/-/repositories?state=attention"):
        assert other.name not in browser.get(path).text
    assert project.name in browser.get("/-/events").text
    assert browser.get(f"/-/repositories/{other.name}").status_code == 404
    assert browser.get(f"/-/versions/0/{other.name}").status_code == 404
    page = browser.get(f"/-/repositories/{project.name}").text
    assert "/-/act/" not in page
    fields = hidden(page)  # of the form to sign out
    for deed in ("sync", "verify", "thaw"):
        assert browser.post(f"/-/act/{deed}/{project.name}", data=fields).status_code == 403
        assert browser.post(f"/-/act/{deed}/{other.name}", data=fields).status_code == 404


def test_a_token_that_only_reads_does_nothing(site: HttpCluster, browser: Browser, project: Project) -> None:
    browser.sign_in(user(site, "watcher", (Level.ADMIN, "*"), read_only=True))
    page = browser.get(f"/-/repositories/{project.name}").text
    assert "/-/act/" not in page and "(reads only)" in page
    done = browser.post(f"/-/act/sync/{project.name}", data=hidden(page))
    assert done.status_code == 403 and "may only read" in main(done)


def test_who_administers_one_repository_acts_on_that(
    site: HttpCluster, browser: Browser, project: Project
) -> None:
    browser.sign_in(user(site, "keeper", (Level.READ, "*"), (Level.ADMIN, project.name)))
    assert browser.submit(f"/-/repositories/{project.name}", f"/-/act/sync/{project.name}").status_code == 200


# ------------------------------------------------------------------------------------------------ what is hostile


def test_nothing_that_people_write_becomes_html(site: HttpCluster, admin: Browser) -> None:
    project = Project.named(site, "hostile")
    ref = "refs/heads/<script>alert(1)</script>\"'&"
    project.pushed("a", f"main:{ref}")
    with psycopg.connect(site.database) as connection:
        connection.execute(
            """insert into event (repository_id, version, kind, device, what, refs)
               select id, 1, 'heal', 'a', %s, jsonb_build_array(jsonb_build_array(%s::text, 'a', 'b'))
                 from repository where name = %s""",
            (HOSTILE, ref, project.name),
        )
        connection.execute(
            "update replica set last_error = %s where repository_id = (select id from repository where name = %s)",
            (HOSTILE, project.name),
        )
    assert site.admin("freeze", project.name, "--reason", f"{HOSTILE} `{HOSTILE}`").code == 0
    paths = [
        "/-/",
        "/-/events",
        f"/-/repositories/{project.name}",
        f"/-/versions/1/{project.name}",
        f"/-/repositories?q={HOSTILE}",
        f"/-/repositories?after={HOSTILE}&state={HOSTILE}",
        f"/-/repositories/{HOSTILE}",
        f"/-/login?next={HOSTILE}",
        f"/-/?span={HOSTILE}",
        f"/-/events?before={HOSTILE}",
        f"/-/versions/1/{project.name}?after={HOSTILE}",
    ]
    for path in paths:
        text = admin.get(path).text
        assert "<script>alert" not in text and "</script>\"'" not in text, path
    assert "&lt;script&gt;alert(1)" in admin.get(f"/-/repositories/{project.name}").text
    seen = admin.submit(f"/-/repositories/{project.name}", f"/-/act/thaw/{project.name}")
    assert "<script>alert" not in seen.text and "&lt;script&gt;" in seen.text
    assert site.admin("thaw", project.name).code == 0


def test_rubbish_in_an_address_is_an_answer_in_words(admin: Browser, project: Project) -> None:
    for path in (
        "/-/repositories?q=%00%ff%25_\\",
        "/-/repositories?after=%00",
        f"/-/repositories/{project.name}?before=99999999999999999999",
        f"/-/repositories/{project.name}?before=-1",
        f"/-/versions/99999999999999999999/{project.name}",
        f"/-/versions/1/{project.name}?after=%00",
        "/-/events?before=9999-99-99",
        "/-/events?before=0001-01-01T00:00:00%2B00:00",
        "/-/repositories/%00",
        "/-/repositories/" + "x" * 3000,
        "/-/repositories/",
        "/-/nothing/here",
        "/-/static/",
    ):
        response = admin.get(path)
        assert response.status_code < 500, path
        assert "Traceback" not in response.text and "psycopg" not in response.text


def test_a_search_finds_parts_of_names_and_goes_on(
    site: HttpCluster, admin: Browser, browser: Browser
) -> None:
    for number in range(60):
        site.create(f"find/x{number:02d}" if number % 2 else f"look/Y{number:02d}_x")
    first = admin.get("/-/repositories", params={"q": "X"})
    shown = re.findall(r'<th scope="row"><a href="/-/repositories/([^"]+)"', first.text)
    further = re.search(r'rel="next" href="([^"]+)"', first.text)
    assert len(shown) == 50 and further
    shown += re.findall(
        r'<th scope="row"><a href="/-/repositories/([^"]+)"',
        admin.get(further[1].replace("&amp;", "&")).text,
    )
    assert len(shown) == len(set(shown)) == 60
    assert "look/Y00_x" in main(admin.get("/-/repositories", params={"q": "00_"}))
    assert "find/x01" not in main(admin.get("/-/repositories", params={"q": "0_"}))
    assert "with “%” in its name" in main(admin.get("/-/repositories", params={"q": "%"}))
    browser.sign_in(user(site, "finder", (Level.READ, "look/*"), (Level.READ, "find/x0*")))
    shown = re.findall(r'href="/-/repositories/(\w[^"]+)"', browser.get("/-/repositories?q=x").text)
    assert len(shown) == 35 and all(name.startswith(("look/", "find/x0")) for name in shown)
