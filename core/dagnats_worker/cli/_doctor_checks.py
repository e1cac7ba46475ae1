"""What is wrong with a server, as a worker sees it: from a survey to findings, and no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Literal

from dagnats_worker._durations import format_duration
from dagnats_worker._naming import durable_name, filter_subject, filters_overlap
from dagnats_worker._sources import REQUIRED_STREAMS, TASKS_STREAM
from dagnats_worker._survey import ConsumerFacts, StreamFacts, Survey
from dagnats_worker.cli._screen import counted, listed

Level = Literal["ok", "warning", "stops"]

SHARE_MAX = 0.8
CLOCKS_APART_MAX = timedelta(seconds=2)
LEASE_MIN = timedelta(seconds=5)
ORPHAN_AFTER = timedelta(days=7)
SHOWN_MAX = 5
ANY_RUN = "run"
SETUP = "dagnats-worker setup"

STREAMS = {
    TASKS_STREAM: ("task.>", "workqueue"),
    "WORKFLOW_HISTORY": ("history.>", "limits"),
    "DEAD_LETTERS": ("dead.>", "limits"),
}
OPTIONAL_STREAMS = {
    "STICKY_TASKS": "tasks that are bound to one worker do not arrive",
    "KV_workflow_runs": "cancelled runs are not noticed",
    "KV_checkpoints": "checkpoints and pauses fail",
    "KV_signals": "signals fail",
    "KV_workers": "workers are not listed",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor.

    Attributes:
        level: ``stops`` is what no worker starts with.
        area: What it is about: ``server``, ``stream``, ``consumer``, ``tasks``, ``worker``,
            ``plugin``.
        remedy: What to do about it; empty where nothing is wrong.
    """

    level: Level
    area: str
    what: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Served:
    """What a worker serves from a durable of its own.

    Attributes:
        ack_wait: What it asks for; None for whatever there is.
    """

    task_type: str
    group: str | None
    ack_wait: timedelta | None


def findings(found: Survey, served: Iterable[Served] = ()) -> Iterator[Finding]:
    """All that can be said of a server, and of what a worker would find there."""
    yield from _server(found)
    streams, consumers = found.streams, found.consumers
    if streams is not None:
        yield from _streams(streams)
    if consumers is None:  # of what cannot be seen nothing can be missing
        return
    plain = [one for one in consumers if not one.sourcing]
    for consumer in plain:
        yield from _consumer(consumer)
    streams_seen = () if streams is None else tuple(streams.values())
    yield from _twice(streams_seen, plain)
    yield from _unserved(found.queued, consumers, streams_seen)
    for one in served:
        yield from _of_worker(one, plain)


# ------------------------------------------------------------------------- the server


def _server(found: Survey) -> Iterator[Finding]:
    version = ".".join(map(str, found.version))
    milliseconds = found.round_trip.total_seconds() * 1000
    yield Finding("ok", "server", f"nats-server {version} at {found.url}, {milliseconds:.1f} ms")
    if found.denied:
        yield Finding(
            "warning",
            "server",
            f"no answer to {', '.join(found.denied)}, so this is not the whole picture",
            "let this user publish to $JS.API.> and subscribe to _INBOX.>",
        )
    if found.clock_ahead is not None and abs(found.clock_ahead) > CLOCKS_APART_MAX:
        direction = "ahead of" if found.clock_ahead > timedelta(0) else "behind"
        yield Finding(
            "warning",
            "server",
            f"the clock of this machine is {format_duration(abs(found.clock_ahead))} {direction} "
            "the server's; timeouts and redeliveries are counted by both",
            "synchronise the clocks (chrony, ntpd)",
        )
    if found.store_max > 0 and found.store_used >= found.store_max * SHARE_MAX:
        share = found.store_used / found.store_max
        yield Finding(
            "warning",
            "server",
            f"JetStream has used {share:.0%} of what the account may store; at 100 % no event is "
            "stored, and no task ends",
            "raise the account's limit, or delete what is not needed",
        )


# ------------------------------------------------------------------------- streams


