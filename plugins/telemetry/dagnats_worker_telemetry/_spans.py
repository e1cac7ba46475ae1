"""Spans: one for each task, one for its outcome, one for each task that a client submits.

Names, kinds and the attributes without a prefix are those of the Go worker; beside them stand
OpenTelemetry's semantic conventions for messaging.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Token

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from dagnats_worker import Completed, Continued, Failed, Outcome, Paused, Released, TaskContext
from dagnats_worker.errors import DagnatsError, PluginError, TransportError
from dagnats_worker.hookspecs import Message, current_context
from dagnats_worker_telemetry._instruments import OUTCOME
from dagnats_worker_telemetry._metrics import outcome_name
from dagnats_worker_telemetry._propagation import (
    W3C_PARENT,
    context_of,
    injected,
    injected_of,
    put_in_place,
)
from dagnats_worker_telemetry._providers import Given, has_traces

TASK_SUBJECT = "task."
STARTED = "step.started"
RETRY = "retry"
"""Why a task without an engine is given back that has failed and is to be tried again."""

FAIL_NAMES = {
    "retriable": "worker.fail",
    "non_retriable": "worker.failPermanent",
    "retry_after": "worker.failRetryAfter",
}

Attributes = dict[str, str | int]


class Spans:
    """Makes the spans of workers and clients."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._of_types: dict[str, tuple[str, Attributes]] = {}
        self._active: dict[TaskContext, TaskSpan] = {}

    # ------------------------------------------------------------------ tasks

    def begin(self, ctx: TaskContext) -> TaskSpan | None:
        """Start the span of a task and make it the current one.

        Returns:
            None where there is neither an SDK nor a trace, and so nothing to be done.
        """
        parent = context_of(ctx)
        name, attributes = self._of_types.get(ctx.task_type) or self._describe_type(ctx.task_type)
        span = self._given.tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        span_context = span.get_span_context()
        if not span_context.is_valid:
            return None
        if span_context.is_remote:  # no SDK: the trace goes through, and nothing is added
            task = TaskSpan(self, ctx, span, parent, None)
        else:
            context = trace.set_span_in_context(span, parent)
            task = TaskSpan(self, ctx, span, context, context)
        self._active[ctx] = task
        if task.is_recorded:
            span.set_attributes(_of_task(ctx))
        return task

    def failed(self, ctx: TaskContext, error: BaseException, outcome: Outcome) -> None:
        """Remember what a handler has raised; its outcome may be a retry, which does not say."""
        if (task := self._active.get(ctx)) is not None:
            task.error = error
            task.failure = outcome if isinstance(outcome, Failed) else None

    def forget(self, ctx: TaskContext) -> None:
        """The task of a span has ended."""
        self._active.pop(ctx, None)

    def headers_of(self, ctx: TaskContext) -> dict[str, str]:
        """What the process of a handler is told of the trace."""
        task = self._active.get(ctx)
        return (task.headers if task is not None else None) or ctx.trace_headers

    def _describe_type(self, task_type: str) -> tuple[str, Attributes]:
        attributes = _of_queue(task_type, "process") | {"task_name": task_type}
        described = self._of_types[task_type] = (f"executeTask {task_type}", attributes)
        return described

    # ------------------------------------------------------------------ messages

    def of_task(self, ctx: TaskContext, message: Message) -> None:
        """Let a message carry the span of its task; what a handler streams, the handler's own."""
        task = self._active.get(ctx)
        if task is None or (headers := task.headers) is None:
            return
        if not message.event_type:
            if _is_inside(trace.get_current_span(), task.span):
                headers = injected()
        elif task.is_recorded and message.event_type != STARTED:
            self._begin_outcome(ctx, task)
        put_in_place(message.headers, headers)

    def _begin_outcome(self, ctx: TaskContext, task: TaskSpan) -> None:
        """Start the span of an outcome that is about to be published."""
        if ctx.outcome is None or task.of_outcome is not None:
            return
        described = _describe_outcome(ctx, task.failure, ctx.outcome)
        if described is None:
            return
        name, attributes, failure = described
        attributes |= {"run_id": ctx.run_id, "step_id": ctx.step_id}
        task.of_outcome = self._given.tracer.start_span(name, task.context, attributes=attributes)
        if failure is not None:
            task.of_outcome.set_status(Status(StatusCode.ERROR, failure))

    def of_client(self, message: Message, *, with_span: bool) -> None:
        """Let a message of a client carry the context that it is sent in.

        A trace that the caller has put into the headers stays.
        """
        if W3C_PARENT in message.headers:
            return
        ctx = current_context()
        if ctx is not None and not has_traces(self._given.now()):
            # Nobody has made the task's context the current one.
            put_in_place(message.headers, injected(context_of(ctx)) | injected())
            return
        if not with_span or not message.subject.startswith(TASK_SUBJECT):
            put_in_place(message.headers, injected())
            return
        queue, _, run_id = message.subject.removeprefix(TASK_SUBJECT).rpartition(".")
        span = self._given.tracer.start_span(
            f"enqueueTask {queue}", kind=SpanKind.PRODUCER, attributes=_of_queue(queue, "create")
        )
        if span.is_recording():
            span.set_attributes(_of_message(message.subject, run_id, message.headers))
            span.set_attribute("run_id", run_id)
        put_in_place(message.headers, injected(trace.set_span_in_context(span)))
        span.end()


