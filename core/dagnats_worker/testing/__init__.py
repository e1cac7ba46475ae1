"""For tests of handlers and plugins: an in-memory server that can be broken, a clock, a harness."""

from __future__ import annotations

from dagnats_worker._ack import Ack, Nak, Term
from dagnats_worker.testing._clock import FakeClock
from dagnats_worker.testing._consumer import Settlement
from dagnats_worker.testing._contract import PluginContract
from dagnats_worker.testing._faults import Faults
from dagnats_worker.testing._harness import WorkerHarness
from dagnats_worker.testing._result import TaskResult
from dagnats_worker.testing._server import MemoryServer
from dagnats_worker.testing._stream import StoredMessage
from dagnats_worker.testing._transport import MemoryTransport

__all__ = [
    "Ack",
    "FakeClock",
    "Faults",
    "MemoryServer",
    "MemoryTransport",
    "Nak",
    "PluginContract",
    "Settlement",
    "StoredMessage",
    "TaskResult",
    "Term",
    "WorkerHarness",
]
