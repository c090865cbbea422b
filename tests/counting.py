"""What a request costs, as counts that no busy machine changes: round trips to the database, processes started.

Relay     stands before PostgreSQL and reads what passes; each round trip is kept with what it asked
Programs  a `git` that is the real one and keeps a list of every process that it and its children start
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread

BY_ITSELF = re.compile(
    r"update device |with beat|listen |select 1$|select set_config\('tcp_|\(parse\)|webhook w|"
    r"insert into (measurement|copies)|^select r\.repository_id|update push |begin|commit$"
)
"""What a device asks without being asked anything."""


@dataclass(frozen=True, slots=True)
class Trip:
    """One round trip: what was sent before an answer was waited for."""

    session: int
    statements: tuple[str, ...]

    def __str__(self) -> str:
        return " ; ".join(self.statements)

    @property
    def by_itself(self) -> bool:
        return BY_ITSELF.search(str(self)) is not None


class Relay:
    """Passes connections on `directory`'s Unix socket on to PostgreSQL's `target`, and keeps what was asked."""

    def __init__(self, directory: Path, target: Path) -> None:
        self.directory, self._target = directory, target
        self._mutex = Lock()
        self._trips: list[Trip] = []
        self._sessions = 0
        directory.mkdir()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / ".s.PGSQL.5432"))
        self._listener.listen(64)
        Thread(target=self._accept, daemon=True).start()

    def url(self, url: str) -> str:
        """The URL of a database, by way of here."""
        return url.replace(str(self._target.parent), str(self.directory))

    def trips(self) -> list[Trip]:
        """Every round trip since the last call."""
        with self._mutex:
            found, self._trips = self._trips, []
        return found

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._target))
                self._sessions += 1
                Thread(target=self._requests, args=(client, server, self._sessions), daemon=True).start()
                Thread(target=self._answers, args=(server, client), daemon=True).start()

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _requests(self, client: socket.socket, server: socket.socket, session: int) -> None:
        reader = _Frontend()
        with suppress(OSError):
            while data := client.recv(65536):
                for statements in reader.feed(data):
                    with self._mutex:
                        self._trips.append(Trip(session, statements))
                server.sendall(data)
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class _Frontend:
    """What a client of PostgreSQL says, cut into messages (protocol 3.0)."""

    def __init__(self) -> None:
        self._data = b""
        self._begun = False
        self._prepared: dict[bytes, str] = {}
        self._asked: list[str] = []

    def feed(self, data: bytes) -> list[tuple[str, ...]]:
        """The round trips that are complete now: all that was said up to a Query or a Sync.

        Of a pipeline's several Syncs that come in one piece the client waits for the last alone.
        """
        self._data += data
        done: list[str] = []
        complete = False
        while message := self._next():
            kind, body = message
            if kind == b"P":
                name, query = body.split(b"\0")[:2]
                self._prepared[name] = _line(query)
            elif kind == b"B":
                self._asked.append(self._prepared.get(body.split(b"\0")[1], "?"))
            elif kind == b"Q":
                self._asked.append(_line(body.rstrip(b"\0")))
                complete = True
            elif kind == b"S":
                complete = True
            if complete and kind in (b"Q", b"S"):
                done += self._asked or (["(parse)"])
                self._asked = []
        return [tuple(done)] if complete else []

    def _next(self) -> tuple[bytes, bytes] | None:
        if not self._begun:
            if len(self._data) < 8:
                return None
            (size, code) = struct.unpack("!ii", self._data[:8])
            if len(self._data) < size:
                return None
            self._data = self._data[size:]
            self._begun = code == 196608 or code >> 16 == 3
            return b"startup", b""
        if len(self._data) < 5:
            return None
        (size,) = struct.unpack("!i", self._data[1:5])
        if len(self._data) < 1 + size:
            return None
        kind, body = self._data[:1], self._data[5 : 1 + size]
        self._data = self._data[1 + size :]
        return kind, body


def _line(query: bytes) -> str:
    return " ".join(query.decode().split())


class Programs:
    """A folder for PATH whose `git` keeps a list of what it starts."""

    def __init__(self, directory: Path) -> None:
        self.directory, self._log = directory, directory / "log"
        git = shutil.which("git")
        assert git
        self._log.mkdir(parents=True)
        cat = shutil.which("cat")
        self._script("git", f'export GIT_TRACE2_EVENT="{self._log}"\nexec {git} "$@"\n')
        self._script("cat", f'echo cat >"{self._log}/cat-$$"\nexec {cat} "$@"\n')

    def _script(self, name: str, text: str) -> None:
        (self.directory / name).write_text(f"#!/bin/sh\n{text}")
        (self.directory / name).chmod(0o755)

    @property
    def path(self) -> str:
        return f"{self.directory}{os.pathsep}{os.environ['PATH']}"

    def started(self) -> Counter[str]:
        """How often each program was started since the last call: Git's own, and "hook" and its name."""
        found: Counter[str] = Counter()
        for file in self._log.iterdir():
            lines = file.read_text().splitlines()
            file.unlink()
            if file.name.startswith("cat-"):
                found["cat"] += 1
                continue
            for line in lines:
                event = json.loads(line)
                if event["event"] == "start":
                    words = [
                        word for word in event["argv"][1:] if not word.startswith("-") and "=" not in word
                    ]
                    found[Path(words[0]).name] += 1
                elif event["event"] == "child_start" and event["child_class"] == "hook":
                    found[f"hook {event['hook_name']}"] += 1
        return found
