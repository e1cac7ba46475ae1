"""Trigger envelopes. Method: documents that Go has judged are judged again; nothing is fake."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagnats_worker import _envelope
from dagnats_worker._envelope import HTTPEnvelope, TriggerEnvelope, unwrap_trigger
from dagnats_worker.errors import NonRetryableError

TESTS = Path(__file__).parents[1]
VECTORS = json.loads((TESTS / "vectors" / "unwrap_trigger.json").read_text("utf-8"))
WIRE = json.loads((TESTS / "vectors" / "wire.json").read_text("utf-8"))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["input"][:40])
def test_input_is_unwrapped_as_go_unwraps_it(vector: dict[str, str]) -> None:
    data = vector["input"].encode()
    if vector["result"] == "error":
        with pytest.raises(NonRetryableError, match=r"^detect envelope: "):
            unwrap_trigger(data)
    else:
        assert unwrap_trigger(data) == vector["output"].encode()


def padded(count: int) -> str:
    return "".join(f'"k{index}":{index},' for index in range(count))


@pytest.mark.parametrize(
    ("members_before", "unwrapped"),
    [
        (_envelope.ENVELOPE_MEMBERS_MAX - 2, True),
        (_envelope.ENVELOPE_MEMBERS_MAX - 1, False),
        (_envelope.ENVELOPE_MEMBERS_MAX, False),
    ],
)
def test_only_the_first_members_are_looked_at(members_before: int, *, unwrapped: bool) -> None:
    data = f'{{{padded(members_before)}"trigger":"x","data":1}}'.encode()
    assert unwrap_trigger(data) == (b"1" if unwrapped else data)


def test_many_colons_within_few_members_do_not_matter() -> None:
    inner = json.dumps({str(index): index for index in range(300)})
    data = f'{{"trigger":"x","data":{inner}}}'.encode()
    assert unwrap_trigger(data) == inner.encode()


def test_damage_behind_the_members_that_are_read_is_not_seen() -> None:
    data = f'{{"trigger":"x","data":1,{padded(_envelope.ENVELOPE_MEMBERS_MAX)} broken'.encode()
    assert unwrap_trigger(data) == b"1"


def test_input_over_the_limit_is_left_alone() -> None:
    frame = b'{"trigger":"x","data":""}'
    padding = b"a" * (_envelope.ENVELOPE_BYTES_MAX - len(frame))
    largest = frame[:-2] + padding + frame[-2:]
    assert unwrap_trigger(largest) == b'"' + padding + b'"'
    too_large = frame[:-2] + padding + b"a" + frame[-2:]
    assert unwrap_trigger(too_large) is too_large


@pytest.mark.parametrize("data", [b"", b"[1,", b'{"trigger":"x","data":1]', b"{"])
def test_what_go_does_not_read_further_comes_back_or_unwraps(data: bytes) -> None:
    assert unwrap_trigger(data) == (b"1" if b"data" in data else data)


@pytest.mark.parametrize(
    "data",
    [
        b" ",
        b'"open',
        b'{"a"',
        b'{"a":',
        b'{"a":1,',
        b'{"a":1,}',
        b"{,}",
        b'{"a" 1}',
        b'{"a":1 "b":2}',
        b'{a:1,"trigger":"x"}',
        b'{"a":NaN}',
        b'{"a":01}',
        b'{"a":"\x01"}',
        b'{"a":' + b"[" * 100_000 + b"}",
        b'{"a":"\xff"}}',
    ],
)
def test_malformed_beginning_is_not_retryable(data: bytes) -> None:
    with pytest.raises(NonRetryableError, match=r"^detect envelope: "):
        unwrap_trigger(data)


def test_escaped_key_is_the_key_that_it_spells() -> None:
    assert unwrap_trigger(b'{"tr\\u0069gger":"x","d\\u0061ta":[1]}') == b"[1]"


@pytest.mark.parametrize("number", [b"1" * 5000, b"1e400", b"-0.0"])
def test_numbers_are_kept_as_written(number: bytes) -> None:
    assert unwrap_trigger(b'{"trigger":"x","data":[%s]}}' % number) == b"[%s]" % number


VALUE = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)
MEMBERS = st.lists(
    st.tuples(st.sampled_from(["trigger", "data", "Trigger", "other"]), VALUE), max_size=5
)


@settings(deadline=None)
@given(MEMBERS)
def test_both_ways_of_reading_agree(members: list[tuple[str, Any]]) -> None:
    text = ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in members)
    data = f"{{ {text} }}".encode()
    assert unwrap_trigger(data) == _envelope._scan(data)


@pytest.mark.parametrize("kind", ["cron", "subject", "webhook", "http"])
def test_handler_can_ask_for_the_whole_envelope(kind: str) -> None:
    (vector,) = (vector for vector in WIRE if vector["name"] == f"envelope.{kind}")
    body = vector["body"]["input"]
    envelope = msgspec.json.decode(json.dumps(body).encode(), type=TriggerEnvelope)
    assert envelope.trigger == kind
    assert envelope.source == body["source"]
    assert envelope.workflow_id == "hello"
    assert envelope.timestamp.replace(microsecond=0) == datetime(2026, 8, 6, 12, tzinfo=UTC)
    assert envelope.data == body.get("data")


def test_http_envelope_gives_the_body_as_bytes() -> None:
    (vector,) = (vector for vector in WIRE if vector["name"] == "envelope.http")
    data = json.dumps(vector["body"]["input"]).encode()
    request = msgspec.json.decode(data, type=TriggerEnvelope[HTTPEnvelope]).data
    assert request is not None
    assert (request.method, request.path) == ("POST", "/orders")
    assert (request.query, request.headers["Content-Type"]) == ({"dry": "1"}, "application/json")
    assert json.loads(request.body) == {"sku": "A"}
    assert msgspec.json.decode(msgspec.json.encode(request)) == vector["body"]["input"]["data"]


def test_http_envelope_without_optional_parts_is_empty_there() -> None:
    request = msgspec.json.decode(b'{"method":"GET","path":"/"}', type=HTTPEnvelope)
    assert (request.query, request.headers, request.body) == ({}, {}, b"")
