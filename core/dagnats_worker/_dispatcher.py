"""The walk of one task, from its message to the ack, and nothing else."""

from __future__ import annotations

import asyncio
import logging

from dagnats_worker._ack import ACKED, AT_ONCE, Ack, Drop, Nak, Term, Verdict, settle
from dagnats_worker._arrival import Arrivals
from dagnats_worker._config import WorkerConfig
from dagnats_worker._context import TaskContext
from dagnats_worker._counters import Counters
from dagnats_worker._current import current
from dagnats_worker._dead_letters import DeadLetters
from dagnats_worker._ending import Plan, plan
from dagnats_worker._events import Events
from dagnats_worker._execution import Environment, Execution
from dagnats_worker._hook_calls import LENIENT, VITAL, walk
from dagnats_worker._inflight import InFlight
from dagnats_worker._outcome import Outcome, Released, check_outcome
from dagnats_worker._plugins import Hooks
from dagnats_worker._protocol import decode_task
from dagnats_worker._retry import Retry
from dagnats_worker._run_handler import HandlerRunner, StoppedError
from dagnats_worker.errors import (
    DecodeError,
    DelayTask,
    EndTask,
    PluginError,
    SkipTask,
    SupersededError,
    TransportError,
    UsageError,
)

logger = logging.getLogger("dagnats_worker.dispatcher")


class Dispatcher:
    """Walks the deliveries of one task type; every path, cancellation too, settles each once."""

    def __init__(
        self,
        environment: Environment,
        *,
        arrivals: Arrivals,
        runner: HandlerRunner,
        dead_letters: DeadLetters,
        hooks: Hooks,
        retry: Retry,
        config: WorkerConfig,
        counters: Counters,
    ) -> None:
        self._environment = environment
        self._events: Events = environment.events
        self._arrivals = arrivals
        self._runner = runner
        self._dead_letters = dead_letters
        self._hooks = hooks
        self._retry = retry
        self._redeliver = Nak(config.redeliver_after)
        self._counters = counters

    async def dispatch(self, inflight: InFlight) -> None:
        """Walk one delivery and settle it."""
        transport = self._environment.transport
        try:
            verdict = await self._walk(inflight)
        except asyncio.CancelledError:
            await asyncio.shield(settle(transport, inflight, Nak(AT_ONCE)))
            raise
        await settle(transport, inflight, verdict)

    async def _walk(self, inflight: InFlight) -> Verdict:
        delivery = inflight.delivery
        try:
            execution = Execution(decode_task(delivery.data), inflight, self._environment)
            execution.context = TaskContext(execution)
            current.set(execution.context)
            answer = await self._arrivals.check(execution)
            if answer is not None:
                return answer
            if not self._hooks.task_scope:
                return await self._run(execution)
            async with self._hooks.scope(self._hooks.task_scope, inflight, ctx=execution.context):
                return await self._run(execution)
        except DecodeError as error:
            return await self._reject(inflight, error)
        except StoppedError as stopped:
            return stopped.verdict
        except SupersededError as error:
            return Drop(str(error))
        except (PluginError, TransportError) as error:
            logger.warning("%s is given back: %s", delivery, error)
            return self._redeliver

    async def _run(self, execution: Execution) -> Verdict:
        try:
            outcome = execution.outcome
            if outcome is None:
                if self._hooks.pre_handle:
                    ctx = execution.context
                    await walk(self._hooks.pre_handle, execution.inflight, {"ctx": ctx}, VITAL)
                if execution.inflight.ending is not None:
                    return Nak(AT_ONCE)
                await self._events.started(execution)
                outcome = await self._runner.run(execution)
        except EndTask as end:
            outcome = _outcome_of(end)
            await self._events.started(execution)
        except DelayTask as delayed:
            self._counters.released += 1
            return Nak(delayed.delay)
        except SkipTask as skipped:
            logger.info("%s skipped: %s", execution.delivery, skipped.reason)
            self._counters.skipped += 1
            return ACKED
        await self._events.confirm_started(execution)
        return await self._end(execution, await plan(execution, outcome, self._retry))

    async def _end(self, execution: Execution, ending: Plan) -> Verdict:
        execution.outcome = outcome = ending.outcome
        if self._hooks.outcome_scope:
            scopes = self._hooks.outcome_scope
            ctx = execution.context
            inflight = execution.inflight
            async with self._hooks.scope(scopes, inflight, vital=False, ctx=ctx, outcome=outcome):
                await self._events.resolved(execution, outcome)
        else:
            await self._events.resolved(execution, outcome)
        if ending.next_iteration:
            await self._events.next_iteration(execution)
        if ending.dead_letter:
            await self._dead_letters.add(execution, outcome)
        kept = isinstance(outcome, Released)  # acked too, and not complete at all
        if self._hooks.on_complete and isinstance(ending.verdict, Ack) and not kept:
            ctx = execution.context
            inflight = execution.inflight
            known = {"ctx": ctx, "outcome": outcome}
            await walk(self._hooks.on_complete, inflight, known, LENIENT)
        self._counters.ended(outcome)
        return ending.verdict

    async def _reject(self, inflight: InFlight, error: DecodeError) -> Verdict:
        logger.error("%s cannot be decoded: %s", inflight.delivery, error)
        self._counters.rejected += 1
        try:
            await self._dead_letters.add_undecodable(inflight.delivery, str(error))
        except TransportError as failed:
            logger.error("%s stays in the queue: %s", inflight.delivery, failed)  # noqa: TRY400 - its text says it all
            return self._redeliver
        return Term(str(error))


def _outcome_of(end: EndTask) -> Outcome:
    try:
        return check_outcome(end.outcome)
    except UsageError as error:
        raise PluginError(f"pre_handle ended the task with no outcome: {error}") from error
