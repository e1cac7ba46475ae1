"""Who may ask for how many tasks: the arithmetic of slots, and its fairness.

Method: gates and slots alone; the sources that ask are coroutines of the test. No I/O, no clock but
the bounds of waits.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagnats_worker._slots import Gate, Slots, WorkerSlots

LONG_S = 30
SHORT_S = 0.01


async def settle_down() -> None:
    """Let everything run that can run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_gate_lets_in_so_many_and_the_next_when_one_leaves() -> None:
    gate = Gate(2)
    assert await gate.enter(LONG_S)
    assert gate.enter_now()
    assert not gate.open
    assert not gate.enter_now()
    waiting = asyncio.create_task(gate.enter(LONG_S))
    await settle_down()
    assert not waiting.done()
    gate.leave()
    assert await waiting
    assert gate.inside == 2


async def test_gate_is_first_come_first_served_and_nobody_slips_past_the_line() -> None:
    gate, order = Gate(1), []

    async def visit(number: int) -> None:
        assert await gate.enter(LONG_S)
        order.append(number)
        gate.leave()

    assert gate.enter_now()
    visits = [asyncio.create_task(visit(number)) for number in range(5)]
    await settle_down()
    gate.leave()
    assert not gate.enter_now(), "the place belongs to the first in line"
    await asyncio.gather(*visits)
    assert order == [0, 1, 2, 3, 4]
    assert gate.inside == 0


async def test_who_waits_too_long_or_gives_up_takes_no_place_away() -> None:
    gate = Gate(1)
    assert gate.enter_now()
    assert not await gate.enter(SHORT_S)
    given_up = asyncio.create_task(gate.enter(LONG_S))
    patient = asyncio.create_task(gate.enter(LONG_S))
    await settle_down()
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    gate.leave()
    assert await patient
    gate.leave()
    assert gate.inside == 0
    assert gate.enter_now()


async def test_place_is_passed_on_when_its_taker_is_cancelled_at_the_same_moment() -> None:
    gate = Gate(1)
    assert gate.enter_now()
    first = asyncio.create_task(gate.enter(LONG_S))
    second = asyncio.create_task(gate.enter(LONG_S))
    await settle_down()
    gate.leave()  # the place is the first one's now, which has not run yet
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    async with asyncio.timeout(LONG_S):
        assert await second
    gate.leave()
    assert gate.inside == 0


def slots_of(max_tasks: int, *concurrency: int) -> tuple[WorkerSlots, list[Slots]]:
    worker = WorkerSlots(max_tasks)
    return worker, [Slots(worker, Gate(bound)) for bound in concurrency]


async def test_what_is_asked_for_and_what_is_held_is_not_free() -> None:
    _, [first, second] = slots_of(4, 3, 4)
    assert (first.free(), second.free()) == (3, 4)
    first.ask(2)
    assert (first.free(), second.free()) == (1, 2)
    first.arrived(asked=True)
    assert (first.free(), second.free()) == (1, 2), "held instead of asked for"
    first.take_back(1)
    assert (first.free(), second.free()) == (2, 3)
    first.settled()
    assert (first.free(), second.free()) == (3, 4)


async def test_message_on_the_idle_pull_needs_no_reservation_but_counts_once_it_is_here() -> None:
    _, [first, second] = slots_of(1, 1, 1)
    for slots in (first, second):
        assert slots.may_idle()
        slots.ask_idle()
        assert not slots.may_idle(), "one at a time"
    assert (first.free(), second.free()) == (0, 0), (
        "the idle pull may bring the one there is room for"
    )
    first.arrived(asked=True, idle=True)
    second.arrived(asked=True, idle=True)
    assert first.start_now()
    assert not second.start_now()
    assert (first.free(), second.free()) == (0, 0)
    first.end()
    first.settled()
    assert second.start_now()


async def test_idle_pull_is_not_opened_while_there_is_no_slot() -> None:
    _, [first, second] = slots_of(1, 1, 1)
    first.ask(1)
    first.arrived(asked=True)
    assert first.start_now()
    assert not first.may_idle()
    assert not second.may_idle()
    first.end()
    first.settled()
    assert second.may_idle()


