"""What a handler sees of its task, and what it may do: async and blocking, over one base."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Mapping, MutableMapping
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, TypeVar

from dagnats_worker import _json
from dagnats_worker._execution import Execution
from dagnats_worker._inflight import InFlight
from dagnats_worker._kept import KeptTask
from dagnats_worker._outcome import (
    Completed,
    Continued,
    Failed,
    Outcome,
    check_outcome,
    failed,
)
from dagnats_worker.errors import (
    CapabilityMissingError,
    RetryAfterError,
    UsageError,
    describe,
)
from dagnats_worker.hookspecs import CHECKPOINTS, SIGNALS, Capability, Delivery, Plugin

T = TypeVar("T")

logger = logging.getLogger("dagnats_worker.task")


class TaskLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose records carry run, step, task type and attempt."""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class BaseContext:
    """What async and blocking handlers have in common."""

    __slots__ = ("_execution",)

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    # --------------------------------------------------------------------- what the task is

    @property
    def task_id(self) -> str:
        """``<run id>.<step id>``."""
        return self._execution.task.task_id

    @property
    def run_id(self) -> str:
        """The run that the step belongs to."""
        return self._execution.task.run_id

    @property
    def step_id(self) -> str:
        """The step within the run; may contain dots."""
        return self._execution.task.step_id

    @property
    def task_type(self) -> str:
        """What the handler was registered for."""
        return self._execution.environment.task_type.name

    @property
    def attempt(self) -> int:
        """1 for the first attempt.

        Without an engine, crashes count, and pauses, delays and drains do not. With one it is the
        engine's number, or how often the message was delivered where the engine gives none.
        """
        return self._execution.attempt

    @property
    def retry_count(self) -> int:
        """How many attempts there were before this one: 0, 1, 2 ...

        The Go worker's RetryCount gives 0, 2, 3 ... for the same attempts.
        """
        return self._execution.attempt - 1

    @property
    def iteration(self) -> int:
        """Which turn of an agent loop this is, 0 for the first."""
        return self._execution.task.iteration

    @property
    def deliveries(self) -> int:
        """How many times this message has been delivered, 1 for the first time."""
        return self._execution.delivery.deliveries

    @property
    def metadata(self) -> Mapping[str, str]:
        """Metadata of the step."""
        return self._execution.task.metadata

    @property
    def workflow_name(self) -> str:
        """The workflow that the step belongs to; empty where the task does not say."""
        return self._execution.task.workflow_name

    @property
    def delivery(self) -> Delivery:
        """The message that brought the task: its stream, its sequence there, its age."""
        return self._execution.delivery

    @property
    def started_sequence(self) -> int:
        """Where ``step.started`` of this attempt is in the history; 0 as long as nobody knows.

        It is known before the handler runs where the start is stored first: with ``confirm_start``,
        on a redelivery, and for a fenced source.
        """
        return self._execution.started_sequence

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the task message."""
        return self._execution.delivery.headers

    @property
    def trace_headers(self) -> dict[str, str]:
        """The trace that the task came with: that of its headers, else its body, else its run."""
        return self._execution.trace_headers()

    @property
    def worker_id(self) -> str:
        """The worker that runs this."""
        return self._execution.environment.worker_id

    @property
    def input(self) -> bytes:
        """The input as JSON text; empty where the task has none."""
        return bytes(self._execution.task.input)

    def json(self) -> Any:
        """The input as a Python value; None where the task has none.

        Raises:
            DecodeError: The input is not JSON.
        """
        raw = self._execution.task.input
        return _json.decode(bytes(raw)) if bytes(raw) else None

    def options(self, plugin: type[Plugin[Any]]) -> Any:
        """The task options that a plugin declared, as its ``task_options`` dataclass."""
        return self._execution.environment.task_type.options(plugin)

    @property
    def log(self) -> TaskLogger:
        """A logger whose records carry ``run_id``, ``step_id``, ``task_type`` and ``attempt``."""
        return TaskLogger(
            logger,
            {
                "run_id": self.run_id,
                "step_id": self.step_id,
                "task_type": self.task_type,
                "attempt": self.attempt,
            },
        )

    @property
    def outcome(self) -> Outcome | None:
        """How the task ends; None until that is known."""
        return self._execution.outcome

    @property
    def handler_duration(self) -> timedelta | None:
        """How long the handler took; None until it has ended, and where it did not run."""
        return self._execution.handler_duration

    @property
    def carrier(self) -> dict[str, str]:
        """Text that plugins send along to the child process of a process handler."""
        execution = self._execution
        if execution.carrier_text is None:
            execution.carrier_text = {}
        return execution.carrier_text

    @property
    def abandoned(self) -> Future[Any] | None:
        """The handler's thread, where it goes on after the task has ended."""
        return self._execution.abandoned

    @abandoned.setter
    def abandoned(self, thread: Future[Any] | None) -> None:
        self._execution.abandoned = thread

    # --------------------------------------------------------------------- how the task ends

    def record(self, outcome: Outcome) -> None:
        """Record how the task ends; it is published once, after the handler has returned.

        Raises:
            UsageError: An outcome is recorded already, which stands; or this is none.
        """
        self._record(check_outcome(outcome))

    def _record(self, outcome: Outcome) -> None:
        execution = self._execution
        if execution.outcome is not None:
            error = UsageError(
                f"task {self.task_id} has the outcome {type(execution.outcome).__name__} already; "
                f"{type(outcome).__name__} is ignored. Record one outcome, then return"
            )
            self.log.error("%s", error)
            raise error
        execution.outcome = outcome

    def complete(self, *output: Any) -> None:
        """Record that the step is done.

        Args:
            output: At most one value; anything JSON can hold, bytes mean JSON. Without it the
                event has no payload at all, with None it has JSON's null.

        Raises:
            UsageError: Not JSON, or an outcome is recorded already.
        """
        if len(output) > 1:
            raise UsageError(f"complete() takes one output at most, got {len(output)}")
        self._record(Completed(_json.encode(output[0]) if output else b""))

    def continue_(self, *output: Any) -> None:
        """Record that this turn of an agent loop is done and the next one is to come."""
        if len(output) > 1:
            raise UsageError(f"continue_() takes one output at most, got {len(output)}")
        self._record(Continued(_json.encode(output[0]) if output else b""))

    def fail(self, error: BaseException | str) -> None:
        """Record a failure; an exception is classified as if it had been raised."""
        if isinstance(error, BaseException):
            self._record(failed(error))
        else:
            self._record(Failed(_text(error), "retriable"))

    def fail_permanent(self, error: BaseException | str) -> None:
        """Record a failure that no retry can help."""
        self._record(Failed(_text(error), "non_retriable", exception=_exception(error)))

    def fail_retry_after(self, error: BaseException | str, delay: timedelta) -> None:
        """Record a failure to be tried again after ``delay``, 100 ms ... 1 h on the wire."""
        RetryAfterError("delay is checked here", delay)
        self._record(Failed(_text(error), "retry_after", delay, _exception(error)))

    def kept_task(self) -> KeptTask:
        """What a plugin stores that keeps this task, and publishes to have it go on.

        The task is ended with ``Released(reason, kept=True)`` after it is stored. It must not be
        published before the message that brought the task is acked, and may be published twice.
        """
        return self._execution.kept_task()

    # --------------------------------------------------------------------- what plugins provide

    def use(self, capability: Capability[T]) -> T:
        """What a plugin provides under a key, built on first use in this task.

        Raises:
            CapabilityMissingError: No plugin provides it; says what to install.
        """
        execution = self._execution
        if execution.provided is None:
            execution.provided = {}
        if capability not in execution.provided:
            factory = execution.environment.capabilities.get(capability)
            if factory is None:
                raise CapabilityMissingError(
                    f"no plugin provides {capability.name!r}: pip install '{capability.install}'"
                )
            execution.provided[capability] = factory(self)
        value: T = execution.provided[capability]
        return value


