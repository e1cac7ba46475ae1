"""Who may ask the server for how many tasks: a slot before a pull.

``concurrency`` bounds one task type, ``max_tasks`` the whole worker. A message is *asked* for while
a pull for it is open and *held* from its arrival until it is settled; a task type that delivers
asks only for what is free of both bounds. An idle task type keeps one pull for one message open
without a reservation, so at most one message per task type ever waits in line at a gate, and it is
given back when its turn does not come in time.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Gate:
    """Lets at most ``capacity`` through at once, first come first served."""

    __slots__ = ("_line", "capacity", "inside")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.inside = 0
        self._line: deque[asyncio.Future[None]] = deque()

    @property
    def open(self) -> bool:
        return self.inside < self.capacity

    def enter_now(self) -> bool:
        """Take a place where one is free and nobody waits."""
        if self.inside < self.capacity and not self._line:
            self.inside += 1
            return True
        return False

    async def enter(self, within_s: float) -> bool:
        """Wait for a place; False when none came free in time."""
        if self.enter_now():
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            async with asyncio.timeout(within_s):
                await turn
        except TimeoutError:
            return turn.done() and not turn.cancelled()
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            raise
        return True

    def leave(self) -> None:
        """Give the place to the next in line, where somebody waits."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.inside -= 1


class WorkerSlots:
    """The slots of a worker, shared by its task types."""

    def __init__(self, max_tasks: int) -> None:
        self.gate = Gate(max_tasks)
        self.held = 0
        self.asked = 0
        self._hungry: dict[Slots, None] = {}

    def free(self) -> int:
        return self.gate.capacity - self.held - self.asked

    def hungry(self, slots: Slots) -> None:
        """Put a source in line for what comes free; one that is in line keeps its place."""
        self._hungry.setdefault(slots)

    def served(self, slots: Slots) -> None:
        """This source got something, so it leaves the line; it may go to the end of it again."""
        self._hungry.pop(slots, None)

    def wake(self) -> None:
        """Tell those who want more that something came free, longest waiting first."""
        for slots in self._hungry:
            slots.changed.set()


class Slots:
    """What one source may ask for.

    Attributes:
        changed: Set when more may be asked for, after ``want`` was called; the source clears it.
        only_idle: Ask for one message at a time, however many are queued.
    """

    __slots__ = ("_gate", "_idle", "_worker", "asked", "changed", "held", "only_idle")

    def __init__(self, worker: WorkerSlots, gate: Gate, *, only_idle: bool = False) -> None:
        self._worker = worker
        self._gate = gate
        self.only_idle = only_idle
        self._idle = 0
        self.held = 0
        self.asked = 0
        self.changed = asyncio.Event()

    def free(self) -> int:
        """How many messages may be asked for now, beside what is asked for already."""
        if self.only_idle:
            return 0
        own = self._gate.capacity - self.held - self.asked - self._idle
        return max(0, min(own, self._worker.free()))

    def may_idle(self) -> bool:
        """Whether the one pull of an idle task type may be opened: it would find a slot now."""
        if self._idle or not self._gate.open or self._worker.free() <= 0:
            return False
        return self.only_idle or self.held + self.asked < self._gate.capacity

    def want(self) -> None:
        """Ask to be told through ``changed`` when something comes free."""
        self._worker.hungry(self)

    def ask(self, count: int) -> None:
        """Count messages as asked for; each must arrive or be taken back."""
        self.asked += count
        self._worker.asked += count
        self._worker.served(self)

    def ask_idle(self) -> None:
        """Count the one message of an idle task type as asked for, without a reservation."""
        self._idle = 1
        self._worker.served(self)

    def take_back(self, count: int, *, idle: bool = False) -> None:
        """These messages will not arrive: the pull for them is over."""
        if idle:
            self._idle = 0
        elif count:
            self.asked -= count
            self._worker.asked -= count
            self._worker.wake()

    def arrived(self, *, asked: bool, idle: bool = False) -> None:
        """A message is here, on a reservation, on the idle pull, or (neither) unexpectedly."""
        if idle:
            self._idle = 0
        elif asked:
            self.asked -= 1
            self._worker.asked -= 1
        self.held += 1
        self._worker.held += 1

    def settled(self) -> None:
        """A held message is acked, given back or lost."""
        self.held -= 1
        self._worker.held -= 1
        self._worker.wake()

    def start_now(self) -> bool:
        """Take a slot of the task type and one of the worker where both are free, as usual."""
        if not self._gate.enter_now():
            return False
        if self._worker.gate.enter_now():
            return True
        self._gate.leave()
        return False

    async def start(self, within_s: float) -> bool:
        """Take a slot of the task type and one of the worker for a held message."""
        if not await self._gate.enter(within_s):
            return False
        entered = False
        try:
            entered = await self._worker.gate.enter(within_s)
        finally:
            if not entered:
                self._gate.leave()
        return entered

    def end(self) -> None:
        """Give both slots back."""
        self._worker.gate.leave()
        self._gate.leave()
