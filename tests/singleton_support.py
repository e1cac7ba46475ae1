"""What the tests of singletons share: workers in this process and in others, and their diary.

Everything is real: the server, the processes, their signals.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from nats.aio.client import Client as NatsClient
from partitions_support import ACK_WAIT, BOUND_S, CONFIG, LEASE, covered
from support import eventually, stored_events
from worker_process import WorkerProcess, worker_process

from dagnats_worker import Plugin, Worker
from dagnats_worker_partitions import PartitionsPlugin, group_info
from dagnats_worker_singleton import SingletonPlugin, SingletonSettings

SETTINGS = SingletonSettings(ack_wait=ACK_WAIT, lease=LEASE)


def singleton_worker(url: str, name: str, *more: Plugin[Any], **options: Any) -> Worker:
    """A worker that can have singletons, and takes over quickly."""
    plugins = [SingletonPlugin(SETTINGS), PartitionsPlugin(), *more]
    return Worker(url, worker_id=name, plugins=plugins, config=CONFIG, **options)


@asynccontextmanager
async def standby(
    url: str, kind: str, handler: Callable[..., Any], name: str, **options: Any
) -> AsyncIterator[Worker]:
    """One of the workers of a singleton."""
    worker = singleton_worker(url, name)
    worker.handle_singleton(kind, handler, **options)
    async with worker:
        yield worker


PROCESS = """
from singleton_support import singleton_worker
from dagnats_worker_checkpoint import CheckpointPlugin
from dagnats_worker_singleton import FENCING
worker = singleton_worker(url, {name!r}, {plugins})
@worker.task(task_type, singleton=True, timeout=timedelta(seconds={timeout_s}))
async def handler(ctx):
    note(f"{{time.time()}} begin {{ctx.run_id}} {{ctx.use(FENCING).token}} {name}")
    try:
        {body}
    except BaseException as error:
        note(f"{{time.time()}} {{type(error).__name__}} {{ctx.run_id}} - {name}")
        raise
    note(f"{{time.time()}} end {{ctx.run_id}} - {name}")
    return {name!r}
"""


@contextmanager
def process(
    url: str,
    kind: str,
    diary: Path,
    name: str,
    *,
    body: str = "await asyncio.sleep(0.01)",
    timeout_s: float = 60,
    plugins: str = "",
) -> Iterator[WorkerProcess]:
    """A worker of a singleton in a process of its own; its handler writes into the diary."""
    code = PROCESS.format(name=name, body=body, timeout_s=timeout_s, plugins=plugins)
    if not plugins:
        code = code.replace("from dagnats_worker_checkpoint import CheckpointPlugin\n", "")
    with worker_process(url, kind, diary, code) as running:
        yield running


async def in_charge(nc: NatsClient, kind: str, *names: str, owner: str) -> None:
    """Wait until these are members, and the owner reads."""

    async def listed() -> bool:
        try:
            info = await group_info(nc, "TASK_QUEUES", f"workers-{kind}")
        except Exception:  # noqa: BLE001 - there is no group yet
            return False
        return set(info.record.config.members) == set(names)

    await eventually(listed, BOUND_S, what=f"{names} are members")
    await covered(nc, kind, owner)


async def outcomes(nc: NatsClient, run_id: str) -> list[tuple[str, str]]:
    """How the run ended, and who said so."""
    events = await stored_events(nc, run_id)
    ends = ("step.completed", "step.failed")
    return [(one["type"], one["worker_id"]) for one in events if one["type"] in ends]
