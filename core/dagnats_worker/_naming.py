"""Names that a whole fleet agrees on: durables, filters and groups, byte-identical to Go's.

The functions that build names build them from anything, as Go does; the ``check_`` functions
refuse, at registration, what could not work later.

Source: dagnats worker/consumer_naming.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations

_KEPT = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
_DURABLE_BYTES = bytes(
    byte if byte in _KEPT else ord("-") if byte == ord(".") else ord("_") for byte in range(256)
)
_UNFIT = re.compile(r"[\s*>\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_KEY = re.compile(r"[-/_=A-Za-z0-9]+(\.[-/_=A-Za-z0-9]+)*")
_WORKER_ID = re.compile(r"[-/_=A-Za-z0-9]+")
_KEY_LENGTH_MAX = 1024
"""A server ends the connection of who sends it a longer line than it takes, which is 4096 bytes."""


def durable_name(task_type: str, group: str | None = None) -> str:
    """The durable consumer that all workers of a task type share, one per group.

    The mapping loses information: see :func:`find_collisions`.
    """
    name = "workers-" + _sanitised("task type", task_type)
    return f"{name}-{_sanitised('group', group)}" if group is not None else name


def filter_subject(task_type: str, group: str | None = None) -> str:
    """The subjects from which that consumer takes its messages."""
    return f"task.{task_type}.>" if group is None else f"task.{task_type}.{group}.>"


def elastic_group_name(task_type: str, group: str | None = None) -> str:
    """The partitioned consumer group of a task type; unlike a durable's name, not sanitised."""
    return f"workers-{task_type}" if group is None else f"workers-{task_type}-{group}"


def check_token(kind: str, value: str) -> None:
    """Refuse a task type or group that cannot be part of a subject.

    Args:
        kind: What the value is called in the error, for example ``task type``.
        value: One or more tokens with dots between them.

    Raises:
        ValueError: Empty, an empty token between dots, whitespace, a wildcard, a control character.
        TypeError: Not a text.
    """
    if not isinstance(value, str):
        raise TypeError(f"{kind} is a text, got {value!r}")
    if not value:
        raise ValueError(f"{kind} is empty; give it a name such as 'resize'")
    if unfit := _UNFIT.search(value):
        raise ValueError(
            f"{kind} {value!r} contains {unfit.group()!r}; "
            "whitespace, '*', '>' and control characters cannot be part of a subject"
        )
    if "" in value.split("."):
        raise ValueError(
            f"{kind} {value!r} has an empty part; a dot stands between two names, never at an end"
        )


def check_worker_id(value: str) -> None:
    """Refuse a worker id that is not a subject token and a KV key at the same time.

    Raises:
        ValueError: Empty, or a character other than ASCII letters, digits and ``-_=/``.
        TypeError: Not a text.
    """
    if not isinstance(value, str):
        raise TypeError(f"worker id is a text, got {value!r}")
    if not _WORKER_ID.fullmatch(value):
        raise ValueError(
            f"worker id {value!r} is not usable; take one or more of A-Z a-z 0-9 - _ = /"
        )


def signal_key(run_id: str, name: str) -> str:
    """The key of a signal in its bucket.

    Raises:
        ValueError: A run or a name that cannot be part of a key, or both are too long for one.
        TypeError: Not a text.
    """
    for kind, value, pattern in (
        ("run id", run_id, _WORKER_ID),
        ("name of a signal", name, _KEY),
    ):
        if not isinstance(value, str):
            raise TypeError(f"{kind} is a text, got {value!r}")
        if not pattern.fullmatch(value):
            raise ValueError(
                f"{kind} {value!r} is not usable; take one or more of A-Z a-z 0-9 - _ = /, "
                "and in a name single dots between them"
            )
    key = f"{run_id}.{name}"
    if len(key) > _KEY_LENGTH_MAX:
        kind, value = ("name of a signal", name) if len(name) >= len(run_id) else ("run id", run_id)
        raise ValueError(
            f"{kind} '{value[:20]}...' of {len(value)} characters is too long; "
            f"a run id and a name may have {_KEY_LENGTH_MAX - 1} together"
        )
    return key


def filters_overlap(left: str, right: str) -> bool:
    """Whether some subject matches both filters; a work queue refuses two such consumers."""
    left_tokens, right_tokens = left.split("."), right.split(".")
    for ours, theirs in zip(left_tokens, right_tokens, strict=False):
        if ours == ">" or theirs == ">":
            return True
        if theirs not in (ours, "*") and ours != "*":
            return False
    return len(left_tokens) == len(right_tokens)


def find_collisions(registrations: Iterable[tuple[str, str | None]]) -> list[str]:
    """Say, for people, which registrations cannot live side by side in one worker.

    Args:
        registrations: Each task type with its group, or with None.
    """
    collisions = []
    for left, right in combinations(registrations, 2):
        if left == right:
            collisions.append(f"{_origin(*left)} is registered twice")
        elif durable_name(*left) == durable_name(*right):
            collisions.append(
                f"{_origin(*left)} and {_origin(*right)} would share the durable consumer "
                f"{durable_name(*left)!r}; rename one of them"
            )
        elif filters_overlap(filter_subject(*left), filter_subject(*right)):
            collisions.append(
                f"{_origin(*left)} and {_origin(*right)} overlap: {filter_subject(*left)!r} and "
                f"{filter_subject(*right)!r} match the same messages, which a work queue refuses; "
                "rename one of them"
            )
    return collisions


def _sanitised(kind: str, name: str) -> str:
    if not name:
        raise ValueError(f"{kind} is empty; a consumer needs a name")
    return name.encode().translate(_DURABLE_BYTES).decode("ascii")


def _origin(task_type: str, group: str | None) -> str:
    return f"task type {task_type!r}" + (f" in group {group!r}" if group is not None else "")