def _streams(streams: Mapping[str, StreamFacts]) -> Iterator[Finding]:
    missing = [name for name in REQUIRED_STREAMS if name not in streams]
    for name in missing:
        yield Finding("stops", "stream", f"{name} does not exist", f"start the engine, or: {SETUP}")
    for name, consequence in OPTIONAL_STREAMS.items():
        if name not in streams:
            what = f"{name} does not exist: {consequence}"
            yield Finding("warning", "stream", what, f"start the engine, or: {SETUP}")
    for name, (subject, retention) in STREAMS.items():
        if name in streams:
            yield from _configuration(streams[name], subject, retention)
    if not missing:
        tasks = streams[TASKS_STREAM].messages
        letters = streams["DEAD_LETTERS"].messages
        what = f"{len(streams)} streams and buckets; {counted(tasks, 'task')} queued or running"
        yield Finding("ok", "stream", what)
        if letters:
            what = f"{counted(letters, 'dead letter')}; see: dagnats-worker dlq list"
            yield Finding("ok", "stream", what)


def _configuration(stream: StreamFacts, subject: str, retention: str) -> Iterator[Finding]:
    again = f"delete it when it is empty, then: {SETUP}"
    if subject not in stream.subjects:
        subjects = ", ".join(stream.subjects) or "nothing"
        what = f"{stream.name} takes {subjects}, and not {subject}"
        yield Finding("stops", "stream", what, again)
    if stream.retention != retention:
        what = f"{stream.name} has the retention {stream.retention!r}, and not {retention!r}"
        yield Finding("stops", "stream", what, again)
    limited = stream.max_messages > 0 or stream.max_bytes > 0
    if stream.name == TASKS_STREAM and stream.discard == "old" and limited:
        yield Finding(
            "warning",
            "stream",
            f"{stream.name} discards its oldest tasks when it is full",
            f"nats stream edit {stream.name} --discard=new, so that the sender is told instead",
        )


# ------------------------------------------------------------------------- consumers


def _consumer(one: ConsumerFacts) -> Iterator[Finding]:
    """What is wrong with a consumer, whoever it belongs to."""
    if one.ack_policy != "explicit":
        what = f"{one.name} has the ack policy {one.ack_policy!r}: tasks are lost with a worker"
        yield Finding("stops", "consumer", what, _remove(one))
    if one.max_deliver > 0:
        yield Finding(
            "warning",
            "consumer",
            f"{one.name} delivers at most {one.max_deliver} times, then a task lies there for ever",
            f"nats consumer edit {TASKS_STREAM} {one.name} --max-deliver=-1",
        )
    if one.ack_wait < LEASE_MIN:
        lease = format_duration(one.ack_wait)
        yield Finding(
            "warning",
            "consumer",
            f"{one.name} has an AckWait of {lease}: a short stall runs a task twice",
            "set ack_wait=timedelta(seconds=30) or more in @worker.task",
        )
    yield from _busy(one)
    yield from _left_alone(one)


def _busy(one: ConsumerFacts) -> Iterator[Finding]:
    limit = one.max_ack_pending
    if limit > 0 and one.unacked >= limit * SHARE_MAX:
        yield Finding(
            "warning",
            "consumer",
            f"{one.name} holds {one.unacked} unacked tasks of at most {limit}, tasks that wait to "
            "be retried among them; at the limit nothing is delivered",
            f"nats consumer edit {TASKS_STREAM} {one.name} --max-pending={limit * 10}",
        )
    if one.pulls_max > 0 and one.pulls >= one.pulls_max * SHARE_MAX:
        yield Finding(
            "warning",
            "consumer",
            f"{one.name} has {one.pulls} open pulls of at most {one.pulls_max}; the server drops "
            "more without a word",
            "run fewer processes with more tasks each (--max-tasks)",
        )


def _left_alone(one: ConsumerFacts) -> Iterator[Finding]:
    if one.pulls or one.unacked:
        return
    if one.queued:
        what = f"{one.name} has {counted(one.queued, 'queued task')}, and no worker pulls from it"
        yield Finding("warning", "consumer", what, "start a worker that serves it")
        return
    last = one.active_at or one.created_at
    if one.durable and last is not None and datetime.now(UTC) - last > ORPHAN_AFTER:
        days = (datetime.now(UTC) - last).days
        what = f"{one.name} is an orphan: no worker pulls, and nothing came for {days} days"
        yield Finding("warning", "consumer", what, _remove(one))


