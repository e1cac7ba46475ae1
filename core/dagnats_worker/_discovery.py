"""Which plugins are installed, which of them are used, and why the others are not.

In this order, so that nothing runs that was not asked for: list what the metadata of the installed
distributions says, select by configuration, check versions, and only then import.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points, version
from itertools import combinations
from typing import Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from dagnats_worker._setting_types import closest
from dagnats_worker._settings import Sources
from dagnats_worker.errors import PluginError
from dagnats_worker.hookspecs import PROJECT, Plugin

logger = logging.getLogger("dagnats_worker.plugins")

CORE = "dagnats-worker"
API_MAJOR = 1
GROUP = f"dagnats_worker.plugins.v{API_MAJOR}"
COMMANDS_GROUP = f"dagnats_worker.commands.v{API_MAJOR}"

OWN_PLUGINS = ("checkpoint", "directory", "partitions", "signals", "singleton", "telemetry")
"""The plugins that the project itself publishes, each as an extra of the core."""

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
    found: dict[tuple[str, str], Found] = {}
    for distribution, entry in _entries():
        match = _group_name.fullmatch(entry.group)
        if match is not None:
            one = _found(distribution, entry, int(match[1]))
            other = found.get((one.name, one.distribution))
            if other is None or other.api_major != API_MAJOR:
                found[one.name, one.distribution] = one
    return tuple(sorted(found.values(), key=lambda one: (one.name, one.distribution)))


@dataclass(frozen=True, slots=True)
class FoundCommand:
    """A command of a plugin as the metadata of its distribution describes it; not imported.

    Attributes:
        entry: What imports it.
    """

    name: str
    distribution: str
    version: str
    entry: EntryPoint


@cache
def installed_commands() -> tuple[FoundCommand, ...]:
    """Every command that is installed, by name; of two with one name, both."""
    found = {
        (entry.name, distribution.name): FoundCommand(
            entry.name, distribution.name, distribution.version, entry
        )
        for distribution, entry in _entries()
        if entry.group == COMMANDS_GROUP
    }
    return tuple(found[key] for key in sorted(found))


@cache
def _entries() -> tuple[tuple[Distribution, EntryPoint], ...]:
    """Our entry points; of a distribution found twice, those of the one that is imported."""
    found = entry_points()  # on Python 3.11 a dict of groups, so it is asked for each group
    return tuple(
        (entry.dist, entry)
        for group in sorted(found.groups)
        if group.startswith(PROJECT)
        for entry in found.select(group=group)
        if entry.dist is not None
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


def candidates(
    selection: Selection, sources: Sources, found: Sequence[Found] | None = None
) -> list[Candidate]:
    """Every installed plugin, and whether it is used.

    Args:
        found: What there is to choose from, where it is not all that is installed.

    Raises:
        PluginError: Two distributions have one name, or a name is asked for that nobody has.
    """
    if found is None:
        found = installed()
    wanted = None if selection.only is None else _wanted(selection.only, found)
    chosen = [Candidate(one) for one in found]
    for candidate in chosen:
        required = sources.switch(candidate.found.name, "required")
        candidate.required = bool(required) or wanted is not None
        reason = _why_not(candidate.found, selection, sources, wanted)
        if reason:
            _leave_out(candidate, "disabled", reason)
    _refuse_doubles(chosen)
    for candidate in chosen:
        if candidate.state == "selected":
            _check(candidate)
    order = list(sources.plugin_names()) if wanted is None else wanted
    return sorted(chosen, key=lambda one: _place(one.found.name, order))


def _place(name: str, order: Sequence[str]) -> int:
    return order.index(name) if name in order else len(order)


def missing_required(selection: Selection, sources: Sources) -> list[str]:
    """What is wrong where the configuration requires plugins that are not installed."""
    if selection.none or selection.only is not None:
        return []
    there = {one.name for one in installed()}
    return [
        f"plugin {name!r} is required ({origin}) and not installed; {how_to_install(name)}"
        for name, origin in sources.required().items()
        if name not in there
        and name not in selection.disabled
        and sources.switch(name, "enabled") is not False
    ]


def how_to_install(name: str) -> str:
    """What to do about a plugin that is not there."""
    if name in OWN_PLUGINS:
        return f"pip install '{CORE}[{name}]'"
    return "install the distribution that brings it"


def _refuse_doubles(chosen: Sequence[Candidate]) -> None:
    """Of two with one name, nobody can say which is meant; one that is not used does no harm."""
    usable = [
        one.found for one in chosen if one.state == "selected" and one.found.api_major == API_MAJOR
    ]
    for one, other in combinations(usable, 2):
        if one.name == other.name:
            raise PluginError(
                f"{one.distribution} {one.version} and {other.distribution} {other.version} both "
                f"bring a plugin {one.name!r}; uninstall one of them"
            )


def resolve(name: str, found: Sequence[Found]) -> tuple[str, ...]:
    """The plugin with this name, or those of the distribution with this name."""
    normal = canonicalize_name(name)
    own = [one.name for one in found if one.name in (name, normal)]
    if not own:
        own = [one.name for one in found if canonicalize_name(one.distribution) == normal]
    return tuple(dict.fromkeys(own))


def _wanted(names: Sequence[str], found: Sequence[Found]) -> tuple[str, ...]:
    wanted: list[str] = []
    for name in names:
        known = resolve(name, found)
        if not known:
            raise PluginError(f"{ONLY_VARIABLE}: {not_installed(name, found)}")
        wanted += known
    return tuple(dict.fromkeys(wanted))


def not_installed(name: str, found: Sequence[Found]) -> str:
    """Say so, with what was probably meant."""
    names = [one.name for one in found]
    hint = closest(name, names, "installed are") if names else "no plugin is installed"
    if name in OWN_PLUGINS and "did you mean" not in hint:
        hint = how_to_install(name)
    return f"plugin {name!r} is not installed; {hint}"


def _why_not(
    one: Found, selection: Selection, sources: Sources, wanted: tuple[str, ...] | None
) -> str:
    """Why a plugin is not used; empty for one that is."""
    if selection.none:
        return "--no-plugins"
    for name in selection.disabled:
        if one.name in resolve(name, [one]):
            return f"named in {DISABLE_VARIABLE}"
    if wanted is not None:
        return "" if one.name in wanted else f"not named in {ONLY_VARIABLE}"
    if sources.switch(one.name, "enabled") is False:
        return f"enabled = false ({sources.origins(one.name)['enabled']})"
    return ""


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
