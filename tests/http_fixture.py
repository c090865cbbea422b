"""A cluster whose devices are reached over HTTP, by a token in the URL."""

from __future__ import annotations

from cluster import tokens
from cluster.loopback import USER
from tests.cluster_fixture import Cluster


class HttpCluster(Cluster):
    """`url` is of HTTP. Devices are still peers of one another over SSH, as always."""

    token = ""

    def set_up(self, names: list[str]) -> None:
        super().set_up(names)
        self.token = self.make_token(USER)

    def make_token(self, user: str, *, read_only: bool = False) -> str:
        secret = tokens.new()
        digest = tokens.digest(secret)
        assert digest is not None
        self.db.add_token(user, digest, read_only=read_only)
        return secret

    def url(self, device: str, repository: str = "team/app") -> str:
        return f"{self.base(device, f'{USER}:{self.token}@')}/{repository}"

    def base(self, device: str, who: str = "") -> str:
        """The URL of a device; who: "user:token@"."""
        port = self.devices[device].http_port
        assert port
        return f"http://{who}127.0.0.1:{port}"
