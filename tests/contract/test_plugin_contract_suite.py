"""The contract of all plugins catches what it is there for, and passes what is right.

Method: for each check one plugin that breaks it, in a module of its own; the check is called, and
has to fail with what is wrong. Real: the contract, the worker, the fresh interpreters that import
the plugins. Fake: the server, which is in memory; but for the one plugin that asks for a real one.
"""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributions import distribution

from dagnats_worker import Plugin
from dagnats_worker._discovery import forget_installed
from dagnats_worker.testing import PluginContract, _contract_live, _contract_run

HEAD = """
from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path

from dagnats_worker import Capability, Completed, DelayTask, EndTask, Plugin, hookimpl

KEY: Capability[str] = Capability("gift", install="gift")
"""

GOOD = """
class Color(Enum):
    RED = "red"
    BLUE = "blue"

@dataclass(frozen=True, slots=True)
class Inner:
    size: int = 3
    note: str | None = None

@dataclass(frozen=True, slots=True)
class Settings:
    bucket: str = "gifts"
    color: Color = Color.RED
    every: timedelta = timedelta(milliseconds=1500)
    factor: float = 0.5
    file: Path | None = None
    inner: Inner = Inner()
    names: tuple[str, ...] = ("a", "b")
    on: bool = False
    tags: frozenset[str] = frozenset({"x", "y"})
    text: str = 'with "quotes", \\\\ and = # signs'

@dataclass(frozen=True)
class Options:
    wrapped: bool = False

class One(Plugin[Settings]):
    name = "one"
    settings_type = Settings
    task_options = Options
    provides = (KEY,)

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker) -> AsyncIterator[None]:
        kv = await worker.create_kv("gifts")
        worker.provide(KEY, lambda ctx: "gift")
        worker.spawn(self.idle, "idle")
        await kv.put("started", b"yes")
        yield
        await kv.put("started", b"no")

    async def idle(self) -> None:
        await asyncio.sleep(3600)

    @hookimpl
    async def open_source(self, worker, task):
        await asyncio.sleep(0)

    @hookimpl
    @asynccontextmanager
    async def task_scope(self, ctx) -> AsyncIterator[None]:
        await asyncio.sleep(0.001)
        try:
            yield
        finally:
            await asyncio.sleep(0.001)

    @hookimpl
    async def pre_handle(self, ctx) -> None:
        await asyncio.to_thread(time.sleep, 0.001)

    @hookimpl
    async def pre_publish(self, ctx, message) -> None:
        message.headers["Gift"] = "yes"
        await asyncio.sleep(0)

    @hookimpl
    async def on_error(self, error, outcome) -> None:
        await asyncio.sleep(0)

    @hookimpl
    @asynccontextmanager
    async def outcome_scope(self, ctx, outcome) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        yield

    @hookimpl
    def on_complete(self, outcome) -> None:
        pass

    @hookimpl
    @contextmanager
    def child_scope(self, carrier):
        yield
"""


@pytest.fixture
def plugin_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], type[Any]]]:
    """Writes a module with a plugin ``One``, and returns the class."""
    monkeypatch.syspath_prepend(tmp_path)
    forget_installed()
    name = f"gifts_{tmp_path.name}"

    def write(source: str) -> type[Any]:
        tmp_path.joinpath(f"{name}.py").write_text(HEAD + textwrap.dedent(source))
        importlib.invalidate_caches()
        found: type[Any] = importlib.import_module(name).One
        return found

    yield write
    sys.modules.pop(name, None)
    forget_installed()


def contract_of(plugin: type[Any], **attributes: Any) -> PluginContract:
    contract: type[PluginContract] = type(
        "Contract", (PluginContract,), {"plugin_type": plugin, **attributes}
    )
    return contract()


CHECKS = sorted(name for name in dir(PluginContract) if name.startswith("test_"))


