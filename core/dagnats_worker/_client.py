"""The client: submits tasks and follows runs, with an engine or with nothing but a NATS server."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from dagnats_worker import _json
from dagnats_worker._config import WorkerConfig
from dagnats_worker._hook_clock import HookClock
from dagnats_worker._load import Setup, url_of_command_line
from dagnats_worker._message_headers import sendable
from dagnats_worker._naming import check_token, signal_key
from dagnats_worker._open import open_transport
from dagnats_worker._plugins import Hooks
from dagnats_worker._protocol import (
    ABSENT,
    HEADER_MSG_ID,
    RUN_ID_CHARS_MAX,
    WORKFLOW_CANCELLED,
    Event,
    TaskPayload,
    decode_task,
    encode_event,
    encode_task,
    go_event_id,
    history_subject,
    is_one_line,
    is_subject_token,
    queued_id,
    task_subject,
    time_text,
)
from dagnats_worker._retry import retry_nats
from dagnats_worker._run import Run
from dagnats_worker._status import RunStatus, status_from_events, status_from_snapshot
from dagnats_worker._transport import Stored, Transport, is_transport, message_size
from dagnats_worker._workflows import check_definition
from dagnats_worker.errors import (
    DecodeError,
    EngineError,
    KeyValueError,
    PublishError,
    TransportError,
    UsageError,
)
from dagnats_worker.hookspecs import Message, Plugin

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient  # noqa: TID251 - the type of a parameter

NO_INPUT: Any = object()
"""A task without input; None is an input, JSON's null."""

RUN_ID_BYTES = 16


