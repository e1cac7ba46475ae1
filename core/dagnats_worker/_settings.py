"""Settings from where users put them: command line, environment, file, in that strength.

The settings of the core and of each plugin are a frozen dataclass. What is not a field of it, or
does not have its type, is an error that says where it came from and what was probably meant.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import tomllib
from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dagnats_worker._config import installed_overrides
from dagnats_worker._setting_types import closest
from dagnats_worker._setting_values import (
    OWN_FILE,
    PLUGINS,
    PREFIX,
    WORKER,
    Given,
    OptionError,
    build,
    convert,
)
from dagnats_worker.errors import UsageError

S = TypeVar("S")

PROJECT_FILE = "pyproject.toml"
PROJECT_TABLE = ("tool", "dagnats-worker")
PLUGIN_SWITCHES = ("enabled", "required")
"""Keys of a plugin's table that are the core's and not the plugin's."""


class Sources:
    """Everything that was configured outside the code; the file is read when it is first needed.

    Args:
        options: From the command line, as ``section.key=value``.
        environment: Variables, ``DAGNATS_WORKER__<SECTION>__<KEY>``, and one more part where the
            setting is a table.
        file: The file to read; None for ``dagnats-worker.toml`` or ``pyproject.toml`` in the
            current folder, whichever is there first and has our table.
    """

    def __init__(
        self,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        file: Path | str | None = None,
    ) -> None:
        self._options = [_option(option) for option in options]
        self._environment = dict(os.environ if environment is None else environment)
        self._path = Path(file) if file is not None else None

    @functools.cached_property
    def _file(self) -> tuple[str, dict[str, Any]]:
        return _read(self._path)

    def worker(self, settings_type: type[S]) -> S:
        """The settings of the core.

        Raises:
            UsageError: A setting that does not exist or has another type; says where it is.
        """
        return build(settings_type, WORKER, self._given(WORKER), None)

    def plugin(self, name: str, settings_type: type[S]) -> S:
        """The settings of one plugin.

        Raises:
            UsageError: As for ``worker``.
        """
        given = [one for one in self._given(name) if one.key not in PLUGIN_SWITCHES]
        return build(settings_type, name, given, None)

    def stronger_than_code(self, name: str, settings: S) -> S:
        """Settings that the code has made, with what the command line says of them."""
        if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
            return settings
        given = [
            one
            for one in self._options
            if one.section == _section(name) and one.key not in PLUGIN_SWITCHES
        ]
        return build(type(settings), name, given, settings) if given else settings

    def option(self, section: str, key: str) -> str | None:
        """What the command line says of one setting; None where it says nothing."""
        said = [one.value for one in self._options if (one.section, one.key) == (section, key)]
        return said[-1] if said else None

    def switch(self, name: str, switch: str) -> bool | None:
        """``enabled`` or ``required`` of a plugin; None where nobody has said."""
        value = None
        for one in self._given(name):
            if one.key == switch:
                value = convert(one, bool, name)
        return value

    def origins(self, name: str) -> dict[str, str]:
        """Where each setting of a section comes from that is not a default, by its key."""
        return {one.key: one.origin for one in self._given(name)}

    def plugin_names(self) -> KeysView[str]:
        """The plugins that the file speaks of, in its order."""
        names: KeysView[str] = self._file[1].get(PLUGINS, {}).keys()
        return names

    def required(self) -> dict[str, str]:
        """The plugins that are required, and who says so."""
        written = {_section(name): name for name in self.plugin_names()}
        sections = {one.section for one in (*self._variables(), *self._options)}
        names = [
            written.get(section, section) for section in {**written, **dict.fromkeys(sections)}
        ]
        return {
            name: self.origins(name)["required"]
            for name in names
            if name != WORKER and self.switch(name, "required")
        }

    def of_nobody(self, names: Iterable[str]) -> list[Given]:
        """What was set outside the file for plugins that are none of these."""
        known = {WORKER, *map(_section, names)}
        return [one for one in (*self._variables(), *self._options) if one.section not in known]

    def _given(self, name: str) -> Iterator[Given]:
        """What was set of a section, weakest first."""
        section = _section(name)
        yield from self._from_file(name)
        for one in (*self._variables(), *self._options):
            if one.section == section:
                yield one

    def _from_file(self, name: str) -> Iterator[Given]:
        file, table = self._file
        tables = table if name == WORKER else table.get(PLUGINS, {})
        for written, values in tables.items():
            if _section(written) == _section(name):
                where = WORKER if name == WORKER else f"{PLUGINS}.{written}"
                for key, value in values.items():
                    key_name = key.replace("-", "_")
                    yield Given(_section(name), key_name, value, "file", f"{file} [{where}]")

    def _variables(self) -> Iterator[Given]:
        for variable, value in sorted(self._environment.items()):
            section, separator, key = variable.removeprefix(PREFIX).partition("__")
            if variable.startswith(PREFIX) and separator:
                key = key.lower().replace("__", ".")
                yield Given(_section(section.lower()), key, value, "variable", variable)


def _section(name: str) -> str:
    """Variables cannot have dashes, so a dash is as good as an underscore."""
    return name.replace("_", "-")


def _option(option: str) -> Given:
    name, separator, value = option.partition("=")
    section, dot, key = name.partition(".")
    if not separator or not dot or not section or not key:
        raise OptionError(f"-o {option}: write it as plugin.key=value, or worker.key=value")
    return Given(_section(section), key.replace("-", "_"), value, "option", f"-o {name}")


# ---------------------------------------------------------------------- the file


def _read(file: Path | None) -> tuple[str, dict[str, Any]]:
    candidates = [file] if file is not None else [Path(OWN_FILE), Path(PROJECT_FILE)]
    for candidate in candidates:
        table = _load(candidate, must_exist=file is not None)
        if candidate.name == PROJECT_FILE:
            for name in PROJECT_TABLE:
                table = _table(candidate, name, table.get(name, {}))
        if table:
            _check_tables(candidate, table)
            return str(candidate), table
    return "", {}


def _load(file: Path, *, must_exist: bool) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if must_exist:
            raise UsageError(f"configuration file {file} not found") from None
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"configuration file {file}: {error}") from error


def _check_tables(file: Path, table: dict[str, Any]) -> None:
    for name, value in table.items():
        if name not in (WORKER, PLUGINS):
            raise UsageError(
                f"{file}: there is no table {name!r}; "
                + closest(name, (WORKER, PLUGINS), "the tables are")
            )
        _table(file, name, value)
    for name, value in table.get(PLUGINS, {}).items():
        _table(file, f"{PLUGINS}.{name}", value)


def _table(file: Path, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{file}: {name} is a table, got {value!r}")
    return value


def configured(name: str, settings_type: type[S]) -> S:
    """The settings of one plugin as this process is configured.

    Raises:
        UsageError: A setting that does not exist or has another type; says where it is.
    """
    return Sources(installed_overrides().options).plugin(name, settings_type)
