"""Messages as the Go engine and the Go worker write them.

Method: golden vectors are decoded, built again with our own functions, and compared as parsed JSON,
order of keys included; nothing is fake.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dagnats_worker import _json
from dagnats_worker import _protocol as protocol
from dagnats_worker._envelope import unwrap_trigger
from dagnats_worker.errors import DecodeError

VECTORS = Path(__file__).parents[1] / "vectors"
WIRE = json.loads((VECTORS / "wire.json").read_text("utf-8"))
TIMESTAMPS = json.loads((VECTORS / "timestamps.json").read_text("utf-8"))
RUN = "9f86d081884c7d659a2feaa0c55ad015"

Vector = dict[str, Any]


def of_kind(*kinds: str, name: str = "") -> pytest.MarkDecorator:
    """Parametrize a test by all vectors of some kinds; a kind that is gone is an error."""
    found = [one for one in WIRE if one["kind"] in kinds and one["name"].startswith(name)]
    assert found, f"no vector of {kinds} {name}"
    return pytest.mark.parametrize("vector", found, ids=[one["name"] for one in found])


def ordered(data: bytes | str) -> Any:
    """Parsed, with the order of keys as part of the value."""
    return json.loads(data, object_pairs_hook=list)


@of_kind("task")
def test_task_decodes_and_encodes_to_the_same_message(vector: Vector) -> None:
    task = protocol.decode_task(vector["wire"].encode())
    body = vector["body"]
    for name in protocol.TaskPayload.__struct_fields__:
        value = getattr(task, name)
        if name == "input":
            assert ("input" in body) == bool(value)
            assert not value or _json.decode(bytes(value)) == body["input"]
        else:
            assert value == body.get(name, type(value)()), name
    assert ordered(protocol.encode_task(task)) == ordered(vector["wire"])


@of_kind("task")
def test_task_is_published_where_go_publishes_it(vector: Vector) -> None:
    if vector["name"] == "task.sticky":
        prefix = protocol.sticky_subject_filter("greet", "worker-3c1f9a7be2d04c58")
        assert vector["subject"] == prefix.removesuffix(">") + RUN
        return
    group = "eu" if vector["name"] == "task.worker_group" else None
    task_type = vector["subject"].removeprefix("task.").removesuffix(f".{RUN}")
    if group:
        task_type = task_type.removesuffix(f".{group}")
    assert protocol.task_subject(task_type, RUN, group) == vector["subject"]


@pytest.mark.parametrize(
    ("name", "message_id"),
    [
        ("task.first_dispatch", protocol.queued_id(RUN, "greet")),
        ("task.map_instance", protocol.queued_id(RUN, "square.map.0")),
        ("task.loop_iteration", protocol.next_iteration_id(RUN, "think", 3)),
    ],
)
def test_task_has_the_message_id_of_go(name: str, message_id: str) -> None:
    (vector,) = (one for one in WIRE if one["name"] == name)
    assert vector["headers"][protocol.HEADER_MSG_ID] == message_id


@of_kind("task_decode_case", name="decode.bad")
def test_bad_task_is_a_decode_error(vector: Vector) -> None:
    with pytest.raises(DecodeError):
        protocol.decode_task(vector["wire"].encode())


@of_kind("task_decode_case", name="decode.ok")
def test_odd_but_good_task_is_decoded(vector: Vector) -> None:
    task = protocol.decode_task(vector["wire"].encode())
    assert (task.task_id, task.run_id, task.step_id) == ("r.s", "r", "s")
    assert bytes(task.input) == (b"null" if "input" in vector["body"] else b"")


REQUESTED_DELAYS = {
    "event.failed_retry_after": timedelta(seconds=1.5),
    "event.failed_retry_after_floor": timedelta(milliseconds=20),
    "event.failed_retry_after_cap": timedelta(hours=2),
}


def built(vector: Vector) -> protocol.Event:
    """The event of a vector, from what a worker would know when it writes it."""
    body, payload = vector["body"], b""
    if body["type"] == protocol.STEP_FAILED:
        failure = body["payload"]
        delay = REQUESTED_DELAYS.get(vector["name"])
        payload = protocol.failure_payload(failure["error"], failure["failure_type"], delay)
    elif "payload" in body:
        payload = _json.encode(body["payload"])
    return protocol.Event(
        type=body["type"],
        run_id=body["run_id"],
        step_id=body.get("step_id", ""),
        timestamp=protocol.time_text(protocol.parse_time(body["timestamp"])),
        payload=msgspec.Raw(payload),
        trace_parent=vector["headers"].get("traceparent", ""),
        trace_state=vector["headers"].get("tracestate", ""),
        worker_id=body.get("worker_id", ""),
        attempt_number=body.get("attempt_number", 0),
    )


@of_kind("event")
def test_event_that_we_build_is_the_event_that_go_builds(vector: Vector) -> None:
    data = protocol.encode_event(built(vector))
    assert json.loads(data) == json.loads(vector["wire"]) == vector["body"]
    envelope = [key for key, _ in ordered(data)]
    assert envelope == [key for key, _ in ordered(vector["wire"])]


@of_kind("event")
def test_event_has_the_subject_and_the_message_id_of_go(vector: Vector) -> None:
    event = protocol.decode_event(vector["wire"].encode())
    message_id = vector["headers"][protocol.HEADER_MSG_ID]
    if event.type == protocol.STEP_CONTINUE:
        iteration, nonce = map(int, message_id.split(".")[-2:])
        assert protocol.continue_id(RUN, "think", iteration, nonce) == message_id
    else:
        parts = (event.run_id, event.step_id, event.type)
        assert protocol.go_event_id(*parts, event.attempt_number) == message_id
        assert protocol.event_id(*parts, attempt=event.attempt_number) == message_id
    assert protocol.history_subject(event.run_id) == vector["subject"]


@of_kind("event")
def test_event_decodes_and_encodes_to_the_same_message(vector: Vector) -> None:
    event = protocol.decode_event(vector["wire"].encode())
    assert ordered(protocol.encode_event(event)) == ordered(vector["wire"])
    assert bool(event.payload) == ("payload" in vector["body"])


@of_kind("event", name="event.failed")
def test_failure_is_read_back(vector: Vector) -> None:
    body = vector["body"]["payload"]
    failed = protocol.parse_failure(bytes(protocol.decode_event(vector["wire"].encode()).payload))
    assert (failed.error, failed.failure_type) == (body["error"], body["failure_type"])
    delay_ms = body.get("retry_after_ms")
    assert failed.retry_after == (delay_ms and timedelta(milliseconds=delay_ms))


def test_event_types_are_those_of_go() -> None:
    ours = {
        value
        for name, value in vars(protocol).items()
        if name.startswith(("STEP_", "WORKFLOW_")) and isinstance(value, str)
    }
    written = {vector["body"]["type"] for vector in WIRE if vector["kind"] == "event"}
    not_for_workers = {"workflow.spawn", "workflow.child.failed"}
    assert written - not_for_workers <= ours
    assert ours - written == {protocol.STEP_RELEASED, protocol.WORKFLOW_FAILED}


ACK_FRAMES = {
    "ack.ack": protocol.ACK,
    "ack.nak": protocol.nak_frame(None),
    "ack.nak_1s": protocol.nak_frame(timedelta(seconds=1)),
    "ack.nak_5s": protocol.nak_frame(timedelta(seconds=5)),
    "ack.nak_pause_30s": protocol.nak_frame(timedelta(seconds=30)),
    "ack.in_progress": protocol.IN_PROGRESS,
    "ack.term": protocol.term_frame(""),
}


@of_kind("ack")
def test_ack_is_the_frame_that_the_server_expects(vector: Vector) -> None:
    assert ACK_FRAMES[vector["name"]] == vector["wire"].encode()
    assert protocol.parse_ack_subject(vector["subject"]) == protocol.AckInfo(
        stream="TASK_QUEUES", consumer="workers-greet", deliveries=1, stream_sequence=42,
        timestamp_ns=1786017600123456789, pending=0,
    )  # fmt: skip


@of_kind("dead_letter")
def test_dead_letter_is_the_one_that_the_engine_writes(vector: Vector) -> None:
    task = protocol.decode_task(vector["wire"].encode())
    headers = protocol.dead_letter_headers(
        run_id=task.run_id,
        step_id=task.step_id,
        task_type="greet",
        error="connection refused",
        attempts=task.attempt,
        deliveries=3,
        subject=protocol.task_subject("greet", task.run_id),
    )
    assert headers == vector["headers"]
    assert protocol.dead_subject("greet", task.run_id, task.step_id) == vector["subject"]
    assert ordered(protocol.encode_task(task)) == ordered(vector["wire"])


@of_kind("core_publish", name="stream.")
def test_stream_chunk_goes_where_readers_listen(vector: Vector) -> None:
    assert protocol.stream_subject(RUN, "greet") == vector["subject"]
    assert set(vector["headers"]) <= set(protocol.TRACE_HEADERS)


@of_kind("task", name="envelope.")
def test_trigger_is_unwrapped_from_the_task_that_carries_it(vector: Vector) -> None:
    task = protocol.decode_task(vector["wire"].encode())
    envelope = vector["body"]["input"]
    assert _json.decode(unwrap_trigger(bytes(task.input))) == envelope.get("data", envelope)


@pytest.mark.parametrize("vector", TIMESTAMPS, ids=[one["json"] for one in TIMESTAMPS])
def test_time_is_written_as_go_writes_it(vector: dict[str, str]) -> None:
    unix_ns, text = int(vector["unix_nano"]), json.loads(vector["json"])
    assert protocol.time_text(unix_ns) == text
    assert protocol.parse_time(text) == unix_ns
