"""The wire layer. Method: bytes and values in, values and bytes out; everything is real."""

from __future__ import annotations

import json
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dagnats_worker import _protocol as protocol
from dagnats_worker._outcome import Failed, FailureType
from dagnats_worker.errors import DecodeError

RUN = "9f86d081884c7d659a2feaa0c55ad015"


def task_bytes(**fields: Any) -> bytes:
    return json.dumps({"task_id": "r.s", "run_id": "r", "step_id": "s"} | fields).encode()


# Task messages


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"", "truncated"),
        (b"not json", "JSON"),
        (b"[]", "object"),
        (b"null", "object"),
        (task_bytes() + b"x", "trailing"),
        (task_bytes(run_id=7), "run_id"),
        (task_bytes(step_id=["s"]), "step_id"),
        (task_bytes(attempt="2"), "attempt"),
        (task_bytes(attempt=2.0), "attempt"),
        (task_bytes(attempt=2**63), "attempt"),
        (task_bytes(attempt=10**30), "attempt"),
        (task_bytes(iteration=True), "iteration"),
        (b'{"run_id":"r","step_id":"s","attempt":2e0}', "attempt"),
        (task_bytes(metadata={"a": 1}), "metadata"),
        (task_bytes(required_capabilities="a"), "required_capabilities"),
        (task_bytes(workflow_name={}), "workflow_name"),
        (task_bytes(run_id=""), "run_id"),
        (task_bytes(step_id=""), "step_id"),
        (task_bytes(run_id=None), "run_id"),
        (b'{"step_id":"s"}', "run_id"),
        (b'{"run_id":"r"}', "step_id"),
        (b'{"run_id":"r","step_id":"s","input":NaN}', "JSON"),
        (b'{"run_id":"r","step_id":"s","input":[1,]}', "JSON"),
        (b'{"task_id":"r.s","run_id":"r","step_id":"s","input":"\xff"}', "utf-8"),
        (b'{"run_id":"r","step_id":"s","input":"\xff"}', "utf-8"),
        (b'{"run_id":"r","step_id":"s","future":{"a":"\xff"}}', "utf-8"),
        (b'{"run_id":"\xff","step_id":"s"}', "utf-8"),
        (b'{"run_id":"r","step_id":"s","input":' + b"[" * 100_000, "recursion"),
    ],
)
def test_bad_task_is_a_decode_error_that_names_the_field(data: bytes, names: str) -> None:
    with pytest.raises(DecodeError, match=names) as caught:
        protocol.decode_task(data)
    assert str(caught.value).startswith("task message: ")


@pytest.mark.parametrize("run_id", ["a.b", "a b", "a*", ">", "a\n", "a\x7f", "a\u2003b", "r" * 257])
def test_run_id_that_is_not_one_subject_token_is_refused(run_id: str) -> None:
    with pytest.raises(DecodeError, match="run_id"):
        protocol.decode_task(task_bytes(run_id=run_id))


@pytest.mark.parametrize("run_id", ["r", RUN, "a-b_c", "größe", "r" * 256])
def test_run_id_is_any_subject_token(run_id: str) -> None:
    assert protocol.decode_task(task_bytes(run_id=run_id)).run_id == run_id


@pytest.mark.parametrize("step_id", ["s\r\nNats-Msg-Id: x", "s\x00", "s" * 1025])
def test_step_id_that_no_header_can_carry_is_refused(step_id: str) -> None:
    with pytest.raises(DecodeError, match="step_id"):
        protocol.decode_task(task_bytes(step_id=step_id))


@pytest.mark.parametrize("step_id", ["s", "square.map.7", "plan.a b", "größe", "s" * 1024])
def test_step_id_is_any_line_of_text(step_id: str) -> None:
    assert protocol.decode_task(task_bytes(step_id=step_id)).step_id == step_id


def test_absent_input_is_empty_and_null_is_four_bytes() -> None:
    assert bytes(protocol.decode_task(task_bytes()).input) == b""
    assert bytes(protocol.decode_task(task_bytes(input=None)).input) == b"null"
    assert bytes(protocol.decode_task(task_bytes(input=None, future=1)).input) == b"null"


def test_numbers_in_the_input_are_kept_as_written() -> None:
    literals = b"[1.0,1e400,123456789012345678901234567890,-0]"
    for extra in (b"", b'"future":1,'):
        data = b'{%s"run_id":"r","step_id":"s","input":%s}' % (extra, literals)
        assert bytes(protocol.decode_task(data).input) == literals


