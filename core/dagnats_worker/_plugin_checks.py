"""What a plugin must be like before any of its hooks is called; every refusal says what to do."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pluggy  # noqa: TID251 - checks are made by the manager that knows the specifications

from dagnats_worker import hookspecs
from dagnats_worker._setting_types import closest, field_types
from dagnats_worker._setting_values import PLUGINS, WORKER
from dagnats_worker._settings import PLUGIN_SWITCHES
from dagnats_worker.errors import PluginError
from dagnats_worker.hookspecs import PROJECT, Plugin

SCOPES = ("worker_scope", "task_scope", "outcome_scope", "child_scope")
HOOKS = (
    "worker_scope",
    "open_source",
    "task_scope",
    "pre_handle",
    "pre_publish",
    "on_error",
    "outcome_scope",
    "on_complete",
    "child_scope",
)
OF_TASKS = HOOKS[2:8]
"""Those that are called again and again."""
FORBIDDEN_OPTIONS = ("wrapper", "hookwrapper")
RESERVED_NAMES = (WORKER, PLUGINS)
MARK = f"{PROJECT}_impl"

_name = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")


def a_plugin(thing: Any) -> Plugin[Any]:
    """Refuse what is no plugin at all.

    Raises:
        PluginError: It is not, or it has no name that configuration could call it by.
    """
    if not isinstance(thing, Plugin):
        is_class = isinstance(thing, type) and issubclass(thing, Plugin)
        hint = f"; make one: {thing.__name__}()" if is_class else ""
        raise PluginError(f"{thing!r} is not an instance of a Plugin subclass{hint}")
    kind, name = type(thing).__name__, getattr(thing, "name", None)
    if not isinstance(name, str) or not name:
        raise PluginError(f"plugin class {kind} has no name; give it one as `name`")
    if not _name.fullmatch(name) or name in RESERVED_NAMES:
        raise PluginError(
            f"plugin class {kind} is called {name!r}; a name has lower-case letters and digits, "
            f"with single dashes between, and is not {' or '.join(RESERVED_NAMES)}"
        )
    return thing


def check(plugin: Plugin[Any]) -> None:
    """Compare a plugin with the specifications.

    Raises:
        PluginError: It declares what it must not, or has a hook or an argument that does not exist.
    """
    said = f"plugin {plugin.name!r}"
    _check_declarations(said, plugin)
    _check_marks(said, type(plugin))
    try:
        manager = manager_of([plugin])
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(_explain(said, type(plugin), str(error))) from error
    except (
        Exception
    ) as error:  # a property of the plugin is read where an old pluggy looks for hooks
        raise PluginError(f"{said}: its hooks cannot be read: {error!r}") from error
    for caller in manager.get_hookcallers(plugin) or ():
        for implementation in caller.get_hookimpls():
            _check_implementation(f"{said}, {caller.name}", caller.name, implementation)


def manager_of(plugins: Sequence[Plugin[Any]]) -> pluggy.PluginManager:
    """pluggy's manager of our specifications; it calls the last of these plugins first."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    for plugin in plugins:
        manager.register(plugin, name=plugin.name)
    return manager


def check_task_options(plugins: Sequence[Plugin[Any]], core_options: Sequence[str]) -> None:
    """Refuse two meanings of one keyword of ``@worker.task``.

    Raises:
        PluginError: Names the keyword and both who declare it.
    """
    owners = dict.fromkeys(core_options, "the core")
    for plugin in plugins:
        for name in option_types(plugin):
            if name in owners:
                raise PluginError(
                    f"plugin {plugin.name!r} declares the task option {name!r}, which exists "
                    f"already: {owners[name]} has it; leave one of the two plugins out"
                )
        owners |= dict.fromkeys(option_types(plugin), f"plugin {plugin.name!r}")


def option_types(plugin: Plugin[Any]) -> dict[str, Any]:
    """The task options that a plugin declares, with their types."""
    declared = type(plugin).task_options
    return {} if declared is None else field_types(declared)


# ---------------------------------------------------------------------- what the class declares


def _check_declarations(said: str, plugin: Plugin[Any]) -> None:
    if not hasattr(plugin, "settings"):
        raise PluginError(f"{said}: its __init__ does not call super().__init__(settings)")
    for attribute in ("before", "after", "provides"):
        value = getattr(plugin, attribute)
        if isinstance(value, str) or not isinstance(value, tuple | list):
            raise PluginError(f"{said}: `{attribute}` is a tuple, got {value!r}")
    for attribute in ("settings_type", "task_options"):
        declared = getattr(plugin, attribute)
        if declared is not None:
            _check_dataclass(said, attribute, declared)


