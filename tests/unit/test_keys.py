"""Which keys are taken. The keys are made by ssh-keygen, and fingerprints are held against its own."""

from __future__ import annotations

import base64
import io
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster import keys
from cluster.errors import UsageError

MODULUS = 1 << 2047


def ssh_keygen(path: Path, kind: str, bits: int = 0) -> str:
    """The public line of a new key; the private one is in `path`."""
    size = ["-b", str(bits)] if bits else []
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, *size, "-N", "", "-C", "ann@host", "-f", path], check=True
    )
    return Path(f"{path}.pub").read_text()


@pytest.fixture(scope="module")
def ed25519(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "id"
    ssh_keygen(path, "ed25519")
    return path


def line_of(path: Path) -> str:
    return Path(f"{path}.pub").read_text().strip()


@pytest.mark.parametrize(
    ("kind", "bits", "type_"),
    [
        ("ed25519", 0, "ssh-ed25519"),
        ("ecdsa", 256, "ecdsa-sha2-nistp256"),
        ("ecdsa", 384, "ecdsa-sha2-nistp384"),
        ("ecdsa", 521, "ecdsa-sha2-nistp521"),
        ("rsa", 3072, "ssh-rsa"),
    ],
)
def test_what_ssh_keygen_makes_is_taken(tmp_path: Path, kind: str, bits: int, type_: str) -> None:
    text = ssh_keygen(tmp_path / "id", kind, bits)
    key = keys.read(tmp_path / "id.pub")
    listed = subprocess.run(
        ["ssh-keygen", "-lf", tmp_path / "id.pub"], capture_output=True, text=True, check=True
    )
    assert key.type == type_
    assert key.comment == "ann@host"
    assert key.line == " ".join(text.split()[:2])
    assert key.fingerprint == listed.stdout.split()[1]
    assert keys.parse(key.line).fingerprint == key.fingerprint


def test_space_around_comments_and_empty_lines_do_no_harm(ed25519: Path) -> None:
    line = line_of(ed25519)
    key = keys.parse(f"# ann's\r\n\r\n  {line} on her laptop \r\n")
    assert key.comment == "ann@host on her laptop"
    assert key.line == " ".join(line.split()[:2])
    assert keys.read(io.BytesIO(line.encode())) == keys.parse(line)


def test_a_comment_cannot_move_the_cursor(ed25519: Path) -> None:
    assert keys.parse(line_of(ed25519) + "\x1b[2J").comment == "ann@host?[2J"


def weak_rsa() -> str:
    def field(data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + data

    blob = field(b"ssh-rsa") + field(b"\1\0\1") + field(b"\0" + (MODULUS + 1).to_bytes(256, "big"))
    return "ssh-rsa " + base64.b64encode(blob).decode()


def spoilt(line: str, cut: int) -> str:
    kind, encoded, *_ = line.split()
    blob = base64.b64decode(encoded)[:cut]
    return f"{kind} {base64.b64encode(blob).decode()}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("{private}", "private key"),
        ("PuTTY-User-Key-File-3: ssh-ed25519\n", "private key"),
        ("{line}\n{line}", "2 lines where one"),
        ('no-pty,command="x" {line}', "in front of the key"),
        ('from="*.example" {line}', "in front of the key"),
        ("ann {line}", "in front of the key"),
        ("{weak}", "2048 bits is too weak"),
        ("ssh-dss AAAAB3NzaC1kc3MAAACBAP", "DSA"),
        ("ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1", "certificate"),
        ("sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1", "security token"),
        ("---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n", "not in OpenSSH's form"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n", "not in OpenSSH's form"),
        ("ssh-ed25519", "damaged"),
        ("ssh-ed25519 !!!!", "damaged"),
        ("ssh-ed25519 AAAA", "damaged"),
        ("{cut}", "damaged"),
        ("{other_type}", "damaged"),
        ("hello world", "not an OpenSSH public key"),
        ("ssh-ed448 AAAA", "not an OpenSSH public key"),
    ],
)
def test_what_is_refused_is_said_plainly(ed25519: Path, text: str, says: str) -> None:
    line = line_of(ed25519)
    text = (
        text.replace("{line}", line)
        .replace("{private}", ed25519.read_text())
        .replace("{weak}", weak_rsa())
        .replace("{cut}", spoilt(line, -3))
        .replace("{other_type}", line.replace("ssh-ed25519", "ecdsa-sha2-nistp256"))
    )
    with pytest.raises(UsageError) as caught:
        keys.parse(text)
    assert says in caught.value.what
    assert caught.value.hint
    secret = ed25519.read_text().splitlines()[1]
    assert secret not in "".join(caught.value.lines())


def test_a_file_that_is_no_text_and_one_that_is_huge(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "huge").write_bytes(b"x" * (keys.MAX_BYTES + 1))
    for name, says in (
        ("noise", "lines where one"),
        ("huge", "too long"),
        ("none", "No such file"),
        (".", "directory"),
    ):
        with pytest.raises(UsageError, match=says):
            keys.read(tmp_path / name)


def test_a_point_in_a_form_that_nobody_reads() -> None:
    """A curve's point may be written compressed; cryptography raises NotImplementedError, of all things."""
    kind = b"ecdsa-sha2-nistp256"
    fields = (kind, b"nistp256", b"\2" + b"\1" * 32)
    blob = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    with pytest.raises(UsageError, match="damaged"):
        keys.parse(f"{kind.decode()} {base64.b64encode(blob).decode()}")


NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31T18:00:00Z", datetime(2027, 1, 31, 18, tzinfo=UTC)),
        ("2027-01-31t18:00:00.5+02:00", datetime(2027, 1, 31, 16, 0, 0, 500000, tzinfo=UTC)),
        ("2027-01-31 18:00:00-01:00", datetime(2027, 1, 31, 19, tzinfo=UTC)),
        ("90d", NOW + timedelta(days=90)),
        ("12h", NOW + timedelta(hours=12)),
        ("30m", NOW + timedelta(minutes=30)),
        ("45s", NOW + timedelta(seconds=45)),
        ("52w", NOW + timedelta(weeks=52)),
    ],
)
def test_when_a_key_ends(text: str, at: datetime) -> None:
    assert keys.expiry(text, NOW) == at


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2026-06-01", "in the past"),
        ("2026-06-01T12:00:00Z", "in the past"),
        ("0d", "in the past"),
        *((text, "not a time") for text in (
            "", "90", "d", "-1d", "1.5d", "90 d", "1y", "20270131", "2027-W05-1", "2027-02-30", "2027-01-31T18:00:00",
            "2027-01-31T25:00:00Z", "2027-01-31T18:00Z", "tomorrow", "never", "999999999w", "٢d", "2027-01-31\n",
            "9999-12-31T23:59:59-23:59", "\x1b[2J",
        )),
    ],
)  # fmt: skip
def test_when_no_key_can_end(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        keys.expiry(text, NOW)
    assert says in caught.value.what and caught.value.what.isprintable() and caught.value.hint