@pytest.mark.parametrize("data", [b'{"run_id":"r","step_id":"s"}', task_bytes(task_id="")])
def test_missing_task_id_is_derived(data: bytes) -> None:
    assert protocol.decode_task(data).task_id == "r.s"


def test_null_leaves_the_zero_value() -> None:
    optional = dict.fromkeys(
        ["task_id", "iteration", "attempt", "metadata", "required_capabilities", "dispatch_nonce",
         "workflow_name", "traceparent", "tracestate"]
    )  # fmt: skip
    assert protocol.decode_task(task_bytes(**optional)) == protocol.decode_task(task_bytes())


def test_keys_match_in_any_case() -> None:
    data = (
        b'{"RUN_ID":"r","Step_Id":"s","Attempt":2,"INPUT":{"A":1},"ta\xc5\xbfk_id":"t","Input2":3}'
    )
    task = protocol.decode_task(data)
    assert (task.run_id, task.step_id, task.attempt, task.task_id) == ("r", "s", 2, "t")
    assert bytes(task.input) == b'{"A":1}'


def test_optional_key_in_another_case_is_not_lost() -> None:
    assert bytes(protocol.decode_task(task_bytes(Input=1)).input) == b"1"
    assert protocol.decode_task(task_bytes(Attempt=3)).attempt == 3


@pytest.mark.parametrize(
    "data",
    [
        b'{"run_id":"a","step_id":"s","run_id":"b"}',
        b'{"run_id":"a","step_id":"s","Run_Id":"b"}',
        b'{"Run_Id":"a","step_id":"s","run_id":"b"}',
        b'{"run_id":"b","step_id":"s","Run_Id":null}',
    ],
)
def test_last_of_repeated_keys_wins(data: bytes) -> None:
    assert protocol.decode_task(data).run_id == "b"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (rb'"cut \ud83d"', "cut \ufffd"),
        (rb'"\udc00\ud800"', "\ufffd\ufffd"),
        (rb'"\uD83D\uDE00 \ud83dx"', "\U0001f600 \ufffdx"),
        (rb'"\\ud800 \\\ud800 \n"', "\\ud800 \\\ufffd \n"),
    ],
)
def test_half_of_a_surrogate_pair_is_the_replacement_character(written: bytes, read: str) -> None:
    task = protocol.decode_task(b'{"run_id":"r","step_id":"s","input":%s}' % written)
    assert msgspec.json.decode(task.input) == read


def test_task_is_written_in_the_order_of_go_without_what_is_empty() -> None:
    task = protocol.TaskPayload(
        task_id="r.s",
        run_id="r",
        step_id="s",
        workflow_name="w",
        attempt=2,
        input=msgspec.Raw(b"1"),
    )
    assert protocol.encode_task(task) == (
        b'{"task_id":"r.s","run_id":"r","step_id":"s","attempt":2,"input":1,"workflow_name":"w"}'
    )


def test_input_of_no_bytes_is_left_out_whoever_made_it() -> None:
    task = protocol.TaskPayload("r.s", "r", "s", input=msgspec.Raw(b""))
    assert protocol.encode_task(task) == b'{"task_id":"r.s","run_id":"r","step_id":"s"}'


# Events


def test_event_is_written_in_the_order_of_go_without_what_is_empty() -> None:
    event = protocol.Event(
        attempt_number=2, worker_id="w", trace_state="v=1", trace_parent="p", run_id="r",
        payload=msgspec.Raw(b"null"), timestamp="t", step_id="s", type=protocol.STEP_COMPLETED,
    )  # fmt: skip
    assert protocol.encode_event(event) == (
        b'{"type":"step.completed","run_id":"r","step_id":"s","timestamp":"t","payload":null,'
        b'"trace_parent":"p","trace_state":"v=1","worker_id":"w","attempt_number":2}'
    )
    bare = protocol.Event(protocol.WORKFLOW_CANCELLED, "r", payload=msgspec.Raw(b""))
    assert protocol.encode_event(bare) == b'{"type":"workflow.cancelled","run_id":"r"}'
    assert bytes(bare.payload) == b""


@pytest.mark.parametrize(
    ("data", "event"),
    [
        (b"{}", protocol.Event("", "")),
        (b'{"type":null,"timestamp":null}', protocol.Event("", "")),
        (b'{"TYPE":"t","Run_ID":"r","more":[1]}', protocol.Event("t", "r")),
        (b'{"type":"t","payload":null}', protocol.Event("t", "", payload=msgspec.Raw(b"null"))),
    ],
)
def test_event_of_another_writer_is_read_as_go_reads_it(data: bytes, event: protocol.Event) -> None:
    assert protocol.decode_event(data) == event


