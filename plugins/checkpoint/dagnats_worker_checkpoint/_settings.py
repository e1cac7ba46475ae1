"""How checkpoints are kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

PROTOCOL_BUCKET = "checkpoints"
"""The bucket of the protocol, which the engine or ``dagnats-worker setup`` creates."""

EXPIRE_MIN = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """How checkpoints are kept.

    Attributes:
        bucket: Where they are. One that is not the protocol's is made at the start where it does
            not exist.
        after_completion: What becomes of the checkpoint of a step that has ended for good: it is
            kept as Go workers do, deleted, or moved to a bucket whose keys expire.
        expire_after: How long a moved checkpoint is kept; in whole seconds.
        retry_for: How long a call waits for a server that does not answer before it fails.
    """

    bucket: str = PROTOCOL_BUCKET
    after_completion: Literal["keep", "delete", "expire"] = "keep"
    expire_after: timedelta = timedelta(days=7)
    retry_for: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        if self.expire_after < EXPIRE_MIN or self.expire_after.microseconds:
            raise ValueError(
                f"expire_after is a whole number of seconds, 1 or more, got {self.expire_after!r}"
            )
        if self.retry_for < timedelta(0):
            raise ValueError(f"retry_for is zero or longer, got {self.retry_for!r}")

    @property
    def expiring_bucket(self) -> str:
        """Where checkpoints of ended steps expire.

        The time is part of the name, because a bucket keeps the time that it was made with: another
        setting is another bucket, and the old one becomes empty by itself.
        """
        return f"{self.bucket}_expiring_{int(self.expire_after.total_seconds())}s"