class TaskContext(BaseContext):
    """The context of an async handler."""

    __slots__ = ()

    @property
    def cancelled(self) -> asyncio.Event:
        """Set when the handler is to stop: its run is cancelled, its time is over, a drain ends."""
        return self._execution.async_event()

    def sync(self) -> SyncTaskContext:
        """The same task as a blocking handler sees it."""
        return SyncTaskContext(self._execution)

    async def put_stream(self, data: Any) -> None:
        """Send a chunk to whoever listens now; nothing is stored. Bytes as they are, else JSON."""
        await self._execution.environment.events.chunk(self._execution, _json.encode_value(data))

    async def heartbeat(self) -> None:
        """Renew the lease now; it is renewed by itself too."""
        await self._execution.environment.events.heartbeat(self._execution)

    async def checkpoint(self, state: Any) -> None:
        """Save the state of this step. See ``Checkpointable``."""
        await self.use(CHECKPOINTS).checkpoint(state)

    async def load_checkpoint(self) -> bytes | None:
        """The state that was saved last, or None. See ``Checkpointable``."""
        return await self.use(CHECKPOINTS).load_checkpoint()

    async def pause(self, name: str, duration: timedelta) -> None:
        """Record that the step is to be run again after ``duration``. See ``Checkpointable``."""
        await self.use(CHECKPOINTS).pause(name, duration)

    async def wait_for_signal(self, name: str, timeout: timedelta, *, park: bool = False) -> bytes:
        """The data of a signal to this run. See ``Signaler``."""
        return await self.use(SIGNALS).wait_for_signal(name, timeout, park=park)

    async def send_signal(self, run_id: str, name: str, data: Any) -> None:
        """Send a signal to a run. See ``Signaler``."""
        await self.use(SIGNALS).send_signal(run_id, name, data)


