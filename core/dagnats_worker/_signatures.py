"""What a function's signature says about it as a handler, and what is refused there.

Works through partials, methods, callable objects and decorators, with annotations that are text.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from dagnats_worker._context import BaseContext, SyncTaskContext, TaskContext
from dagnats_worker._inputs import REQUIRED, members

ExecutorKind = Literal["async", "thread", "process"]
AnyHandler = Callable[..., Any]

TAKES = "a handler takes (ctx), (ctx, input) or (input)"


@dataclass(frozen=True, slots=True)
class Signature:
    """A function, as a handler.

    Attributes:
        name: For messages.
        annotation: Of the input, resolved; ``Any`` where it has none.
        default: Of the input; ``REQUIRED`` where it has none.
    """

    name: str
    executor: ExecutorKind
    takes_context: bool
    takes_input: bool
    annotation: Any
    default: Any


def read_signature(function: AnyHandler, executor: ExecutorKind | None) -> Signature:
    """Read a function's signature, and refuse what cannot work as a handler.

    Args:
        executor: How to run it; None chooses by the function: async, or else a thread.

    Raises:
        TypeError: The message names the parameter or the annotation, and the remedy.
    """
    if not callable(function) or inspect.isclass(function):
        raise TypeError(f"a handler is a function or a callable object, got {function!r}")
    name = handler_name(function)
    kind = _executor(function, name, executor)
    parameters = _parameters(function, name)
    annotations = [_annotation(function, name, parameter) for parameter in parameters]
    takes_context = _split_context(name, kind, parameters, annotations)
    takes_input = len(parameters) > takes_context
    default = parameters[-1].default if takes_input else inspect.Parameter.empty
    return Signature(
        name=name,
        executor=kind,
        takes_context=takes_context,
        takes_input=takes_input,
        annotation=annotations[-1] if takes_input else Any,
        default=REQUIRED if default is inspect.Parameter.empty else default,
    )


def import_path(function: AnyHandler) -> tuple[str, str]:
    """Say where a child process finds a function: its module and its qualified name there.

    Raises:
        TypeError: It cannot be found by a name.
    """
    module = getattr(function, "__module__", None)
    qualified_name = getattr(function, "__qualname__", None)
    if not module or not qualified_name or inspect.ismethod(function) or "<" in qualified_name:
        raise TypeError(
            f"process handler {handler_name(function)} cannot be imported by name in a child "
            "process; use a function at the top level of a module: no lambda, closure, method or "
            "partial"
        )
    return module, qualified_name


def handler_name(function: AnyHandler) -> str:
    target = _innermost(function)
    return f"{target.__module__}.{getattr(target, '__qualname__', type(target).__qualname__)}"


def _innermost(function: Any) -> Any:
    """The plain function under partials, methods, callable objects and decorators."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif inspect.isroutine(function) or not inspect.isfunction(type(function).__call__):
            return function
        else:
            function = type(function).__call__


def _executor(function: AnyHandler, name: str, wanted: ExecutorKind | None) -> ExecutorKind:
    target = _innermost(function)
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        raise TypeError(
            f"handler {name} is a generator; send chunks with `ctx.put_stream(chunk)` instead of "
            "`yield`, and return the result"
        )
    if wanted not in (None, "async", "thread", "process"):
        raise TypeError(f"executor of handler {name} is async, thread or process, got {wanted!r}")
    is_async = _is_async(function)
    if is_async and wanted in ("thread", "process"):
        raise TypeError(
            f"handler {name} is async and cannot run with executor={wanted!r}; make it a plain "
            "`def`, or leave the executor out"
        )
    # A plain decorator around an async function passes its coroutine on.
    if not is_async and wanted == "async" and not inspect.iscoroutinefunction(target):
        raise TypeError(
            f"handler {name} is a plain `def` and would block the event loop with "
            "executor='async'; make it `async def`, or leave the executor out"
        )
    if wanted == "process":
        import_path(function)
    if wanted is not None:
        return wanted
    return "async" if is_async or inspect.iscoroutinefunction(target) else "thread"


def _is_async(function: AnyHandler) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(type(function), "__call__", None)  # noqa: B004 - looked at, not tested for
    )


def _parameters(function: AnyHandler, name: str) -> list[inspect.Parameter]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, NameError) as error:
        raise TypeError(f"the parameters of handler {name} cannot be read: {error}") from error
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(
                f"handler {name} has a parameter {parameter}; {TAKES} (a decorator in between "
                "needs functools.wraps)"
            )
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise TypeError(
                f"handler {name} has a keyword-only parameter {parameter.name!r} that nobody "
                f"fills; {TAKES}"
            )
    positional = [one for one in parameters if one.kind is not one.KEYWORD_ONLY]
    if not positional:
        raise TypeError(f"handler {name} has no parameter; {TAKES}")
    if len(positional) > 2:  # noqa: PLR2004 - the context and the input
        raise TypeError(f"handler {name} has one parameter more, {positional[2].name!r}; {TAKES}")
    return positional


def _annotation(function: AnyHandler, name: str, parameter: inspect.Parameter) -> Any:
    if parameter.annotation is inspect.Parameter.empty:
        return Any

    def bearer() -> None: ...

    # One parameter at a time, so that nothing else has to be resolvable, above all no return type.
    bearer.__annotations__ = {parameter.name: parameter.annotation}
    # The contexts are often imported for the type checker alone.
    names = {"TaskContext": TaskContext, "SyncTaskContext": SyncTaskContext}
    names |= getattr(_innermost(function), "__globals__", {})
    try:
        return get_type_hints(bearer, globalns=names, include_extras=True)[parameter.name]
    except Exception as error:  # evaluating an annotation can raise anything
        raise TypeError(
            f"parameter {parameter.name!r} of handler {name} is annotated with "
            f"{parameter.annotation!r}, which cannot be resolved: {error}; define or import it at "
            "the top level of the module, not only for the type checker"
        ) from error


def _split_context(
    name: str, kind: ExecutorKind, parameters: list[inspect.Parameter], annotations: list[Any]
) -> bool:
    """Whether the first parameter is the context; refused in any other place, and any other one."""
    contexts = [
        parameter.name == "ctx" or bool(_context_types(annotation))
        for parameter, annotation in zip(parameters, annotations, strict=True)
    ]
    names = ", ".join(parameter.name for parameter in parameters)
    if contexts == [False, False]:
        raise TypeError(
            f"handler {name} takes ({names}) and none of them is the context; annotate it with "
            "TaskContext or SyncTaskContext, or name it ctx"
        )
    if contexts[1:] == [True]:
        raise TypeError(f"handler {name} takes ({names}), with a context second; {TAKES}")
    if contexts[0] and kind == "process":
        raise TypeError(
            f"process handler {name} takes a context, {parameters[0].name!r}, and there is none in "
            "a child process; take the input alone"
        )
    right = TaskContext if kind == "async" else SyncTaskContext
    found = _context_types(annotations[0])
    if found and not any(issubclass(right, one) or issubclass(one, right) for one in found):
        raise TypeError(
            f"handler {name} runs with executor={kind!r} and gets a {right.__name__}; "
            f"annotate {parameters[0].name!r} with that and not with {found[0].__name__}"
        )
    return contexts[0]


def _context_types(annotation: Any) -> list[type[BaseContext]]:
    return [
        member
        for member in members(annotation)
        if isinstance(member, type) and issubclass(member, BaseContext)
    ]