def test_these_are_the_checks() -> None:
    assert CHECKS == [
        "test_a_hook_that_is_cancelled_lets_go",
        "test_a_task_that_fails_and_comes_again_is_completed_once",
        "test_a_task_that_is_cancelled_leaves_nothing",
        "test_a_task_whose_ack_is_lost_is_completed_once",
        "test_a_task_whose_worker_dies_is_completed_by_another",
        "test_each_of_its_settings_can_be_given_from_outside",
        "test_importing_it_does_nothing_else",
        "test_importing_it_is_quick",
        "test_it_provides_what_it_says",
        "test_it_starts_and_stops_and_starts_again",
        "test_its_child_scope_wraps_a_process_handler",
        "test_its_hooks_are_those_of_the_specification",
        "test_its_name_is_that_of_its_entry_point",
        "test_its_settings_are_a_frozen_dataclass",
        "test_its_task_options_are_a_frozen_dataclass_with_defaults",
        "test_no_hook_blocks_the_event_loop",
    ]


@pytest.mark.parametrize("check", CHECKS)
def test_plugin_that_does_everything_right_passes(
    check: str, plugin_type: Callable[[str], type[Any]], tmp_path: Path
) -> None:
    plugin = plugin_type(GOOD)
    entry = f"{plugin.__module__}:One"
    distribution(tmp_path, "one-plugin", plugins={"one": entry})
    forget_installed()
    getattr(contract_of(plugin), check)()


def one(body: str, head: str = "") -> str:
    """A plugin with a body of its own."""
    text = textwrap.dedent(head) + '\nclass One(Plugin[None]):\n    name = "one"\n'
    return text + textwrap.indent(textwrap.dedent(body), "    ")


WITHOUT_DEFAULT = "@dataclass(frozen=True)\nclass Settings:\n    size: int\n"
HOOK = """
@hookimpl
async def pre_handle(self, ctx):
    {}
"""
SCOPE = """
@hookimpl
@asynccontextmanager
async def {}(self, {}):
    {}
"""

