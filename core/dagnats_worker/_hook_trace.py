"""``DAGNATS_WORKER_TRACE_PLUGINS=1``: each call of a hook, with its plugin and its duration."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import time
from typing import Any

from dagnats_worker._hook_calls import Call, Member

TRACE_VARIABLE = "DAGNATS_WORKER_TRACE_PLUGINS"
OFF = ("", "0", "false", "no", "off")

logger = logging.getLogger("dagnats_worker.plugins.trace")


def tracing() -> bool:
    """Whether the calls of hooks are to be shown."""
    if os.environ.get(TRACE_VARIABLE, "").lower() in OFF:
        return False
    _make_visible()
    return True


@functools.cache
def _make_visible() -> None:
    """Who sets the variable wants to see it, whatever is logged otherwise, and be it nothing."""
    logger.setLevel(logging.INFO)
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())


def traced(label: str, member: Member, invoke: Call) -> Call:
    """The same call, logged when it has ended."""

    async def call(known: Any) -> Any:
        began = time.perf_counter()
        end = "took"
        try:
            answer = invoke(known)
            return await answer if inspect.isawaitable(answer) else answer
        except BaseException as error:
            end = f"raised {type(error).__name__} after"
            raise
        finally:
            took_ms = (time.perf_counter() - began) * 1000
            logger.info("%s, %s %s %.3f ms", member.name, label, end, took_ms)

    return call
