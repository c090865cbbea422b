"""The endpoint behind OpenSSH: sshd speaks SSH, hooks of ours say who may come in and hand over what was asked for.

    sshd ──key──▶ git-cluster-hook keys ──────▶ "restrict,command="git-cluster-hook serve user SHA256:… anna" ssh-…"
    sshd ──command──▶ git-cluster-hook serve ──request, descriptors 0 1 2──▶ daemon ──▶ the same session as built-in
                                             ◀──────────exit code──────────

The hooks (sshd_hooks/git-cluster-hook.*) reach the daemon by a Unix socket in a folder that only its user may enter. So
whoever is connected is the hook, run by sshd as that user, and what it says of who asks was written by `authorize`
below: that key was proven to sshd a moment ago. It is checked again in the database at every request, as always.

A message: four bytes of length, then words with a NUL between them. "+" says that it was taken. Then comes the text for
sshd; or the hook sends three descriptors with one byte, and gets one back: the exit code.

Where no daemon runs, the hook is replaced by git-cluster itself, which does the same in its own process
(cluster/alone.py).
"""

from __future__ import annotations

import base64
import binascii
import errno
import ipaddress
import logging
import os
import shlex
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cluster.certificates import is_certificate, signer
from cluster.endpoint import Handlers, answer, git_protocol, unforeseen, unknown_for_now
from cluster.errors import ClusterError, Refused, UsageError
from cluster.fd_client import FdClient
from cluster.keys import fingerprint
from cluster.model import Actor, ActorKind

SOCKET = "sshd.sock"
"""The socket, in the run directory of the device's data_dir."""

MOST_REQUEST = 1 << 20
"""Bytes. A command and an environment variable have 128 KiB at the most: Linux's limit for one string of execve."""

PATIENCE = 10.0
"""Seconds for a hook to send its request, which it does at once."""

_CLOSING = "this device is shutting down"

_log = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------------- who it is


def authorize(handlers: Handlers, hook: str, key_type: str, key_base64: str) -> str:
    """The line of authorized_keys(5) that lets this key in, to be given `hook serve` and nothing else; "": nobody's.

    Where it cannot be told whose it is, it may come in and is told so: "Permission denied" would send people to look
    for a fault in their keys. UsageError: it is no key.
    """
    shown = fingerprint_of(key_base64)
    certificate = is_certificate(key_type)
    try:
        if certificate:
            actor = handlers.certified(key_type, key_base64, None)
        else:
            actor = handlers.authenticate(key_type, key_base64, shown)
    except Refused as error:
        _log.info("key %s is refused: %s", shown, error.what)
        return ""
    except ClusterError as error:
        _log.warning("cannot look up key %s: %s", shown, error.what)
        who = f"unknown {shown}"
    else:
        if actor is None:
            if not certificate:  # why one proves nobody has been said
                _log.info("key %s is nobody's", shown)
            return ""
        who = _words(actor)
        if certificate:  # sshd holds it against the authority's key, its time, its addresses and this name
            options = f'cert-authority,principals="{actor.name}"'
            return let_in(hook, who, signer(key_type, key_base64), options)
    return let_in(hook, who, f"{key_type} {key_base64}")


def let_in(hook: str, who: str, key: str, options: str = "") -> str:
    """The line for a key that may come in as `who`."""
    extra = f"{options}," if options else ""
    command = f"{shlex.quote(hook)} serve {who}".replace("\\", "\\\\").replace('"', '\\"')
    return f'restrict,{extra}command="{command}" {key}\n'


def _words(actor: Actor) -> str:
    until = f" {actor.certified_until.timestamp():.0f}" if actor.certified_until else ""
    return f"{actor.kind} {actor.fingerprint} {actor.name}{until}"


def known(handlers: Handlers, words: Sequence[str]) -> Actor | ClusterError:
    """Who asks, from what `authorize` wrote; or why that cannot be told."""
    if len(words) == 2 and words[0] == "unknown":
        try:
            actor = handlers.authenticate("", "", words[1])
        except ClusterError as error:
            return unknown_for_now(error)
        return actor or Refused("this key is not registered here", hint="ask an administrator")
    try:
        kind, proof, name, *until = words
        certified = datetime.fromtimestamp(float(until[0]), UTC) if until else None
        return Actor(ActorKind(kind), name, proof, certified)
    except (ValueError, OverflowError, OSError):
        return UsageError(
            "the hook that sshd runs is of another version than this device's git-cluster",
            hint="an administrator runs `git-cluster sshd install` again",
        )


# ------------------------------------------------------------------------------------------- what is asked for


@dataclass(frozen=True, slots=True)
class Asked:
    """command: None: a shell. protocol: GIT_PROTOCOL, or "". address: the client's, or ""."""

    command: bytes | None
    protocol: str
    address: str

    @classmethod
    def of(cls, command: bytes | None, protocol: bytes | None, connection: bytes | None) -> Asked:
        """From the values of SSH_ORIGINAL_COMMAND, GIT_PROTOCOL and SSH_CONNECTION."""
        return cls(
            command,
            git_protocol((protocol or b"").decode("ascii", "replace")) or "",
            _address((connection or b"").partition(b" ")[0].decode("ascii", "replace")),
        )


def _address(text: str) -> str:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    return str(getattr(address, "ipv4_mapped", None) or address)


def fingerprint_of(key_base64: str) -> str:
    """SHA256:… of a key as sshd gives it. UsageError."""
    try:
        return fingerprint(base64.b64decode(key_base64, validate=True))
    except (binascii.Error, ValueError) as error:
        raise UsageError("this is no public key in base64", hint="it takes %t and %k from sshd") from error


