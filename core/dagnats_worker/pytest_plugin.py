"""Fixtures for tests of handlers and plugins: a real NATS server, and one in memory.

Installing the project changes no test run. Name the fixtures where they are wanted, in the
``conftest.py`` at the root of a project or in the options of pytest:

```python
pytest_plugins = ["dagnats_worker.pytest_plugin"]
```

```toml
[tool.pytest.ini_options]
addopts = "-p dagnats_worker.pytest_plugin"
```

None of them is asynchronous, so they go with any plugin that runs asynchronous tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dagnats_worker._embedded import EmbeddedServer
from dagnats_worker.testing import FakeClock, MemoryServer, MemoryTransport, WorkerHarness
from dagnats_worker.testing._contract_base import skip_without_server
from dagnats_worker.testing._contract_ground import provisioned


@pytest.fixture
def nats_server() -> Iterator[EmbeddedServer]:
    """A nats-server of the test's own, with every stream and bucket; see ``nats_server.url``.

    Where there is no usable nats-server the test is skipped, with the reason; with ``CI=true`` in
    the environment it fails.
    """
    skip_without_server()
    with EmbeddedServer() as server:
        _in_a_thread(provisioned(server.url))
        yield server


@pytest.fixture
def memory_server() -> MemoryServer:
    """An in-memory server; the test moves its clock: ``memory_server.clock.advance(...)``."""
    return MemoryServer(clock=FakeClock())


@pytest.fixture
def memory_transport(memory_server: MemoryServer) -> MemoryTransport:
    """A connection to ``memory_server``, for one worker or one client."""
    return MemoryTransport(memory_server)


@pytest.fixture
def worker_harness(memory_server: MemoryServer) -> Callable[..., WorkerHarness]:
    """Makes a ``WorkerHarness`` on ``memory_server``; takes what the class takes.

    ``async with worker_harness({"resize": resize}, plugins=[...]) as harness: ...``
    """

    def make(*arguments: Any, **options: Any) -> WorkerHarness:
        return WorkerHarness(*arguments, **{"server": memory_server, **options})

    return make


def _in_a_thread(main: Coroutine[Any, Any, None]) -> None:
    """Run something on a loop of its own, whatever the test does with the thread's loop."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, main).result()
