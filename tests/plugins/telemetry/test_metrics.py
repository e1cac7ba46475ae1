"""What is measured of a worker, and with which instruments.

Method: a worker runs tasks, and then the metrics are collected. Real: the plugin, the worker and
OpenTelemetry's SDK. Fake: the server, which is in memory and can be broken.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    Gauge,
    Histogram,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    Sum,
)
from support import eventually

from dagnats_worker import (
    NonRetryableError,
    Paused,
    Plugin,
    Released,
    RetryAfterError,
    TaskContext,
    Worker,
    WorkerConfig,
    hookimpl,
)
from dagnats_worker.errors import DelayTask, ReleaseTask, SkipTask
from dagnats_worker.testing import FakeClock, MemoryServer, WorkerHarness
from dagnats_worker_telemetry import TelemetryPlugin, TelemetrySettings

BOUND_S = 30
CONFIG = WorkerConfig(
    redeliver_after=timedelta(milliseconds=50),
    publish_attempts=2,
    fresh_for=timedelta(microseconds=1),
)
MANAGED = {"workflow_name": "hello"}
PAGE = Path(__file__).parents[3] / "docs" / "plugins" / "telemetry.md"
ATTRIBUTES = {"type": "dagnats.task.type", "outcome": "dagnats.outcome"}
OUTCOMES = {"completed", "continued", "failed", "paused", "retried", "released"}


class Measured:
    """A meter provider, and what it has measured."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def plugin(self) -> TelemetryPlugin:
        return TelemetryPlugin(TelemetrySettings(), meter_provider=self.provider)

    def all(self) -> dict[str, Metric]:
        data = self.reader.get_metrics_data()
        assert data is not None
        scopes = [one for found in data.resource_metrics for one in found.scope_metrics]
        assert {one.scope.name for one in scopes} == {"dagnats/worker"}
        assert {one.scope.version for one in scopes} <= {None, ""}
        return {metric.name: metric for one in scopes for metric in one.metrics}

    def points(self, name: str) -> dict[tuple[Any, ...], Any]:
        """The data points of an instrument by the values of their attributes."""
        metric = self.all().get(name)
        found = metric.data.data_points if metric is not None else ()
        return {tuple((point.attributes or {}).values()): point for point in found}

    def value(self, name: str, *attributes: str) -> float:
        point = self.points(name).get(attributes)
        return point.value if point is not None else 0

    def histogram(self, name: str, *attributes: str) -> HistogramDataPoint | None:
        return self.points(name).get(attributes)


@pytest.fixture
def measured() -> Measured:
    return Measured()


async def act(ctx: TaskContext) -> str | None:
    """Do what the input says."""
    match ctx.json():
        case "break":
            raise RuntimeError("broken")
        case "break for good":
            raise NonRetryableError("broken for good")
        case "break for now":
            raise RetryAfterError("come again", timedelta(seconds=1))
        case "continue":
            ctx.continue_()
            return None
        case "pause":
            ctx.record(Paused("nap", timedelta(seconds=1)))
            return None
        case "release":
            raise ReleaseTask(Released(f"reason {ctx.run_id}", timedelta(seconds=1)))
        case other:
            return f"did {other}"


def harness_of(measured: Measured, *others: Plugin[Any], **more: Any) -> WorkerHarness:
    more.setdefault("server", MemoryServer())
    plugins = [measured.plugin(), *others]
    return WorkerHarness({"act": act}, plugins=plugins, config=CONFIG, **more)


# ------------------------------------------------------------------- the Go worker's instruments


async def test_instruments_of_the_go_worker_have_its_names_and_kinds_and_nothing_else(
    measured: Measured,
) -> None:
    async with harness_of(measured) as harness:
        await harness.run("act")
        metrics = measured.all()
    assert isinstance(metrics["step.duration_ms"].data, Histogram)
    monotonic = {
        "step.retries": True,
        "worker.tasks.active": False,
        "worker.tasks.cancelled_skipped": True,
    }
    for name, expected in monotonic.items():
        data = metrics[name].data
        assert isinstance(data, Sum)
        assert data.is_monotonic is expected
    for name in ("step.duration_ms", *monotonic):
        metric = metrics[name]
        assert (metric.unit, metric.description) == ("", "")
        assert [dict(point.attributes or {}) for point in metric.data.data_points] == [{}]


