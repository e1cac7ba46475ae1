"""How a step can end, as values, and which failure an exception is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from dagnats_worker import _json
from dagnats_worker.errors import (
    CapabilityMissingError,
    NonRetryableError,
    RetryAfterError,
    UsageError,
    describe,
)

FailureType = Literal["retriable", "non_retriable", "retry_after"]

CAUSES_MAX = 64


@dataclass(frozen=True, slots=True)
class Completed:
    """The step is done.

    Attributes:
        output: JSON, or empty bytes for no payload at all.
    """

    output: bytes = b""


@dataclass(frozen=True, slots=True)
class Continued:
    """One iteration of an agent loop is done; the next one is to be dispatched."""

    output: bytes = b""


@dataclass(frozen=True, slots=True)
class Failed:
    """The step failed.

    Attributes:
        error: What the engine and the client will read; never empty on the wire.
        failure_type: Whether a retry can help, and who chooses its delay.
        retry_after: With ``retry_after`` only.
        exception: What the handler raised, for hooks and for the retry policy; not on the wire.
    """

    error: str
    failure_type: FailureType
    retry_after: timedelta | None = None
    exception: BaseException | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Paused:
    """The handler asked to be run again after ``duration``; its checkpoint holds the marker."""

    name: str
    duration: timedelta


@dataclass(frozen=True, slots=True)
class Released:
    """The task is given back unfinished, and comes again after ``delay``.

    Attributes:
        reason: ``retry``, ``pause``, ``delay``, ``drain``, or a word of a plugin.
        error: What went wrong, where that is why; for people who read the history.
        kept: Somebody has stored ``ctx.kept_task()`` and will publish it: the message is acked, and
            what comes after this start is no attempt.
    """

    reason: str
    delay: timedelta = timedelta(0)
    error: str = ""
    kept: bool = False


Outcome = Completed | Continued | Failed | Paused | Released


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, outermost first; bounded, because a chain can be a ring."""
    current: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if current is None:
            return
        yield current
        current = current.__cause__


def failed(error: BaseException) -> Failed:
    """Classify what a handler raised.

    ``RetryAfterError`` is looked for before ``NonRetryableError``, and where one is found the text
    is its own, without what was wrapped around it.

    Source: wire protocol, section 4, check order for errors.
    """
    for cause in causes(error):
        if isinstance(cause, RetryAfterError):
            delay = getattr(cause, "delay", None)  # a subclass may have forgotten it
            known = delay if isinstance(delay, timedelta) else None
            return Failed(describe(cause), "retry_after", known, error)
    for cause in causes(error):
        if isinstance(cause, NonRetryableError):
            return Failed(describe(cause), "non_retriable", exception=error)
    if isinstance(error, CapabilityMissingError | UsageError):
        return Failed(describe(error), "non_retriable", exception=error)
    return Failed(describe(error), "retriable", exception=error)


def is_outcome(value: Any) -> bool:
    """Whether it is one of the five, whatever is in it."""
    return isinstance(value, Completed | Continued | Failed | Paused | Released)


def check_outcome(value: Any) -> Outcome:
    """Refuse what could not be published, while it can be said who is to blame.

    Raises:
        UsageError: Not an outcome, one with a field of another type, or an output that is not JSON.
    """
    match value:
        case Completed(bytes(output)) | Continued(bytes(output)):
            if output:
                _json.encode(output)
        case Failed(str(), "retriable" | "non_retriable" | "retry_after", None | timedelta()):
            pass
        case Paused(str(), timedelta()) | Released(str(), timedelta()):
            pass
        case _ if is_outcome(value):
            raise UsageError(f"an outcome has a field of the wrong type: {value!r:.200}")
        case _:
            raise UsageError(
                f"{value!r:.200} is not an outcome; use Completed, Failed and the like"
            )
    outcome: Outcome = value
    return outcome
