"""From what is installed and configured to the hooks of one worker or client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dagnats_worker import _discovery
from dagnats_worker._config import WorkerConfig, installed_overrides
from dagnats_worker._hook_calls import Member
from dagnats_worker._plugins import Hooks
from dagnats_worker._settings import WORKER, Sources
from dagnats_worker.errors import PluginError
from dagnats_worker.hookspecs import Plugin


def effective_config(config: WorkerConfig | Path | str | None) -> WorkerConfig:
    """The configuration of a worker: what the code gave, else environment and file; options on top.

    Raises:
        UsageError: A setting that does not exist or has another type; says where it is.
    """
    overrides = installed_overrides()
    if isinstance(config, WorkerConfig):
        sources = Sources(overrides.options, {})
        return overrides.applied_to(sources.stronger_than_code(WORKER, config))
    sources = Sources(overrides.options, file=config)
    return overrides.applied_to(sources.worker(WorkerConfig))


def load_hooks(
    plugins: Sequence[Plugin[Any]] | None, config: WorkerConfig, file: Path | str | None = None
) -> Hooks:
    """The hooks of exactly these plugins, or of those that are installed and selected.

    Raises:
        PluginError: A required plugin cannot be used.
    """
    overrides = installed_overrides()
    if plugins is not None:
        for plugin in plugins:
            _strengthen(plugin, overrides.options)
        return Hooks(plugins)
    sources = Sources(overrides.options, file=file)
    selection = _discovery.Selection.from_environment(none=overrides.no_plugins)
    for missing in _discovery.missing_required(selection, sources):
        raise PluginError(missing)
    chosen = _discovery.load(_discovery.candidates(selection, sources), sources)
    return Hooks(
        members=[
            Member(
                candidate.plugin,
                required=candidate.required,
                version=candidate.found.version,
                failures_max=config.plugin_failures_max,
            )
            for candidate in chosen
            if candidate.plugin is not None
        ]
    )


def _strengthen(plugin: Plugin[Any], options: Sequence[str]) -> None:
    """The command line is stronger than the code."""
    if isinstance(plugin, Plugin) and plugin.settings is not None:
        plugin.settings = Sources(options, {}).stronger_than_code(plugin.name, plugin.settings)
