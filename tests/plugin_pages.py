"""What the pages about plugins have to say of the code, word for word, made from the code."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from dagnats_worker import hookspecs

OF_THE_CORE = ("plugin_options",)
"""Attributes that nobody else reads."""

HEADINGS = ("When", "Order", "Errors")


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a docstring, each as one line, with single backticks."""
    text = re.sub(r":\w+:`(\w+)`", r"`\1`", inspect.cleandoc(text)).replace("``", "`")
    return [" ".join(part.split()) for part in text.split("\n\n")]


def signature_of(function: Any, *, of_class: bool = False) -> str:
    """A signature as it is written, without ``self``."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1 if of_class else 0 :]
    text = str(signature.replace(parameters=parameters))
    return re.sub(r"'([^']*)'", r"\1", text).replace("'", "")


def hook_lines(hook: str) -> list[str]:
    """What stands below the heading of a hook, line by line."""
    function = getattr(hookspecs, hook)
    summary, facts = paragraphs(function.__doc__)
    kind = "async def" if inspect.iscoroutinefunction(function) else "def"
    parts = re.split(r" ?(When|Order|Errors): ", facts)[1:]
    told = dict(zip(parts[::2], parts[1::2], strict=True))
    assert tuple(told) == HEADINGS, f"{hook}: {tuple(told)}"
    return [
        f"`{kind} {hook}{signature_of(function)}`",
        summary,
        *(f"- **{name}**: {told[name]}" for name in HEADINGS),
    ]


def attribute_lines(kind: type[Any]) -> list[str]:
    """The attributes of a class as its docstring describes them."""
    _, _, text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    described: dict[str, str] = {}
    for entry in re.split(r"\n(?=\w)", textwrap.dedent(text)):
        name, _, meaning = entry.partition(": ")
        described[name] = " ".join(meaning.replace("``", "`").split())
    return [
        f"- `{name}: {_type_of(kind, name)}`: {described[name]}"
        if name in described
        else f"- `{name}: {_type_of(kind, name)}`"
        for name in _attributes(kind)
    ]


def _attributes(kind: type[Any]) -> list[str]:
    if dataclasses.is_dataclass(kind):
        return [one.name for one in dataclasses.fields(kind) if one.name not in OF_THE_CORE]
    return list(kind.__annotations__) or list(inspect.signature(kind).parameters)


def _type_of(kind: type[Any], name: str) -> str:
    annotations = kind.__annotations__ or kind.__init__.__annotations__
    text = str(annotations[name])
    return re.sub(r"ClassVar\[(.*)\]", r"\1", text)


def member_lines(kind: type[Any]) -> list[str]:
    """The methods and properties of a class or protocol, in the order of the source."""
    return [f"- `{written}`: {told}" for written, told in _members(kind)]


def _members(kind: type[Any]) -> Iterator[tuple[str, str]]:
    for name, member in vars(kind).items():
        if name.startswith("_") or not (callable(member) or isinstance(member, property)):
            continue
        function = member.fget if isinstance(member, property) else member
        told = paragraphs(function.__doc__ or "")[0]
        if isinstance(member, property):
            returns = signature_of(function, of_class=True).partition(" -> ")[2]
            yield f"{name}: {returns}", told
        else:
            word = "async " if inspect.iscoroutinefunction(function) else ""
            yield f"{word}{name}{signature_of(function, of_class=True)}", told
