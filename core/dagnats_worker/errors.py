"""Every exception of the project, and what it does to the message of the task that it ends.

::

    DagnatsError
    ├── TaskError                    raised by handlers on purpose
    │   ├── NonRetryableError        step.failed non_retriable, ack
    │   └── RetryAfterError          step.failed retry_after (no engine: nak with the delay)
    ├── EndTask(outcome)             raised by pre_handle: started and that outcome, ack
    ├── DelayTask(delay)             raised by pre_handle: nak with its delay
    ├── SkipTask(reason)             raised by pre_handle: no event, ack (the outcome is recorded)
    ├── ReleaseTask(outcome)         raised below a handler by a plugin: released, given back
    ├── SupersededError              somebody newer has the task: no event, message left alone
    ├── DecodeError                  no event, dead letter, term with the reason
    ├── TransportError               in the walk: no event, nak; of a handler: step.failed retriable
    │   ├── ConnectError
    │   ├── PublishError
    │   └── KeyValueError
    ├── StartError                   at start: the worker does not start
    ├── PluginError                  at start: the worker does not start; in the walk: nak
    ├── CapabilityMissingError       a plugin that is not there was used: step.failed non_retriable
    ├── SignalTimeoutError           also a TimeoutError
    ├── UsageError                   programmer error, at the call; out of a handler: non_retriable
    ├── EngineError                  raised to a client whose request the engine refused
    ├── TaskFailedError              raised to a client that awaits a run which failed
    └── RunCancelledError            raised to a client that awaits a run which was cancelled

Any other exception out of a handler is a retriable failure.
"""

from __future__ import annotations

import copyreg
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagnats_worker._outcome import FailureType, Outcome

__all__ = [
    "CapabilityMissingError",
    "ConnectError",
    "DagnatsError",
    "DecodeError",
    "DelayTask",
    "EndTask",
    "EngineError",
    "KeyValueError",
    "NonRetryableError",
    "PluginError",
    "PublishError",
    "ReleaseTask",
    "RetryAfterError",
    "RunCancelledError",
    "SignalTimeoutError",
    "SkipTask",
    "StartError",
    "SupersededError",
    "TaskError",
    "TaskFailedError",
    "TransportError",
    "UsageError",
]


def describe(error: BaseException) -> str:
    """What an exception says; its class where it says nothing or cannot be shown."""
    try:
        return str(error) or type(error).__name__
    except Exception:  # noqa: BLE001 - the text of a handler's own exception is the handler's code
        return type(error).__name__


class DagnatsError(Exception):
    """The root of every exception that the project raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Made again without ``__init__``, which takes other arguments than the text.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]  # pickle's own way, missing in the stubs


class TaskError(DagnatsError):
    """A handler ends its task on purpose; see the two subclasses.

    Args:
        error_or_message: What went wrong. An exception becomes the ``__cause__``, and its text
            the text of this error.
    """

    def __init__(self, error_or_message: BaseException | str) -> None:
        if isinstance(error_or_message, BaseException):
            super().__init__(describe(error_or_message))
            self.__cause__ = error_or_message
        elif isinstance(error_or_message, str):
            super().__init__(error_or_message)
        else:
            raise TypeError(
                f"{type(self).__name__} takes an exception or a text, got {error_or_message!r}"
            )


class NonRetryableError(TaskError):
    """The task failed and no retry can help; found anywhere in the ``__cause__`` chain.

    Source: dagnats worker/errors.go, NonRetryableError.
    """


class RetryAfterError(TaskError):
    """The task failed and is to be tried again no sooner than after ``delay``.

    Args:
        error_or_message: As in :class:`TaskError`.
        delay: Sent in milliseconds, clamped to 100 ms ... 1 h.

    Source: dagnats worker/errors.go, RateLimitError.
    """

    def __init__(self, error_or_message: BaseException | str, delay: timedelta) -> None:
        if not isinstance(delay, timedelta):
            raise TypeError(f"delay is a timedelta, got {delay!r}")
        super().__init__(error_or_message)
        self.delay = delay


class EndTask(DagnatsError):  # noqa: N818 - control flow, not a failure
    """Raised by ``pre_handle``: the task ends with this outcome, its handler is not run."""

    def __init__(self, outcome: Outcome) -> None:
        _check_outcome(self, outcome)
        super().__init__(f"ended by a plugin with {outcome!r}")
        self.outcome = outcome


class DelayTask(DagnatsError):  # noqa: N818 - control flow, not a failure
    """Raised by ``pre_handle``: the task is given back and comes again after ``delay``."""

    def __init__(self, delay: timedelta) -> None:
        if not isinstance(delay, timedelta) or delay < timedelta(0):
            raise ValueError(f"delay is a timedelta of zero or more, got {delay!r}")
        super().__init__(f"delayed by a plugin for {delay}")
        self.delay = delay


class SkipTask(DagnatsError):  # noqa: N818 - control flow, not a failure
    """Raised by ``pre_handle``: ack without running.

    Right only where somebody else has recorded the outcome; otherwise the run waits for ever.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ReleaseTask(DagnatsError):  # noqa: N818 - control flow, not a failure
    """Raised by a plugin below a handler: the task ends with this outcome, and no other one."""

    def __init__(self, outcome: Outcome) -> None:
        _check_outcome(self, outcome)
        super().__init__(f"released by a plugin with {outcome!r}")
        self.outcome = outcome