class TaskSpan:
    """The span of a task, current for as long as the task is.

    Attributes:
        context: With the span in it.
        is_recorded: Somebody gets the span; else nothing has to be found out for it.
        error: What the handler has raised.
        failure: How that was classified.
        of_outcome: The span of its outcome, once that is being published.
    """

    __slots__ = (
        "_ctx",
        "_headers",
        "_spans",
        "_to_inject",
        "_token",
        "context",
        "error",
        "failure",
        "is_recorded",
        "of_outcome",
        "span",
    )

    def __init__(
        self,
        spans: Spans,
        ctx: TaskContext,
        span: Span,
        context: Context,
        to_inject: Context | None,
    ) -> None:
        self._spans = spans
        self._ctx = ctx
        self._to_inject = to_inject
        self._headers: dict[str, str] | None = None
        self.span = span
        self.is_recorded = span.is_recording()
        self.context = context
        self.error: BaseException | None = None
        self.failure: Failed | None = None
        self.of_outcome: Span | None = None
        self._token: Token[Context] = context_api.attach(context)

    @property
    def headers(self) -> dict[str, str] | None:
        """What its messages carry; None where they carry on what the task came with."""
        if self._headers is None and self._to_inject is not None:
            self._headers = injected_of(self.span.get_span_context(), self._to_inject)
        return self._headers

    def end(self, error: BaseException | None) -> None:
        """The task ends, with the error that has ended its walk where there is one."""
        self._spans.forget(self._ctx)
        context_api.detach(self._token)
        if self.of_outcome is not None:
            if isinstance(error, Exception):
                self.of_outcome.set_status(Status(StatusCode.ERROR, f"not stored: {error}"))
            self.of_outcome.end()
        try:
            if self.is_recorded and self.span.is_recording():
                self._describe_end(error)
        finally:
            self.span.end()

    def _describe_end(self, error: BaseException | None) -> None:
        outcome = self._ctx.outcome
        if error is not None and _is_ours(error):
            _record(self.span, str(error), error)
            return
        if outcome is None:
            return
        self.span.set_attribute(OUTCOME, outcome_name(outcome))
        match outcome:
            case Failed(text):
                _record(self.span, text, outcome.exception or self.error)
            case Released(reason, _, text):
                self.span.set_attribute("dagnats.release.reason", reason)
                if reason == RETRY:
                    _record(self.span, text, self.error)
            case Completed() | Continued() | Paused():
                pass


# --------------------------------------------------------------------------- what spans say


def _of_queue(queue: str, operation: str) -> Attributes:
    """What is the same for all tasks of a queue, and is there for a sampler to look at."""
    return {
        "messaging.system": "nats",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.template": f"{TASK_SUBJECT}{queue}.{{run_id}}",
    }


def _of_message(subject: str, run_id: str, headers: Mapping[str, str]) -> Attributes:
    found: Attributes = {
        "messaging.destination.name": subject,
        "messaging.message.conversation_id": run_id,
    }
    if message_id := headers.get("Nats-Msg-Id"):
        found["messaging.message.id"] = message_id
    return found


def _of_task(ctx: TaskContext) -> Attributes:
    found = _of_message(ctx.delivery.subject, ctx.run_id, ctx.headers)
    found |= {
        "run_id": ctx.run_id,
        "step_id": ctx.step_id,
        "messaging.client.id": ctx.worker_id,
        "dagnats.attempt": ctx.attempt,
        "dagnats.deliveries": ctx.deliveries,
    }
    if ctx.workflow_name:
        found["workflow_name"] = ctx.workflow_name
    if ctx.iteration:
        found["dagnats.iteration"] = ctx.iteration
    return found


def _describe_outcome(
    ctx: TaskContext, failure: Failed | None, outcome: Outcome
) -> tuple[str, Attributes, str | None] | None:
    """Name, attributes and failure of an outcome's span; None for what has none in Go either."""
    match outcome:
        case Completed(output):
            return "worker.complete", {"output_size_bytes": len(output)}, None
        case Continued():
            return "worker.continue", {"iteration": ctx.iteration}, None
        case Failed(error, failure_type):
            return _describe_failure(failure_type, error)
        case Released(reason, _, error) if reason == RETRY:
            failure_type = failure.failure_type if failure else "retriable"
            return _describe_failure(failure_type, error)
        case Released() | Paused():
            return None


def _describe_failure(failure_type: str, error: str) -> tuple[str, Attributes, str]:
    attributes: Attributes = {"error": error}
    if failure_type != "retriable":
        attributes["failure_type"] = failure_type
    return FAIL_NAMES[failure_type], attributes, error


def _record(span: Span, text: str, error: BaseException | None) -> None:
    """Record an error, once in the whole trace: on the span of its task."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}" if error else "_OTHER"
    kind = kind.removeprefix("builtins.")
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, text))
    if error is not None and error.__traceback__ is not None:
        span.record_exception(error)
    else:  # a handler has recorded its failure as a text
        span.add_event("exception", {"exception.type": kind, "exception.message": text})


def _is_ours(error: BaseException) -> bool:
    """Whether the walk of a task was ended by an error, and not by a decision."""
    if isinstance(error, DagnatsError):
        return isinstance(error, TransportError | PluginError)
    return isinstance(error, Exception)


def _is_inside(span: Span, task: Span) -> bool:
    """Whether a span is one that the handler of a task has started."""
    here, there = span.get_span_context(), task.get_span_context()
    return here.is_valid and here.trace_id == there.trace_id and here.span_id != there.span_id
