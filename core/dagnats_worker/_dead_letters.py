"""Copies of tasks that will never be run again, for people to look at and to replay."""

from __future__ import annotations

import logging
import re

import msgspec

from dagnats_worker._events import Events
from dagnats_worker._execution import Execution
from dagnats_worker._outcome import Failed, Outcome
from dagnats_worker._protocol import dead_letter_headers, dead_subject, encode_task
from dagnats_worker._transport import Delivery

logger = logging.getLogger("dagnats_worker.dispatcher")

NULL = msgspec.Raw(b"null")

_readable_id = re.compile(rb'"(run_id|step_id)"\s*:\s*"([^"\\]{1,256})"')


class DeadLetters:
    """Writes dead letters as the engine does. Source: wire protocol, section 17.4."""

    def __init__(self, events: Events, task_type: str) -> None:
        self._events = events
        self._task_type = task_type

    async def add(self, execution: Execution, outcome: Outcome) -> None:
        """Copy a task that has failed for good, ready to be replayed."""
        task = execution.task
        body = msgspec.structs.replace(
            task, attempt=execution.attempt, input=task.input if bytes(task.input) else NULL
        )
        headers = dead_letter_headers(
            run_id=task.run_id,
            step_id=task.step_id,
            task_type=self._task_type,
            error=outcome.error if isinstance(outcome, Failed) else str(outcome),
            attempts=execution.attempt,
            deliveries=execution.delivery.deliveries,
            subject=execution.delivery.subject,
        )
        subject = dead_subject(self._task_type, task.run_id, task.step_id)
        changed = await self._events.announce(execution, subject, dict(headers))
        await self._store(subject, encode_task(body), {**changed, **headers}, execution.delivery)

    async def add_undecodable(self, delivery: Delivery, error: str) -> None:
        """Copy a message that cannot be decoded, byte for byte."""
        ids = {
            name.decode(): value.decode(errors="replace")
            for name, value in _readable_id.findall(delivery.data)
        }
        run_id, step_id = ids.get("run_id", ""), ids.get("step_id", "")
        headers = dead_letter_headers(
            run_id=run_id,
            step_id=step_id,
            task_type=self._task_type,
            error=error,
            attempts=0,
            deliveries=delivery.deliveries,
            subject=delivery.subject,
        )
        headers["Nats-Msg-Id"] = f"dlq:{delivery.stream}:{delivery.sequence}"
        subject = dead_subject(self._task_type, run_id, step_id)
        await self._store(subject, delivery.data, headers, delivery)

    async def _store(
        self, subject: str, data: bytes, headers: dict[str, str], delivery: Delivery
    ) -> None:
        """What came as one message can be stored as one: without headers, if it has to be."""
        if not self._events.fits(data, headers):
            logger.error(
                "%s is so large that its dead letter has no headers; they are: %s",
                delivery,
                headers,
            )
            data, headers = delivery.data, {}
        await self._events.store(subject, data, headers)