# ------------------------------------------------------------------------------------------------- the daemon


class HookServer:
    """Listens on the socket in `folder`, from start() to close(). One thread a request."""

    def __init__(self, folder: Path, handlers: Handlers) -> None:
        self._folder, self._handlers = folder, handlers
        self._change = threading.Condition()
        self._clients: set[FdClient] = set()
        self._running = 0
        self._stopping = False
        self._socket: socket.socket | None = None

    @property
    def path(self) -> Path:
        return self._folder / SOCKET

    @property
    def open(self) -> int:
        """Requests of sshd's hooks that run now."""
        with self._change:
            return self._running

    def start(self, listener: socket.socket | None = None) -> None:
        """Hear hooks, from a thread of its own. listener: what `bind` made, where others of this device do so, too."""
        self._socket = listener = listener or bind(self._folder)
        threading.Thread(target=self._accept, args=(listener,), name="hooks accept", daemon=True).start()

    def stop_accepting(self) -> None:
        """Hooks find no daemon any more, and do the work themselves."""
        with self._change:
            self._stopping = True
        self.path.unlink(missing_ok=True)
        if self._socket:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def close(self, grace: float) -> None:
        """Stop; wait `grace` seconds for the requests that run; then hang up on them."""
        self.stop_accepting()
        with self._change:
            self._change.wait_for(lambda: not self._running, grace)
            for client in self._clients:
                client.hang_up()

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping:
            try:
                hook, _ = listener.accept()
            except OSError as error:
                if error.errno == errno.EINVAL:  # shut down, here or in another process
                    return
                if not self._stopping:
                    _log.error("accepting hooks: %s", error.strerror)  # most likely: too many open files
                    time.sleep(0.1)
                continue
            threading.Thread(target=self._hear, args=(hook,), name="hook", daemon=True).start()

    def _hear(self, hook: socket.socket) -> None:
        fds: list[int] = []
        with hook, self._counted() as counted:
            try:
                if _user_of(hook) not in (0, os.geteuid()):
                    return
                hook.settimeout(PATIENCE)
                words = _request(hook)
                hook.sendall(b"+")
                if words[0] == b"keys" and len(words) == 4:
                    hook.sendall(self._keys(*(word.decode("ascii", "replace") for word in words[1:])))
                elif words[0] == b"serve" and len(words) > 4 and _take(hook, fds):
                    hook.settimeout(None)
                    hook.sendall(bytes([self._serve(hook, words[1:], fds, counted) & 0xFF]))
            except (OSError, ValueError) as error:
                _log.debug("a hook went away: %s", error)
            finally:
                for fd in fds:
                    os.close(fd)

    def _keys(self, hook: str, key_type: str, key_base64: str) -> bytes:
        try:
            return authorize(self._handlers, hook, key_type, key_base64).encode()
        except UsageError as error:
            _log.warning("sshd asked for a key: %s", error.what)
        except Exception:
            unforeseen("sshd")
        return b""

    def _serve(self, hook: socket.socket, words: list[bytes], fds: list[int], counted: bool) -> int:
        client = FdClient(fds.pop(0), fds.pop(0), fds.pop(0), hook)
        *who, command, protocol, connection = words
        asked = Asked.of(
            *(word[1:] if word[:1] == b"=" else None for word in (command, protocol, connection))
        )
        try:
            if not counted:
                closing = ClusterError(_CLOSING)
                return answer(self._handlers, closing, asked.command, client, protocol="", address="")
            with self._change:
                self._clients.add(client)
            actor = known(self._handlers, [word.decode("ascii", "replace") for word in who])
            return answer(
                self._handlers,
                actor,
                asked.command,
                client,
                protocol=asked.protocol,
                address=asked.address,
            )
        finally:
            with self._change:
                self._clients.discard(client)
            client.close()

    @contextmanager
    def _counted(self) -> Iterator[bool]:
        """Count a request as running, unless this device shuts down."""
        with self._change:
            counted = not self._stopping
            self._running += counted
        try:
            yield counted
        finally:
            with self._change:
                self._running -= counted
                self._change.notify_all()


def bind(folder: Path) -> socket.socket:
    """A socket that listens in `folder`, in the place of what is there; the caller is the only daemon on this disk.
    OSError."""
    folder.chmod(0o700)
    path = folder / SOCKET
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        listener.bind(f"/proc/self/fd/{fd}/{SOCKET}")  # a socket's path has 108 bytes at the most
    finally:
        os.close(fd)
    path.chmod(0o600)
    listener.listen(1024)
    return listener


def _user_of(hook: socket.socket) -> int:
    """The user who runs the process at the other end (Linux's struct ucred: pid, uid, gid)."""
    credentials = hook.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)


def _take(hook: socket.socket, fds: list[int]) -> bool:
    """Whether three descriptors came; whatever came is added to `fds`. OSError."""
    _, received, _, _ = socket.recv_fds(hook, 1, 3, socket.MSG_CMSG_CLOEXEC)
    fds += received
    return len(fds) == 3


def _request(hook: socket.socket) -> list[bytes]:
    """The words of a message. ValueError, OSError: it is none."""
    data = b""
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
        more = hook.recv(65536)
        if not more or len(data) > MOST_REQUEST:
            raise ValueError("a request was cut off, or is none")
        data += more
    return data[4:].split(b"\0")