@pytest.mark.parametrize(
    "data", [b"", b"7", b'{"type":7}', b'{"attempt_number":1.0}', b'{"payload":}', b'{"a":"\xff"}']
)
def test_bad_event_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError, match=r"^event: "):
        protocol.decode_event(data)


# Time

YEAR_ONE_NS = -62_135_596_800 * 10**9
YEAR_9999_NS = 253_402_300_799 * 10**9 + 999_999_999


@settings(deadline=None)
@given(st.integers(YEAR_ONE_NS, YEAR_9999_NS))
@example(YEAR_ONE_NS)
@example(YEAR_9999_NS)
@example(-1)
def test_time_survives_its_text(unix_ns: int) -> None:
    text = protocol.time_text(unix_ns)
    assert protocol.parse_time(text) == unix_ns
    assert text.endswith("Z")
    assert not text.removesuffix("Z").endswith("." if "." not in text else ("0", "."))


@settings(deadline=None)
@given(st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1)), st.integers(-1439, 1439))  # noqa: DTZ001 - the strategy adds the offset itself
def test_any_offset_is_understood(local: datetime, offset_minutes: int) -> None:
    sign, minutes = "+-"[offset_minutes < 0], abs(offset_minutes)
    text = f"{local.isoformat()}{sign}{minutes // 60:02}:{minutes % 60:02}"
    moment = local.replace(tzinfo=UTC) - timedelta(minutes=offset_minutes)
    expected = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    assert protocol.parse_time(text) == expected


def test_digits_after_the_ninth_are_dropped() -> None:
    assert protocol.parse_time("1970-01-01T00:00:00.1234567899999Z") == 123456789


@pytest.mark.parametrize(
    "text",
    ["", "2026-08-06 12:00:00Z", "2026-08-06T12:00:00", "2026-08-06T12:00:00+0000",
     "2026-08-06T12:00Z", "2026-08-06T12:00:00z", "2026-08-06T12:00:00.Z", "2026-02-30T12:00:00Z",
     "2026-08-06T24:00:00Z", "2026-08-06T12:60:00Z", "2026-08-06T12:00:60Z",
     "2026-08-06T12:00:00+24:00", "2026-08-06T12:00:00Z\n", "\u0662026-08-06T12:00:00Z"],
)  # fmt: skip
def test_text_that_is_no_time_is_a_decode_error(text: str) -> None:
    with pytest.raises(DecodeError, match="not an RFC 3339 time"):
        protocol.parse_time(text)


# Subjects and ids


def test_subjects() -> None:
    assert protocol.task_subject("mail.send", "r") == "task.mail.send.r"
    assert protocol.task_subject("mail.send", "r", "eu") == "task.mail.send.eu.r"
    assert protocol.sticky_subject_filter("mail.send", "w") == "sticky.mail.send.w.>"
    assert protocol.history_subject("r") == "history.r"
    assert protocol.stream_subject("r", "square.map.0") == "stream.r.square.map.0"


@pytest.mark.parametrize(
    ("names", "subject"),
    [
        (("mail.send", "r", "map.0"), "dead.mail.send.r.map.0"),
        (("a", "", ""), "dead.a.unknown.unknown"),
        (("a b", "x.y", "s.>"), "dead.a_b.x_y.s._"),
        (("a", "*", "..s\r\n\ud800"), "dead.a._._._.s___"),
    ],
)
def test_dead_subject_can_always_be_published(names: tuple[str, str, str], subject: str) -> None:
    assert protocol.dead_subject(*names) == subject


@settings(deadline=None)
@given(st.text(st.characters()), st.text(st.characters()), st.text(st.characters()))
@example("t" * 9999, "r" * 9999, "\U0001f600" * 9999)
def test_no_name_can_break_the_line_of_the_protocol(task: str, run: str, step: str) -> None:
    for subject in (protocol.dead_subject(task, run, step), protocol.stream_subject("r", step)):
        assert len(subject.encode()) < 4000
        assert all(protocol.is_subject_token(token) for token in subject.split("."))


