"""A fetch and what a peer stages, read pkt-line by pkt-line: nothing passes by, nothing is kept without end."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from dulwich.protocol import pkt_line

from cluster import stage, upload
from cluster.client import Input
from cluster.errors import PeerFailed, UsageError
from tests.fuzz.core import Far

FLUSH = pkt_line(None)
DELIM = b"0001"
LISTING = pkt_line(b"command=ls-refs\n") + pkt_line(b"agent=x") + DELIM + pkt_line(b"peel\n") + FLUSH
FETCH = pkt_line(b"command=fetch") + DELIM + pkt_line(b"done") + FLUSH


def passed(sent: bytes, sizes: Sequence[int] = (65536,)) -> tuple[list[bytes], bytes]:
    """The requests that are answered here, and what Git gets."""
    answered: list[bytes] = []
    stream = Input(Far(sent, sizes))
    git = b"".join(upload._without_listings(stream, answered.append))
    while data := stream.read1():
        git += data
    return answered, git


@pytest.mark.parametrize("sizes", [[65536], [1], [5, 3]])
def test_listings_are_answered_here_and_all_else_is_gits(sizes: list[int]) -> None:
    assert passed(LISTING + FETCH + LISTING + FLUSH, sizes) == ([LISTING, LISTING], FETCH + FLUSH)


def test_git_takes_the_keys_of_a_request_in_any_order() -> None:
    """serve.c, process_request: a listing that names its command last is one, and must not reach Git by itself."""
    late = pkt_line(b"agent=x\n") + pkt_line(b"command=ls-refs") + DELIM + pkt_line(b"peel\n") + FLUSH
    assert passed(FETCH + late) == ([late], FETCH)
    bare = pkt_line(b"object-format=sha1") + pkt_line(b"command=ls-refs\n") + FLUSH
    assert passed(bare + FETCH) == ([bare], FETCH)


@pytest.mark.parametrize("end", [DELIM, b"0002"])
def test_the_arguments_of_a_request_end_once(end: bytes) -> None:
    """Git before 2.34 took any end for the end of the request, and so what follows for another."""
    with pytest.raises(UsageError, match="more than one"):
        passed(FETCH[:-4] + end + LISTING)


def test_a_listing_too_long_to_be_kept_is_refused() -> None:
    """What came behind it went to Git unseen, and so could be a listing."""
    prefixes = pkt_line(b"ref-prefix refs/heads/" + b"x" * 1000) * 1100
    with pytest.raises(UsageError, match="too long"):
        passed(LISTING[:-4] + prefixes + LISTING + FLUSH)
    keys = pkt_line(b"server-option=" + b"x" * 1000) * 1100
    with pytest.raises(UsageError, match="too long"):
        passed(keys + LISTING)
    assert passed(FETCH[:-4] + prefixes + FLUSH) == ([], FETCH[:-4] + prefixes + FLUSH)


@pytest.mark.parametrize("length", [b"+014", b"-000", b"0x14", b" 014", b"0_14", b"0003"])
def test_what_git_does_not_take_for_a_length_is_none(length: bytes) -> None:
    """It dies of it; int() would read on. All of it is Git's to refuse."""
    sent = length + b"command=ls-refs\n" + FLUSH
    assert passed(FETCH + sent) == ([], FETCH + sent)
    assert upload.whole_request(Input(Far(sent, [7]))) == (length, False)


def test_the_smallest_lines_take_time_in_proportion() -> None:
    """Each was copied together with all before and behind it: seconds for a megabyte, with nobody else served."""
    for sent in (
        LISTING[:-4] + b"0004" * 250_000 + FLUSH,
        b"0004" * 250_000 + FLUSH,
        (DELIM + FLUSH) * 250_000,
        FETCH[:-4] + b"0004" * 500_000 + FLUSH,
    ):
        begun = time.thread_time()
        answered, git = passed(sent)
        assert b"".join(answered) + git == sent
        upload.whole_request(Input(Far(sent, [65536])))
        assert time.thread_time() - begun < 5


def test_a_peer_that_sends_no_list_is_not_heard_to_the_end() -> None:
    """Everything was kept until its flush: as much as it pleased to send."""
    for junk, most in ((pkt_line(b"x" * 1000), 1), (pkt_line(b"a" * 40), stage.MOST_STAGED + 1)):
        sent = Far(junk * (stage.MOST_STAGED + 5000) if most > 1 else junk * 10_000, [65536])
        with pytest.raises(PeerFailed):
            stage.listed(Input(sent), "sha1")
        assert sent.read(1), "not all of it was read"
