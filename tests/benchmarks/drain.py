"""How fast tasks are drained: every loop of ``loops.py``, interleaved, medians and ratios.

    python tests/benchmarks/drain.py --tasks 10000 --concurrency 128 --repeat 5

A run counts only when the queue is empty at the end and the history holds two events per task.
Absolute rates depend on the machine and on what else it does; the ratios are what to look at.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import nats
from nats.js import JetStreamContext

from dagnats_worker import EmbeddedServer, provision
from dagnats_worker._jetstream.consumers import consumer_config
from dagnats_worker._transport import ConsumerSpec

LOOPS = Path(__file__).parent / "loops.py"
DEFAULT_LOOPS = ["idiom", "lean", "worker"]
STREAM = "TASK_QUEUES"
TRIES_MAX = 3
SETTLE_S = 1.2
"""Tasks are older than a second when they are drained, as in any real backlog."""


async def measure(
    url: str,
    loop: str,
    tasks: int,
    concurrency: int,
    *,
    script: Path = LOOPS,
    traced: bool = False,
) -> tuple[float, float]:
    """Fill the queue, let one process drain it.

    Args:
        script: Has the loop; called as ``loops.py`` is.
        traced: Each task comes with a trace of its own, as an engine sends it.

    Returns:
        Tasks per second, and the CPU time of that process per task in microseconds.
    """
    client = await nats.connect(url)
    js = client.jetstream()
    await _reset(js, client)
    prefix = secrets.token_hex(4)  # purging does not empty the dedup window
    await _submit(js, tasks, prefix, traced=traced)
    await asyncio.sleep(SETTLE_S)
    arguments = [sys.executable, str(script), loop, url, str(tasks), str(concurrency)]
    process = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"the loop {loop} failed")
    left = (await js.stream_info(STREAM)).state.messages
    events = (await js.stream_info("WORKFLOW_HISTORY")).state.messages
    await client.close()
    if left or events != 2 * tasks:
        raise SystemExit(f"{loop} does not count: {left} tasks left, {events} events")
    took_s, cpu_s = map(float, output.split())
    return tasks / took_s, cpu_s / tasks * 1e6


async def _reset(js: JetStreamContext, client: nats.NATS) -> None:
    await js.purge_stream("WORKFLOW_HISTORY")
    await js.purge_stream(STREAM)
    spec = ConsumerSpec(STREAM, "workers-noop", "task.noop.>")
    body = {"stream_name": STREAM, "config": consumer_config(spec), "action": ""}
    subject = f"$JS.API.CONSUMER.CREATE.{STREAM}.{spec.name}.{spec.filter_subject}"
    await client.request(subject, json.dumps(body).encode())


async def _submit(js: JetStreamContext, tasks: int, prefix: str, *, traced: bool) -> None:
    for first in range(0, tasks, 500):
        futures = [
            await js.publish_async(
                f"task.noop.{prefix}{number}",
                _task(f"{prefix}{number}"),
                headers={"traceparent": _trace()} if traced else None,
            )
            for number in range(first, min(first + 500, tasks))
        ]
        await asyncio.gather(*futures)


def _trace() -> str:
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def _task(run_id: str) -> bytes:
    task = {
        "task_id": f"{run_id}.noop",
        "run_id": run_id,
        "step_id": "noop",
        "input": {"number": 7, "text": "x" * 60},
        "dispatch_nonce": "5d41402abc4b2a76b9719d911017c592",
    }
    return json.dumps(task).encode()


async def compare(
    loops: list[str], tasks: int, concurrency: int, repeat: int, **more: Any
) -> dict[str, float]:
    """Run every loop ``repeat`` times, in turn, and return the median of each one's ratios.

    Args:
        more: As for ``measure``.
    """
    rates: dict[str, list[float]] = {loop: [] for loop in loops}
    cpus_us: dict[str, list[float]] = {loop: [] for loop in loops}
    async with EmbeddedServer() as server:
        client = await nats.connect(server.url)
        await provision(client.jetstream())
        await client.close()
        for number in range(repeat):
            for loop in loops:
                rate, cpu_us = await measure(server.url, loop, tasks, concurrency, **more)
                rates[loop].append(rate)
                cpus_us[loop].append(cpu_us)
                print(f"  {number + 1}/{repeat} {loop:<10} {rate:8.0f} tasks/s", file=sys.stderr)
    first = loops[0]
    print(f"{tasks} tasks, concurrency {concurrency}, median of {repeat}, ratio to {first}")
    for loop in loops:
        ratios = [rate / base for rate, base in zip(rates[loop], rates[first], strict=True)]
        median = statistics.median(rates[loop])
        cpu_us = statistics.median(cpus_us[loop])
        ratio = statistics.median(ratios)
        print(f"  {loop:<10} {median:8.0f} tasks/s   x {ratio:.2f}   {cpu_us:4.0f} us CPU a task")
    return {
        loop: statistics.median(
            rate / base for rate, base in zip(rates[loop], rates[first], strict=True)
        )
        for loop in loops
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--loops", nargs="+", default=DEFAULT_LOOPS)
    parser.add_argument(
        "--at-least",
        metavar="LOOP=RATIO",
        help=f"fail when this loop's ratio stays below that in {TRIES_MAX} comparisons",
    )
    options = parser.parse_args()
    arguments = (options.loops, options.tasks, options.concurrency, options.repeat)
    if options.at_least is None:
        asyncio.run(compare(*arguments))
        return
    loop, _, wanted = options.at_least.partition("=")
    for _ in range(TRIES_MAX):  # another program on the machine can spoil one comparison
        if asyncio.run(compare(*arguments))[loop] >= float(wanted):
            return
    raise SystemExit(f"{loop} stays below {wanted} times {options.loops[0]}")


if __name__ == "__main__":
    main()
