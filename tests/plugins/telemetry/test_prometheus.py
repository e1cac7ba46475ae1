"""``/metrics``: what Prometheus is told, by one worker and by several processes.

Method: workers in this process, and the command with several processes; their health port is
asked, and the answers read with Prometheus' own parser. Real: all of it. Fake: nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from supervised_support import BOUND_S, fetch, running
from support import eventually, unique
from worker_support import configured

from dagnats_worker import Client, EmbeddedServer, Worker
from dagnats_worker.errors import PluginError
from dagnats_worker_telemetry import TelemetryPlugin, TelemetrySettings
from dagnats_worker_telemetry._prometheus import merged

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TASKS = "dagnats_worker_tasks"
WITH_METRICS = ("-o", "telemetry.prometheus=true", "--health", "127.0.0.1:0")


def read(page: str | bytes) -> dict[str, Metric]:
    """The families of a page, of which each is there once."""
    text = page if isinstance(page, str) else page.decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert (
            text.count(f"# TYPE {family.name} ") + text.count(f"# TYPE {family.name}_total ") == 1
        )
        series = [(sample.name, *sorted(sample.labels.items())) for sample in family.samples]
        assert len(set(series)) == len(series), f"{family.name} has a series twice"
    return {family.name: family for family in families}


def total(family: Metric, **labels: str) -> float:
    """The sum over the series that have these labels."""
    return sum(
        sample.value
        for sample in family.samples
        if labels.items() <= sample.labels.items() and sample.name == f"{family.name}_total"
    )


def worker_at(url: str, **more: Any) -> tuple[Worker, str]:
    """A worker that serves its metrics, and its task type."""
    settings = TelemetrySettings(prometheus=True)
    plugin = TelemetryPlugin(settings, meter_provider=more.pop("provider", MeterProvider()))
    config = configured(health="127.0.0.1:0")
    worker = Worker(url, plugins=[plugin], config=config, **more)
    task_type = unique()

    @worker.task(task_type)
    async def echo(text: str) -> str:
        return text

    return worker, task_type


async def page_of(worker: Worker) -> str:
    assert worker.health.url is not None
    page = await asyncio.to_thread(fetch, f"{worker.health.url}/metrics")
    assert (page.status, page.headers["Content-Type"]) == (200, CONTENT_TYPE)
    return page.text


async def run_tasks(worker: Worker, url: str, task_type: str, count: int) -> None:
    """Run some, until they have ended, which is somewhat later than their result is known."""
    async with Client(url, plugins=[]) as client, asyncio.timeout(BOUND_S):
        runs = [await client.submit(task_type, "hello") for _ in range(count)]
        await asyncio.gather(*(run.result() for run in runs))
    await eventually(lambda: worker.stats().completed == count)


# ----------------------------------------------------------------------------- one worker


async def test_worker_shows_what_it_has_done(shared_server: EmbeddedServer) -> None:
    worker, task_type = worker_at(shared_server.url, worker_id="w-1")
    async with worker:
        await run_tasks(worker, shared_server.url, task_type, 3)
        families = read(await page_of(worker))
    labels = {"dagnats_task_type": task_type, "dagnats_outcome": "completed", "worker": "w-1"}
    assert total(families[TASKS], **labels) == 3
    assert families["step_duration_ms"].type == "histogram"
    assert families["worker_tasks_active"].type == "gauge"
    assert families["dagnats_worker_queue_wait_time_seconds"].type == "histogram"
    assert families["dagnats_worker_loop_lag_seconds"].type == "gauge"
    for family in families.values():
        assert {sample.labels.get("worker") for sample in family.samples} <= {"w-1"}


async def test_metrics_of_the_application_are_there_with_labels_of_their_own(
    shared_server: EmbeddedServer,
) -> None:
    provider = MeterProvider(shutdown_on_exit=False)
    counter = provider.get_meter("shop").create_counter("orders")
    worker, _ = worker_at(shared_server.url, provider=provider, worker_id="w-1")
    async with worker:
        counter.add(2, {"worker": "alice", "quote": 'a "b"\n\\'})
        (sample,) = read(await page_of(worker))["orders"].samples
    assert sample.value == 2
    assert sample.labels["worker"] == "w-1"
    assert sample.labels["exported_worker"] == "alice"
    assert sample.labels["quote"] == 'a "b"\n\\'


async def test_pages_that_are_asked_for_at_the_same_time_are_all_complete(
    shared_server: EmbeddedServer,
) -> None:
    worker, task_type = worker_at(shared_server.url)
    async with worker:
        await run_tasks(worker, shared_server.url, task_type, 1)
        pages = await asyncio.gather(*(page_of(worker) for _ in range(8)))
    families = [read(page) for page in pages]
    assert [total(one[TASKS], dagnats_outcome="completed") for one in families] == [1] * 8
    assert len({repr(one["target_info"].samples) for one in families}) == 1


async def test_provider_is_left_as_it_was(
    shared_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = MeterProvider(shutdown_on_exit=False)
    readers: list[Any] = []
    add, remove = provider.add_metric_reader, provider.remove_metric_reader
    monkeypatch.setattr(provider, "add_metric_reader", lambda one: (readers.append(one), add(one)))
    monkeypatch.setattr(
        provider, "remove_metric_reader", lambda one: (readers.remove(one), remove(one))
    )
    for _ in range(2):
        worker, _ = worker_at(shared_server.url, provider=provider)
        async with worker:
            assert len(readers) == 1
        assert not readers


async def test_without_the_setting_there_is_no_page(shared_server: EmbeddedServer) -> None:
    plugin = TelemetryPlugin(TelemetrySettings(), meter_provider=MeterProvider())
    config = configured(health="127.0.0.1:0")
    worker = Worker(shared_server.url, plugins=[plugin], config=config)
    worker.handle(unique(), lambda text: text)
    async with worker:
        assert worker.health.url is not None
        page = await asyncio.to_thread(fetch, f"{worker.health.url}/metrics")
    assert page.status == 404


async def test_exporter_that_is_not_installed_is_named(
    shared_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dagnats_worker_telemetry._prometheus", None)
    worker, _ = worker_at(shared_server.url)
    with pytest.raises(PluginError, match=r"pip install 'dagnats-worker-telemetry\[prometheus\]'"):
        await worker.start()


# ------------------------------------------------------------------------ several processes


ONE = b"""\
# HELP target_info Target metadata
# TYPE target_info gauge
target_info{service_name="shop",worker="w-0"} 1.0
# HELP jobs_total Jobs
# TYPE jobs_total counter
jobs_total{kind="a \\"b\\"\\n",worker="w-0"} 3.0
# HELP took Time
# TYPE took histogram
took_bucket{le="1.0",worker="w-0"} 1.0
took_bucket{le="+Inf",worker="w-0"} 2.0
took_count{worker="w-0"} 2.0
took_sum{worker="w-0"} 7.5
"""


def test_merged_page_has_every_family_once_with_the_series_of_all() -> None:
    two = ONE.replace(b"w-0", b"w-1") + b"# TYPE only_here gauge\nonly_here 1.0\n"
    families = read(merged([ONE, two]))
    assert set(families) == {"target_info", "jobs", "took", "only_here"}
    assert families["jobs"].type == "counter"
    assert families["jobs"].documentation == "Jobs"
    assert [sample.labels for sample in families["jobs"].samples] == [
        {"kind": 'a "b"\n', "worker": "w-0"},
        {"kind": 'a "b"\n', "worker": "w-1"},
    ]
    assert len(families["took"].samples) == 8
    assert families["took"].type == "histogram"


def test_merged_page_of_one_process_is_its_page() -> None:
    assert merged([ONE]).strip() == ONE.strip()
    assert merged([b""]) == b""
    assert merged([]) == b""


@pytest.mark.skipif(os.name != "posix", reason="needs processes that are given signals")
@pytest.mark.server
async def test_one_page_is_for_all_processes(shared_server: EmbeddedServer, tmp_path: Path) -> None:
    options = ("--processes", "2", *WITH_METRICS)
    with running(tmp_path, shared_server.url, *options, arguments="worker_id='fleet'") as run:
        await run.wait_ready(2)
        async with Client(shared_server.url, plugins=[]) as client, asyncio.timeout(BOUND_S):
            seen: set[str] = set()
            count = 0
            while len(seen) < 2:
                runs = [await client.submit(f"{run.task_type}-who") for _ in range(16)]
                found = await asyncio.gather(*(one.result() for one in runs))
                seen |= {one["worker"] for one in found}
                count += len(runs)
        labels = {"dagnats_task_type": f"{run.task_type}-who", "dagnats_outcome": "completed"}
        parts: list[float] = []
        async with asyncio.timeout(BOUND_S):
            while sum(parts) < count:  # a result is known somewhat before its task has ended
                page = await run.get("/metrics")
                assert (page.status, page.headers["Content-Type"]) == (200, CONTENT_TYPE)
                if tasks := read(page.text).get(TASKS):
                    parts = [total(tasks, worker=worker, **labels) for worker in sorted(seen)]
        assert sum(parts) == count
        assert all(parts)
        run.signal()
        assert await run.exit_code() == 0, run.log
