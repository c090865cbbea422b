"""A TCP proxy that fails as networks do: in front of PostgreSQL, of a device, of anything.

Its states, each entered by the method behind the name:

    passing  heal     bytes go through both ways
    cut      cut      connections are ended, new ones refused: a host that is down
    hanging  hang     nothing passes and nobody is told: packets are dropped; what was sent arrives after `heal`
    deaf     deafen   the same for answers alone: a request arrives, and whoever sent it never hears of it
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread

CHUNK = 65536


class CuttingProxy:
    """Passes connections to 127.0.0.1:`port` on to `target`: (host, port), or the path of a Unix socket.

    accepted: connections so far. carried: bytes so far, both ways.
    """

    def __init__(self, target: tuple[str, int] | Path) -> None:
        self._target = target
        self.accepted = self.carried = 0
        self._mutex = Lock()
        self._links: set[_Link] = set()
        self._requests, self._answers = Event(), Event()
        self._reservation = _bound(0)  # never listens: the port stays ours while it refuses
        self._listener: socket.socket | None = None
        self.port: int = self._reservation.getsockname()[1]
        self.heal()

    def target_of(self, client: tuple[str, int]) -> tuple[str, int] | Path:
        """Where a connection from this address is passed on to."""
        return self._target

    def cut(self) -> None:
        """End all connections and refuse new ones, until `heal`."""
        with self._mutex:
            listener, self._listener = self._listener, None
            links, self._links = self._links, set()
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
        for link in links:
            link.end()

    def hang(self) -> None:
        """Pass nothing on and keep every connection, new ones too, until `heal`."""
        self._requests.clear()
        self._answers.clear()

    def deafen(self) -> None:
        """Pass on what clients send, and nothing of what they are told, until `heal`."""
        self._requests.set()
        self._answers.clear()

    def heal(self) -> None:
        """Pass everything on again: what was held back first."""
        with self._mutex:
            if self._listener is None:
                self._listener = _bound(self.port)
                self._listener.listen(128)
                Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        self._requests.set()
        self._answers.set()

    def close(self) -> None:
        """End every connection and give the port back."""
        self.cut()
        self._requests.set()
        self._answers.set()
        self._reservation.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # until the listener is closed
            while True:
                link = _Link(listener.accept()[0])
                with self._mutex:
                    passing = self._listener is listener
                    if passing:
                        self._links.add(link)
                if passing:
                    self.accepted += 1
                    Thread(target=self._serve, args=(link,), daemon=True).start()
                else:
                    link.close()

    def _count(self, size: int) -> None:
        with self._mutex:
            self.carried += size

    def _serve(self, link: _Link) -> None:
        try:
            self._requests.wait()
            with suppress(OSError):
                link.connect(self.target_of(link.client))
                link.pass_on(self._requests, self._answers, self._count)
        finally:
            with self._mutex:
                self._links.discard(link)
            link.close()


class _Link:
    """One connection through the proxy: the client's end and the server's."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._server: socket.socket | None = None
        self._mutex = Lock()
        self._ended = False

    @property
    def client(self) -> tuple[str, int]:
        """The address of who connected. OSError where they are gone already."""
        host, port = self._client.getpeername()
        return host, port

    def connect(self, target: tuple[str, int] | Path) -> None:
        """Reach the server. OSError where that fails, or the link has been ended."""
        if isinstance(target, Path):
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(target))
        else:
            server = socket.create_connection(target)
        with self._mutex:
            self._server = server
            if self._ended:
                raise ConnectionAbortedError

    def pass_on(self, requests: Event, answers: Event, count: Callable[[int], None]) -> None:
        """Carry both directions until both have ended."""
        assert self._server is not None
        back = Thread(target=self._pump, args=(self._server, self._client, answers, count), daemon=True)
        back.start()
        self._pump(self._client, self._server, requests, count)
        back.join()

    def _pump(
        self, source: socket.socket, sink: socket.socket, passing: Event, count: Callable[[int], None]
    ) -> None:
        try:
            while data := source.recv(CHUNK):
                count(len(data))
                passing.wait()
                sink.sendall(data)
            passing.wait()
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            self.end()

    def end(self) -> None:
        """Hang up on both sides; whoever carries it wakes up."""
        with self._mutex:
            self._ended = True
            ends = [end for end in (self._client, self._server) if end is not None]
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._client.close()
        if self._server is not None:
            self._server.close()


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    return made