def test_message_ids_of_go() -> None:
    assert protocol.go_event_id("r", "s", "step.started", 2) == "r.s.step.started.2"
    assert protocol.go_event_id("r", "s", "step.completed") == "r.s.step.completed"
    assert protocol.go_event_id("r", "", "workflow.cancelled") == "r.workflow.cancelled"
    assert protocol.continue_id("r", "s", 3, 99) == "r.s.continue.3.99"
    assert protocol.next_iteration_id("r", "s", 4) == "r.s.continue.4"
    assert protocol.queued_id("r", "map.0") == "r.map.0.queued"


@pytest.mark.parametrize(
    ("counts", "suffix"),
    [
        ({}, ""),
        ({"attempt": 2}, ".2"),
        ({"iteration": 3}, ".i3"),
        ({"deliveries": 2}, ".d2"),
        ({"attempt": 1, "iteration": 0, "deliveries": 1}, ".1"),
        ({"attempt": 2, "iteration": 3, "deliveries": 4}, ".2.i3.d4"),
    ],
)
def test_event_id_differs_by_what_makes_the_event_another(
    counts: dict[str, int], suffix: str
) -> None:
    assert protocol.event_id("r", "s", "step.failed", **counts) == "r.s.step.failed" + suffix


# Failures


@settings(deadline=None)
@given(st.text(st.characters(), max_size=200), st.integers(0, 2000))
def test_published_error_text_is_never_empty_and_always_fit(text: str, repeat: int) -> None:
    payload = protocol.failure_payload(text + "é\U0001f600" * repeat, "non_retriable", None)
    error = json.loads(payload.decode())["error"]
    assert 0 < len(error.encode()) <= protocol.ERROR_TEXT_BYTES_MAX
    assert not [one for one in error if unicodedata.category(one) == "Cc" and one not in "\n\r\t"]
    assert not [one for one in error if one > "\uffff" and not one.isprintable()]


def test_error_text_keeps_its_lines_and_loses_its_colours() -> None:
    payload = protocol.failure_payload("a\x1b[31m\tb\r\n\ud800\U000e0001\x00é", "retriable", None)
    assert json.loads(payload)["error"] == "a\ufffd[31m\tb\r\n\ufffd\ufffd\ufffdé"


