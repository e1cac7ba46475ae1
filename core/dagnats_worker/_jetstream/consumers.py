"""The consumers of the task streams: found, created or refused, as the Go worker does it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Protocol

from dagnats_worker._config import ACK_WAIT_DEFAULT
from dagnats_worker._naming import filters_overlap
from dagnats_worker._transport import ConsumerSpec
from dagnats_worker.errors import StartError, TransportError

logger = logging.getLogger("dagnats_worker.source")

STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
FILTER_NOT_UNIQUE = (10099, 10100)
CONSUMER_EXISTS = (10105, 10148)

PAGES_MAX = 1000
BIND_ATTEMPTS_MAX = 3
DURABLE_PREFIX = "workers-"


class Api(Protocol):
    """JetStream's API, of a real server or of the in-memory one."""

    async def api(self, subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask; an ``error`` in the answer is left for the caller."""
        ...


class Consumers:
    """Looks consumers up and creates them, over the server's API."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def bind(self, spec: ConsumerSpec) -> tuple[str, timedelta]:
        """Bind to the consumer that is there, or create it.

        Returns:
            The consumer's name and its real AckWait.

        Raises:
            StartError: Another consumer is in the way, or the stream is missing.
        """
        for _ in range(BIND_ATTEMPTS_MAX):
            info = await self._info(spec.stream, spec.name)
            if info is None:
                info = await self._create(spec)
            if info is not None:
                return await self._adopt(spec, info)
        raise TransportError(f"consumer {spec.name} of {spec.stream} comes and goes; giving up")

    async def look(self, stream: str, name: str, warn_share: float) -> timedelta:
        """The AckWait as it is now; warns when unacked messages are about to stop deliveries."""
        info = await self._info(stream, name)
        if info is None:
            raise TransportError(f"consumer {name} of {stream} not found")
        config = info["config"]
        limit = int(config.get("max_ack_pending", 0))
        unacked = int(info.get("num_ack_pending", 0))
        if limit > 0 and unacked >= limit * warn_share:
            logger.warning(
                "consumer %s holds %d unacked tasks of at most %d; tasks that wait to be retried "
                "count too, and at the limit nothing is delivered any more",
                name,
                unacked,
                limit,
            )
        return _duration(config.get("ack_wait", 0))

    async def last_sequence(self, stream: str) -> int:
        """Of the newest message that the stream has ever held."""
        answer = await self._api.api(f"STREAM.INFO.{stream}")
        if error := answer.get("error"):
            raise TransportError(f"stream {stream}: {error.get('description')}")
        return int(answer["state"]["last_seq"])

    async def _info(self, stream: str, name: str) -> dict[str, Any] | None:
        answer = await self._api.api(f"CONSUMER.INFO.{stream}.{name}")
        error = answer.get("error")
        if not error:
            return answer
        code = error.get("err_code")
        if code == CONSUMER_NOT_FOUND:
            return None
        if code == STREAM_NOT_FOUND:
            raise StartError(f"stream {stream} not found; create it with `dagnats-worker setup`")
        raise TransportError(f"consumer {name} of {stream}: {error.get('description')}")

    async def _create(self, spec: ConsumerSpec) -> dict[str, Any] | None:
        answer = await self._write(spec, consumer_config(spec), "create")
        error = answer.get("error")
        if not error:
            return answer
        code = error.get("err_code")
        if code in CONSUMER_EXISTS:
            return None
        if code in FILTER_NOT_UNIQUE:
            await self._clear_the_way(spec)
            return None
        raise StartError(f"consumer {spec.name} of {spec.stream}: {error.get('description')}")

    async def _write(
        self, spec: ConsumerSpec, config: dict[str, Any], action: str
    ) -> dict[str, Any]:
        body = {"stream_name": spec.stream, "config": config, "action": action}
        subject = f"CONSUMER.CREATE.{spec.stream}.{spec.name}.{spec.filter_subject}"
        return await self._api.api(subject, body)

    async def _adopt(self, spec: ConsumerSpec, info: dict[str, Any]) -> tuple[str, timedelta]:
        config = info["config"]
        found = config.get("filter_subject") or config.get("filter_subjects") or "everything"
        if found != spec.filter_subject:
            raise StartError(
                f"consumer {spec.name!r} of {spec.stream} exists with the filter {found!r}, this "
                f"worker needs {spec.filter_subject!r}: two task types share that name; rename one"
            )
        if config.get("ack_policy") != "explicit":
            raise StartError(
                f"consumer {spec.name!r} of {spec.stream} has the ack policy "
                f"{config.get('ack_policy')!r} and not 'explicit'; delete it and start again"
            )
        ack_wait = _duration(config.get("ack_wait", 0))
        if spec.ack_wait is not None and spec.ack_wait != ack_wait:
            await self._change_ack_wait(spec, config, ack_wait)
            ack_wait = spec.ack_wait
        return spec.name, ack_wait

    async def _change_ack_wait(
        self, spec: ConsumerSpec, config: dict[str, Any], found: timedelta
    ) -> None:
        assert spec.ack_wait is not None, "asked for by the caller"
        logger.warning(
            "consumer %s has AckWait %s, shared by every worker of it; changing it to %s",
            spec.name,
            found,
            spec.ack_wait,
        )
        answer = await self._write(spec, {**config, "ack_wait": _ns(spec.ack_wait)}, "update")
        if answer.get("error"):
            raise StartError(
                f"consumer {spec.name}: AckWait stays {found}: {answer['error'].get('description')}"
            )

    async def _clear_the_way(self, spec: ConsumerSpec) -> None:
        """Remove an orphan that holds our filter; refuse to start beside anything else."""
        for info in await self._all(spec.stream):
            config = info["config"]
            name = str(info["name"])
            filters = config.get("filter_subjects") or [config.get("filter_subject") or ">"]
            if not any(filters_overlap(spec.filter_subject, other) for other in filters):
                continue
            durable = bool(config.get("durable_name")) or name.startswith(DURABLE_PREFIX)
            if durable or filters != [spec.filter_subject]:
                raise StartError(
                    f"{spec.name!r} (filter {spec.filter_subject!r}) and the existing consumer "
                    f"{name!r} (filter {', '.join(filters)!r}) would share tasks, which the work "
                    f"queue {spec.stream} refuses: rename one task type, or serve both the same way"
                )
            logger.warning("removing the orphaned consumer %s of %s", name, spec.stream)
            await self._api.api(f"CONSUMER.DELETE.{spec.stream}.{name}")

    async def _all(self, stream: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for _ in range(PAGES_MAX):
            answer = await self._api.api(f"CONSUMER.LIST.{stream}", {"offset": len(found)})
            page = answer.get("consumers") or []
            found += page
            if not page or len(found) >= answer.get("total", 0):
                break
        return found


def consumer_config(spec: ConsumerSpec) -> dict[str, Any]:
    """What the consumer is created with. Source: wire protocol, section 2.6."""
    config: dict[str, Any] = {
        "name": spec.name,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": _ns(spec.ack_wait or ACK_WAIT_DEFAULT),
        "max_deliver": -1,
        "filter_subject": spec.filter_subject,
        "replay_policy": "instant",
        "num_replicas": 0,
    }
    if spec.inactive_threshold is None:
        config["durable_name"] = spec.name
    else:
        config["inactive_threshold"] = _ns(spec.inactive_threshold)
    return config


def _duration(nanoseconds: int) -> timedelta:
    return timedelta(microseconds=nanoseconds / 1000)


def _ns(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1_000_000_000)
