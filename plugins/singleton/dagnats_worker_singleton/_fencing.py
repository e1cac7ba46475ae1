"""A number by which the outside world tells a holder from the one before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from dagnats_worker import BaseContext, Capability, UsageError
from dagnats_worker.hookspecs import WorkerFacade


@dataclass(frozen=True, slots=True)
class Fencing:
    """What a handler hands to whatever it changes.

    Attributes:
        token: Grows with each start of a handler, in the whole fleet. A resource that remembers the
            highest one that it has seen, and refuses lower ones, is safe from a holder that was
            stopped and wakes up. It fits into 63 bits.
    """

    token: int


FENCING: Capability[Fencing] = Capability("fencing", install="dagnats-worker[singleton]")


def fencing_for(worker: WorkerFacade) -> Callable[[BaseContext], Fencing]:
    """What makes the tokens of a worker's tasks.

    On the in-memory transport there is no fleet, and no start is stored before its handler runs, so
    there a counter stands in for the history.
    """
    try:
        _ = worker.nats
    except UsageError:
        tokens = count(1)
        return lambda _ctx: Fencing(next(tokens))
    return fencing_of


def fencing_of(ctx: BaseContext) -> Fencing:
    """The token of a task: the place of its start in the history, where all starts have theirs.

    Nothing else grows with every takeover: a new holder counts deliveries from 1 again.

    Raises:
        UsageError: The task is no singleton's, so its start may not be stored yet.
    """
    if not ctx.started_sequence:
        raise UsageError(
            f"task {ctx.task_id} has no fencing token: its start is not stored before its handler "
            "runs; give its task type singleton=True, or set confirm_start"
        )
    return Fencing(ctx.started_sequence)
