"""The decision table of router.way_of and the order of router.by_merit, row by row."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from cluster.config import ProxySection, ProxyWhen
from cluster.model import (
    CHECKSUM_BYTES,
    Actor,
    ActorKind,
    Checksum,
    Device,
    DeviceMode,
    Intent,
    Position,
    Replica,
    Repository,
    Request,
    Service,
    Snapshot,
    WhenShort,
)
from cluster.router import by_merit, way_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NEWEST = Position(7, Checksum(b"\7" * CHECKSUM_BYTES))
OLDER = Position(6, Checksum(b"\6" * CHECKSUM_BYTES))
INTENT = Intent(UUID(int=1), UUID(int=2), "ann", "ssh", "192.0.2.1", NOW, ())


def replica(text: str) -> Replica:
    """A replica from words such as "a leader zone=x offline"."""
    name, *words = text.split()
    zone = next((word.removeprefix("zone=") for word in words if word.startswith("zone=")), "")
    mode = next((mode for mode in DeviceMode if mode.value in words), DeviceMode.ENABLED)
    known = {
        "leader",
        "older",
        "absent",
        "quarantined",
        "writing",
        "offline",
        "never",
        "stopped",
        f"zone={zone}",
    }
    assert set(words) <= known | set(DeviceMode), words
    device = Device(
        id=ord(name),
        name=name,
        ssh_url=f"ssh://git@{name}:22",
        http_url=None,
        public_key="",
        host_key="",
        mode=mode,
        last_seen_at=NOW,
        silent_for=None if "never" in words else 11.0 if "offline" in words else 1.0,
        stopped="stopped" in words,
        zone=zone,
    )
    return Replica(
        device=device,
        position=None if "absent" in words else OLDER if "older" in words else NEWEST,
        quarantined="damaged" if "quarantined" in words else None,
        intent=INTENT if "writing" in words else None,
        synced_at=NOW,
        attempts=0,
        last_error=None,
        next_try_at=None,
    )


def snapshot(*replicas: str) -> Snapshot:
    repository = Repository(1, "team/app", "sha1", NEWEST, 1, WhenShort.WARN, None, None, NOW)
    return Snapshot(repository, tuple(map(replica, replicas)))


def request(
    kind: ActorKind = ActorKind.USER, *, through: str = "", service: Service = Service.UPLOAD_PACK
) -> Request:
    return Request(Actor(kind, "ann", "SHA256:x"), service, "team/app", through=through)


def way(given: Snapshot, asked: Request, when: ProxyWhen = "absent", seed: int = 0) -> tuple[bool, str]:
    """Whether the device x answers, and the names of whom it asks before."""
    found = way_of(given, asked, "x", "", ProxySection(when), seed)
    return found.here, " ".join(device.name for device in found.elsewhere)


ONE = ("a leader",)
HERE, BEHIND, DAMAGED, EMPTY = (
    ("x leader", *ONE),
    ("x older", *ONE),
    ("x quarantined", *ONE),
    ("x absent", *ONE),
)


@pytest.mark.parametrize("service", Service)
@pytest.mark.parametrize(
    ("kind", "through", "replicas", "when", "here", "elsewhere"),
    [
        # A device gets what is here, an operator was sent here, and what was passed on is passed on by nobody.
        (ActorKind.DEVICE, "", HERE, "behind", True, ""),
        (ActorKind.DEVICE, "", BEHIND, "behind", True, ""),
        (ActorKind.DEVICE, "", ONE, "behind", False, ""),
        (ActorKind.OPERATOR, "", HERE, "behind", True, ""),
        (ActorKind.OPERATOR, "", EMPTY, "behind", True, ""),
        (ActorKind.OPERATOR, "", ONE, "absent", False, ""),
        (ActorKind.USER, "y", HERE, "behind", True, ""),
        (ActorKind.USER, "y", BEHIND, "behind", True, ""),
        (ActorKind.USER, "y", ONE, "behind", False, ""),
        (ActorKind.USER, "a", ONE, "absent", False, ""),
        # What is newest here is served here.
        (ActorKind.USER, "", HERE, "absent", True, ""),
        (ActorKind.USER, "", HERE, "behind", True, ""),
        # What is not: according to [proxy] when.
        (ActorKind.USER, "", BEHIND, "absent", True, ""),
        (ActorKind.USER, "", DAMAGED, "absent", True, ""),
        (ActorKind.USER, "", EMPTY, "absent", True, ""),
        (ActorKind.USER, "", BEHIND, "behind", True, "a"),
        (ActorKind.USER, "", DAMAGED, "behind", True, "a"),
        (ActorKind.USER, "", EMPTY, "behind", True, "a"),
        (ActorKind.USER, "", ("x older", "a leader offline"), "behind", True, ""),
        (ActorKind.USER, "", ("x older", "a leader disabled"), "behind", True, ""),
        (ActorKind.USER, "", ("x older", "a older", "b quarantined"), "behind", True, ""),
        (ActorKind.USER, "", ("x older", "a leader draining", "b older", "c leader"), "behind", True, "c a"),
        # Nothing is here.
        (ActorKind.USER, "", ONE, "absent", False, "a"),
        (ActorKind.USER, "", ONE, "behind", False, "a"),
        (ActorKind.USER, "", ("a older", "b leader"), "absent", False, "b a"),
        (ActorKind.USER, "", ("a leader offline",), "absent", False, ""),
        (ActorKind.USER, "", (), "absent", False, ""),
    ],
)
def test_where_a_request_is_answered(
    service: Service,
    kind: ActorKind,
    through: str,
    replicas: tuple[str, ...],
    when: ProxyWhen,
    here: bool,
    elsewhere: str,
) -> None:
    asked = request(kind, through=through, service=service)
    for seed in range(5):
        assert way(snapshot(*replicas), asked, when, seed) == (here, elsewhere)


@pytest.mark.parametrize(
    ("replicas", "order"),
    [
        (("a leader zone=far", "b leader zone=near"), "b a"),
        (("a leader zone=far", "b older zone=near"), "a b"),
        (("a older zone=near", "b older zone=far", "c leader"), "c a b"),
        (("a quarantined zone=near", "b older zone=far"), "b a"),
        (("a leader writing zone=near", "b leader zone=far"), "b a"),
        (("a older", "b leader writing"), "b a"),
        (("a leader draining zone=near", "b older zone=far", "c leader zone=far"), "c b a"),
        (("a leader offline", "b leader stopped", "c leader never", "d leader disabled", "e older"), "e"),
        (("a absent", "b older"), "b"),
        (("a absent", "b leader offline"), ""),
        (("a absent", "b absent offline"), "a"),
        (("a absent zone=far", "b absent zone=near"), "b a"),
    ],
)
def test_the_order_of_merit(replicas: tuple[str, ...], order: str) -> None:
    for seed in range(5):
        for given in (replicas, replicas[::-1]):
            found = by_merit(snapshot(*given), "near", seed)
            assert " ".join(replica.device.name for replica in found) == order


def test_without_a_zone_no_device_is_near() -> None:
    given = snapshot("a leader", "b leader zone=far")
    assert {by_merit(given, "", seed)[0].device.name for seed in range(50)} == {"a", "b"}


def test_equally_good_devices_share_the_load_and_a_seed_decides() -> None:
    given = snapshot(*(f"{name} leader" for name in "abcd"))
    firsts = [by_merit(given, "", seed)[0].device.name for seed in range(400)]
    assert all(60 < firsts.count(name) < 140 for name in "abcd")
    assert firsts == [by_merit(given, "", seed)[0].device.name for seed in range(400)]
    orders = {"".join(replica.device.name for replica in by_merit(given, "", seed)) for seed in range(400)}
    assert len(orders) == 24, "whoever comes next is spread as well"
