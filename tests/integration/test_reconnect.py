"""Reconnect: after whatever happens to the server or the network, the worker takes tasks again.

Method: a real server that is killed, restarted, frozen and reconfigured, and a TCP proxy in front
of it that cuts, delays and swallows. That nothing was lost or run to its end twice is read from the
history stream. Nothing is fake.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import pytest
from fleet_support import (
    BOUND_S,
    Log,
    Proxy,
    WorkerProcess,
    api,
    completed,
    consumer_info,
    history_counts,
    queued,
    quick_worker,
    seconds,
)
from nats.js import JetStreamContext
from support import connected, eventually, publish_task, unique

from dagnats_worker import EmbeddedServer, TaskContext, Worker
from dagnats_worker._jetstream.provision import provision

LEASE = seconds(1)


def serve(worker: Worker, kind: str, log: Log, wait_s: float = 0.0, **options: object) -> None:
    """Register a handler that takes a while."""

    async def handle(ctx: TaskContext) -> None:
        async with log.running_task(ctx.run_id):
            await asyncio.sleep(wait_s)

    worker.handle(kind, handler=handle, **options)


@asynccontextmanager
async def patient(url: str) -> AsyncIterator[JetStreamContext]:
    """A client of the test's own that survives the server's absence."""
    async with connected(url, reconnect_time_wait=0.05, max_reconnect_attempts=-1) as client:
        yield client.jetstream(timeout=5)


async def back(js: JetStreamContext) -> None:
    """Wait until JetStream answers again."""

    async def answers() -> bool:
        try:
            await js.account_info()
        except (nats.errors.Error, nats.js.errors.Error):
            return False
        return True

    await eventually(answers, BOUND_S)


OWN_OR_HANDED_OVER = pytest.mark.parametrize(
    "handed_over", [False, True], ids=["own", "handed over"]
)


@OWN_OR_HANDED_OVER
async def test_idle_worker_takes_tasks_again_after_a_restart(
    nats_server: EmbeddedServer, caplog: pytest.LogCaptureFixture, *, handed_over: bool
) -> None:
    kind, log = unique(), Log()
    async with patient(nats_server.url) as js:
        worker = quick_worker(js._nc if handed_over else nats_server.url)
        serve(worker, kind, log)
        async with worker:
            await restarts_are_survived(nats_server, js, kind, caplog)
    assert "connection to NATS lost" in caplog.text
    assert "connected to NATS again" in caplog.text


async def restarts_are_survived(
    server: EmbeddedServer, js: JetStreamContext, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Restart twice, and see a task completed after each."""
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            await asyncio.to_thread(server.restart)
            await back(js)
            run_id = unique()
            await publish_task(js, kind, run_id)
            await completed(js, run_id)


async def test_handlers_that_run_over_a_restart_end_once(nats_server: EmbeddedServer) -> None:
    kind, log, release = unique(), Log(), asyncio.Event()
    worker = quick_worker(nats_server.url)

    @worker.task(kind, ack_wait=LEASE)
    async def handle(ctx: TaskContext) -> None:
        async with log.running_task(ctx.run_id):
            await release.wait()

    async with patient(nats_server.url) as js, worker:
        runs = [unique() for _ in range(5)]
        for run_id in runs:
            await publish_task(js, kind, run_id)
        await eventually(lambda: log.running == 5)
        await asyncio.to_thread(nats_server.restart)
        await back(js)
        before = worker.stats().renewals
        await eventually(lambda: worker.stats().renewals >= before + 5 * 4)  # over a lease more
        release.set()
        for run_id in runs:
            await completed(js, run_id)
        assert not log.doubled()
        counts = await history_counts(js, "step.completed")
        assert counts == Counter(dict.fromkeys(runs, 1))

        async def acked() -> bool:
            return not await queued(js)

        await eventually(acked, BOUND_S)


@OWN_OR_HANDED_OVER
async def test_restarts_under_load_lose_nothing_and_complete_nothing_twice(
    nats_server: EmbeddedServer, *, handed_over: bool
) -> None:
    kind, log, count = unique(), Log(), 1000
    async with patient(nats_server.url) as js:
        worker = quick_worker(js._nc if handed_over else nats_server.url)
        serve(worker, kind, log, 0.005, concurrency=20, ack_wait=seconds(2))
        runs = [unique() for _ in range(count)]
        for run_id in runs:
            await publish_task(js, kind, run_id)
        async with worker:
            for part in (200, 600):
                await eventually(lambda part=part: len(log.ended) > part, BOUND_S)
                await asyncio.to_thread(nats_server.kill)
                await asyncio.to_thread(nats_server.restart)
            await back(js)

            async def all_acked() -> bool:
                return not await queued(js)

            await eventually(all_acked, BOUND_S)
        counts = await history_counts(js, "step.completed")
        assert counts == Counter(dict.fromkeys(runs, 1))


