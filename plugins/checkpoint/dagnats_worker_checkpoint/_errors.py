"""What can be wrong with a checkpoint, and what that does to the task.

Besides these there is ``KeyValueError``, where NATS failed: a retriable failure.
"""

from __future__ import annotations

from dagnats_worker.errors import NonRetryableError, SupersededError

__all__ = ["CheckpointDecodeError", "CheckpointTooLargeError", "StaleAttemptError"]


class StaleAttemptError(SupersededError):
    """A newer attempt of the step has the checkpoint; this one is not to go on.

    Out of a handler it publishes nothing and leaves the message alone, which belongs to the newer
    attempt. Should that one die, the message comes again when its lease ends.
    """


class CheckpointTooLargeError(NonRetryableError):
    """The state is larger than what the server takes; nothing was sent.

    Attributes:
        size: What the state would have been on the wire, in bytes.
        size_max: What the server takes, in bytes.
    """

    def __init__(self, message: str, *, size: int, size_max: int) -> None:
        super().__init__(message)
        self.size = size
        self.size_max = size_max


class CheckpointDecodeError(NonRetryableError):
    """What is stored is not the model that the handler expects; says which field is wrong."""
