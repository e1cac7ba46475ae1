"""What can be set; the defaults set nothing up and send nothing anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    """How the plugin behaves.

    Attributes:
        exporter: ``otlp`` sends spans and metrics over OTLP/HTTP, for applications that set no
            OpenTelemetry SDK up themselves; ``none`` leaves that to the application.
        endpoint: Where to, such as ``http://127.0.0.1:4318``; empty for what the environment says
            (``OTEL_EXPORTER_OTLP_ENDPOINT``).
        service_name: What the processes are called; empty for what the environment says
            (``OTEL_SERVICE_NAME``), else ``dagnats-worker``.
        flush_timeout: How long the end of a worker waits for the spans that are still to be
            exported, and how long for the metrics; the drain's deadline is never exceeded.
        client_spans: A span for each task that a client submits; without it only the context of
            the caller travels with the task.
        logs: Whose records get the fields of their task: ``worker`` for ``ctx.log`` and the
            handlers of the logger ``dagnats_worker``, ``root`` for the root logger's handlers too,
            ``off`` for none.
        log_format: ``json`` makes those handlers write JSON, the root logger's included; ``keep``
            leaves their format alone.
        prometheus: Answers ``/metrics`` on the health port, for Prometheus.
        stream: Writes spans and metrics to the engine's stream TELEMETRY, for its console.
    """

    exporter: Literal["none", "otlp"] = "none"
    endpoint: str = ""
    service_name: str = ""
    flush_timeout: timedelta = timedelta(seconds=5)
    client_spans: bool = True
    logs: Literal["worker", "root", "off"] = "worker"
    log_format: Literal["keep", "json"] = "keep"
    # ------------------------------------------------------------ metrics and the engine's console
    prometheus: bool = False
    stream: bool = False

    def __post_init__(self) -> None:
        if self.flush_timeout < timedelta(0):
            raise ValueError(f"flush_timeout is not negative, got {self.flush_timeout!r}")
        if self.endpoint and not self.endpoint.lower().startswith(("http://", "https://")):
            raise ValueError(
                "endpoint begins with http:// or https://, such as http://127.0.0.1:4318, "
                f"got {self.endpoint!r}"
            )
