"""Look at a server: its streams, its buckets, the consumers of its tasks. Nothing is changed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import nats.errors
from nats.aio.client import Client as NatsClient

from dagnats_worker._jetstream.connection import check_server, without_secrets
from dagnats_worker._protocol import parse_time
from dagnats_worker._survey import ConsumerFacts, StreamFacts, Survey
from dagnats_worker.errors import DecodeError, StartError, TransportError, describe

TASKS = "TASK_QUEUES"
ASK_WITHIN_S = 5.0
PAGES_MAX = 100
SUBJECTS_MAX = 100_000
SOURCING_PREFIX = "JS_SRC_"
NO_FILTER = (">",)
NOT_FOUND = 404


async def survey(client: NatsClient) -> Survey:
    """Look at all of it.

    Raises:
        ConnectError: The server is too old.
        StartError: JetStream is not enabled.
        TransportError: It does not answer.
    """
    check_server(client)
    version = client.connected_server_version
    before = time.monotonic()
    await client.flush()
    round_trip = timedelta(seconds=time.monotonic() - before)
    look = _Look(client)
    # Together, because what the user may not ask for costs the whole time of waiting.
    account, streams, consumers, queued = await asyncio.gather(
        look.account(), look.streams(), look.consumers(), look.queued()
    )
    url = client.connected_url
    return Survey(
        url=without_secrets(url.geturl()) if url else "",
        version=(version.major, version.minor, version.patch),
        round_trip=round_trip,
        clock_ahead=look.clock_ahead,
        store_used=int(account.get("storage", 0)),
        store_max=int(account.get("limits", {}).get("max_storage", -1)),
        streams=None if streams is None else {facts.name: facts for facts in streams},
        consumers=None if consumers is None else tuple(consumers),
        queued=queued,
        denied=tuple(sorted(look.denied)),
    )


class _Look:
    """The requests behind a survey."""

    def __init__(self, client: NatsClient) -> None:
        self._client = client
        self.denied: list[str] = []
        self.clock_ahead: timedelta | None = None

    async def _ask(
        self, subject: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """The answer, empty where there is no such thing; None where the user may not ask."""
        data = json.dumps(body).encode() if body else b""
        try:
            message = await self._client.request(f"$JS.API.{subject}", data, timeout=ASK_WITHIN_S)
        except nats.errors.NoRespondersError as error:
            raise StartError(
                "JetStream is not enabled; start the server with --jetstream, and enable it for "
                "the account of this user"
            ) from error
        except (nats.errors.Error, TimeoutError):
            self.denied.append(f"$JS.API.{subject}")
            return None
        answer: dict[str, Any] = json.loads(message.data)
        if refused := answer.get("error"):
            if refused.get("code") == NOT_FOUND:
                return {}
            raise TransportError(f"$JS.API.{subject}: {refused.get('description')}")
        return answer

    async def account(self) -> dict[str, Any]:
        return await self._ask("INFO") or {}

    async def streams(self) -> list[StreamFacts] | None:
        pages = await self._pages("STREAM.LIST", "streams")
        return None if pages is None else [_stream(one) for one in pages]

    async def consumers(self) -> list[ConsumerFacts] | None:
        before = time.time_ns()
        pages = await self._pages(f"CONSUMER.LIST.{TASKS}", "consumers")
        if pages is None:
            return None
        for one in pages:
            self._compare_clocks(one.get("ts"), before)
        return [_consumer(one) for one in pages]

    async def queued(self) -> dict[str, int]:
        """How many tasks lie on each subject."""
        before = time.time_ns()
        answer = await self._ask(f"STREAM.INFO.{TASKS}", {"subjects_filter": ">"}) or {}
        self._compare_clocks(answer.get("ts"), before)
        found: dict[str, int] = answer.get("state", {}).get("subjects") or {}
        return dict(list(found.items())[:SUBJECTS_MAX])

    def _compare_clocks(self, text: Any, asked_ns: int) -> None:
        """The server's time lies between question and answer; else the clocks differ."""
        at = _time(text)
        if at is None:
            return
        server_ns = int(at.timestamp() * 1e9)
        if server_ns < asked_ns:
            self.clock_ahead = timedelta(microseconds=(asked_ns - server_ns) / 1000)
        else:
            self.clock_ahead = timedelta(microseconds=min(0, time.time_ns() - server_ns) / 1000)

    async def _pages(self, subject: str, field: str) -> list[dict[str, Any]] | None:
        found: list[dict[str, Any]] = []
        for _ in range(PAGES_MAX):
            answer = await self._ask(subject, {"offset": len(found)})
            if answer is None:
                return None
            page = answer.get(field) or []
            found += page
            if not page or len(found) >= answer.get("total", 0):
                break
        return found


def _stream(info: Mapping[str, Any]) -> StreamFacts:
    config = info["config"]
    return StreamFacts(
        name=config["name"],
        subjects=tuple(config.get("subjects") or ()),
        retention=config.get("retention", "limits"),
        discard=config.get("discard", "old"),
        max_messages=config.get("max_msgs", -1),
        max_bytes=config.get("max_bytes", -1),
        messages=info["state"]["messages"],
        sources=tuple(_sourced(config.get("sources") or ())),
    )


def _sourced(sources: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for source in sources:
        if source.get("name") != TASKS:
            continue
        transforms = source.get("subject_transforms") or ()
        yield from (transform.get("src") or ">" for transform in transforms)
        if not transforms:
            yield source.get("filter_subject") or ">"


def _consumer(info: Mapping[str, Any]) -> ConsumerFacts:
    config = info["config"]
    name = str(info["name"])
    single = config.get("filter_subject")
    delivered = info.get("delivered") or {}
    return ConsumerFacts(
        name=name,
        filters=tuple(config.get("filter_subjects") or ([single] if single else NO_FILTER)),
        durable=bool(config.get("durable_name")),
        sourcing=bool(config.get("sourcing") or config.get("direct"))
        or name.startswith(SOURCING_PREFIX),
        ack_policy=config.get("ack_policy", "none"),
        ack_wait=timedelta(microseconds=config.get("ack_wait", 0) / 1000),
        max_deliver=config.get("max_deliver", -1),
        max_ack_pending=config.get("max_ack_pending", 0),
        unacked=info.get("num_ack_pending", 0),
        queued=info.get("num_pending", 0),
        pulls=info.get("num_waiting", 0),
        pulls_max=config.get("max_waiting", 0),
        created_at=_time(info.get("created")),
        active_at=_time(delivered.get("last_active")),
    )


def _time(text: Any) -> datetime | None:
    if not isinstance(text, str) or not text:
        return None
    try:
        return datetime.fromtimestamp(parse_time(text) / 1e9, UTC)
    except DecodeError as error:
        raise TransportError(f"a server's time cannot be read: {describe(error)}") from error