class SyncTaskContext(BaseContext):
    """The context of a blocking handler: the same names, and calls that block its thread."""

    __slots__ = ()

    @property
    def cancelled(self) -> threading.Event:
        """Set when the handler is to stop; ``cancelled.wait(seconds)`` is a sleep that ends so."""
        return self._execution.thread_event()

    def run(self, awaitable: Awaitable[T]) -> T:
        """Run something async on the worker's loop, and block until it is done."""

        async def wait() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self._execution.environment.loop).result()

    def put_stream(self, data: Any) -> None:
        """Send a chunk to whoever listens now; nothing is stored. Bytes as they are, else JSON."""
        events = self._execution.environment.events
        self.run(events.chunk(self._execution, _json.encode_value(data)))

    def heartbeat(self) -> None:
        """Renew the lease now; it is renewed by itself too."""
        self.run(self._execution.environment.events.heartbeat(self._execution))

    def checkpoint(self, state: Any) -> None:
        """Save the state of this step. See ``Checkpointable``."""
        self.run(self.use(CHECKPOINTS).checkpoint(state))

    def load_checkpoint(self) -> bytes | None:
        """The state that was saved last, or None. See ``Checkpointable``."""
        return self.run(self.use(CHECKPOINTS).load_checkpoint())

    def pause(self, name: str, duration: timedelta) -> None:
        """Record that the step is to be run again after ``duration``. See ``Checkpointable``."""
        self.run(self.use(CHECKPOINTS).pause(name, duration))

    def wait_for_signal(self, name: str, timeout: timedelta, *, park: bool = False) -> bytes:
        """The data of a signal to this run. See ``Signaler``."""
        return self.run(self.use(SIGNALS).wait_for_signal(name, timeout, park=park))

    def send_signal(self, run_id: str, name: str, data: Any) -> None:
        """Send a signal to a run. See ``Signaler``."""
        self.run(self.use(SIGNALS).send_signal(run_id, name, data))


def _text(error: BaseException | str) -> str:
    if not isinstance(error, BaseException | str):
        raise UsageError(f"an error is an exception or a text, got {error!r}")
    return describe(error) if isinstance(error, BaseException) else error


def _exception(error: BaseException | str) -> BaseException | None:
    return error if isinstance(error, BaseException) else None


def inflight_of(ctx: BaseContext) -> InFlight:
    """The held message behind a context; for the core, which plugins and handlers are not."""
    return ctx._execution.inflight  # noqa: SLF001 - the one way in, beside the class
