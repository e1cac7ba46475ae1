"""Pinned consumers: what is sent, what the server answers, and what is made of it.

Method: a real server, raw requests beside the pulls that are tested, so that each status comes from
the server itself. Statuses that need a cluster are read from texts. Nothing is fake.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client as NatsClient
from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy
from support import connected, eventually, unique

from dagnats_worker import EmbeddedServer
from dagnats_worker_partitions._api import JetStreamApi
from dagnats_worker_partitions._pinned import Arrival, PinnedPull
from dagnats_worker_partitions._priority import (
    Joining,
    Status,
    Timings,
    consumer_config,
    create_consumer,
    meta_of,
    nanoseconds,
    pull_request,
    pull_subject,
    reader_of,
    status_of,
    timings_of,
)

BOUND_S = 30
QUICK = timings_of(timedelta(seconds=1))
VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "partitions.json").read_text())
WIRE = VECTORS["wire_examples"]


# ------------------------------------------------------------------------- on the wire


@pytest.mark.parametrize("row", WIRE["timings_from_ack_wait_ns"], ids=str)
def test_timings_are_those_of_go(row: dict[str, int]) -> None:
    found = timings_of(timedelta(microseconds=row["ack_wait"] / 1000))
    assert {key: nanoseconds(value) for key, value in asdict(found).items()} == {
        "ack_wait": row["effective_ack_wait"],
        "pinned_ttl": row["pinned_ttl"],
        "expires": row["pull_expires"],
        "heartbeat": row["idle_heartbeat"],
        "inactive": row["inactive_threshold"],
        "tick": row["retry_tick"],
    }


def test_consumer_is_made_as_go_makes_it() -> None:
    wanted = WIRE["elastic_consumer_create"]["body"]["config"]
    five = timings_of(timedelta(seconds=5))
    assert consumer_config("w1", ["0.task.email.>", "1.task.email.>"], five, 1) == wanted


@pytest.mark.parametrize(("example", "has_pin"), [("pull_first", False), ("pull_pinned", True)])
def test_pull_is_sent_as_go_sends_it(example: str, *, has_pin: bool) -> None:
    wanted = WIRE[example]
    pin = wanted["body"]["id"] if has_pin else ""
    assert json.loads(pull_request(timings_of(timedelta(seconds=5)), pin)) == wanted["body"]
    assert pull_subject("TASK_QUEUES-workers-email", "w1") == wanted["subject"]


@pytest.mark.parametrize(
    ("code", "text", "status"),
    [
        ("100", "Idle Heartbeat", Status.ALIVE),
        ("404", "No Messages", Status.ENDED),
        ("408", "Request Timeout", Status.ENDED),
        ("409", "Consumer Deleted", Status.GONE),
        ("409", "Leadership Change", Status.BUSY),
        ("409", "Server Shutdown", Status.BUSY),
        ("409", "Exceeded MaxWaiting", Status.BUSY),
        ("423", "Nats-Pin-Id mismatch", Status.NOT_PINNED),
        ("423", "Nats-Wrong-Pin-Id", Status.NOT_PINNED),
        ("503", "", Status.GONE),
        ("400", "Bad Request - Priority Group missing", Status.UNFIT),
        ("599", "what nobody knows", Status.BUSY),
    ],
)
def test_status_has_a_meaning(code: str, text: str, status: Status) -> None:
    assert status_of(code, text) is status


def test_acknowledgement_subject_is_read_in_both_forms() -> None:
    short = meta_of("$JS.ACK.S.w1.2.17.5.1700000000000000001.3")
    long = meta_of("$JS.ACK.hub.ACCHASH.S.w1.2.17.5.1700000000000000001.3.random")
    assert short == long == ("S", "w1", 2, 17, 1700000000000000001)
    with pytest.raises(ValueError, match="not the acknowledgement subject"):
        meta_of("$JS.ACK.S.w1")


# ------------------------------------------------------------------------- consumers


@asynccontextmanager
async def queue(js: JetStreamContext) -> AsyncIterator[str]:
    """A work queue of the test's own, with subjects below its name."""
    name = unique("q")
    await js.add_stream(name=name, subjects=[f"{name}.>"], retention=RetentionPolicy.WORK_QUEUE)
    yield name
    await js.delete_stream(name)


