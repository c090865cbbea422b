"""Schemathesis against the OpenAPI document: what it says is what happens, and nothing that is sent is a fault."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import tokens
from cluster.model import Level
from tests.cluster_fixture import Cluster
from tests.conftest import new_cluster, new_database

CONFIG = """
[checks.positive_data_acceptance]
# A name has rules that a pattern does not state: 400. 403, 404 and 409 are about what is there.
expected-statuses = ["2xx", 400, 401, 403, 404, 409]
"""


@pytest.fixture(scope="module")
def one(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Device a, which does not mind tokens that are wrong again and again, and a repository or two."""
    limits = {"limits": {"failed_logins": 100_000}}
    with new_database(postgres) as url:
        cluster = new_cluster("built-in", tmp_path_factory.mktemp("schema") / "cluster", url, {}, limits)
        try:
            cluster.set_up(["a"])
            cluster.start("a")
            cluster.create("team/app")
            yield cluster
        finally:
            cluster.close()


@pytest.mark.timeout(300)
def test_what_the_document_says_is_what_happens(one: Cluster, tmp_path: Path) -> None:
    """With the rights of an administrator, so that nothing is refused before it is looked at."""
    one.db.add_user("fuzzer")
    one.db.grant(Level.ADMIN, "fuzzer", "*")
    secret = tokens.new()
    digest = tokens.digest(secret)
    assert digest is not None
    one.db.add_token("fuzzer", digest, read_only=False)
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    url = f"http://127.0.0.1:{one.devices['a'].http_port}/-/api/v1/openapi.json"
    schemathesis = str(Path(sys.executable).with_name("schemathesis"))
    done = subprocess.run(
        [
            schemathesis,
            *("--config-file", str(tmp_path / "schemathesis.toml")),
            *("run", url, "--header", f"Authorization: Bearer {secret}"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "6"),
            *("--checks", "all", "--seed", "1", "--no-color", "--generation-database", "none"),
        ],
        cwd=tmp_path,
        env={**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path / "hypothesis")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
