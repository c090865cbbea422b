"""Which certificates prove somebody: the table of certificates.prove, on certificates that ssh-keygen made."""

from __future__ import annotations

import base64
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster import certificates
from cluster.certificates import FOREVER, Certified, TrustedCAs
from cluster.errors import ConfigError, Refused

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
KINDS = ("ed25519", "ecdsa", "rsa")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys ca-<kind> and key-<kind>, and another authority's."""
    folder = tmp_path_factory.mktemp("certificates")
    for kind in KINDS:
        for name in ("ca", "key"):
            make_key(folder / f"{name}-{kind}", kind)
    make_key(folder / "ca-other", "ed25519")
    return folder


def make_key(path: Path, kind: str, *options: str) -> None:
    bits = ["-b", "3072"] if kind == "rsa" and not options else [*options]
    subprocess.run(["ssh-keygen", "-q", "-t", kind, *bits, "-N", "", "-C", "", "-f", path], check=True)


def sign(
    folder: Path, *options: str, ca: str = "ca-ed25519", key: str = "key-ed25519", principals: str = "ann"
) -> tuple[str, str]:
    """Type and base64 of a new certificate, valid in June 2026 unless `options` say otherwise."""
    words = ["-n", principals] if principals else []
    if "-V" not in options:
        words += ["-V", "20260601000000Z:20260701000000Z"]
    subprocess.run(
        ["ssh-keygen", "-q", "-s", folder / ca, "-I", "id", *words, *options, folder / f"{key}.pub"],
        check=True,
    )
    kind, blob, *_ = (folder / f"{key}-cert.pub").read_text().split()
    return kind, blob


def trusted(folder: Path, *names: str) -> TrustedCAs:
    file = folder / "trusted"
    lines = [(folder / f"{name}.pub").read_text() for name in names or [f"ca-{kind}" for kind in KINDS]]
    file.write_text("# the authorities\n\n" + "".join(lines))
    return certificates.load(file)


def prove(
    folder: Path, certificate: tuple[str, str], address: str = "192.0.2.7", now: datetime = NOW
) -> Certified:
    return certificates.prove(trusted(folder), *certificate, address, now)


def refusal(folder: Path, certificate: tuple[str, str], address: str = "192.0.2.7") -> str:
    with pytest.raises(Refused) as caught:
        prove(folder, certificate, address)
    assert caught.value.what.isascii() and caught.value.what.isprintable()
    return caught.value.what


