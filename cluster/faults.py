"""Fault points: stop the process, its database connections or its clock at a named step of a push.

GIT_CLUSTER_FAULT="<step>:<kill|drop-db|pause>" acts at the beginning of that step, each time it is reached; with
":once" behind it, the first time only. A line in the log says so before it acts. The steps are those of
docs/write-protocol.md, in their order; "done" comes after the last of them, so that every step has a fault right
before it and one right after.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from threading import Lock, get_ident

from cluster.errors import ConfigError

_log = logging.getLogger(__name__)


class Step(StrEnum):
    """The life of a push, in order."""

    AUTHORIZE = "authorize"
    CATCH_UP = "catch-up"
    RECEIVE = "receive"
    PROPOSE = "propose"
    STAGE = "stage"
    LOCK = "lock"
    CLEAR = "clear"
    SETTLE = "settle"
    INTEND = "intend"
    APPLY = "apply"
    COMMIT = "commit"
    MARK = "mark"
    ACKNOWLEDGE = "acknowledge"
    DONE = "done"


class Fault(StrEnum):
    """What happens at the step."""

    KILL = "kill"
    DROP_DB = "drop-db"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class Faults:
    """Where this process is to fail; nowhere unless somebody asked for it."""

    step: Step | None = None
    fault: Fault | None = None
    once: bool = False
    _first: Lock = field(default_factory=Lock, repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> Faults:
        """The value of GIT_CLUSTER_FAULT; ConfigError when it names no step or no fault."""
        if not text:
            return cls()
        step, _, fault = text.removesuffix(":once").partition(":")
        try:
            return cls(Step(step), Fault(fault), once=text.endswith(":once"))
        except ValueError as error:
            raise ConfigError(
                f"GIT_CLUSTER_FAULT={text[:60]!r} is not <step>:<fault>",
                hint=f"steps: {', '.join(Step)}; faults: {', '.join(Fault)}",
            ) from error

    def reach(self, step: Step, drop_db: Callable[[], None]) -> None:
        """Called at the beginning of each step. `drop_db` cuts this process's database connections."""
        if step is not self.step or (self.once and not self._first.acquire(blocking=False)):
            return
        _log.warning("fault: %s at %s", self.fault, step)
        if self.fault is Fault.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.fault is Fault.PAUSE:
            # To this very thread: any other of the process would take its time over it.
            signal.pthread_kill(get_ident(), signal.SIGSTOP)
        else:
            drop_db()
