"""A receiver of webhooks: a real server of HTTP that does as it is told and remembers what it was sent."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tests.ssh_fixture import until


@dataclass(frozen=True)
class Delivery:
    """One request. answered: with which status; None: with none."""

    headers: dict[str, str]
    body: bytes
    answered: int | None

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


class Receiver:
    """Answers with what `answer` returns of a request's data: a status, or None to say nothing and hang.

    endless: whether its answers have a body that never ends. certificate: with it, and its key, it speaks TLS.
    """

    def __init__(
        self, port: int = 0, *, endless: bool = False, certificate: tuple[Path, Path] | None = None
    ) -> None:
        self.heard: list[Delivery] = []
        self.answer: Callable[[dict[str, Any]], int | None] = lambda data: 204
        self.closed = threading.Event()
        self.headers: dict[str, str] = {}
        mutex = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with mutex:
                    status = receiver.answer(json.loads(body))
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    receiver.heard.append(Delivery({**headers, ":path": self.path}, body, status))
                if status is None:
                    receiver.closed.wait(60)
                    return
                self.send_response(status)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                if not endless:
                    self.send_header("Content-Length", "0")
                self.end_headers()
                while endless and not receiver.closed.is_set():
                    self.wfile.write(b"x" * 65536)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # whoever hangs up on us

        self._server = Server(("127.0.0.1", port), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def taken(self) -> list[int]:
        """The versions that were answered with 2xx, in the order in which they came."""
        return [each.data["version"] for each in self.heard if each.answered and 200 <= each.answered < 300]

    def wait(self, count: int, seconds: float = 40) -> list[Delivery]:
        """Until so many requests have come."""
        until(lambda: len(self.heard) >= count, f"{count} deliveries, not {len(self.heard)}", seconds)
        return list(self.heard)

    def wait_taken(self, versions: list[int], seconds: float = 60) -> None:
        until(lambda: len(self.taken) >= len(versions), f"{versions}, not {self.taken}", seconds)
        assert self.taken == versions

    def close(self) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def verified(delivery: Delivery, secret: str) -> bool:
    """By the specification, with OpenSSL: https://www.standardwebhooks.com."""
    headers = delivery.headers
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + delivery.body
    key = base64.b64decode(secret.removeprefix("whsec_")).hex()
    done = subprocess.run(
        ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key}", "-binary"],
        input=signed,
        capture_output=True,
        check=True,
    )
    expected = "v1," + base64.b64encode(done.stdout).decode()
    recent = abs(time.time() - int(headers["webhook-timestamp"])) < 300
    return recent and expected in headers["webhook-signature"].split(" ")