def _check_dataclass(said: str, attribute: str, declared: Any) -> None:
    try:
        names = field_types(declared)
    except TypeError as error:
        raise PluginError(f"{said}: {attribute}: {error}") from error
    if not declared.__dataclass_params__.frozen:
        raise PluginError(f"{said}: {attribute} {declared.__name__} is not frozen=True")
    for switch in PLUGIN_SWITCHES if attribute == "settings_type" else ():
        if switch in names:
            raise PluginError(f"{said}: the setting {switch!r} is the core's; call it otherwise")


# ---------------------------------------------------------------------- its hooks


def _check_marks(said: str, kind: type[Any]) -> None:
    for name in HOOKS:
        found = inspect.getattr_static(kind, name, None)
        if callable(found) and not hasattr(found, MARK):
            raise PluginError(f"{said}: {name} is not marked as a hook; put @hookimpl above it")


def _explain(said: str, kind: type[Any], text: str) -> str:
    for name in dir(kind):
        found = inspect.getattr_static(kind, name)
        if not hasattr(found, MARK):
            continue
        hook = getattr(found, MARK)["specname"] or name
        if hook not in HOOKS:
            return f"{said}: there is no hook {hook!r}; {closest(hook, HOOKS)}"
        wrong = _wrong_argument(hook, list(_parameters(getattr(kind, name)))[1:])
        if wrong:
            return f"{said}, {name}: {wrong}"
    return f"{said}: {' '.join(text.split())}"


def _wrong_argument(hook: str, parameters: Sequence[inspect.Parameter]) -> str:
    known = arguments_of(hook)
    taken = [one.name for one in parameters if one.name in known]
    for one in parameters:
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            return f"it takes {one}; name the arguments that it wants: {', '.join(known)}"
        if one.name in known:
            continue
        left = [name for name in known if name not in taken]
        hint = closest(one.name, left or known)
        if one.default is one.empty or "did you mean" in hint:
            return f"there is no argument {one.name!r}; {hint}"
    return ""


def _check_implementation(said: str, hook: str, implementation: pluggy.HookImpl) -> None:
    for option in FORBIDDEN_OPTIONS:
        if getattr(implementation, option):
            raise PluginError(
                f"{said}: {option}=True does not work with coroutines; "
                "use a scope, which is an async context manager"
            )
    function = implementation.function
    wrong = _wrong_argument(hook, list(_parameters(function)))
    if wrong:
        raise PluginError(f"{said}: {wrong}")
    if hook in SCOPES and not _may_be_scope(hook, function):
        decorator = "contextmanager" if hook == "child_scope" else "asynccontextmanager"
        raise PluginError(
            f"{said}: a scope returns a context manager; put @{decorator} below @hookimpl"
        )
    if hook not in SCOPES and _yields(function):
        raise PluginError(f"{said}: it yields, and would never run; only a scope has two halves")


def _may_be_scope(hook: str, function: Callable[..., Any]) -> bool:
    """Whether calling it may give the context manager of that kind; a decorator leaves a trace."""
    if inspect.iscoroutinefunction(function) or _yields(function):
        return False
    decorated = inspect.unwrap(function)
    if hook == "child_scope":
        return not inspect.isasyncgenfunction(decorated)
    return not inspect.isgeneratorfunction(decorated)


def _yields(function: Callable[..., Any]) -> bool:
    return inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)


# ---------------------------------------------------------------------- arguments


@functools.cache
def arguments_of(hook: str) -> tuple[str, ...]:
    """The arguments that the core has for a hook."""
    return tuple(inspect.signature(getattr(hookspecs, hook)).parameters)


def _parameters(function: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    try:
        yield from inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # not written in Python
        return


def taken_arguments(hook: str, function: Callable[..., Any]) -> tuple[list[str], list[str]]:
    """What an implementation is given by position, and what by name.

    An argument with a default is given too where the core has it, so that a plugin can take what
    only newer versions of the core have.
    """
    by_position: list[str] = []
    by_name: list[str] = []
    known = arguments_of(hook)
    for one in _parameters(function):
        if one.name not in known:
            by_name += [""] if one.kind is not one.KEYWORD_ONLY else []
        elif one.kind is one.KEYWORD_ONLY or by_name:
            by_name.append(one.name)
        else:
            by_position.append(one.name)
    return by_position, [name for name in by_name if name]
