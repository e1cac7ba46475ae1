"""The quick way of reading a trace is right wherever it is taken.

Method: every header is read in the quick way and by the API's own propagator. Real: both. Fake:
nothing.
"""

from __future__ import annotations

import pytest
from opentelemetry import baggage, propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext

from dagnats_worker_telemetry._propagation import NO_CONTEXT, extracted, injected, injected_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "b7ad6b7169203331"
PARENTS = {
    "sampled": f"00-{TRACE}-{SPAN}-01",
    "not sampled": f"00-{TRACE}-{SPAN}-00",
    "random": f"00-{TRACE}-{SPAN}-03",
    "no trace": f"00-{'0' * 32}-{SPAN}-01",
    "no span": f"00-{TRACE}-{'0' * 16}-01",
    "later version": f"01-{TRACE}-{SPAN}-01-more",
    "version that is none": f"ff-{TRACE}-{SPAN}-01",
    "more than there may be": f"00-{TRACE}-{SPAN}-01-more",
    "upper case": f"00-{TRACE.upper()}-{SPAN}-01",
    "spaces": f" 00-{TRACE}-{SPAN}-01 ",
    "garbage": "garbage",
    "empty": "",
}


def span_of(context: Context) -> SpanContext:
    return trace.get_current_span(context).get_span_context()


@pytest.mark.parametrize("parent", PARENTS.values(), ids=PARENTS)
@pytest.mark.parametrize("more", [{}, {"tracestate": "vendor=1"}, {"baggage": "user=7"}], ids=repr)
def test_trace_is_read_as_the_propagator_reads_it(parent: str, more: dict[str, str]) -> None:
    headers = {"traceparent": parent, "Nats-Msg-Id": "1", **more}
    ours, theirs = extracted(headers), propagate.extract(headers, NO_CONTEXT)
    assert span_of(ours) == span_of(theirs)
    assert span_of(ours).is_remote == span_of(theirs).is_remote
    assert baggage.get_all(ours) == baggage.get_all(theirs)


@pytest.mark.parametrize("more", [{}, {"tracestate": "vendor=1"}, {"baggage": "user=7"}], ids=repr)
def test_trace_is_written_as_the_propagator_writes_it(more: dict[str, str]) -> None:
    context = propagate.extract({"traceparent": PARENTS["random"], **more}, NO_CONTEXT)
    assert injected_of(span_of(context), context) == injected(context)
