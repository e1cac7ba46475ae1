"""Settings from where users put them: command line, environment, file, in that strength.

The settings of the core and of each plugin are a frozen dataclass. What is not a field of it, or
does not have its type, is an error that says where it came from and what was probably meant.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import ssl
import tomllib
import typing
from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from dagnats_worker._config import TLSFiles, installed_overrides
from dagnats_worker._setting_types import (
    MAPPINGS,
    UNIONS,
    Form,
    WrongValueError,
    closest,
    converted,
    field_types,
    missing_fields,
)
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

Place = Literal["option", "variable", "file"]


class OptionError(UsageError):
    """What is wrong stands on the command line, so whoever has typed it is looking at it."""


@dataclass(frozen=True, slots=True)
class Given:
    """One value that somebody has set.

    Attributes:
        section: ``worker``, or the name of a plugin.
        key: With dots where the setting is within a table.
        origin: For messages: the option, the variable, the file with its table.
    """

    section: str
    key: str
    value: Any
    place: Place
    origin: str

    @property
    def form(self) -> Form:
        """How the value is to be read."""
        return "file" if self.place == "file" else "text"


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
        return _build(settings_type, WORKER, self._given(WORKER), None)

    def plugin(self, name: str, settings_type: type[S]) -> S:
        """The settings of one plugin.

        Raises:
            UsageError: As for ``worker``.
        """
        given = [one for one in self._given(name) if one.key not in PLUGIN_SWITCHES]
        return _build(settings_type, name, given, None)

    def stronger_than_code(self, name: str, settings: S) -> S:
        """Settings that the code has made, with what the command line says of them."""
        if not dataclasses.is_dataclass(settings) or isinstance(settings, type):
            return settings
        given = [
            one
            for one in self._options
            if one.section == _section(name) and one.key not in PLUGIN_SWITCHES
        ]
        return _build(type(settings), name, given, settings) if given else settings

    def option(self, section: str, key: str) -> str | None:
        """What the command line says of one setting; None where it says nothing."""
        said = [one.value for one in self._options if (one.section, one.key) == (section, key)]
        return said[-1] if said else None

    def switch(self, name: str, switch: str) -> bool | None:
        """``enabled`` or ``required`` of a plugin; None where nobody has said."""
        value = None
        for one in self._given(name):
            if one.key == switch:
                value = _convert(one, bool, name)
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


def variable_of(section: str, key: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{section}__{key}".replace("-", "_").replace(".", "__").upper()


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


# ---------------------------------------------------------------------- settings of a type


def _build(settings_type: type[S], section: str, given: Iterable[Given], base: S | None) -> S:
    """Make settings, or change those that are there already."""
    given = list(given)
    try:
        values = _values(settings_type, section, given, base)
        if base is not None:
            changed: Any = dataclasses.replace(typing.cast("Any", base), **values)
            return typing.cast("S", changed)
        if lacking := missing_fields(settings_type, values):
            raise UsageError(_lacks(section, lacking[0]))
        return settings_type(**values)
    except (ValueError, TypeError) as error:
        blamed = [one for one in given if one.key in str(error)] or given
        origins = ", ".join(dict.fromkeys(one.origin for one in blamed)) or section
        raise _error(blamed)(f"{origins}: {error}") from error


def _lacks(section: str, key: str) -> str:
    table = section if section.partition(".")[0] == WORKER else f"{PLUGINS}.{section}"
    return (
        f"{section!r} needs the setting {key!r}: give it as -o {section}.{key}=..., "
        f"in the variable {variable_of(section, key)}, or in [{table}] of {OWN_FILE}"
    )


def _error(given: Sequence[Given]) -> type[UsageError]:
    return OptionError if any(one.place == "option" for one in given) else UsageError


def _values(
    settings_type: type[Any], section: str, given: Iterable[Given], base: Any
) -> dict[str, Any]:
    hints = field_types(settings_type)
    fields = {one.name: one for one in dataclasses.fields(settings_type)}
    values: dict[str, Any] = {}
    parts: dict[str, list[Given]] = {}
    for one in given:
        key, _, inner = one.key.partition(".")
        if key not in hints:
            hint = closest(key, tuple(hints))
            raise _error([one])(f"{one.origin}: {section!r} has no setting {key!r}; {hint}")
        if _inner_type(hints[key]) is not None:
            parts.setdefault(key, []).extend(_parts(one, inner, section))
        elif inner:
            values.setdefault(key, {})[inner] = _convert_entry(one, hints[key], section)
        else:
            values[key] = _convert(one, hints[key], section, secret=not fields[key].repr)
    for key, inside in parts.items():
        inner_base = getattr(base, key, None) if base is not None else _default(fields[key])
        values[key] = _inner(hints[key], f"{section}.{key}", inside, inner_base)
    return values


def _inner_type(wanted: Any) -> type[Any] | None:
    """The dataclass that a setting is, or that it is made from."""
    members = typing.get_args(wanted) if typing.get_origin(wanted) in UNIONS else (wanted,)
    for member in members:
        if member is ssl.SSLContext:
            return TLSFiles
        if isinstance(member, type) and dataclasses.is_dataclass(member):
            return member
    return None


def _inner(wanted: Any, section: str, given: list[Given], base: Any) -> Any:
    inner_type = _inner_type(wanted)
    assert inner_type is not None, "what has parts is a dataclass"
    made = _build(inner_type, section, given, base if isinstance(base, inner_type) else None)
    if not isinstance(made, TLSFiles):
        return made
    try:
        return made.context()
    except OSError as error:
        raise _error(given)(f"{given[-1].origin}: {section}: {error}") from error


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _parts(given: Given, inner: str, section: str) -> list[Given]:
    """What was set of a setting that is a table: one field of it, or some at once."""
    if inner:
        return [dataclasses.replace(given, key=inner)]
    if not isinstance(given.value, dict):
        raise _error([given])(
            f"{given.origin}: {section}.{given.key} = {given.value!r} is not a table; "
            "set its fields one by one"
        )
    return [
        dataclasses.replace(given, key=key.replace("-", "_"), value=value)
        for key, value in given.value.items()
    ]


def _convert_entry(given: Given, wanted: Any, section: str) -> Any:
    """One entry of a setting that is a mapping."""
    if typing.get_origin(wanted) not in MAPPINGS:
        key = given.key.partition(".")[0]
        raise _error([given])(f"{given.origin}: {section}.{key} is not a table")
    return _convert(given, typing.get_args(wanted)[1], section)


def _convert(given: Given, wanted: Any, section: str, *, secret: bool = False) -> Any:
    try:
        return converted(given.value, wanted, given.form)
    except WrongValueError as error:
        shown = "" if secret else f" = {given.value!r}"
        text = f"{given.origin}: {section}.{given.key}{shown} {error}"
        raise _error([given])(text) from error


def configured(name: str, settings_type: type[S]) -> S:
    """The settings of one plugin as this process is configured.

    Raises:
        UsageError: A setting that does not exist or has another type; says where it is.
    """
    return Sources(installed_overrides().options).plugin(name, settings_type)
