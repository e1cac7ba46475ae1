"""Checkpoints for dagnats-worker: a step that starts again goes on where it was."""

from __future__ import annotations

from dagnats_worker_checkpoint._errors import (
    CheckpointDecodeError,
    CheckpointTooLargeError,
    StaleAttemptError,
)
from dagnats_worker_checkpoint._plugin import CheckpointPlugin
from dagnats_worker_checkpoint._settings import CheckpointSettings
from dagnats_worker_checkpoint._view import Checkpoint, SyncCheckpoint

__all__ = [
    "Checkpoint",
    "CheckpointDecodeError",
    "CheckpointPlugin",
    "CheckpointSettings",
    "CheckpointTooLargeError",
    "StaleAttemptError",
    "SyncCheckpoint",
]
