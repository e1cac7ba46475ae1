"""What a worker serves: task types, their handlers and options, checked at registration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from dagnats_worker._config import TASK_TIMEOUT_DEFAULT
from dagnats_worker._handlers import HandlerSpec, inspect_handler
from dagnats_worker._naming import check_token, find_collisions
from dagnats_worker._plugin_checks import check_task_options, option_types
from dagnats_worker._retry import Retry
from dagnats_worker._setting_types import WrongValueError, closest, converted, missing_fields
from dagnats_worker.errors import StartError, UsageError
from dagnats_worker.hookspecs import Capability, Plugin, PluginState, TaskType

KNOWN_PLUGIN_OPTIONS = {
    "singleton": "dagnats-worker[singleton]",
    "partitions": "dagnats-worker[partitions]",
}
"""Options of plugins that we know, so that a missing one can be named."""

CORE_OPTIONS = (
    "ack_wait",
    "concurrency",
    "executor",
    "heartbeat",
    "needs",
    "retry",
    "timeout",
    "unwrap_trigger",
)


@dataclass(frozen=True, slots=True)
class Registration:
    """One handler of a worker.

    Attributes:
        heartbeat: The lease is renewed by itself while the handler runs.
        needs: Capabilities without which the worker does not start.
    """

    task_type: str
    handler: HandlerSpec
    concurrency: int
    timeout: timedelta
    ack_wait: timedelta | None
    retry: Retry
    heartbeat: bool
    needs: tuple[Capability[Any], ...]
    plugin_options: dict[type[Any], Any]

    def for_group(self, group: str | None) -> TaskType:
        """The task type as plugins see it."""
        return TaskType(
            self.task_type,
            group,
            self.concurrency,
            self.ack_wait,
            self.timeout,
            self.plugin_options,
            self.handler.executor,
        )


class Registry:
    """The registrations of one worker."""

    def __init__(self, *, max_tasks: int, processes_max: int) -> None:
        self._max_tasks = max_tasks
        self._processes_max = processes_max
        self._by_type: dict[str, Registration] = {}

    @property
    def all(self) -> tuple[Registration, ...]:
        return tuple(self._by_type.values())

    def add(
        self,
        task_type: str,
        function: Any,
        options: dict[str, Any],
        plugins: Sequence[Plugin[Any]],
        *,
        typed: bool = False,
        left_out: Sequence[PluginState] = (),
    ) -> Registration:
        """Register a handler.

        Args:
            left_out: Plugins that are not used, one of which may have understood an option.

        Raises:
            TypeError, ValueError: A name or an option that cannot work.
            UsageError: The task type has a handler already, or an option that nobody knows.
            PluginError: Two plugins declare one option.
        """
        check_token("task type", task_type)
        if task_type in self._by_type:
            other = self._by_type[task_type].handler.name
            raise UsageError(f"task type {task_type!r} is handled by {other} already")
        plugin_options = _plugin_options(options, plugins, left_out)
        spec = inspect_handler(
            function,
            executor=options.get("executor"),
            typed=typed,
            unwrap_trigger=_switch("unwrap_trigger", options.get("unwrap_trigger", False)),
        )
        registration = self._checked(task_type, spec, options, plugin_options)
        self._by_type[task_type] = registration
        return registration

    def _checked(
        self,
        task_type: str,
        spec: HandlerSpec,
        options: dict[str, Any],
        plugin_options: dict[type[Any], Any],
    ) -> Registration:
        most = self._max_tasks
        if spec.executor == "process":
            most = min(most, self._processes_max)
        if options.get("singleton") is True:
            most = 1  # also of a handler thread that outlived its time
        concurrency = options.get("concurrency", most)
        if not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1:
            raise ValueError(f"concurrency is a whole number of at least 1, got {concurrency!r}")
        if concurrency > 1 and options.get("singleton") is True:
            raise ValueError(
                f"a singleton runs one handler at a time, got concurrency {concurrency}; leave it "
                "out"
            )
        retry = options.get("retry", Retry())
        if not isinstance(retry, Retry):
            raise TypeError(f"retry is a Retry, got {retry!r}")
        return Registration(
            task_type=task_type,
            handler=spec,
            concurrency=min(concurrency, most),
            timeout=_duration("timeout", options.get("timeout", TASK_TIMEOUT_DEFAULT)),
            ack_wait=_duration_or_none("ack_wait", options.get("ack_wait")),
            retry=retry,
            heartbeat=_switch("heartbeat", options.get("heartbeat", True)),
            needs=_capabilities(options.get("needs", ())),
            plugin_options=plugin_options,
        )

    def check_names(self, groups: Sequence[str]) -> None:
        """Refuse names that would make two task types share a consumer, or two consumers a task.

        Raises:
            StartError: Names both.
        """
        pairs = [(task_type, group) for task_type in self._by_type for group in (groups or (None,))]
        collisions = find_collisions(pairs)
        if collisions:
            raise StartError("; ".join(collisions))


def _plugin_options(
    options: dict[str, Any], plugins: Sequence[Plugin[Any]], left_out: Sequence[PluginState]
) -> dict[type[Any], Any]:
    """Each plugin's own part of the options, as the dataclass that it declared."""
    check_task_options(plugins, CORE_OPTIONS)
    declared = {name: plugin for plugin in plugins for name in option_types(plugin)}
    for name in options:
        if name not in declared and name not in CORE_OPTIONS:
            raise UsageError(_unknown_option(name, (*CORE_OPTIONS, *declared), left_out))
    return {
        type(plugin): _options_of(plugin, options)
        for plugin in plugins
        if type(plugin).task_options is not None
    }


def _options_of(plugin: Plugin[Any], options: dict[str, Any]) -> Any:
    types = option_types(plugin)
    given = {name: options[name] for name in types if name in options}
    declared = type(plugin).task_options
    assert declared is not None, "only those that declare some come here"
    if lacking := missing_fields(declared, given):
        raise UsageError(f"plugin {plugin.name!r} needs the task option {lacking[0]!r}")
    for name, value in given.items():
        try:
            given[name] = converted(value, types[name], "code")
        except WrongValueError as error:
            raise TypeError(
                f"task option {name!r} of plugin {plugin.name!r}: {value!r} {error}"
            ) from error
    return declared(**given)


def _unknown_option(name: str, known: Sequence[str], left_out: Sequence[PluginState]) -> str:
    idle = [f"{one.name!r} ({one.reason})" for one in left_out]
    if name in KNOWN_PLUGIN_OPTIONS and name not in {one.name for one in left_out}:
        return (
            f"option {name!r} is understood by a plugin that is not installed or not loaded: "
            f"pip install '{KNOWN_PLUGIN_OPTIONS[name]}'"
        )
    hint = closest(name, sorted(known))
    not_loaded = f"; not loaded: {', '.join(idle)}" if idle else ""
    return f"no plugin understands the task option {name!r}; {hint}{not_loaded}"


def _duration(name: str, value: Any) -> timedelta:
    if not isinstance(value, timedelta):
        raise TypeError(f"{name} is a timedelta, got {value!r}")
    if value <= timedelta(0):
        raise ValueError(f"{name} is longer than zero, got {value!r}")
    return value


def _duration_or_none(name: str, value: Any) -> timedelta | None:
    return None if value is None else _duration(name, value)


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, got {value!r}")
    return value


def _capabilities(value: Any) -> tuple[Capability[Any], ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, Capability) for one in value):
        raise TypeError(f"needs is a list of capabilities, got {value!r}")
    return tuple(value)
