from __future__ import annotations

import pytest

from cluster.hints import Hint

AB = frozenset("ab")


@pytest.mark.parametrize(
    ("payload", "hint"),
    [
        ("", Hint()),
        ("7", Hint(7)),
        ("7 a,b", Hint(7, AB, webhooks=False)),
        ("7 a,b w", Hint(7, AB)),
        ("7 a,b by:a", Hint(7, AB, webhooks=False, by="a")),
        ("7 a,b by:a w", Hint(7, AB, by="a")),
        ("7 a,b x w", Hint(7, AB)),
        ("7 ", Hint(7, frozenset({""}), webhooks=False)),
        ("rubbish", Hint()),
        ("٧", Hint()),
        ("-7 a", Hint()),
    ],
)
def test_what_a_payload_says(payload: str, hint: Hint) -> None:
    assert Hint.of(payload) == hint


def test_whom_it_concerns() -> None:
    assert Hint.of("7").concerns("c")
    assert Hint.of("7 a,b").concerns("b")
    assert not Hint.of("7 a,b").concerns("c")
