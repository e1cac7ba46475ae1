"""Trace context in and out of messages, in the format that the application has chosen."""

from __future__ import annotations

import re
from collections.abc import Mapping

from opentelemetry import baggage, propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import SpanContext, TraceFlags

from dagnats_worker import BaseContext

NO_CONTEXT = Context()
"""What a task begins with that came with none: not that of whoever started the worker."""

W3C_PARENT = "traceparent"
W3C = ("baggage", "traceparent", "tracestate")
"""What the API's own propagator reads and writes, which is in force unless somebody chooses."""
W3C_REST = frozenset(W3C) - {W3C_PARENT}

_w3c_parent = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class Format:
    """How a propagator writes a context; it makes its fields anew each time it is asked for them.

    Attributes:
        fields: The headers that hold a context.
        is_usual: Contexts travel as they do unless somebody chooses; reading that can be quick.
    """

    __slots__ = ("fields", "is_usual", "propagator")

    def __init__(self, propagator: TextMapPropagator) -> None:
        self.propagator = propagator
        self.fields = tuple(sorted(propagator.fields))
        self.is_usual = self.fields == W3C and isinstance(propagator, CompositePropagator)


_known = Format(propagate.get_global_textmap())


def current_format() -> Format:
    """The format that is in force."""
    global _known  # noqa: PLW0603 - of the propagator of before
    propagator = propagate.get_global_textmap()
    if _known.propagator is not propagator:
        _known = Format(propagator)
    return _known


def extracted(carrier: Mapping[str, str]) -> Context:
    """The context that a message came with."""
    used = current_format()
    if used.is_usual and (parent := carrier.get(W3C_PARENT)) and W3C_REST.isdisjoint(carrier):
        found = _w3c_parent.fullmatch(parent)
        if found is not None:
            trace_id, span_id, flags = found.groups()
            trace_number, span_number = int(trace_id, 16), int(span_id, 16)
            if trace_number and span_number:  # zeros are no trace
                known = TraceFlags(int(flags, 16))
                span = SpanContext(trace_number, span_number, is_remote=True, trace_flags=known)
                return trace.set_span_in_context(trace.NonRecordingSpan(span), NO_CONTEXT)
    for field in used.fields:
        if field in carrier:
            return propagate.extract(carrier, NO_CONTEXT)
    return NO_CONTEXT


def context_of(ctx: BaseContext) -> Context:
    """The context that a task came with, in the headers of its message or else in its body."""
    found = extracted(ctx.headers)
    if found is NO_CONTEXT and (of_body := ctx.trace_headers):
        return extracted(of_body)
    return found


def injected(context: Context | None = None) -> dict[str, str]:
    """The headers of a context; of the current one where none is given."""
    headers: dict[str, str] = {}
    propagate.inject(headers, context)
    return headers


def injected_of(span: SpanContext, context: Context) -> dict[str, str]:
    """The headers of a context whose current span is known, which the usual format is quick at."""
    has_baggage = len(context) > 1 and baggage.get_all(context)
    if not current_format().is_usual or span.trace_state or has_baggage:
        return injected(context)
    return {W3C_PARENT: f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"}


def put_in_place(headers: dict[str, str], context_headers: Mapping[str, str]) -> None:
    """Let a message say one context and nothing of the one before."""
    headers.update(context_headers)
    if len(headers) > len(context_headers):
        for field in current_format().fields:
            if field not in context_headers:
                headers.pop(field, None)
