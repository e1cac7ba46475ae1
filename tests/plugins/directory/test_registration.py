"""An entry is read as Go reads it, and written as Go writes it.

Method: the golden vectors, and texts written by hand. Real: the encoding. Fake: nothing.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from dagnats_worker.errors import DecodeError
from dagnats_worker_directory import Report, WorkerRegistration
from dagnats_worker_directory._registration import parse_time, time_text

VECTORS = Path(__file__).parents[2] / "vectors"
PUTS = [
    one
    for one in json.loads((VECTORS / "wire.json").read_text())
    if one["name"].startswith("kv.worker_directory") and one["kind"] == "kv_put"
]
TIMES = json.loads((VECTORS / "timestamps.json").read_text())
LEAST = '"worker_id":"w","last_seen":"2026-08-06T12:00:00Z"'


def decoded(text: str) -> WorkerRegistration:
    return WorkerRegistration.decode(text.encode())


def test_there_are_vectors() -> None:
    assert len(PUTS) == 2
    assert len(TIMES) >= 6


@pytest.mark.parametrize("put", PUTS, ids=lambda put: put["name"])
def test_entry_of_the_vectors_is_written_byte_for_byte_as_it_was_read(put: dict[str, Any]) -> None:
    worker = decoded(put["wire"])
    assert worker.encode() == put["wire"].encode()
    body = put["body"]
    assert worker.worker_id == body["worker_id"]
    assert worker.task_types == tuple(body["task_types"])
    assert worker.max_tasks == body["max_tasks"]
    assert worker.metadata == body.get("metadata", {})
    assert worker.last_seen_at == datetime(2026, 8, 6, 12, 0, 0, 123456, UTC)


@pytest.mark.parametrize("time", TIMES, ids=lambda time: time["json"])
def test_time_is_written_as_go_writes_it(time: dict[str, str]) -> None:
    unix_ns = int(time["unix_nano"])
    assert json.dumps(time_text(unix_ns)) == time["json"]
    read = parse_time(json.loads(time["json"]))
    assert round(read.timestamp() * 1e6) == unix_ns // 1000


def test_text_is_escaped_as_go_escapes_it() -> None:
    worker = WorkerRegistration(
        "w", ("a<b>&c\u2028",), hostname="é\ud800", metadata={"b": "2", "a": "1"}
    )
    assert worker.encode().decode() == (
        '{"worker_id":"w","task_types":["a\\u003cb\\u003e\\u0026c\\u2028"],"language":"python",'
        '"transport":"nats","max_tasks":0,"metadata":{"a":"1","b":"2"},"hostname":"é\ufffd",'
        '"last_seen":"0001-01-01T00:00:00Z"}'
    )


def test_names_are_read_in_any_case_and_the_last_of_two_counts() -> None:
    worker = decoded('{"Worker_ID":"a","WORKER_ID":"b","hostNAME":"h","other":{"pid":1},"pid":7}')
    assert (worker.worker_id, worker.hostname, worker.pid) == ("b", "h", 7)


def test_names_within_metadata_are_kept_as_they_are() -> None:
    worker = decoded('{"metadata":{"A":"1","a":"2","a":"3","n":null}}')
    assert worker.metadata == {"A": "1", "a": "3", "n": ""}


def test_what_is_absent_or_null_is_nothing() -> None:
    nothing = WorkerRegistration("", language="", transport="")
    assert decoded("{}") == nothing
    nulls = ",".join(f'"{name}":null' for name in json.loads(nothing.encode()))
    assert decoded("{" + nulls + ',"metadata":null,"pid":null}') == nothing
    assert decoded('{"task_types":["a"],"task_types":null}').task_types == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "not an object"),
        ('"w"', "not an object"),
        ("{} x", "Extra data"),
        ('{"worker_id":7}', "worker_id is not a text: 7"),
        ('{"task_types":"a"}', "task_types is not a list"),
        ('{"task_types":{}}', "task_types is not a list"),
        ('{"task_types":[1]}', "task_types is not a text: 1"),
        ('{"max_tasks":2.0}', "max_tasks is not an integer: 2.0"),
        ('{"max_tasks":2e0}', "max_tasks is not an integer"),
        ('{"max_tasks":true}', "max_tasks is not an integer: True"),
        ('{"max_tasks":9223372036854775808}', "max_tasks is not an integer"),
        ('{"max_tasks":NaN}', "NaN is not JSON"),
        ('{"metadata":{"a":1}}', "metadata is not a text: 1"),
        ('{"metadata":[]}', "metadata is not an object"),
        ('{"last_seen":"2026-08-06 12:00:00Z"}', "is not an RFC 3339 time"),
        ('{"last_seen":"2026-08-06T12:00:00+0000"}', "is not an RFC 3339 time"),
        ('{"last_seen":"2026-13-06T12:00:00Z"}', "is not an RFC 3339 time"),
        ('{"last_seen":1}', "last_seen is not a text: 1"),
        ("[" * 100_000, "not an entry"),
    ],
    ids=lambda value: value[:40],
)
def test_what_is_no_entry_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(DecodeError, match=r"^not an entry of the directory: ") as refused:
        decoded(text)
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 400


@given(some.binary() | some.text().map(str.encode))
def test_whatever_the_bytes_they_are_read_or_refused(data: bytes) -> None:
    with suppress(DecodeError):
        WorkerRegistration.decode(data)


TEXTS = some.text(some.characters(exclude_categories=["Cs"]))


@given(
    some.builds(
        WorkerRegistration,
        worker_id=TEXTS,
        task_types=some.lists(TEXTS).map(tuple),
        language=TEXTS,
        transport=TEXTS,
        max_tasks=some.integers(-(2**63), 2**63 - 1),
        metadata=some.dictionaries(TEXTS, TEXTS),
        pid=some.integers(0, 2**63 - 1),
        hostname=TEXTS,
        version=TEXTS,
        last_seen=some.integers(0, 2**62).map(time_text),
    )
)
def test_what_is_written_is_read_as_the_same(worker: WorkerRegistration) -> None:
    assert WorkerRegistration.decode(worker.encode()) == worker


# ------------------------------------------------------------------------- the report


def test_report_comes_back_from_the_metadata() -> None:
    report = Report(
        state="draining",
        slots_in_use=3,
        slots=64,
        groups=("eu", "gpu"),
        core="0.1.0",
        python="3.11.7",
        plugins={"directory": "0.1.0", "own": "1 (failed)"},
        started_at="2026-08-06T12:00:00Z",
        loop_blocked_s=12,
        more={"zone": "eu"},
    )
    metadata = report.to_metadata()
    assert metadata["load"] == "3/64"
    assert all(isinstance(text, str) for text in metadata.values())
    assert Report.from_metadata(metadata) == report


@pytest.mark.parametrize("load", ["", "x", "3", "-1/2", "3/x", "9" * 5000 + "/1", "٣/٤"])
def test_metadata_of_somebody_else_breaks_nothing(load: str) -> None:
    report = Report.from_metadata({"load": load, "loop_blocked_s": "soon", "zone": "eu"})
    assert None in (report.slots_in_use, report.slots)
    assert (report.loop_blocked_s, report.more) == (0, {"zone": "eu"})


def test_worker_of_go_has_an_empty_report() -> None:
    assert decoded(PUTS[0]["wire"]).report == Report()
