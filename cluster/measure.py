"""What a device counts of its work. `Measures` counts nothing: it is for processes that nobody asks for figures, such
as a command line or a hook of sshd's. The daemon has `meters.Meters` in its place, which costs an import.

Measuring stays out of the story: a request is timed where every endpoint hands it over (requests.py), its steps where
they begin (Node.reach), statements where they are run (db/). None of these methods raises, or waits for anything.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from cluster.errors import ClientGone, Refused, UsageError
from cluster.faults import Step
from cluster.model import Actor, ActorKind, EventKind, Exchange, Service

T = TypeVar("T")


class ReadStep(StrEnum):
    """The life of a read (docs/architecture.md), in order; and of any request that another device answers."""

    AUTHORIZE = "authorize"
    CATCH_UP = "catch-up"
    SERVE = "serve"
    PASS_ON = "pass-on"  # noqa: S105 - no password


class Outcome(StrEnum):
    """How a request ended.

    ok               answered
    refused          who asks may not do that, or did not ask in a way that can be answered
    unauthenticated  the same for somebody who did not say who they are: Git then asks for credentials, and comes again
    failed           a device, a disk, the database or another's write was in the way
    gone             the client hung up
    """

    OK = "ok"
    REFUSED = "refused"
    UNAUTHENTICATED = "unauthenticated"
    FAILED = "failed"
    GONE = "gone"


def outcome_of(error: BaseException) -> Outcome:
    """What a request came to that ended with `error`."""
    if isinstance(error, ClientGone):
        return Outcome.GONE
    return Outcome.REFUSED if isinstance(error, Refused | UsageError) else Outcome.FAILED


@dataclass(frozen=True, slots=True)
class Asked:
    """What is counted of a request: nothing that names a repository, a user or an address.

    endpoint: ssh, http; peer, where it comes from another device, for itself or for a user.
    service: of Git's without "git-"; "listing": the look around before others over HTTP; or what kind of command.
    writes: whether it is a push. by_user: whether a person waits for it, not a device that syncs or stages.
    anonymous: whether the person does not say who they are.
    """

    endpoint: str
    service: str
    writes: bool = False
    by_user: bool = True
    anonymous: bool = False

    @classmethod
    def of_git(
        cls, actor: Actor, service: Service, exchange: Exchange, *, via: str, through: bool = False
    ) -> Asked:
        """A request of Git's. through: another device passes it on."""
        listing = exchange is Exchange.ADVERTISEMENT
        peer = through or actor.kind is ActorKind.DEVICE
        return cls(
            endpoint="peer" if peer else "http" if via == "http" else "ssh",
            service="listing" if listing else service.removeprefix("git-"),
            writes=service.writes and not listing,
            by_user=through or actor.kind is not ActorKind.DEVICE,
            anonymous=actor.kind is ActorKind.ANONYMOUS,
        )


class Answer:
    """A request that is being answered."""

    def ended(self, code: int, *, gone: bool) -> int:
        """Git, or whoever answered, ended with this exit code, which is returned. gone: so did the client."""
        return code


class Measures:
    """Counts nothing."""

    def request(self, asked: Asked) -> AbstractContextManager[Answer]:
        """A request, as long as it lasts. All of it happens in one thread; `step` and `told` are about this one."""
        return nullcontext(Answer())

    def step(self, step: Step | ReadStep) -> None:
        """The next step of this thread's request begins."""

    def told(self) -> AbstractContextManager[None]:
        """An error that comes out of this is told to the client by whoever is around it; the request ends well."""
        return nullcontext()

    def committed(self) -> None:
        """A push became a version."""

    def lock_waited(self, seconds: float, error: BaseException | None = None) -> None:
        """The write lock was got after so many seconds, or it was not, because of `error`."""

    def lock_held(self, seconds: float) -> None:
        """The write lock was handed on, or given back, after so many seconds."""

    def syncing(self, *, trusted: bool) -> AbstractContextManager[None]:
        """A sync is at work. trusted: from the log; else the copy is made anew."""
        return nullcontext()

    def happened(self, kind: EventKind) -> None:
        """Something went into a repository's log beside its pushes."""

    def querying(self) -> AbstractContextManager[None]:
        """A statement is run."""
        return nullcontext()
