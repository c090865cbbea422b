"""Who listens to the events of a device: curl, as a CI system's script would have it."""

from __future__ import annotations

import json
import subprocess
import threading
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlencode

from tests.ssh_fixture import until


@dataclass(frozen=True)
class Heard:
    """One event: its id and its data."""

    id: int
    data: dict[str, Any]


class Listening:
    """`curl -N` on the stream, read as a browser's EventSource would. position: of the last id, also of one alone."""

    def __init__(
        self,
        base: str | None,
        token: str | None = None,
        *,
        last: str | int | None = None,
        **asked: str | int,
    ) -> None:
        assert base is not None
        self.heard: list[Heard] = []
        self.comments: list[str] = []
        self.beats = 0
        self.position: int | None = None
        self.ended = threading.Event()
        url = f"{base}/-/api/v1/events?{urlencode(asked)}"
        command = ["curl", "-sS", "-N", "-i", url]
        command += ["-H", f"Authorization: Bearer {token}"] if token else []
        command += ["-H", f"Last-Event-ID: {last}"] if last is not None else []
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.head: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        until(lambda: self.position is not None or self.ended.is_set(), "the stream has begun")

    def _read(self) -> None:
        assert self.process.stdout is not None
        lines = iter(self.process.stdout)
        for line in lines:
            if not line.strip():
                break
            self.head.append(line.strip())
        number, event, data = None, "", ""
        for line in lines:
            name, _, value = line.rstrip("\n").partition(":")
            value = value.removeprefix(" ")
            if name == "id":
                number = int(value)
            elif name == "event":
                event = value
            elif name == "data":
                data += value
            elif name in ("", "retry") and ":" in line:
                self.comments += [value] if value and not name else []
                self.beats += not name and not value
            elif not line.strip():
                if number is not None:
                    self.position = number
                if data:
                    assert event == "push" and number is not None
                    self.heard.append(Heard(number, json.loads(data)))
                event, data = "", ""
            else:
                self.comments.append(line.strip())
        self.ended.set()

    @property
    def versions(self) -> list[tuple[str, int]]:
        return [(each.data["repository"], each.data["version"]) for each in self.heard]

    def wait(self, count: int) -> list[Heard]:
        """Until it has heard of so many."""
        until(lambda: len(self.heard) >= count or self.ended.is_set(), f"{count} events: {self.versions}", 30)
        assert len(self.heard) >= count, (self.head, self.comments, self.versions)
        return self.heard

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
