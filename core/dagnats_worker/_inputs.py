"""How models are read from JSON, inputs of handlers above all: one function per annotation."""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Union, cast, get_args, get_origin

import msgspec
from msgspec import inspect as msgspec_types

from dagnats_worker._envelope import unwrap_trigger
from dagnats_worker.errors import DecodeError, NonRetryableError

Decode = Callable[[bytes], Any]

REQUIRED: Any = object()
"""Stands for the default of a parameter that has none."""

BAD_INPUT = (ValueError, RecursionError, msgspec.MsgspecError)
"""What reading JSON raises. UnicodeDecodeError, a ValueError, is outside of msgspec's own tree."""

FIELD_ERRORS_MAX = 5
"""How many wrong fields of a pydantic model an error names."""


def input_decoder(
    annotation: Any, *, default: Any = REQUIRED, unwrap: bool = False, handler: str
) -> Decode:
    """Make the function that turns a task's input into a handler's argument.

    Args:
        annotation: The parameter's, resolved; ``Any`` where it has none.
        default: The argument where the task has no input.
        unwrap: Whether the envelope of a trigger is taken off first.
        handler: A name for error messages.

    Raises:
        TypeError: The annotation is not a type that JSON can be read into.
    """
    decode = _decoder(annotation, f"the input of handler {handler} is annotated with")
    if unwrap:
        decode = _after_unwrapping(decode)
    if default is REQUIRED and _admits_none(annotation):
        default = None

    def decode_input(raw: bytes) -> Any:
        if not raw:
            if default is REQUIRED:
                raise NonRetryableError(
                    f"unmarshal input: the task has no input, and handler {handler} needs one"
                )
            return default
        try:
            return decode(raw)
        except BAD_INPUT as error:
            raise NonRetryableError(f"unmarshal input: {_explain(error)}") from error

    return decode_input


def value_decoder(annotation: Any) -> Decode:
    """Make the function that reads stored bytes as a model, as the input of a handler is read.

    It raises ``DecodeError``, which says what is wrong and where. ``bytes`` are left as they are.

    Raises:
        TypeError: The annotation is not a type that JSON can be read into.
    """
    decode = _decoder(annotation, "the model is")

    def decode_value(raw: bytes) -> Any:
        try:
            return decode(raw)
        except BAD_INPUT as error:
            raise DecodeError(_explain(error)) from error

    return decode_value


def members(annotation: Any) -> Iterator[Any]:
    """What a union is made of, without ``Annotated``; anything else is its own only member."""
    if hasattr(annotation, "__value__"):  # a `type X = ...` statement
        yield from members(annotation.__value__)
    elif get_origin(annotation) is Annotated:
        yield from members(annotation.__origin__)
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from members(member)
    else:
        yield annotation


def _admits_none(annotation: Any) -> bool:
    return any(member in (None, types.NoneType, Any, object) for member in members(annotation))


def _decoder(annotation: Any, what: str) -> Decode:
    kinds = [member for member in members(annotation) if member not in (None, types.NoneType)]
    if kinds == [bytes]:
        return _as_it_is
    if object in kinds:
        annotation = Any
    try:
        if _mentions_pydantic(annotation):
            return _pydantic_decoder(annotation)
        return _msgspec_decoder(annotation)
    except Exception as error:  # inspecting a user's class can raise anything
        raise TypeError(
            f"{what} {annotation!r}, which cannot be read from JSON: {error}"
        ) from error


def _after_unwrapping(decode: Decode) -> Decode:
    return lambda raw: decode(unwrap_trigger(raw))


def _as_it_is(raw: bytes) -> bytes:
    return raw


def _msgspec_decoder(annotation: Any) -> Decode:
    # A type that msgspec does not know is an error only when it decodes; here it is one at once.
    foreign = [cls for cls in _foreign_types(annotation) if not _is_pydantic(cls)]
    if foreign:
        names = ", ".join(f"{cls.__module__}.{cls.__qualname__}" for cls in foreign)
        raise TypeError(
            f"{names} is none of: a builtin, a dataclass, a TypedDict, a msgspec.Struct, "
            "a pydantic model"
        )
    return msgspec.json.Decoder(annotation, dec_hook=_decode_model).decode


def _foreign_types(annotation: Any) -> list[type]:
    found: list[type] = []
    seen: set[int] = set()
    pending: list[Any] = [msgspec_types.type_info(annotation)]
    while pending:
        node = pending.pop()
        if isinstance(node, tuple):
            pending.extend(node)
        elif isinstance(node, msgspec_types.CustomType):
            found.append(node.cls)
        elif isinstance(node, msgspec_types.Type | msgspec_types.Field) and id(node) not in seen:
            seen.add(id(node))  # a type may contain itself
            pending.extend(getattr(node, field) for field in node.__struct_fields__)
    return found


def _is_pydantic(cls: Any) -> bool:
    # Duck-typed, so that pydantic is imported by those who use it and by nobody else.
    return isinstance(cls, type) and hasattr(cls, "__pydantic_validator__")


def _mentions_pydantic(annotation: Any) -> bool:
    return any(
        _is_pydantic(member) or any(_mentions_pydantic(part) for part in get_args(member))
        for member in members(annotation)
    )


def _pydantic_decoder(annotation: Any) -> Decode:
    pydantic = importlib.import_module("pydantic")
    try:
        decode: Decode = pydantic.TypeAdapter(annotation).validate_json
    except pydantic.errors.PydanticSchemaGenerationError:
        # A model inside of a type that only msgspec knows, such as a trigger's envelope.
        return _msgspec_decoder(annotation)
    return decode


def _decode_model(model: Any, value: Any) -> Any:
    try:
        return model.model_validate_json(msgspec.json.encode(value))
    except ValueError as error:
        raise ValueError(_explain(error)) from error


def _explain(error: Exception) -> str:
    """One line that says what is wrong and where; a pydantic error by itself has many."""
    if type(error).__module__.partition(".")[0] != "pydantic_core":
        return str(error)
    field_errors = cast("Any", error).errors(include_url=False, include_input=False)
    return "; ".join(
        f"{field['msg']} - at `{_path(field['loc'])}`" for field in field_errors[:FIELD_ERRORS_MAX]
    )


def _path(location: tuple[int | str, ...]) -> str:
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
