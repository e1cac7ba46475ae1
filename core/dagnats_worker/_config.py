"""What can be configured, and every bound of the worker, named and with its unit."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path

HEALTH_EXAMPLE = "127.0.0.1:8080"
PORT_MAX = 65_535

DEFAULT_URL = "nats://127.0.0.1:4222"
URL_VARIABLE = "NATS_URL"

ACK_WAIT_DEFAULT = timedelta(seconds=300)
"""AckWait of a durable that we create. Source: wire protocol, section 2.6."""

TASK_TIMEOUT_DEFAULT = timedelta(hours=24)
"""After this long a handler is given up, so that a lease is not renewed for ever."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to authenticate, as nats-py has it; give at most one kind, TLS comes on top.

    Attributes:
        creds_file: A file with a JWT and an nkey seed.
        nkey_seed: The seed itself, or a file that holds it.
        tls: A context for TLS; required by servers that verify clients. A configuration file has
            ``[worker.credentials.tls]`` with ``ca``, ``cert`` and ``key`` instead.
    """

    creds_file: Path | str | None = None
    nkey_seed: str | None = field(default=None, repr=False)
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """What a file or a variable says of ``Credentials.tls``, which only code can make itself.

    Attributes:
        ca: Certificates to check the server by; None for those of the system.
        cert: The certificate of this client, with ``key`` where the key is in a file of its own.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """The context that these files make.

        Raises:
            OSError: A file cannot be read, or is not what it should be.
        """
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None:
            context.load_cert_chain(self.cert, self.key)
        return context


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """How a worker behaves, and the upper bound of everything that it queues, waits for or repeats.

    Attributes:
        url: Servers to connect to where the worker is given no connection, several separated by
            commas; None for the environment variable ``NATS_URL``, else ``nats://127.0.0.1:4222``.
        credentials: How to authenticate there.
        drain_timeout: How long handlers may go on after a stop was asked for.
        max_deliveries: How often in a row a task may crash its worker before it fails for good.
        confirm_start: Wait until ``step.started`` is stored before the handler runs.
        go_ids: Message ids exactly as the Go worker writes them, with their collisions.
        connect_timeout: For the first connection; later ones are tried for ever.
        reconnect_wait: Between two attempts to reach a server that is gone.
        refused_max: How long a server that comes back may refuse the credentials until the worker
            gives up.
        publish_timeout: For one attempt to store an event.
        publish_attempts: How many attempts to store an event before the task is given back.
        request_timeout: For one request to the server's API.
        redeliver_after: Delay of a task that is given back because NATS or a plugin failed.
        waiting_max: How long a task that arrived without a free slot is held, then given back.
        pull_expires: How long an open pull of an idle task type lasts on the server.
        pull_heartbeat: How often the server says that such a pull is alive.
        drain_pull_expires: How long a pull for queued tasks may stay unanswered.
        recover_wait_max: Longest pause between two attempts to bring a lost consumer back.
        consumer_check_every: How often AckWait and the number of unacked tasks are read again.
        fresh_for: A task younger than this is not looked up among the cancelled runs.
        cancel_lookups_max: How many tasks one look at the cancelled runs covers.
        cancel_watch_after: A handler that runs longer than this is watched for cancellation.
        cancel_poll_every: How often the snapshots of watched runs are read.
        loop_blocked_max: Leases are renewed for at most this long while the event loop is blocked.
        loop_lag_warning: A loop that is blocked for longer than this is logged.
        history_events_max: How many events of a run a redelivered task reads at most.
        threads_extra: How many abandoned handler threads may exist beside ``max_tasks``.
        processes_max: How many processes run handlers with ``executor="process"``.
        pending_bytes_max: How many bytes may wait for a connection that is gone.
        stream_chunks_max: How many chunks of a stream a client keeps for a reader that is slow.
        follow_poll_every: How often a client looks for events that it was not told of.
        hook_timeout: How long one call of a plugin's hook may take before it is cancelled.
        plugin_failures_max: So many failures in a row, and an optional plugin is called no more.
        health: Where ``/livez`` and ``/readyz`` are served, ``HOST:PORT``; None for nowhere. Port 0
            is any that is free.
        live_blocked_max: A loop that is blocked for longer than this is not alive for ``/livez``.
        restart_wait: Before a process of ``--processes`` that has ended is started again; doubled
            each time in a row.
        restart_wait_max: Longest of these pauses.
        crash_window: A process that ends so soon after its start has ended in a row.
        crashes_max: So many ends in a row, and the supervisor gives up.
        recycle_timeout: How long the handlers of a process may go on that is to be replaced because
            of ``--max-tasks-per-child`` or ``--max-memory-per-child``.
        ack_pending_warning: Share of the durable's ``max_ack_pending`` at which a warning is due.
    """

    url: str | None = None
    credentials: Credentials = Credentials()
    drain_timeout: timedelta = timedelta(seconds=30)
    max_deliveries: int = 5
    confirm_start: bool = False
    go_ids: bool = False
    connect_timeout: timedelta = timedelta(seconds=5)
    reconnect_wait: timedelta = timedelta(milliseconds=500)
    refused_max: timedelta = timedelta(seconds=30)
    publish_timeout: timedelta = timedelta(seconds=5)
    publish_attempts: int = 5
    request_timeout: timedelta = timedelta(seconds=5)
    redeliver_after: timedelta = timedelta(seconds=5)
    waiting_max: timedelta = timedelta(seconds=1)
    pull_expires: timedelta = timedelta(seconds=30)
    pull_heartbeat: timedelta = timedelta(seconds=5)
    drain_pull_expires: timedelta = timedelta(seconds=1)
    recover_wait_max: timedelta = timedelta(seconds=5)
    consumer_check_every: timedelta = timedelta(seconds=30)
    fresh_for: timedelta = timedelta(seconds=1)
    cancel_lookups_max: int = 256
    cancel_watch_after: timedelta = timedelta(seconds=1)
    cancel_poll_every: timedelta = timedelta(seconds=3)
    loop_blocked_max: timedelta = timedelta(minutes=10)
    loop_lag_warning: timedelta = timedelta(seconds=1)
    history_events_max: int = 10_000
    threads_extra: int = 32
    processes_max: int = field(default_factory=lambda: os.cpu_count() or 1)
    pending_bytes_max: int = 8 * 1024 * 1024
    stream_chunks_max: int = 10_000
    follow_poll_every: timedelta = timedelta(seconds=10)
    hook_timeout: timedelta = timedelta(seconds=30)
    plugin_failures_max: int = 10
    health: str | None = None
    live_blocked_max: timedelta = timedelta(seconds=30)
    restart_wait: timedelta = timedelta(seconds=1)
    restart_wait_max: timedelta = timedelta(seconds=30)
    crash_window: timedelta = timedelta(minutes=1)
    crashes_max: int = 5
    recycle_timeout: timedelta = timedelta(minutes=5)
    ack_pending_warning: float = 0.8

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.type == "timedelta":
                _check_duration(one.name, value)
            elif one.type == "int":
                _check_count(one.name, value, lowest=0 if one.name == "threads_extra" else 1)
        if not 0 < self.ack_pending_warning <= 1:
            share = self.ack_pending_warning
            raise ValueError(f"ack_pending_warning is a share of 1, such as 0.8, got {share!r}")
        if self.health is not None:
            parse_address(self.health)

    @property
    def urls(self) -> str:
        """Where to connect when nothing else is said."""
        return self.url or os.environ.get(URL_VARIABLE) or DEFAULT_URL