async def test_duration_is_in_whole_milliseconds_of_every_handler_that_has_ended(
    measured: Measured,
) -> None:
    async with harness_of(measured) as harness:
        for what in ("work", "break for good", "pause"):
            await harness.run("act", what, **MANAGED)
    found = measured.histogram("step.duration_ms")
    assert found is not None
    assert found.count == 3
    assert found.sum == int(found.sum)
    assert tuple(found.explicit_bounds)[:3] == (0, 5, 10)


async def test_retries_are_the_failures_that_are_neither_final_nor_delayed(
    measured: Measured,
) -> None:
    async with harness_of(measured) as harness:
        for managed in (MANAGED, {}):
            for what in ("break", "break for good", "break for now"):
                await harness.run("act", what, **managed)
    assert measured.value("step.retries") == 2


async def test_active_tasks_are_counted_while_they_run(measured: Measured) -> None:
    began, may_end = asyncio.Event(), asyncio.Event()

    async def waits(ctx: TaskContext) -> None:
        began.set()
        await may_end.wait()

    plugins = [measured.plugin()]
    async with WorkerHarness({"act": waits}, plugins=plugins, config=CONFIG) as harness:
        run = await harness.submit("act")
        await began.wait()
        assert measured.value("worker.tasks.active") == 1
        assert measured.value("dagnats.worker.slots.usage") == 1
        assert measured.value("dagnats.worker.slots.limit") == harness.worker.max_tasks
        may_end.set()
        await harness.settled(run.run_id)
        await eventually(lambda: measured.value("worker.tasks.active") == 0, BOUND_S)


async def test_task_that_cannot_be_started_is_not_active_for_ever(measured: Measured) -> None:
    async with harness_of(measured) as harness:
        harness.faults.fail_publishes(CONFIG.publish_attempts, "history.>", code=10_077)
        first = await harness.run("act")
        assert first.verdict != "ack"
        await harness.settled(first.run_id)
        await eventually(lambda: measured.value("worker.tasks.active") == 0, BOUND_S)
    assert measured.value("worker.tasks.active") == 0


async def test_skipped_tasks_of_cancelled_runs_are_counted(measured: Measured) -> None:
    async with harness_of(measured) as harness:
        snapshot = {"run_id": "r-1", "workflow_id": "w", "status": "cancelled", "steps": {}}
        harness.server.publish("$KV.workflow_runs.run.r-1", json.dumps(snapshot).encode(), {})
        await harness.run("act", run_id="r-1")
        await harness.run("act")
    assert measured.value("worker.tasks.cancelled_skipped") == 1
    assert measured.value("dagnats.worker.tasks", "act", "completed") == 1


# ------------------------------------------------------------------------- beyond the Go worker


@pytest.mark.parametrize(
    ("what", "outcome", "fields"),
    [
        ("work", "completed", {}),
        ("continue", "continued", MANAGED),
        ("break", "failed", MANAGED),
        ("break", "retried", {}),
        ("pause", "paused", MANAGED),
        ("release", "released", {}),
    ],
)
async def test_task_is_counted_by_its_outcome(
    measured: Measured, what: str, outcome: str, fields: Mapping[str, Any]
) -> None:
    async with harness_of(measured) as harness:
        await harness.run("act", what, **fields)
    assert {key: point.value for key, point in measured.points("dagnats.worker.tasks").items()} == {
        ("act", outcome): 1
    }
    took = measured.points("dagnats.worker.handler.time")
    assert set(took) == {("act", outcome)}
    assert took["act", outcome].value > 0


async def test_outcome_that_was_not_stored_is_not_counted(measured: Measured) -> None:
    async with harness_of(measured) as harness:
        await harness.run("act")
        harness.faults.fill("WORKFLOW_HISTORY")
        await harness.run("act")
        harness.faults.clear()
    assert measured.value("dagnats.worker.tasks", "act", "completed") <= 1


class Refuses(Plugin[None]):
    """Does with a task what its metadata says."""

    name = "refuses"

    @hookimpl
    async def pre_handle(self, ctx: TaskContext) -> None:
        match ctx.metadata.get("refuse"):
            case "skip":
                raise SkipTask("done elsewhere")
            case "delay":
                raise DelayTask(timedelta(hours=1))


