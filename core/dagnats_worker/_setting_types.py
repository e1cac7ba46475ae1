"""From what somebody wrote to the type that a field declares: as text, in a file, or in code."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import enum
import re
import types
import typing
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec

from dagnats_worker._durations import parse_duration

Form = Literal["text", "file", "code"]
"""Where a value comes from: a text that stands for it, a value of TOML, a Python object."""

UNIONS = (typing.Union, types.UnionType)
SEQUENCES = (tuple, list, set, frozenset, collections.abc.Sequence)
MAPPINGS = (dict, collections.abc.Mapping)
SWITCHES = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
NOTHING = ("none", "null")

_whole_number = re.compile(r"[+-]?\d+")


class WrongValueError(ValueError):
    """What a value is not; its text goes on after the value, ``is not a whole number``."""


def converted(value: Any, wanted: Any, form: Form) -> Any:
    """The value as the type that is wanted.

    Raises:
        WrongValueError: It is not one.
    """
    origin = typing.get_origin(wanted)
    if wanted is Any or isinstance(wanted, typing.TypeVar):
        return value
    if origin in UNIONS:
        return _union(value, typing.get_args(wanted), form)
    if origin is Literal:
        return _choice(value, typing.get_args(wanted), form)
    if (origin or wanted) in SEQUENCES:
        return _sequence(value, wanted, form)
    if (origin or wanted) in MAPPINGS:
        return _mapping(value, wanted, form)
    if form == "code":
        return _instance(value, wanted, origin or wanted)
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        return _table(value, wanted, form)
    return _scalar(value, wanted, form)


def type_name(wanted: Any) -> str:
    """What messages call a type."""
    if typing.get_origin(wanted) in UNIONS:
        members = [one for one in typing.get_args(wanted) if one is not type(None)]
        return " or ".join(type_name(one) for one in members)
    if typing.get_origin(wanted) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(wanted)))}"
    kind = typing.get_origin(wanted) or wanted
    if kind in SEQUENCES:
        return "a list"
    if kind in MAPPINGS or dataclasses.is_dataclass(kind):
        return "a table"
    return _NAMES.get(kind) or f"a {getattr(kind, '__name__', kind)}"


_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    timedelta: "a duration such as 30s",
    Path: "a path",
    type(None): "nothing",
    collections.abc.Callable: "a function",
}


def closest(name: str, known: Sequence[str], otherwise: str = "there are") -> str:
    """What was probably meant, or else everything that could have been."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"{otherwise} {', '.join(known) or 'none'}"


def field_types(settings_type: type[Any]) -> dict[str, Any]:
    """The fields of a dataclass that can be set, with their types.

    Raises:
        TypeError: Not a dataclass, or its annotations cannot be read.
    """
    if not (isinstance(settings_type, type) and dataclasses.is_dataclass(settings_type)):
        raise TypeError(f"{getattr(settings_type, '__name__', settings_type)} is not a dataclass")
    try:
        hints = typing.get_type_hints(settings_type)
    except (NameError, TypeError, AttributeError) as error:
        raise TypeError(
            f"the types of {settings_type.__name__} cannot be read: {error}; what they name must "
            "be importable when the program runs"
        ) from error
    return {one.name: hints[one.name] for one in dataclasses.fields(settings_type) if one.init}


def missing_fields(settings_type: type[Any], given: typing.Container[str]) -> list[str]:
    """The fields without a default that were not given."""
    return [
        one.name
        for one in dataclasses.fields(settings_type)
        if one.init
        and one.name not in given
        and one.default is dataclasses.MISSING
        and one.default_factory is dataclasses.MISSING
    ]


# ---------------------------------------------------------------------- composed types


def _union(value: Any, members: tuple[Any, ...], form: Form) -> Any:
    """The first member that fits; a text stays one only where nothing else can be made of it."""
    if value is None and type(None) in members:
        return None
    if form == "text" and type(None) in members and str(value).lower() in NOTHING:
        return None
    some = [one for one in members if one is not type(None)]
    if form == "code" and any(type(value) is one for one in some):
        return value
    failed: WrongValueError | None = None
    for member in sorted(some, key=lambda one: 2 if one is Path else one is str):
        try:
            return converted(value, member, form)
        except WrongValueError as error:
            failed = failed or error
    if failed is not None and len(some) == 1:
        raise failed
    raise WrongValueError(f"is not {' or '.join(type_name(one) for one in some)}")


