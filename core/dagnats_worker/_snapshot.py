"""What the engine's snapshot of a run says that a task which is sent again leaves out.

Source: wire protocol, sections 2.3 and 14, rows 23, 39 and 40.
"""

from __future__ import annotations

import msgspec

COMPLETED = "completed"


class StepState(msgspec.Struct):
    """One step of a run; what the snapshot does not say is empty here."""

    status: str = ""
    iterations: int = 0


class Snapshot(msgspec.Struct):
    """One run."""

    steps: dict[str, StepState] = {}
    trace_parent: str = ""


_decode = msgspec.json.Decoder(Snapshot).decode


def decode_snapshot(data: bytes) -> Snapshot:
    """Read a run's snapshot; one that cannot be read says nothing."""
    try:
        return _decode(data)
    except ValueError:
        return Snapshot()
