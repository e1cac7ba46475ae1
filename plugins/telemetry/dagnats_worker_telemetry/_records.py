"""The records of the engine's TELEMETRY stream: subject, message id and body of each.

Nothing here does I/O. A span is protobuf's JSON of an OTLP span; a metric is the JSON that the Go
SDK makes of its own structures. Both come from Go, so numbers and times are written as Go does.

Source: wire protocol, section 9.4.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from opentelemetry.sdk.metrics.export import (
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    Sum,
)
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanContext, StatusCode

RUN_ID_ATTRIBUTES = ("dagnats.run.id", "run_id")
NO_RUN = "no-run"
NO_SERVICE = "unknown_service"
ZERO_TIME = "0001-01-01T00:00:00Z"
NANOSECONDS = 1_000_000_000
CUMULATIVE = "CumulativeTemporality"

_not_in_a_token = re.compile(r"[\s.*>\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Record:
    """One message of the stream.

    Attributes:
        message_id: By which the stream knows a record that it has already.
    """

    subject: str
    message_id: str
    body: bytes


def service_of(resource: Resource) -> str:
    """The name under which the console shows a process; one token of a subject."""
    name = _token(str(resource.attributes.get(SERVICE_NAME, "")))
    return name or NO_SERVICE


def span_record(span: ReadableSpan) -> Record:
    """The record of a span that has ended."""
    context = span.get_span_context()
    assert context is not None, "a span that was started has a context"
    attributes = span.attributes or {}
    found = (str(attributes[key]) for key in RUN_ID_ATTRIBUTES if key in attributes)
    run = _token(next(found, "")) or NO_RUN
    return Record(
        subject=f"telemetry.spans.{service_of(span.resource)}.{run}",
        message_id=f"{context.trace_id:032x}.{context.span_id:016x}",
        body=_encode(_span(span, context)),
    )


def metric_record(metric: Metric, service: str, at_ns: int, sequence: int) -> Record | None:
    """The record of a metric at a moment; None for a kind that the stream does not know.

    Args:
        metric: Cumulative.
        service: As ``service_of`` has it.
        at_ns: Since the epoch.
        sequence: Never the same again in this process.
    """
    data = _data(metric)
    if data is None:
        return None
    body: dict[str, Any] = {"name": metric.name}
    if metric.description:
        body["description"] = metric.description
    if metric.unit:
        body["unit"] = metric.unit
    body |= {"serviceName": service, "data": data, "timestamp": go_time(at_ns)}
    name = ".".join(filter(None, metric.name.split(".")))
    return Record(
        subject=f"telemetry.metrics.{service}.{name}",
        message_id=f"metric.{metric.name}.{at_ns}.{sequence}",
        body=_encode(body),
    )


def go_time(since_epoch_ns: int | None) -> str:
    """A time as Go's JSON has it: UTC, and no trailing zeros in the fraction."""
    if not since_epoch_ns:
        return ZERO_TIME
    seconds, rest_ns = divmod(since_epoch_ns, NANOSECONDS)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{rest_ns:09d}".rstrip("0") if rest_ns else ""
    return f"{text}{fraction}Z"


# ------------------------------------------------------------------------------------ spans


def _span(span: ReadableSpan, context: SpanContext) -> dict[str, Any]:
    """In the order of the fields in OTLP's definition; what is empty is left out."""
    trace_state = context.trace_state.to_header() if context.trace_state else ""
    body: dict[str, Any] = {
        "traceId": _base64(context.trace_id, 16),
        "spanId": _base64(context.span_id, 8),
        "traceState": trace_state,
        "parentSpanId": _base64(span.parent.span_id, 8) if span.parent else "",
        "name": span.name,
        "kind": f"SPAN_KIND_{span.kind.name}",
        "startTimeUnixNano": str(span.start_time or 0),
        "endTimeUnixNano": str(span.end_time or 0),
        "attributes": _span_attributes(span.attributes),
        "droppedAttributesCount": span.dropped_attributes,
        "events": [_event(event) for event in span.events],
        "droppedEventsCount": span.dropped_events,
        "droppedLinksCount": span.dropped_links,
    }
    filled = {key: value for key, value in body.items() if value}
    filled["status"] = _status(span)
    return filled


def _event(event: Event) -> dict[str, Any]:
    body = {
        "timeUnixNano": str(event.timestamp),
        "name": event.name,
        "attributes": _span_attributes(event.attributes),
        "droppedAttributesCount": event.dropped_attributes,
    }
    return {key: value for key, value in body.items() if value}


def _status(span: ReadableSpan) -> dict[str, str]:
    status = span.status
    if status.status_code is StatusCode.UNSET:
        return {}
    message = {"message": status.description} if status.description else {}
    return {**message, "code": f"STATUS_CODE_{status.status_code.name}"}


def _span_attributes(attributes: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    return [{"key": key, "value": _any_value(value)} for key, value in (attributes or {}).items()]


def _any_value(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": _number(value) if math.isfinite(value) else _not_finite(value)}
        case str():
            return {"stringValue": value}
        case _:
            return {"stringValue": _text(value)}


def _not_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _base64(number: int, size: int) -> str:
    return base64.b64encode(number.to_bytes(size, "big")).decode()


# ---------------------------------------------------------------------------------- metrics


def _data(metric: Metric) -> dict[str, Any] | None:
    match metric.data:
        case Sum(data_points=points, is_monotonic=monotonic):
            return {
                "DataPoints": [_number_point(point) for point in points],
                "Temporality": CUMULATIVE,
                "IsMonotonic": monotonic,
            }
        case Gauge(data_points=points):
            return {"DataPoints": [_number_point(point) for point in points]}
        case Histogram(data_points=points):
            return {
                "DataPoints": [_histogram_point(point) for point in points],
                "Temporality": CUMULATIVE,
            }
        case _:
            return None


def _number_point(point: NumberDataPoint) -> dict[str, Any]:
    return {
        "Attributes": _metric_attributes(point.attributes),
        "StartTime": go_time(point.start_time_unix_nano),
        "Time": go_time(point.time_unix_nano),
        "Value": _number(point.value),
    }


def _histogram_point(point: HistogramDataPoint) -> dict[str, Any]:
    return {
        "Attributes": _metric_attributes(point.attributes),
        "StartTime": go_time(point.start_time_unix_nano),
        "Time": go_time(point.time_unix_nano),
        "Count": point.count,
        "Bounds": _numbers(point.explicit_bounds),
        "BucketCounts": list(point.bucket_counts),
        "Min": _number(point.min),
        "Max": _number(point.max),
        "Sum": _number(point.sum),
    }


def _metric_attributes(attributes: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    return [{"Key": key, "Value": _typed(value)} for key, value in (attributes or {}).items()]


def _typed(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"Type": "BOOL", "Value": value}
        case int():
            return {"Type": "INT64", "Value": value}
        case float():
            return {"Type": "FLOAT64", "Value": _number(value)}
        case _:
            return {"Type": "STRING", "Value": _text(value)}


def _numbers(values: Sequence[float]) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    """A number as Go writes it: a whole one without a fraction, and none that JSON has not."""
    if not math.isfinite(value):
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value


# ------------------------------------------------------------------------------------- text


def _text(value: Any) -> str:
    """A value that has no type of its own in a record."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _token(text: str) -> str:
    return _not_in_a_token.sub("_", text)


def _encode(body: dict[str, Any]) -> bytes:
    """What is no text at all, such as half of a surrogate pair, becomes a question mark."""
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode(errors="replace")
