"""What goes into the engine's TELEMETRY stream, byte by byte.

Method: spans and metrics are built as the SDK builds them, and their records compared with golden
vectors. Real: the SDK's data. Fake: nothing; there is no I/O.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from dagnats_worker_telemetry._records import (
    Record,
    go_time,
    metric_record,
    service_of,
    span_record,
)

WIRE = json.loads((Path(__file__).parents[2] / "vectors" / "wire.json").read_text())
VECTORS = {one["name"]: one for one in WIRE}
TRACE, SPAN, PARENT = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0xB7AD6B7169203331, 0x00F067AA0BA902B7
RUN = "9f86d081884c7d659a2feaa0c55ad015"
CUMULATIVE = AggregationTemporality.CUMULATIVE
AT_NS = 1_786_017_610_000_000_001
START_NS, END_NS = 1_786_017_600_000_000_000, 1_786_017_610_000_000_000
BOUNDS = (0, 5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000)


def a_span(**changes: Any) -> ReadableSpan:
    """The span of the vector, with changes."""
    fields: dict[str, Any] = {
        "name": "executeTask greet",
        "context": context_of(SPAN),
        "parent": context_of(PARENT),
        "resource": Resource({"service.name": "py-worker"}),
        "attributes": {
            "run_id": RUN,
            "step_id": "greet",
            "task_name": "greet",
            "workflow_name": "hello",
        },
        "kind": SpanKind.SERVER,
        "start_time": 1_786_017_600_123_456_789,
        "end_time": 1_786_017_600_223_456_789,
    }
    return ReadableSpan(**fields | changes)


def context_of(span_id: int, trace_state: TraceState | None = None) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED)
    return SpanContext(TRACE, span_id, is_remote=False, trace_flags=flags, trace_state=trace_state)


def assert_is(record: Record | None, vector: str) -> None:
    expected = VECTORS[vector]
    assert record is not None
    assert record.subject == expected["subject"]
    assert record.message_id == expected["headers"]["Nats-Msg-Id"]
    assert record.body.decode() == expected["wire"]


def body_of(record: Record | None) -> dict[str, Any]:
    assert record is not None
    body: dict[str, Any] = json.loads(record.body)
    return body


# ------------------------------------------------------------------------------------ spans


def test_span_is_the_vector() -> None:
    assert_is(span_record(a_span()), "telemetry.span")


def test_span_with_everything_has_the_keys_of_otlp() -> None:
    trace_state = TraceState([("vendor", "1")])
    event = Event("exception", {"exception.message": "bröken"}, timestamp=7)
    span = a_span(
        context=context_of(SPAN, trace_state),
        parent=None,
        kind=SpanKind.INTERNAL,
        events=[event],
        status=Status(StatusCode.ERROR, "broken"),
    )
    body = body_of(span_record(span))
    assert list(body) == [
        *("traceId", "spanId", "traceState", "name", "kind"),
        *("startTimeUnixNano", "endTimeUnixNano", "attributes", "events", "status"),
    ]
    assert body["traceState"] == "vendor=1"
    assert body["kind"] == "SPAN_KIND_INTERNAL"
    assert body["status"] == {"message": "broken", "code": "STATUS_CODE_ERROR"}
    assert body["events"] == [
        {
            "timeUnixNano": "7",
            "name": "exception",
            "attributes": [{"key": "exception.message", "value": {"stringValue": "bröken"}}],
        }
    ]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (Status(StatusCode.UNSET), {}),
        (Status(StatusCode.OK), {"code": "STATUS_CODE_OK"}),
        (Status(StatusCode.ERROR), {"code": "STATUS_CODE_ERROR"}),
    ],
)
def test_status_is_always_there(status: Status, expected: dict[str, str]) -> None:
    assert body_of(span_record(a_span(status=status)))["status"] == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, {"boolValue": True}),
        (1 << 60, {"intValue": "1152921504606846976"}),
        (1.5, {"doubleValue": 1.5}),
        (2.0, {"doubleValue": 2}),
        (float("nan"), {"doubleValue": "NaN"}),
        (float("-inf"), {"doubleValue": "-Infinity"}),
        ("<&>", {"stringValue": "<&>"}),
        (("a", "b"), {"stringValue": '["a", "b"]'}),
        ("half \ud800", {"stringValue": "half ?"}),
    ],
)
def test_attribute_has_the_type_of_its_value(value: Any, expected: dict[str, Any]) -> None:
    body = body_of(span_record(a_span(attributes={"it": value})))
    assert body["attributes"] == [{"key": "it", "value": expected}]


@pytest.mark.parametrize(
    ("attributes", "token"),
    [
        ({"dagnats.run.id": "a", "run_id": "b"}, "a"),
        ({"run_id": "b"}, "b"),
        ({"run_id": "b.* >c"}, "b_c"),
        ({"run_id": ""}, "no-run"),
        ({}, "no-run"),
    ],
)
def test_run_is_one_token_of_the_subject(attributes: dict[str, str], token: str) -> None:
    record = span_record(a_span(attributes=attributes))
    assert record.subject == f"telemetry.spans.py-worker.{token}"


@pytest.mark.parametrize(
    ("name", "token"),
    [("py-worker", "py-worker"), ("my.own service", "my_own_service"), ("", "unknown_service")],
)
def test_service_is_one_token_of_the_subject(name: str, token: str) -> None:
    assert service_of(Resource({"service.name": name})) == token


# ---------------------------------------------------------------------------------- metrics


def a_sum(*points: NumberDataPoint, monotonic: bool = False) -> Metric:
    data = Sum(list(points), CUMULATIVE, is_monotonic=monotonic)
    return Metric("worker.tasks.active", "", "", data)


def a_number(value: float, **attributes: Any) -> NumberDataPoint:
    return NumberDataPoint(attributes, START_NS, END_NS, value)


def test_up_down_counter_is_the_vector() -> None:
    record = metric_record(a_sum(a_number(1)), "py-worker", AT_NS, 2)
    assert_is(record, "telemetry.metric_sum")


def test_histogram_is_the_vector() -> None:
    counts = [0, 1, 0, 1, *[0] * 12]
    point = HistogramDataPoint({}, START_NS, END_NS, 2, 23.0, counts, BOUNDS, min=3.0, max=20.0)
    metric = Metric("step.duration_ms", "", "", Histogram([point], CUMULATIVE))
    assert_is(metric_record(metric, "py-worker", AT_NS, 1), "telemetry.metric_histogram")


def test_attributes_of_a_metric_have_their_types() -> None:
    point = a_number(1, text="a", number=2, part=0.5, yes=True)
    body = body_of(metric_record(a_sum(point, monotonic=True), "s", AT_NS, 1))
    assert body["data"]["IsMonotonic"] is True
    assert body["data"]["DataPoints"][0]["Attributes"] == [
        {"Key": "text", "Value": {"Type": "STRING", "Value": "a"}},
        {"Key": "number", "Value": {"Type": "INT64", "Value": 2}},
        {"Key": "part", "Value": {"Type": "FLOAT64", "Value": 0.5}},
        {"Key": "yes", "Value": {"Type": "BOOL", "Value": True}},
    ]


def test_gauge_has_points_only_and_unit_and_description_where_there_are() -> None:
    point = NumberDataPoint({}, None, END_NS, 0.25)
    metric = Metric("loop.lag", "How late", "s", Gauge([point]))
    body = body_of(metric_record(metric, "s", AT_NS, 1))
    assert (body["description"], body["unit"]) == ("How late", "s")
    assert list(body["data"]) == ["DataPoints"]
    assert body["data"]["DataPoints"][0]["StartTime"] == "0001-01-01T00:00:00Z"


def test_metric_of_another_kind_has_no_record() -> None:
    metric = Metric("x", "", "", ExponentialHistogram([], CUMULATIVE))
    assert metric_record(metric, "s", AT_NS, 1) is None


def test_metric_name_with_dots_at_its_ends_is_no_bad_subject() -> None:
    metric = Metric("a..b.", "", "", a_sum(a_number(1)).data)
    record = metric_record(metric, "s", AT_NS, 1)
    assert record is not None
    assert record.subject == "telemetry.metrics.s.a.b"


@pytest.mark.parametrize(
    ("since_epoch_ns", "text"),
    [
        (START_NS, "2026-08-06T12:00:00Z"),
        (START_NS + 1, "2026-08-06T12:00:00.000000001Z"),
        (START_NS + 120_000_000, "2026-08-06T12:00:00.12Z"),
        (None, "0001-01-01T00:00:00Z"),
    ],
)
def test_time_is_written_as_go_does(since_epoch_ns: int | None, text: str) -> None:
    assert go_time(since_epoch_ns) == text
