"""The streams of groups, to the byte as Go creates them, so that either may come first."""

from __future__ import annotations

from typing import Any

from dagnats_worker_partitions._api import CONFIGS_DIFFER, ApiError, JetStreamApi
from dagnats_worker_partitions._config import GroupConfig
from dagnats_worker_partitions._errors import (
    GroupExistsError,
    GroupNotFoundError,
    ServerTooOldError,
)
from dagnats_worker_partitions._names import group_stream
from dagnats_worker_partitions._rules import transforms

NAME_IN_USE = 10058
MIN_LEVEL = 4
MIN_SERVER = "2.14"


def group_stream_config(
    stream: str, group: str, config: GroupConfig, storage: str, replicas: int
) -> dict[str, Any]:
    """The stream that a group sources into; the server puts the partition before each subject."""
    return {
        "name": group_stream(stream, group),
        "retention": "workqueue",
        "max_consumers": 0,
        "max_msgs": config.max_buffered_messages,
        "max_bytes": config.max_buffered_bytes,
        "discard": "new",
        "max_age": 0,
        "max_msgs_per_subject": 0,
        "storage": storage,
        "num_replicas": replicas,
        "sources": [
            {
                "name": stream,
                "subject_transforms": [
                    {"src": source, "dest": destination}
                    for source, destination in transforms(config)
                ],
            }
        ],
        "compression": "none",
        "allow_direct": True,
        "mirror_direct": False,
        "consumer_limits": {},
    }


def bucket_stream(bucket: str, replicas: int) -> dict[str, Any]:
    """The stream of a bucket with one entry for each key, which is kept for ever."""
    return {
        "name": f"KV_{bucket}",
        "subjects": [f"$KV.{bucket}.>"],
        "retention": "limits",
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "discard": "new",
        "max_age": 0,
        "max_msgs_per_subject": 1,
        "max_msg_size": -1,
        "storage": "file",
        "num_replicas": replicas,
        "duplicate_window": 120_000_000_000,
        "deny_delete": True,
        "allow_rollup_hdrs": True,
        "compression": "none",
        "allow_direct": True,
        "mirror_direct": False,
        "consumer_limits": {},
    }


async def check_server(api: JetStreamApi) -> None:
    """Refuse a server that loses messages.

    Raises:
        ServerTooOldError: It is older than 2.14.
    """
    level = await api.level()
    if level < MIN_LEVEL:
        raise ServerTooOldError(
            f"consumer groups need nats-server {MIN_SERVER} or newer (JetStream API level "
            f"{MIN_LEVEL}; this one has {level}): older servers lose messages when the stream of a "
            "group is at its limit; upgrade the server"
        )


async def source_stream(api: JetStreamApi, stream: str) -> dict[str, Any]:
    """The configuration of the stream that a group divides.

    Raises:
        GroupNotFoundError: There is none.
    """
    info = await api.stream(stream)
    if info is None:
        raise GroupNotFoundError(
            f"there is no stream {stream!r}; start the engine, or create the streams with "
            "`dagnats-worker setup`"
        )
    config: dict[str, Any] = info["config"]
    return config


async def ensure_bucket(api: JetStreamApi, bucket: str, replicas: int) -> None:
    """Create a bucket that does not exist; one that does is used as it is."""
    if await api.stream(f"KV_{bucket}") is not None:
        return
    config = bucket_stream(bucket, replicas)
    await api.found(f"STREAM.CREATE.KV_{bucket}", NAME_IN_USE, body=config)


async def create_group_stream(
    api: JetStreamApi, stream: str, group: str, config: GroupConfig, source: dict[str, Any]
) -> None:
    """Create the stream of a group; where it is there already nothing happens.

    Raises:
        GroupExistsError: It is there with another configuration; says what differs.
    """
    wanted = group_stream_config(
        stream, group, config, source["storage"], int(source["num_replicas"])
    )
    name = wanted["name"]
    try:
        await api.ask(f"STREAM.CREATE.{name}", wanted)
    except ApiError as error:
        if error.code != CONFIGS_DIFFER:
            raise
        info = await api.stream(name)
        found = info["config"] if info is not None else {}
        raise GroupExistsError(
            f"group {group!r} on stream {stream!r}: its stream {name!r} exists with another "
            f"configuration ({'; '.join(_differences(wanted, found)) or error.description}); "
            "delete that stream, or take another name for the group"
        ) from error


def _differences(wanted: dict[str, Any], found: dict[str, Any]) -> list[str]:
    named = ("retention", "max_msgs", "max_bytes", "discard", "storage", "num_replicas", "sources")
    return [
        f"{name} is {found.get(name)}, wanted {wanted[name]}"
        for name in named
        if _normal(found.get(name)) != _normal(wanted[name])
    ]


def _normal(value: Any) -> Any:
    """A limit of 0 is stored by the server as -1."""
    return -1 if value in (None, 0) else value
