"""The tests of a contract that run a worker, and let something go wrong."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from dagnats_worker._context import TaskContext
from dagnats_worker._worker import Worker
from dagnats_worker.testing._contract_base import ContractBase, skip
from dagnats_worker.testing._contract_child import echo
from dagnats_worker.testing._contract_ground import Ground
from dagnats_worker.testing._contract_run import CONFIG, Leftovers, serving
from dagnats_worker.testing._probe import OTHER_PROCESS, Probe, implemented, parts_of

ROUNDS = 3
ROUNDS_MAX = 9
LEASE = timedelta(seconds=1)
AT_START = ("worker_scope", "open_source")
AT_THE_END = "worker_scope (leaving)"


class Runs(ContractBase):
    """A worker with the plugin, and nothing goes wrong."""

    def test_it_starts_and_stops_and_starts_again(self) -> None:
        self.run(self._starts_again())

    async def _starts_again(self) -> None:
        plugin = self.make()
        async with self.ground() as on:
            for _ in range(2):
                async with serving(on, self.case(), self.handle, plugin) as served:
                    await served.run_one()
                served.check()

    def test_it_provides_what_it_says(self) -> None:
        self.run(self._provides())

    async def _provides(self) -> None:
        declared = set(self.plugin_type.provides)
        async with self.ground() as on, serving(on, self.case(), self.handle) as served:
            provided = served.provided
        extra = sorted(one.name for one in provided - declared)
        assert not extra, f"it provides {extra} and does not say so; name them in `provides`"
        lacking = sorted(one.name for one in declared - provided)
        assert not lacking, f"it says that it provides {lacking}, and does not"
        served.check()

    def test_no_hook_blocks_the_event_loop(self) -> None:
        self.run(self._blocks_nothing())

    async def _blocks_nothing(self) -> None:
        shortest_s: dict[str, float] = {}
        slow = ""
        async with self.ground() as on:
            for done in range(ROUNDS_MAX):
                probe = await self._both_ways(on)
                for part, longest_s in probe.longest_s.items():
                    shortest_s[part] = min(shortest_s.get(part, longest_s[0]), *longest_s)
                slow = self._slow(shortest_s)
                if done + 1 >= ROUNDS and not slow:
                    return
        assert not slow, (
            f"the event loop is blocked: {slow}. Await what takes time, or use asyncio.to_thread"
        )

    def _slow(self, shortest_s: dict[str, float]) -> str:
        limit_s = self.blocks_at_most.total_seconds()
        return ", ".join(
            f"{part} keeps it for {took_s * 1000:.0f} ms at least, each time"
            for part, took_s in shortest_s.items()
            if took_s > limit_s
        )

    async def _both_ways(self, on: Ground) -> Probe:
        """Run a task that succeeds, and one that fails first."""
        async with serving(on, self.case(), self.fails_first) as served:
            await served.run_one()
            await served.run_one()
        served.check()
        return served.probe


class Breaks(ContractBase):
    """A worker with the plugin, and something goes wrong."""

    def test_a_task_that_fails_and_comes_again_is_completed_once(self) -> None:
        self.run(self._comes_again())

    async def _comes_again(self) -> None:
        async with self.ground() as on:
            async with serving(on, self.case(), self.fails_first) as served:
                run = await served.run_one()
                outcomes = await served.outcomes(run)
            served.check()
        assert len(outcomes) == 1, f"the task ended {len(outcomes)} times: {outcomes}"

    def test_a_task_whose_ack_is_lost_is_completed_once(self) -> None:
        self.run(self._loses_ack())

    async def _loses_ack(self) -> None:
        async with self.ground() as on:
            async with serving(on, self.case(), self.handle, ack_wait=LEASE) as served:
                on.lose_next_ack()
                run = await served.submit()
                await served.acked(run, on.deliver_unacked_again)
                outcomes = await served.outcomes(run)
            served.check()
        assert len(outcomes) == 1, f"the task ended {len(outcomes)} times: {outcomes}"

    def test_a_task_whose_worker_dies_is_completed_by_another(self) -> None:
        if self.needs_jetstream:
            skip("a worker that dies is played on the in-memory server only")
        self.run(self._dies())

    async def _dies(self) -> None:
        until_dead = asyncio.Event()

        async def hangs(_ctx: TaskContext) -> None:
            await until_dead.wait()

        async with self.ground() as on, serving(on, self.case(), hangs) as dying:
            run = await dying.submit()
            await dying.begun(run)
            await dying.transport.close()
            async with serving(on, self.case(), self.handle) as other:
                await other.acked(run, on.deliver_unacked_again)
                outcomes = await other.outcomes(run)
            other.check()
            until_dead.set()
        assert len(outcomes) == 1, f"the task ended {len(outcomes)} times: {outcomes}"

    def test_a_task_that_is_cancelled_leaves_nothing(self) -> None:
        self.run(self._is_cancelled())

    async def _is_cancelled(self) -> None:
        async def hangs(_ctx: TaskContext) -> None:
            await asyncio.Event().wait()

        async with self.ground() as on:
            async with serving(on, self.case(), hangs) as served:
                run = await served.submit()
                await served.begun(run)
                await run.cancel()
                await served.acked(run)
            served.check()

    def test_a_hook_that_is_cancelled_lets_go(self) -> None:
        self.run(self._lets_go())

    async def _lets_go(self) -> None:
        for hook in implemented(self.plugin_type):
            for part in parts_of(hook):
                if hook in AT_START and part != AT_THE_END:
                    await self._cancelled_at_start(part)
                elif hook not in (*AT_START, OTHER_PROCESS):
                    await self._cancelled_in_task(part)

    async def _cancelled_in_task(self, part: str) -> None:
        async with self.ground() as on:
            async with serving(on, self.case(), self.fails_first) as served:
                served.probe.cancel_once_in(part)
                run = await served.run_one()
                outcomes = await served.outcomes(run)
            _check_not_swallowed(served.probe)
            served.check()
        assert len(outcomes) == 1, f"{part}, cancelled: the task ended with {outcomes}"

    async def _cancelled_at_start(self, part: str) -> None:
        left = Leftovers()
        async with self.ground() as on:
            probe = Probe(self.make())
            probe.cancel_once_in(part)
            worker = Worker(await on.connect(), plugins=[probe.plugin], config=CONFIG)
            worker.handle("contract", self.handle, **self.task_options)
            start = asyncio.create_task(worker.start())
            await asyncio.gather(start, return_exceptions=True)
            await worker.stop()
            _check_not_swallowed(probe)
        assert not probe.errors, f"{part}, cancelled, raised {probe.errors[0][1]!r}"
        await left.nothing()

    def test_its_child_scope_wraps_a_process_handler(self) -> None:
        if OTHER_PROCESS in implemented(self.plugin_type):
            self.run(self._in_child())

    async def _in_child(self) -> None:
        async with self.ground() as on:
            async with serving(on, self.case(), echo, executor="process") as served:
                run = await served.run_one()
                outcomes = await served.outcomes(run)
            served.check()
        assert outcomes == ["step.completed"], f"a process handler ended with {outcomes}"


def _check_not_swallowed(probe: Probe) -> None:
    assert not probe.swallowed, (
        f"{probe.swallowed[0]} was cancelled and went on; let asyncio.CancelledError through, and "
        "clean up in `finally`"
    )