def _choice(value: Any, choices: tuple[Any, ...], form: Form) -> Any:
    for choice in choices:
        if form == "text" and str(choice) == value:
            return choice
        if type(choice) is type(value) and choice == value:
            return choice
    raise WrongValueError(f"is not one of {', '.join(map(repr, choices))}")


def _sequence(value: Any, wanted: Any, form: Form) -> Any:
    kind = typing.get_origin(wanted) or wanted
    members = typing.get_args(wanted)
    if form == "text":
        value = _split(value)
    if not isinstance(value, list | tuple | set | frozenset):
        raise WrongValueError("is not a list")
    make = tuple if kind is collections.abc.Sequence else kind
    if kind is tuple and members and members[-1] is not Ellipsis:
        if len(members) != len(value):
            raise WrongValueError(f"has not {len(members)} members")
        return tuple(converted(one, kind, form) for one, kind in zip(value, members, strict=True))
    member = members[0] if members else Any
    return make(converted(one, member, form) for one in value)


def _split(text: str) -> list[Any]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _mapping(value: Any, wanted: Any, form: Form) -> dict[Any, Any]:
    keys, values = typing.get_args(wanted) or (Any, Any)
    if form == "text":
        pairs = [part.partition("=") for part in _split(value)]
        if not all(separator for _, separator, _ in pairs):
            raise WrongValueError("is not a table; write it as key=value,key=value")
        value = {key.strip(): text.strip() for key, _, text in pairs}
    if not isinstance(value, collections.abc.Mapping):
        raise WrongValueError("is not a table")
    return {converted(key, keys, form): converted(one, values, form) for key, one in value.items()}


def _table(value: Any, wanted: type[Any], form: Form) -> Any:
    """A dataclass within a list, as an array of tables has it."""
    if not isinstance(value, dict):
        raise WrongValueError("is not a table")
    hints = field_types(wanted)
    table = {key.replace("-", "_"): one for key, one in value.items()}
    for key in table:
        if key not in hints:
            raise WrongValueError(f"has no setting {key!r}; {closest(key, tuple(hints))}")
    if lacking := missing_fields(wanted, table):
        raise WrongValueError(f"lacks {', '.join(lacking)}")
    return wanted(**{key: converted(one, hints[key], form) for key, one in table.items()})


# ---------------------------------------------------------------------- plain types


def _instance(value: Any, wanted: Any, kind: Any) -> Any:
    """Code hands over the thing itself; only a whole number is taken for a number."""
    if kind is collections.abc.Callable:
        fits = callable(value)
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    elif kind is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(kind, type):
        try:
            fits = isinstance(value, kind)
        except TypeError:  # a protocol that cannot be asked
            fits = True
    else:
        fits = True
    if not fits:
        raise WrongValueError(f"is not {type_name(wanted)}")
    return value


def _scalar(value: Any, wanted: Any, form: Form) -> Any:
    if wanted is timedelta and isinstance(value, str):
        try:
            return parse_duration(value)
        except ValueError as error:
            raise WrongValueError(f"is not a duration: {error}") from error
    if wanted is Path and isinstance(value, str):
        return Path(value).expanduser()
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        return _member(value, wanted)
    if form == "text":
        return _from_text(str(value), wanted)
    return _checked(value, wanted, strict=True)


def _member(value: Any, wanted: type[enum.Enum]) -> enum.Enum:
    for member in wanted:
        if value == member.value or str(value).lower() in (member.name.lower(), str(member.value)):
            return member
    raise WrongValueError(f"is not one of {', '.join(repr(one.value) for one in wanted)}")


def _from_text(text: str, wanted: Any) -> Any:
    if wanted is str:
        return text
    if wanted is bool:
        if text.lower() not in SWITCHES:
            raise WrongValueError("is not true or false")
        return SWITCHES[text.lower()]
    if wanted is int and not _whole_number.fullmatch(text.strip()):
        raise WrongValueError("is not a whole number")
    return _checked(text.strip(), wanted, strict=False)


def _checked(value: Any, wanted: Any, *, strict: bool) -> Any:
    if wanted is timedelta:  # msgspec would take a number for seconds
        raise WrongValueError(f"is not {type_name(wanted)}")
    try:
        return msgspec.convert(value, wanted, strict=strict)
    except (ValueError, TypeError) as error:
        raise WrongValueError(f"is not {type_name(wanted)}") from error