async def test_consumer_that_is_deleted_while_idle_is_made_again(
    nats_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    kind, log = unique(), Log()
    worker = quick_worker(nats_server.url)
    serve(worker, kind, log)
    async with patient(nats_server.url) as js, worker:
        await js.delete_consumer("TASK_QUEUES", f"workers-{kind}")
        with caplog.at_level(logging.INFO):
            await eventually(lambda: consumer_info(js, kind), BOUND_S)
            run_id = unique()
            await publish_task(js, kind, run_id)
            await completed(js, run_id)
        assert f"consumer workers-{kind} is there again" in caplog.text


async def test_consumer_that_is_deleted_while_busy_completes_nothing_twice(
    nats_server: EmbeddedServer,
) -> None:
    kind, log, count = unique(), Log(), 300
    worker = quick_worker(nats_server.url)
    serve(worker, kind, log, 0.005, concurrency=10)
    async with patient(nats_server.url) as js:
        runs = [unique() for _ in range(count)]
        for run_id in runs:
            await publish_task(js, kind, run_id)
        async with worker:
            for part in (50, 150):
                await eventually(lambda part=part: len(log.ended) > part, BOUND_S)
                await js.delete_consumer("TASK_QUEUES", f"workers-{kind}")

            async def all_acked() -> bool:
                return not await queued(js)

            await eventually(all_acked, BOUND_S)
        counts = await history_counts(js, "step.completed")
        assert counts == Counter(dict.fromkeys(runs, 1))
        assert not log.doubled()


async def test_stream_that_is_deleted_and_made_again_is_served_again(
    nats_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    kind, log = unique(), Log()
    worker = quick_worker(nats_server.url, config={"consumer_check_every": seconds(0.05)})
    serve(worker, kind, log)
    async with patient(nats_server.url) as js, worker:
        await js.delete_stream("TASK_QUEUES")
        with caplog.at_level(logging.WARNING):
            await eventually(lambda: "TASK_QUEUES not found" in caplog.text, BOUND_S)
        await provision(js)
        await eventually(lambda: consumer_info(js, kind), BOUND_S)
        run_id = unique()
        await publish_task(js, kind, run_id)
        await completed(js, run_id)
        # What looks at the consumer now and then has survived the time without a stream.
        config = (await consumer_info(js, kind))["config"]
        await api(
            js,
            f"CONSUMER.CREATE.TASK_QUEUES.workers-{kind}.task.{kind}.>",
            {"stream_name": "TASK_QUEUES", "config": {**config, "ack_wait": 7 * 10**9}},
        )
        source = worker._running._intakes[0]._source
        await eventually(lambda: source.ack_wait == seconds(7), BOUND_S)


async def test_source_that_breaks_ends_the_worker_and_is_not_silent(
    shared_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    worker = quick_worker(shared_server.url)
    serve(worker, unique(), Log())
    async with worker:
        source = worker._running._intakes[0]._source

        async def broken(_: object) -> None:
            raise ZeroDivisionError("a bug in pulling")

        source._pull = broken
        async with asyncio.timeout(BOUND_S):
            assert "a bug in pulling" in await worker.wait_stopped()
    assert "the worker stops" in caplog.text


async def test_frozen_server_is_waited_for(
    nats_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    kind, log = unique(), Log()
    worker = quick_worker(nats_server.url, config={"pull_heartbeat": seconds(0.2)})
    serve(worker, kind, log)
    async with patient(nats_server.url) as js, worker:
        run_id = unique()
        nats_server.pause()
        with caplog.at_level(logging.WARNING):
            await eventually(lambda: "was not answered; asking again" in caplog.text, BOUND_S)
            await eventually(lambda: "in time; trying again" in caplog.text, BOUND_S)
        nats_server.resume()
        await back(js)
        await publish_task(js, kind, run_id)
        await completed(js, run_id)


# nats-py 2.16 drops the stream of an attempt to reconnect that fails without closing it.
BREAKS_RECONNECTS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@BREAKS_RECONNECTS
async def test_worker_goes_on_after_its_connections_are_reset(
    nats_server: EmbeddedServer,
) -> None:
    kind, log, count = unique(), Log(), 300
    async with Proxy(nats_server.url) as proxy, patient(nats_server.url) as js:
        worker = quick_worker(proxy.url)
        serve(worker, kind, log, 0.005, concurrency=10, ack_wait=seconds(2))
        async with worker:
            runs = [unique() for _ in range(count)]
            for run_id in runs:
                await publish_task(js, kind, run_id)
            for part in (50, 100, 150):
                await eventually(lambda part=part: len(log.ended) > part, BOUND_S)
                before = proxy.accepted
                proxy.cut()
                await eventually(lambda before=before: proxy.accepted == before + 2, BOUND_S)

            async def all_acked() -> bool:
                return not await queued(js)

            await eventually(all_acked, BOUND_S)
        counts = await history_counts(js, "step.completed")
        assert counts == Counter(dict.fromkeys(runs, 1))


@BREAKS_RECONNECTS
async def test_half_open_connection_is_noticed_and_replaced(nats_server: EmbeddedServer) -> None:
    kind, log = unique(), Log()
    async with (
        Proxy(nats_server.url) as proxy,
        patient(nats_server.url) as js,
        connected(
            proxy.url,
            ping_interval=0.3,
            max_outstanding_pings=2,
            reconnect_time_wait=0.1,
            max_reconnect_attempts=-1,
        ) as client,
    ):
        worker = quick_worker(client, config={"pull_heartbeat": seconds(0.3)})
        serve(worker, kind, log)
        async with worker:
            proxy.swallow = True
            run_id = unique()
            await publish_task(js, kind, run_id)  # goes into the void, if anywhere
            await eventually(lambda: not client.is_connected, BOUND_S)
            proxy.swallow = False
            later = unique()
            await publish_task(js, kind, later)
            await completed(js, later)
            assert client.is_connected


async def test_slow_network_loses_nothing(nats_server: EmbeddedServer) -> None:
    kind, log = unique(), Log()
    async with Proxy(nats_server.url) as proxy, patient(nats_server.url) as js:
        proxy.delay_s = 0.05
        worker = quick_worker(proxy.url)
        serve(worker, kind, log, concurrency=10)
        async with worker:
            runs = [unique() for _ in range(50)]
            for run_id in runs:
                await publish_task(js, kind, run_id)
            for run_id in runs:
                await completed(js, run_id)
        assert not log.doubled()
        assert log.peak <= 10


PROGRAM = """
import logging, sys
from datetime import timedelta
from dagnats_worker import TaskContext, Worker, WorkerConfig

logging.basicConfig(level=logging.INFO)
url, kind = sys.argv[1:]
worker = Worker(url, config=WorkerConfig(refused_max=timedelta(seconds=1)))

@worker.task(kind)
async def handle(ctx: TaskContext) -> str:
    return ctx.worker_id

worker.run()
"""

WORKER_USER = '{user: "worker", password: "w"}'
TWO_USERS = f"""
log_size_limit: 10000000  # a flag of the embedded server, which a reload would miss
authorization {{ users = [ {{user: "admin", password: "a"}}, {WORKER_USER} ] }}
"""


async def test_worker_whose_user_is_removed_ends_with_an_error(server_installed: None) -> None:
    kind = unique()
    async with EmbeddedServer(config=TWO_USERS) as server:
        admin = server.url.replace("//", "//admin:a@")
        async with connected(admin) as client:
            js = client.jetstream()
            await provision(js)
            url = server.url.replace("//", "//worker:w@")
            async with WorkerProcess(PROGRAM, url, kind) as process:
                await eventually(lambda: consumer_info(js, kind), BOUND_S)
                run_id = unique()
                await publish_task(js, kind, run_id)
                await completed(js, run_id)
                assert server._run_dir is not None
                file = server._run_dir / "nats.conf"
                file.write_text(file.read_text().replace(f", {WORKER_USER}", ""))
                os.kill(server.pid, signal.SIGHUP)
                assert await process.exit_code() == 1
                assert "cannot go on" in process.output


async def test_handed_over_client_that_its_owner_closes_ends_the_worker(
    nats_server: EmbeddedServer,
) -> None:
    async with connected(nats_server.url) as client:
        worker = quick_worker(client)
        serve(worker, unique(), Log())
        await worker.start()
        ended = asyncio.create_task(worker.wait_stopped())
        await client.close()
        async with asyncio.timeout(BOUND_S):
            assert "closed" in await ended
            await worker.stop()
        assert worker.state == "stopped"
