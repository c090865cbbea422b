"""Refs read from Git's files are what Git says they are, or Git is asked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cluster import ref_files

ZONES = [
    "refs/heads/a",
    "refs/heads/a-b",
    "refs/heads/a/never",
    "refs/heads",
    "refs/tags/v1",
    "refs/zzz",
    "refs/a",
]
SETTINGS = ["-c", "user.name=x", "-c", "user.email=x@example.com"]


class Repository:
    def __init__(self, path: Path) -> None:
        self.path = path
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], check=True)
        tree = self.git("hash-object", "-t", "tree", "-w", "/dev/null")
        self.commit = self.git(*SETTINGS, "commit-tree", "-m", "one", tree)

    def git(self, *arguments: str, data: str = "") -> str:
        command = ["git", "--git-dir", str(self.path), *arguments]
        return subprocess.run(command, input=data, text=True, capture_output=True, check=True).stdout.strip()

    def make(self, *refs: str) -> None:
        self.git("update-ref", "--stdin", data="".join(f"create {ref} {self.commit}\n" for ref in refs))

    def refs(self) -> dict[str, str]:
        lines = self.git("for-each-ref", "--format=%(refname) %(objectname)").splitlines()
        return {line.split()[0]: line.split()[1] for line in lines}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "r.git")


@pytest.mark.parametrize("tags", [0, 1, 40])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 100, 517])
def test_loose_and_packed_refs_are_found_and_others_are_not(
    repository: Repository, count: int, tags: int
) -> None:
    repository.make(*(f"refs/heads/b{number}{'/x' * (number % 3)}" for number in range(count)))
    for number in range(tags):  # in packed-refs a line more says what such a tag is a tag of
        repository.git(*SETTINGS, "tag", "-a", "-m", "tag", f"t{number}", repository.commit)
    repository.git("pack-refs", "--all")
    repository.make("refs/heads/loose", "refs/tags/loose")
    there = repository.refs()
    assert ref_files.values(repository.path, [*there, *ZONES]) == there
    for ref in [*there, *ZONES]:
        assert ref_files.values(repository.path, [ref]) == ({ref: there[ref]} if ref in there else {})


def test_a_loose_value_wins_over_a_packed_one(repository: Repository) -> None:
    repository.make("refs/heads/main")
    repository.git("pack-refs", "--all")
    tree = repository.git("rev-parse", f"{repository.commit}^{{tree}}")
    newer = repository.git(*SETTINGS, "commit-tree", "-m", "two", tree)
    repository.git("update-ref", "refs/heads/main", newer)
    assert ref_files.values(repository.path, ["refs/heads/main"]) == {"refs/heads/main": newer}


def test_what_is_not_plain_is_left_to_git(repository: Repository) -> None:
    repository.make("refs/heads/main")
    repository.git("symbolic-ref", "refs/heads/alias", "refs/heads/main")
    (repository.path / "refs/heads/broken").write_text("no object id\n")
    (repository.path / "refs/heads/empty").touch()
    for name in ("alias", "broken", "empty", "../main", "x.lock", "a//b", "sp ace"):
        assert ref_files.values(repository.path, [f"refs/heads/{name}"]) is None, name
    for name in ("HEAD", "config", "/etc/passwd", "refs/../config"):
        assert ref_files.values(repository.path, [name]) is None, name
    assert ref_files.values(repository.path / "nowhere", ["refs/heads/main"]) is None


def test_a_file_of_packed_refs_that_is_not_sorted_is_left_to_git(repository: Repository) -> None:
    (repository.path / "packed-refs").write_text(
        f"{repository.commit} refs/heads/z\n{repository.commit} refs/heads/a\n"
    )
    assert repository.refs().keys() == {"refs/heads/a", "refs/heads/z"}
    assert ref_files.values(repository.path, ["refs/heads/a"]) is None
