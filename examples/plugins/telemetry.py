"""Two workers, one trace: an order, what the shop does with it, and what it asks of the warehouse.

The application sets OpenTelemetry up as it likes; here it keeps the spans, to draw them at the end.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import timedelta

import nats
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dagnats_worker import Client, EmbeddedServer, Worker, provision
from dagnats_worker_telemetry import TelemetryPlugin

SOON = timedelta(seconds=10)
tracer = trace.get_tracer("shop")


def shop(url: str, client: Client) -> Worker:
    worker = Worker(url, plugins=[TelemetryPlugin()])

    @worker.task("order")
    async def order(item: str) -> str:
        with tracer.start_as_current_span("reserve the item"):
            pass
        run = await client.submit("ship", item)  # this task's trace goes along
        label: str = await run.result(timeout=SOON)
        return label

    return worker


def warehouse(url: str) -> Worker:
    worker = Worker(url, plugins=[TelemetryPlugin()])

    @worker.task("ship")
    def ship(item: str) -> str:  # in a thread, and a child of its task all the same
        with tracer.start_as_current_span("print the label"):
            return f"label of {item}"

    return worker


def draw(spans: tuple[ReadableSpan, ...]) -> None:
    """Print the spans as a tree, the earlier ones first."""
    children: dict[int, list[ReadableSpan]] = defaultdict(list)
    for span in sorted(spans, key=lambda one: one.start_time or 0):
        children[span.parent.span_id if span.parent else 0].append(span)

    def draw_one(span: ReadableSpan, branch: str, indent: str) -> None:
        print(f"{branch}{span.name}")
        below = children[span.context.span_id] if span.context else []
        for child in below[:-1]:
            draw_one(child, f"{indent}├─ ", f"{indent}│  ")
        for last in below[-1:]:
            draw_one(last, f"{indent}└─ ", f"{indent}   ")

    for root in children[0]:
        draw_one(root, "", "")


async def main() -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)

    async with EmbeddedServer() as server:
        connection = await nats.connect(server.url)
        await provision(connection.jetstream())
        await connection.close()
        client = Client(server.url, plugins=[TelemetryPlugin()])
        async with client, warehouse(server.url), shop(server.url, client):
            with tracer.start_as_current_span("checkout"):
                run = await client.submit("order", "lamp")
                print(await run.result(timeout=SOON))

    finished = spans.get_finished_spans()
    print(f"traces: {len({span.context.trace_id for span in finished if span.context})}")
    draw(finished)


if __name__ == "__main__":
    asyncio.run(main())
