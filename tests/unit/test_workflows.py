"""Workflow definitions that would end the engine's process are refused before they are sent.

Method: the definitions that an engine has taken, and the same with one thing broken. Nothing is
fake.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from dagnats_worker._workflows import STEP_TYPES, TASK_TYPES, check_definition
from dagnats_worker.errors import UsageError

VECTORS = Path(__file__).parents[1] / "vectors"
DEFINITIONS: dict[str, dict[str, Any]] = {
    one["name"]: one["def"]
    for one in json.loads((VECTORS / "workflow_defs.json").read_text("utf-8"))
}


def definition(**step: Any) -> dict[str, Any]:
    """A definition of one step; None takes a key out."""
    fields = {"id": "greet", "task": "greet", "type": "normal", **step}
    kept = {name: value for name, value in fields.items() if value is not None}
    return {"name": "hello", "version": "1", "steps": [kept]}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_definition_that_the_engine_takes_is_let_through_unchanged(name: str) -> None:
    before = copy.deepcopy(DEFINITIONS[name])
    check_definition(DEFINITIONS[name])
    assert DEFINITIONS[name] == before


def test_vectors_cover_several_step_types() -> None:
    kinds = {step["type"] for one in DEFINITIONS.values() for step in one["steps"]}
    assert {"normal", "agent_loop", "map", "planner"} <= kinds


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("changes", [{"name": ""}, {"name": None}])
def test_definition_without_a_name_is_refused(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="needs a name"):
        check_definition({**DEFINITIONS[name], **changes})


@pytest.mark.parametrize("empty", [{}, {"steps": []}])
def test_empty_object_is_refused(empty: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="needs a name"):
        check_definition(empty)


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("key", ["id", "task"])
def test_step_without_id_or_task_is_refused_wherever_it_is(name: str, key: str) -> None:
    for index in range(len(DEFINITIONS[name]["steps"])):
        for value in ("", None):
            broken = copy.deepcopy(DEFINITIONS[name])
            broken["steps"][index][key] = value
            with pytest.raises(UsageError, match=f"needs an? {key}") as caught:
                check_definition(broken)
            assert repr(broken["name"]) in str(caught.value)


def test_step_is_named_by_its_id_or_else_by_its_place() -> None:
    broken = copy.deepcopy(DEFINITIONS["map"])
    del broken["steps"][2]["task"]
    with pytest.raises(UsageError, match="step total of 'interop-map' needs a task"):
        check_definition(broken)
    del broken["steps"][2]["id"]
    with pytest.raises(UsageError, match="step 2 of 'interop-map' needs an id"):
        check_definition(broken)


@pytest.mark.parametrize("kind", ["", "unknown", "Normal", "agent-loop"])
def test_unknown_step_type_is_refused_with_those_that_there_are(kind: str) -> None:
    with pytest.raises(UsageError, match=f"has the type {kind!r}; the engine knows agent, ") as one:
        check_definition(definition(type=kind))
    for known in STEP_TYPES:
        assert known in str(one.value)


def test_step_type_may_be_left_out() -> None:
    check_definition(definition(type=None))


@pytest.mark.parametrize("kind", sorted(STEP_TYPES))
def test_every_step_type_that_runs_a_task_needs_one(kind: str) -> None:
    step = definition(type=kind, task=None, config={"max_items": 1})
    if kind not in TASK_TYPES:
        check_definition(step)
        return
    with pytest.raises(UsageError, match="needs a task"):
        check_definition(step)


@pytest.mark.parametrize("config", [None, {}])
def test_map_needs_a_config(config: dict[str, Any] | None) -> None:
    with pytest.raises(UsageError, match="is a map and needs a config"):
        check_definition(definition(type="map", config=config))


def test_two_kinds_of_rate_limit_are_one_too_many() -> None:
    limit = {"rate": 1, "window": 1_000_000_000}
    for one in ("rate_limit", "keyed_rate_limit"):
        check_definition(definition(**{one: limit}))
    with pytest.raises(UsageError, match="give one of them"):
        check_definition(definition(rate_limit=limit, keyed_rate_limit=limit))


@pytest.mark.parametrize("steps", [None, []])
def test_what_the_engine_refuses_itself_is_left_to_it(steps: list[Any] | None) -> None:
    check_definition({"name": "hello", "steps": steps})
    check_definition({"name": "hello"})
    check_definition(definition(depends_on=["nobody"]))


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ([], "a workflow definition is an object, got"),
        ("hello", "a workflow definition is an object, got"),
        ({"name": 7, "steps": []}, "the name of a workflow definition is a text, got 7"),
        ({"name": "hello", "steps": {"id": "a"}}, "the steps of 'hello' are a list, got"),
        ({"name": "hello", "steps": ["greet"]}, "step 0 of 'hello' is an object, got 'greet'"),
    ],
)
def test_what_has_another_shape_is_refused_too(broken: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_definition(broken)
