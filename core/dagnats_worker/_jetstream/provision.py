"""Create the streams and buckets of the protocol where no engine has done it.

An engine creates or updates the same resources when it starts, so each configuration here must be
one that its update accepts: what a stream can never give up again (message TTLs, for one, which
nats-py's own ``create_key_value`` turns on) is left out. No stream has ``max_bytes``: the engine
shares out a store budget, and without a budget any number would lose messages on some machine; what
bounds a stream is its ``max_age`` and the limits of the account.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NoReturn

import nats.errors
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from dagnats_worker.errors import StartError, TransportError, describe

REQUIRED_STREAMS = ("TASK_QUEUES", "WORKFLOW_HISTORY", "DEAD_LETTERS")
"""What a worker cannot do without; a missing bucket or other stream only turns a feature off."""

SINGLE_REPLICA = frozenset({"STICKY_TASKS", "TELEMETRY", "TRIGGER_HISTORY"})
ATOMIC_API_LEVEL = 2  # nats-server 2.12; an older one, when strict, refuses fields it does not know

# Source: nats-server, errors.json.
NAME_IN_USE = 10058
SUBJECTS_OVERLAP = 10065
NOT_ENABLED = frozenset({None, 10039, 10076})  # None: nobody answers on $JS.API
NO_ROOM = frozenset({10002, 10023, 10027, 10028, 10047, 10113, 10122})


@dataclass
class _StreamConfig(api.StreamConfig):
    allow_atomic: bool | None = None  # a field that older versions of nats-py lack


@dataclass(frozen=True, slots=True)
class Resource:
    """A stream or a bucket of the protocol.

    Attributes:
        name: What people call it: the stream's name, or the bucket's.
        config: Of the stream, or of the stream below the bucket.
    """

    name: str
    config: api.StreamConfig


def _stream(
    name: str,
    *subjects: str,
    max_age: timedelta = timedelta(0),
    duplicate_window: timedelta = timedelta(minutes=2),
    storage: api.StorageType = api.StorageType.FILE,
    retention: api.RetentionPolicy = api.RetentionPolicy.LIMITS,
    allow_direct: bool = False,
) -> Resource:
    config = _StreamConfig(
        name=name,
        subjects=list(subjects),
        max_age=max_age.total_seconds(),
        duplicate_window=duplicate_window.total_seconds(),
        storage=storage,
        retention=retention,
        allow_direct=allow_direct,
    )
    return Resource(name, config)


def _bucket(name: str, ttl: timedelta = timedelta(0), *, message_ttl: bool = False) -> Resource:
    # As Go's client creates a bucket with history 1.
    config = _StreamConfig(
        name=f"KV_{name}",
        subjects=[f"$KV.{name}.>"],
        max_age=ttl.total_seconds(),
        duplicate_window=min(ttl or timedelta(minutes=2), timedelta(minutes=2)).total_seconds(),
        storage=api.StorageType.FILE,
        retention=api.RetentionPolicy.LIMITS,
        discard=api.DiscardPolicy.NEW,
        max_msgs_per_subject=1,
        deny_delete=True,
        allow_rollup_hdrs=True,
        allow_direct=True,
        allow_msg_ttl=message_ttl or None,
    )
    return Resource(name, config)


# Source: wire protocol, sections 1.2 and 1.3. WORKFLOW_HISTORY allows direct reads on top, because
# a redelivered task reads its run's events.
RESOURCES = (
    _stream(
        "WORKFLOW_HISTORY",
        "history.>",
        max_age=timedelta(days=30),
        duplicate_window=timedelta(seconds=5),
        allow_direct=True,
    ),
    _stream("TASK_QUEUES", "task.>", retention=api.RetentionPolicy.WORK_QUEUE),
    _stream("EVENTS", "event.>", max_age=timedelta(days=14)),
    _stream(
        "DEAD_LETTERS",
        "dead.>",
        max_age=timedelta(days=30),
        duplicate_window=timedelta(hours=24),
    ),
    _stream("SLEEP_TIMERS", "sleep.>", "scheduled.>"),
    _stream(
        "TELEMETRY",
        "telemetry.>",
        max_age=timedelta(days=7),
        duplicate_window=timedelta(seconds=5),
    ),
    _stream(
        "STICKY_TASKS",
        "sticky.>",
        max_age=timedelta(minutes=30),
        storage=api.StorageType.MEMORY,
    ),
    _stream("TRIGGER_HISTORY", "trigger.fire.>", max_age=timedelta(days=30)),
    _bucket("workflow_defs"),
    _bucket("workflow_runs"),
    _bucket("scheduled_runs"),
    _bucket("workers", timedelta(seconds=60)),
    _bucket("worker_status", timedelta(seconds=120)),
    _bucket("event_waiters"),
    _bucket("rate_limits"),
    _bucket("concurrency_tasks"),
    _bucket("approval_tokens", timedelta(hours=168)),
    _bucket("debounce_state", timedelta(days=14)),
    _bucket("idempotency_keys", timedelta(hours=24)),
    _bucket("http_idempotency", timedelta(hours=1)),
    _bucket("sticky_bindings", timedelta(hours=25)),
    _bucket("singleton_locks"),
    _bucket("trigger_types"),
    _bucket("services"),
    _bucket("triggers"),
    _bucket("trigger_state"),
    _bucket("signals"),
    _bucket("checkpoints"),
    _bucket("concurrency_runs"),
    # Ours, and unknown to every engine: keys are used once, so their delete markers have to end.
    _bucket("parked_tasks", message_ttl=True),
)


async def provision(js: JetStreamContext, *, replicas: int = 1) -> list[str]:
    """Create each stream and bucket that does not exist; never change one that does.

    Running it again, or twice at once, is harmless; so is an engine that starts later.

    Args:
        js: The account to provision.
        replicas: Copies of each stream in a cluster: 1, 3 or 5. What the engine never replicates
            is not replicated here.

    Returns:
        The names of what was created, in the order of creation; buckets by their own name.

    Raises:
        StartError: JetStream is not enabled, has no room, or another stream has the subjects.
        TransportError: The server did not answer, or the user may not do this.
    """
    atomic = await _api_level(js) >= ATOMIC_API_LEVEL
    absent = set(await missing(js, (resource.name for resource in RESOURCES)))
    created = []
    for resource in RESOURCES:
        if resource.name not in absent:
            continue
        config = replace(
            resource.config, num_replicas=1 if resource.name in SINGLE_REPLICA else replicas
        )
        if atomic and resource.name == "TASK_QUEUES":
            config = replace(config, allow_atomic=True)
        if await _create(js, config):
            created.append(resource.name)
    return created


async def create_bucket(js: JetStreamContext, name: str, ttl: timedelta = timedelta(0)) -> None:
    """Create a bucket of a plugin's own, as safe as the history is; never change one that exists.

    Args:
        name: A bucket of the protocol becomes what it is in the protocol, whatever the ``ttl``.
        ttl: After this long without a write a key is gone; zero for never.

    Raises:
        StartError: JetStream is not enabled, or has no room.
        TransportError: The server did not answer, or the user may not do this.
    """
    known = {resource.name: resource.config for resource in RESOURCES}
    config = known.get(name) or _bucket(name, ttl).config
    if await _exists(js, str(config.name)):
        return
    try:
        history = await js.stream_info("WORKFLOW_HISTORY")
    except nats.errors.Error as error:
        _refuse(error, "stream WORKFLOW_HISTORY")
    await _create(js, replace(config, num_replicas=history.config.num_replicas))


async def missing(js: JetStreamContext, names: Iterable[str] = REQUIRED_STREAMS) -> list[str]:
    """Which of the streams and buckets do not exist; by default, of those a worker must have.

    Raises:
        StartError: JetStream is not enabled.
        TransportError: The server did not answer, or the user may not ask.
    """
    wanted = list(names)
    streams = {resource.name: resource.config.name for resource in RESOURCES}
    found = await asyncio.gather(*(_exists(js, streams[name] or name) for name in wanted))
    return [name for name, exists in zip(wanted, found, strict=True) if not exists]


async def _api_level(js: JetStreamContext) -> int:
    try:
        info = await js.account_info()
    except nats.errors.Error as error:
        _refuse(error, "account information")
    return getattr(info.api, "level", None) or 0  # a field that older versions of nats-py lack


async def _exists(js: JetStreamContext, stream: str) -> bool:
    try:
        await js.stream_info(stream)
    except NotFoundError:
        return False
    except nats.errors.Error as error:
        _refuse(error, f"stream {stream}")
    return True


async def _create(js: JetStreamContext, config: api.StreamConfig) -> bool:
    try:
        await js.add_stream(config)
    except nats.errors.Error as error:
        if isinstance(error, APIError) and error.err_code == NAME_IN_USE:
            return False  # an engine made it, its own way, since we looked
        _refuse(error, f"stream {config.name}")
    return True


def _refuse(error: nats.errors.Error, what: str) -> NoReturn:
    if isinstance(error, nats.errors.TimeoutError):
        raise TransportError(
            f"{what}: no answer from JetStream; let this user publish to $JS.API.> and subscribe "
            "to _INBOX.>, and see that the cluster has a leader"
        ) from error
    if not isinstance(error, APIError):
        raise TransportError(f"{what}: {describe(error)}") from error
    if isinstance(error, ServiceUnavailableError) and error.err_code in NOT_ENABLED:
        raise StartError(
            f"{what}: JetStream is not enabled; start the server with --jetstream, and enable it "
            "for the account of this user"
        ) from error
    if error.err_code in NO_ROOM:
        raise StartError(
            f"{what}: {error.description}; raise the JetStream limits of the account or server"
        ) from error
    if error.err_code == SUBJECTS_OVERLAP:
        raise StartError(
            f"{what}: {error.description}; delete the other stream, or use an account of its own "
            "for the tasks"
        ) from error
    raise TransportError(f"{what}: {error.description} (error {error.err_code})") from error