BAD: dict[str, tuple[str, str, str]] = {
    "hook misspelt": (
        "test_its_hooks_are_those_of_the_specification",
        one("@hookimpl\ndef pre_handel(self, ctx): ..."),
        "did you mean 'pre_handle'",
    ),
    "argument misspelt": (
        "test_its_hooks_are_those_of_the_specification",
        one("@hookimpl\ndef pre_handle(self, context): ..."),
        "there is no argument 'context'",
    ),
    "hook not marked": (
        "test_its_hooks_are_those_of_the_specification",
        one("async def pre_handle(self, ctx): ..."),
        "pre_handle is not marked as a hook; put @hookimpl above it",
    ),
    "scope is no context manager": (
        "test_its_hooks_are_those_of_the_specification",
        one("@hookimpl\nasync def task_scope(self, ctx): yield"),
        "@asynccontextmanager",
    ),
    "settings not frozen": (
        "test_its_settings_are_a_frozen_dataclass",
        one("settings_type = Settings", "@dataclass\nclass Settings:\n    size: int = 1\n"),
        "Settings is not frozen",
    ),
    "settings no dataclass": (
        "test_its_settings_are_a_frozen_dataclass",
        one("settings_type = dict"),
        "dict is not a dataclass",
    ),
    "setting without default": (
        "test_its_settings_are_a_frozen_dataclass",
        one(
            "settings_type = Settings", "@dataclass(frozen=True)\nclass Settings:\n    size: int\n"
        ),
        r"the settings \['size'\] have no default",
    ),
    "setting of a type that no text can give": (
        "test_each_of_its_settings_can_be_given_from_outside",
        one(
            "settings_type = Settings",
            "@dataclass(frozen=True)\nclass Settings:\n    call: type = int\n",
        ),
        "cannot be given as option",
    ),
    "setting that is not what it was": (
        "test_each_of_its_settings_can_be_given_from_outside",
        one(
            "settings_type = Settings",
            """
            @dataclass(frozen=True)
            class Settings:
                names: tuple[str, ...] = ("a,b",)
            """,
        ),
        r"names = \('a,b',\), given as option, is read as \('a', 'b'\)",
    ),
    "task option without default": (
        "test_its_task_options_are_a_frozen_dataclass_with_defaults",
        one("task_options = Options", "@dataclass(frozen=True)\nclass Options:\n    size: int\n"),
        r"the task options \['size'\] have no default",
    ),
    "task option of the core": (
        "test_its_task_options_are_a_frozen_dataclass_with_defaults",
        one(
            "task_options = Options",
            "@dataclass(frozen=True)\nclass Options:\n    timeout: int = 1\n",
        ),
        "declares the task option 'timeout', which exists already",
    ),
    "import starts a thread": (
        "test_importing_it_does_nothing_else",
        one("", "import threading\nthreading.Thread(target=lambda: None, daemon=True).start()\n"),
        "importing it does threading.Thread.start",
    ),
    "import opens a socket": (
        "test_importing_it_does_nothing_else",
        one("", "import socket\nsocket.socket().close()\n"),
        "importing it does socket.__new__",
    ),
    "import starts a process": (
        "test_importing_it_does_nothing_else",
        one("", "import subprocess\nsubprocess.run(['true'])\n"),
        "importing it does .*subprocess.Popen",
    ),
    "import configures logging": (
        "test_importing_it_does_nothing_else",
        one("", "import logging\nlogging.basicConfig(level='DEBUG')\n"),
        "importing it changes handlers of the root logger, level of the root logger",
    ),
    "import handles a signal": (
        "test_importing_it_does_nothing_else",
        one("", "import signal\nsignal.signal(signal.SIGUSR1, signal.SIG_IGN)\n"),
        "importing it changes signal handlers",
    ),
    "import sets a variable": (
        "test_importing_it_does_nothing_else",
        one("", "import os\nos.environ['GIFTS'] = '1'\n"),
        "importing it changes environment variables",
    ),
    "import imports nats": (
        "test_importing_it_does_nothing_else",
        one("", "import nats\n"),
        "importing it imports nats",
    ),
    "import takes long": (
        "test_importing_it_is_quick",
        one("", "for _ in range(20_000_000): pass\n"),
        "times as long as importing the core",
    ),
    "import fails": (
        "test_importing_it_is_quick",
        one("", "import sys\nassert 'pytest' in sys.modules\n"),
        "in a fresh interpreter fails",
    ),
    "start fails the second time": (
        "test_it_starts_and_stops_and_starts_again",
        one(
            "started = False\n"
            + SCOPE.format(
                "worker_scope", "worker", "assert not self.started; self.started = True; yield"
            )
        ),
        "plugin 'one', entering worker_scope",
    ),
    "stop leaves a task": (
        "test_it_starts_and_stops_and_starts_again",
        one(
            SCOPE.format(
                "worker_scope",
                "worker",
                "self.task = asyncio.create_task(asyncio.sleep(3600), name='lost'); yield",
            )
        ),
        "left behind: .*the asyncio task 'lost'",
    ),
    "stop leaves a thread": (
        "test_it_starts_and_stops_and_starts_again",
        one(
            SCOPE.format(
                "worker_scope",
                "worker",
                "import threading; event = threading.Event(); threading.Thread(target=event.wait, "
                "args=(30,), name='lost', daemon=True).start(); yield",
            )
        ),
        "left behind: .*the thread 'lost'",
    ),
    "stop leaves a watch": (
        "test_it_starts_and_stops_and_starts_again",
        one(
            """
            @hookimpl
            @asynccontextmanager
            async def worker_scope(self, worker):
                kv = await worker.create_kv("gifts")
                await kv.put("a", b"1")
                self.watch = kv.watch(">")
                await anext(self.watch)
                yield
            """
        ),
        "a subscription or a watch of a bucket was left open",
    ),
    "stop fails": (
        "test_it_starts_and_stops_and_starts_again",
        one(SCOPE.format("worker_scope", "worker", "yield; raise ValueError('no end')")),
        "no end",
    ),
    "background work fails": (
        "test_it_starts_and_stops_and_starts_again",
        one(
            SCOPE.format("worker_scope", "worker", "worker.spawn(self.work, 'work'); yield")
            + "async def work(self):\n    raise ValueError('no work')\n"
        ),
        "no work",
    ),
    "hook of a task fails": (
        "test_it_starts_and_stops_and_starts_again",
        one("@hookimpl\nasync def on_complete(self, ctx): raise ValueError('no end')"),
        "on_complete raised:.*no end",
    ),
    "capability not declared": (
        "test_it_provides_what_it_says",
        one(SCOPE.format("worker_scope", "worker", "worker.provide(KEY, lambda ctx: 'x'); yield")),
        r"it provides \['gift'\] and does not say so",
    ),
    "capability not provided": (
        "test_it_provides_what_it_says",
        one("provides = (KEY,)"),
        r"it says that it provides \['gift'\], and does not",
    ),
    "hook sleeps": (
        "test_no_hook_blocks_the_event_loop",
        one(HOOK.format("await asyncio.sleep(0); time.sleep(0.08)")),
        "pre_handle keeps it for .* ms at least, each time",
    ),
    "plain hook sleeps": (
        "test_no_hook_blocks_the_event_loop",
        one("@hookimpl\ndef on_error(self): time.sleep(0.08)"),
        "on_error keeps it for",
    ),
    "scope sleeps at its end": (
        "test_no_hook_blocks_the_event_loop",
        one(SCOPE.format("task_scope", "ctx", "yield; time.sleep(0.08)")),
        r"task_scope \(leaving\) keeps it for",
    ),
    "hook swallows cancellation": (
        "test_a_hook_that_is_cancelled_lets_go",
        one(
            """
            @hookimpl
            async def pre_handle(self, ctx):
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    pass
            """
        ),
        "pre_handle was cancelled and went on",
    ),
    "start swallows cancellation": (
        "test_a_hook_that_is_cancelled_lets_go",
        one(
            """
            @hookimpl
            @asynccontextmanager
            async def worker_scope(self, worker):
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    pass
                yield
            """
        ),
        r"worker_scope \(entering\) was cancelled and went on",
    ),
    "cancelled start leaves a task": (
        "test_a_hook_that_is_cancelled_lets_go",
        one(
            """
            @hookimpl
            @asynccontextmanager
            async def worker_scope(self, worker):
                task = asyncio.create_task(asyncio.sleep(3600), name="lost")
                await asyncio.sleep(0.01)
                yield
                task.cancel()
            """
        ),
        "left behind: .*the asyncio task 'lost'",
    ),
    "cancelled hook breaks the next delivery": (
        "test_a_hook_that_is_cancelled_lets_go",
        one(
            """
            @hookimpl
            async def pre_handle(self, ctx):
                assert ctx.run_id not in vars(self), "still held"
                vars(self)[ctx.run_id] = True
                await asyncio.sleep(0.001)
                del vars(self)[ctx.run_id]
            """
        ),
        "still held",
    ),
    "redelivery is refused": (
        "test_a_task_that_fails_and_comes_again_is_completed_once",
        one(HOOK.format("assert ctx.deliveries == 1, 'seen before'")),
        "seen before",
    ),
    "task never ends": (
        "test_a_task_that_fails_and_comes_again_is_completed_once",
        one(HOOK.format("raise DelayTask(timedelta(milliseconds=100))")),
        "give the contract settings, task_input, task_headers or task_options",
    ),
    "lost ack breaks the end": (
        "test_a_task_whose_ack_is_lost_is_completed_once",
        one("@hookimpl\nasync def on_complete(self, ctx): raise ValueError('no end')"),
        "no end",
    ),
    "other worker is refused": (
        "test_a_task_whose_worker_dies_is_completed_by_another",
        one(
            "held = set()\n"
            + SCOPE.format(
                "task_scope",
                "ctx",
                "assert ctx.run_id not in self.held, 'held'; self.held.add(ctx.run_id); yield; "
                "self.held.remove(ctx.run_id)",
            )
        ),
        "held",
    ),
    "scope fails when its task is cancelled": (
        "test_a_task_that_is_cancelled_leaves_nothing",
        one(
            """
            @hookimpl
            @asynccontextmanager
            async def task_scope(self, ctx):
                try:
                    yield
                finally:
                    if ctx.outcome is None:
                        raise ValueError("no outcome")
            """
        ),
        "no outcome",
    ),
    "child scope fails": (
        "test_its_child_scope_wraps_a_process_handler",
        one(
            "@hookimpl\n@contextmanager\ndef child_scope(self, carrier):\n    raise ValueError('x')"
        ),
        "a task is not done",
    ),
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong stays wrong, so there is nothing to wait for."""
    monkeypatch.setattr(_contract_run, "WITHIN_S", 1.5)
    monkeypatch.setattr(_contract_live, "ROUNDS_MAX", _contract_live.ROUNDS)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", BAD)
def test_check_catches(name: str, plugin_type: Callable[[str], type[Any]], tmp_path: Path) -> None:
    check, source, text = BAD[name]
    if "importing" in check:  # in the child only; nobody wants to have it here
        module = f"never_imported_{tmp_path.name}"
        tmp_path.joinpath(f"{module}.py").write_text(HEAD + source)
        contract = contract_of(type("One", (Plugin,), {"name": "one", "__module__": module}))
    else:
        contract = contract_of(plugin_type(source))
    with pytest.raises(Exception, match=f"(?s){text}"):
        getattr(contract, check)()


def test_every_check_catches_something() -> None:
    caught = {check for check, _, _ in BAD.values()}
    assert caught == set(CHECKS) - {"test_its_name_is_that_of_its_entry_point"}


def test_name_that_is_not_that_of_the_entry_point_is_caught(
    plugin_type: Callable[[str], type[Any]], tmp_path: Path
) -> None:
    plugin = plugin_type(one(""))
    distribution(tmp_path, "one-plugin", plugins={"two": f"{plugin.__module__}:One"})
    forget_installed()
    with pytest.raises(AssertionError, match=r"is called 'one', its entry point is called \['two'"):
        contract_of(plugin).test_its_name_is_that_of_its_entry_point()


def test_plugin_that_is_not_installed_is_no_failure(
    plugin_type: Callable[[str], type[Any]],
) -> None:
    with pytest.raises(pytest.skip.Exception, match="no distribution that is installed"):
        contract_of(plugin_type(one(""))).test_its_name_is_that_of_its_entry_point()


def test_setting_without_default_is_fine_where_the_contract_gives_one(
    plugin_type: Callable[[str], type[Any]],
) -> None:
    head = "@dataclass(frozen=True)\nclass Settings:\n    size: int\n"
    plugin = plugin_type(one("settings_type = Settings", head))
    contract = contract_of(plugin, settings=plugin.settings_type(size=3))
    contract.test_its_settings_are_a_frozen_dataclass()
    contract.test_each_of_its_settings_can_be_given_from_outside()


@pytest.mark.server
@pytest.mark.usefixtures("server_installed")
@pytest.mark.parametrize(
    "check", [name for name in CHECKS if "_a_task_" in name or "starts" in name]
)
def test_plugin_that_needs_jetstream_is_run_on_a_real_server(
    check: str, plugin_type: Callable[[str], type[Any]]
) -> None:
    plugin = plugin_type(one(SCOPE.format("worker_scope", "worker", "worker.jetstream; yield")))
    if "dies" not in check:
        getattr(contract_of(plugin, needs_jetstream=True), check)()
    with pytest.raises(Exception, match="no JetStream behind the in-memory"):
        getattr(contract_of(plugin), check)()
