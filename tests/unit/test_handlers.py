"""What becomes of a user's function at the registration.

Method: real functions, real msgspec and pydantic types, no I/O. Fake: a context is anything with an
``input``, since a handler is called directly.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import subprocess
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Optional, TypedDict

import msgspec
import pydantic
import pytest

from dagnats_worker import _handlers
from dagnats_worker._context import SyncTaskContext, TaskContext
from dagnats_worker._envelope import TriggerEnvelope
from dagnats_worker._handlers import bind_async, call_sync, inspect_handler
from dagnats_worker.errors import NonRetryableError, UsageError

if TYPE_CHECKING:
    from dagnats_worker import NoSuchThing


class Size(msgspec.Struct):
    width: int
    height: int = 1


class Page(pydantic.BaseModel):
    number: int


class Chapter(pydantic.BaseModel):
    title: str


@pydantic.dataclasses.dataclass
class Cover:
    color: str


@dataclasses.dataclass
class Book:
    first: Page
    sizes: list[Size]


class Movie(TypedDict):
    title: str


class Context:
    def __init__(self, raw_input: bytes = b"") -> None:
        self.input = raw_input


class MyContext(TaskContext):
    __slots__ = ()


async def raw(ctx: TaskContext) -> None: ...


async def both(ctx: TaskContext, size: Size) -> int:
    return size.width


async def only_input(size: Size) -> int:
    return size.width


def blocking(ctx: SyncTaskContext, size: Size) -> int:
    return size.width


def decoded(annotation: Any, raw_input: bytes, **options: Any) -> Any:
    def handler(ctx, value): ...

    handler.__annotations__ = {"value": annotation}
    return inspect_handler(handler, **options).decode_input(raw_input)


def passed_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


# ------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (raw, ("async", "ctx")),
        (both, ("async", "ctx, input")),
        (only_input, ("async", "input")),
        (blocking, ("thread", "ctx, input")),
        (lambda ctx: None, ("thread", "ctx")),
        (lambda anything: None, ("thread", "input")),
        (len, ("thread", "input")),
    ],
)
def test_parameters_decide_what_a_handler_takes(
    function: Callable[..., Any], expected: tuple[str, str]
) -> None:
    spec = inspect_handler(function)
    takes = ["ctx"] * spec.takes_context + ["input"] * spec.takes_input
    assert (spec.executor, ", ".join(takes)) == expected


@pytest.mark.parametrize(
    "annotation",
    [
        TaskContext,
        "TaskContext",
        "_handlers.TaskContext",
        "Annotated[TaskContext, 'note'] | None",
        Optional[TaskContext],  # noqa: UP045 - one more spelling
        TaskContext | SyncTaskContext,
        MyContext,
    ],
)
def test_context_is_known_by_its_annotation_in_every_spelling(annotation: Any) -> None:
    async def handler(task): ...

    handler.__annotations__ = {"task": annotation}
    spec = inspect_handler(handler)
    assert spec.takes_context
    assert not spec.takes_input


def test_context_that_is_imported_for_the_type_checker_alone_is_known() -> None:
    module = types.ModuleType("without_context")
    source = "async def handler(task: TaskContext, size: int) -> Unknown: ..."
    exec(f"from __future__ import annotations\n{source}", module.__dict__)  # noqa: S102 - our text
    spec = inspect_handler(module.__dict__["handler"])
    assert spec.takes_context
    assert spec.decode_input(b"3") == 3


class Service:
    async def method(self, ctx: TaskContext, size: Size) -> int:
        return size.width

    async def __call__(self, ctx: TaskContext, size: Size) -> int:
        return size.width

    @staticmethod
    async def static(ctx: TaskContext, size: Size) -> int:
        return size.width


async def with_scale(scale: int, ctx: TaskContext, size: Size, *, offset: int = 0) -> int:
    return size.width * scale + offset


@pytest.mark.parametrize(
    "function",
    [
        Service().method,
        Service(),
        Service.static,
        functools.partial(with_scale, 1),
        functools.partial(with_scale, 1, offset=0),
        functools.partial(Service().method),
        passed_on(both),
        passed_on(passed_on(Service().method)),
        _handlers.typed(both),
        _handlers.typed(functools.partial(with_scale, 1)),
    ],
)
def test_callables_of_all_kinds_work_and_keep_being_async(function: Callable[..., Any]) -> None:
    spec = inspect_handler(function)
    assert (spec.executor, spec.takes_context, spec.takes_input) == ("async", True, True)
    context: Any = Context(b'{"width": 7}')
    assert asyncio.run(_await(bind_async(spec)(context))) == 7


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


async def bare(*args: Any) -> None: ...
async def keywords(ctx: TaskContext, **options: Any) -> None: ...
async def needs_keyword(ctx: TaskContext, *, region: str) -> None: ...
async def nothing() -> None: ...
async def three(ctx: TaskContext, size: Size, extra: int = 0) -> None: ...
async def two_inputs(first: int, second: int) -> None: ...
async def swapped(size: Size, ctx: TaskContext) -> None: ...
async def unresolved(ctx: TaskContext, thing: NoSuchThing) -> None: ...
async def wants_path(ctx: TaskContext, path: Path) -> None: ...
async def wants_paths(ctx: TaskContext, paths: dict[str, list[Path]]) -> None: ...
async def ambiguous(ctx: TaskContext, thing: Size | Book) -> None: ...
async def wrong_context(ctx: SyncTaskContext) -> None: ...
def wrong_sync_context(ctx: TaskContext) -> None: ...
async def chunks(ctx: TaskContext) -> AsyncIterator[int]:
    yield 1


def sync_chunks(ctx: SyncTaskContext) -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (None, {}, "got None"),
        (Size, {}, "got <class"),
        (bare, {}, r"\*args.*functools\.wraps"),
        (keywords, {}, r"\*\*options"),
        (needs_keyword, {}, "keyword-only parameter 'region'"),
        (nothing, {}, r"no parameter; a handler takes \(ctx\), \(ctx, input\) or \(input\)"),
        (three, {}, "one parameter more, 'extra'"),
        (two_inputs, {}, r"\(first, second\) and none of them is the context"),
        (swapped, {}, "context second"),
        (unresolved, {}, "'thing'.*'NoSuchThing', which cannot be resolved: name 'NoSuchThing'"),
        (wants_path, {}, "wants_path is annotated with .*pathlib.*Path is none of"),
        (wants_paths, {}, "pathlib.*Path is none of"),
        (ambiguous, {}, "cannot be read from JSON: Type unions may not"),
        (wrong_context, {}, "gets a TaskContext.*and not with SyncTaskContext"),
        (wrong_sync_context, {}, "gets a SyncTaskContext.*and not with TaskContext"),
        (chunks, {}, "generator.*put_stream"),
        (sync_chunks, {}, "generator.*put_stream"),
        (raw, {"typed": True}, "typed handler .*raw takes no input"),
        (_handlers.typed(raw), {}, "typed handler .*raw takes no input"),
        (both, {"executor": "thread"}, "is async and cannot run with executor='thread'"),
        (only_input, {"executor": "process"}, "is async and cannot run with executor='process'"),
        (blocking, {"executor": "async"}, "would block the event loop"),
        (blocking, {"executor": "fibre"}, "async, thread or process, got 'fibre'"),
        (blocking, {"executor": "process"}, "takes a context, 'ctx'"),
        (lambda size: size, {"executor": "process"}, "cannot be imported by name"),
        (functools.partial(len), {"executor": "process"}, "cannot be imported by name"),
        ("".join, {"executor": "process"}, "cannot be imported by name"),
    ],
)
def test_what_cannot_be_a_handler_is_refused_with_the_reason(
    function: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        inspect_handler(function, **options)


def test_closure_cannot_be_a_process_handler() -> None:
    def closure(size: int) -> int:
        return size

    with pytest.raises(TypeError, match="cannot be imported by name"):
        inspect_handler(closure, executor="process")


def test_typed_keeps_the_function_callable() -> None:
    marked = _handlers.typed(with_scale)
    context: Any = Context()
    assert asyncio.run(marked(2, context, Size(3), offset=1)) == 7
    assert marked.__name__ == "with_scale"


# ------------------------------------------------------------------------------- input


class Point(NamedTuple):
    x: int
    y: int


@pytest.mark.parametrize(
    ("annotation", "raw_input", "expected"),
    [
        (Any, b'{"a": [1, null]}', {"a": [1, None]}),
        (object, b"[1]", [1]),
        (int, b"123456789012345678901234567890", 123456789012345678901234567890),
        (Decimal, b"1.00000000000000000000000001", Decimal("1.00000000000000000000000001")),
        (float, b"2", 2.0),
        (Size, b'{"width": 2, "unknown": 0}', Size(2)),
        (list[Size], b'[{"width": 2}]', [Size(2)]),
        (Point, b"[1, 2]", Point(1, 2)),
        (Movie, b'{"title": "M"}', {"title": "M"}),
        (Size | None, b"null", None),
        (bytes, b'{"as": 1.50}', b'{"as": 1.50}'),
        (bytes | None, b"null", b"null"),
        (Annotated[bytes, "raw"], b"1", b"1"),
        (Annotated[int, msgspec.Meta(ge=1)], b"1", 1),
        (Page, b'{"number": 4}', Page(number=4)),
        (list[Page], b'[{"number": 4}]', [Page(number=4)]),
        (Page | None, b"null", None),
        (Page | Chapter, b'{"title": "t"}', Chapter(title="t")),
        (Cover, b'{"color": "red"}', Cover("red")),
        (Book, b'{"first": {"number": 1}, "sizes": []}', Book(Page(number=1), [])),
    ],
)
def test_input_is_decoded_by_its_annotation(
    annotation: Any, raw_input: bytes, expected: Any
) -> None:
    assert decoded(annotation, raw_input) == expected


def test_parameter_without_annotation_takes_any_json() -> None:
    assert inspect_handler(lambda value: value).decode_input(b'{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("annotation", "raw_input", "message"),
    [
        (Size, b'{"width": "x"}', r"unmarshal input: Expected `int`, got `str` - at `\$\.width`"),
        (Size, b"{}", "missing required field `width`"),
        (list[Size], b'[{"width": 1}, 2]', r"\$\[1\]"),
        (Page, b'{"number": "x"}', r"unmarshal input: .*valid integer.* - at `\$\.number`$"),
        (list[Page], b"[{}]", r"Field required - at `\$\[0\]\.number`"),
        (Book, b'{"first": {}, "sizes": []}', r"Field required - at `\$\.number`.*\$\.first"),
        (Page, b"{", "Invalid JSON"),
        (Any, b"{", "truncated"),
        (Any, b"1 2", "trailing"),
        (Any, b"NaN", "malformed"),
        (Any, b'"\xff"', "utf-8"),
        (Any, b"[" * 100_000, "recursion"),
        (Annotated[int, msgspec.Meta(ge=1)], b"0", ">= 1"),
    ],
)
def test_bad_input_is_permanent_and_says_what_is_wrong_where(
    annotation: Any, raw_input: bytes, message: str
) -> None:
    with pytest.raises(NonRetryableError, match=message) as caught:
        decoded(annotation, raw_input)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("unmarshal input: ")


def test_validator_of_the_user_counts_as_bad_input() -> None:
    class Even(msgspec.Struct):
        number: int

        def __post_init__(self) -> None:
            if self.number % 2:
                raise ValueError("odd")

    with pytest.raises(NonRetryableError, match="odd"):
        decoded(Even, b'{"number": 1}')


@pytest.mark.parametrize(
    "annotation", [None, Any, object, int | None, Size | None, Page | None, bytes | None]
)
def test_absent_input_is_none_where_the_annotation_admits_it(annotation: Any) -> None:
    assert decoded(annotation, b"") is None


def test_absent_input_is_the_default() -> None:
    def handler(size: Size | None = Size(9)) -> None: ...  # noqa: B008 - what users write

    assert inspect_handler(handler).decode_input(b"") == Size(9)


@pytest.mark.parametrize("annotation", [int, Size, Page, bytes])
def test_absent_input_fails_where_the_handler_needs_one(annotation: Any) -> None:
    with pytest.raises(NonRetryableError, match=r"no input, and handler .* needs one"):
        decoded(annotation, b"")


ENVELOPE = (
    b'{"trigger":"http","source":"s","workflow_id":"w","timestamp":"2026-01-01T00:00:00Z",'
    b'"data":{"number":3}}'
)


def test_unwrapping_frees_the_input_of_its_envelope_for_every_kind_of_annotation() -> None:
    assert decoded(Page, ENVELOPE, unwrap_trigger=True) == Page(number=3)
    assert decoded(Any, ENVELOPE, unwrap_trigger=True) == {"number": 3}
    assert decoded(bytes, ENVELOPE, unwrap_trigger=True) == b'{"number":3}'
    assert decoded(Page, b'{"number": 4}', unwrap_trigger=True) == Page(number=4)
    assert decoded(int | None, b"", unwrap_trigger=True) is None
    with pytest.raises(NonRetryableError, match="detect envelope"):
        decoded(Page, b'{"trigger" 1}', unwrap_trigger=True)


def test_envelope_can_be_the_annotation_with_any_data_inside() -> None:
    assert decoded(TriggerEnvelope[dict[str, int]], ENVELOPE).data == {"number": 3}
    assert decoded(TriggerEnvelope[Page], ENVELOPE).data == Page(number=3)
    with pytest.raises(NonRetryableError, match=r"\$\.data"):
        decoded(TriggerEnvelope[Page], ENVELOPE.replace(b"3", b"[]"))


def test_pydantic_is_not_imported_for_those_who_do_not_use_it() -> None:
    program = (
        "import sys\n"
        "from dagnats_worker._handlers import inspect_handler\n"
        "inspect_handler(lambda ctx, value: 1).decode_input(b'1')\n"
        "sys.exit('pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=30).returncode == 0


# ------------------------------------------------------------------------------- call and output


def test_raw_async_handler_is_called_without_anything_in_between() -> None:
    assert bind_async(inspect_handler(raw)) is raw


def test_async_handlers_get_their_arguments() -> None:
    async def run() -> list[int]:
        context: Any = Context(b'{"width": 5}')
        return [
            await bind_async(inspect_handler(both))(context),
            await bind_async(inspect_handler(only_input))(context),
        ]

    assert asyncio.run(run()) == [5, 5]


def test_blocking_handlers_get_their_arguments() -> None:
    context: Any = object()
    assert call_sync(inspect_handler(blocking), context, b'{"width": 5}') == 5
    assert call_sync(inspect_handler(lambda ctx: ctx), context, b"bad") is context
    assert call_sync(inspect_handler(lambda value: value), None, b"5") == 5


def test_coroutine_of_a_handler_that_is_not_async_is_an_error_and_is_closed() -> None:
    spec = inspect_handler(lambda size: only_input(size), executor="thread")  # noqa: PLW0108 - not async
    with pytest.raises(UsageError, match="make it `async def`"):
        call_sync(spec, None, b"1")


def test_stop_iteration_becomes_an_error_that_a_future_can_carry() -> None:
    spec = inspect_handler(lambda values: next(iter(values)))
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        call_sync(spec, None, b"[]")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, b"null"),
        (Size(1), b'{"width":1,"height":1}'),
        (Page(number=1), b'{"number":1}'),
        (b'{"a": 1}', b'{"a": 1}'),
    ],
)
def test_output_is_encoded(value: Any, expected: bytes) -> None:
    output = inspect_handler(raw).encode_output(value)
    assert json.loads(output) == json.loads(expected)


@pytest.mark.parametrize("value", [object(), float("nan"), b"{", "\ud800"])
def test_output_that_cannot_be_json_is_permanent(value: Any) -> None:
    with pytest.raises(NonRetryableError, match=r"^marshal output: "):
        inspect_handler(raw).encode_output(value)
