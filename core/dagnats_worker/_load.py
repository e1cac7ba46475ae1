"""From what is installed and configured to what one worker or client works with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from dagnats_worker import _discovery, _importing
from dagnats_worker._config import WorkerConfig, installed_overrides
from dagnats_worker._discovery import DISABLE_VARIABLE, Candidate
from dagnats_worker._hook_calls import Member
from dagnats_worker._plugin_checks import a_plugin
from dagnats_worker._plugins import Hooks
from dagnats_worker._setting_values import WORKER, OptionError
from dagnats_worker._settings import Sources
from dagnats_worker.errors import PluginError
from dagnats_worker.hookspecs import Plugin, PluginState

logger = logging.getLogger("dagnats_worker.plugins")


class Setup:
    """How a worker or a client was configured; nothing is read before it is needed.

    Args:
        plugins: Exactly these; None for those that are installed.
        config: The whole configuration, or the file to read it from, or None for the usual places.
    """

    def __init__(
        self, plugins: Sequence[Plugin[Any]] | None, config: WorkerConfig | Path | str | None
    ) -> None:
        if plugins is not None and not isinstance(plugins, Sequence):
            raise TypeError(f"plugins is a list of plugins, got {plugins!r}")
        if config is not None and not isinstance(config, WorkerConfig | Path | str):
            raise TypeError(f"config is a WorkerConfig or the path of a file, got {config!r}")
        self._plugins = plugins
        self._given = config

    @cached_property
    def config(self) -> WorkerConfig:
        """What the code gave, else environment and file; the command line on top.

        Raises:
            UsageError: A setting that does not exist or has another type; says where it is.
        """
        overrides = installed_overrides()
        sources = self._sources()
        if isinstance(self._given, WorkerConfig):
            return overrides.applied_to(sources.stronger_than_code(WORKER, self._given))
        return overrides.applied_to(sources.worker(WorkerConfig))

    def load_hooks(self) -> Hooks:
        """Select, import and configure.

        Raises:
            PluginError: A required plugin cannot be used, or two exclude each other.
            UsageError: The configuration cannot be read.
        """
        if installed_overrides().no_plugins:
            return Hooks()
        return self._installed() if self._plugins is None else self._handed_over(self._plugins)

    def _sources(self) -> Sources:
        file = None if isinstance(self._given, WorkerConfig) else self._given
        return Sources(installed_overrides().options, file=file)

    def _handed_over(self, plugins: Sequence[Plugin[Any]]) -> Hooks:
        """The command line is stronger than the code."""
        sources = self._sources()
        _tell_of_no_effect(sources, [a_plugin(one).name for one in plugins])
        for plugin in plugins:
            if getattr(plugin, "settings", None) is not None:
                plugin.settings = sources.stronger_than_code(plugin.name, plugin.settings)
        return Hooks(plugins)

    def _installed(self) -> Hooks:
        sources = self._sources()
        selection = _discovery.Selection.from_environment()
        for missing in _discovery.missing_required(selection, sources):
            raise PluginError(missing)
        _tell_of_typos(selection, sources)
        chosen = _discovery.candidates(selection, sources)
        active = _importing.load(chosen, sources)
        failures_max = self.config.plugin_failures_max
        return Hooks(
            members=[_member(one, failures_max) for one in active],
            left_out=[_left_out(one) for one in chosen if one.state in ("failed", "incompatible")],
        )


def _tell_of_no_effect(sources: Sources, names: Sequence[str]) -> None:
    """Other workers of the process may have other plugins, so it is no error here."""
    for given in sources.of_nobody(names):
        if given.place == "option" and names:
            logger.warning(
                "%s has no effect on the plugins in the code, %s", given.origin, ", ".join(names)
            )


def url_of_command_line() -> str | None:
    """The server that the command line names, one way or the other."""
    overrides = installed_overrides()
    return overrides.url or Sources(overrides.options, {}).option(WORKER, "url")


def _member(candidate: Candidate, failures_max: int) -> Member:
    assert candidate.plugin is not None, "it is active"
    return Member(
        candidate.plugin,
        required=candidate.required,
        version=candidate.found.version,
        failures_max=failures_max,
    )


def _left_out(candidate: Candidate) -> PluginState:
    found = candidate.found
    return PluginState(found.name, found.version, candidate.state, candidate.reason)


def _tell_of_typos(selection: _discovery.Selection, sources: Sources) -> None:
    """What speaks of a plugin that is not there has no effect; something else may be meant."""
    found = _discovery.installed()
    for name in selection.disabled:
        if not _discovery.resolve(name, found):
            logger.warning("%s: %s", DISABLE_VARIABLE, _discovery.not_installed(name, found))
    for given in sources.of_nobody([one.name for one in found]):
        text = f"{given.origin}: {_discovery.not_installed(given.section, found)}"
        if given.place == "option":
            raise OptionError(text)
        logger.warning("%s", text)
