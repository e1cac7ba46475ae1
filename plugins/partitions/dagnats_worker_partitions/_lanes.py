"""What a member has been given: what waits, what runs, and in which order it may go on.

The partition decides which member gets a message, and the run is what has an order. So where order
is asked for there is one lane for each subject, which ends with the run id: it hands out its
messages one by one, and lanes do not wait for each other.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterator

from dagnats_worker.hookspecs import Delivery

FOREVER = float("inf")


class Waiting:
    """A message that came in and was not handed out yet.

    Attributes:
        renewed_at: When its lease was begun or renewed; on the monotonic clock.
    """

    __slots__ = ("delivery", "renewed_at")

    def __init__(self, delivery: Delivery, renewed_at: float) -> None:
        self.delivery = delivery
        self.renewed_at = renewed_at


class Lane:
    """The messages of one subject, by their sequences.

    Attributes:
        current: May run, or does; 0 for none.
        absent: Was given back or lost, and nothing behind it may run before it has come again; not
            waited for any longer than until then.
        later: Waits here, in order.
    """

    __slots__ = ("absent", "current", "later")

    def __init__(self) -> None:
        self.current = 0
        self.absent: dict[int, float] = {}
        self.later: list[int] = []

    @property
    def empty(self) -> bool:
        return not (self.current or self.absent or self.later)

    def may_go_on(self) -> bool:
        """Whether the first of those that wait may run now."""
        if self.current or not self.later:
            return False
        return not self.absent or min(self.absent) > self.later[0]


class Lanes:
    """The messages of one member.

    Args:
        ordered: Those of one subject go one by one, in the order of their stream.
        lost_for_s: How long a lane waits for a message of which nobody knows whether it was acked.
    """

    def __init__(self, *, ordered: bool, lost_for_s: float) -> None:
        self.ordered = ordered
        self._lost_for_s = lost_for_s
        self._waiting: dict[int, Waiting] = {}
        self._ready: deque[int] = deque()
        self._running: dict[int, list[Delivery]] = {}
        self._copies: deque[Delivery] = deque()
        self._lanes: dict[str, Lane] = {}

    @property
    def running(self) -> int:
        """How many messages are handed out and not settled."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_ready(self) -> bool:
        """Something may be handed out."""
        return bool(self._ready or self._copies)

    def add(self, delivery: Delivery, now: float) -> None:
        """Take in a message; one that is here already only brings a newer lease."""
        sequence = delivery.sequence
        if (running := self._running.get(sequence)) is not None:
            running.append(delivery)
            self._copies.append(delivery)
            return
        known = sequence in self._waiting
        self._waiting[sequence] = Waiting(delivery, delivery.sent_after or now)
        if known:
            return
        if not self.ordered:
            self._ready.append(sequence)
            return
        lane = self._lanes.setdefault(delivery.subject, Lane())
        lane.absent.pop(sequence, None)
        bisect.insort(lane.later, sequence)
        self._advance(delivery.subject, lane)

    def refuse(self, delivery: Delivery) -> None:
        """A message was given back as it came; those behind it wait for it."""
        known = delivery.sequence in self._running or delivery.sequence in self._waiting
        if self.ordered and not known:
            lane = self._lanes.setdefault(delivery.subject, Lane())
            lane.absent[delivery.sequence] = FOREVER

    def copy(self) -> Delivery | None:
        """A message that runs already and came again, for whoever renews its lease."""
        return self._copies.popleft() if self._copies else None

    def next(self) -> Delivery | None:
        """Hand out a message; None where none may go on now."""
        while self._ready:
            sequence = self._ready.popleft()
            waiting = self._waiting.pop(sequence, None)
            if waiting is not None:
                self._running[sequence] = [waiting.delivery]
                return waiting.delivery
        return None

    def settled(self, delivery: Delivery, now: float) -> None:
        """A message that was handed out is done with, or is to come again."""
        sequence = delivery.sequence
        running = self._running.get(sequence)
        if running is None or delivery not in running:
            return
        running.remove(delivery)
        if running:
            return  # another delivery of the same message runs on
        del self._running[sequence]
        if self.ordered:
            self._move_on(delivery, now)

    def _move_on(self, delivery: Delivery, now: float) -> None:
        lane = self._lanes.get(delivery.subject)
        if lane is None or lane.current != delivery.sequence:
            return
        lane.current = 0
        if delivery.settlement != "done":
            lost = delivery.settlement != "given back"
            lane.absent[delivery.sequence] = now + self._lost_for_s if lost else FOREVER
        self._advance(delivery.subject, lane)

    def _advance(self, subject: str, lane: Lane) -> None:
        if lane.may_go_on():
            lane.current = lane.later.pop(0)
            self._ready.append(lane.current)
        elif lane.empty:
            del self._lanes[subject]

    def look(self, now: float) -> None:
        """Go on without messages that were lost, and have not come again in time."""
        for subject, lane in list(self._lanes.items()):
            late = [sequence for sequence, until in lane.absent.items() if until < now]
            for sequence in late:
                del lane.absent[sequence]
            if late:
                self._advance(subject, lane)

    def due(self, now: float, every_s: float) -> Iterator[Waiting]:
        """The waiting messages whose lease was not renewed for so long."""
        return iter([one for one in self._waiting.values() if now - one.renewed_at >= every_s])

    def drop(self, waiting: Waiting) -> None:
        """Forget a waiting message; it is delivered again."""
        delivery = waiting.delivery
        del self._waiting[delivery.sequence]
        lane = self._lanes.get(delivery.subject)
        if lane is None:
            return
        if lane.current == delivery.sequence:
            lane.current = 0
        elif delivery.sequence in lane.later:
            lane.later.remove(delivery.sequence)
        lane.absent[delivery.sequence] = FOREVER

    def clear(self) -> list[Delivery]:
        """Forget everything but what runs, and return what waited."""
        waited = [one.delivery for one in self._waiting.values()]
        while (copy := self.copy()) is not None:
            self._running[copy.sequence].remove(copy)
            waited.append(copy)
        self._waiting.clear()
        self._ready.clear()
        for subject, lane in list(self._lanes.items()):
            lane.absent.clear()
            lane.later.clear()
            if lane.current not in self._running:
                del self._lanes[subject]
        return waited
