"""Importing the plugins that are selected: one by one, timed, each in a guard of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any

from dagnats_worker._discovery import GROUP, Candidate, Found
from dagnats_worker._setting_values import OptionError
from dagnats_worker._settings import PLUGIN_SWITCHES, Sources
from dagnats_worker.errors import DagnatsError, PluginError, describe
from dagnats_worker.hookspecs import Plugin

logger = logging.getLogger("dagnats_worker.plugins")


def load(chosen: Sequence[Candidate], sources: Sources) -> list[Candidate]:
    """Import what is selected, one by one; whatever one of them does, the others are loaded.

    Raises:
        PluginError: A required plugin cannot be used.
    """
    for candidate in chosen:
        if candidate.state == "selected":
            load_one(candidate, sources)
        _report(candidate)
    return [candidate for candidate in chosen if candidate.state == "active"]


def load_one(candidate: Candidate, sources: Sources) -> None:
    """Import one that is selected and make it; whatever it does, only its state changes."""
    began = time.perf_counter()
    try:
        plugin_type = _import(candidate.found)
        candidate.import_s = time.perf_counter() - began
        candidate.plugin = _make(candidate.found, plugin_type, sources)
    except (KeyboardInterrupt, OptionError):
        raise  # somebody waits at the keyboard
    except BaseException as error:  # noqa: BLE001 - whatever an import does, the host goes on
        candidate.import_s = candidate.import_s or time.perf_counter() - began
        candidate.state = "failed"
        candidate.error = error
        candidate.reason = _reason(error)
    else:
        candidate.state = "active"


def _reason(error: BaseException) -> str:
    said = describe(error)
    return said if isinstance(error, DagnatsError) else f"{type(error).__name__}: {said}"


def _import(found: Found) -> Any:
    from stevedore import NamedExtensionManager  # noqa: PLC0415, TID251 - 25 ms, only with plugins

    entry = EntryPoint(found.name, found.value, GROUP)

    class One(NamedExtensionManager):  # type: ignore[type-arg]  # older ones cannot be subscripted
        """Loads what was found, where stevedore would read all metadata again, or a cache of it."""

        def list_entry_points(self) -> list[EntryPoint]:
            return [entry]

    failures: list[BaseException] = []
    manager = One(
        GROUP,
        [found.name],
        on_load_failure_callback=lambda _manager, _entry, error: failures.append(error),
        on_missing_entrypoints_callback=lambda _names: None,  # it would log a warning of its own
    )
    if failures:
        raise failures[0]
    return manager[found.name].plugin


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
        _refuse_settings(found, sources)
        return plugin_type()
    return plugin_type(sources.plugin(found.name, settings_type))


def _refuse_settings(found: Found, sources: Sources) -> None:
    for key, origin in sources.origins(found.name).items():
        if key not in PLUGIN_SWITCHES:
            raise PluginError(f"{origin}: plugin {found.name!r} has no settings, got {key!r}")


def _report(candidate: Candidate) -> None:
    found = candidate.found
    text = f"plugin {found.name!r} ({found.distribution} {found.version})"
    if candidate.state == "active":
        logger.info("%s is loaded, in %.0f ms", text, candidate.import_s * 1000)
    elif candidate.state == "disabled":
        logger.info("%s is not used: %s", text, candidate.reason)
    elif candidate.required:
        raise PluginError(f"{text} cannot be used: {candidate.reason}") from candidate.error
    else:
        warn_once(f"{text} cannot be used: {candidate.reason}")


@cache
def warn_once(text: str) -> None:
    """Each worker and client of the process meets the same broken plugin."""
    logger.warning("%s; going on without it", text)
