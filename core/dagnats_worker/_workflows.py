"""Workflow definitions, checked before they are sent: some of what is wrong ends the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagnats_worker.errors import UsageError

STEP_TYPES = frozenset(
    {
        "normal",
        "agent",
        "agent_loop",
        "approval",
        "map",
        "planner",
        "respond",
        "sleep",
        "sub_workflow",
        "wait_for_event",
    }
)
TASK_TYPES = frozenset({"normal", "agent", "agent_loop", "map", "planner"})


def check_definition(definition: Mapping[str, Any]) -> None:
    """Refuse a definition on which the engine's process would panic.

    Raises:
        UsageError: Names the step and what is wrong with it.

    Source: wire protocol, section 11.
    """
    if not isinstance(definition, Mapping):
        raise UsageError(f"a workflow definition is an object, got {definition!r}")
    name, steps = definition.get("name"), definition.get("steps") or ()
    if not name:
        raise UsageError("a workflow definition needs a name")
    if not isinstance(name, str):
        raise UsageError(f"the name of a workflow definition is a text, got {name!r}")
    if not isinstance(steps, list | tuple):
        raise UsageError(f"the steps of {name!r} are a list, got {steps!r}")
    for number, step in enumerate(steps):
        if not isinstance(step, Mapping):
            raise UsageError(f"step {number} of {name!r} is an object, got {step!r}")
        _check_step(step, f"step {step.get('id') or number} of {name!r}")


def _check_step(step: Mapping[str, Any], where: str) -> None:
    if not step.get("id"):
        raise UsageError(f"{where} needs an id")
    kind = step.get("type", "normal")
    if kind not in STEP_TYPES:
        known = ", ".join(sorted(STEP_TYPES))
        raise UsageError(f"{where} has the type {kind!r}; the engine knows {known}")
    if kind in TASK_TYPES and not step.get("task"):
        raise UsageError(f"{where} needs a task: the task type whose worker runs it")
    if kind == "map" and not step.get("config"):
        raise UsageError(f"{where} is a map and needs a config with max_items")
    if step.get("rate_limit") and step.get("keyed_rate_limit"):
        raise UsageError(f"{where} has a rate_limit and a keyed_rate_limit; give one of them")
