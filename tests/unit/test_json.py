"""JSON at the edge. Method: values in, bytes out, and back; all is real, pydantic included."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagnats_worker import _json
from dagnats_worker.errors import DecodeError, UsageError


@dataclass
class Point:
    x: float
    tags: list[str | None] = field(default_factory=list)


class Image(msgspec.Struct):
    name: str
    score: float | None = None


class Size(TypedDict):
    width: int


class Colour(enum.Enum):
    RED = "red"


class Model(pydantic.BaseModel):
    name: str
    score: float | None = None


class LooseModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(ser_json_inf_nan="constants")
    score: float


class Plain:
    pass


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, b"null"),
        ({"a": [1, 2.5, "é", None, True]}, '{"a":[1,2.5,"é",null,true]}'.encode()),
        (Point(1.5, ["a", None]), b'{"x":1.5,"tags":["a",null]}'),
        (Image("cat"), b'{"name":"cat","score":null}'),
        (Size(width=3), b'{"width":3}'),
        (Colour.RED, b'"red"'),
        (datetime(2026, 8, 6, 12, tzinfo=UTC), b'"2026-08-06T12:00:00Z"'),
        (Model(name="cat"), b'{"name":"cat","score":null}'),
        ({"models": [Model(name="cat", score=1)]}, b'{"models":[{"name":"cat","score":1.0}]}'),
        (10**30, b"1000000000000000000000000000000"),
        ({1: "key"}, b'{"1":"key"}'),
    ],
)
def test_value_is_written_as_compact_json(value: Any, expected: bytes) -> None:
    assert _json.encode(value) == expected


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, msgspec.Raw])
def test_bytes_are_json_already_and_come_back_as_they_are(kind: Callable[[bytes], Any]) -> None:
    data = '{"a": 1.0, "b": [1e400, 123456789012345678901234567890, "é"]}'.encode()
    assert _json.encode(kind(data)) == data
    assert type(_json.encode(kind(data))) is bytes


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not json",
        b"{'a': 1}",
        b'{"a":NaN}',
        b"[1,]",
        b"1 2",
        b'"\xff"',
        b'{"a":"\xed\xa0\x80"}',
        b'"\\ud800"',
        b"[" * 100_000,
    ],
)
def test_bytes_that_are_not_json_are_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match="bytes are taken as JSON and these are not"):
        _json.encode(data)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (math.nan, "at \\$:"),
        ({"a": [1, math.inf]}, "at \\$\\['a'\\]\\[1\\]:"),
        ([-math.inf, None], "at \\$\\[0\\]:"),
        (Point(math.nan), "at \\$.x:"),
        ({"image": Image("cat", math.nan)}, "at \\$\\['image'\\].score:"),
        ({"s": {math.nan}}, "at \\$\\['s'\\]"),
        ({"model": Model(name="cat", score=math.nan)}, "at \\$\\['model'\\]:"),
    ],
)
def test_number_that_is_not_finite_is_refused_by_its_path(value: Any, where: str) -> None:
    with pytest.raises(UsageError, match=where) as caught:
        _json.encode(value)
    assert "no NaN and no infinity" in str(caught.value)


def test_null_beside_finite_numbers_is_fine() -> None:
    assert _json.encode([None, 1.5, {"a": {2.5}}]) == b'[null,1.5,{"a":[2.5]}]'


def test_pydantic_model_that_writes_nan_as_a_constant_is_refused() -> None:
    with pytest.raises(UsageError, match="LooseModel"):
        _json.encode({"m": LooseModel(score=math.nan)})


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ("\ud800", "at \\$:"),
        ({"a": ["ok", "\udfff"]}, "at \\$\\['a'\\]\\[1\\]:"),
        ({"\ud800": 1}, "at \\$, in key '.ud800': "),
        (Model(name="\ud800"), "at \\$:"),
    ],
)
def test_lone_surrogate_is_refused(value: Any, where: str) -> None:
    with pytest.raises(UsageError, match=where):
        _json.encode(value)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (Plain(), "at \\$: objects of type Plain"),
        ({"a": Plain()}, "at \\$\\['a'\\]: objects of type Plain"),
        ([Model], "at \\$\\[0\\]: "),
        ([{(1, 2): 3}], "at \\$\\[0\\], in key \\(1, 2\\): "),
        ([10**5000], "at \\$\\[0\\]: "),
        (nested(100_000), "recursion"),
    ],
)
def test_what_json_has_no_form_for_is_refused(value: Any, where: str) -> None:
    with pytest.raises(UsageError, match=where):
        _json.encode(value)


@pytest.mark.parametrize(
    "data", [b"", b"nope", b"NaN", b"1 2", b'"\xff"', b'"\\ud800"', b"[" * 100_000, b"1e400"]
)
def test_any_failure_to_read_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError, match="not valid JSON"):
        _json.decode(data)


def test_long_integers_are_read_exactly() -> None:
    assert _json.decode(b"123456789012345678901234567890") == 123456789012345678901234567890


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(JSON_VALUES)
def test_what_is_encoded_is_strict_json_and_reads_back(value: Any) -> None:
    try:
        expected = json.loads(json.dumps(value, allow_nan=False))
    except ValueError:
        with pytest.raises(UsageError):
            _json.encode(value)
        return
    assert _json.decode(_json.encode(value)) == expected
    assert _json.encode(_json.encode(value)) == _json.encode(value)
