"""The public API: its names, their documentation, the signatures that others rely on, its imports.

Method: the package is looked at, and imported in an interpreter of its own. Nothing is fake.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from types import ModuleType
from typing import Any

import pytest

import dagnats_worker
from dagnats_worker import SyncTaskContext, TaskContext, errors, hookspecs, testing

NAMES = """
    CHECKPOINTS SIGNALS BaseContext Capability CapabilityMissingError Checkpointable Client
    Completed ConnectError Continued Credentials DagnatsError DelayTask Delivery EmbeddedServer
    EndTask EngineError Entry Failed HTTPEnvelope Handler KeepAlive KeyValue KeyValueError
    Message NonRetryableError Outcome Paused Plugin PluginError ReleaseTask Released Retry
    RetryAfterError Run RunCancelledError RunEvent RunStatus SignalTimeoutError Signaler
    SkipTask Slots Source StartError Stats StepStatus SyncTaskContext TaskContext
    TaskFailedError TaskType TransportError TriggerEnvelope TypedHandler UsageError Worker
    WorkerConfig WorkerFacade hookimpl provision typed
""".split()  # noqa: SIM905 - a list of this length is read as a text
"""What users import from ``dagnats_worker``. A name that is taken out breaks them."""

CONTEXT: dict[str, str] = {
    "attempt": "int",
    "carrier": "dict[str, str]",
    "checkpoint": "async (self, state: Any) -> None",
    "complete": "(self, *output: Any) -> None",
    "continue_": "(self, *output: Any) -> None",
    "deliveries": "int",
    "started_sequence": "int",
    "delivery": "Delivery",
    "fail": "(self, error: BaseException | str) -> None",
    "fail_permanent": "(self, error: BaseException | str) -> None",
    "fail_retry_after": "(self, error: BaseException | str, delay: timedelta) -> None",
    "handler_duration": "timedelta | None",
    "headers": "Mapping[str, str]",
    "heartbeat": "async (self) -> None",
    "input": "bytes",
    "iteration": "int",
    "json": "(self) -> Any",
    "kept_task": "(self) -> KeptTask",
    "load_checkpoint": "async (self) -> bytes | None",
    "log": "TaskLogger",
    "metadata": "Mapping[str, str]",
    "options": "(self, plugin: type[Plugin[Any]]) -> Any",
    "outcome": "Outcome | None",
    "pause": "async (self, name: str, duration: timedelta) -> None",
    "put_stream": "async (self, data: Any) -> None",
    "record": "(self, outcome: Outcome) -> None",
    "retry_count": "int",
    "run_id": "str",
    "send_signal": "async (self, run_id: str, name: str, data: Any) -> None",
    "step_id": "str",
    "task_id": "str",
    "task_type": "str",
    "trace_headers": "dict[str, str]",
    "use": "(self, capability: Capability[T]) -> T",
    "wait_for_signal": (
        "async (self, name: str, timeout: timedelta, *, park: bool = False) -> bytes"
    ),
    "worker_id": "str",
    "workflow_name": "str",
}
"""What both contexts have, as the async one has it; the blocking one is never async."""

OF_ASYNC = {"cancelled": "asyncio.Event", "sync": "(self) -> SyncTaskContext"}
OF_BLOCKING = {"cancelled": "threading.Event", "run": "(self, awaitable: Awaitable[T]) -> T"}
INTERNAL = {"abandoned"}
"""The core's own, and no promise to anybody."""

HEAVY = {"nats", "stevedore", "pydantic", "rich", "click", "hypothesis", "pytest", "uvloop"}
"""What a program does not pay for that only imports the package."""


# ------------------------------------------------------------------------- names


def test_public_names_are_exactly_these() -> None:
    assert sorted(dagnats_worker.__all__) == sorted(NAMES)
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("module", [dagnats_worker, testing, errors, hookspecs])
def test_public_names_exist_and_are_sorted(module: ModuleType) -> None:
    names = module.__all__
    assert [name for name in names if not hasattr(module, name)] == []
    assert list(names) == sorted(names, key=lambda name: (not name.isupper(), name))


