"""What tests of telemetry share: spans kept in memory, and a receiver of OTLP over HTTP."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler

from dagnats_worker_telemetry import TelemetryPlugin, TelemetrySettings

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
REMOTE_SPAN = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{REMOTE_SPAN}-01"
KINDS = {1: "INTERNAL", 2: "SERVER", 3: "CLIENT", 4: "PRODUCER", 5: "CONSUMER"}


class Traces:
    """A tracer provider of the test's own, whose spans stay in memory.

    Attributes:
        tracer: For the spans of the test's handlers.
    """

    def __init__(self, *, sampler: Sampler | None = None) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("app")

    def plugin(self, **settings: Any) -> TelemetryPlugin:
        return TelemetryPlugin(TelemetrySettings(**settings), tracer_provider=self.provider)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """In the order in which they have ended."""
        return self._exporter.get_finished_spans()

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    def one(self, name: str) -> ReadableSpan:
        """The only span of a name."""
        (span,) = [span for span in self.spans if span.name == name]
        return span

    def parents(self) -> dict[str, str]:
        """Of each span by its name, the name of its parent; a remote one by its id."""
        return parents((span.name, *ids(span)) for span in self.spans)


def ids(span: ReadableSpan) -> tuple[str, str]:
    """The id of a span, and that of its parent; empty for none."""
    assert span.context is not None
    parent = f"{span.parent.span_id:016x}" if span.parent else ""
    return f"{span.context.span_id:016x}", parent


def traceparent_of(span: ReadableSpan) -> str:
    """What a message carries that belongs to a span."""
    assert span.context is not None
    flags = int(span.context.trace_flags)
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{flags:02x}"


def parents(spans: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """From name, id and parent's id of each span to the name of its parent."""
    known = list(spans)
    names = {span_id: name for name, span_id, _ in known}
    return {name: names.get(parent, parent) for name, _, parent in known}


class FailingExporter(SpanExporter):
    """Can export nothing."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise RuntimeError("the collector is on fire")


# --------------------------------------------------------------------------- over the wire


@dataclass(frozen=True)
class Received:
    """A span as a collector gets it."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    service: str
    scope: str


class Receiver:
    """A small collector on loopback.

    Attributes:
        url: What ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set to.
        status: What it answers.
        may_answer: While it is not set, a request stays without an answer.
        asked: How many requests there were.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.status = 200
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = threading.Semaphore(0)
        self._changed = threading.Condition()
        self._spans: list[Received] = []

    @property
    def spans(self) -> list[Received]:
        with self._changed:
            return list(self._spans)

    def parents(self) -> dict[str, str]:
        return parents((span.name, span.span_id, span.parent_id) for span in self.spans)

    def wait_for(self, *names: str, within_s: float = 30) -> list[Received]:
        """Block until there are spans of these names."""
        with self._changed:
            there = self._changed.wait_for(
                lambda: set(names) <= {span.name for span in self._spans}, within_s
            )
            assert there, f"no {names} in {[span.name for span in self._spans]}"
            return list(self._spans)

    def add(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            self._spans += _received(request)
            self._changed.notify_all()


def _received(request: Any) -> Iterator[Received]:
    for of_resource in request.resource_spans:
        attributes = {one.key: one.value.string_value for one in of_resource.resource.attributes}
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield Received(
                    span.name,
                    KINDS[span.kind],
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    attributes.get("service.name", ""),
                    of_scope.scope.name,
                )


@contextmanager
def otlp_receiver() -> Iterator[Receiver]:
    """A collector of the test's own; what is not answered at the end is answered then."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            receiver.asked.release()
            receiver.may_answer.wait()
            if self.path == "/v1/traces" and receiver.status == 200:
                receiver.add(body)
            self.send_response(receiver.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
    serving = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    serving.start()
    try:
        yield receiver
    finally:
        receiver.may_answer.set()
        server.shutdown()
        server.server_close()
        serving.join()