def config_of(stream: str, name: str, *parts: str, timings: Timings = QUICK) -> dict[str, Any]:
    return consumer_config(name, [f"{stream}.{part}.>" for part in parts], timings, 1)


async def test_answers_to_a_creation(nc: NatsClient, js: JetStreamContext) -> None:
    api = JetStreamApi(nc)
    async with queue(js) as stream:
        first = config_of(stream, "m1", "0", "1")
        assert await create_consumer(api, stream, first) is Joining.JOINED
        assert await create_consumer(api, stream, first) is Joining.JOINED
        other = config_of(stream, "m1", "0")
        assert await create_consumer(api, stream, other) is Joining.DIFFERS
        taken = config_of(stream, "m2", "1", "2")
        assert await create_consumer(api, stream, taken) is Joining.TAKEN
        assert await api.delete_consumer(stream, "m1")
        assert await create_consumer(api, stream, taken) is Joining.JOINED
        assert await reader_of(api, stream, "m1") is None


# ------------------------------------------------------------------------- pulls


class Pulled:
    """A pull, and what came of it."""

    def __init__(self, nc: NatsClient, stream: str, consumer: str) -> None:
        self.arrivals: list[Arrival] = []
        self.losses: list[str] = []
        self.pull = PinnedPull(
            nc, stream, consumer, QUICK, take=self.arrivals.append, lost=self.losses.append
        )

    @property
    def texts(self) -> list[bytes]:
        return [one.data for one in self.arrivals]


@asynccontextmanager
async def pulling(nc: NatsClient, stream: str, name: str = "m1") -> AsyncIterator[Pulled]:
    config = config_of(stream, name, "0")
    assert await create_consumer(JetStreamApi(nc), stream, config) is Joining.JOINED
    pulled = Pulled(nc, stream, name)
    await pulled.pull.open()
    yield pulled
    await pulled.pull.close()


async def put(js: JetStreamContext, stream: str, *texts: str) -> None:
    for text in texts:
        await js.publish(f"{stream}.0.k", text.encode())


async def test_messages_come_with_a_pin_that_is_kept_without_a_free_place(
    nc: NatsClient, js: JetStreamContext
) -> None:
    async with queue(js) as stream, pulling(nc, stream) as pulled:
        await put(js, stream, "one", "two")
        await eventually(lambda: pulled.texts == [b"one"], BOUND_S)
        pin = pulled.pull.pin
        assert pin
        async with pulling(nc, stream) as standby:
            for _ in range(5):  # longer than a pin lasts, and than a consumer that nobody uses
                await nc.publish(pulled.arrivals[0].ack_subject, b"+WPI")
                await asyncio.sleep(QUICK.pinned_ttl / 2)
            reader = await reader_of(JetStreamApi(nc), stream, "m1")
            assert reader is not None
            assert (reader.pin, reader.unacked) == (pin, 1)
            await nc.request(pulled.arrivals[0].ack_subject, b"+ACK")
            await eventually(lambda: pulled.texts == [b"one", b"two"], BOUND_S)
            assert standby.arrivals == []


async def test_next_in_line_is_served_when_nobody_pulls_any_more(
    nc: NatsClient, js: JetStreamContext
) -> None:
    async with queue(js) as stream, pulling(nc, stream) as pulled:
        await put(js, stream, "one")
        await eventually(lambda: pulled.arrivals, BOUND_S)
        await nc.request(pulled.arrivals[0].ack_subject, b"+ACK")
        async with pulling(nc, stream) as standby:
            await pulled.pull.close()
            await put(js, stream, "two")
            await eventually(lambda: standby.texts == [b"two"], BOUND_S)


async def test_pin_that_was_taken_away_is_forgotten(nc: NatsClient, js: JetStreamContext) -> None:
    async with queue(js) as stream, pulling(nc, stream) as pulled:
        await put(js, stream, "one")
        await eventually(lambda: pulled.arrivals, BOUND_S)
        await nc.request(pulled.arrivals[0].ack_subject, b"+ACK")
        first = pulled.pull.pin
        await JetStreamApi(nc).ask(f"CONSUMER.UNPIN.{stream}.m1", {"group": "PCG"})
        await put(js, stream, "two")
        await eventually(lambda: pulled.texts == [b"one", b"two"], BOUND_S)
        assert pulled.pull.pin not in ("", first)
        assert pulled.losses == []