def _remove(one: ConsumerFacts) -> str:
    return f"nats consumer rm {TASKS_STREAM} {one.name}, if no worker needs it"


def _twice(streams: Iterable[StreamFacts], plain: Iterable[ConsumerFacts]) -> Iterator[Finding]:
    """A partitioned group beside a plain consumer runs every task of both twice."""
    groups = [stream for stream in streams if stream.sources]
    for group, consumer in product(groups, plain):
        shared = next(
            (
                ours
                for ours, theirs in product(consumer.filters, group.sources)
                if filters_overlap(ours, theirs)
            ),
            None,
        )
        if shared is not None:
            yield Finding(
                "stops",
                "consumer",
                f"{consumer.name} and the partitioned group {group.name} both take {shared!r}: "
                "every such task runs twice",
                f"stop the plain workers and nats consumer rm {TASKS_STREAM} {consumer.name}, or "
                "delete the group",
            )


# ------------------------------------------------------------------------- tasks


def _unserved(
    queued_on: Mapping[str, int],
    consumers: Iterable[ConsumerFacts],
    streams: Iterable[StreamFacts],
) -> Iterator[Finding]:
    """Tasks that no consumer takes: nobody will ever be told of them."""
    filters = {one for consumer in consumers for one in consumer.filters}
    filters |= {one for stream in streams for one in stream.sources}
    queued: Counter[str] = Counter()
    for subject, count in queued_on.items():
        queued[subject.rpartition(".")[0]] += count
    waiting = [
        f"{subject.partition('.')[2]} ({counted(count, 'task')})"
        for subject, count in queued.most_common()
        if not any(filters_overlap(one, f"{subject}.{ANY_RUN}") for one in filters)
    ]
    if waiting:
        yield Finding(
            "warning",
            "tasks",
            f"queued, and no worker has ever served them: {listed(waiting, SHOWN_MAX)}",
            "start a worker for them; a retry of a grouped step comes without its group",
        )


# ------------------------------------------------------------------------- one worker


def _of_worker(served: Served, plain: Iterable[ConsumerFacts]) -> Iterator[Finding]:
    """What a worker would meet when it binds to its durable."""
    name, wanted = (
        durable_name(served.task_type, served.group),
        filter_subject(served.task_type, served.group),
    )
    mine = None
    for one in plain:
        if one.name == name:
            mine = one
        elif any(filters_overlap(wanted, other) for other in one.filters):
            yield Finding(
                "stops" if one.durable else "warning",
                "worker",
                f"{name} would take {wanted!r}, and {one.name} takes "
                f"{', '.join(map(repr, one.filters))}; a work queue refuses both",
                f"rename one of the task types, or {_remove(one)}",
            )
    if mine is None:
        yield Finding("ok", "worker", f"{served.task_type}: {name} will be created")
        return
    yield from _my_durable(served, mine, wanted)


def _my_durable(served: Served, mine: ConsumerFacts, wanted: str) -> Iterator[Finding]:
    if mine.filters != (wanted,):
        yield Finding(
            "stops",
            "worker",
            f"{mine.name} exists with the filter {', '.join(map(repr, mine.filters))}; "
            f"{served.task_type!r} needs {wanted!r}: two task types share that name",
            "rename one of them",
        )
    elif served.ack_wait is not None and served.ack_wait != mine.ack_wait:
        asked, there = format_duration(served.ack_wait), format_duration(mine.ack_wait)
        yield Finding(
            "warning",
            "worker",
            f"{mine.name} has an AckWait of {there}, which the start would change to {asked} for "
            "every worker of it",
            f"give {served.task_type!r} the same ack_wait everywhere",
        )
    else:
        unacked = f"{mine.unacked} running or waiting to be retried, {mine.queued} queued"
        yield Finding("ok", "worker", f"{served.task_type}: {mine.name}, {unacked}")
