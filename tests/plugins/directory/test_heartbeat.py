"""A worker with the plugin is listed while it takes tasks, whatever happens to the bucket.

Method: workers whose server is stopped, restarted and tampered with, and workers in processes of
their own that are killed; what the bucket holds is read by nats-py. Real: the server, the workers.
Fake: nothing, but for the in-memory server of three tests.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nats.js import JetStreamContext
from nats.js.api import KeyValueConfig
from support import connected, eventually, publish_task, unique
from worker_process import worker_process
from worker_support import QUICK, settled

from dagnats_worker import (
    EmbeddedServer,
    Plugin,
    TaskContext,
    Worker,
    hookimpl,
    provision,
)
from dagnats_worker.hookspecs import KeepAlive, TaskType
from dagnats_worker.testing import MemoryServer, MemoryTransport, WorkerHarness
from dagnats_worker_directory import (
    Directory,
    DirectoryPlugin,
    DirectorySettings,
    Left,
    Report,
    WorkerRegistration,
)
from dagnats_worker_directory import _heartbeat as heartbeat

BOUND_S = 30
OFTEN = timedelta(milliseconds=200)
BUCKET = "KV_workers"
LOGGER = "dagnats_worker_directory"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A worker looks at itself often enough for a test, and all that it says is kept."""
    caplog.set_level(logging.INFO, LOGGER)
    monkeypatch.setattr(heartbeat, "LOOK_EVERY_S", 0.05)


@pytest.fixture
async def js(nats_server: EmbeddedServer) -> AsyncIterator[JetStreamContext]:
    async with jetstream(nats_server.url) as js:
        yield js


@asynccontextmanager
async def jetstream(url: str) -> AsyncIterator[JetStreamContext]:
    """A client of the test's own that survives the server's absence."""
    async with connected(url, max_reconnect_attempts=-1, reconnect_time_wait=0.05) as nc:
        yield nc.jetstream()


async def nothing(ctx: TaskContext) -> None:
    """A handler."""


def a_worker(connection: Any, *more: Plugin[Any], handler: Any = nothing, **options: Any) -> Worker:
    settings = DirectorySettings(heartbeat=options.pop("every", OFTEN), **options.pop("says", {}))
    plugins = [DirectoryPlugin(settings), *more]
    worker = Worker(connection, plugins=plugins, config=QUICK, **options)
    worker.handle("nothing", handler)
    return worker


async def listed(js: JetStreamContext) -> dict[str, WorkerRegistration]:
    return {one.worker_id: one for one in await Directory.open(js).list()}


async def wait_listed(js: JetStreamContext, *worker_ids: str) -> None:
    """Wait until exactly these workers are listed."""

    async def they_are() -> bool:
        return set(await listed(js)) == set(worker_ids)

    await eventually(they_are, BOUND_S, what=f"{worker_ids} are listed")


# ------------------------------------------------------------------------- what is written