async def test_consumer_that_was_deleted_is_reported_once(
    nc: NatsClient, js: JetStreamContext
) -> None:
    async with queue(js) as stream, pulling(nc, stream) as pulled:
        await put(js, stream, "one")
        await eventually(lambda: pulled.arrivals, BOUND_S)
        await JetStreamApi(nc).delete_consumer(stream, "m1")
        await eventually(lambda: pulled.pull.loss, BOUND_S)
        assert pulled.pull.loss is Status.GONE
        assert len(pulled.losses) == 1


async def test_consumer_that_was_never_there_is_reported(
    nc: NatsClient, js: JetStreamContext
) -> None:
    async with queue(js) as stream:
        pulled = Pulled(nc, stream, "nobody")
        await pulled.pull.open()
        await eventually(lambda: pulled.losses, BOUND_S)
        assert pulled.pull.loss is Status.GONE
        await pulled.pull.close()


async def test_consumer_without_a_priority_group_is_not_ours(
    nc: NatsClient, js: JetStreamContext
) -> None:
    async with queue(js) as stream:
        body = {
            "stream_name": stream,
            "action": "create",
            "config": {"name": "m1", "ack_policy": "explicit", "inactive_threshold": 5 * 10**9},
        }
        await JetStreamApi(nc).ask(f"CONSUMER.CREATE.{stream}.m1", body)
        pulled = Pulled(nc, stream, "m1")
        await pulled.pull.open()
        await put(js, stream, "one")
        await eventually(lambda: pulled.losses, BOUND_S)
        assert pulled.pull.loss is Status.UNFIT
        assert pulled.arrivals == []
        await pulled.pull.close()


async def test_pull_goes_on_after_the_server_was_away(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1) as nc:
        js = nc.jetstream()
        async with queue(js) as stream:
            five = timings_of(timedelta(seconds=5))
            config = config_of(stream, "m1", "0", timings=five)
            await create_consumer(JetStreamApi(nc), stream, config)
            pulled = Pulled(nc, stream, "m1")
            await pulled.pull.open()
            await put(js, stream, "one")
            await eventually(lambda: pulled.texts == [b"one"], BOUND_S)
            await nc.request(pulled.arrivals[0].ack_subject, b"+ACK")
            await asyncio.to_thread(nats_server.kill)
            await asyncio.to_thread(nats_server.restart)
            await eventually(lambda: nc.is_connected, BOUND_S)
            await put(js, stream, "two")
            await eventually(lambda: b"two" in pulled.texts, BOUND_S)
            assert pulled.losses == []
            await pulled.pull.close()


async def test_what_comes_while_a_pull_is_closed_is_not_lost(
    nc: NatsClient, js: JetStreamContext
) -> None:
    async with queue(js) as stream:
        config = {**config_of(stream, "m1", "0"), "max_ack_pending": 1000}
        await create_consumer(JetStreamApi(nc), stream, config)
        pulled = Pulled(nc, stream, "m1")
        await pulled.pull.open()
        await put(js, stream, *(str(number) for number in range(50)))
        await pulled.pull.close()
        info = await JetStreamApi(nc).consumer(stream, "m1")
        assert info is not None
        assert info["num_ack_pending"] == len(pulled.arrivals)


async def test_heard_messages_say_when_they_were_sent_at_the_earliest(
    nc: NatsClient, js: JetStreamContext
) -> None:
    async with queue(js) as stream, pulling(nc, stream) as pulled:
        await put(js, stream, "one")
        await eventually(lambda: pulled.arrivals, BOUND_S)
        (arrival,) = pulled.arrivals
        assert arrival.sent_after > 0
        assert arrival.subject == f"{stream}.0.k"
        assert (arrival.meta.stream, arrival.meta.consumer) == (stream, "m1")
        assert (arrival.meta.deliveries, arrival.meta.sequence) == (1, 1)
