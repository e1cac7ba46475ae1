"""Checked by mypy and never run: what a handler is given is known to the type checker."""

from __future__ import annotations

from typing import assert_type

from outside_plugin import GREETER, Greeter

from dagnats_worker import TaskContext


async def handler(ctx: TaskContext) -> str:
    greeter = ctx.use(GREETER)
    assert_type(greeter, Greeter)
    greeter.greet(3)  # type: ignore[arg-type]  # mypy has to see it
    greeter.great("Ada")  # type: ignore[attr-defined]  # this one too
    return greeter.greet("Ada")
