"""What is stored under a step's key, and how it is read, whoever has written it.

Method: values are encoded and decoded; a Go worker's reading is written out in ten lines. Real: the
golden vectors. Fake: nothing.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dagnats_worker_checkpoint._saved import KIND_HEADER, Saved

WIRE: dict[str, dict[str, Any]] = {
    one["name"]: one
    for one in json.loads((Path(__file__).parents[2] / "vectors" / "wire.json").read_text("utf-8"))
}
FROM_GO: dict[str, str] = {}

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=10,
)
markers = st.fixed_dictionaries(
    {"pause_resume": names},
    optional={"user_state": json_values, "user_state_base64": names, "other": json_values},
)
states = (
    st.binary()
    | json_values.map(lambda value: json.dumps(value).encode())
    | json_values.map(lambda value: json.dumps(value, ensure_ascii=False, indent=1).encode())
    | markers.map(lambda value: json.dumps(value).encode())
)


def headers_of(saved: Saved) -> dict[str, str]:
    return {KIND_HEADER: saved.kind}


def pause_seen_by_go(value: bytes) -> str:
    """What a Go handler finds that looks for the marker: the key at the top of an object."""
    try:
        found = json.loads(value.decode(), parse_constant=refuse)
    except ValueError:
        return ""
    return str(found.get("pause_resume", "")) if isinstance(found, dict) else ""


def refuse(constant: str) -> None:
    raise ValueError(f"Go reads no {constant}")


@given(states, st.none() | names)
@example(b"", "n")
@example(b'"\xff"', "n")
@example(b'"\\ud800"', "n")
@example(b"[1e400]", "n")
@example(b"NaN", "n")
@example(b' {"a": 1}\n', "n")
@example(b'1,"pause_resume":"other"', "n")
@example(b'{"pause_resume":"n"}', None)
@example(b'{"pause_resume":"n","user_state":1}', None)
@example(b"[" * 900 + b"]" * 900, "n")
def test_state_comes_back_byte_for_byte_and_so_does_the_pause(
    state: bytes, pause: str | None
) -> None:
    saved = Saved(state, pause)
    assert Saved.decode(saved.encode(), headers_of(saved)) == saved


@given(states, names)
def test_pause_is_read_by_a_go_worker_whatever_was_saved_before(state: bytes, name: str) -> None:
    assert pause_seen_by_go(Saved(state, name).encode()) == name


@given(states, names)
def test_pause_is_read_without_headers_too(state: bytes, name: str) -> None:
    saved = Saved(state, name)
    assert Saved.decode(saved.encode(), {}) == saved


@given(names)
def test_pause_without_a_state_is_what_a_go_worker_writes(name: str) -> None:
    marker = Saved(None, name)
    assert json.loads(marker.encode()) == {"pause_resume": name}
    assert Saved.decode(marker.encode(), FROM_GO) == marker


@given(states)
def test_state_is_stored_as_it_is(state: bytes) -> None:
    assert Saved(state).encode() == state


def test_state_that_is_json_can_be_read_in_the_marker() -> None:
    assert Saved(b'{"offset":120}', "n").encode() == (
        b'{"pause_resume":"n","user_state":{"offset":120}}'
    )
    text = base64.b64encode(b"\x00\xff").decode()
    assert json.loads(Saved(b"\x00\xff", "n").encode()) == {
        "pause_resume": "n",
        "user_state_base64": text,
    }


@pytest.mark.parametrize(
    "value",
    [
        b'{"pause_resume":1}',
        b'{"pause_resume":"n","mine":1}',
        b'{"pause_resume":"n","user_state_base64":"%"}',
        b'["pause_resume"]',
        b"{}",
        b"",
    ],
)
def test_value_without_headers_that_is_no_marker_is_a_state(value: bytes) -> None:
    assert Saved.decode(value, FROM_GO) == Saved(value)


@pytest.mark.parametrize("name", ["kv.checkpoint", "kv.checkpoint_map_instance"])
def test_state_of_the_vectors_is_read_and_written(name: str) -> None:
    wire = WIRE[name]["wire"].encode()
    assert Saved.decode(wire, WIRE[name]["headers"]) == Saved(wire)
    assert Saved(wire).encode() == wire


def test_marker_of_the_vectors_is_read_and_written() -> None:
    vector = WIRE["kv.checkpoint_pause_marker"]
    wire = vector["wire"].encode()
    assert Saved.decode(wire, vector["headers"]) == Saved(None, "wait-for-human")
    assert Saved(None, "wait-for-human").encode() == wire
