"""Says what blocks the event loop: a thread that looks at its stack when it stands still.

Nothing on the loop can say so itself: while something blocks it, nothing else runs there.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from time import monotonic
from types import CodeType, FrameType
from typing import Any

from dagnats_worker._hook_calls import Implementation, Member, Seen
from dagnats_worker._inflight import Held, InFlight
from dagnats_worker._plugin_checks import HOOKS
from dagnats_worker._plugins import Hooks

logger = logging.getLogger("dagnats_worker.watchdog")

LOOKS_PER_LIMIT = 5
LOOK_MAX_S = 0.25
OVERSLEPT_S = 0.5
"""When this thread itself wakes so late, the whole process stood still, and not the loop alone."""
FRAMES_MAX = 30
SHOWN_MAX = 5
JOIN_WAIT_S = 1.0

HANDLER_ADVICE = "make it a plain `def`, and it runs in a thread"
HOOK_ADVICE = "a hook must not block; await, or use `await asyncio.to_thread(...)`"
OTHER_ADVICE = "the stack says where"


class Watchdog:
    """Watches one event loop, from a daemon thread of its own.

    Args:
        limit: A loop that stands still for longer is told of, once each time.
        held: The messages whose walks run on that loop.
        hooks: Of the plugins.
        handlers: Task types by the code of their handlers.
        spawned: Whose background work a task of the loop is, and what it is called.
    """

    def __init__(
        self,
        limit: timedelta,
        held: Held,
        hooks: Hooks,
        handlers: Mapping[CodeType, str],
        spawned: Callable[[asyncio.Task[Any]], str],
    ) -> None:
        self._limit_s = limit.total_seconds()
        self._look_every_s = min(LOOK_MAX_S, self._limit_s / LOOKS_PER_LIMIT)
        self._held = held
        self._hooks = hooks
        self._handlers = handlers
        self._spawned = spawned
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._seen_at = monotonic()
        self._not_before = 0.0
        self._told = (0.0, "")
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name="dagnats-worker-watchdog", daemon=True
        )
        self._thread.start()

    def loop_is_alive(self) -> None:
        """Called by the event loop, again and again."""
        self._seen_at = monotonic()

    @property
    def blocked_s(self) -> float:
        """How long the loop has stood still; 0 where the whole process did so just now."""
        now = monotonic()
        return 0.0 if now < self._not_before else now - self._seen_at

    @property
    def culprit(self) -> str:
        """What blocks the loop now; empty where that was not told yet."""
        seen_at, who = self._told
        return who if seen_at == self._seen_at else ""

    def close(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join(JOIN_WAIT_S)

    # ------------------------------------------------------------------ in the thread

    def _watch(self) -> None:
        told_of = 0.0
        looked_at = monotonic()
        while not self._stopped.wait(self._look_every_s) and not self._loop.is_closed():
            now = monotonic()
            overslept = now - looked_at > self._look_every_s + OVERSLEPT_S
            if overslept or not self._loop.is_running():
                self._not_before = now + self._limit_s
            looked_at = now
            seen_at = self._seen_at
            if self.blocked_s <= self._limit_s or seen_at == told_of:
                continue
            told_of = seen_at
            try:
                self._tell(now - seen_at, seen_at)
            except Exception:  # what it looks at changes while it looks, and it must go on looking
                logger.exception("the event loop is blocked, and it could not be seen by what")

    def _tell(self, blocked_s: float, seen_at: float) -> None:
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - made for this
        task = asyncio.current_task(self._loop)
        if frame is None or self._seen_at != seen_at:
            return
        frames = list(_frames(frame))
        who, advice = self._who(task, frames)
        self._told = (seen_at, who)
        stack = traceback.StackSummary.extract(
            ((one, one.f_lineno) for one in reversed(frames[:FRAMES_MAX])), lookup_lines=True
        )
        logger.warning(
            "the event loop has been blocked for %.1f s by %s: %s\n%s",
            blocked_s,
            who,
            advice,
            "".join(stack.format()).rstrip(),
        )

    def _who(self, task: asyncio.Task[Any] | None, frames: list[FrameType]) -> tuple[str, str]:
        """What runs, as exactly as it can be told, and what to do about it."""
        inflight = next((one for one in self._held if one.task is task), None)
        hook = self._hook_of(task, inflight)
        if hook is not None:
            for_what = _task_of(inflight) if inflight is not None else ""
            what = f", for a task of type {for_what}" if for_what else ""
            return f"plugin {hook.member.name!r} in {hook.label}{what}", HOOK_ADVICE
        if inflight is not None and inflight.in_handler:
            return _handler(inflight), HANDLER_ADVICE
        if task is not None and (name := self._spawned(task)):
            return name, HOOK_ADVICE
        return self._by_code(frames)

    def _hook_of(
        self, task: asyncio.Task[Any] | None, inflight: InFlight | None
    ) -> Implementation | Seen | None:
        if inflight is not None and inflight.hook is not None:
            return inflight.hook
        for caller in self._hooks.callers.copy():
            if caller.task is task and caller.hook is not None:
                return caller.hook
        return None

    def _by_code(self, frames: list[FrameType]) -> tuple[str, str]:
        """Where no task tells: a callback, or a task that a hook or a handler has made."""
        hooks = {code_of(one.function): one for hook in HOOKS for one in getattr(self._hooks, hook)}
        for frame in frames:
            if (found := hooks.get(frame.f_code)) is not None:
                return f"plugin {found.member.name!r} in {found.hook}", HOOK_ADVICE
            if (task_type := self._handlers.get(frame.f_code)) is not None:
                return f"the handler of task type {task_type!r}", HANDLER_ADVICE
        packages = {_package(member): member.name for member in self._hooks.members}
        for frame in frames:
            package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
            if package in packages:
                return f"code of plugin {packages[package]!r}", HOOK_ADVICE
        return f"something that does not await{self._meanwhile()}", OTHER_ADVICE

    def _meanwhile(self) -> str:
        """One of the handlers that run has begun it: in a callback, or in a task of its own."""
        running = [_task_of(one) for one in self._held if one.in_handler]
        if not running:
            return ""
        more = f" and {len(running) - SHOWN_MAX} more" if len(running) > SHOWN_MAX else ""
        return f", while handlers run for {', '.join(running[:SHOWN_MAX])}{more}"


def code_of(function: Callable[..., Any]) -> CodeType | None:
    """The code of a function, whatever it is wrapped in."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code if isinstance(code, CodeType) else None


def _package(member: Member) -> str:
    package = type(member.plugin).__module__.partition(".")[0]
    return "" if package in ("__main__", "dagnats_worker") else package


def _handler(inflight: InFlight) -> str:
    task = _task_of(inflight)
    return f"the handler of task type {task}" if task else "a handler"


def _task_of(inflight: InFlight) -> str:
    """The type, the run and the step; empty where they are not known yet."""
    execution = inflight.execution
    if execution is None:
        return ""
    name = execution.environment.task_type.name
    return f"{name!r} (run {execution.task.run_id}, step {execution.task.step_id})"


def _frames(innermost: FrameType) -> Iterator[FrameType]:
    frame: FrameType | None = innermost
    while frame is not None:
        yield frame
        frame = frame.f_back