@pytest.mark.parametrize("how", ["skip", "delay"])
async def test_task_without_an_outcome_is_none(measured: Measured, how: str) -> None:
    async with harness_of(measured, Refuses()) as harness:
        await harness.run("act", metadata={"refuse": how})
        await harness.run("act")
    assert set(measured.points("dagnats.worker.tasks")) == {("act", "completed")}
    found = measured.histogram("step.duration_ms")
    assert found is not None
    assert found.count == 1, "no handler has run for the other one"


async def test_wait_in_the_queue_is_measured_once_for_each_task(measured: Measured) -> None:
    async with harness_of(measured) as harness:
        await harness.run("act")
        harness.faults.lose_acks()
        run = await harness.submit("act")
        await eventually(lambda: harness.faults.lost == 1, BOUND_S)
        harness.faults.redeliver()
        await harness.settled(run.run_id)
        assert measured.value("dagnats.worker.redeliveries") == 1
    found = measured.histogram("dagnats.worker.queue.wait_time", "act")
    assert found is not None
    assert found.count == 2
    assert 0 <= found.sum < BOUND_S
    assert max(found.explicit_bounds) >= timedelta(days=1).total_seconds()
    assert measured.value("dagnats.worker.queue.time", "act") == pytest.approx(found.sum)


async def test_waits_of_very_many_tasks_are_a_sample_and_their_sum_is_exact(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dagnats_worker_telemetry._metrics.WAITS_PER_S", 2)
    began = time.time()
    async with harness_of(measured) as harness:
        for _ in range(50):
            await harness.run("act")
    seconds = math.ceil(time.time()) - math.floor(began)
    found = measured.histogram("dagnats.worker.queue.wait_time", "act")
    assert found is not None
    assert 2 <= found.count <= 2 * seconds < 50
    assert measured.value("dagnats.worker.queue.time", "act") > found.sum
    assert measured.value("dagnats.worker.tasks", "act", "completed") == 50


async def test_task_that_waits_for_a_slot_waits_in_the_queue(measured: Measured) -> None:
    async def works(ctx: TaskContext) -> None:
        await asyncio.sleep(0.05)

    server = MemoryServer()
    worker = Worker("nats://127.0.0.1:1", plugins=[measured.plugin()], max_tasks=1, config=CONFIG)
    worker.handle("act", works)
    async with WorkerHarness(worker, server=server) as harness:
        runs = [await harness.submit("act") for _ in range(4)]
        for run in runs:
            await harness.settled(run.run_id)
    found = measured.histogram("dagnats.worker.queue.wait_time", "act")
    assert found is not None
    assert found.count == 4
    assert found.max >= 0.15, "the last one waited for three others"


async def test_clock_of_the_server_that_is_ahead_makes_no_negative_wait(
    measured: Measured,
) -> None:
    server = MemoryServer(clock=FakeClock())
    server.faults.jump(timedelta(days=365 * 100))
    async with harness_of(measured, server=server) as harness:
        await harness.run("act")
    found = measured.histogram("dagnats.worker.queue.wait_time", "act")
    assert found is not None
    assert found.sum == 0


async def test_renewals_rejections_and_repeated_publishes_are_counted(measured: Measured) -> None:
    server = MemoryServer(clock=FakeClock())
    async with harness_of(measured, server=server) as harness:
        harness.faults.fail_publishes(1, "history.>")
        await harness.run("act")
        server.publish("task.act.r-1", b"not json", {})
        await eventually(lambda: measured.value("dagnats.worker.rejections") == 1, BOUND_S)
    assert measured.value("dagnats.worker.publish.retries") >= 1
    assert measured.value("dagnats.worker.deliveries") == 2
    assert "dagnats.worker.lease.renewals" in measured.all()


async def test_lag_of_the_loop_is_shown_in_seconds_and_to_all_who_collect(
    measured: Measured,
) -> None:
    async with harness_of(measured) as harness:
        await eventually(lambda: harness.worker.stats().loop_lag_s > 0, BOUND_S)
        first, second = (measured.value("dagnats.worker.loop.lag") for _ in range(2))
        assert first > 0
        assert second >= first
        assert measured.all()["dagnats.worker.loop.lag"].unit == "s"


async def test_drain_is_measured_until_the_last_handler_has_ended(measured: Measured) -> None:
    began = asyncio.Event()

    async def works(ctx: TaskContext) -> None:
        began.set()
        await asyncio.sleep(0.2)

    async with WorkerHarness({"act": works}, plugins=[measured.plugin()]) as harness:
        await harness.submit("act")
        await began.wait()
        assert measured.histogram("dagnats.worker.drain.duration") is None
    found = measured.histogram("dagnats.worker.drain.duration")
    assert found is not None
    assert found.count == 1
    assert found.sum > 0.1


# ----------------------------------------------------------------------------------- bounds


async def test_number_of_series_depends_on_task_types_and_on_nothing_that_comes_in(
    measured: Measured,
) -> None:
    runs = ("work", "break", "break for good", "break for now", "continue", "pause", "release")
    async with harness_of(measured) as harness:
        for number in range(20):
            for what in runs:
                fields = {**MANAGED, "metadata": {"number": str(number)}}
                await harness.run("act", what, step_id=f"step-{number}", **fields)
    names = set()
    for name, metric in measured.all().items():
        points = list(metric.data.data_points)
        names.add(name)
        assert len(points) <= len(OUTCOMES), name
        for point in points:
            attributes = dict(point.attributes or {})
            assert attributes.pop("dagnats.task.type", "act") == "act"
            assert attributes.pop("dagnats.outcome", "failed") in OUTCOMES
            assert attributes == {}
    assert len(names) >= 15


# ------------------------------------------------------------------------- several workers


async def test_workers_of_one_process_are_counted_together_and_go_on_where_others_ended(
    measured: Measured,
) -> None:
    async with harness_of(measured) as first:
        await first.run("act")
        await first.run("act", "break", **MANAGED)
        async with harness_of(measured) as second:
            await second.run("act")
            assert measured.value("dagnats.worker.deliveries") == 3
            assert measured.value("dagnats.worker.slots.limit") == 2 * first.worker.max_tasks
        assert measured.value("dagnats.worker.deliveries") == 3
        assert measured.value("dagnats.worker.slots.limit") == first.worker.max_tasks
    async with harness_of(measured) as third:
        await third.run("act")
        assert measured.value("dagnats.worker.deliveries") == 4
        assert measured.value("dagnats.worker.tasks", "act", "completed") == 3
        assert measured.value("dagnats.worker.tasks", "act", "failed") == 1
        assert measured.value("step.retries") == 1
        waits = measured.histogram("dagnats.worker.queue.wait_time", "act")
        assert waits is not None
        assert measured.value("dagnats.worker.queue.time", "act") == pytest.approx(waits.sum)


async def test_nothing_is_measured_without_a_provider() -> None:
    plugins = [TelemetryPlugin(TelemetrySettings())]
    async with WorkerHarness({"act": act}, plugins=plugins, config=CONFIG) as harness:
        assert (await harness.run("act", "work")).output == "did work"


async def test_failing_instrument_does_not_hurt_a_task(
    measured: Measured, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("instrument broken")

    async with harness_of(measured) as harness:
        monkeypatch.setattr(
            "opentelemetry.sdk.metrics._internal.instrument.Histogram.record", fails
        )
        assert (await harness.run("act", "work")).output == "did work"
        monkeypatch.undo()
    assert "instrument broken" in caplog.text


# ----------------------------------------------------------------------------------- the page

KINDS = {"histogram": (Histogram,), "gauge": (Gauge,), "counter": (Sum,), "up-down counter": (Sum,)}


async def test_instruments_are_those_of_the_documentation(measured: Measured) -> None:
    async with harness_of(measured) as harness:
        await harness.run("act")
        await eventually(lambda: "dagnats.worker.loop.lag" in measured.all(), BOUND_S)
        found = measured.all()
    found |= measured.all()
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith(("| `step.", "| `worker.tasks", "| `dagnats.worker."))
    ]
    assert {row[0] for row in rows} == set(found)
    for name, kind, unit, attributes, _ in rows:
        metric = found[name]
        assert isinstance(metric.data, KINDS[kind]), name
        if isinstance(metric.data, Sum):
            assert metric.data.is_monotonic is (kind == "counter"), name
        assert metric.unit == unit
        keys = {key for point in metric.data.data_points for key in point.attributes or {}}
        assert keys == {ATTRIBUTES[one] for one in attributes.split(", ") if one}, name
