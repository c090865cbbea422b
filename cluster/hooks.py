"""The hooks that Git runs during a push: ours, which talk to the session, and the repository's own through them.

receive-pack is pointed at a folder of small shell scripts (core.hooksPath). They speak over two pipes that it
inherited, by /dev/fd/N:

    pre-receive    runs the repository's own pre-receive, then proposes: "pre" and the quarantine's path, the
                   updates, an empty line; Git goes on when the answer is "yes"
    post-receive   "post", the updates that Git made, an empty line; on "yes" (committed and acknowledged) it runs
                   the repository's own post-receive and post-update
    any other      that the repository has is run as it is

An end of file instead of an answer means that the session is dead, and is a "no".
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from uuid import uuid4

from dulwich.config import ConfigFile

from cluster.errors import ReplicaUnfit

# A push waits for these scripts twice, the second time with the write lock held. A shell starts in half a millisecond
# and every process that it starts costs two more; so it reads a short list itself, though that takes a call a byte.
_UPDATES = """#!/bin/sh
updates= count=0 line_end='
'
while [ $count -lt 10 ] && IFS= read -r update; do
    updates=$updates${updates:+$line_end}$update
    count=$((count + 1))
done
if [ $count -eq 10 ]; then
    more=$(cat)
    updates=$updates${more:+$line_end}$more
fi
"""

PRE_RECEIVE = f"""{_UPDATES}
if [ -x "$GIT_CLUSTER_HOOKS/pre-receive" ]; then
    printf '%s\\n' "$updates" | "$GIT_CLUSTER_HOOKS/pre-receive" || exit 1
fi
printf 'pre %s\\n%s\\n\\n' "$GIT_QUARANTINE_PATH" "$updates" >"/dev/fd/$GIT_CLUSTER_TELL" || exit 1
read -r answer <"/dev/fd/$GIT_CLUSTER_HEAR"
[ "$answer" = yes ]
"""

POST_RECEIVE = f"""{_UPDATES}
printf 'post\\n%s\\n\\n' "$updates" >"/dev/fd/$GIT_CLUSTER_TELL" || exit 1
read -r answer <"/dev/fd/$GIT_CLUSTER_HEAR"
[ "$answer" = yes ] || exit 1
if [ -x "$GIT_CLUSTER_HOOKS/post-receive" ]; then
    printf '%s\\n' "$updates" | "$GIT_CLUSTER_HOOKS/post-receive"
fi
if [ -x "$GIT_CLUSTER_HOOKS/post-update" ]; then
    "$GIT_CLUSTER_HOOKS/post-update" $(printf '%s\\n' "$updates" | cut -d ' ' -f 3)
fi
"""

RELAY = """#!/bin/sh
exec "$GIT_CLUSTER_HOOKS/${0##*/}" "$@"
"""

RELAYED = ("update", "reference-transaction")
"""The other hooks of receive-pack. They cost a process each, so only those that the repository has are there.

Not proc-receive: it moves refs of its own choosing, which no intent would have named."""


def own_hooks(repository: Path) -> Path:
    """The folder of the repository's own hooks: its core.hooksPath where it sets one, else hooks/."""
    try:
        configured = ConfigFile.from_path(str(repository / "config")).get((b"core",), b"hooksPath")
    except (KeyError, OSError, ValueError):
        return repository / "hooks"
    return repository / os.fsdecode(configured)


def folder(run_directory: Path, own: Path) -> Path:
    """A hooks folder that serves a repository whose own hooks are in `own`; made once for each set of hooks.

    ReplicaUnfit where scripts cannot be executed: Git would silently go on without asking anybody.
    """
    scripts = {"pre-receive": PRE_RECEIVE, "post-receive": POST_RECEIVE}
    scripts.update({name: RELAY for name in RELAYED if os.access(own / name, os.X_OK)})
    digest = hashlib.sha256(repr(sorted(scripts.items())).encode()).hexdigest()[:16]
    path = run_directory / f"hooks-{digest}"
    if not path.exists():
        new = run_directory / f".hooks-{uuid4().hex}"
        new.mkdir(parents=True)
        for name, text in scripts.items():
            (new / name).write_text(text)
            (new / name).chmod(0o755)
        try:
            new.rename(path)
        except OSError:
            if not path.exists():
                raise
    if not os.access(path / "pre-receive", os.X_OK) or not os.access(path / "post-receive", os.X_OK):
        raise ReplicaUnfit(
            "this device cannot run hooks", hint="its data_dir must not be mounted with noexec"
        )
    return path
