"""What a type checker says of signals. Checked by mypy and pyright, never run."""
# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from dagnats_worker import SIGNALS, Run, Signaler, SyncTaskContext, TaskContext, Worker
from dagnats_worker_signals import SignalsPlugin, SignalsSettings


async def waits(ctx: TaskContext, run: Run) -> None:
    assert_type(await ctx.wait_for_signal("go", timedelta(days=1), park=True), bytes)
    assert_type(ctx.use(SIGNALS), Signaler)
    await ctx.wait_for_signal("go", timedelta(1), True)  # type: ignore[call-arg]  # noqa: FBT003 - by keyword only
    await ctx.wait_for_signal("go", 5)  # type: ignore[arg-type]  # a time is a timedelta
    await ctx.send_signal("run", "go", {"any": ["json"]})
    await run.signal("go", b"bytes")


def blocks(ctx: SyncTaskContext) -> None:
    assert_type(ctx.wait_for_signal("go", timedelta(days=1), park=True), bytes)


def makes() -> None:
    settings = SignalsSettings(consume=True, parked_max=5, sweep_every=timedelta(minutes=1))
    Worker(plugins=[SignalsPlugin(settings)])
    SignalsSettings(consumes=True)  # type: ignore[call-arg]  # no such setting
