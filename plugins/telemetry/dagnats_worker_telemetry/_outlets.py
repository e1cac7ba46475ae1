"""Where spans go by setting. Needs the SDK, so it is imported only then."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from dagnats_worker.errors import UsageError
from dagnats_worker.hookspecs import WorkerFacade
from dagnats_worker_telemetry._settings import TelemetrySettings

SERVICE_NAME_DEFAULT = "dagnats-worker"
CHILD_DELAY_MS = 500
"""How long spans wait in the process of a handler, which may be killed."""

Key = tuple[str, ...]


class Fanout(SpanProcessor):
    """Hands spans to any number of processors, which come and go with the workers of a process.

    A provider never lets go of a processor; so it gets this one, once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uses: dict[Key, tuple[SpanProcessor, int]] = {}
        self._processors: tuple[SpanProcessor, ...] = ()

    def use(self, key: Key, make: Callable[[], SpanProcessor]) -> None:
        """Add a processor, or share the one that somebody else has added under the key."""
        with self._lock:
            processor, uses = self._uses.get(key) or (make(), 0)
            self._set(key, (processor, uses + 1))

    def released(self, keys: Iterable[Key]) -> list[SpanProcessor]:
        """The processors that nobody uses any more, to be shut down."""
        unused = []
        with self._lock:
            for key in keys:
                processor, uses = self._uses[key]
                if uses == 1:
                    unused.append(processor)
                self._set(key, (processor, uses - 1) if uses > 1 else None)
        return unused

    def _set(self, key: Key, used: tuple[SpanProcessor, int] | None) -> None:
        if used is None:
            del self._uses[key]
        else:
            self._uses[key] = used
        self._processors = tuple(processor for processor, _ in self._uses.values())

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        for processor in self._processors:
            processor.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        for processor in self._processors:
            processor.on_end(span)

    def shutdown(self) -> None:
        for processor in self._processors:
            processor.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        complete = True
        for processor in self._processors:
            complete = processor.force_flush(timeout_millis) and complete
        return complete


class BatchProcessor(BatchSpanProcessor):
    """Can be told, while it is shut down, that nobody waits any more."""

    def __init__(self, exporter: SpanExporter, **options: Any) -> None:
        super().__init__(exporter, **options)
        self._sends_by = exporter

    def give_up(self) -> None:
        """Try nothing again; the request that is under way ends by itself."""
        self._sends_by.shutdown()


_fanouts: WeakKeyDictionary[Any, Fanout] = WeakKeyDictionary()


def fanout_of(given: Any, settings: TelemetrySettings, instance: str) -> Fanout:
    """The fanout of the provider that is in force.

    Where the application has set none up, one is made, and the handlers' own spans go there too.

    Args:
        given: The provider that somebody has chosen for the plugin; None for the global one.
        instance: What the resource calls this process.

    Raises:
        UsageError: The application's provider takes no processors.
    """
    provider: Any = given or trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        provider = TracerProvider(resource=resource_of(settings, instance), shutdown_on_exit=False)
        trace.set_tracer_provider(provider)
    if not hasattr(provider, "add_span_processor"):
        raise UsageError(
            f"telemetry: its settings ask for an exporter, but {type(provider).__name__} is no "
            "provider of the OpenTelemetry SDK; leave one of the two out"
        )
    if provider not in _fanouts:
        fanout = _fanouts[provider] = Fanout()
        provider.add_span_processor(fanout)
    return _fanouts[provider]


def open_processors(
    fanout: Fanout, settings: TelemetrySettings, worker: WorkerFacade, opened: list[Key]
) -> None:
    """Add what the settings ask for.

    Args:
        opened: Gets what is to be released, also where something else then fails.
    """
    if settings.exporter == "otlp":
        key: Key = ("otlp", settings.endpoint)
        fanout.use(key, partial(_otlp, settings))
        opened.append(key)
    if settings.stream:
        from dagnats_worker_telemetry import _stream_exporter  # noqa: PLC0415 - only then

        key = ("stream", worker.worker_id)
        fanout.use(key, lambda: _stream_exporter.stream_span_processor(settings, worker))
        opened.append(key)


_child_lock = threading.Lock()
_children: set[Key] = set()


def open_in_child(given: Any, settings: TelemetrySettings) -> None:
    """Send the spans of process handlers to where the worker's go."""
    key: Key = ("otlp", settings.endpoint)
    with _child_lock:
        if key in _children:
            return
        _children.add(key)
    fanout = fanout_of(given, settings, "")
    fanout.use(key, partial(_otlp, settings, schedule_delay_millis=CHILD_DELAY_MS))
    within_ms = int(settings.flush_timeout.total_seconds() * 1000)
    atexit.register(fanout.force_flush, within_ms)


def resource_of(settings: TelemetrySettings, instance: str) -> Resource:
    """What describes the process, as far as the environment does not."""
    attributes = {"service.instance.id": instance} if instance else {}
    if settings.service_name:
        attributes[SERVICE_NAME] = settings.service_name
    resource = Resource.create(attributes)
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: SERVICE_NAME_DEFAULT}))
    return resource


def _otlp(settings: TelemetrySettings, **options: Any) -> SpanProcessor:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - only then
            OTLPSpanExporter,
        )
    except ImportError as error:
        raise UsageError(
            f"telemetry: exporter = 'otlp' has nothing to export with ({error}); "
            "pip install 'dagnats-worker-telemetry[sdk]'"
        ) from error

    endpoint = f"{settings.endpoint.rstrip('/')}/v1/traces" if settings.endpoint else None
    return BatchProcessor(OTLPSpanExporter(endpoint=endpoint), **options)
