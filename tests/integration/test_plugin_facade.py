"""What the worker gives to plugins: itself, buckets, background work, requests that are kept alive.

Method: plugins in a real worker, on the in-memory server and, where a server makes a difference, on
a real one. Real: the lease thread. Fake: the in-memory server and its clock.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from hook_support import plugin_with
from plugin_workers import BOUND_S, serving, shout
from seams import MemorySeam, Seam, ServerSeam
from support import connected, eventually, unique

from dagnats_worker import (
    EmbeddedServer,
    Plugin,
    TaskContext,
    UsageError,
    Worker,
    WorkerConfig,
    hookimpl,
)
from dagnats_worker.hookspecs import KeepAlive, TaskType, WorkerFacade
from dagnats_worker.testing import MemoryTransport

CONFIG = WorkerConfig(drain_timeout=timedelta(seconds=5))

# ------------------------------------------------------------------------- the worker


class Looking(Plugin[None]):
    """Keeps the worker that it is shown."""

    name: ClassVar[str] = "looking"

    def __init__(self) -> None:
        super().__init__()
        self.worker: WorkerFacade
        self.tasks: list[TaskType] = []
        self.states: list[str] = []

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker: WorkerFacade) -> AsyncIterator[None]:
        self.worker = worker
        self.states.append(worker.state)
        yield
        self.states.append(worker.state)

    @hookimpl
    async def open_source(self, task: TaskType) -> None:
        self.tasks.append(task)


class Hurrying(Plugin[None]):
    """Asks how long the drain may still take."""

    name: ClassVar[str] = "hurrying"

    def __init__(self) -> None:
        super().__init__()
        self.left: list[timedelta | None] = []

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker: WorkerFacade) -> AsyncIterator[None]:
        self.left.append(worker.drain_left())
        yield
        self.left.append(worker.drain_left())


@pytest.mark.parametrize("within", [timedelta(0), timedelta(hours=1)])
async def test_plugin_is_told_how_long_the_drain_may_still_take(within: timedelta) -> None:
    hurrying = Hurrying()
    worker = Worker(MemoryTransport(), plugins=[hurrying], config=CONFIG)
    worker.handle("shout", shout)
    await worker.start()
    await worker.stop(within)
    before, left = hurrying.left
    assert before is None
    assert left is not None
    assert within / 2 <= left <= within


async def test_plugin_sees_the_worker_and_its_task_types() -> None:
    looking = Looking()
    worker = Worker(
        MemoryTransport(), worker_id="w1", groups=["a", "b"], max_tasks=7, plugins=[looking]
    )
    worker.handle("shout", shout, concurrency=3, ack_wait=timedelta(seconds=9))
    async with worker:
        seen = looking.worker
        assert (seen.worker_id, seen.groups, seen.max_tasks, seen.partitions) == (
            "w1",
            ("a", "b"),
            7,
            0,
        )
        assert seen.version == "0.1.0"
        assert seen.max_payload > 0
        assert [(one.name, one.group) for one in seen.task_types] == [
            ("shout", "a"),
            ("shout", "b"),
        ]
        assert looking.tasks == list(seen.task_types)
        assert (looking.tasks[0].concurrency, looking.tasks[0].ack_wait) == (
            3,
            timedelta(seconds=9),
        )
        assert [(one.name, one.state) for one in seen.plugins] == [("looking", "active")]
        assert seen.state == "running"
        assert seen.stats().delivered == 0
    assert looking.states == ["starting", "draining"]
    assert seen.state == "stopped"


async def test_states_are_waited_for_and_not_missed() -> None:
    reached: list[str] = []

    async def waits(worker: WorkerFacade) -> None:
        for state in ("starting", "running", "draining"):
            await worker.wait_for(state)  # type: ignore[arg-type]  # one of them
            reached.append(state)
        await worker.wait_for("running")
        reached.append("past it")

    looking = Looking()
    async with serving(required=[looking]) as harness:
        waiting = asyncio.create_task(waits(looking.worker))
        await eventually(lambda: reached == ["starting", "running"], BOUND_S)
        await harness.run("shout")
        with pytest.raises(ValueError, match="a worker is never 'ready'; its states are starting"):
            await looking.worker.wait_for("ready")  # type: ignore[arg-type]  # what is tested
    async with asyncio.timeout(BOUND_S):
        await waiting
    assert reached == ["starting", "running", "draining", "past it"]


async def test_statistics_only_grow() -> None:
    looking = Looking()
    async with serving(required=[looking]) as harness:
        before = looking.worker.stats()
        await harness.run("shout")
        after = looking.worker.stats()
    assert (after.delivered, after.completed) == (before.delivered + 1, before.completed + 1)


async def test_background_work_is_started_again_and_ends_with_the_worker(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dagnats_worker import _background

    monkeypatch.setattr(_background, "RESTART_WAIT_FIRST_S", 0.01)
    notes: list[str] = []
    errors = iter([RuntimeError("first"), SystemExit(2), asyncio.CancelledError()])

    async def beats() -> None:
        notes.append("begun")
        for error in errors:
            raise error
        try:
            await asyncio.Event().wait()
        finally:
            notes.append("ended")

    looking = Looking()
    async with serving(required=[looking]) as harness:
        looking.worker.spawn(beats, "heartbeat")
        await eventually(lambda: notes == ["begun"] * 4, BOUND_S)
        await harness.run("shout")
    assert notes == ["begun"] * 4 + ["ended"]
    assert "heartbeat failed; it is started again in 0.0 s" in caplog.text
    assert "heartbeat was cancelled, and nobody had asked it to stop" in caplog.text
    assert not [one for one in asyncio.all_tasks() if one.get_name() == "heartbeat"]


async def test_background_work_ends_when_it_is_asked_to_or_is_done() -> None:
    notes: list[str] = []

    async def beats() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            notes.append("ended")

    async def is_done() -> None:
        notes.append("done")

    looking = Looking()
    async with serving(required=[looking]):
        end = looking.worker.spawn(beats, "heartbeat")
        looking.worker.spawn(is_done, "once")
        await eventually(lambda: notes == ["done"], BOUND_S)
        await end()
        assert notes == ["done", "ended"]
        await end()
        with pytest.raises(UsageError, match="once: hand over the coroutine function"):
            looking.worker.spawn(is_done(), "once")  # type: ignore[arg-type]  # what is tested


async def test_background_work_that_ignores_its_end_does_not_hold_up_the_stop(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dagnats_worker import _background

    monkeypatch.setattr(_background, "END_WAIT_S", 0.1)
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    looking = Looking()
    async with asyncio.timeout(BOUND_S), serving(required=[looking]):
        looking.worker.spawn(stubborn, "stubborn")
        await asyncio.sleep(0)
    assert "stubborn ignores that it is cancelled, and is left behind" in caplog.text
    release.set()
    await eventually(lambda: not [t for t in asyncio.all_tasks() if t.get_name() == "stubborn"])


async def test_name_of_the_plugin_stands_before_its_background_work(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails() -> None:
        raise RuntimeError("broken")

    @asynccontextmanager
    async def worker_scope(worker: WorkerFacade) -> AsyncIterator[None]:
        worker.spawn(fails, "heartbeat")
        await asyncio.sleep(0)
        yield

    async with serving(required=[plugin_with("beating", worker_scope=worker_scope)]) as harness:
        await harness.run("shout")
    assert "plugin 'beating', heartbeat failed; it is started again in 0.5 s" in caplog.text


# ------------------------------------------------------------------------- on either transport


@asynccontextmanager
async def on(seam: Seam, plugin: Plugin[Any], handler: Any = shout) -> AsyncIterator[Worker]:
    worker = Worker(await seam.connect(), plugins=[plugin], config=seam.config)
    worker.handle(unique(), handler)
    async with worker:
        yield worker


@pytest.fixture(params=["memory", "server"])
def server(request: pytest.FixtureRequest) -> EmbeddedServer | None:
    """The shared server, or None for the one in memory."""
    if request.param == "memory":
        return None
    found: EmbeddedServer = request.getfixturevalue("shared_server")
    return found


@pytest.fixture
async def seam(server: EmbeddedServer | None) -> AsyncIterator[Seam]:
    """Either of the two servers."""
    if server is None:
        memory = MemorySeam(CONFIG)
        yield memory
        await memory.close()
        return
    async with connected(server.url) as admin:
        real = ServerSeam(CONFIG, server, admin)
        yield real
        await real.close()


async def test_plugin_has_buckets(seam: Seam) -> None:
    looking = Looking()
    async with on(seam, looking):
        bucket = await looking.worker.create_kv(unique("bucket"))
        revision = await bucket.put("a", b"1", headers={"X-By": "plugin"}, expected_revision=0)
        entry = await bucket.get("a")
        assert entry is not None
        assert (entry.value, entry.revision, entry.headers["X-By"]) == (b"1", revision, "plugin")
        assert await looking.worker.kv("signals").get(unique()) is None


async def test_jetstream_itself_is_there_on_a_server_only(
    seam: Seam, server: EmbeddedServer | None
) -> None:
    looking = Looking()
    async with on(seam, looking):
        if server is None:
            with pytest.raises(UsageError, match="no JetStream behind the in-memory transport"):
                looking.worker.jetstream  # noqa: B018 - it is what raises
        else:
            assert (await looking.worker.jetstream.stream_info("TASK_QUEUES")).config.name


async def test_request_is_kept_alive_and_each_answer_is_told(seam: Seam) -> None:
    looking, answers = Looking(), list[bytes]()
    async with on(seam, looking):
        bucket = await looking.worker.create_kv(unique("alive"))
        request = KeepAlive(
            f"$KV.{bucket.name}.me",  # type: ignore[attr-defined]  # both kinds have it
            b"here",
            headers={"X-By": "plugin"},
            answered=answers.append,
        )
        end = looking.worker.keep_alive(request, timedelta(milliseconds=50))
        await seam.eventually(lambda: len(answers) >= 3)
        sequences = [json.loads(answer)["seq"] for answer in answers]
        assert sequences == sorted(set(sequences))
        entry = await bucket.get("me")
        assert entry is not None
        assert (entry.value, entry.headers["X-By"]) == (b"here", "plugin")
        end()
        count = len(answers)
        await seam.let_pass(timedelta(milliseconds=150))
        assert len(answers) == count


async def test_request_that_nobody_answers_is_told(seam: Seam) -> None:
    looking, reasons = Looking(), list[str]()
    async with on(seam, looking):
        subject = unique("nobody")
        looking.worker.keep_alive(
            KeepAlive(subject, failed=reasons.append), timedelta(milliseconds=50)
        )
        await seam.eventually(lambda: len(reasons) >= 2)
    assert all(reason.startswith(f"{subject}: ") for reason in reasons)
    count = len(reasons)
    await asyncio.sleep(0)
    assert len(reasons) == count, "it ends with the worker"


async def test_request_may_be_made_anew_each_time(seam: Seam) -> None:
    looking, made, answers = Looking(), list[bytes](), list[bytes]()

    def make() -> bytes:
        made.append(f"body {len(made)}".encode())
        return made[-1]

    async with on(seam, looking):
        bucket = await looking.worker.create_kv(unique("alive"))
        subject = f"$KV.{bucket.name}.me"  # type: ignore[attr-defined]  # both kinds have it
        request = KeepAlive(subject, make, answered=answers.append)
        end = looking.worker.keep_alive(request, timedelta(milliseconds=50))
        await seam.eventually(lambda: len(answers) >= 3)
        end()
        entry = await bucket.get("me")
        assert entry is not None
        assert entry.value in made[2:]


async def test_request_that_cannot_be_made_is_told_as_one_that_failed(seam: Seam) -> None:
    looking, reasons = Looking(), list[str]()

    def make() -> bytes:
        raise RuntimeError("nothing to say")

    async with on(seam, looking):
        looking.worker.keep_alive(
            KeepAlive("a.subject", make, failed=reasons.append), timedelta(milliseconds=50)
        )
        await seam.eventually(lambda: len(reasons) >= 2)
    assert reasons[0] == "a.subject: no body, RuntimeError('nothing to say')"


async def test_request_that_has_ended_is_forgotten(seam: Seam) -> None:
    looking = Looking()
    async with on(seam, looking):
        for _ in range(3):
            looking.worker.keep_alive(KeepAlive("a.subject"), timedelta(minutes=1))()
        assert looking.worker._kept_alive == []  # type: ignore[attr-defined]  # what must not grow


async def test_callback_that_fails_ends_nothing(
    seam: Seam, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def fails(reason: str) -> None:
        calls.append(reason)
        raise RuntimeError("callback broken")

    looking = Looking()
    async with on(seam, looking):
        looking.worker.keep_alive(
            KeepAlive(unique("nobody"), failed=fails), timedelta(milliseconds=50)
        )
        await seam.eventually(lambda: len(calls) >= 2)
    assert "callback broken" in caplog.text


@pytest.mark.parametrize(
    ("subject", "every", "says"),
    [
        ("a", timedelta(0), "every is longer than zero"),
        ("", timedelta(seconds=1), "a request has one subject, got ''"),
        ("a.*", timedelta(seconds=1), "a request has one subject"),
        ("a.>", timedelta(seconds=1), "a request has one subject"),
        ("a b", timedelta(seconds=1), "a request has one subject"),
    ],
)
async def test_request_that_cannot_be_sent_is_refused(
    subject: str, every: timedelta, says: str
) -> None:
    looking = Looking()
    async with serving(required=[looking]):
        with pytest.raises(ValueError, match=says):
            looking.worker.keep_alive(KeepAlive(subject), every)


async def test_request_is_kept_alive_while_a_handler_blocks_the_loop(
    shared_server: EmbeddedServer,
) -> None:
    looking, answers = Looking(), list[bytes]()
    name, counted = unique("alive"), list[int]()

    async def blocks(ctx: TaskContext) -> None:
        time.sleep(1.0)  # noqa: ASYNC251 - what is tested
        counted.append(len(answers))

    worker = Worker(shared_server.url, plugins=[looking])
    kind = unique()
    worker.handle(kind, blocks)
    async with worker:
        bucket = await looking.worker.create_kv(name)
        request = KeepAlive(f"$KV.{name}.me", b"x", answered=answers.append)
        looking.worker.keep_alive(request, timedelta(milliseconds=50))
        await eventually(lambda: answers, BOUND_S)
        before = len(answers)
        js = looking.worker.jetstream
        body = json.dumps({"task_id": "r.s", "run_id": unique("r"), "step_id": "s"}).encode()
        await js.publish(f"task.{kind}.{unique('r')}", body)
        await eventually(lambda: counted, BOUND_S)
        assert counted[0] <= before + 4, "the callback runs on the loop, which is blocked"
        await eventually(lambda: len(answers) >= before + 10, BOUND_S)
        sequences = [json.loads(answer)["seq"] for answer in answers]
        assert len(sequences) >= 10
        assert (await bucket.get("me")) is not None
