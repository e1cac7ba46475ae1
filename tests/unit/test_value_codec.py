"""The two functions with which plugins write and read the values of users.

Method: values in, bytes out, and back. Nothing is fake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pydantic
import pytest

from dagnats_worker.errors import DecodeError, UsageError
from dagnats_worker.hookspecs import encode_value, value_decoder


@dataclass
class Point:
    x: int


class Strict(pydantic.BaseModel):
    x: pydantic.PositiveInt


@pytest.mark.parametrize("data", [b"\x00 not JSON", bytearray(b"\x00"), memoryview(b"\x00")])
def test_bytes_are_written_as_they_are(data: Any) -> None:
    assert encode_value(data) == bytes(data)


def test_all_else_is_written_as_json() -> None:
    assert encode_value({"x": [1, None]}) == b'{"x":[1,null]}'
    assert encode_value(Point(1)) == b'{"x":1}'
    with pytest.raises(UsageError, match="cannot be JSON"):
        encode_value(object())


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(int, 1), (bytes, b"\x00"), (Point, Point(1)), (Strict, Strict(x=1)), (Point | None, None)],
)
def test_what_was_written_is_read(annotation: Any, value: Any) -> None:
    assert value_decoder(annotation)(encode_value(value)) == value


@pytest.mark.parametrize(
    ("annotation", "data", "says"),
    [
        (Point, b'{"x":"1"}', r"Expected `int`, got `str` - at `\$\.x`"),
        (Strict, b'{"x":0}', r"greater than 0 - at `\$\.x`"),
        (Any, b"\xff", "malformed"),
        (str, b'"\xff"', "decode"),
    ],
)
def test_what_cannot_be_read_is_a_decode_error(annotation: Any, data: bytes, says: str) -> None:
    with pytest.raises(DecodeError, match=says):
        value_decoder(annotation)(data)


def test_annotation_that_json_cannot_be_read_into_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"the model is .*cannot be read from JSON"):
        value_decoder(type)