@pytest.mark.parametrize("module", [dagnats_worker, testing])
def test_nothing_else_looks_public(module: ModuleType) -> None:
    others = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert others - {"annotations"} == set(module.__all__)


# ------------------------------------------------------------------------- documentation


def public_objects() -> list[tuple[str, Any]]:
    """Everything with a docstring of its own: what is exported, and its public members."""
    found: list[tuple[str, Any]] = []
    for module in (dagnats_worker, testing):
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, type):
                found.append((name, value))
                found += [(f"{name}.{member}", thing) for member, thing in _members(value)]
            elif inspect.isfunction(value):
                found.append((name, value))
    return found


def _members(kind: type[Any]) -> list[tuple[str, Any]]:
    return [
        (name, thing)
        for base in kind.__mro__
        if base.__module__.startswith("dagnats_worker")
        for name, thing in vars(base).items()
        if not name.startswith("_")
        and (inspect.isfunction(thing) or isinstance(thing, property | classmethod | staticmethod))
    ]


SAID_ELSEWHERE = ("MemoryTransport.", "PluginContract.test_")
"""Members of a protocol that says what each is for, and tests, whose names are sentences."""


def test_every_public_name_says_what_it_is_for() -> None:
    objects = dict(public_objects())
    assert len(objects) > 150, "the members are found"
    silent = [
        name
        for name, value in objects.items()
        if not name.startswith(SAID_ELSEWHERE)
        and not (getattr(value, "__doc__", None) or "").strip()
    ]
    assert silent == []


def test_documentation_of_a_dataclass_is_not_its_signature() -> None:
    generated = [
        name for name, value in public_objects() if (value.__doc__ or "").startswith(f"{name}(")
    ]
    assert generated == []


@pytest.mark.parametrize("name", ["Worker", "Client", "EmbeddedServer", "Run"])
def test_documented_arguments_are_those_that_there_are(name: str) -> None:
    kind = getattr(dagnats_worker, name)
    documented = _section(kind, "Args")
    actual = set(inspect.signature(kind).parameters)
    assert documented <= actual
    if documented:
        assert actual - documented == set()


@pytest.mark.parametrize(
    "method",
    [
        dagnats_worker.Worker.handle,
        dagnats_worker.Worker.task,
        dagnats_worker.Worker.stop,
        dagnats_worker.Client.submit,
        dagnats_worker.Client.run,
        dagnats_worker.Run.events,
        TaskContext.complete,
        dagnats_worker.provision,
    ],
    ids=lambda method: method.__qualname__,
)
def test_documented_arguments_of_a_method_exist(method: Any) -> None:
    assert _section(method, "Args") <= set(inspect.signature(method).parameters)


def _section(documented: Any, heading: str) -> set[str]:
    """The names in one section of a docstring."""
    lines = (inspect.getdoc(documented) or "").splitlines()
    names: set[str] = set()
    if f"{heading}:" not in lines:
        return names
    for line in lines[lines.index(f"{heading}:") + 1 :]:
        if line and not line.startswith(" "):
            break
        if line.startswith("    ") and not line.startswith("     "):
            names.add(line.strip().partition(":")[0])
    return names


# ------------------------------------------------------------------------- signatures


def shape(kind: type[Any]) -> dict[str, str]:
    """Each public member of a class: its signature, or the type of a property."""
    return {name: _shape(thing) for name, thing in _members(kind)}


def _shape(member: Any) -> str:
    if isinstance(member, property):
        assert member.fget is not None
        return str(inspect.signature(member.fget).return_annotation)
    signature = str(inspect.signature(member)).replace("'", "")
    return f"async {signature}" if inspect.iscoroutinefunction(member) else signature


