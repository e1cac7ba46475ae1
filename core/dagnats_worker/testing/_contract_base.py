"""What a contract says of its plugin, and what its tests share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, ClassVar, NoReturn

from dagnats_worker._context import TaskContext
from dagnats_worker._server_process import find_server
from dagnats_worker.errors import RetryAfterError, StartError
from dagnats_worker.hookspecs import Plugin
from dagnats_worker.testing._contract_ground import Ground
from dagnats_worker.testing._contract_ground import ground as a_server
from dagnats_worker.testing._contract_run import CONFIG, Case, Handler

CI_VARIABLE = "CI"
AGAIN_AFTER = timedelta(milliseconds=100)


class ContractBase:
    """The plugin of a contract, and the workers that it is run in. See ``PluginContract``."""

    plugin_type: ClassVar[type[Plugin[Any]]]
    settings: ClassVar[Any] = None
    task_input: ClassVar[Any] = None
    task_headers: ClassVar[Mapping[str, str]] = {}
    task_options: ClassVar[Mapping[str, Any]] = {}
    needs_jetstream: ClassVar[bool] = False
    may_import: ClassVar[tuple[str, ...]] = ()
    import_times_max: ClassVar[float] = 2.0
    blocks_at_most: ClassVar[timedelta] = timedelta(milliseconds=50)

    def make(self) -> Plugin[Any]:
        """A new plugin with the settings of this contract; nothing is read from outside."""
        settings_type = self.plugin_type.settings_type
        if settings_type is None:
            return self.plugin_type()
        return self.plugin_type(self.settings if self.settings is not None else settings_type())

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run one test to its end, on a loop of its own."""
        asyncio.run(main)

    def ground(self) -> AbstractAsyncContextManager[Ground]:
        """A server of the test's own."""
        return a_server(CONFIG, real=self.needs_jetstream)

    def case(self) -> Case:
        """What each test runs: the plugin, and a task with the input and options given here."""
        return Case(self.make, self.task_input, self.task_headers, self.task_options)

    async def handle(self, ctx: TaskContext) -> dict[str, bool]:
        """The handler of the tests; uses each capability that the plugin says it provides."""
        for capability in self.plugin_type.provides:
            ctx.use(capability)
        return {"done": True}

    @property
    def fails_first(self) -> Handler:
        """A handler that fails once for each run, and then does what ``handle`` does."""
        failed: set[str] = set()

        async def handle(ctx: TaskContext) -> dict[str, bool]:
            if ctx.run_id not in failed:
                failed.add(ctx.run_id)
                raise RetryAfterError("failed by the contract", AGAIN_AFTER)
            return await self.handle(ctx)

        return handle


def skip(reason: str) -> NoReturn:
    """Leave a test out."""
    import pytest  # noqa: PLC0415 - the kit is used without pytest too

    pytest.skip(reason)


def skip_without_server() -> None:
    """Leave a test out where there is no usable nats-server; in CI, which has one, it fails."""
    import pytest  # noqa: PLC0415 - the kit is used without pytest too

    try:
        find_server()
    except StartError as error:
        if os.environ.get(CI_VARIABLE) == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
