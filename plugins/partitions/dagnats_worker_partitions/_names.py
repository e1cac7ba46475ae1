"""What a group, its stream, its record and its members are called.

Source: orbit.go pcgroups; dagnats worker/partitioned.go for the group of a task type.
"""

from __future__ import annotations

import re

from dagnats_worker_partitions._errors import GroupError

ELASTIC_BUCKET = "elastic-consumer-groups"
STATIC_BUCKET = "static-consumer-groups"
TASK_STREAM = "TASK_QUEUES"
PRIORITY_GROUP = "PCG"

STREAM_NAME_LENGTH_MAX = 255  # the server's own limit
ASCII_END = 128

_usable = re.compile(r"[-_=A-Za-z0-9]+")


def group_name(task_type: str, group: str | None = None) -> str:
    """The consumer group of a task type, as the Go worker calls it: nothing is replaced."""
    return f"workers-{task_type}" if group is None else f"workers-{task_type}-{group}"


def task_filter(task_type: str, group: str | None = None) -> str:
    """The subjects that such a group divides."""
    return f"task.{task_type}.>" if group is None else f"task.{task_type}.{group}.>"


def durable(task_type: str, group: str | None = None) -> str:
    """The consumer that plain workers of a task type share."""
    parts = [task_type] if group is None else [task_type, group]
    return "-".join(["workers", *(_sanitised(part) for part in parts)])


def group_stream(stream: str, group: str) -> str:
    """The stream that an elastic group sources into."""
    return f"{stream}-{group}"


def key(stream: str, group: str) -> str:
    """The key of a group's record."""
    return f"{stream}.{group}"


def static_consumer(group: str, member: str) -> str:
    """The durable of a member of a static group."""
    return f"{group}-{member}"


def check_task_type(task_type: str, group: str | None = None) -> None:
    """Refuse a task type, or the group of a worker, whose tasks cannot be partitioned.

    Raises:
        GroupError: The name cannot be a part of the names of a stream and of a key.
    """
    for kind, value in (("task type", task_type), ("group", group)):
        if value is None or _usable.fullmatch(value):
            continue
        why = "a dot would end it" if "." in value else f"{_first_unfit(value)!r} cannot be in it"
        raise GroupError(
            f"{kind} {value!r} cannot be partitioned: it becomes part of the name of a stream and "
            f"of a key, and {why}; take letters, digits, '-', '_' and '=', or serve it without "
            "partitions"
        )


def check_group(stream: str, group: str) -> None:
    """Refuse names that cannot be those of a stream, a key and a consumer.

    Raises:
        GroupError: Says which name, and which character.
    """
    _check("stream", stream)
    _check("group", group)
    length = len(group_stream(stream, group))
    if length > STREAM_NAME_LENGTH_MAX:
        raise GroupError(
            f"group {group!r} on stream {stream!r}: the name of its stream has {length} "
            f"characters, the server takes {STREAM_NAME_LENGTH_MAX}; take a shorter name"
        )


def check_member(member: str) -> None:
    """Refuse a member whose name cannot be that of a consumer and a part of a key.

    Raises:
        GroupError: Says which character it is.
    """
    _check("member", member)


def _check(kind: str, value: str) -> None:
    if not value:
        raise GroupError(f"{kind} is empty; give it a name")
    if not _usable.fullmatch(value):
        raise GroupError(
            f"{kind} {value!r} contains {_first_unfit(value)!r}; "
            "take letters, digits, '-', '_' and '='"
        )


def _first_unfit(value: str) -> str:
    return next((one for one in value if not _usable.fullmatch(one)), "")


def _sanitised(part: str) -> str:
    kept = (chr(byte) if byte < ASCII_END else "_" for byte in part.encode())
    return "".join(
        one if one.isalnum() or one in "-_" else "-" if one == "." else "_" for one in kept
    )
