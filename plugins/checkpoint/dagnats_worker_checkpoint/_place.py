"""Where a worker keeps checkpoints: a bucket, asked again while its server does not answer.

A restart of the server is no reason to fail a task. A bucket that is missing is, and at once.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from dagnats_worker import UsageError
from dagnats_worker.errors import KeyValueError

if TYPE_CHECKING:
    from dagnats_worker import KeyValue

logger = logging.getLogger("dagnats_worker_checkpoint")

T = TypeVar("T")

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0

HEADERS_BYTES = len("NATS/1.0\r\n\r\n")
HEADER_BYTES = len(": \r\n")
EXPECTED_HEADER_BYTES = 64
"""What the header takes that carries the expected revision."""

_key = re.compile(r"[-/_=a-zA-Z0-9]([-/_=.a-zA-Z0-9]*[-/_=a-zA-Z0-9])?")


@dataclass(frozen=True, slots=True)
class Place:
    """The buckets of a worker's checkpoints.

    Attributes:
        bucket: Its name, for messages.
        kv: The bucket.
        expiring: The bucket that a removed checkpoint is copied to, if any.
        size_max: The largest message that the server takes now, in bytes; 0 where it is not known.
        retry_for: How long a call waits for a server that does not answer.
    """

    bucket: str
    kv: KeyValue
    expiring: KeyValue | None
    size_max: Callable[[], int]
    retry_for: timedelta

    async def reliably(self, call: Callable[[], Awaitable[T]], *, retry: bool = True) -> T:
        """Call again while the server does not answer, for no longer than ``retry_for``.

        Raises:
            KeyValueError: It never did; or it has, and there is a conflict, or no bucket.
        """
        give_up_at = time.monotonic() + self.retry_for.total_seconds()
        delay_s = RETRY_FIRST_S
        while True:
            try:
                return await call()
            except KeyValueError as error:
                final = not retry or error.conflict or error.missing
                if final or time.monotonic() + delay_s > give_up_at:
                    raise
                logger.info("trying again in %g s: %s", delay_s, error)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_MAX_S)


def is_key(text: str) -> bool:
    """Whether a text can be the key of a bucket."""
    return bool(_key.fullmatch(text))


def key_of(run_id: str, step_id: str) -> str:
    """The key of a step.

    Raises:
        UsageError: It cannot be the key of a bucket.
    """
    key = f"{run_id}.{step_id}"
    if not is_key(key):
        raise UsageError(
            f"{key!r} cannot be a key of a bucket, so this step has no checkpoint; use letters, "
            "digits and -/_=. in the step id"
        )
    return key


def message_bytes(value: bytes, headers: Mapping[str, str]) -> int:
    """What a write counts against the server's ``max_payload``."""
    pairs = sum(len(f"{name}{text}".encode()) + HEADER_BYTES for name, text in headers.items())
    return len(value) + pairs + HEADERS_BYTES + EXPECTED_HEADER_BYTES
