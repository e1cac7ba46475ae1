"""What the plugin costs, how it is configured, and what it does when the server fails it.

Method: a worker with the plugin on a server that can be broken. Real: the plugin and the worker.
Fake: the server, which is in memory.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
from checkpoint_support import MemoryGround, bench

from dagnats_worker import (
    CHECKPOINTS,
    KeyValueError,
    Released,
    TaskContext,
    TaskFailedError,
    UsageError,
    Worker,
)
from dagnats_worker.errors import TaskError
from dagnats_worker.testing import Ack, MemoryTransport, Nak, WorkerHarness
from dagnats_worker_checkpoint import CheckpointPlugin, CheckpointSettings

CLEANUPS: list[Any] = ["keep", "delete", "expire"]
PATIENT = CheckpointSettings(retry_for=timedelta(seconds=30))
HASTY = CheckpointSettings(retry_for=timedelta(0))
PUTS = "$KV.checkpoints.>"
REFUSED = 10060


async def without(ctx: TaskContext) -> None: ...


async def saves_twice(ctx: TaskContext) -> None:
    await ctx.checkpoint(1)
    await ctx.checkpoint(2)


@pytest.mark.parametrize("cleanup", CLEANUPS)
async def test_task_that_uses_no_checkpoint_asks_for_none(cleanup: Any) -> None:
    plugin = CheckpointPlugin(CheckpointSettings(after_completion=cleanup))
    async with WorkerHarness({"t": without}, plugins=[plugin]) as harness:
        harness.faults.fail_reads(1)
        assert (await harness.run("t")).verdict == Ack()
        with pytest.raises(KeyValueError):  # the failing read is still there to be had
            await harness.transport.key_value("checkpoints").get("any")


async def test_task_that_uses_no_checkpoint_is_not_held_up_by_a_missing_bucket() -> None:
    attempts: list[int] = []

    async def handler(ctx: TaskContext) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise ConnectionError("half-way")

    ground = MemoryGround()
    del ground.server.streams["KV_checkpoints"]
    async with bench(ground, handler) as at:
        await at.run()
    assert attempts == [1, 2, 3]


async def test_step_that_can_have_no_checkpoint_is_cleaned_up_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(ctx: TaskContext) -> None:
        if ctx.attempt == 1:
            raise TaskError("half-way")

    plugin = CheckpointPlugin(CheckpointSettings(after_completion="delete"))
    async with WorkerHarness({"t": handler}, plugins=[plugin]) as harness:
        result = await harness.run_to_end("t", step_id="stép")
    assert (result.verdict, result.deliveries) == (Ack(), 2)
    assert [record.name for record in caplog.records] == ["dagnats_worker.task"], "the failure"


async def test_missing_bucket_is_not_waited_for() -> None:
    ground = MemoryGround()
    del ground.server.streams["KV_checkpoints"]
    async with bench(ground, saves_twice, CheckpointSettings(retry_for=timedelta(hours=1))) as at:
        with pytest.raises(TaskFailedError, match=r"'checkpoints' not found.*dagnats-worker setup"):
            await at.run()


async def test_name_of_the_pause_that_could_not_be_read_is_an_error_and_not_none() -> None:
    seen: list[str] = []

    async def handler(ctx: TaskContext) -> None:
        if ctx.attempt == 1:
            del ground.server.streams["KV_checkpoints"]
            raise ConnectionError("half-way")
        try:
            ctx.use(CHECKPOINTS).resumed_from  # noqa: B018 - it raises
        except KeyValueError as error:
            seen.append(str(error))

    ground = MemoryGround()
    async with bench(ground, handler) as at:
        await at.run()
    [text] = seen
    assert "dagnats-worker setup" in text


async def test_answer_that_was_lost_is_not_taken_for_another_attempts_write() -> None:
    async def handler(ctx: TaskContext) -> None:
        await ctx.checkpoint(1)
        ground.server.faults.fail_publishes(subject=PUTS, stored=True)
        await ctx.checkpoint(2)

    ground = MemoryGround()
    async with bench(ground, handler, PATIENT) as at:
        await at.run()
        stored = await at.stored()
    assert stored is not None
    assert stored.value == b"2"


@pytest.mark.parametrize("stored", [True, False])
async def test_first_write_of_a_step_may_lose_its_answer_too(*, stored: bool) -> None:
    ground = MemoryGround()
    async with bench(ground, saves_twice, PATIENT) as at:
        ground.server.faults.fail_publishes(2, subject=PUTS, stored=stored)
        await at.run()
        found = await at.stored()
    assert found is not None
    assert found.value == b"2"


async def test_write_that_is_never_answered_fails_the_attempt_and_not_the_task() -> None:
    plugin = CheckpointPlugin(HASTY)
    async with WorkerHarness({"t": saves_twice}, plugins=[plugin]) as harness:
        harness.faults.fail_publishes(subject=PUTS)
        first = await harness.run("t")
        assert isinstance(first.verdict, Nak)
        assert isinstance(first.outcome, Released)
        harness.clock.advance(first.verdict.delay)
        assert (await harness.settled(first.run_id)).verdict == Ack()


async def test_pause_that_cannot_be_saved_is_no_pause() -> None:
    async def handler(ctx: TaskContext) -> None:
        with pytest.raises(KeyValueError):
            await ctx.pause("wait", timedelta(hours=1))
        assert ctx.outcome is None
        ctx.complete("went on")

    plugin = CheckpointPlugin(HASTY)
    async with WorkerHarness({"t": handler}, plugins=[plugin]) as harness:
        harness.faults.fail_publishes(subject=PUTS)
        assert (await harness.run("t")).output == "went on"


@pytest.mark.parametrize("cleanup", ["delete", "expire"])
async def test_clean_up_that_fails_leaves_the_outcome_as_it_is(
    cleanup: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = CheckpointSettings(after_completion=cleanup)
    plugin = CheckpointPlugin(settings)

    async def handler(ctx: TaskContext) -> str:
        await ctx.checkpoint(1)
        harness.faults.fail_reads(1)
        return "done"

    with caplog.at_level(logging.WARNING):
        async with WorkerHarness({"t": handler}, plugins=[plugin]) as harness:
            result = await harness.run("t", run_id="r")
            assert (result.verdict, result.output) == (Ack(), "done")
    assert "the checkpoint of r.t stays as it is" in caplog.text


async def test_task_that_was_kept_and_dispatched_again_is_resumed() -> None:
    """As a task is that has waited for a signal without holding a slot."""
    seen: list[Any] = []

    async def handler(ctx: TaskContext) -> None:
        seen.append((ctx.deliveries, ctx.use(CHECKPOINTS).resumed_from))

    async with WorkerHarness({"t": handler}, plugins=[CheckpointPlugin()]) as harness:
        kv = harness.transport.key_value("checkpoints")
        await kv.put("r.t", b'{"pause_resume":"wait"}')
        since = harness.clock.time_ns()
        await harness.run("t", run_id="r", headers={"Dagnats-Kept": f"{since} 1"})
    assert seen == [(1, "wait")]


async def test_one_plugin_serves_one_worker_after_the_other() -> None:
    plugin = CheckpointPlugin(CheckpointSettings(after_completion="delete"))
    for _ in range(2):
        async with WorkerHarness({"t": saves_twice}, plugins=[plugin]) as harness:
            await harness.run("t", run_id="r")
            [entry] = harness.server.messages("KV_checkpoints")
            assert entry.headers["KV-Operation"] == "DEL"


# ------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"expire_after": timedelta(0)}, "whole number of seconds"),
        ({"expire_after": timedelta(seconds=1.5)}, "whole number of seconds"),
        ({"retry_for": timedelta(seconds=-1)}, "retry_for is zero or longer"),
    ],
)
def test_setting_that_makes_no_sense_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CheckpointSettings(**changes)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGNATS_WORKER__CHECKPOINT__AFTER_COMPLETION", "expire")
    monkeypatch.setenv("DAGNATS_WORKER__CHECKPOINT__EXPIRE_AFTER", "12h")
    settings = CheckpointPlugin().settings
    assert settings == CheckpointSettings(
        after_completion="expire", expire_after=timedelta(hours=12)
    )
    monkeypatch.setenv("DAGNATS_WORKER__CHECKPOINT__AFTER_COMPLETION", "burn")
    with pytest.raises(UsageError, match=r"keep.*delete.*expire"):
        CheckpointPlugin()


async def test_worker_that_needs_checkpoints_starts_with_the_plugin() -> None:
    worker = Worker(MemoryTransport(), plugins=[CheckpointPlugin()])
    worker.handle("t", without, needs=[CHECKPOINTS])
    async with worker:
        assert worker.task_types


async def test_without_the_plugin_a_handler_is_told_what_to_install() -> None:
    async with WorkerHarness({"t": saves_twice}) as harness:
        result = await harness.run("t", workflow_name="hello")
    assert result.error is not None
    assert "pip install 'dagnats-worker[checkpoint]'" in result.error
