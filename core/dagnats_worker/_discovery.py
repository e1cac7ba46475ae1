"""Which plugins are installed, which of them are used, and why the others are not.

In this order, so that nothing runs that was not asked for: list what the metadata of the installed
distributions says, select by configuration, check versions, and only then import.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions, version
from typing import Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from dagnats_worker._settings import Sources
from dagnats_worker.errors import PluginError, describe
from dagnats_worker.hookspecs import PROJECT, Plugin

logger = logging.getLogger("dagnats_worker.plugins")

CORE = "dagnats-worker"
API_MAJOR = 1
GROUP = f"dagnats_worker.plugins.v{API_MAJOR}"
COMMANDS_GROUP = f"dagnats_worker.commands.v{API_MAJOR}"

ONLY_VARIABLE = "DAGNATS_WORKER_PLUGINS"
DISABLE_VARIABLE = "DAGNATS_WORKER_DISABLE_PLUGINS"

_group_name = re.compile(r"dagnats_worker\.plugins\.v(\d+)")

State = Literal["selected", "active", "disabled", "incompatible", "failed"]


@dataclass(frozen=True, slots=True)
class Found:
    """A plugin as the metadata of its distribution describes it; nothing of it was imported.

    Attributes:
        api_major: Of the entry-point group, the plugin API that it speaks.
        requires: What the distribution requires of the core, as written there.
    """

    name: str
    value: str
    api_major: int
    distribution: str
    version: str
    requires: tuple[str, ...]


@dataclass(slots=True)
class Candidate:
    """A plugin on its way from found to active.

    Attributes:
        required: Its failure stops the worker.
        reason: Why it is in this state.
        import_s: How long importing it took; 0 where it was not imported.
    """

    found: Found
    state: State = "selected"
    required: bool = False
    reason: str = ""
    import_s: float = 0.0
    plugin: Plugin[Any] | None = None
    error: BaseException | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Selection:
    """What the command line and the environment say about which plugins to use.

    Attributes:
        only: Exactly these, and all of them required; None for every installed one.
        disabled: Not these.
        none: No plugin at all.
    """

    only: tuple[str, ...] | None = None
    disabled: tuple[str, ...] = ()
    none: bool = False

    @classmethod
    def from_environment(cls, *, none: bool = False) -> Selection:
        """Read the two variables."""
        only = os.environ.get(ONLY_VARIABLE)
        disabled = _names(os.environ.get(DISABLE_VARIABLE, ""))
        return cls(None if only is None else _names(only), disabled, none)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@cache
def installed() -> tuple[Found, ...]:
    """Every plugin that is installed, of every API major, by name; read once per process."""
    found = {}
    for distribution, entry in _entries():
        match = _group_name.fullmatch(entry.group)
        if match is not None:
            one = _found(distribution, entry, int(match[1]))
            found[one.name, one.distribution] = one
    return tuple(sorted(found.values(), key=lambda one: (one.name, one.distribution)))


@cache
def installed_commands() -> dict[str, EntryPoint]:
    """Commands of plugins, by name; none of them was imported."""
    return {entry.name: entry for _, entry in _entries() if entry.group == COMMANDS_GROUP}


@cache
def _entries() -> tuple[tuple[Distribution, EntryPoint], ...]:
    """Our entry points; of a distribution that is found twice, the one that is imported."""
    by_name: dict[str, Distribution] = {}
    for distribution in distributions():
        by_name.setdefault(canonicalize_name(distribution.name or "?"), distribution)
    return tuple(
        (distribution, entry)
        for distribution in by_name.values()
        for entry in distribution.entry_points
        if entry.group.startswith(PROJECT)
    )


def forget_installed() -> None:
    """Read the metadata again; for tests and for whoever installs while running."""
    _entries.cache_clear()
    installed.cache_clear()
    installed_commands.cache_clear()


def _found(distribution: Distribution, entry: EntryPoint, major: int) -> Found:
    requires = tuple(
        text for text in distribution.requires or () if _requirement_on_core(text) is not None
    )
    return Found(entry.name, entry.value, major, distribution.name, distribution.version, requires)


def _requirement_on_core(text: str) -> Requirement | None:
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return None
    if canonicalize_name(requirement.name) != CORE:
        return None
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return None
    return requirement


# ---------------------------------------------------------------------- select and check


def candidates(selection: Selection, sources: Sources) -> list[Candidate]:
    """Every installed plugin, and whether it is used.

    Raises:
        PluginError: Two distributions have one name, or a name is asked for that nobody has.
    """
    found = installed()
    _refuse_doubles(found)
    wanted = None if selection.only is None else _resolve(selection.only, found)
    unwanted = _resolve(selection.disabled, found, must_exist=False)
    chosen = []
    for one in found:
        candidate = Candidate(one)
        candidate.required = bool(sources.switch(one.name, "required")) or wanted is not None
        _select(candidate, selection, sources, wanted, unwanted)
        if candidate.state == "selected":
            _check(candidate)
        chosen.append(candidate)
    if wanted is not None:
        chosen.sort(key=lambda one: _place(one.found.name, wanted))
    return chosen


def _place(name: str, wanted: Sequence[str]) -> int:
    return wanted.index(name) if name in wanted else len(wanted)


def _refuse_doubles(found: Sequence[Found]) -> None:
    by_name: dict[str, Found] = {}
    for one in found:
        other = by_name.setdefault(one.name, one)
        if other is not one and other.distribution != one.distribution:
            raise PluginError(
                f"{other.distribution} {other.version} and {one.distribution} {one.version} both "
                f"bring a plugin {one.name!r}; uninstall one of them"
            )


def _resolve(
    names: Sequence[str], found: Sequence[Found], *, must_exist: bool = True
) -> tuple[str, ...]:
    """Plugin names, from plugin names or names of distributions."""
    by_any = {one.name: one.name for one in found}
    by_any |= {canonicalize_name(one.distribution): one.name for one in found}
    resolved = []
    for name in names:
        known = by_any.get(name) or by_any.get(canonicalize_name(name))
        if known is None and must_exist:
            close = difflib.get_close_matches(name, [one.name for one in found], n=1)
            hint = f"did you mean {close[0]!r}?" if close else _what_is_there(found)
            raise PluginError(f"plugin {name!r} is not installed; {hint}")
        resolved.append(known or name)
    return tuple(resolved)


def _what_is_there(found: Sequence[Found]) -> str:
    names = ", ".join(one.name for one in found)
    return f"installed are {names}" if names else "no plugin is installed"


def _select(
    candidate: Candidate,
    selection: Selection,
    sources: Sources,
    wanted: tuple[str, ...] | None,
    unwanted: tuple[str, ...],
) -> None:
    name = candidate.found.name
    if selection.none:
        _leave_out(candidate, "disabled", "--no-plugins")
    elif name in unwanted:
        _leave_out(candidate, "disabled", f"named in {DISABLE_VARIABLE}")
    elif wanted is not None and name not in wanted:
        _leave_out(candidate, "disabled", f"not named in {ONLY_VARIABLE}")
    elif sources.switch(name, "enabled") is False:
        _leave_out(candidate, "disabled", "enabled = false")


def _check(candidate: Candidate) -> None:
    found = candidate.found
    if found.api_major != API_MAJOR:
        reason = f"speaks plugin API {found.api_major}, this core speaks {API_MAJOR}"
        _leave_out(candidate, "incompatible", reason)
        return
    running = version(CORE)
    for text in found.requires:
        requirement = _requirement_on_core(text)
        if requirement is not None and not requirement.specifier.contains(
            running, prereleases=True
        ):
            reason = f"requires {requirement}, this is {CORE} {running}"
            _leave_out(candidate, "incompatible", reason)


def _leave_out(candidate: Candidate, state: State, reason: str) -> None:
    candidate.state = state
    candidate.reason = reason
    if state == "disabled":
        candidate.required = False


# ---------------------------------------------------------------------- import


def load(chosen: Sequence[Candidate], sources: Sources) -> list[Candidate]:
    """Import what is selected, one by one; whatever one of them does, the others are loaded.

    Raises:
        PluginError: A required plugin cannot be used.
    """
    for candidate in chosen:
        if candidate.state == "selected":
            _load_one(candidate, sources)
        if candidate.state in ("incompatible", "failed"):
            _report(candidate)
    return [candidate for candidate in chosen if candidate.state == "active"]


def _load_one(candidate: Candidate, sources: Sources) -> None:
    began = time.perf_counter()
    try:
        plugin_type = _import(candidate.found)
        candidate.import_s = time.perf_counter() - began
        candidate.plugin = _make(candidate.found, plugin_type, sources)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever an import does, the host goes on
        candidate.import_s = candidate.import_s or time.perf_counter() - began
        candidate.state = "failed"
        candidate.error = error
        candidate.reason = f"{type(error).__name__}: {describe(error)}"
    else:
        candidate.state = "active"


def _import(found: Found) -> Any:
    from stevedore import NamedExtensionManager  # noqa: PLC0415, TID251 - 25 ms, only with plugins

    failures: list[BaseException] = []
    manager: NamedExtensionManager[Any] = NamedExtensionManager(
        GROUP,
        [found.name],
        invoke_on_load=False,
        on_load_failure_callback=lambda _manager, _entry, error: failures.append(error),
        warn_on_missing_entrypoint=False,
    )
    if failures:
        raise failures[0]
    for extension in manager:
        return extension.plugin
    raise PluginError(f"the entry point {found.value!r} of {found.distribution} is gone")


def _make(found: Found, plugin_type: Any, sources: Sources) -> Plugin[Any]:
    if not (isinstance(plugin_type, type) and issubclass(plugin_type, Plugin)):
        raise PluginError(f"{found.value} is not a subclass of dagnats_worker.Plugin")
    if getattr(plugin_type, "name", None) != found.name:
        raise PluginError(
            f"{found.value} has the name {getattr(plugin_type, 'name', None)!r}, "
            f"its entry point is called {found.name!r}; make them the same"
        )
    settings_type = plugin_type.settings_type
    if settings_type is None:
        return plugin_type()
    return plugin_type(sources.plugin(found.name, settings_type))


def _report(candidate: Candidate) -> None:
    found = candidate.found
    text = f"plugin {found.name!r} ({found.distribution} {found.version}) {candidate.reason}"
    if candidate.required:
        raise PluginError(text) from candidate.error
    logger.warning("%s; going on without it", text)
