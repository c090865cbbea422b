"""Webhooks, the decisions."""

from __future__ import annotations

import base64
import subprocess

import pytest

from cluster.errors import Refused, UsageError
from cluster.webhooks import (
    Target,
    checked_secret,
    headers,
    is_public,
    new_secret,
    pause,
    refuse_private,
    target,
)


@pytest.mark.parametrize(
    ("url", "found", "authority"),
    [
        ("https://ci.example", Target("https", "ci.example", 443, "/"), "ci.example"),
        ("http://CI.example:80/a?b=c", Target("http", "ci.example", 80, "/a?b=c"), "ci.example"),
        ("http://ci.example:8080/", Target("http", "ci.example", 8080, "/"), "ci.example:8080"),
        ("https://[2001:DB8::1]:8443/x", Target("https", "2001:db8::1", 8443, "/x"), "[2001:db8::1]:8443"),
        ("http://127.0.0.1/?q", Target("http", "127.0.0.1", 80, "/?q"), "127.0.0.1"),
        ("HTTPS://ci.example/%2e%2e", Target("https", "ci.example", 443, "/%2e%2e"), "ci.example"),
    ],
)
def test_a_url_is_read_once(url: str, found: Target, authority: str) -> None:
    assert target(url) == found
    assert target(url).authority == authority


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ci.example/hook",
        "ftp://ci.example/",
        "file:///etc/passwd",
        "http://",
        "http:///path",
        "http://user:secret@ci.example/",
        "http://user@ci.example/",
        "http://@ci.example/",
        "http://ci.example\\@127.0.0.1/",
        "http://ci.example/ x",
        "http://ci.example/\r\nX-Injected: 1",
        "http://ci.example/#part",
        "http://ci.example/#",
        "http://ci.example:0/",
        "http://ci.example:99999/",
        "http://ci.example:port/",
        "http://[::1/",
        "http://[::1%25eth0]/",
        "http://bücher.example/",
        "http://ci.exa%6dple/",
        "http://ci.example/" + "x" * 2000,
        "javascript:alert(1)",
    ],
)
def test_what_is_no_url_for_a_webhook(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        target(url)
    assert "secret" not in refused.value.what


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.5.4",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2001:0:4136:e378:8000:63bf:80ff:fffe",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd12:3456::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "not an address",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(Refused):
        refuse_private("host", ["8.8.8.8", address])


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)
    refuse_private("host", [address])


@pytest.mark.parametrize(
    ("attempts", "chance", "seconds"),
    [
        (1, 0.0, 1.0),
        (1, 1.0, 0.75),
        (2, 0.0, 2.0),
        (5, 0.0, 16.0),
        (12, 0.0, 2048.0),
        (13, 0.0, 3600.0),
        (13, 1.0, 2700.0),
        (10_000_000, 0.0, 3600.0),
    ],
)
def test_the_pause_grows_to_an_hour(attempts: int, chance: float, seconds: float) -> None:
    assert pause(attempts, chance) == pytest.approx(seconds)


def test_an_example_of_the_specification() -> None:
    """https://github.com/standard-webhooks/standard-webhooks, the test of its libraries."""
    made = headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert made["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_openssl_finds_the_same_signature() -> None:
    secret, body = new_secret(), b'{"position": 1}'
    made = headers(secret, "msg_1", 1700000000, body)
    key = base64.b64decode(secret.removeprefix("whsec_")).hex()
    done = subprocess.run(
        ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key}", "-binary"],
        input=b"msg_1.1700000000." + body,
        capture_output=True,
        check=True,
    )
    assert made["webhook-signature"] == "v1," + base64.b64encode(done.stdout).decode()


def test_secrets() -> None:
    assert new_secret() != new_secret()
    assert checked_secret(f" {new_secret()}\n").startswith("whsec_")
    for bad in (
        "",
        "whsec_",
        "secret",
        "whsec_c2hvcnQ=",
        "whsec_%%%",
        new_secret()[6:],
        "whsec_" + "A" * 200,
    ):
        with pytest.raises(UsageError) as refused:
            checked_secret(bad)
        assert len(bad) < 8 or bad not in refused.value.what
