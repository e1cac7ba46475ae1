"""What is refused when a handler is registered, and what it is told.

Method: a registry, or a worker that is never started; real functions, real plugins. Nothing is
fake.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from tenacity import stop_after_attempt

from dagnats_worker import (
    Capability,
    Plugin,
    PluginError,
    Retry,
    StartError,
    SyncTaskContext,
    TaskContext,
    UsageError,
    Worker,
    typed,
)
from dagnats_worker._config import TASK_TIMEOUT_DEFAULT
from dagnats_worker._registry import CORE_OPTIONS, Registration, Registry

HOUR = timedelta(hours=1)


async def handler(ctx: TaskContext) -> None: ...


def blocking(ctx: SyncTaskContext) -> None: ...


def alone(number: int) -> int:
    return number


@dataclass(frozen=True)
class LimitOptions:
    rate: int = 10
    burst: int = 1


class LimitPlugin(Plugin[None]):
    name: ClassVar[str] = "limit"
    task_options = LimitOptions


@dataclass(frozen=True)
class ThrottleOptions:
    rate: float = 1.0


class ThrottlePlugin(Plugin[None]):
    name: ClassVar[str] = "throttle"
    task_options = ThrottleOptions


@dataclass(frozen=True)
class GreedyOptions:
    timeout: int = 1


class GreedyPlugin(Plugin[None]):
    name: ClassVar[str] = "greedy"
    task_options = GreedyOptions


class PlainPlugin(Plugin[None]):
    name: ClassVar[str] = "plain"


def register(
    function: Any = handler,
    *,
    plugins: tuple[Plugin[Any], ...] = (),
    max_tasks: int = 8,
    **options: Any,
) -> Registration:
    registry = Registry(max_tasks=max_tasks, processes_max=2)
    return registry.add("shout", function, options, plugins)


# Options of the core


def test_defaults() -> None:
    registration = register()
    assert registration.concurrency == 8
    assert registration.timeout == TASK_TIMEOUT_DEFAULT
    assert registration.ack_wait is None
    assert registration.heartbeat is True
    assert registration.needs == ()
    assert registration.plugin_options == {}
    assert isinstance(registration.retry, Retry)


def test_options_are_kept() -> None:
    retry = Retry(stop=stop_after_attempt(1))
    key: Capability[int] = Capability("numbers", install="numbers")
    registration = register(
        concurrency=3, timeout=HOUR, ack_wait=HOUR / 2, retry=retry, heartbeat=False, needs=[key]
    )
    assert (registration.concurrency, registration.timeout) == (3, HOUR)
    assert registration.ack_wait == HOUR / 2
    assert registration.retry is retry
    assert registration.heartbeat is False
    assert registration.needs == (key,)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"concurrency": 0}, ValueError, "concurrency is a whole number of at least 1, got 0"),
        ({"concurrency": -1}, ValueError, "concurrency"),
        ({"concurrency": 1.5}, ValueError, "concurrency"),
        ({"concurrency": True}, ValueError, "concurrency"),
        ({"timeout": 30}, TypeError, "timeout is a timedelta, got 30"),
        ({"timeout": None}, TypeError, "timeout"),
        ({"timeout": timedelta(0)}, ValueError, "timeout is longer than zero"),
        ({"ack_wait": 30}, TypeError, "ack_wait is a timedelta, got 30"),
        ({"ack_wait": -HOUR}, ValueError, "ack_wait is longer than zero"),
        ({"retry": 5}, TypeError, "retry is a Retry, got 5"),
        ({"retry": stop_after_attempt(5)}, TypeError, "retry is a Retry"),
        ({"executor": "fiber"}, TypeError, "executor"),
        ({"executor": "thread"}, TypeError, "async"),
        ({"heartbeat": "no"}, TypeError, "heartbeat is True or False, got 'no'"),
        ({"heartbeat": timedelta(seconds=5)}, TypeError, "heartbeat"),
        ({"unwrap_trigger": 1}, TypeError, "unwrap_trigger is True or False, got 1"),
        ({"needs": ["checkpoints"]}, TypeError, "needs is a list of capabilities"),
        ({"needs": Capability("numbers", install="numbers")}, TypeError, "needs is a list"),
        ({"needs": "checkpoints"}, TypeError, "needs is a list of capabilities"),
    ],
)
def test_option_that_cannot_work_is_refused_with_its_name_and_value(
    options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        register(**options)


def test_concurrency_is_bounded_by_the_worker() -> None:
    assert register(concurrency=100, max_tasks=4).concurrency == 4


def test_processes_bound_their_handlers_too() -> None:
    assert register(alone, executor="process").concurrency == 2
    assert register(alone, executor="process", concurrency=100).concurrency == 2
    assert register(alone).concurrency == 8


@pytest.mark.parametrize("task_type", ["", "a b", "a*", ">", "a..b", ".a", "a\n", "\x00"])
def test_task_type_that_is_no_subject_is_refused(task_type: str) -> None:
    with pytest.raises(ValueError, match="task type"):
        Registry(max_tasks=1, processes_max=1).add(task_type, handler, {}, ())


@pytest.mark.parametrize("task_type", [None, 7, b"shout"])
def test_task_type_that_is_no_text_is_refused(task_type: Any) -> None:
    with pytest.raises(TypeError, match="task type is a text"):
        Registry(max_tasks=1, processes_max=1).add(task_type, handler, {}, ())


@pytest.mark.parametrize("function", [None, 7, "handler", int, lambda: None])
def test_what_is_no_handler_is_refused(function: Any) -> None:
    with pytest.raises(TypeError, match="handler"):
        register(function)


def test_typed_handler_without_an_input_is_refused() -> None:
    registry = Registry(max_tasks=1, processes_max=1)
    with pytest.raises(TypeError, match="takes no input"):
        registry.add("shout", handler, {}, (), typed=True)
    with pytest.raises(TypeError, match="takes no input"):
        registry.add("shout", typed(handler), {}, ())


def test_task_type_has_one_handler_which_is_named() -> None:
    registry = Registry(max_tasks=1, processes_max=1)
    registry.add("shout", handler, {}, ())
    with pytest.raises(UsageError, match=r"'shout' is handled by .*test_registry.handler already"):
        registry.add("shout", blocking, {}, ())


def test_what_was_refused_leaves_no_trace() -> None:
    registry = Registry(max_tasks=1, processes_max=1)
    for options in ({"concurrency": 0}, {"colour": "red"}, {"retry": 1}):
        with pytest.raises((ValueError, TypeError, UsageError)):
            registry.add("shout", handler, options, ())
    assert list(registry.all) == []
    registry.add("shout", handler, {}, ())
    assert [registration.task_type for registration in registry.all] == ["shout"]


# Options of plugins


def test_plugin_finds_its_options_in_the_task_type() -> None:
    plugins = (LimitPlugin(), PlainPlugin())
    task = register(plugins=plugins, rate=5).for_group("gpu")
    assert task.options(LimitPlugin) == LimitOptions(rate=5, burst=1)
    assert (task.name, task.group, task.concurrency) == ("shout", "gpu", 8)
    assert register(plugins=plugins).for_group(None).options(LimitPlugin) == LimitOptions()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("concurency", "did you mean 'concurrency'"),
        ("retries", "did you mean 'retry'"),
        ("time_out", "did you mean 'timeout'"),
        ("rates", "did you mean 'rate'"),
        ("colour", "there are ack_wait, burst, concurrency"),
    ],
)
def test_option_that_nobody_understands_is_refused_with_a_suggestion(
    option: str, says: str
) -> None:
    with pytest.raises(UsageError, match=f"'{option}'; {says}"):
        register(plugins=(LimitPlugin(),), **{option: 1})


def test_every_option_of_the_core_is_listed_where_none_is_close() -> None:
    with pytest.raises(UsageError) as caught:
        register(xyz=1)
    for option in CORE_OPTIONS:
        assert option in str(caught.value)


def test_option_of_a_plugin_that_is_not_there_names_what_to_install() -> None:
    with pytest.raises(UsageError, match=r"pip install 'dagnats-worker\[singleton\]'"):
        register(singleton=True)


def test_two_plugins_with_one_option_are_refused() -> None:
    with pytest.raises(PluginError, match=r"'throttle' declares the task option 'rate', which ex"):
        register(plugins=(LimitPlugin(), ThrottlePlugin()))


def test_plugin_cannot_take_an_option_of_the_core() -> None:
    with pytest.raises(PluginError, match=r"'greedy' declares the task option 'timeout'"):
        register(plugins=(GreedyPlugin(),))


# Names that collide


def collisions(*task_types: str, groups: tuple[str, ...] = ()) -> None:
    registry = Registry(max_tasks=1, processes_max=1)
    for task_type in task_types:
        registry.add(task_type, handler, {}, ())
    registry.check_names(groups)


def test_different_names_live_side_by_side() -> None:
    collisions("shout", "whisper", "shouting", groups=())
    collisions("shout", "whisper", groups=("gpu", "cpu"))


@pytest.mark.parametrize(
    ("task_types", "groups", "says"),
    [
        (("a.b", "a-b"), (), "would share the durable consumer 'workers-a-b'"),
        (("a", "a.b"), (), "overlap: 'task.a.>' and 'task.a.b.>'"),
        (("a", "a.b"), ("b",), "overlap"),
        (("a",), ("b", "b"), "registered twice"),
    ],
)
def test_names_that_collide_are_refused_and_both_are_named(
    task_types: tuple[str, ...], groups: tuple[str, ...], says: str
) -> None:
    with pytest.raises(StartError, match=says) as caught:
        collisions(*task_types, groups=groups)
    for name in task_types:
        assert repr(name) in str(caught.value)


def test_every_collision_is_named_at_once() -> None:
    with pytest.raises(StartError) as caught:
        collisions("a.b", "a-b", "c", "c.d")
    assert "'workers-a-b'" in str(caught.value)
    assert "'task.c.>'" in str(caught.value)


# Through the worker


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    for variable in [name for name in os.environ if name.startswith("DAGNATS_WORKER")]:
        monkeypatch.delenv(variable)
    return Worker("nats://127.0.0.1:1", plugins=[])


def test_decorator_leaves_the_function_as_it_is(worker: Worker) -> None:
    assert worker.task("shout")(handler) is handler
    assert worker.task("whisper", concurrency=2)(blocking) is blocking
    assert worker.task_types == ("shout", "whisper")


def test_typed_registration_insists_on_an_input(worker: Worker) -> None:
    worker.handle_typed("double", alone)
    with pytest.raises(TypeError, match="takes no input"):
        worker.handle_typed("shout", handler)


def test_singleton_without_its_plugin_names_what_to_install(worker: Worker) -> None:
    with pytest.raises(UsageError, match=r"pip install 'dagnats-worker\[singleton\]'"):
        worker.handle_singleton("shout", handler)


async def test_worker_without_handlers_does_not_start(worker: Worker) -> None:
    with pytest.raises(StartError, match=r"no handlers; register one with @worker.task"):
        await worker.start()


async def test_partitions_without_their_plugin_name_what_to_install() -> None:
    worker = Worker("nats://127.0.0.1:1", partitions=4, plugins=[])
    with pytest.raises((StartError, UsageError), match=r"pip install 'dagnats-worker\[part"):  # noqa: PT012 - either of the two may say it
        worker.handle("shout", handler)
        await worker.start()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"max_tasks": 0}, ValueError, "max_tasks is a whole number of at least 1, got 0"),
        ({"max_tasks": 2.0}, ValueError, "max_tasks"),
        ({"max_tasks": True}, ValueError, "max_tasks"),
        ({"groups": "gpu"}, TypeError, "groups is a list of names, got .*'gpu'"),
        ({"groups": ["a b"]}, ValueError, "group 'a b'"),
        ({"groups": [""]}, ValueError, "group is empty"),
        ({"groups": [7]}, TypeError, "group is a text, got 7"),
        ({"worker_id": ""}, ValueError, "worker id ''"),
        ({"worker_id": "a.b"}, ValueError, "worker id 'a.b'"),
        ({"worker_id": 7}, TypeError, "worker id is a text"),
        ({"partitions": -1}, ValueError, "partitions"),
        ({"partitions": 257}, ValueError, "at most 256"),
        ({"partitions": "2"}, TypeError, "partitions is a whole number"),
        ({"partitions": True}, TypeError, "partitions"),
    ],
)
def test_worker_refuses_what_cannot_work(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        Worker("nats://127.0.0.1:1", plugins=[], **arguments)


def test_worker_ids_sort_by_the_time_they_were_made() -> None:
    ids = [Worker("nats://127.0.0.1:1", plugins=[]).worker_id for _ in range(3)]
    assert len(set(ids)) == 3
    assert [one[:-6] for one in ids] == sorted(one[:-6] for one in ids)
    assert all(one.startswith("worker-") for one in ids)
