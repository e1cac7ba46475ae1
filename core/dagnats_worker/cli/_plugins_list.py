"""``dagnats-worker plugins list`` and ``show``: what is installed, and what becomes of it."""

from __future__ import annotations

import dataclasses
import json
import os
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from dagnats_worker._discovery import Candidate, not_installed
from dagnats_worker._plugins import Hooks
from dagnats_worker._setting_text import setting_text
from dagnats_worker._settings import PLUGIN_SWITCHES
from dagnats_worker.cli._group import TRACEBACK_VARIABLE, Command
from dagnats_worker.cli._plugins_look import Look, look
from dagnats_worker.cli._screen import counted, dim, tell, tell_block
from dagnats_worker.errors import PluginError
from dagnats_worker.hookspecs import Plugin

COLORS = {"active": "green", "failed": "red", "incompatible": "red"}
HIDDEN = "(hidden)"
HEADINGS = ("NAME", "STATE", "REQUIRED", "IMPORT", "DISTRIBUTION")
NONE_INSTALLED = (
    "no plugin is installed\n"
    "  pip install 'dagnats-worker[standard]'  brings checkpoint, signals and directory\n"
    "  dagnats-worker plugins new NAME         begins one of your own"
)

options_option = click.option(
    "-o",
    "options",
    metavar="NAME.KEY=VALUE",
    multiple=True,
    help="A setting, as for run; can be given again.",
)
no_import_option = click.option(
    "--no-import", is_flag=True, help="Run nothing of any plugin; what fails is then not known."
)


# ---------------------------------------------------------------------- list


@click.command("list", cls=Command)
@options_option
@no_import_option
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_plugins(options: tuple[str, ...], *, no_import: bool, as_json: bool) -> None:
    """List the plugins that are installed, and whether they are used.

    They are in the order of their hooks. What is selected is imported to know whether that works;
    whatever a plugin does then, the others are listed.
    """
    found = look(options, importing=not no_import)
    if as_json:
        tell(json.dumps([_record(one) for one in found.candidates]))
    elif found.candidates:
        tell(_table(found.candidates))
    else:
        tell(NONE_INSTALLED)
    wrong = [one for one in found.candidates if one.state in ("failed", "incompatible")]
    count = len(wrong) + len(found.problems)
    if count and not as_json:
        tell(f"\n{counted(count, 'problem')}; see: dagnats-worker plugins doctor", err=True)


def _record(candidate: Candidate) -> dict[str, Any]:
    found = candidate.found
    return {
        "name": found.name,
        "distribution": found.distribution,
        "version": found.version,
        "api": found.api_major,
        "state": candidate.state,
        "reason": candidate.reason,
        "required": candidate.required,
        "import_ms": _import_ms(candidate),
    }


def _import_ms(candidate: Candidate) -> float | None:
    return round(candidate.import_s * 1000, 1) if candidate.import_s else None


