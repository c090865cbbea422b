"""A page of a list that was read whole: its answer is bounded, whatever the list is."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

from fastapi import Query

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=1000)]
After = Annotated[str | None, Query(max_length=500, description="`next` of the page before")]


def page(
    items: Iterable[T],
    name: str,
    key: Callable[[T], str],
    document: Callable[[T], dict[str, Any]],
    *,
    limit: int,
    after: str | None,
) -> dict[str, Any]:
    """`limit` of the items, in the order of their keys, behind the one whose key is `after`, which may be gone."""
    ordered = sorted(items, key=key)
    start = bisect_right(ordered, after, key=key) if after is not None else 0
    shown = ordered[start : start + limit]
    more = start + limit < len(ordered)
    return {name: [document(item) for item in shown], "next": key(shown[-1]) if more else None}
