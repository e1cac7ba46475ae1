"""Whether what a plugin's settings hold can be written down and read back."""

from __future__ import annotations

import dataclasses
import enum
import os
import tempfile
import types
import typing
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from dagnats_worker._setting_text import setting_text
from dagnats_worker._setting_values import PLUGINS, variable_of
from dagnats_worker._settings import Sources

SAMPLES: dict[type[Any], Any] = {
    bool: True,
    int: 7,
    float: 2.5,
    str: "text",
    timedelta: timedelta(seconds=90),
    Path: Path("some/file"),
}


def fields_of(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting by its name, with a value that it can have; the fields of a table one by one."""
    hints = typing.get_type_hints(type(settings))
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        if not one.init:
            continue
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{one.name}.")
        elif value is not None:
            yield f"{prefix}{one.name}", value
        elif (sample := _sample(hints[one.name])) is not None:
            yield f"{prefix}{one.name}", sample


def _sample(hint: Any) -> Any:
    """Some value of a type, for a setting that is None; None for a type that is too much."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        found = map(_sample, typing.get_args(hint))
        return next((one for one in found if one is not None), None)
    return SAMPLES.get(hint)


def read_as_option(name: str, settings_type: type[Any], values: Mapping[str, Any]) -> Any:
    """The settings after they were given on the command line."""
    options = [f"{name}.{key}={setting_text(value)}" for key, value in values.items()]
    return Sources(options, {}, os.devnull).plugin(name, settings_type)


def read_as_variable(name: str, settings_type: type[Any], values: Mapping[str, Any]) -> Any:
    """The settings after they were given in the environment."""
    variables = {variable_of(name, key): setting_text(value) for key, value in values.items()}
    return Sources((), variables, os.devnull).plugin(name, settings_type)


def read_as_toml(name: str, settings_type: type[Any], values: Mapping[str, Any]) -> Any:
    """The settings after they were given in a file."""
    lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "dagnats-worker.toml")
        file.write_text("\n".join((f"[{PLUGINS}.{name}]", *lines)))
        return Sources((), {}, file).plugin(name, settings_type)


def field_of(settings: Any, key: str) -> Any:
    """One setting by its name."""
    value = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _toml(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return _toml(value.value)
    if isinstance(value, bool | int | float):
        return setting_text(value)
    if isinstance(value, list | tuple | set | frozenset):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        pairs = (f"{_toml(str(key))} = {_toml(one)}" for key, one in value.items())
        return f"{{{', '.join(pairs)}}}"
    text = setting_text(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
