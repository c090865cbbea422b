"""Every error that git-cluster shows to a person.

    ClusterError                  one sentence for the user, one hint of what to do next, an exit code
    ├── UsageError                the request itself is malformed (exit 2)
    ├── ConfigError               a configuration file that cannot be used
    ├── Refused                   who asks may not do that, or there is no such thing
    │   ├── NotFound
    │   ├── Exists                what is to be made is there already
    │   └── StillNeeded           a replica that cannot be removed yet; waiting may help
    ├── DatabaseUnavailable       PostgreSQL cannot be reached, or dropped us
    │   └── SchemaMismatch        it is reached and holds another schema than ours
    ├── GitFailed                 a Git process ended badly
    │   └── DiskFailed            because a disk is full, cannot be written to, or has errors
    ├── ReplicaUnfit              this device's copy cannot be used as it is
    ├── PeerFailed                another device did not answer as it should
    ├── NoSource                  no device that holds the newest version can be reached
    ├── WriteConflict             the database admits no such successor (guarantee G3)
    ├── Frozen                    nothing may be written until an intent is resolved
    ├── LockTimeout               somebody else held the write lock for too long
    ├── TooFewCopies              the policy of the repository asks for more copies than can be made
    └── ClientGone                the client hung up; nobody is left to tell

The sentence (`what`) and the `hint` reach the user as they stand: no path of the server, no SQL, no key.
Causes travel as ``__cause__`` and are written to the log by the edge that catches the error.
"""

from __future__ import annotations


class ClusterError(Exception):
    """An error with a sentence for the user (`what`) and what to do next (`hint`)."""

    exit_code = 1

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def lines(self) -> list[str]:
        """The error as a person reads it: what happened, then what to do next."""
        return [self.what, self.hint] if self.hint else [self.what]


class UsageError(ClusterError):
    exit_code = 2


class ConfigError(ClusterError):
    pass


class Refused(ClusterError):
    pass


class NotFound(Refused):
    pass


class Exists(Refused):
    pass


class StillNeeded(Refused):
    pass


class DatabaseUnavailable(ClusterError):
    pass


class SchemaMismatch(DatabaseUnavailable):
    pass


class GitFailed(ClusterError):
    pass


class DiskFailed(GitFailed):
    """how: what is wrong with the disk, and what an administrator has to do. device: whose it is; "": this one's."""

    def __init__(self, how: str, device: str = "") -> None:
        super().__init__(f"the disk of {f'device {device}' if device else 'this device'} {how}")
        self.how = how

    def on(self, device: str) -> DiskFailed:
        """The same, with the device's name."""
        return DiskFailed(self.how, device)


class ReplicaUnfit(ClusterError):
    pass


class PeerFailed(ClusterError):
    pass


class NoSource(ClusterError):
    pass


class WriteConflict(ClusterError):
    pass


class Frozen(ClusterError):
    pass


class LockTimeout(ClusterError):
    pass


class TooFewCopies(ClusterError):
    pass


class ClientGone(ClusterError):
    pass