class Client:
    """Submits tasks to workers, and follows what becomes of them.

    Example:
        ```python
        async with Client("nats://127.0.0.1:4222") as client:
            run = await client.submit("greet", {"name": "Ada"})
            print(await run.result(timeout=timedelta(seconds=10)))
        ```

    Args:
        connection: As for a ``Worker``.
        plugins: Exactly these; without it those that are installed. Their ``pre_publish`` is called
            for each message that is sent.
        config: Everything else.
    """

    def __init__(
        self,
        connection: str | Sequence[str] | NatsClient | Transport | None = None,
        *,
        plugins: Sequence[Plugin[Any]] | None = None,
        config: WorkerConfig | Path | str | None = None,
    ) -> None:
        self._setup = Setup(plugins, config)
        given = is_transport(connection)
        self._connection = connection if given else url_of_command_line() or connection
        self._hooks = Hooks()
        self._hook_clock: HookClock | None = None
        self._transport: Transport | None = None

    @property
    def config(self) -> WorkerConfig:
        """How the client is configured; read when it is first needed."""
        return self._setup.config

    async def connect(self) -> None:
        """Connect; ``async with`` does it too.

        Raises:
            ConnectError: No server, or one that is too old.
        """
        if self._transport is None:
            self._hooks = self._setup.load_hooks()
            self._transport = await open_transport(
                self._connection, self.config, name="dagnats-client", with_leases=False
            )
            if self._hooks.pre_publish:
                limit = self.config.hook_timeout
                self._hook_clock = HookClock(limit, lambda: tuple(self._hooks.callers))

    async def close(self) -> None:
        """Send what is still to be sent, and disconnect; a connection handed over stays open."""
        if self._hook_clock is not None:
            await self._hook_clock.close()
        transport, self._transport = self._transport, None
        if transport is not None and not is_transport(self._connection):
            if transport.connected:
                await transport.flush()
            await transport.close()

    async def __aenter__(self) -> Client:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def transport(self) -> Transport:
        """The connection, as the core uses it.

        Raises:
            UsageError: Not connected.
        """
        if self._transport is None:
            raise UsageError("the client is not connected; use `async with Client(...) as client`")
        return self._transport

    # ------------------------------------------------------------------ without an engine

    async def submit(
        self,
        task_type: str,
        input: Any = NO_INPUT,  # noqa: A002 - the protocol's word for it
        *,
        run_id: str | None = None,
        step_id: str | None = None,
        group: str | None = None,
        headers: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        stream: bool = False,
    ) -> Run:
        """Put one task into the queue of its type.

        Args:
            input: Anything JSON can hold; bytes mean JSON.
            run_id: A single token; made up when not given. The same run and step submitted again
                within two minutes is not run again.
            step_id: The task type when not given.
            group: Only workers of this group take it.
            headers: Of the task message.
            metadata: Seen by the handler as ``ctx.metadata``.
            stream: Listen to what the handler streams before the task is there, so that the first
                chunk is not missed.

        Raises:
            UsageError, ValueError: A name or an input that cannot work.
            PublishError: The queue did not take it, or no server answered, however often it was
                sent. In the second case it may get there all the same: submitted again with the
                same run id, it is queued once.
        """
        check_token("task type", task_type)
        if group is not None:
            check_token("group", group)
        run_id = _checked_run_id(run_id or secrets.token_hex(RUN_ID_BYTES))
        step_id = step_id or task_type
        task = TaskPayload(
            task_id=f"{run_id}.{step_id}",
            run_id=run_id,
            step_id=step_id,
            input=ABSENT if input is NO_INPUT else msgspec.Raw(_json.encode(input)),
            metadata=dict(metadata or {}),
        )
        data = encode_task(task)
        _check_task(data, headers or {})
        run, transport = Run(self, run_id, step_id), self.transport
        if stream:
            await run.listen()
        sent = {**(headers or {}), HEADER_MSG_ID: queued_id(run_id, step_id)}
        subject = task_subject(task_type, run_id, group)
        try:
            run.duplicate = (await self._store(subject, data, sent)).duplicate
        except BaseException as error:  # nobody else can end the listening
            await run.close()
            if isinstance(error, PublishError) and not transport.connected:
                text = f"{error}; it may be queued all the same, so submit it again with {run_id=}"
                raise PublishError(text, error.code) from error
            raise
        return run

    def run(self, run_id: str, step_id: str = "") -> Run:
        """A run that exists already.

        Args:
            step_id: The step whose end is the end of the run, where no engine manages it.

        Raises:
            ValueError: Not the id of a run.
        """
        return Run(self, _checked_run_id(run_id), step_id)

    async def cancel(self, run_id: str) -> None:
        """Ask for the cancellation of a run: queued tasks are skipped, running handlers are told.

        Raises:
            ValueError: Not the id of a run.
            PublishError: The request could not be stored.
        """
        run_id = _checked_run_id(run_id)
        event = Event(type=WORKFLOW_CANCELLED, run_id=run_id, timestamp=time_text(time.time_ns()))
        headers = {HEADER_MSG_ID: go_event_id(run_id, "", WORKFLOW_CANCELLED)}
        await self._store(history_subject(run_id), encode_event(event), headers)

    async def signal(self, run_id: str, name: str, data: Any = None) -> None:
        """Send a signal to a run; bytes go as they are, all else as JSON.

        A run that does not wait yet, or does not exist yet, finds it when it does.

        Raises:
            ValueError: Not the id of a run, or not a name of a signal.
            UsageError: The data is not JSON, or larger than the server takes.
            KeyValueError: There is no bucket ``signals``, or no answer.
        """
        key = signal_key(_checked_run_id(run_id), name)
        value = _json.encode_value(data)
        most = self.transport.max_payload
        if len(value) > most:
            raise UsageError(
                f"signal {name!r} has {len(value)} bytes, the server takes at most {most}; store "
                "the data elsewhere and send a reference, or raise max_payload"
            )
        await self.transport.key_value("signals").put(key, value)

    async def status(self, run_id: str) -> RunStatus:
        """The state of a run: the engine's snapshot, or what its history says without an engine."""
        try:
            key = f"run.{_checked_run_id(run_id)}"
            entry = await self.transport.key_value("workflow_runs").get(key)
        except KeyValueError:
            entry = None
        if entry is not None:
            return status_from_snapshot(entry.value)
        events = [event async for event in self.run(run_id).events(follow=False)]
        return status_from_events(run_id, events)

    # ------------------------------------------------------------------ with an engine

    async def start_workflow(
        self,
        name: str,
        input: Any = NO_INPUT,  # noqa: A002 - the protocol's word for it
    ) -> Run:
        """Start a run of a registered workflow.

        Raises:
            EngineError: The engine refused, in its own words.
            TransportError: No engine answers.
        """
        if not name:
            raise UsageError("start_workflow needs the name of a registered workflow")
        request: dict[str, Any] = {"workflow": name}
        if input is not NO_INPUT:
            request["input"] = msgspec.Raw(_json.encode(input))
        answer = await self._ask_engine("api.runs.start", request)
        return Run(self, str(answer["run_id"]))

    async def register_workflow(self, definition: Mapping[str, Any]) -> None:
        """Register a workflow definition, checked before it is sent.

        Raises:
            UsageError: A definition that the engine cannot take.
            EngineError: The engine refused, in its own words.
            TransportError: No engine answers.
        """
        check_definition(definition)
        await self._ask_engine("api.workflows.register", dict(definition))

    async def _ask_engine(self, subject: str, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            headers = await self._announced(subject, {})
            answer = _json.decode(
                await self.transport.request(subject, msgspec.json.encode(request), headers)
            )
        except TransportError as error:
            raise TransportError(
                f"no DagNats engine answers ({error}); start it, or use `submit`, which needs none"
            ) from error
        if not isinstance(answer, dict) or "error" in answer:
            raise EngineError(str(answer.get("error") if isinstance(answer, dict) else answer))
        return answer

    # ------------------------------------------------------------------ sending

    async def _store(self, subject: str, data: bytes, headers: dict[str, str]) -> Stored:
        sent = await self._announced(subject, headers)
        size, most = message_size(data, sent), self.transport.max_payload
        if size > most:
            raise UsageError(
                f"the task has {size} bytes, the server takes at most {most}; store the input "
                "elsewhere and send a reference, or raise max_payload"
            )

        attempts = 0

        async def attempt() -> Stored:
            nonlocal attempts
            attempts += 1
            future = await self.transport.publish(subject, data, sent)
            return await future

        stored = await retry_nats(attempt, attempts=self.config.publish_attempts)
        # After the first attempt, what the stream has already may be an earlier one of our own.
        return stored._replace(duplicate=stored.duplicate and attempts == 1)

    async def _announced(self, subject: str, headers: dict[str, str]) -> dict[str, str]:
        """The headers as plugins have changed them; the id of a message that has one stays."""
        implementations = self._hooks.pre_publish
        if not implementations:
            return headers
        message = Message(subject, dict(headers))
        await self._hooks.require(implementations, ctx=None, message=message)
        changed = sendable(message.headers, implementations)
        if HEADER_MSG_ID in headers:
            changed[HEADER_MSG_ID] = headers[HEADER_MSG_ID]
        return changed


def _checked_run_id(run_id: str) -> str:
    if not isinstance(run_id, str) or not is_subject_token(run_id):
        raise ValueError(f"run_id is a single NATS token, got {run_id!r}")
    if len(run_id) > RUN_ID_CHARS_MAX:
        raise ValueError(
            f"run_id has at most {RUN_ID_CHARS_MAX} characters, got {len(run_id)}: "
            f"{run_id[:RUN_ID_CHARS_MAX]!r}"
        )
    return run_id


def _check_task(data: bytes, headers: Mapping[str, str]) -> None:
    """Refuse what every worker would put aside, so that the client does not wait for it."""
    try:
        decode_task(data)
    except DecodeError as error:
        raise ValueError(f"no worker could read this task: {error}") from error
    for name, text in headers.items():
        if not (isinstance(name, str) and isinstance(text, str)):
            raise TypeError(f"a header is a text with a text, got {name!r}: {text!r}")
        if not name or ":" in name or not is_one_line(name + text):
            raise ValueError(f"header {name!r}: {text!r} cannot be sent; both are one line of text")
