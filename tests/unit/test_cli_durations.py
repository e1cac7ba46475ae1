"""Durations as text.

Method: tables of texts and values. Real: all of it. Fake: nothing.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagnats_worker._durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("2d", 172800),
        ("250us", 0.00025),
        (" 1s ", 1),
        ("0s", 0),
    ],
)
def test_number_and_unit_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["30", "1.5", "0"])
def test_bare_number_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' has no unit; write {text}s for seconds"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "s", "3x", "-3s", "3s4", "3 s", "1e3s", "٣s", "x" * 1000])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration; write numbers with units") as caught:
        parse_duration(text)
    assert len(str(caught.value)) < 200


def test_longer_than_a_timedelta_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than a duration can be"):
        parse_duration("9999999999d")


@given(st.text(max_size=80))
def test_no_text_raises_anything_but_value_error(text: str) -> None:
    with suppress(ValueError):
        assert parse_duration(text) >= timedelta(0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0123, "12 ms"),
        (0.9996, "1.0 s"),
        (1.44, "1.4 s"),
        (30, "30 s"),
        (59.96, "1 m 0 s"),
        (125, "2 m 5 s"),
        (11400, "3 h 10 m"),
    ],
)
def test_people_read_a_number_and_a_unit(seconds: float, text: str) -> None:
    assert format_duration(timedelta(seconds=seconds)) == text
