"""The part of JetStream's API that finds and creates consumers.

It answers as a server does, so that the code that binds the worker to its consumers is the same
for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dagnats_worker._naming import filters_overlap
from dagnats_worker.testing._consumer import Consumer

if TYPE_CHECKING:
    from dagnats_worker.testing._server import MemoryServer
    from dagnats_worker.testing._stream import Stream

# Source: nats-server, errors.json.
CONSUMER_NOT_FOUND = (10014, "consumer not found")
STREAM_NOT_FOUND = (10059, "stream not found")
FILTER_NOT_UNIQUE = (10100, "filtered consumer not unique on workqueue stream")
CONSUMER_EXISTS = (10148, "consumer already exists")
CONSUMER_DOES_NOT_EXIST = (10149, "consumer does not exist")
UNKNOWN_REQUEST = (10025, "not supported in memory")


def answer(
    server: MemoryServer, subject: str, body: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Answer a request to ``$JS.API.<subject>``."""
    kind, action, stream_name, *rest = subject.split(".")
    stream = server.streams.get(stream_name)
    if kind != "CONSUMER":
        return _error(UNKNOWN_REQUEST)
    if stream is None:
        return _error(STREAM_NOT_FOUND)
    if action == "LIST":
        found = [_info(consumer) for consumer in server.consumers_of(stream_name)]
        return {"total": len(found), "consumers": found}
    name = rest[0]
    if action == "CREATE":
        return _write(server, stream, name, body or {})
    consumer = server.consumers.get((stream_name, name))
    if consumer is None:
        return _error(CONSUMER_NOT_FOUND)
    if action == "DELETE":
        server.delete_consumer(stream_name, name)
        return {"success": True}
    return _info(consumer)


def _write(
    server: MemoryServer, stream: Stream, name: str, body: Mapping[str, Any]
) -> dict[str, Any]:
    config = dict(body["config"])
    existing = server.consumers.get((stream.name, name))
    if body.get("action") == "update":
        if existing is None:
            return _error(CONSUMER_DOES_NOT_EXIST)
        existing.config.update(config)
        return _info(existing)
    if existing is not None:
        same = existing.config == {**existing.config, **config}
        return _info(existing) if same else _error(CONSUMER_EXISTS)
    if stream.work_queue and any(
        filters_overlap(other.filter, config["filter_subject"])
        for other in server.consumers_of(stream.name)
    ):
        return _error(FILTER_NOT_UNIQUE)
    return _info(server.create_consumer(stream.name, config))


def _info(consumer: Consumer) -> dict[str, Any]:
    return {
        "name": consumer.name,
        "config": dict(consumer.config),
        "num_ack_pending": len(consumer.pending),
    }


def _error(code_and_text: tuple[int, str]) -> dict[str, Any]:
    code, text = code_and_text
    return {"error": {"err_code": code, "description": text}}
