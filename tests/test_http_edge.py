"""The edge of HTTP: archives, TLS with a certificate that is renewed, proxies, wrong tokens.

Device a is plain and trusts 127.0.0.2 as its proxy; device b speaks TLS.
"""

from __future__ import annotations

import asyncio
import re
import signal
import ssl
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest

from cluster.http.who import MOST_WAITING_THERE
from cluster.loopback import LoopbackDevice
from cluster.model import Level
from tests.cluster_fixture import Cluster, Project
from tests.conftest import new_database
from tests.http_fixture import HttpCluster

PROXY = "127.0.0.2"


class Edge(HttpCluster):
    """Where devices keep what [http] says of TLS and proxies."""

    def http_section(self, device: LoopbackDevice) -> str:
        plain = super().http_section(device)
        if device.name == "b":
            make_certificates(self.directory, device.directory)
            plain = plain.replace("http://", "https://")
            return plain + 'certificate = "server.pem"\nkey = "server.key"\n'
        return plain + f'trusted_proxies = ["{PROXY}", "10.0.0.0/8", "fd00::/8"]\n'

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    def tls(self, who: str = "") -> str:
        return self.base("b", who).replace("http://", "https://")

    def log(self, device: str) -> str:
        return self.devices[device].log.read_text(errors="replace")


def openssl(*words: str, cwd: Path) -> None:
    done = subprocess.run(["openssl", *words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def make_certificates(authority: Path, folder: Path, name: str = "server") -> None:
    """An authority, once, and a certificate of it for 127.0.0.1 with its key."""
    if not (authority / "ca.pem").exists():
        openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Test CA", "-days", "2"),
            cwd=authority,
        )
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-keyout", f"{name}.key", "-out", "request", "-subj", "/CN=127.0.0.1"),
        cwd=folder,
    )
    openssl(
        *(
            "x509",
            "-req",
            "-in",
            "request",
            "-CA",
            str(authority / "ca.pem"),
            "-CAkey",
            str(authority / "ca.key"),
        ),
        *("-CAcreateserial", "-out", f"{name}.pem", "-days", "1", "-extfile", "names"),
        cwd=folder,
    )