@pytest.mark.parametrize("ca", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_key_and_of_authority(folder: Path, ca: str, kind: str) -> None:
    found = prove(folder, sign(folder, ca=f"ca-{ca}", key=f"key-{kind}", principals="ann,root"))
    listed = subprocess.run(
        ["ssh-keygen", "-lf", folder / f"key-{kind}.pub"], capture_output=True, text=True, check=True
    )
    assert found.principals == ("ann", "root")
    assert found.fingerprint == listed.stdout.split()[1]
    assert found.until == datetime(2026, 7, 1, tzinfo=UTC)
    assert found.ca == " ".join((folder / f"ca-{ca}.pub").read_text().split()[:2])


def test_another_authority(folder: Path) -> None:
    assert "no authority" in refusal(folder, sign(folder, ca="ca-other"))


def test_when(folder: Path) -> None:
    certificate = sign(folder)
    for now, says in (
        (datetime(2026, 5, 31, 23, 59, 59, tzinfo=UTC), "not valid yet"),
        (datetime(2026, 6, 1, tzinfo=UTC), ""),
        (datetime(2026, 7, 1, tzinfo=UTC) - timedelta(seconds=1), ""),
        (datetime(2026, 7, 1, tzinfo=UTC), "expired"),
    ):
        if says:
            with pytest.raises(Refused, match=says):
                prove(folder, certificate, now=now)
        else:
            prove(folder, certificate, now=now)
    assert prove(folder, sign(folder, "-V", "always:forever")).until == FOREVER


def test_a_hosts_and_one_for_anybody(folder: Path) -> None:
    assert "host" in refusal(folder, sign(folder, "-h"))
    assert "no principal" in refusal(folder, sign(folder, principals=""))


@pytest.mark.parametrize(
    ("option", "address", "says"),
    [
        ("force-command=true", "192.0.2.7", "force-command"),
        ("critical:new@example.org=x", "192.0.2.7", "new@example.org"),
        ("source-address=192.0.2.0/24", "192.0.2.7", ""),
        ("source-address=198.51.100.1,192.0.2.7", "192.0.2.7", ""),
        ("source-address=2001:db8::/32", "2001:db8::9", ""),
        ("source-address=192.0.2.0/24", "198.51.100.7", "other addresses"),
        ("source-address=192.0.2.0/24", "", "other addresses"),
        ("source-address=192.0.2.0/24", "2001:db8::9", "other addresses"),
    ],
)
def test_critical_options(folder: Path, option: str, address: str, says: str) -> None:
    certificate = sign(folder, "-O", option)
    if says:
        assert says in refusal(folder, certificate, address=address)
    else:
        assert prove(folder, certificate, address)


def test_a_list_of_addresses_that_cannot_be_read_admits_nobody() -> None:
    for networks in ("", "x", "192.0.2.7,", "192.0.2.7/99", "!198.51.100.0/24", "192.0.2.1/24", "*"):
        assert not certificates._is_from(networks, "192.0.2.7")


def test_sha_1_and_a_weak_key(folder: Path, tmp_path: Path) -> None:
    assert "SHA-1" in refusal(folder, sign(folder, "-t", "ssh-rsa", ca="ca-rsa"))
    assert prove(folder, sign(folder, "-t", "rsa-sha2-256", ca="ca-rsa"))
    make_key(folder / "key-weak", "rsa", "-b", "2048")
    assert "2048 bits" in refusal(folder, sign(folder, key="key-weak"))


def test_rubbish(folder: Path) -> None:
    kind, blob = sign(folder)
    raw = base64.b64decode(blob)
    for at in range(len(raw)):  # nothing in it can be changed
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        refusal(folder, (kind, base64.b64encode(changed).decode()))
    for cut in range(0, len(raw), 7):
        refusal(folder, (kind, base64.b64encode(raw[:cut]).decode()))
    plain_kind, plain, *_ = (folder / "key-ed25519.pub").read_text().split()
    for certificate in (
        (kind, ""), (kind, "!!!"), (kind, "A" * 1_000_000), (kind, plain), (plain_kind, plain), ("", ""),
        (kind, base64.b64encode(raw + b"x").decode()), (f"ssh-rsa{certificates.SUFFIX}", blob),
        ("ssh-dss" + certificates.SUFFIX, blob), (f"sk-ssh-ed25519{certificates.SUFFIX}", blob),
    ):  # fmt: skip
        refusal(folder, certificate)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no public key"),
        ("# none\n\n", "holds no public key"),
        ("{ca}\n{private}", "line 2"),
        ("rubbish", "line 1: this is not an OpenSSH public key"),
        ("cert-authority {ca}", "line 1: there is something in front"),
        ("\n{certificate}", "line 2: this is a certificate"),
    ],
)
def test_a_file_that_cannot_be_used(folder: Path, tmp_path: Path, text: str, says: str) -> None:
    sign(folder)
    text = text.replace("{ca}", (folder / "ca-ed25519.pub").read_text().strip())
    text = text.replace("{private}", (folder / "ca-ed25519").read_text())
    text = text.replace("{certificate}", (folder / "key-ed25519-cert.pub").read_text())
    (tmp_path / "file").write_text(text)
    with pytest.raises(ConfigError) as caught:
        certificates.load(tmp_path / "file")
    assert says in caught.value.what and caught.value.hint


def test_no_file(tmp_path: Path) -> None:
    assert not certificates.load(None)
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            certificates.load(path)