async def test_entry_has_the_names_of_go_in_its_order_and_texts_as_metadata(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    says = {"version": "2026.8", "metadata": {"zone": "eu"}}
    worker = a_worker(nats_server.url, worker_id="w-1", max_tasks=7, groups=["gpu"], says=says)
    worker.handle("another", nothing)
    async with worker:
        await wait_listed(js, "w-1")
        raw = (await (await js.key_value("workers")).get("w-1")).value or b""
    entry = json.loads(raw)
    assert list(entry) == [
        *("worker_id", "task_types", "language", "transport", "max_tasks", "metadata"),
        *("pid", "hostname", "version", "last_seen"),
    ]
    assert entry["task_types"] == ["another", "nothing"]
    assert (entry["language"], entry["transport"], entry["max_tasks"]) == ("python", "nats", 7)
    assert (entry["pid"], entry["version"]) == (os.getpid(), "2026.8")
    metadata = entry["metadata"]
    assert all(isinstance(text, str) for text in metadata.values())
    assert metadata["state"] == "running"
    assert metadata["load"] == "0/7"
    assert metadata["groups"] == "gpu"
    assert metadata["plugin.directory"] == "0.1.0"
    assert metadata["core"] == version("dagnats-worker")
    assert metadata["zone"] == "eu"
    assert WorkerRegistration.decode(raw).encode() == raw


async def test_entry_is_written_again_and_again_with_the_load(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    may_end = asyncio.Event()

    async def waits(ctx: TaskContext) -> None:
        await may_end.wait()

    async with a_worker(nats_server.url, worker_id="w-1", handler=waits):
        await wait_listed(js, "w-1")
        first = (await listed(js))["w-1"]
        await publish_task(js, "nothing", unique("run"))

        async def is_told() -> bool:
            return (await listed(js))["w-1"].report.slots_in_use == 1

        await eventually(is_told, BOUND_S)
        assert (await listed(js))["w-1"].last_seen_at > first.last_seen_at
        may_end.set()


async def test_plugin_that_is_not_used_any_more_is_told_as_such(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    class Breaks(Plugin[None]):
        name = "breaks"

        @hookimpl
        async def on_complete(self) -> None:
            raise RuntimeError("always")

    async with a_worker(nats_server.url, Breaks(), worker_id="w-1"):
        await wait_listed(js, "w-1")
        assert "breaks" in (await listed(js))["w-1"].report.plugins


# ------------------------------------------------------------------------- from when until when


class Looks(Plugin[None]):
    """Looks at the directory where nothing is bound yet, and may keep the worker from starting."""

    name = "looks"

    def __init__(self, js: JetStreamContext, *, breaks: bool = False) -> None:
        super().__init__()
        self._js, self._breaks = js, breaks
        self.found: list[int] = []

    @hookimpl
    async def open_source(self, task: TaskType) -> None:
        await asyncio.sleep(3 * OFTEN.total_seconds())
        self.found.append(len(await listed(self._js)))
        if self._breaks:
            raise RuntimeError("no source today")


async def test_worker_is_listed_only_when_its_consumers_are_bound(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    looks = Looks(js)
    async with a_worker(nats_server.url, looks, worker_id="w-1"):
        await wait_listed(js, "w-1")
    assert looks.found == [0]


async def test_worker_that_does_not_start_is_never_listed(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    worker = a_worker(nats_server.url, Looks(js, breaks=True), worker_id="w-1")
    with pytest.raises(Exception, match="no source today"):
        await worker.start()
    assert (await js.stream_info(BUCKET)).state.last_seq == 0


async def test_drain_is_told_at_once_and_the_end_as_well(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    began, may_end = asyncio.Event(), asyncio.Event()

    async def waits(ctx: TaskContext) -> None:
        began.set()
        await may_end.wait()

    every = timedelta(seconds=55)
    async with a_worker(nats_server.url, worker_id="w-1", handler=waits, every=every) as worker:
        await wait_listed(js, "w-1")
        await publish_task(js, "nothing", unique("run"))
        await asyncio.wait_for(began.wait(), BOUND_S)
        stopping = asyncio.create_task(worker.stop())

        async def drains() -> bool:
            report = (await listed(js))["w-1"].report
            return (report.state, report.slots_in_use) == ("draining", 1)

        await eventually(drains, BOUND_S)
        changes = Directory.open(js).watch()
        await anext(changes)
        may_end.set()
        left = await asyncio.wait_for(anext(changes), BOUND_S)
        assert isinstance(left, Left)
        assert not left.expired
        await changes.aclose()
        await stopping
    marker = await js.get_last_msg(BUCKET, "$KV.workers.w-1")
    assert (marker.headers, marker.data) == ({"KV-Operation": "DEL"}, None)


class Unanswered:
    """A worker whose requests are answered by the test."""

    worker_id, state, max_tasks, plugins = "w-1", "running", 1, ()

    def __init__(self) -> None:
        self.requests: list[KeepAlive] = []

    async def wait_for(self, state: str) -> None:
        """It is there."""

    def stats(self) -> Any:
        return SimpleNamespace(slots_in_use=0)

    def keep_alive(self, request: KeepAlive, every: timedelta) -> Callable[[], None]:
        self.requests.append(request)
        return lambda: None


async def test_end_is_sent_when_the_entry_before_it_was_answered() -> None:
    worker: Any = Unanswered()
    beats = heartbeat.Heartbeat(worker, WorkerRegistration("w-1"), Report(), OFTEN)
    running = asyncio.create_task(beats.run())
    await eventually(lambda: worker.requests, BOUND_S)
    ending = asyncio.create_task(beats.end())
    for _ in range(10):
        await asyncio.sleep(0)
    (entry,) = worker.requests
    entry.answered(b'{"stream":"KV_workers","seq":1}')
    await eventually(lambda: len(worker.requests) == 2, BOUND_S)
    end = worker.requests[1]
    assert (end.headers, end.body()) == ({"KV-Operation": "DEL"}, b"")
    end.answered(b'{"stream":"KV_workers","seq":2}')
    await ending
    running.cancel()


async def test_nothing_overtakes_the_end_of_a_worker_that_hardly_ran(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    for number in range(10):
        async with a_worker(nats_server.url, worker_id=f"w-{number}"):
            pass
    assert await listed(js) == {}


# ------------------------------------------------------------------------- trouble


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == LOGGER and record.levelno >= logging.WARNING
    ]


async def without_bucket(url: str) -> None:
    async with jetstream(url) as js:
        await provision(js)
        await js.delete_key_value("workers")


async def test_missing_bucket_is_told_once_and_used_soon_after_it_is_there(
    nats_server: EmbeddedServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeat, "RETRY_AFTER_MAX", OFTEN)
    await without_bucket(nats_server.url)
    seldom = a_worker(nats_server.url, worker_id="w-1", every=timedelta(seconds=55))
    async with jetstream(nats_server.url) as js, seldom:
        await eventually(lambda: complaints(caplog), BOUND_S)
        await publish_task(js, "nothing", unique("run"))
        await settled(js, "nothing", BOUND_S)
        (complaint,) = complaints(caplog)
        assert "bucket 'workers' not found" in complaint
        assert "`dagnats-worker setup`" in complaint
        await provision(js)
        await wait_listed(js, "w-1")
        await eventually(lambda: "listed in the directory now" in caplog.text, BOUND_S)
    assert len(complaints(caplog)) == 1


async def test_worker_stops_as_ever_where_there_is_no_bucket(
    nats_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    await without_bucket(nats_server.url)
    async with a_worker(nats_server.url):
        pass
    assert "left to expire" in caplog.text


async def test_entry_that_somebody_deletes_is_back_with_the_next_beat(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    async with a_worker(nats_server.url, worker_id="w-1"):
        await wait_listed(js, "w-1")
        await Directory.open(js).deregister("w-1")
        await wait_listed(js, "w-1")
        await js.purge_stream(BUCKET)
        await wait_listed(js, "w-1")


async def test_bucket_that_is_made_anew_is_used(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    async with a_worker(nats_server.url, worker_id="w-1"):
        await wait_listed(js, "w-1")
        await js.delete_key_value("workers")
        await js.create_key_value(KeyValueConfig("workers", ttl=60))
        await wait_listed(js, "w-1")


async def test_worker_is_listed_again_after_its_server_was_restarted(
    nats_server: EmbeddedServer, js: JetStreamContext
) -> None:
    async with a_worker(nats_server.url, worker_id="w-1"):
        await wait_listed(js, "w-1")
        before = (await listed(js))["w-1"]
        await asyncio.to_thread(nats_server.kill)
        await asyncio.to_thread(nats_server.restart)

        async def seen_again() -> bool:
            found = (await listed(js)).get("w-1")
            return found is not None and found.last_seen_at > before.last_seen_at

        async def answers() -> bool:
            try:
                return await seen_again()
            except Exception:  # noqa: BLE001 - the server is not back yet
                return False

        await eventually(answers, BOUND_S)
        await publish_task(js, "nothing", unique("run"))
        await settled(js, "nothing", BOUND_S)
    await wait_listed(js)


async def test_worker_whose_bucket_refuses_goes_on_with_its_tasks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = MemoryServer()
    async with WorkerHarness(a_worker(MemoryTransport(server)), server=server) as harness:
        harness.faults.fill(BUCKET)
        await eventually(lambda: complaints(caplog), BOUND_S)
        assert (await harness.run("nothing")).error is None
        harness.faults.clear()
        await eventually(lambda: "listed in the directory now" in caplog.text, BOUND_S)
    assert len(complaints(caplog)) == 1


async def test_heartbeat_is_in_memory_what_it_is_on_a_server() -> None:
    server = MemoryServer()
    async with a_worker(MemoryTransport(server), worker_id="w-1"):
        await eventually(lambda: len(server.messages(BUCKET)) == 1, BOUND_S)
        first = server.messages(BUCKET)[0].sequence
        await eventually(lambda: server.messages(BUCKET)[0].sequence > first, BOUND_S)
    assert [one.headers for one in server.messages(BUCKET)] == [{"KV-Operation": "DEL"}]


async def test_cut_connection_keeps_nobody_from_stopping() -> None:
    transport = MemoryTransport()
    async with a_worker(transport, worker_id="w-1"):
        await eventually(lambda: transport.server.messages(BUCKET), BOUND_S)
        transport.drop()


# ------------------------------------------------------------------------- loops and processes


async def test_worker_whose_loop_is_blocked_stays_listed_and_says_so(
    nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BLOCKED_AFTER_S", 0.5)
    async with jetstream(nats_server.url) as js:
        await with_ttl(js, seconds=1)
        blocked = asyncio.Event()

        async def blocks(ctx: TaskContext) -> None:
            time.sleep(3)  # noqa: ASYNC251 - what is tested
            blocked.set()

        async with a_worker(nats_server.url, worker_id="w-1", handler=blocks):
            await wait_listed(js, "w-1")
            directory = Directory.open(js)
            states: list[tuple[str, int]] = []

            async def watch() -> None:
                async for change in directory.watch(heartbeats=True):
                    kind = type(change).__name__
                    states.append((kind, change.worker.report.loop_blocked_s))

            watching = asyncio.create_task(watch())
            await publish_task(js, "nothing", unique("run"))
            await asyncio.wait_for(blocked.wait(), BOUND_S)
            await eventually(lambda: states and states[-1] == ("Updated", 0), BOUND_S)
            watching.cancel()
        # The watch was blocked too, and has found afterwards what the thread wrote meanwhile.
        assert "Left" not in [kind for kind, _ in states]
        assert max(seconds for _, seconds in states) >= 1


async def with_ttl(js: JetStreamContext, *, seconds: float) -> None:
    """Make the bucket anew, with a shorter time to live."""
    await js.delete_key_value("workers")
    await js.create_key_value(KeyValueConfig("workers", ttl=seconds))


SERVES = """
from dagnats_worker_directory import DirectoryPlugin, DirectorySettings
settings = DirectorySettings(heartbeat=timedelta(milliseconds=200))
worker = Worker(url, worker_id=task_type, plugins=[DirectoryPlugin(settings)], config=QUICK)

@worker.task(task_type)
async def handle(ctx: TaskContext) -> None:
    note("ran")
"""


async def test_killed_worker_is_gone_after_the_time_to_live_and_others_stay(
    nats_server: EmbeddedServer, js: JetStreamContext, tmp_path: Path
) -> None:
    await with_ttl(js, seconds=2)
    url, diary = nats_server.url, tmp_path / "diary"
    with (
        worker_process(url, "first", diary, SERVES) as first,
        worker_process(url, "second", diary, SERVES) as second,
    ):
        await wait_listed(js, "first", "second")
        first.signal(signal.SIGKILL)
        await wait_listed(js, "second")
        second.signal(signal.SIGTERM)
        assert await second.ended() == 0
    assert await listed(js) == {}


async def test_frozen_worker_is_gone_and_comes_back(
    nats_server: EmbeddedServer, js: JetStreamContext, tmp_path: Path
) -> None:
    await with_ttl(js, seconds=1)
    with worker_process(nats_server.url, "only", tmp_path / "diary", SERVES) as process:
        await wait_listed(js, "only")
        process.signal(signal.SIGSTOP)
        await wait_listed(js)
        process.signal(signal.SIGCONT)
        await wait_listed(js, "only")


# ------------------------------------------------------------------------- settings


@pytest.mark.parametrize("every", [timedelta(0), timedelta(seconds=-1), timedelta(seconds=60)])
def test_heartbeat_that_keeps_nobody_listed_is_refused(every: timedelta) -> None:
    with pytest.raises(ValueError, match="heartbeat is longer than zero and shorter than a minute"):
        DirectorySettings(heartbeat=every)


@pytest.mark.parametrize("name", ["state", "load", "plugin.own", "loop_blocked_s"])
def test_metadata_that_the_plugin_writes_itself_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"metadata has '{name}', which the plugin writes itself"):
        DirectorySettings(metadata={name: "x"})


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGNATS_WORKER__DIRECTORY__METADATA", "zone=eu,rack=7")
    monkeypatch.setenv("DAGNATS_WORKER__DIRECTORY__HEARTBEAT", "10s")
    settings = DirectoryPlugin().settings
    assert settings.metadata == {"zone": "eu", "rack": "7"}
    assert settings.heartbeat == timedelta(seconds=10)
