"""How a failure is told: in the payload of ``step.failed`` and in the headers of a dead letter."""

from __future__ import annotations

from datetime import timedelta
from typing import cast, get_args

import msgspec

from dagnats_worker._go_json import GoDecoder, Int64
from dagnats_worker._outcome import Failed, FailureType
from dagnats_worker._wire_text import clean_text, one_line
from dagnats_worker.errors import DecodeError

HEADER_MSG_ID = "Nats-Msg-Id"
DLQ_HEADER_PREFIX = "Dagnats-Dlq-"

ERROR_TEXT_BYTES_MAX = 4096
HEADER_ERROR_BYTES_MAX = 1024
HEADER_TEXT_BYTES_MAX = 4096
RETRY_AFTER_MS_MIN = 100
RETRY_AFTER_MS_MAX = 3_600_000
UNKNOWN_ERROR = "unknown error"


class _Failure(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    error: str
    failure_type: str = ""
    retry_after_ms: Int64 = 0


_encode = msgspec.json.Encoder().encode
_decode_text = msgspec.json.Decoder(str).decode
_failures = GoDecoder(_Failure, "failure", zero=("error",))


def failure_payload(
    error: str, failure_type: FailureType, retry_after: timedelta | None = None
) -> bytes:
    """Write the payload of ``step.failed``.

    The text is cleaned, cut, and never empty: an empty one is a retriable failure to the engine,
    whatever its type says.

    Args:
        retry_after: With ``retry_after`` only; clamped to 100 ms ... 1 h.
    """
    failure = _Failure(clean_text(error, ERROR_TEXT_BYTES_MAX) or UNKNOWN_ERROR, failure_type)
    if failure_type == "retry_after":
        delay = retry_after if retry_after is not None else timedelta(0)
        failure.retry_after_ms = _clamped_ms(delay // timedelta(milliseconds=1))
    return _encode(failure)


def parse_failure(payload: bytes) -> Failed:
    """Read the payload of ``step.failed`` as the engine does; nothing is refused."""
    try:
        failure = _failures.decode(payload)
    except DecodeError:
        return Failed(_failure_text(payload), "retriable")
    if not failure.error:
        return Failed(_failure_text(payload), "retriable")
    if failure.failure_type == "retry_after":
        delay = timedelta(milliseconds=_clamped_ms(failure.retry_after_ms))
        return Failed(failure.error, "retry_after", delay)
    known = failure.failure_type in get_args(FailureType)
    return Failed(failure.error, cast(FailureType, failure.failure_type) if known else "retriable")


def _failure_text(payload: bytes) -> str:
    try:
        text = _decode_text(payload)
    except ValueError:
        text = payload.decode(errors="replace")
    return text or UNKNOWN_ERROR


def _clamped_ms(delay_ms: int) -> int:
    return min(max(delay_ms, RETRY_AFTER_MS_MIN), RETRY_AFTER_MS_MAX)


def dead_letter_headers(
    *,
    run_id: str,
    step_id: str,
    task_type: str,
    error: str,
    attempts: int,
    deliveries: int,
    subject: str,
) -> dict[str, str]:
    """The headers of a dead task, as the engine writes them and its replay reads them.

    Without a run id or step id there is no message id: two unreadable messages would share it, and
    the second would be lost as a duplicate.
    """
    values = {
        "Run-Id": run_id,
        "Step-Id": step_id,
        "Task": task_type,
        "Error": one_line(error, HEADER_ERROR_BYTES_MAX) or UNKNOWN_ERROR,
        "Attempts": str(attempts),
        "Delivery-Count": str(deliveries),
        "Consumer": "TASK_QUEUES",
        "Task-Subject": subject,
    }
    headers = {
        DLQ_HEADER_PREFIX + name: one_line(value, HEADER_TEXT_BYTES_MAX) or "unknown"
        for name, value in values.items()
    }
    if run_id and step_id:
        message_id = f"dlq:{run_id}:{step_id}:{attempts}"
        headers[HEADER_MSG_ID] = one_line(message_id, HEADER_TEXT_BYTES_MAX)
    return headers