def test_long_error_text_is_cut_between_characters() -> None:
    error = json.loads(protocol.failure_payload("é" * 5000 + "end", "retriable", None))["error"]
    assert error == "é" * (protocol.ERROR_TEXT_BYTES_MAX // 2)
    error = json.loads(protocol.failure_payload("a" + "é" * 5000, "retriable", None))["error"]
    assert error == "a" + "é" * (protocol.ERROR_TEXT_BYTES_MAX // 2 - 1)


def test_empty_error_text_is_called_unknown() -> None:
    assert protocol.failure_payload("", "non_retriable", None) == (
        b'{"error":"unknown error","failure_type":"non_retriable"}'
    )


@pytest.mark.parametrize(
    ("delay", "retry_after_ms"),
    [
        (None, 100),
        (timedelta(seconds=-5), 100),
        (timedelta(milliseconds=99.9), 100),
        (timedelta(microseconds=1_500_999), 1500),
        (timedelta(hours=1), 3_600_000),
        (timedelta(days=999_999_999), 3_600_000),
    ],
)
def test_retry_delay_is_truncated_and_clamped(delay: timedelta | None, retry_after_ms: int) -> None:
    payload = json.loads(protocol.failure_payload("x", "retry_after", delay))
    assert payload["retry_after_ms"] == retry_after_ms


@pytest.mark.parametrize("failure_type", ["retriable", "non_retriable"])
def test_only_retry_after_has_a_delay(failure_type: FailureType) -> None:
    payload = protocol.failure_payload("x", failure_type, timedelta(seconds=1))
    assert "retry_after_ms" not in json.loads(payload)


@pytest.mark.parametrize(
    ("payload", "failed"),
    [
        (b'{"error":"x","failure_type":"non_retriable"}', Failed("x", "non_retriable")),
        (b'{"error":"x"}', Failed("x", "retriable")),
        (b'{"error":"x","failure_type":"","n":1}', Failed("x", "retriable")),
        (b'{"Error":"x","failure_type":"else"}', Failed("x", "retriable")),
        (b'{"error":"x","failure_type":null}', Failed("x", "retriable")),
        (
            b'{"error":"x","failure_type":"retry_after","retry_after_ms":1500}',
            Failed("x", "retry_after", timedelta(seconds=1.5)),
        ),
        (
            b'{"error":"x","failure_type":"retry_after"}',
            Failed("x", "retry_after", timedelta(milliseconds=100)),
        ),
        (
            b'{"error":"x","failure_type":"retry_after","retry_after_ms":9223372036854775807}',
            Failed("x", "retry_after", timedelta(hours=1)),
        ),
        (b'"text"', Failed("text", "retriable")),
        (
            b'{"error":"","failure_type":"non_retriable"}',
            Failed('{"error":"","failure_type":"non_retriable"}', "retriable"),
        ),
        (b'{"error":7}', Failed('{"error":7}', "retriable")),
        (b"[1]", Failed("[1]", "retriable")),
        (b"null", Failed("null", "retriable")),
        (b"", Failed("unknown error", "retriable")),
        (b'""', Failed("unknown error", "retriable")),
        (b"\xff", Failed("\ufffd", "retriable")),
    ],
)
def test_failure_is_read_as_the_engine_reads_it(payload: bytes, failed: Failed) -> None:
    assert protocol.parse_failure(payload) == failed


def test_dead_letter_headers_are_single_lines_of_bounded_length() -> None:
    headers = protocol.dead_letter_headers(
        run_id="r", step_id="s\r\nX: 1", task_type="t", error="a\x1b\n b\u2028" + "é" * 2000,
        attempts=2, deliveries=3, subject="task.t.r",
    )  # fmt: skip
    assert headers["Dagnats-Dlq-Error"].startswith("a\ufffd b éé")
    assert len(headers["Dagnats-Dlq-Error"].encode()) <= 1024
    assert headers[protocol.HEADER_MSG_ID] == "dlq:r:s X: 1:2"
    assert all(value == " ".join(value.split()) for value in headers.values())


def test_dead_letters_without_ids_are_never_duplicates_of_each_other() -> None:
    headers = protocol.dead_letter_headers(
        run_id="", step_id="", task_type="t", error="", attempts=1, deliveries=1, subject="task.t.r"
    )
    assert protocol.HEADER_MSG_ID not in headers
    assert headers["Dagnats-Dlq-Run-Id"] == headers["Dagnats-Dlq-Step-Id"] == "unknown"
    assert headers["Dagnats-Dlq-Error"] == "unknown error"


# Acks


@pytest.mark.parametrize(
    ("delay", "frame"),
    [
        (None, b"-NAK"),
        (timedelta(0), b"-NAK"),
        (timedelta(seconds=-1), b"-NAK"),
        (timedelta(microseconds=1), b'-NAK {"delay": 1000}'),
        (timedelta(days=400, microseconds=7), b'-NAK {"delay": 34560000000007000}'),
    ],
)
def test_nak_carries_its_delay_in_nanoseconds(delay: timedelta | None, frame: bytes) -> None:
    assert protocol.nak_frame(delay) == frame


def test_term_carries_its_reason_in_one_line() -> None:
    assert protocol.term_frame("bad\r\n run_id") == b"+TERM bad run_id"
    assert protocol.term_frame("") == b"+TERM"
    assert len(protocol.term_frame("x" * 99_999)) < 1100


@pytest.mark.parametrize(
    ("before", "after"),
    [("", ""), ("_.acc.", ""), ("hub.acc.", ""), ("_.acc.", ".token"), ("hub.acc.", ".a.b")],
)
def test_ack_subject_is_read_in_each_of_its_forms(before: str, after: str) -> None:
    subject = f"$JS.ACK.{before}S.C.2.42.7.1786017600123456789.5{after}"
    assert protocol.parse_ack_subject(subject) == protocol.AckInfo(
        stream="S",
        consumer="C",
        deliveries=2,
        stream_sequence=42,
        timestamp_ns=1786017600123456789,
        pending=5,
    )


@pytest.mark.parametrize(
    "subject",
    ["", "_INBOX.abc", "$JS.ACK.S.C.1.2.3.4", "$JS.ACK.S.C.1.2.3.4.5.6", "$JS.NAK.S.C.1.2.3.4.5",
     "$JS.ACK.S.C.x.2.3.4.5", "$JS.ACK.S.C.-1.2.3.4.5", "$JS.ACK.S.C..2.3.4.5",
     "$JS.ACK.S.C.1.2.3.\u0664.5", "a.b.c.d.e.f.g.h.i"],
)  # fmt: skip
def test_other_subject_is_a_decode_error(subject: str) -> None:
    with pytest.raises(DecodeError, match="ack subject"):
        protocol.parse_ack_subject(subject)
