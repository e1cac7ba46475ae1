"""Signals for dagnats-worker: a task waits for somebody's word, with or without a slot."""

from __future__ import annotations

from dagnats_worker_signals._errors import SignalUsageError
from dagnats_worker_signals._plugin import SignalsPlugin
from dagnats_worker_signals._settings import SignalsSettings

__all__ = ["SignalUsageError", "SignalsPlugin", "SignalsSettings"]
