"""``/metrics`` for Prometheus, and the one answer for all processes of ``run --processes N``.

Every series gets a label ``worker``. Counters of several processes cannot be added up here, because
the sum would fall whenever one of them is replaced, and Prometheus takes that for a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import MetricReader
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from dagnats_worker.hookspecs import Response, WorkerFacade

PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
WORKER_LABEL = "worker"
RENAMED_LABEL = "exported_worker"
"""What Prometheus itself calls a label that is in the way of one of its own."""


class PrometheusEndpoint:
    """What a meter provider has measured, as a page.

    Attributes:
        reader: To be added to the meter provider.
    """

    def __init__(self, worker: WorkerFacade) -> None:
        self._worker_id = worker.worker_id
        self._registry = CollectorRegistry()
        # One thread of its own: the loop's may all be taken, and one collection at a time is right.
        self._collecting = ThreadPoolExecutor(1, "dagnats-worker-metrics")
        self.reader: MetricReader = PrometheusMetricReader(registry=self._registry)
        worker.add_route(PATH, self.answer, merge=merged)

    async def answer(self) -> Response:
        """The page; collecting runs the application's callbacks, so it is done in a thread."""
        body = await asyncio.get_running_loop().run_in_executor(self._collecting, self._page)
        return Response(200, CONTENT_TYPE, body)

    def close(self) -> None:
        """Answer nobody any more."""
        self._collecting.shutdown(wait=False, cancel_futures=True)

    def _page(self) -> bytes:
        return generate_latest(_Families(map(self._labelled, self._registry.collect())))

    def _labelled(self, family: Metric) -> Metric:
        """A copy, because the exporter makes some of its families once and for all."""
        labelled = copy(family)
        labelled.samples = [
            sample._replace(labels=self._labels(sample.labels)) for sample in family.samples
        ]
        return labelled

    def _labels(self, labels: Mapping[str, str]) -> dict[str, str]:
        moved = {RENAMED_LABEL: labels[WORKER_LABEL]} if WORKER_LABEL in labels else {}
        return {**labels, **moved, WORKER_LABEL: self._worker_id}


def merged(bodies: list[bytes]) -> bytes:
    """One page of those of several processes: each family once, with the series of all."""
    families: dict[tuple[str, str], Metric] = {}
    for body in bodies:
        for family in text_string_to_metric_families(body.decode()):
            known = families.setdefault((family.name, family.type), family)
            if known is not family:
                known.samples += family.samples
    return generate_latest(_Families(families.values()))


class _Families(Collector):
    """Families that were collected already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)
