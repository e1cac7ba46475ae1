"""Which of two attempts is the newer one, case by case.

Method: attempts are compared. Fake: the messages that brought them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dagnats_worker_checkpoint._writer import CLOCKS_DIFFER_BY_NS, WRITER_HEADER, Writer

MOMENT_NS = 1_790_000_000_000_000_000
FIRST = Writer("TASK_QUEUES", 7, MOMENT_NS, 1, "worker-a")

REDELIVERED = replace(FIRST, delivery=2, worker_id="worker-b")
RETRIED = replace(FIRST, sequence=9, timestamp_ns=MOMENT_NS + 1000, worker_id="worker-b")
STICKY = replace(FIRST, stream="STICKY_TASKS", sequence=90)
RETRIED_AFTER_STICKY = replace(FIRST, timestamp_ns=MOMENT_NS + 2 * CLOCKS_DIFFER_BY_NS)


@pytest.mark.parametrize(
    ("newer", "older"),
    [
        pytest.param(REDELIVERED, FIRST, id="redelivered"),
        pytest.param(replace(FIRST, delivery=10), replace(FIRST, delivery=9), id="not as texts"),
        pytest.param(RETRIED, FIRST, id="a new message"),
        pytest.param(RETRIED, replace(FIRST, delivery=5), id="a new message, delivered once"),
        pytest.param(RETRIED_AFTER_STICKY, STICKY, id="another stream"),
    ],
)
def test_newer_attempt_supersedes_the_older_one(newer: Writer, older: Writer) -> None:
    assert older.is_superseded_by(newer)
    assert not newer.is_superseded_by(older)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(FIRST, FIRST, id="itself"),
        pytest.param(
            FIRST, replace(STICKY, timestamp_ns=MOMENT_NS + CLOCKS_DIFFER_BY_NS), id="two clocks"
        ),
        pytest.param(FIRST, replace(RETRIED, sequence=1), id="the stream was made anew"),
        pytest.param(
            FIRST, replace(RETRIED, timestamp_ns=MOMENT_NS - 1), id="a clock was set back"
        ),
    ],
)
def test_what_cannot_be_told_supersedes_nobody(one: Writer, other: Writer) -> None:
    assert not one.is_superseded_by(other)
    assert not other.is_superseded_by(one)


def test_two_who_write_with_one_number_do_not_write_over_each_other() -> None:
    other = replace(FIRST, worker_id="worker-b")
    assert FIRST.is_superseded_by(other)


def test_attempt_that_finds_its_own_number_taken_is_the_later_one() -> None:
    later = replace(FIRST, worker_id="worker-b").after(FIRST, doubtful=False)
    assert later.delivery == 2
    assert FIRST.is_superseded_by(later)


def test_doubtful_number_does_not_count() -> None:
    found = replace(FIRST, delivery=3)
    assert replace(FIRST, worker_id="worker-b").after(found, doubtful=True).delivery == 4
    assert replace(FIRST, delivery=5).after(found, doubtful=True).delivery == 5
    assert FIRST.after(found, doubtful=False) == FIRST
    assert FIRST.after(RETRIED, doubtful=True) == FIRST


def test_attempt_is_read_from_its_header() -> None:
    assert Writer.read({WRITER_HEADER: FIRST.header()}) == FIRST


@pytest.mark.parametrize("text", ["", "TASK_QUEUES 7", "TASK_QUEUES x 1 1 worker", "a b c d e f"])
def test_header_that_is_not_readable_is_none(text: str) -> None:
    assert Writer.read({WRITER_HEADER: text}) is None
    assert Writer.read({}) is None
