"""Packs on their way from one device to another: made by Git of what is here, stored by Git where they arrive."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from cluster import git
from cluster.client import write_all
from cluster.report import read_some

UNPACKED = 100
"""Objects in a pack from which on it is kept as one; fewer become loose objects. Git's own fetch.unpackLimit."""

HEADER = 12
"""Bytes at the beginning of a pack: "PACK", its format's number, and how many objects follow (4 bytes each)."""


def packing(git_dir: Path, options: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """`git pack-objects`: it reads names and writes a pack."""
    return subprocess.Popen(
        ["git", "pack-objects", "--stdout", "--quiet", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=git.environment(None, **{"GIT_DIR": str(git_dir), **env}),
    )


def made(process: subprocess.Popen[bytes], names: str) -> Iterator[bytes]:
    """The pack of what `names` say, as it comes."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(names.encode())
    process.stdin.close()
    while data := read_some(process.stdout):
        yield data


def stored(git_dir: Path, pieces: Iterable[bytes], lock: int) -> None:
    """Store a pack of any size, as `git fetch` does. GitFailed where it is torn, or refers to what is not here.

    lock: shared by whoever adds objects; Git inherits it.
    """
    rest, head = iter(pieces), b""
    while len(head) < HEADER and (piece := next(rest, b"")):
        head += piece
    if int.from_bytes(head[8:HEADER], "big") >= UNPACKED:
        indexed(git_dir, chain([head], rest), lock)
    else:
        _fed(["unpack-objects", "-q"], chain([head], rest), {"GIT_DIR": str(git_dir)}, lock)


def indexed(git_dir: Path, pieces: Iterable[bytes], lock: int, options: Sequence[str] = ()) -> None:
    """Store a pack as a pack. GitFailed as above.

    It is written in a quarantine as Git's own: index-pack leaves its temporary file behind when it fails, and the
    device whose disk is full would have that much less room each time.
    """
    objects = git_dir / "objects"
    with tempfile.TemporaryDirectory(dir=objects, prefix="tmp_objdir-stage-") as quarantine:
        env = {
            "GIT_DIR": str(git_dir),
            "GIT_OBJECT_DIRECTORY": quarantine,
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects),
        }
        _fed(["index-pack", "--stdin", "--fix-thin", *options], pieces, env, lock, fine=(0, 1))
        new = sorted(Path(quarantine).glob("pack/*"), key=lambda file: file.suffix == ".idx")
        for file in new:  # the index last: it makes the pack visible
            file.rename(objects / "pack" / file.name)


def _fed(
    arguments: Sequence[str],
    pieces: Iterable[bytes],
    env: Mapping[str, str],
    lock: int,
    fine: Sequence[int] = (0,),
) -> None:
    """Run `git <arguments>` with `pieces` as its input. Where they fail to come, it sees an early end of them.
    fine: exit codes that are none of a failure (of index-pack, 1 says "complete, but not by itself alone")."""
    with subprocess.Popen(
        ["git", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=git.environment(git.DURABLE, **env),
        pass_fds=(lock,),
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        with suppress(BrokenPipeError):
            for piece in pieces:
                write_all(process.stdin.fileno(), piece)
        process.stdin.close()
        errors = process.stderr.read()
    if process.returncode not in fine:
        raise git.failed(arguments[0], errors)
