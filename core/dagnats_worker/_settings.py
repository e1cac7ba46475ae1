"""Settings from where users put them: command line, environment, file, in that strength.

The settings of the core and of each plugin are a frozen dataclass. What is not a field of it, or does
not have its type, is an error that says where it came from and what was probably meant.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dagnats_worker._config import installed_overrides
from dagnats_worker._durations import parse_duration
from dagnats_worker.errors import UsageError

S = TypeVar("S")

PREFIX = "DAGNATS_WORKER__"
OWN_FILE = "dagnats-worker.toml"
PROJECT_FILE = "pyproject.toml"
PROJECT_TABLE = ("tool", "dagnats-worker")
WORKER = "worker"
PLUGINS = "plugins"
PLUGIN_SWITCHES = ("enabled", "required")
"""Keys of a plugin's table that are the core's and not the plugin's."""


@dataclass(frozen=True, slots=True)
class Given:
    """One value that somebody has set.

    Attributes:
        origin: Where, for messages: an option, a variable, a file with its table.
        text: It came as text and is to be read as the field's type.
    """

    key: str
    value: Any
    origin: str
    text: bool


class Sources:
    """Everything that was configured outside the code.

    Args:
        options: From the command line, as ``section.key=value``.
        environment: Variables, ``DAGNATS_WORKER__<SECTION>__<KEY>``.
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
        self._file, self._table = _read(Path(file) if file is not None else None)

    def worker(self, settings_type: type[S]) -> S:
        """The settings of the core."""
        return self._make(settings_type, WORKER, self._given(WORKER))

    def plugin(self, name: str, settings_type: type[S]) -> S:
        """The settings of one plugin."""
        given = [one for one in self._given(name) if one.key not in PLUGIN_SWITCHES]
        return self._make(settings_type, name, given)

    def stronger_than_code(self, name: str, settings: S) -> S:
        """Settings that the code has made, with what the command line says of them."""
        if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
            return settings
        given = [
            Given(key, value, origin, text=True)
            for section, key, value, origin in self._options
            if section == name and key not in PLUGIN_SWITCHES
        ]
        changed = _values(type(settings), name, given)
        return dataclasses.replace(settings, **changed) if changed else settings

    def switch(self, name: str, switch: str) -> bool | None:
        """``enabled`` or ``required`` of a plugin; None where nobody has said."""
        value = None
        for one in self._given(name):
            if one.key == switch:
                value = _convert(one, bool, name)
        return value

    def plugin_names(self) -> set[str]:
        """The plugins that the file speaks of."""
        return set(self._table.get(PLUGINS, {}))

    def _given(self, section: str) -> Iterator[Given]:
        """What was set of a section, weakest first."""
        table = self._table if section == WORKER else self._table.get(PLUGINS, {})
        path = f"{self._file} [{section if section == WORKER else f'{PLUGINS}.{section}'}]"
        for key, value in table.get(section, {}).items():
            yield Given(key.replace("-", "_"), value, path, text=False)
        prefix = f"{PREFIX}{section.replace('-', '_').upper()}__"
        for variable, value in sorted(self._environment.items()):
            if variable.startswith(prefix):
                yield Given(variable.removeprefix(prefix).lower(), value, variable, text=True)
        for named, key, value, origin in self._options:
            if named == section:
                yield Given(key, value, origin, text=True)

    def _make(self, settings_type: type[S], section: str, given: typing.Iterable[Given]) -> S:
        return settings_type(**_values(settings_type, section, given))


def _option(option: str) -> tuple[str, str, str, str]:
    name, separator, value = option.partition("=")
    section, dot, key = name.partition(".")
    if not separator or not dot or not section or not key:
        raise UsageError(f"-o {option}: write it as plugin.key=value, or worker.key=value")
    return section, key.replace("-", "_"), value, f"-o {name}"


def _read(file: Path | None) -> tuple[str, dict[str, Any]]:
    candidates = [file] if file is not None else [Path(OWN_FILE), Path(PROJECT_FILE)]
    for candidate in candidates:
        table = _load(candidate, must_exist=file is not None)
        if candidate.name == PROJECT_FILE:
            for name in PROJECT_TABLE:
                table = table.get(name, {})
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
    for name in table:
        if name not in (WORKER, PLUGINS):
            raise UsageError(
                f"{file}: there is no table {name!r}; "
                + _closest(name, (WORKER, PLUGINS), "the tables are")
            )


def _values(
    settings_type: type[Any], section: str, given: typing.Iterable[Given]
) -> dict[str, Any]:
    hints = _hints(settings_type)
    values: dict[str, Any] = {}
    for one in given:
        if one.key not in hints:
            raise UsageError(
                f"{one.origin}: {section!r} has no setting {one.key!r}; "
                + _closest(one.key, tuple(hints), "there are")
            )
        values[one.key] = _convert(one, hints[one.key], section)
    return values


def _hints(settings_type: type[Any]) -> dict[str, Any]:
    if not dataclasses.is_dataclass(settings_type):
        raise UsageError(f"settings_type {settings_type.__name__} is not a dataclass")
    hints = typing.get_type_hints(settings_type)
    return {one.name: hints[one.name] for one in dataclasses.fields(settings_type) if one.init}


def _convert(given: Given, wanted: Any, section: str) -> Any:
    value = given.value
    try:
        if timedelta in _members(wanted) and isinstance(value, str):
            return parse_duration(value)
        if given.text and typing.get_origin(wanted) in (tuple, list, set, frozenset):
            value = [part.strip() for part in value.split(",") if part.strip()]
        return msgspec.convert(value, wanted, strict=not given.text, dec_hook=_other_types)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{given.origin}: {section}.{given.key} = {given.value!r} is not a "
            f"{_type_name(wanted)}: {error}"
        ) from error


def _members(wanted: Any) -> tuple[Any, ...]:
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        return typing.get_args(wanted)
    return (wanted,)


def _other_types(wanted: type[Any], value: Any) -> Any:
    if wanted is Path:
        return Path(value)
    raise NotImplementedError(f"a setting cannot be a {wanted.__name__}")


def _type_name(wanted: Any) -> str:
    names = (getattr(member, "__name__", str(member)) for member in _members(wanted))
    return " or ".join("duration such as 30s" if name == "timedelta" else name for name in names)


def _closest(name: str, known: Sequence[str], otherwise: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"{otherwise} {', '.join(known) or 'none'}"


def configured(name: str, settings_type: type[S]) -> S:
    """The settings of one plugin as this process is configured.

    Raises:
        UsageError: A setting that does not exist or has another type; says where it is.
    """
    return Sources(installed_overrides().options).plugin(name, settings_type)
