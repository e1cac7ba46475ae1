"""A worker on an in-memory server, for tests of handlers and of plugins."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any

import msgspec

from dagnats_worker import _json
from dagnats_worker._ack import Nak
from dagnats_worker._client import NO_INPUT, Client
from dagnats_worker._config import WorkerConfig
from dagnats_worker._naming import filters_overlap
from dagnats_worker._protocol import (
    ABSENT,
    HEADER_MSG_ID,
    TaskPayload,
    decode_event,
    encode_task,
    history_subject,
    task_subject,
)
from dagnats_worker._run import Run, RunEvent, public_event
from dagnats_worker._worker import Worker
from dagnats_worker.errors import DecodeError, UsageError
from dagnats_worker.hookspecs import Plugin
from dagnats_worker.testing._clock import FakeClock
from dagnats_worker.testing._consumer import Settlement
from dagnats_worker.testing._faults import Faults
from dagnats_worker.testing._observer import Observation, Observer, observed
from dagnats_worker.testing._result import TaskResult
from dagnats_worker.testing._server import MemoryServer
from dagnats_worker.testing._stream import StoredMessage
from dagnats_worker.testing._transport import MemoryTransport

TASKS = "TASK_QUEUES"
HISTORY = "WORKFLOW_HISTORY"
DEAD_LETTERS = "DEAD_LETTERS"
RESULT_WITHIN = timedelta(seconds=10)
STOP_WITHIN = timedelta(seconds=5)
DELIVERIES_MAX = 100
RUN_ID_BYTES = 8

Handlers = Mapping[str, Callable[..., Any]]
Verdict = tuple[Settlement, Observation]


class WorkerHarness:
    """Runs tasks through a real worker and tells what became of them; nothing leaves the process.

    Everything but the server is real: what a handler is given is what it gets in production, and
    what it returns goes through the same encoding, plugins and retry policy.

    Example:
        ```python
        async def test_resize_keeps_the_name() -> None:
            async with WorkerHarness({"resize": resize}) as harness:
                result = await harness.run("resize", {"name": "a.png", "width": 1})
            assert result.output == {"name": "a.png"}
        ```

    Args:
        worker_or_handlers: A worker, of which a copy is run so that every test can use it; or
            handlers by task type.
        plugins: With handlers, exactly these; a worker has its own.
        config: With handlers, what the worker is configured with; a worker has its own.
        server: One that the test has prepared; with a ``FakeClock`` when not given.

    Attributes:
        worker: The worker that runs.
        server: Its server.
        transport: The worker's connection; ``transport.drop()`` cuts it.
        client: A client of the same server.

    Raises:
        UsageError: Plugins or a configuration beside a worker.
    """

    def __init__(
        self,
        worker_or_handlers: Worker | Handlers,
        *,
        plugins: Sequence[Plugin[Any]] = (),
        config: WorkerConfig | None = None,
        server: MemoryServer | None = None,
    ) -> None:
        self.server = server or MemoryServer(clock=FakeClock())
        self.transport = MemoryTransport(self.server)
        self.client = Client(MemoryTransport(self.server), plugins=())
        self._observer = Observer()
        if isinstance(worker_or_handlers, Worker):
            if plugins or config is not None:
                raise UsageError("a worker has its own plugins and config; give them to Worker()")
            self.worker = observed(worker_or_handlers, self.transport, self._observer)
        else:
            self.worker = Worker(self.transport, plugins=[self._observer, *plugins], config=config)
            for task_type, handler in worker_or_handlers.items():
                self.worker.handle(task_type, handler)
        self._verdicts: dict[str, asyncio.Queue[Verdict]] = defaultdict(asyncio.Queue)
        self._chunks: dict[str, list[bytes]] = defaultdict(list)
        self._read_up_to: dict[str, int] = defaultdict(int)

    async def __aenter__(self) -> WorkerHarness:
        self.server.on_settled(self._on_settled)
        self.server.listen("stream.>", self._on_chunk)
        await self.client.connect()
        await self.worker.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.worker.stop(STOP_WITHIN)
        await self.client.close()

    @property
    def faults(self) -> Faults:
        """What a test can break."""
        return self.server.faults

    @property
    def clock(self) -> FakeClock:
        """The clock of the server, which a test moves.

        Raises:
            UsageError: The server that was handed over has none.
        """
        if not isinstance(self.server.clock, FakeClock):
            raise UsageError("the server has no clock to move: MemoryServer(clock=FakeClock())")
        return self.server.clock

    # ------------------------------------------------------------------ running tasks

    async def run(
        self,
        task_type: str,
        input: Any = NO_INPUT,  # noqa: A002 - the protocol's word for it
        *,
        timeout: timedelta = RESULT_WITHIN,
        **fields: Any,
    ) -> TaskResult:
        """Run a task once, and tell what became of it.

        Args:
            input: Anything JSON can hold; bytes mean JSON.
            timeout: How long to wait for the verdict.
            fields: As for :meth:`submit`.

        Raises:
            TimeoutError: There is no verdict; the handler still runs.
            UsageError: The worker does not serve this task type, or has stopped.
        """
        run = await self.submit(task_type, input, **fields)
        return await self.settled(run.run_id, timeout=timeout)

    async def run_to_end(
        self,
        task_type: str,
        input: Any = NO_INPUT,  # noqa: A002 - the protocol's word for it
        *,
        timeout: timedelta = RESULT_WITHIN,
        **fields: Any,
    ) -> TaskResult:
        """Run a task again and again until it is not given back, and tell of the last time.

        The clock is moved over the delays, so nothing is waited for.

        Raises:
            TimeoutError: A delivery has no verdict.
            UsageError: It is given back for ever, or as in :meth:`run`.
        """
        result = await self.run(task_type, input, timeout=timeout, **fields)
        for _ in range(DELIVERIES_MAX):
            if not isinstance(result.verdict, Nak):
                return result
            self.clock.advance(result.verdict.delay)
            result = await self.settled(result.run_id, timeout=timeout)
        raise UsageError(
            f"run {result.run_id} was given back {DELIVERIES_MAX} times, lately: {result}"
        )

    async def submit(
        self,
        task_type: str,
        input: Any = NO_INPUT,  # noqa: A002 - the protocol's word for it
        *,
        run_id: str | None = None,
        step_id: str | None = None,
        group: str | None = None,
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> Run:
        """Put a task into the queue, and do not wait for it; see :meth:`settled`.

        Args:
            run_id: Made up when not given.
            step_id: The task type when not given.
            group: The worker's first group when not given.
            headers: Of the task message.
            fields: More of the task message: ``metadata``, ``attempt``, ``iteration``;
                ``workflow_name`` makes it a task of a run that an engine manages, which is told of
                a failure instead of trying again.

        Raises:
            UsageError: The worker does not serve this task type.
        """
        run_id = run_id or secrets.token_hex(RUN_ID_BYTES)
        step_id = step_id or task_type
        if group is None and self.worker.groups:
            group = self.worker.groups[0]
        subject = task_subject(task_type, run_id, group)
        consumers = self.server.consumers_of(TASKS)
        if not any(filters_overlap(consumer.filter, subject) for consumer in consumers):
            served = ", ".join(self.worker.task_types)
            raise UsageError(f"the worker does not take {subject!r}; it serves {served}")
        task = TaskPayload(
            task_id=f"{run_id}.{step_id}",
            run_id=run_id,
            step_id=step_id,
            input=ABSENT if input is NO_INPUT else msgspec.Raw(_json.encode(input)),
            **fields,
        )
        sent = {HEADER_MSG_ID: f"harness.{secrets.token_hex(RUN_ID_BYTES)}", **(headers or {})}
        self.server.publish(subject, encode_task(task), sent)
        return self.client.run(run_id, step_id)

    async def settled(self, run_id: str, *, timeout: timedelta = RESULT_WITHIN) -> TaskResult:
        """Wait for the next verdict on a task of a run; raises as :meth:`run` does."""
        getting = asyncio.ensure_future(self._verdicts[run_id].get())
        stopped = asyncio.ensure_future(self.worker.wait_stopped())
        try:
            await asyncio.wait(
                {getting, stopped},
                timeout=timeout.total_seconds(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if getting.done():
                return self._result(run_id, *getting.result())
            if stopped.done():
                raise UsageError(f"the worker has stopped: {stopped.result()}")
        finally:
            getting.cancel()
            stopped.cancel()
        raise TimeoutError(
            f"run {run_id}: no verdict within {timeout}; its handler still runs, or the task waits "
            "to be delivered again, which harness.clock.advance(...) brings about"
        )

    def _result(self, run_id: str, settlement: Settlement, seen: Observation) -> TaskResult:
        events = [one for one in self.events(run_id) if one.sequence > self._read_up_to[run_id]]
        if events:
            self._read_up_to[run_id] = events[-1].sequence
        return TaskResult(
            run_id=run_id,
            step_id=seen.step_id,
            deliveries=settlement.deliveries,
            verdict=settlement.verdict,
            outcome=seen.outcome,
            failure=seen.failure,
            events=tuple(events),
            chunks=tuple(self._chunks.pop(run_id, ())),
        )

    # ------------------------------------------------------------------ looking at what is stored

    def events(self, run_id: str) -> list[RunEvent]:
        """The history of a run, oldest first."""
        events = []
        for message in self.server.messages(HISTORY, history_subject(run_id)):
            try:
                events.append(public_event(decode_event(message.data), message.sequence))
            except DecodeError:
                continue  # written by the test itself
        return events

    def dead_letters(self) -> list[StoredMessage]:
        """The copies of the tasks that will never be run again, oldest first."""
        return self.server.messages(DEAD_LETTERS)

    # ------------------------------------------------------------------ told by the server

    def _on_settled(self, settlement: Settlement) -> None:
        run_id = settlement.message.subject.rpartition(".")[2]
        seen = self._observer.take(settlement.message)
        self._verdicts[run_id].put_nowait((settlement, seen))

    def _on_chunk(self, subject: str, data: bytes, _headers: Mapping[str, str]) -> None:
        self._chunks[subject.split(".")[1]].append(data)