@pytest.fixture(scope="module")
def edge(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with new_database(postgres) as url:
        sections = {"limits": {"failed_logins": 5}}
        cluster = Edge(tmp_path_factory.mktemp("edge") / "cluster", url, {}, sections)
        try:
            cluster.set_up(["a", "b"])
            for device in "ab":
                cluster.start(device)
            yield cluster
        finally:
            cluster.close()


@pytest.fixture
def app(edge: Edge, request: pytest.FixtureRequest) -> Project:
    return Project.named(edge, request.node.name)


def curl(edge: Edge, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["curl", "-sS", "--max-time", "30", *words], cwd=edge.directory, capture_output=True, text=True
    )


# ---------------------------------------------------------------------------------------------------- archives


def archive(edge: Edge, app: Project, name: str, method: str = "GET", **headers: str) -> httpx.Response:
    return httpx.request(
        method,
        f"{edge.base('a')}/{app.name}/-/archive/{name}",
        auth=("demo", edge.token),
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


def test_an_archive_of_each_kind(edge: Edge, app: Project) -> None:
    (app.work / ".gitattributes").write_text("secret export-ignore\n")
    oid = app.commit("files", **{"folder/file": "text", "secret": "x"})
    app.git("tag", "-a", "v1.0", "-m", "one")
    app.git("branch", "feature/a+b")
    app.pushed("a", "main", "v1.0", "feature/a+b")
    stem = app.name.rpartition("/")[2]
    for name in ("main", "v1.0", "feature/a+b", "feature%2Fa%2Bb", "refs/heads/main", "HEAD", oid):
        folder = f"{stem}-{name.replace('%2F', '-').replace('%2B', '+').replace('/', '-')}"
        for suffix, kind in (("tar.gz", "gzip"), ("tgz", "gzip"), ("tar", "x-tar"), ("zip", "zip")):
            answer = archive(edge, app, f"{name}.{suffix}")
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"] == f"application/{kind}"
            assert answer.headers["etag"] == f'W/"{oid}"'
            assert answer.headers["content-disposition"] == f'attachment; filename="{folder}.{suffix}"'
            assert answer.headers["x-content-type-options"] == "nosniff"
            if suffix == "zip":
                names = [
                    each for each in zipfile.ZipFile(BytesIO(answer.content)).namelist() if each[-1] != "/"
                ]
            else:
                with tarfile.open(fileobj=BytesIO(answer.content)) as tar:
                    names = [member.name for member in tar if member.isfile()]
            wanted = [f"{folder}/{file}" for file in (".gitattributes", "folder/file", "one.txt")]
            assert sorted(names) == wanted


def test_an_archive_that_the_client_has(edge: Edge, app: Project) -> None:
    app.pushed("a", "main")
    first = archive(edge, app, "main.zip")
    tag = first.headers["etag"]
    for given in (tag, tag.removeprefix("W/"), f'"x", {tag}', "*"):
        again = archive(edge, app, "main.zip", if_none_match=given)
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    head = archive(edge, app, "main.zip", "HEAD")
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", tag)
    assert "content-length" not in head.headers
    assert archive(edge, app, "main.zip", "HEAD", if_none_match=tag).status_code == 304
    assert "no-cache" in first.headers["cache-control"]
    app.commit("two")
    app.pushed("a", "main")
    new = archive(edge, app, "main.zip", if_none_match=tag)
    assert new.status_code == 200 and new.headers["etag"] != tag
    old = archive(edge, app, f"{app.git('rev-parse', 'HEAD~1')}.zip")
    assert old.headers["etag"] == tag and "max-age=86400" in old.headers["cache-control"]


def test_what_there_is_no_archive_of(edge: Edge, app: Project) -> None:
    """What no branch or tag reaches, least of all what is hidden; and what Git would take for more than a ref."""
    oid = app.git("rev-parse", "HEAD")
    app.pushed("a", "main")
    disk = app.disk("a")
    hidden = app.commit("hidden")
    edge.ok(f"--git-dir={disk}", "fetch", "--quiet", str(app.work), f"{hidden}:refs/cluster/lost/x")
    app.git("tag", "blob", f"{app.git('rev-parse', 'HEAD:hidden.txt')}")
    names = [
        "nothing", hidden, "refs/cluster/lost/x", "cluster/lost/x", "main-worktree/refs/cluster/lost/x",
        "refs/heads/../cluster/lost/x", "main~0", "main^{tree}", "main:one.txt", ":/one", "main@{0}", "@", oid[:12],
        f"x-g{hidden[:10]}", "f" * 40, "-v", "--output=x", "main\0", "main\nref x", "%ff", "a" * 5000, "*", "ma?n",
    ]  # fmt: skip
    for name in names:
        answer = archive(edge, app, f"{httpx.QueryParams({'x': name})}"[2:].replace("+", "%20") + ".tar.gz")
        assert answer.status_code == 404, (name, answer.text)
        assert answer.text.startswith("cluster: error: ") and "no branch, tag or commit" in answer.text
    assert archive(edge, app, "main.rar").status_code == 404
    assert archive(edge, app, ".zip").status_code == 404
    assert archive(edge, app, "main.zip", "POST").status_code == 405
    assert not Path(disk / "x").exists()


def test_an_archive_by_gits_own_request_shows_nothing_hidden(edge: Edge, app: Project) -> None:
    app.pushed("a", "main")
    hidden = app.commit("hidden")
    edge.ok(f"--git-dir={app.disk('a')}", "fetch", "--quiet", str(app.work), f"{hidden}:refs/cluster/lost/x")
    ssh = f"{edge.devices['a'].url}/{app.name}"
    assert edge.git("archive", f"--remote={ssh}", "main").code == 0
    app.git("branch", "cluster/mine")
    app.pushed("a", "cluster/mine")
    assert edge.git("archive", f"--remote={ssh}", "cluster/mine", "one.txt").code == 0
    for name in ("refs/cluster/lost/x", "cluster/lost/x", "main-worktree/refs/cluster/lost/x"):
        for words in (name, f"{name}:hidden.txt"):
            done = edge.git("archive", f"--remote={ssh}", words)
            assert done.code != 0 and "no such ref" in done.err, done.text[:300]


def test_who_may_have_an_archive(edge: Edge, app: Project) -> None:
    app.pushed("a", "main")
    url = f"{edge.base('a')}/{app.name}/-/archive/main.tar.gz"
    closed, missing = httpx.get(url), httpx.get(url.replace(app.name, "team/nothing"))
    assert closed.status_code == missing.status_code == 401 and "www-authenticate" in closed.headers
    assert closed.text.replace(app.name, "team/nothing") == missing.text
    edge.db.add_user("nosy")
    answer = httpx.get(url, auth=("nosy", edge.make_token("nosy")))
    assert answer.status_code == 404 and "or you may not read it" in answer.text
    edge.db.grant(Level.READ, None, app.name)
    assert httpx.get(url).status_code == 200
    nothing = httpx.get(url.replace("main.tar", "nothing.tar"))
    assert nothing.status_code == 404 and "no branch, tag or commit 'nothing'" in nothing.text
    assert httpx.get(url, auth=("demo", "gct_" + "x" * 43)).status_code == 401


def test_an_archive_of_what_is_elsewhere_and_of_what_was_just_pushed(edge: Edge) -> None:
    edge.create("lone/app", devices="b")
    app = Project(edge, "lone/app")
    edge.ok("push", f"{edge.devices['b'].url}/{app.name}", "main", cwd=app.work)
    answer = archive(edge, app, "main.tar.gz")
    assert answer.status_code == 200 and answer.headers["etag"] == f'W/"{app.git("rev-parse", "HEAD")}"'
    with tarfile.open(fileobj=BytesIO(answer.content)) as tar:
        assert tar.getnames() == ["app-main", "app-main/one.txt"]
    assert archive(edge, app, "main.tar.gz", if_none_match=answer.headers["etag"]).status_code == 304
    assert archive(edge, app, "nothing.tar.gz").status_code == 404
    edge.create("both/app")
    app = Project(edge, "both/app")
    for number in range(3):
        oid = app.commit(f"number {number}")
        edge.ok("push", f"{edge.devices['b'].url}/{app.name}", "main", cwd=app.work)
        assert archive(edge, app, "main.tar").headers["etag"] == f'W/"{oid}"'


# -------------------------------------------------------------------------------------------------------- TLS


def serial(edge: Edge) -> str:
    """Of the certificate that b shows now."""
    device = edge.devices["b"]
    assert device.http_port
    text = ssl.get_server_certificate((device.host, device.http_port))
    return subprocess.run(
        ["openssl", "x509", "-noout", "-serial"], input=text, capture_output=True, text=True, check=True
    ).stdout


def test_git_and_curl_over_tls(edge: Edge, app: Project) -> None:
    url = f"{edge.tls(f'demo:{edge.token}@')}/{app.name}"
    trust = ("-c", f"http.sslCAInfo={edge.ca}")
    edge.ok(*trust, "push", url, "main", cwd=app.work)
    assert "refs/heads/main" in edge.ok(*trust, "ls-remote", url)
    assert edge.git("ls-remote", url).code != 0  # nobody has vouched for it
    done = curl(edge, "--cacert", str(edge.ca), "-o", "tls.zip", f"{url}/-/archive/main.zip")
    assert done.returncode == 0, done.stderr
    assert zipfile.ZipFile(edge.directory / "tls.zip").testzip() is None
    for version, works in (("1.1", False), ("1.2", True), ("1.3", True)):
        old = ("--tls-max", version, "--tlsv1.0", "--ciphers", "DEFAULT@SECLEVEL=0")
        done = curl(edge, "--cacert", str(edge.ca), *old, f"{edge.tls()}/-/")
        assert (done.returncode == 0) == works, (version, done.stderr)
    plain = curl(edge, f"{edge.base('b')}/-/")
    assert plain.returncode != 0 or "error" in plain.stdout


def test_a_renewed_certificate_is_taken_and_a_bad_one_is_not(edge: Edge) -> None:
    folder, pid = edge.devices["b"].directory, edge.devices["b"].process
    assert pid is not None
    before, since = serial(edge), len(edge.log("b"))
    with httpx.Client(verify=ssl.create_default_context(cafile=str(edge.ca))) as client:
        assert client.get(f"{edge.tls()}/-/nothing").status_code == 404
        make_certificates(edge.directory, folder)
        pid.send_signal(signal.SIGHUP)
        edge.wait(lambda: serial(edge) != before, "the new certificate is shown")
        assert client.get(f"{edge.tls()}/-/nothing").status_code == 404  # on the same connection
    new = serial(edge)
    good = (folder / "server.key").read_bytes()
    make_certificates(edge.directory, folder, "other")
    for bad, says in (
        ((folder / "other.key").read_bytes(), "does not belong to"),
        (b"rubbish", "no private key"),
        (None, "cannot be read"),
    ):
        (folder / "server.key").unlink() if bad is None else (folder / "server.key").write_bytes(bad)
        pid.send_signal(signal.SIGHUP)
        edge.wait(lambda says=says: says in edge.log("b")[since:], says)  # type: ignore[misc]
        assert serial(edge) == new
    (folder / "server.key").write_bytes(good)
    assert "the old certificate stays in use" in edge.log("b")


@pytest.mark.parametrize(
    ("which", "content", "says"),
    [
        ("server.pem", b"rubbish", "is no certificate in PEM"),
        ("server.pem", None, "cannot be read: No such file or directory"),
        ("server.key", b"rubbish", "is no private key in PEM"),
        ("server.key", "other", "does not belong to certificate"),
        ("server.key", "passphrase", "has a passphrase"),
    ],
)
def test_a_bad_pair_ends_the_start(
    edge: Edge, tmp_path: Path, which: str, content: object, says: str
) -> None:
    """With a line that names the file."""
    device = edge.devices["b"]
    make_certificates(edge.directory, tmp_path)
    make_certificates(edge.directory, tmp_path, "other")
    if content == "other":
        (tmp_path / which).write_bytes((tmp_path / "other.key").read_bytes())
    elif content == "passphrase":
        openssl(
            "ec", "-in", "server.key", "-aes256", "-passout", "pass:x", "-out", "locked.key", cwd=tmp_path
        )
        (tmp_path / which).write_bytes((tmp_path / "locked.key").read_bytes())
    elif content is None:
        (tmp_path / which).unlink()
    elif isinstance(content, bytes):
        (tmp_path / which).write_bytes(content)
    for file in ("device_ed25519", "host_ed25519"):
        (tmp_path / file).write_bytes((device.directory / file).read_bytes())
        (tmp_path / file).chmod(0o600)
    text = device.config.read_text().replace(f":{device.port}", ":0").replace(f":{device.http_port}", ":0")
    (tmp_path / "config.toml").write_text(re.sub(r"advertise = .*\n", "", text))
    done = edge.admin("serve", config=tmp_path / "config.toml")
    assert done.code == 1 and says in done.err and str(tmp_path / which) in done.err, done.text
    assert "Traceback" not in done.err


# ---------------------------------------------------------------------------------------------------- proxies


def by_way_of(edge: Edge, app: Project, peer: str, *headers: str) -> str:
    """The address in the push log of a push that came from `peer` with such headers."""
    app.commit(f"by {peer} {len(app.log())}")
    words = [word for header in headers for word in ("-c", f"http.extraHeader={header}")]
    done = subprocess.run(
        ["git", *words, "push", app.url("a"), "main"],
        cwd=app.work,
        env={**edge.git_environment(), "LD_BIND_NOW": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return app.log()[-1].address


def listed(edge: Edge, app: Project, peer: str, *headers: tuple[str, str]) -> str:
    """The address that the log has of a listing from `peer`."""
    since = len(edge.log("a"))
    transport = httpx.HTTPTransport(local_address=peer)
    with httpx.Client(transport=transport) as client:
        answer = client.get(
            f"{edge.base('a')}/{app.name}/info/refs?service=git-upload-pack",
            headers=[*headers, ("Authorization", f"Bearer {edge.token}")],
        )
    assert answer.status_code == 200
    pattern = rf"msg=git-upload-pack repository={app.name} .*address=(\S+)"
    found = edge.wait(lambda: re.search(pattern, edge.log("a")[since:]), "a line")
    assert found
    return str(found[1])


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        (PROXY, ["192.0.2.7"], "192.0.2.7"),
        (PROXY, ["198.51.100.1, 192.0.2.7, 10.1.1.1"], "192.0.2.7"),
        (PROXY, ["198.51.100.1", "192.0.2.7", "10.1.1.1"], "192.0.2.7"),
        (PROXY, ["2001:db8::7, fd00::1"], "2001:db8::7"),
        (PROXY, ["[2001:db8::7]:4711"], "2001:db8::7"),
        (PROXY, ["192.0.2.7:4711"], "192.0.2.7"),
        (PROXY, ["192.0.2.7, rubbish"], PROXY),
        (PROXY, ["<script>, 10.0.0.9"], "10.0.0.9"),
        (PROXY, [""], PROXY),
        (PROXY, [], PROXY),
        ("127.0.0.3", ["192.0.2.7"], "127.0.0.3"),
        ("127.0.0.1", ["127.0.0.2"], "127.0.0.1"),
    ],
)
def test_whom_a_proxy_speaks_for(
    edge: Edge, app: Project, peer: str, forwarded: list[str], address: str
) -> None:
    headers = [("X-Forwarded-For", value) for value in forwarded]
    assert listed(edge, app, peer, *headers) == address


def test_a_spoofed_address_is_not_in_the_push_log(edge: Edge, app: Project) -> None:
    assert by_way_of(edge, app, "127.0.0.1", "X-Forwarded-For: 192.0.2.7") == "127.0.0.1"


# ------------------------------------------------------------------------------------------- wrong tokens


def test_wrong_tokens_are_slowed_by_address_and_right_ones_are_not(edge: Edge, app: Project) -> None:
    """A flood from one address: its refusals wait, others and a right token from there do not."""
    url = f"{edge.base('a')}/{app.name}/info/refs?service=git-upload-pack"
    right = {"Authorization": f"Bearer {edge.token}"}

    async def flood() -> tuple[list[int], float, float]:
        transport = httpx.AsyncHTTPTransport(local_address=PROXY, limits=httpx.Limits(max_connections=200))

        async def ask(headers: dict[str, str], address: str) -> tuple[int, float]:
            begun = time.monotonic()
            answer = await client.get(url, headers={**headers, "X-Forwarded-For": address})
            return answer.status_code, time.monotonic() - begun

        async with httpx.AsyncClient(transport=transport, timeout=30) as client:
            for _ in range(6):
                await ask({"Authorization": "Bearer x"}, "192.0.2.66")
            wrong = [asyncio.create_task(ask({"Authorization": "Bearer x"}, "192.0.2.66")) for _ in range(60)]
            done, _ = await asyncio.wait(wrong, return_when=asyncio.FIRST_COMPLETED)
            assert done
            other = await ask(right, "192.0.2.5")
            same = await ask(right, "192.0.2.66")
            assert other[0] == same[0] == 200
            return [(await task)[0] for task in wrong], other[1], same[1]

    statuses, other, same = asyncio.run(flood())
    assert statuses.count(429) >= 60 - MOST_WAITING_THERE - 6, "all but those that may wait are told at once"
    assert set(statuses) == {401, 429}
    assert len(re.findall("192.0.2.66: more than 5 failed logins", edge.log("a"))) >= 1
    print(f"others {other:.3f} s, a right token from there {same:.3f} s")


def test_wrong_tokens_from_thousands_of_addresses(edge: Edge, app: Project) -> None:
    since = len(edge.log("a"))
    url = f"{edge.base('a')}/{app.name}/info/refs?service=git-upload-pack"
    with httpx.Client(transport=httpx.HTTPTransport(local_address=PROXY)) as client:
        for number in range(1500):
            address = f"198.51.{number // 250}.{number % 250}"
            headers = {"X-Forwarded-For": address, "Authorization": "Bearer x"}
            assert client.get(url, headers=headers).status_code == 401
    assert listed(edge, app, "127.0.0.1") == "127.0.0.1"
    assert "slowed" not in edge.log("a")[since:]


def test_the_edge_leaves_no_traceback(edge: Cluster) -> None:
    for device in edge.devices.values():
        assert "Traceback" not in device.log.read_text()
