"""One handler at a time in a whole fleet, workers written in Go included."""

from __future__ import annotations

from dagnats_worker_singleton._fencing import FENCING, Fencing
from dagnats_worker_singleton._plugin import SingletonOptions, SingletonPlugin, SingletonSettings

__all__ = ["FENCING", "Fencing", "SingletonOptions", "SingletonPlugin", "SingletonSettings"]
