"""What the doctor makes of a server that has something wrong.

Method: a survey of a sound server, with one thing changed, and the findings. Real: the checks.
Fake: the survey; `tests/integration/test_doctor.py` takes real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dagnats_worker._survey import ConsumerFacts, StreamFacts, Survey
from dagnats_worker.cli._doctor import exit_code
from dagnats_worker.cli._doctor_checks import OPTIONAL_STREAMS, Finding, Served, findings

NOW = datetime.now(UTC)


def stream(name: str, *subjects: str, **fields: Any) -> StreamFacts:
    sound = {"retention": "limits", "discard": "old", "max_messages": -1, "max_bytes": -1}
    return StreamFacts(name=name, subjects=subjects, **{**sound, "messages": 0, **fields})


def consumer(name: str = "workers-resize", **fields: Any) -> ConsumerFacts:
    sound = ConsumerFacts(
        name=name,
        filters=("task.resize.>",),
        durable=True,
        sourcing=False,
        ack_policy="explicit",
        ack_wait=timedelta(minutes=5),
        max_deliver=-1,
        max_ack_pending=1000,
        unacked=0,
        queued=0,
        pulls=1,
        pulls_max=512,
        created_at=NOW,
        active_at=NOW,
    )
    return replace(sound, **fields)


SOUND_STREAMS = {
    one.name: one
    for one in (
        stream("TASK_QUEUES", "task.>", retention="workqueue"),
        stream("WORKFLOW_HISTORY", "history.>"),
        stream("DEAD_LETTERS", "dead.>"),
        *(stream(name, "any") for name in OPTIONAL_STREAMS),
    )
}
SOUND = Survey(
    url="nats://127.0.0.1:4222",
    version=(2, 15, 1),
    round_trip=timedelta(milliseconds=1),
    clock_ahead=timedelta(0),
    store_used=0,
    store_max=-1,
    streams=SOUND_STREAMS,
    consumers=(consumer(),),
    queued={"task.resize.r-1": 1},
)


def with_stream(one: StreamFacts) -> Survey:
    return replace(SOUND, streams={**SOUND_STREAMS, one.name: one})


def without_stream(name: str) -> Survey:
    return replace(SOUND, streams={k: v for k, v in SOUND_STREAMS.items() if k != name})


def with_consumer(**fields: Any) -> Survey:
    return replace(SOUND, consumers=(consumer(**fields),))


def wrong(found: Survey, served: Sequence[Served] = ()) -> list[Finding]:
    return [one for one in findings(found, served) if one.level != "ok"]


GROUP = stream("TASK_QUEUES-workers-resize", sources=("task.resize.>",), retention="workqueue")
LONG_AGO = NOW - timedelta(days=8)

CASES: dict[str, tuple[Survey, str, str, str]] = {
    "tasks stream missing": (without_stream("TASK_QUEUES"), "stops", "TASK_QUEUES", "setup"),
    "history missing": (without_stream("WORKFLOW_HISTORY"), "stops", "HISTORY", "setup"),
    "bucket missing": (without_stream("KV_signals"), "warning", "signals fail", "setup"),
    "not a work queue": (
        with_stream(stream("TASK_QUEUES", "task.>")),
        "stops",
        "'limits'",
        "delete it",
    ),
    "other subjects": (
        with_stream(stream("DEAD_LETTERS", "x.>")),
        "stops",
        "takes x.>",
        "delete it",
    ),
    "tasks discarded": (
        with_stream(stream("TASK_QUEUES", "task.>", retention="workqueue", max_messages=10)),
        "warning",
        "discards its oldest tasks",
        "--discard=new",
    ),
    "clock ahead": (
        replace(SOUND, clock_ahead=timedelta(seconds=9)),
        "warning",
        "ahead of",
        "synchronise",
    ),
    "clock behind": (
        replace(SOUND, clock_ahead=timedelta(seconds=-9)),
        "warning",
        "behind",
        "synchronise",
    ),
    "store nearly full": (
        replace(SOUND, store_used=85, store_max=100),
        "warning",
        "85%",
        "raise",
    ),
    "not allowed to look": (
        replace(SOUND, denied=("$JS.API.INFO",)),
        "warning",
        "$JS.API.INFO",
        "let this user",
    ),
    "many unacked": (with_consumer(unacked=800), "warning", "800 unacked", "--max-pending"),
    "many pulls": (with_consumer(pulls=500), "warning", "500 open pulls", "--max-tasks"),
    "acks are not explicit": (with_consumer(ack_policy="none"), "stops", "'none'", "consumer rm"),
    "deliveries are limited": (with_consumer(max_deliver=3), "warning", "3 times", "max-deliver"),
    "short lease": (
        with_consumer(ack_wait=timedelta(seconds=1)),
        "warning",
        "AckWait of 1.0 s",
        "ack_wait=",
    ),
    "nobody pulls": (
        with_consumer(pulls=0, queued=3),
        "warning",
        "3 queued tasks",
        "start a worker",
    ),
    "orphan": (
        with_consumer(pulls=0, active_at=LONG_AGO),
        "warning",
        "orphan",
        "consumer rm",
    ),
    "never used orphan": (
        with_consumer(pulls=0, active_at=None, created_at=LONG_AGO),
        "warning",
        "orphan",
        "rm",
    ),
    "unserved tasks": (
        replace(SOUND, queued={"task.mail.eu.r-1": 2, "task.mail.eu.r-2": 1}),
        "warning",
        "mail.eu (3 tasks)",
        "start a worker",
    ),
    "plain beside a group": (with_stream(GROUP), "stops", "runs twice", "delete the group"),
}


def test_sound_server_has_nothing_wrong() -> None:
    assert wrong(SOUND) == []
    assert exit_code(list(findings(SOUND))) == 0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_wrong_is_said_with_its_remedy(case: str) -> None:
    found, level, what, remedy = CASES[case]
    (finding,) = wrong(found)
    assert finding.level == level
    assert what in finding.what
    assert remedy in finding.remedy
    assert exit_code([finding]) == {"warning": 1, "stops": 2}[level]


@pytest.mark.parametrize(
    "found",
    [
        with_consumer(pulls=0),
        with_consumer(pulls=0, unacked=3, queued=9),
        with_consumer(unacked=799),
        replace(SOUND, clock_ahead=None),
        replace(SOUND, consumers=(consumer("JS_SRC_x", sourcing=True, ack_policy="none"),)),
        replace(
            SOUND,
            consumers=(),
            streams={**SOUND_STREAMS, GROUP.name: GROUP},
        ),
        replace(SOUND, streams=None),
        replace(SOUND, consumers=None),
    ],
    ids=[
        *("no worker now", "busy", "not so many", "no clock", "source of a group"),
        *("a group alone", "streams not seen", "consumers not seen"),
    ],
)
def test_what_is_right_is_not_complained_about(found: Survey) -> None:
    assert wrong(found) == []


# ------------------------------------------------------------------------- one worker


def test_worker_whose_durable_is_there_or_will_be_is_fine() -> None:
    assert wrong(SOUND, [Served("resize", None, None), Served("mail", "eu", None)]) == []


def test_durable_of_another_task_type_stops_a_worker() -> None:
    found = replace(SOUND, consumers=(consumer("workers-a-b", filters=("task.a.b.>",)),))
    (finding,) = wrong(replace(found, queued={}), [Served("a-b", None, None)])
    assert (finding.level, "rename" in finding.remedy) == ("stops", True)


def test_overlapping_consumer_stops_a_worker() -> None:
    named = replace(SOUND, consumers=(consumer("billing", filters=("task.>",)),))
    (finding,) = wrong(named, [Served("resize", "gpu", None)])
    assert finding.level == "stops"
    assert "billing" in finding.what


def test_other_lease_is_a_warning() -> None:
    (finding,) = wrong(SOUND, [Served("resize", None, timedelta(seconds=30))])
    assert finding.level == "warning"
    assert "change to 30 s" in finding.what
