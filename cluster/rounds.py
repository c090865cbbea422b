"""All replicas of a device, a page at a time and in no hurry, however many there are.

Some work is about every replica: is its disk ahead of the database, did a crash leave something, are its refs still its
own. With a thousand replicas that is done at once; with a million it must neither hold them all in memory, nor keep the
database or the disk busy. So they are read in pages, by the ids of their repositories, and between two pages whoever
goes through them rests for some times as long as the page took.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event

from cluster.db import Database, Held

PAGE = 500
"""Replicas in a page: some 200 kB, and a few milliseconds of the database's time."""


def pages(db: Database, device: str) -> Iterator[list[Held]]:
    """Page after page; the last one may be empty. DatabaseUnavailable."""
    after = 0
    while True:
        page = db.held_page(device, after=after, limit=PAGE)
        yield page
        if len(page) < PAGE:
            return
        after = page[-1].repository_id


def paced(db: Database, device: str, stop: Event, *, rest: float) -> Iterator[Held]:
    """One replica after another, without those of deleted repositories, until `stop` is set. rest: for so many times
    as long as a page took, the next one is not read. DatabaseUnavailable."""
    begun = time.monotonic()
    for number, page in enumerate(pages(db, device)):
        if number and stop.wait(rest * (time.monotonic() - begun)):
            return
        begun = time.monotonic()
        for held in page:
            if stop.is_set():
                return
            if held.named:
                yield held