async def test_source_that_only_idles_never_reserves() -> None:
    worker = WorkerSlots(4)
    gate = Gate(2)
    plain, sticky = Slots(worker, gate), Slots(worker, gate, only_idle=True)
    assert sticky.free() == 0
    assert sticky.may_idle()
    plain.ask(2)
    assert sticky.may_idle(), "asked for is not inside yet"


async def test_start_that_gets_one_of_two_slots_gives_it_back() -> None:
    worker, [first, second] = slots_of(1, 1, 1)
    first.arrived(asked=False)
    second.arrived(asked=False)
    assert await first.start(LONG_S)
    assert not await second.start(SHORT_S)
    first.end()
    assert await second.start(LONG_S)
    second.end()
    assert worker.gate.inside == 0


async def source(name: str, slots: Slots, served: list[str]) -> None:
    """A task type with an endless backlog, which asks as the real one does."""
    while True:
        slots.changed.clear()
        if free := slots.free():
            slots.ask(free)
            for _ in range(free):
                slots.arrived(asked=True)
                served.append(name)
        slots.want()
        await slots.changed.wait()


@pytest.mark.parametrize("max_tasks", [1, 3])
async def test_sources_that_all_want_more_are_served_in_turn(max_tasks: int) -> None:
    _, all_slots = slots_of(max_tasks, 5, 5, 5, 5)
    served: list[str] = []
    sources = [
        asyncio.create_task(source(str(number), slots, served))
        for number, slots in enumerate(all_slots)
    ]
    by_name = {str(number): slots for number, slots in enumerate(all_slots)}
    await settle_down()
    for number in range(100):
        assert len(served) > number, "somebody is always served"
        by_name[served[number]].settled()
        await settle_down()
    for task in sources:
        task.cancel()
    await asyncio.gather(*sources, return_exceptions=True)
    shares = Counter(served[:100])
    assert min(shares[name] for name in by_name) >= 20, shares


class Played:
    """Any order of events that a server and handlers can bring about, with the bounds checked."""

    def __init__(self, max_tasks: int, concurrency: list[int]) -> None:
        self._max_tasks = max_tasks
        self._concurrency = concurrency
        self._worker, self._all = slots_of(max_tasks, *concurrency)
        self._idle: set[Slots] = set()

    def move(self, what: str, which: int) -> None:
        getattr(self, what)(self._all[which % len(self._all)])
        self.check()

    def ask(self, slots: Slots) -> None:
        if free := slots.free():
            slots.ask(free)

    def ask_idle(self, slots: Slots) -> None:
        if slots.may_idle():
            slots.ask_idle()
            self._idle.add(slots)

    def arrive(self, slots: Slots) -> None:
        if slots in self._idle:
            self._idle.remove(slots)
            slots.arrived(asked=True, idle=True)
        elif slots.asked:
            slots.arrived(asked=True)

    def end_pulls(self, slots: Slots) -> None:
        slots.take_back(slots.asked)
        if slots in self._idle:
            self._idle.remove(slots)
            slots.take_back(1, idle=True)

    def settle(self, slots: Slots) -> None:
        if slots.held:
            slots.settled()

    def check(self) -> None:
        held, asked = sum(one.held for one in self._all), sum(one.asked for one in self._all)
        assert (self._worker.held, self._worker.asked) == (held, asked)
        assert held + asked <= self._max_tasks + len(self._all), "one each without a reservation"
        for slots, bound in zip(self._all, self._concurrency, strict=True):
            assert min(slots.held, slots.asked, slots.free()) >= 0
            assert slots.held + slots.asked + (slots in self._idle) <= bound


MOVES = ("ask", "ask_idle", "arrive", "end_pulls", "settle")


@settings(max_examples=300, deadline=None)
@given(
    max_tasks=st.integers(1, 5),
    concurrency=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    moves=st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 3)), max_size=60),
)
def test_no_order_of_events_exceeds_the_bounds(
    max_tasks: int, concurrency: list[int], moves: list[tuple[str, int]]
) -> None:
    async def play() -> None:
        played = Played(max_tasks, concurrency)
        for what, which in moves:
            played.move(what, which)

    asyncio.run(play())
