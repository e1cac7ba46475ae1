"""The instruments of a meter provider: the Go worker's, and what an operator needs beside them.

All but three are observed when somebody collects, so that no task pays for them. Attributes are a
task type that was registered and one of six outcomes; a run's or a step's id never is one. The Go
worker's instruments have no attributes, no unit and no description, and so have ours of that name.

Source: wire protocol, section 9.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from dagnats_worker import WorkerFacade

TASK_TYPE = "dagnats.task.type"
OUTCOME = "dagnats.outcome"

SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    *(30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0),
)
"""Bounds of what may take milliseconds or a day."""

Kind = Literal["counter", "up_down", "gauge"]
Key = tuple[str, str]
"""A task type and an outcome."""


@dataclass(frozen=True, slots=True)
class Observed:
    """An instrument that is observed when somebody collects."""

    kind: Kind
    name: str
    unit: str = ""
    description: str = ""


FROM_STATS = (
    ("slots_in_use", Observed("up_down", "worker.tasks.active")),
    ("skipped_cancelled", Observed("counter", "worker.tasks.cancelled_skipped")),
    (
        "slots_in_use",
        Observed("up_down", "dagnats.worker.slots.usage", "{slot}", "Slots that tasks hold now"),
    ),
    (
        "delivered",
        Observed(
            "counter",
            "dagnats.worker.deliveries",
            "{delivery}",
            "Task messages that the worker took",
        ),
    ),
    (
        "redelivered",
        Observed(
            "counter",
            "dagnats.worker.redeliveries",
            "{delivery}",
            "Those of them that had been delivered before",
        ),
    ),
    (
        "rejected",
        Observed(
            "counter",
            "dagnats.worker.rejections",
            "{delivery}",
            "Task messages that could not be decoded",
        ),
    ),
    (
        "renewals",
        Observed(
            "counter",
            "dagnats.worker.lease.renewals",
            "{renewal}",
            "Leases of task messages that were renewed",
        ),
    ),
    (
        "publish_retries",
        Observed(
            "counter",
            "dagnats.worker.publish.retries",
            "{retry}",
            "Events that had to be sent again",
        ),
    ),
    (
        "abandoned",
        Observed(
            "up_down",
            "dagnats.worker.threads.abandoned",
            "{thread}",
            "Handler threads that outlived their task and still run",
        ),
    ),
    (
        "loop_lag_s",
        Observed(
            "gauge",
            "dagnats.worker.loop.lag",
            "s",
            "How late the event loop was at worst in the last half minute, or somewhat longer",
        ),
    ),
)
"""Which field of ``Stats`` an instrument shows."""

RETRIES = Observed("counter", "step.retries")
LIMIT = Observed("up_down", "dagnats.worker.slots.limit", "{slot}", "Slots that there are")
TASKS = Observed("counter", "dagnats.worker.tasks", "{task}", "Tasks that have ended")
HANDLER_TIME = Observed(
    "counter", "dagnats.worker.handler.time", "s", "Time that handlers took, in all"
)
QUEUE_TIME = Observed(
    "counter", "dagnats.worker.queue.time", "s", "Time that tasks waited in the queue, in all"
)


@dataclass(slots=True)
class Ended:
    """How many tasks of one type had one outcome, and how long their handlers took in all."""

    count: int = 0
    took_s: float = 0.0


class Tally:
    """What is counted of one worker where its ``stats()`` do not have it.

    Attributes:
        failures: Of handlers, without those that no retry can help and those with a delay.
        ended: Tasks by their type and outcome.
        waited_s: How long the tasks of a type have waited, in all.
    """

    def __init__(self) -> None:
        self.failures = 0
        self.ended: dict[Key, Ended] = {}
        self.waited_s: dict[str, float] = {}

    def add(self, task_type: str, outcome: str, took_s: float, count: int = 1) -> None:
        """Count tasks that have ended."""
        ended = self.ended.get((task_type, outcome))
        if ended is None:
            ended = self.ended[task_type, outcome] = Ended()
        ended.count += count
        ended.took_s += took_s

    def waited(self, task_type: str, waited_s: float) -> None:
        """Add how long a task has waited in the queue."""
        self.waited_s[task_type] = self.waited_s.get(task_type, 0.0) + waited_s

    def absorb(self, other: Tally) -> None:
        """Take over what another has counted."""
        self.failures += other.failures
        for task_type, waited_s in other.waited_s.items():
            self.waited(task_type, waited_s)
        for (task_type, outcome), ended in other.ended.items():
            self.add(task_type, outcome, ended.took_s, ended.count)


class Instruments:
    """The instruments of one meter provider, over all workers of the process that use it.

    What is counted goes on from where a worker that has ended has left it.
    """

    def __init__(self, meter: Meter) -> None:
        self.duration_ms = meter.create_histogram("step.duration_ms")
        self.queue_wait_s = meter.create_histogram(
            "dagnats.worker.queue.wait_time",
            unit="s",
            description="From the queueing of a task until it was begun; of some tasks",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self.drain_s = meter.create_histogram(
            "dagnats.worker.drain.duration",
            unit="s",
            description="From the request to stop until the last handler had ended",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self._workers: dict[WorkerFacade, Tally] = {}
        self._past = Tally()
        self._past_stats: dict[str, int] = {}
        for field, instrument in FROM_STATS:
            _observe(meter, instrument, self._of_stats(instrument.kind, field))
        _observe(meter, RETRIES, self._retries)
        _observe(meter, LIMIT, self._limit)
        _observe(meter, QUEUE_TIME, self._queue_time)
        _observe(meter, TASKS, lambda: self._of_tasks(lambda ended: ended.count))
        _observe(meter, HANDLER_TIME, lambda: self._of_tasks(lambda ended: ended.took_s))

    def add(self, worker: WorkerFacade, tally: Tally) -> None:
        """Observe a worker."""
        self._workers[worker] = tally

    def remove(self, worker: WorkerFacade) -> None:
        """Observe it no more, and keep what was counted."""
        stats = worker.stats()
        for field in {field for field, instrument in FROM_STATS if instrument.kind == "counter"}:
            self._past_stats[field] = self._past_stats.get(field, 0) + getattr(stats, field)
        self._past.absorb(self._workers.pop(worker))

    # ------------------------------------------- called by whoever collects, and in any thread

    def _of_stats(self, kind: Kind, field: str) -> Callable[[], Iterable[Observation]]:
        def observe() -> Iterator[Observation]:
            values = [getattr(worker.stats(), field) for worker in self._workers.copy()]
            if kind != "gauge":
                yield Observation(sum(values) + self._past_stats.get(field, 0))
            elif values:
                yield Observation(max(values))

        return observe

    def _tallies(self) -> list[Tally]:
        return [self._past, *self._workers.copy().values()]

    def _retries(self) -> Iterator[Observation]:
        yield Observation(sum(tally.failures for tally in self._tallies()))

    def _limit(self) -> Iterator[Observation]:
        yield Observation(sum(worker.max_tasks for worker in self._workers.copy()))

    def _queue_time(self) -> Iterator[Observation]:
        total: dict[str, float] = {}
        for tally in self._tallies():
            for task_type, waited_s in tally.waited_s.copy().items():
                total[task_type] = total.get(task_type, 0.0) + waited_s
        for task_type, waited_s in total.items():
            yield Observation(waited_s, {TASK_TYPE: task_type})

    def _of_tasks(self, value: Callable[[Ended], float]) -> Iterator[Observation]:
        total: dict[Key, float] = {}
        for tally in self._tallies():
            for key, ended in tally.ended.copy().items():
                total[key] = total.get(key, 0) + value(ended)
        for (task_type, outcome), number in total.items():
            yield Observation(number, {TASK_TYPE: task_type, OUTCOME: outcome})


def _observe(
    meter: Meter, instrument: Observed, observe: Callable[[], Iterable[Observation]]
) -> None:
    create = {
        "counter": meter.create_observable_counter,
        "up_down": meter.create_observable_up_down_counter,
        "gauge": meter.create_observable_gauge,
    }[instrument.kind]

    def callback(options: CallbackOptions) -> Iterable[Observation]:
        del options
        return observe()

    create(instrument.name, [callback], unit=instrument.unit, description=instrument.description)