def test_async_context_is_exactly_this() -> None:
    found = shape(TaskContext)
    assert {name: found[name] for name in found if name not in INTERNAL} == CONTEXT | OF_ASYNC


def test_blocking_context_is_the_same_without_async() -> None:
    found = shape(SyncTaskContext)
    blocking = {name: text.removeprefix("async ") for name, text in CONTEXT.items()}
    assert {name: found[name] for name in found if name not in INTERNAL} == blocking | OF_BLOCKING


@pytest.mark.parametrize(
    ("function", "signature"),
    [
        (
            dagnats_worker.Worker,
            "(connection=None, *, worker_id=None, groups=(), partitions=0, max_tasks=64, "
            "plugins=None, config=None)",
        ),
        (dagnats_worker.Client, "(connection=None, *, plugins=None, config=None)"),
        (dagnats_worker.EmbeddedServer, "(store_dir=None, port=0, *, config=None)"),
        (dagnats_worker.NonRetryableError, "(error_or_message)"),
        (dagnats_worker.RetryAfterError, "(error_or_message, delay)"),
        (dagnats_worker.EndTask, "(outcome)"),
        (dagnats_worker.DelayTask, "(delay)"),
        (dagnats_worker.SkipTask, "(reason)"),
        (dagnats_worker.ReleaseTask, "(outcome)"),
        (dagnats_worker.Capability, "(name, install)"),
        (dagnats_worker.Plugin, "(settings=None)"),
        (dagnats_worker.Completed, "(output=b'')"),
        (dagnats_worker.Continued, "(output=b'')"),
        (dagnats_worker.Failed, "(error, failure_type, retry_after=None, exception=None)"),
        (dagnats_worker.Paused, "(name, duration)"),
        (dagnats_worker.Released, "(reason, delay=datetime.timedelta(0), error='', kept=False)"),
        (dagnats_worker.typed, "(function)"),
        (dagnats_worker.provision, "(js, *, replicas=1)"),
        (dagnats_worker.Worker.handle, "(self, task_type, handler, **options)"),
        (dagnats_worker.Worker.handle_typed, "(self, task_type, handler, **options)"),
        (dagnats_worker.Worker.handle_singleton, "(self, task_type, handler, **options)"),
        (dagnats_worker.Worker.task, "(self, task_type, **options)"),
        (dagnats_worker.Worker.stop, "(self, timeout=None)"),
        (dagnats_worker.Run.result, "(self, timeout=None)"),
        (dagnats_worker.Client.signal, "(self, run_id, name, data=None)"),
    ],
    ids=lambda value: getattr(value, "__qualname__", None),
)
def test_signature_that_others_rely_on(function: Any, signature: str) -> None:
    found = inspect.signature(function)
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in found.parameters.values()
    ]
    assert str(inspect.Signature(bare)) == signature


def test_every_outcome_is_exported() -> None:
    outcomes = {kind.__name__ for kind in typing.get_args(dagnats_worker.Outcome)}
    assert outcomes <= set(dagnats_worker.__all__)


# ------------------------------------------------------------------------- what an import costs


def imported_by(statement: str) -> set[str]:
    """The distributions that a fresh interpreter has imported after a statement."""
    code = f"import sys\n{statement}\nprint(*sorted(sys.modules))"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    return {name.partition(".")[0] for name in output.stdout.split()}


def test_import_of_the_package_is_light() -> None:
    modules = imported_by("import dagnats_worker")
    assert "dagnats_worker" in modules
    assert modules & HEAVY == set()


def test_worker_that_is_made_but_not_started_imports_no_nats() -> None:
    modules = imported_by(
        "from dagnats_worker import Worker, Client\n"
        "worker = Worker('nats://127.0.0.1:1', plugins=[])\n"
        "@worker.task('shout')\n"
        "async def shout(ctx): ...\n"
        "Client('nats://127.0.0.1:1', plugins=[])"
    )
    assert modules & (HEAVY - {"pydantic"}) == set()
