"""An archive of one commit, for an endpoint that names a ref: what it stands for is looked up here, where it is made.

    asked for    pkt-lines "format …", "prefix …", "ref …" and "unless …" (commits that need not be sent; "*": none is
                 wanted, only which it is), and a flush
    answered     a pkt-line, "commit …" or "none"; then the archive as Git makes it, where it is wanted

So which commit it is and what is in it cannot differ, whatever is pushed meanwhile, and another device can pass both on
(cluster/proxy.py). Only what a visible ref reaches is found: an object id is held against them.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from dulwich.protocol import pkt_line

from cluster import git
from cluster.client import Client, Input
from cluster.errors import ClientGone, GitFailed, UsageError
from cluster.model import Request, Snapshot
from cluster.node import Node
from cluster.upload import MOST_SAID, Settle, Steady, whole_request
from cluster.verify import doubt

FORMATS = ("tar.gz", "tar", "zip")
MOST_REF = 250
LOOK = 60.0
"""Bytes of a ref, and seconds for a look at what it stands for."""

_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_NO_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")


@dataclass(frozen=True, slots=True)
class Wanted:
    """format: one of FORMATS. prefix: before each path. unless: commits that are not to be sent; "*": none is."""

    format: str
    prefix: str
    ref: str
    unless: tuple[str, ...] = ()

    def said(self) -> bytes:
        """As a device is asked for it."""
        lines = [f"format {self.format}", f"prefix {self.prefix}", f"ref {self.ref}"]
        lines += [f"unless {commit}" for commit in self.unless]
        packets = [pkt_line(line.encode("utf-8", "surrogateescape")) for line in lines]
        return b"".join([*packets, pkt_line(None)])


def heard(said: bytes) -> Wanted:
    """The same, of what `said` made. UsageError where it is something else."""
    found: dict[str, list[str]] = {"format": [], "prefix": [], "ref": [], "unless": []}
    at = 0
    try:
        while (size := int(said[at : at + 4], 16)) >= 4:
            key, _, value = said[at + 4 : at + size].decode("utf-8", "surrogateescape").partition(" ")
            found[key].append(value)
            at += size
        (format,), (prefix,), (ref,) = found["format"], found["prefix"], found["ref"]
    except (ValueError, KeyError) as error:
        raise UsageError("this is no request for an archive") from error
    if format not in FORMATS or ".." in prefix.split("/") or prefix.startswith("/"):
        raise UsageError("this is no request for an archive")
    return Wanted(format, prefix, ref, tuple(found["unless"]))


def archive(node: Node, request: Request, snapshot: Snapshot, client: Client, settle: Settle | None) -> int:
    """Answer, from this disk; Git's exit code. The parameters are those of `upload`."""
    said, whole = whole_request(Input(client))
    if not whole:
        raise UsageError("this is no request for an archive")
    wanted = heard(said)
    steady = Steady(node, snapshot, settle)
    path = node.store.path(snapshot.repository.id)
    commit = steady.listing(lambda: resolve(path, wanted.ref).encode()).decode()
    client.write(pkt_line(f"commit {commit}".encode() if commit else b"none"))
    if not commit or "*" in wanted.unless or commit in wanted.unless:
        return 0
    code, complaint = _carry(path, wanted, commit, client)
    if code and (error := doubt(node, steady.snapshot, complaint)):
        raise error
    return code


def candidates(ref: str) -> Sequence[str]:
    """The full names that a short one may stand for, in Git's order; none of ours, which nobody sees."""
    if not ref or len(ref.encode("utf-8", "surrogateescape")) > MOST_REF or _NO_REF.search(ref):
        return ()
    if ref == "HEAD":
        return ("HEAD",)
    names = [ref] if ref.startswith("refs/") else []
    names += [f"refs/{ref}"] if ref.startswith(("heads/", "tags/")) else []
    names += [f"refs/tags/{ref}", f"refs/heads/{ref}"]
    return tuple(name for name in names if not f"{name}/".startswith("refs/cluster/"))


def resolve(path: Path, ref: str) -> str:
    """The commit that a ref, or an object id, stands for; "": none.

    `git rev-parse` would take more for a name than a ref: "x-g1234567" is to it the object that begins so.
    """
    for name in candidates(ref):
        try:
            found = git.run(["show-ref", "--verify", "-d", "--", name], git_dir=path, timeout=LOOK)
        except GitFailed:
            continue
        return _commit(path, found.splitlines()[-1].split()[0].decode())
    if _OID.fullmatch(ref) and (commit := _commit(path, ref)):
        beyond = ["rev-list", "--max-count=1", commit, "--not", "--exclude=refs/cluster/*", "--all"]
        try:
            return "" if git.run(beyond, git_dir=path, timeout=LOOK) else commit
        except GitFailed:
            return ""
    return ""


def _commit(path: Path, oid: str) -> str:
    """The commit that an object is, or that it is a tag of; "": it is something else."""
    try:
        found = git.run(["rev-parse", "--verify", "--quiet", f"{oid}^{{commit}}"], git_dir=path, timeout=LOOK)
    except GitFailed:
        return ""
    return found.decode().strip()


def _carry(path: Path, wanted: Wanted, commit: str, client: Client) -> tuple[int, bytes]:
    """Git's exit code and last words."""
    said = b""
    try:
        process = subprocess.Popen(
            [
                "git",
                f"--git-dir={path}",
                "archive",
                f"--format={wanted.format}",
                f"--prefix={wanted.prefix}",
                commit,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=git.environment(),
            cwd=path,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise GitFailed("git could not be started", hint="is Git installed on this device?") from error

    def listen() -> None:
        nonlocal said
        assert process.stderr is not None
        while data := os.read(process.stderr.fileno(), MOST_SAID):
            said = (said + data)[-MOST_SAID:]

    errors = Thread(target=listen, name="archive errors", daemon=True)
    with process:
        errors.start()
        try:
            assert process.stdout is not None
            client.send_from(process.stdout.fileno())
        except ClientGone:
            git.kill(process)
        except BaseException:
            git.kill(process)
            raise
        errors.join()
        return process.wait(), said