def parse_address(text: str) -> tuple[str, int]:
    """``HOST:PORT``, or ``[HOST]:PORT`` where the host has colons itself.

    Raises:
        ValueError: It is not.
    """
    host, separator, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    bare = host.removeprefix("[").removesuffix("]")
    has_brackets = host != bare
    is_port = port.isascii() and port.isdigit() and int(port) <= PORT_MAX
    if not separator or not bare or not is_port or (":" in bare) is not has_brackets:
        raise ValueError(
            f"health is HOST:PORT, such as {HEALTH_EXAMPLE}, or 0.0.0.0:8080 for every interface; "
            f"got {text!r}"
        )
    return bare, int(port)


def _check_duration(name: str, value: object) -> None:
    if not isinstance(value, timedelta):
        raise TypeError(f"{name} is a timedelta, got {value!r}")
    if value <= timedelta(0):
        raise ValueError(f"{name} is longer than zero, got {value!r}")


def _check_count(name: str, value: object, *, lowest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise ValueError(f"{name} is a whole number of at least {lowest}, got {value!r}")


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line says; stronger than the code of the module that it runs.

    Attributes:
        url: None leaves what the code says, as every None here.
        health: Where health is served.
        options: Settings as ``plugin.key=value`` or ``worker.key=value``.
        no_plugins: Load none of those that are installed.
        supervised: Another process has started this one, and serves health for it.
        process: Which process of ``--processes`` this is; part of a ``worker_id`` of the code.
    """

    url: str | None = None
    credentials: Credentials | None = None
    max_tasks: int | None = None
    drain_timeout: timedelta | None = None
    health: str | None = None
    options: tuple[str, ...] = ()
    no_plugins: bool = False
    supervised: bool = False
    process: int | None = None

    def applied_to(self, config: WorkerConfig) -> WorkerConfig:
        """The configuration with these stronger values in it."""
        changes = {
            name: getattr(self, name)
            for name in ("url", "credentials", "drain_timeout", "health")
            if getattr(self, name) is not None
        }
        return replace(config, **changes)


_installed = Overrides()


def install_overrides(overrides: Overrides) -> None:
    """Make these hold for every worker and client of this process that is made from now on."""
    global _installed  # noqa: PLW0603 - one command line per process
    _installed = overrides


def installed_overrides() -> Overrides:
    """What the command line of this process says."""
    return _installed
