"""One execution of one task: what the worker knows of it between decoding and the ack."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dagnats_worker._inflight import InFlight
from dagnats_worker._kept import Earlier, KeptTask, earlier_of, kept_task
from dagnats_worker._outcome import Outcome
from dagnats_worker._protocol import DLQ_HEADER_PREFIX, TRACE_HEADERS, TaskPayload, task_subject
from dagnats_worker._transport import Delivery, Transport
from dagnats_worker.hookspecs import Capability, TaskType

if TYPE_CHECKING:
    from dagnats_worker._context import BaseContext, TaskContext
    from dagnats_worker._events import Events, Sending


@dataclass(slots=True)
class Environment:
    """What all executions of one task type share."""

    worker_id: str
    task_type: TaskType
    transport: Transport
    events: Events
    loop: asyncio.AbstractEventLoop
    capabilities: dict[Capability[Any], Callable[[BaseContext], Any]] = field(default_factory=dict)


class Execution:
    """The state of one execution; ``TaskContext`` is the handler's view of it.

    Attributes:
        attempt: 1 for the first.
        earlier: What was before this message, where somebody has kept the task meanwhile.
        last_delivery: The highest number of deliveries that the history tells of; 0 where it was
            not read.
        started: ``step.started`` on its way; None before it is sent.
        started_sequence: Sequence of ``step.started`` in the history; 0 before it is known.
        seen_sequence: Of the newest event of the run that was read before the start; 0 for none.
        opens_run: Somebody else may have been given the task, and its run had no event yet; its
            start is stored only as the first one, which shows that nobody has begun it meanwhile.
        outcome: What was recorded, and then what was published.
        handler_duration: Set once the handler has ended.
        is_cancelled: The handler is to stop.
        abandoned: The thread that still runs the handler after its task has ended.
        carrier: Text that plugins send along to the child of a process handler.
    """

    __slots__ = (
        "_async_event",
        "_thread_event",
        "abandoned",
        "attempt",
        "carrier_text",
        "context",
        "delivery",
        "earlier",
        "environment",
        "handler_duration",
        "inflight",
        "is_cancelled",
        "last_delivery",
        "opens_run",
        "outcome",
        "provided",
        "seen_sequence",
        "started",
        "started_sequence",
        "task",
    )

    context: TaskContext

    def __init__(self, task: TaskPayload, inflight: InFlight, environment: Environment) -> None:
        self.task = task
        self.inflight = inflight
        self.delivery: Delivery = inflight.delivery
        self.environment = environment
        self.attempt = task.attempt or self.delivery.deliveries
        self.earlier = earlier_of(self.delivery.headers)
        self.last_delivery = 0
        self.started: Sending | None = None
        self.started_sequence = 0
        self.seen_sequence = 0
        self.opens_run = False
        self.outcome: Outcome | None = None
        self.handler_duration: timedelta | None = None
        self.is_cancelled = False
        self.abandoned: Future[Any] | None = None
        self.carrier_text: dict[str, str] | None = None
        self.provided: dict[Capability[Any], Any] | None = None
        self._async_event: asyncio.Event | None = None
        self._thread_event: threading.Event | None = None
        inflight.execution = self

    @property
    def marked_managed(self) -> bool:
        """The message itself says that an engine manages the run."""
        task = self.task
        return bool(task.workflow_name or task.dispatch_nonce) or any(
            name.startswith(DLQ_HEADER_PREFIX) for name in self.delivery.headers
        )

    @property
    def fenced(self) -> bool:
        """The outcome may only be stored if nobody has started the step again."""
        return self.inflight.source.fenced or self.shared

    @property
    def shared(self) -> bool:
        """Somebody else may have been given this task before us, or since."""
        delivery = self.delivery
        return delivery.deliveries > 1 or delivery.doubtful or self.inflight.lease_may_have_lapsed

    @property
    def was_kept(self) -> bool:
        """The task was there before its message, and so was its history."""
        return self.earlier.since_ns > 0

    @property
    def dispatched_ns(self) -> int:
        """When the task was dispatched, in nanoseconds since the epoch; by its first message."""
        return self.earlier.since_ns or self.delivery.timestamp_ns

    @property
    def deliveries(self) -> int:
        """How often the task has been delivered, by all of its messages."""
        return self.earlier.deliveries + self.delivery.deliveries

    def kept_task(self) -> KeptTask:
        """What dispatches this task again, where somebody keeps it."""
        task = self.task
        before = max(self.deliveries, self.last_delivery)
        ordinary = task_subject(self.environment.task_type.name, task.run_id, None)
        earlier = Earlier(self.dispatched_ns, before)
        return kept_task(self.delivery, task.task_id, earlier, ordinary)

    def trace_headers(self) -> dict[str, str]:
        """The incoming trace context, which goes out unchanged where no plugin changes it."""
        headers: Mapping[str, str] = self.delivery.headers
        found = (
            {name: headers[name] for name in TRACE_HEADERS if name in headers} if headers else {}
        )
        if not found and self.task.traceparent:
            found["traceparent"] = self.task.traceparent
            if self.task.tracestate:
                found["tracestate"] = self.task.tracestate
        return found

    def set_cancelled(self) -> None:
        """Tell the handler, whichever way it looks."""
        self.is_cancelled = True
        if self._async_event is not None:
            self._async_event.set()
        if self._thread_event is not None:
            self._thread_event.set()

    def async_event(self) -> asyncio.Event:
        if self._async_event is None:
            self._async_event = asyncio.Event()
            if self.is_cancelled:
                self._async_event.set()
        return self._async_event

    def thread_event(self) -> threading.Event:
        if self._thread_event is None:
            self._thread_event = threading.Event()
            if self.is_cancelled:
                self._thread_event.set()
        return self._thread_event
