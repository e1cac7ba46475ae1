"""A singleton with checkpoints: a holder that is frozen and wakes up can do neither any more.

Method: two workers in processes of their own, one of which is frozen by SIGSTOP. What the handlers
did stands in a diary, what was recorded in the history and in the bucket. Everything is real.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from partitions_support import BOUND_S, empty, noted, publish
from singleton_support import in_charge, outcomes, process
from support import connected, eventually, unique

from dagnats_worker import EmbeddedServer

pytestmark = [pytest.mark.server]


async def test_frozen_holder_that_wakes_up_cannot_complete_checkpoint_or_ack(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    kind, run_id, url, diary = unique("one"), unique("r"), nats_server.url, tmp_path / "diary"
    body = (
        "await ctx.checkpoint({'by': ctx.worker_id})\n"
        "        for _ in range(400 if ctx.worker_id == 'w1' else 0):\n"
        "            await asyncio.sleep(0.01)\n"
        "            await ctx.checkpoint({'by': ctx.worker_id, 'again': True})\n"
        "        await asyncio.sleep(3)"
    )
    plugins = "CheckpointPlugin()"
    async with connected(url) as nc:
        with (
            process(url, kind, diary, "w1", body=body, plugins=plugins) as first,
            process(url, kind, diary, "w2", body=body, plugins=plugins) as second,
        ):
            await in_charge(nc, kind, "w1", "w2", owner="w1")
            await publish(nc, kind, [run_id])
            await eventually(lambda: noted(diary, "begin", member="w1"), BOUND_S)
            first.signal(signal.SIGSTOP)
            await eventually(lambda: noted(diary, "begin", member="w2"), BOUND_S)
            first.signal(signal.SIGCONT)
            await eventually(
                lambda: [
                    *noted(diary, "CancelledError", member="w1"),
                    *noted(diary, "StaleAttemptError", member="w1"),
                ],
                BOUND_S,
                what="the zombie is told",
            )
            await eventually(lambda: noted(diary, "end", member="w2"), BOUND_S)
            await empty(nc, kind)
            assert not noted(diary, "end", member="w1")
            for one in (first, second):
                one.signal(signal.SIGTERM)
                await one.ended()
        assert await outcomes(nc, run_id) == [("step.completed", "w2")]
        stored = await (await nc.jetstream().key_value("checkpoints")).get(f"{run_id}.s0")
        assert stored.value == b'{"by":"w2"}'
        tokens = [int(one.step_id) for one in noted(diary, "begin")]
        assert tokens == sorted(set(tokens)), "the new holder's token is higher"