def _table(candidates: Sequence[Candidate]) -> str:
    rows = [HEADINGS, *(_cells(one) for one in candidates)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [click.style(_line(HEADINGS, widths), bold=True)]
    for candidate in candidates:
        name, state, *rest = _padded(_cells(candidate), widths)
        state = click.style(state, fg=COLORS.get(candidate.state))
        lines.append("  ".join((name, state, *rest)).rstrip())
        if candidate.reason:
            lines.append(dim(f"{' ' * widths[0]}  {' '.join(candidate.reason.split())}"))
    return "\n".join(lines)


def _cells(candidate: Candidate) -> tuple[str, ...]:
    found = candidate.found
    took_ms = _import_ms(candidate)
    return (
        found.name,
        candidate.state,
        "yes" if candidate.required else "no",
        "" if took_ms is None else f"{took_ms:.0f} ms",
        f"{found.distribution} {found.version}",
    )


def _padded(cells: Iterable[str], widths: Sequence[int]) -> list[str]:
    return [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]


def _line(cells: Iterable[str], widths: Sequence[int]) -> str:
    return "  ".join(_padded(cells, widths)).rstrip()


# ---------------------------------------------------------------------- show


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a plugin, and where its value comes from."""

    key: str
    value: str
    type: str
    origin: str


@click.command(cls=Command)
@click.argument("name")
@options_option
@no_import_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(name: str, options: tuple[str, ...], *, no_import: bool, as_json: bool) -> None:
    """Show one plugin: its hooks, its settings and where they come from, what it provides.

    NAME is the plugin's, or that of its distribution. A setting that is a secret is not shown.
    """
    found = look(options, importing=not no_import)
    candidates = found.find(name)
    if not candidates:
        raise PluginError(not_installed(name, [one.found for one in found.candidates]))
    if as_json:
        records = [_detailed(one, found) for one in candidates]
        tell(json.dumps(records[0] if len(records) == 1 else records))
        return
    for candidate in candidates:
        _tell(candidate, found)
        if candidate.error is not None and os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exception(candidate.error)


def _detailed(candidate: Candidate, found: Look) -> dict[str, Any]:
    plugin = candidate.plugin
    record = {
        **_record(candidate),
        "entry_point": candidate.found.value,
        "requires": list(candidate.found.requires),
    }
    if plugin is None:
        return record
    return record | {
        "before": list(plugin.before),
        "after": list(plugin.after),
        "hooks": hooks_of(plugin),
        "capabilities": [one.name for one in plugin.provides],
        "task_options": _task_options(plugin),
        "settings": [dataclasses.asdict(one) for one in settings_of(plugin, found)],
    }


def hooks_of(plugin: Plugin[Any]) -> list[str]:
    """The hooks that a plugin implements, in the order of their calls."""
    try:
        hooks = Hooks([plugin])
    except PluginError:
        return []
    return [name for name in Hooks.__annotations__ if getattr(hooks, name)]


def _task_options(plugin: Plugin[Any]) -> dict[str, str]:
    if plugin.task_options is None:
        return {}
    return {one.name: _default(one) for one in dataclasses.fields(plugin.task_options)}


def _default(one: dataclasses.Field[Any]) -> str:
    kind = one.type if isinstance(one.type, str) else getattr(one.type, "__name__", str(one.type))
    return kind if one.default is dataclasses.MISSING else f"{kind} = {one.default!r}"


def settings_of(plugin: Plugin[Any], found: Look) -> list[Setting]:
    """The settings of a plugin as they are in effect; the fields of a table one by one."""
    if plugin.settings is None or not dataclasses.is_dataclass(plugin.settings):
        return []
    return list(_flat(plugin.settings, "", found.sources.origins(plugin.name)))


def _flat(settings: Any, prefix: str, origins: dict[str, str]) -> Iterable[Setting]:
    for one in dataclasses.fields(settings):
        key, value = f"{prefix}{one.name}", getattr(settings, one.name)
        if dataclasses.is_dataclass(value):
            yield from _flat(value, f"{key}.", origins)
            continue
        kind = one.type if isinstance(one.type, str) else str(one.type)
        shown = setting_text(value) if one.repr else HIDDEN
        origin = origins.get(key) or origins.get(key.partition(".")[0]) or "default"
        yield Setting(key, shown, kind, origin)


def _tell(candidate: Candidate, found: Look) -> None:
    one, plugin = candidate.found, candidate.plugin
    took_ms = _import_ms(candidate)
    reason = " ".join(candidate.reason.split())
    rows = [
        ("state", candidate.state + (f": {reason}" if reason else "")),
        ("distribution", f"{one.distribution} {one.version}"),
        ("entry point", one.value),
        ("plugin API", str(one.api_major)),
        ("needs", ", ".join(one.requires) or "any version of the core"),
        ("required", "yes" if candidate.required else "no"),
    ]
    if took_ms is not None:
        rows.append(("import", f"{took_ms:.0f} ms"))
    if plugin is not None:
        options = (f"{name}: {kind}" for name, kind in _task_options(plugin).items())
        rows += [
            ("before", ", ".join(plugin.before) or "-"),
            ("after", ", ".join(plugin.after) or "-"),
            ("hooks", ", ".join(hooks_of(plugin)) or "-"),
            ("capabilities", ", ".join(key.name for key in plugin.provides) or "-"),
            ("task options", ", ".join(options) or "-"),
        ]
    tell_block(one.name, rows)
    _tell_settings(candidate, found)


def _tell_settings(candidate: Candidate, found: Look) -> None:
    plugin = candidate.plugin
    if plugin is None:
        origins = found.sources.origins(candidate.found.name)
        rows = [(key, "", origin) for key, origin in origins.items() if key not in PLUGIN_SWITCHES]
    else:
        rows = [(one.key, one.value, one.origin) for one in settings_of(plugin, found)]
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    tell(click.style("settings", bold=True))
    for row in rows:
        key, value, origin = _padded(row, widths)
        tell(f"  {click.style(key, fg='cyan')}  {value}  {dim(origin.rstrip())}")
