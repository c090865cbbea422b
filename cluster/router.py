"""Where a request is answered: on this device, or on another one that has the repository. Pure.

The words: a *way* says whether this device can answer (`here`), and which others are asked before it (`elsewhere`,
best first). Neither: it is refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cluster.config import ProxySection
from cluster.model import ActorKind, Device, DeviceMode, Replica, Request, Snapshot


@dataclass(frozen=True, slots=True)
class Way:
    """elsewhere: the devices to ask, in this order. here: whether this one answers when none of them can be reached."""

    here: bool
    elsewhere: tuple[Device, ...] = ()


def way_of(
    snapshot: Snapshot, request: Request, device: str, zone: str, proxy: ProxySection, seed: int
) -> Way:
    """Where `request` is answered, which came to `device` in `zone`.

    | actor    | came through | replica here             | when   | online leader elsewhere | then                  |
    |----------|--------------|--------------------------|--------|-------------------------|-----------------------|
    | device   | –            | any                      | any    | any                     | here; refused if none |
    | operator | –            | any                      | any    | any                     | here; refused if none |
    | user, or | a device     | any                      | any    | any                     | here; refused if none |
    | anonymous| –            | newest, trusted          | any    | any                     | here                  |
    | user     | –            | behind, not trusted, or  | absent | any                     | here, after a sync    |
    |          |              | not filled yet           | behind | no                      | here, after a sync    |
    |          |              |                          | behind | yes                     | the leaders, or here  |
    | user     | –            | none                     | any    | any                     | `by_merit`; refused   |
    |          |              |                          |        |                         | if nobody is online   |

    when: of [proxy]. A device asks for what is here, not for what is elsewhere. An operator is sent to devices that
    hold the repository. What came through a device is never passed on, so no request goes round in circles.

    seed: spreads the load: of equally good devices another seed prefers another one.
    """
    mine = snapshot.of(device)
    if request.actor.kind not in (ActorKind.USER, ActorKind.ANONYMOUS) or request.through:
        return Way(here=mine is not None)
    others = [replica for replica in by_merit(snapshot, zone, seed) if replica.device.name != device]
    if mine is None:
        return Way(here=False, elsewhere=tuple(replica.device for replica in others))
    if proxy.when != "behind" or mine in snapshot.leaders:
        return Way(here=True)
    leaders = tuple(replica.device for replica in others if replica in snapshot.leaders)
    return Way(here=True, elsewhere=leaders)


def by_merit(snapshot: Snapshot, zone: str, seed: int) -> list[Replica]:
    """The replicas on devices that are online and not disabled, best first; each line decides where those above do not:

    - on a device that is not being drained
    - a leader
    - trusted
    - not in the middle of a write: readers wait for one in flight, and are refused where it was interrupted
    - in `zone`, where that is given
    - by `seed`

    One that holds nothing yet is none of them while another does: it would have to fetch everything first. Of a
    repository that was just created nobody holds anything, and whoever is asked first makes it.
    """
    online = [r for r in snapshot.replicas if r.device.online and r.device.mode is not DeviceMode.DISABLED]
    if any(replica.position for replica in snapshot.replicas):
        online = [replica for replica in online if replica.position]
    return sorted(
        online,
        key=lambda replica: (
            replica.device.mode is DeviceMode.DRAINING,
            replica not in snapshot.leaders,
            bool(replica.quarantined),
            replica.intent is not None,
            not zone or replica.device.zone != zone,
            hashlib.sha256(f"{seed} {replica.device.name}".encode()).digest(),
        ),
    )
