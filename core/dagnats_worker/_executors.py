"""Where handlers run: on the event loop, in a thread, in a process of their own."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any

from dagnats_worker._context import TaskContext
from dagnats_worker._handlers import HandlerSpec, bind_async, call_sync
from dagnats_worker._process_child import ChildScope, Job
from dagnats_worker._processes import ProcessPool, registered_name
from dagnats_worker._threads import DaemonThreads

THREAD_NAME = "dagnats-worker"


class Executors:
    """The threads and processes of one worker, started when they are first needed.

    Belongs to one event loop. How many calls wait for a thread or a process is bounded by the
    slots: only a task that has one calls.

    Args:
        threads_max: How many handlers run in threads at most, abandoned ones included.
        processes_max: How many handlers run in processes at most.
        child_scopes: What is entered around each handler in a child process, outermost first;
            picklable.
    """

    def __init__(
        self, *, threads_max: int, processes_max: int, child_scopes: Sequence[ChildScope] = ()
    ) -> None:
        self._threads = DaemonThreads(threads_max, THREAD_NAME)
        self._processes = ProcessPool(processes_max, child_scopes)
        self._abandoned: set[Future[Any]] = set()

    @property
    def abandoned(self) -> int:
        """How many threads still run a handler that nobody waits for any more."""
        return len(self._abandoned)

    def invoke(self, spec: HandlerSpec) -> Callable[[TaskContext], Awaitable[Any]]:
        """Make the function that runs a handler once, for a task's context.

        What it raises is what the handler raised, whichever class that is. When the task that
        awaits it is cancelled, an async handler is cancelled, a process is killed, and a thread is
        abandoned: ``ctx.abandoned`` then holds a future that is done when the thread is free again.

        Returns:
            A function whose result is the handler's, or the bytes of its JSON for a process.
        """
        match spec.executor:
            case "async":
                return bind_async(spec)
            case "thread":
                return self._in_thread(spec)
            case "process":
                return self._in_process(spec)

    async def close(self, wait_s: float) -> None:
        """End all threads and processes.

        Args:
            wait_s: How long those that are busy, or slow to end, are waited for. After that a
                process is killed, and a thread is left behind: it does not hold up the exit.
        """
        self._threads.close()
        self._processes.close(wait_s)
        closers = DaemonThreads(2, f"{THREAD_NAME}-close")
        joined = [
            asyncio.wrap_future(closers.submit(join, wait_s))
            for join in (self._threads.join, self._processes.join)
        ]
        closers.close()
        await asyncio.gather(*joined)

    def _in_thread(self, spec: HandlerSpec) -> Callable[[TaskContext], Awaitable[Any]]:
        async def in_thread(ctx: TaskContext) -> Any:
            sync_ctx = ctx.sync() if spec.takes_context else None
            run = contextvars.copy_context().run
            future = self._threads.submit(run, call_sync, spec, sync_ctx, ctx.input)
            try:
                return await asyncio.wrap_future(future)
            except asyncio.CancelledError:
                # Done means that the handler itself raised this, or that it came in just before.
                if not future.cancel() and not future.done():
                    self._abandon(future)
                    ctx.abandoned = future
                raise

        return in_thread

    def _abandon(self, future: Future[Any]) -> None:
        self._abandoned.add(future)
        future.add_done_callback(self._abandoned.discard)

    def _in_process(self, spec: HandlerSpec) -> Callable[[TaskContext], Awaitable[Any]]:
        async def in_process(ctx: TaskContext) -> Any:
            module, qualified_name = registered_name(spec)
            return await self._processes.run(
                Job(module, qualified_name, spec.unwrap_trigger, ctx.input, ctx.carrier)
            )

        return in_process