class SupersededError(DagnatsError):
    """Somebody newer has the task; found anywhere in the ``__cause__`` chain.

    Nothing is published, and the message is neither acked nor given back, whatever the handler has
    recorded: it belongs to the other one. Should that one die, it comes again when its lease ends.
    """


def _check_outcome(error: DagnatsError, outcome: Outcome) -> None:
    from dagnats_worker._outcome import is_outcome  # noqa: PLC0415 - it imports this module

    if not is_outcome(outcome):
        name = type(error).__name__
        raise TypeError(f"{name} takes an outcome such as Completed(b'1'), got {outcome!r}")


class DecodeError(DagnatsError):
    """Bytes that are not what the protocol says; names the field where there is one."""


class TransportError(DagnatsError):
    """NATS did not do what it was asked; nothing was acked."""


class ConnectError(TransportError):
    """No server at the URL, or the server refused the connection."""


class PublishError(TransportError):
    """A message could not be stored in its stream.

    Attributes:
        code: JetStream's ``err_code``; 0 where the server did not answer.
    """

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class KeyValueError(TransportError):
    """A key-value bucket is missing, or refused an operation.

    Attributes:
        conflict: The key has another revision than the one that was expected.
        missing: There is no such bucket, so that trying again does not help.
    """

    def __init__(self, message: str, *, conflict: bool = False, missing: bool = False) -> None:
        super().__init__(message)
        self.conflict = conflict
        self.missing = missing


class StartError(DagnatsError):
    """The worker cannot start as it is configured; the message names the remedy."""


class PluginError(DagnatsError):
    """A plugin cannot be used, or one of its hooks failed."""


class CapabilityMissingError(DagnatsError):
    """A handler used a capability that no plugin provides; the message says what to install."""


class SignalTimeoutError(DagnatsError, TimeoutError):
    """The signal that a handler waited for did not come in time."""


class UsageError(DagnatsError):
    """The API was used in a way that cannot work; raised at the call."""


class EngineError(DagnatsError):
    """The engine refused a request; in its own words."""


class TaskFailedError(DagnatsError):
    """The run that a client awaits has failed for good.

    Attributes:
        run_id: The run that failed.
        step_id: The step that failed, or an empty text where the whole run did.
        failure_type: As published; ``non_retriable`` where the event does not say.
    """

    def __init__(
        self, message: str, *, run_id: str, step_id: str = "", failure_type: FailureType
    ) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.step_id = step_id
        self.failure_type: FailureType = failure_type


class RunCancelledError(DagnatsError):
    """The run that a client awaits was cancelled."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"run {run_id} was cancelled")
        self.run_id = run_id
