"""Fuzzing in a short form: the same inputs every time, and some that Hypothesis finds. At length: `make fuzz`."""

from __future__ import annotations

import os
import subprocess
import time
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import streams
from tests.fuzz.core import Started, Target, made, nothing_starts
from tests.fuzz.targets import TARGETS

LARGE = 128 * 1024
"""Bytes of an input that repeats itself: what is not linear takes minutes for it."""

SECONDS = 10.0
"""Of a thread's own time, for each of them."""

STREAMS = {target.name for target in streams.targets()}

Edit = tuple[int, int, bytes]


def _edited(data: bytes, edits: list[Edit]) -> bytes:
    for at, length, piece in edits:
        at %= len(data) + 1
        data = data[:at] + piece + data[at + length :]
    return data


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Tokens and bytes in a row, or something of the corpus with pieces of it exchanged."""
    piece = st.sampled_from(target.tokens) | st.binary(max_size=6)
    edits = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 12), piece), max_size=5)
    return st.lists(piece, max_size=12).map(b"".join) | st.builds(
        _edited, st.sampled_from(target.corpus), edits
    )


@pytest.mark.parametrize("name", TARGETS)
def test_what_hypothesis_finds(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(inputs(target))
    def holds(data: bytes) -> None:
        with nothing_starts():
            target.check(data)

    holds()


@pytest.mark.parametrize("name", TARGETS)
def test_mutations_from_a_seed(name: str) -> None:
    """`python -m tests.fuzz --target NAME --seed N` goes on where this ends."""
    chance, target = Random(f"short/{name}"), TARGETS[name]
    with nothing_starts():
        for _ in range(400):
            data = made(chance, target)
            try:
                target.check(data)
            except BaseException as error:
                error.add_note(f"{name} failed on {data!r}")
                raise


@pytest.mark.parametrize("name", TARGETS)
def test_time_in_proportion(name: str) -> None:
    """Each token, over and over."""
    target = TARGETS[name]
    with nothing_starts():
        for token in target.tokens:
            data, begun = token * (LARGE // len(token)), time.thread_time()
            target.check(b"\0" + data if name in STREAMS else data)
            assert time.thread_time() - begun < SECONDS, token[:100]


def test_the_watch_sees_a_process_that_starts() -> None:
    with nothing_starts():
        with pytest.raises(Started):
            subprocess.run(["true"], check=False)
        with pytest.raises(Started):
            os.system("true")
    assert subprocess.run(["true"], check=False).returncode == 0
