"""From the values that were set to the settings of a type: merged, converted, and checked."""

from __future__ import annotations

import dataclasses
import ssl
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from dagnats_worker._config import TLSFiles
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
WORKER = "worker"
PLUGINS = "plugins"

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


def variable_of(section: str, key: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{section}__{key}".replace("-", "_").replace(".", "__").upper()


def build(settings_type: type[S], section: str, given: Iterable[Given], base: S | None) -> S:
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
        raise error_of(blamed)(f"{origins}: {error}") from error


def _lacks(section: str, key: str) -> str:
    table = section if section.partition(".")[0] == WORKER else f"{PLUGINS}.{section}"
    return (
        f"{section!r} needs the setting {key!r}: give it as -o {section}.{key}=..., "
        f"in the variable {variable_of(section, key)}, or in [{table}] of {OWN_FILE}"
    )


def error_of(given: Sequence[Given]) -> type[UsageError]:
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
            raise error_of([one])(f"{one.origin}: {section!r} has no setting {key!r}; {hint}")
        if _inner_type(hints[key]) is not None:
            parts.setdefault(key, []).extend(_parts(one, inner, section))
        elif inner:
            values.setdefault(key, {})[inner] = _convert_entry(one, hints[key], section)
        else:
            values[key] = convert(one, hints[key], section, secret=not fields[key].repr)
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
    made = build(inner_type, section, given, base if isinstance(base, inner_type) else None)
    if not isinstance(made, TLSFiles):
        return made
    try:
        return made.context()
    except OSError as error:
        raise error_of(given)(f"{given[-1].origin}: {section}: {error}") from error


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _parts(given: Given, inner: str, section: str) -> list[Given]:
    """What was set of a setting that is a table: one field of it, or some at once."""
    if inner:
        return [dataclasses.replace(given, key=inner)]
    if not isinstance(given.value, dict):
        raise error_of([given])(
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
        raise error_of([given])(f"{given.origin}: {section}.{key} is not a table")
    return convert(given, typing.get_args(wanted)[1], section)


def convert(given: Given, wanted: Any, section: str, *, secret: bool = False) -> Any:
    try:
        return converted(given.value, wanted, given.form)
    except WrongValueError as error:
        shown = "" if secret else f" = {given.value!r}"
        text = f"{given.origin}: {section}.{given.key}{shown} {error}"
        raise error_of([given])(text) from error
