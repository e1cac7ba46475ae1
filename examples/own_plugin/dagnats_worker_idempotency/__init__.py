"""An idempotency guard for dagnats-worker: a repeated key is answered with the stored result."""

from __future__ import annotations

from dagnats_worker_idempotency._plugin import (
    IDEMPOTENCY,
    Idempotency,
    IdempotencyOptions,
    IdempotencyPlugin,
    IdempotencySettings,
)

__all__ = [
    "IDEMPOTENCY",
    "Idempotency",
    "IdempotencyOptions",
    "IdempotencyPlugin",
    "IdempotencySettings",
]
