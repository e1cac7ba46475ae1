"""Names of consumers and groups.

Method: names that Go built are built again, and odd ones refused; nothing is fake.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagnats_worker import _naming

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "consumer_names.json").read_text("utf-8")
)


@pytest.mark.parametrize(
    "vector", VECTORS, ids=lambda vector: f"{vector['task']}+{vector['group']}"
)
def test_names_are_those_of_go(vector: dict[str, Any]) -> None:
    name = (vector["task"], vector["group"] or None)
    assert _naming.durable_name(*name) == vector["consumer"]
    assert _naming.filter_subject(*name) == vector["filter"]
    assert _naming.elastic_group_name(*name) == vector["elastic_group"]


@pytest.mark.parametrize("name", [("", None), ("a", "")])
def test_durable_of_nothing_is_refused(name: tuple[str, str | None]) -> None:
    with pytest.raises(ValueError, match="is empty"):
        _naming.durable_name(*name)


@pytest.mark.parametrize(
    "value", ["a", "mail.send", "vendor::ingest", "größe", "-", "a/b", "Ж.日本"]
)
def test_usable_token_passes(value: str) -> None:
    _naming.check_token("task type", value)


@pytest.mark.parametrize(
    "value",
    ["", " ", "a b", "a\tb", "a\n", "a\u00a0b", "a*", "*", ">", "a.>", ".a", "a.", "a..b", "....",
     "a\x00", "a\x7f", "a\x85", "a\ud800"],
)  # fmt: skip
def test_unusable_token_is_refused_by_name_and_value(value: str) -> None:
    with pytest.raises(ValueError, match=r"^group ") as caught:
        _naming.check_token("group", value)
    assert "is empty" in str(caught.value) if not value else repr(value) in str(caught.value)


def test_token_that_is_no_text_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="task type is a text, got 7"):
        _naming.check_token("task type", 7)  # type: ignore[arg-type]  # that is the mistake
    with pytest.raises(TypeError, match="worker id is a text, got None"):
        _naming.check_worker_id(None)  # type: ignore[arg-type]  # that is the mistake


@pytest.mark.parametrize("value", ["worker-3c1f9a7be2d04c58", "a", "A_b-1", "host/1=2"])
def test_usable_worker_id_passes(value: str) -> None:
    _naming.check_worker_id(value)


@pytest.mark.parametrize("value", ["", "a.b", "a b", "a*", "ü", "a\n", "a:b"])
def test_unusable_worker_id_is_refused_with_its_value(value: str) -> None:
    with pytest.raises(ValueError, match="worker id") as caught:
        _naming.check_worker_id(value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("left", "right", "overlap"),
    [
        ("task.a.>", "task.a.>", True),
        ("task.a.>", "task.a.b.>", True),
        ("task.a.>", "task.ab.>", False),
        ("task.a.b.>", "task.a.c.>", False),
        ("task.a.*", "task.a.b.>", False),
        ("task.a.*", "task.a.b", True),
        ("task.*.b", "task.a.*", True),
        ("task.*.b", "task.a.c", False),
        ("task.a", "task.a.>", False),
        ("task.a", "task.a.*", False),
        ("task.a", "task.a", True),
        (">", "task", True),
        ("*", "a.b", False),
    ],
)
def test_filters_overlap_where_one_subject_matches_both(
    left: str, right: str, *, overlap: bool
) -> None:
    assert _naming.filters_overlap(left, right) is overlap
    assert _naming.filters_overlap(right, left) is overlap


TOKEN = st.sampled_from("abc*")
FILTER = st.lists(TOKEN, min_size=1, max_size=4).flatmap(
    lambda tokens: st.sampled_from([".".join(tokens), ".".join([*tokens, ">"])])
)
SUBJECTS = [".".join(tokens) for size in range(1, 6) for tokens in product("abc", repeat=size)]


def matches(subject: str, pattern: str) -> bool:
    tokens, wanted = subject.split("."), pattern.split(".")
    if wanted[-1] == ">":
        wanted = wanted[:-1]
        if len(tokens) <= len(wanted):
            return False
        tokens = tokens[: len(wanted)]
    return len(tokens) == len(wanted) and all(
        one in (token, "*") for token, one in zip(tokens, wanted, strict=True)
    )


@settings(deadline=None, max_examples=60)
@given(FILTER, FILTER)
def test_overlap_is_what_trying_all_subjects_finds(left: str, right: str) -> None:
    found = any(matches(subject, left) and matches(subject, right) for subject in SUBJECTS)
    assert _naming.filters_overlap(left, right) is found
    assert _naming.filters_overlap(right, left) is found


@pytest.mark.parametrize(
    ("left", "right", "says"),
    [
        (("send.email", None), ("send-email", None), "share the durable consumer"),
        (("a-b", None), ("a", "b"), "share the durable consumer"),
        (("a.b", None), ("a", "b"), "share the durable consumer"),
        (("a", "gpu"), ("a", "gpu"), "is registered twice"),
        (("a", None), ("a.b", None), "overlap"),
        (("a", None), ("a", "gpu"), "overlap"),
        (("a", "b"), ("a.b", "c"), "overlap"),
    ],
)
def test_collision_names_both_origins(
    left: tuple[str, str | None], right: tuple[str, str | None], says: str
) -> None:
    (sentence,) = _naming.find_collisions([left, ("other", None), right])
    assert says in sentence
    for task_type, group in (left, right):
        assert repr(task_type) in sentence
        assert group is None or repr(group) in sentence


def test_names_that_do_not_meet_do_not_collide() -> None:
    registrations = [("a", "x"), ("a", "y"), ("ab", None), ("b.a", None), ("b.c", None)]
    assert _naming.find_collisions(iter(registrations)) == []


def test_every_pair_is_reported() -> None:
    assert len(_naming.find_collisions([("a", None), ("a.b", None), ("a.b.c", None)])) == 3
