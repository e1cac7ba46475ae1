"""The transport on nats-py; the only code that imports it."""

from __future__ import annotations
