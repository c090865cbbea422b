"""The pure decisions at the edge of HTTP, as tables."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from dulwich.protocol import pkt_line

from cluster.archive import Wanted, candidates, heard
from cluster.errors import NotFound, UsageError
from cluster.http.archive import Ask, already_there, asked, disposition
from cluster.http.forwarded import Proxies, scheme
from cluster.http.guard import normalize
from cluster.upload import named

OID = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "198.51.100.9, 192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "192.0.2.1, 10.0.0.2,10.0.0.3", "192.0.2.1"),
        ("10.0.0.1", "10.0.0.2, 10.0.0.3", "10.0.0.2"),
        ("10.0.0.1", "192.0.2.1:80, [fd00::1]:443", "192.0.2.1"),
        ("10.0.0.1", "2001:DB8:0::1", "2001:db8::1"),
        ("10.0.0.1", "::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:10.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1, _hidden, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "192.0.2.1, ", "10.0.0.1"),
        ("10.0.0.1", "fe80::1%eth0", "10.0.0.1"),
        ("10.0.0.1", "0x7f.1", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.1:99999999", "10.0.0.1"),
    ],
)
def test_who_stands_behind_a_proxy(peer: str, forwarded: str, client: str) -> None:
    proxies = Proxies(["10.0.0.0/8", "fd00::/8"])
    assert proxies.trusts(peer)
    assert proxies.client(peer, forwarded) == client


@pytest.mark.parametrize("peer", ["192.0.2.1", "11.0.0.1", "", "x", "2001:db8::1", "fe80::1%1"])
def test_who_is_no_proxy(peer: str) -> None:
    assert not Proxies(["10.0.0.0/8", "fd00::/8"]).trusts(peer)
    assert not Proxies([]).trusts("127.0.0.1")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("https", "https"),
        ("HTTP", "http"),
        ("http, https", "https"),
        ("", None),
        ("gopher", None),
        ("https,", None),
    ],
)
def test_scheme(said: str, found: str | None) -> None:
    assert scheme(said) == found


@pytest.mark.parametrize(
    ("method", "version", "path", "headers", "outcome"),
    [
        ("GET", "1.1", "/x", [], "/x"),
        ("GET", "1.0", "/x", [], "/x"),
        ("GET", "1.1", "http://h/x", [], "/x"),
        ("GET", "1.1", "HTTPS://h:1", [], "/"),
        ("GET", "1.1", "http://h/%2Fx", [], "//x"),
        ("GET", "1.1", "http%3A//h/x", [], 400),
        ("GET", "1.1", "%2Fx", [], 400),
        ("OPTIONS", "1.1", "*", [], 400),
        ("GET", "1.1", "x", [], 400),
        ("GET", "2.0", "/x", [], 505),
        ("TRACE", "1.1", "/x", [], 405),
        ("POST", "1.1", "/x", [b"content-length", b"transfer-encoding"], 400),
        ("POST", "1.0", "/x", [b"transfer-encoding"], 400),
        ("POST", "1.1", "/x", [b"transfer-encoding"], "/x"),
        ("GET", "1.1", "/x", [b"a"] * 201, 431),
    ],
)
def test_what_every_request_must_be(
    method: str, version: str, path: str, headers: list[bytes], outcome: str | int
) -> None:
    scope = {
        "method": method, "http_version": version, "path": unquote(path), "raw_path": path.encode(),
        "headers": [(name, b"1") for name in headers],
    }  # fmt: skip
    refused = normalize(scope)
    assert (refused[0] if refused else scope["path"]) == outcome


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/team/app/-/archive/main.zip", Ask("team/app", "main", ".zip")),
        ("/team/app.git/-/archive/v1.0.tar.gz", Ask("team/app", "v1.0", ".tar.gz")),
        ("/a/-/archive/b/c.tgz", Ask("a", "b/c", ".tgz")),
        ("/a/-/archive/b.tar.tar", Ask("a", "b.tar", ".tar")),
        ("/a/-/archive/b/-/archive/c.tar", Ask("a", "b/-/archive/c", ".tar")),
        ("/a/-/archives/b.zip", None),
        ("/a/info/refs", None),
        ("/a/-/archive/b.rar", NotFound),
        ("/a/-/archive/.zip", NotFound),
        ("/a/-/archive/", NotFound),
        ("/../a/-/archive/b.zip", UsageError),
        ("/-/archive/b.zip", UsageError),
    ],
)
def test_which_archive(path: str, found: Ask | type[Exception] | None) -> None:
    if isinstance(found, type):
        with pytest.raises(found):
            asked(path)
    else:
        assert asked(path) == found


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("app-main.zip", 'attachment; filename="app-main.zip"'),
        ('a"b\\.zip', "attachment; filename=\"a_b_.zip\"; filename*=UTF-8''a%22b%5C.zip"),
        ("é/x", "attachment; filename=\"__x\"; filename*=UTF-8''%C3%A9%2Fx"),
        ("a\r\nb", "attachment; filename=\"a__b\"; filename*=UTF-8''a%0D%0Ab"),
    ],
)
def test_names_of_files(name: str, header: str) -> None:
    assert disposition(name) == header


@pytest.mark.parametrize(
    ("header", "commits"),
    [
        ("", ()),
        ("*", ("*",)),
        (f'W/"{OID}"', (OID,)),
        (f'"x", "{OID}"', (OID,)),
        (f'"{OID[:-1]}"', ()),
        ('"' * 9999, ()),
    ],
)
def test_what_a_client_has(header: str, commits: tuple[str, ...]) -> None:
    assert already_there(header) == commits


@pytest.mark.parametrize(
    ("ref", "names"),
    [
        ("main", ("refs/tags/main", "refs/heads/main")),
        ("heads/main", ("refs/heads/main", "refs/tags/heads/main", "refs/heads/heads/main")),
        (
            "refs/pull/1/head",
            ("refs/pull/1/head", "refs/tags/refs/pull/1/head", "refs/heads/refs/pull/1/head"),
        ),
        ("HEAD", ("HEAD",)),
        ("refs/cluster/lost/x", ("refs/tags/refs/cluster/lost/x", "refs/heads/refs/cluster/lost/x")),
        ("refs/cluster", ("refs/tags/refs/cluster", "refs/heads/refs/cluster")),
        *(
            (bad, ())
            for bad in ("", "a..b", "a~1", "a^{}", "a:b", "a@{1}", "a*", "a\0", "a\n", "a//b", "x" * 251)
        ),
    ],
)
def test_what_a_ref_may_stand_for(ref: str, names: tuple[str, ...]) -> None:
    assert tuple(candidates(ref)) == names


def test_an_archive_is_asked_for_in_one_form() -> None:
    for wanted in (Wanted("zip", "a-é/", "é"), Wanted("tar.gz", "x/", "\udcff", ("*", OID))):
        assert heard(wanted.said()) == wanted
    good = Wanted("zip", "x/", "main").said()
    for bad in (
        b"",
        b"0000",
        good[4:],
        good.replace(b"zip", b"rar"),
        good.replace(b"x/", b"/x"),
        b"000bformat\n0000",
    ):
        with pytest.raises(UsageError):
            heard(bad)


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ([b"argument main\n"], []),
        ([b"argument refs/cluster/lost/x\n"], [b"refs/cluster/lost/x"]),
        ([b"argument cluster/x:y\n"], [b"cluster/x"]),
        ([b"argument cluster/x\0y", b"argument main\n"], [b"cluster/x"]),
        ([b"argument cluster/x", b"argument main"], [b"cluster/x"]),
        ([b"argument --prefix=refs/cluster/"], []),
        ([b"argument main-worktree/refs/cluster/x"], [b"main-worktree/refs/cluster/x"]),
        ([], []),
    ],
)
def test_what_may_be_hidden_in_a_request_for_an_archive(said: list[bytes], names: list[bytes]) -> None:
    assert named(b"".join(map(pkt_line, said)) + b"0000") == names
    assert named(b"zzzz") == named(b"") == []
