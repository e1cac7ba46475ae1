"""What a user's function is: how it is called and run, how its input and output are typed.

Everything is looked at once, at the registration, so that a handler that cannot work is refused
there, and so that one task costs no more than the call itself.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

from dagnats_worker._context import SyncTaskContext, TaskContext
from dagnats_worker._inputs import Decode, input_decoder
from dagnats_worker._json import encode
from dagnats_worker._signatures import TAKES, AnyHandler, ExecutorKind, read_signature
from dagnats_worker.errors import NonRetryableError, UsageError

P = ParamSpec("P")
R = TypeVar("R")
InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")

Handler = Callable[[TaskContext], Awaitable[Any]]
TypedHandler = Callable[[TaskContext, InputT], Awaitable[OutputT]]
SyncHandler = Callable[[SyncTaskContext], Any]
SyncTypedHandler = Callable[[SyncTaskContext, InputT], OutputT]


class Typed(Generic[P, R]):
    """A function that must take an input, as :func:`typed` makes it; can be called as before."""

    def __init__(self, function: Callable[P, R]) -> None:
        self.function = function
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)


def typed(function: Callable[P, R]) -> Typed[P, R]:
    """Mark a handler as typed: JSON in, JSON out, by its annotations.

    A handler with an input parameter is typed without this. The mark makes the registration refuse
    one that has none.

    Source: dagnats worker/typed.go, Typed.
    """
    return Typed(function)


@dataclass(frozen=True, slots=True)
class HandlerSpec:
    """What there is to know about one handler.

    Attributes:
        name: For messages.
        decode_input: Turns the bytes of a task's input into the argument; bad input is a
            ``NonRetryableError`` that says what is wrong and where.
    """

    function: AnyHandler
    name: str
    executor: ExecutorKind
    takes_context: bool
    takes_input: bool
    unwrap_trigger: bool
    decode_input: Decode

    def encode_output(self, value: Any) -> bytes:
        """Turn what the handler returned into JSON.

        Raises:
            NonRetryableError: It cannot be JSON; another attempt would not change that.
        """
        try:
            return encode(value)
        except UsageError as error:
            raise NonRetryableError(f"marshal output: {error}") from error


def inspect_handler(
    function: AnyHandler,
    *,
    executor: ExecutorKind | None = None,
    typed: bool = False,
    unwrap_trigger: bool = False,
) -> HandlerSpec:
    """Look at a function once, and refuse what cannot work as a handler.

    Args:
        executor: How to run it; None chooses by the function: async, or else a thread.
        typed: Whether it must take an input.
        unwrap_trigger: Whether its input is freed of a trigger's envelope.

    Raises:
        TypeError: The function cannot be a handler; the message names what is wrong and the remedy.
    """
    if isinstance(function, Typed):
        function, typed = function.function, True
    signature = read_signature(function, executor)
    if typed and not signature.takes_input:
        raise TypeError(f"typed handler {signature.name} takes no input; {TAKES}")
    return HandlerSpec(
        function=function,
        name=signature.name,
        executor=signature.executor,
        takes_context=signature.takes_context,
        takes_input=signature.takes_input,
        unwrap_trigger=unwrap_trigger,
        decode_input=input_decoder(
            signature.annotation,
            default=signature.default,
            unwrap=unwrap_trigger,
            handler=signature.name,
        ),
    )


def bind_async(spec: HandlerSpec) -> Callable[[TaskContext], Awaitable[Any]]:
    """Make the shortest way from a context to a coroutine of an async handler.

    Bad input is raised by the call, before there is anything to await.
    """
    function, decode_input = spec.function, spec.decode_input
    if not spec.takes_input:
        return function
    if not spec.takes_context:
        return lambda ctx: function(decode_input(ctx.input))
    return lambda ctx: function(ctx, decode_input(ctx.input))


def call_sync(spec: HandlerSpec, ctx: SyncTaskContext | None, raw_input: bytes) -> Any:
    """Call a handler that is not async, wherever that may block.

    Args:
        ctx: None for a handler that takes none.
        raw_input: The task's input; not read for a handler that takes none.

    Raises:
        UsageError: The handler returned something to be awaited, and nobody would.
    """
    arguments: list[Any] = [ctx] if spec.takes_context else []
    if spec.takes_input:
        arguments.append(spec.decode_input(raw_input))
    try:
        result = spec.function(*arguments)
    except StopIteration as error:
        # No future can carry it; a coroutine turns it into the same.
        raise RuntimeError(f"handler {spec.name} raised StopIteration") from error
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise UsageError(
            f"handler {spec.name} is no `async def`, yet it returned {type(result).__name__} "
            "to be awaited; make it `async def` and await that there"
        )
    return result
