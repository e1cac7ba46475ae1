"""A checkpoint as a model: builtins, dataclasses, TypedDicts, msgspec and pydantic.

Method: a worker with the plugin; its handler saves a model in one attempt and loads it in the next.
Real: the plugin and the worker. Fake: the server, which is in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

import msgspec
import pydantic
import pytest
from checkpoint_support import SOON, MemoryGround, bench

from dagnats_worker import SyncTaskContext, TaskContext, TaskFailedError, UsageError
from dagnats_worker_checkpoint import Checkpoint, CheckpointDecodeError, SyncCheckpoint


@dataclass
class Point:
    x: int
    tags: list[str] = field(default_factory=list)


class Row(TypedDict):
    x: int


class Struct(msgspec.Struct):
    x: int
    inner: Point | None = None


class Strict(pydantic.BaseModel):
    x: pydantic.PositiveInt


MODELS: list[tuple[Any, Any]] = [
    (int, 7),
    (str, "text"),
    (dict[str, list[int]], {"a": [1]}),
    (tuple[int, str], (1, "a")),
    (bytes, b"\x00\xff"),
    (Any, {"any": ["thing"]}),
    (Point, Point(1, ["a"])),
    (list[Point], [Point(1), Point(2)]),
    (Row, {"x": 1}),
    (Struct, Struct(1, Point(2))),
    (Strict, Strict(x=1)),
    (dict[str, Strict], {"a": Strict(x=1)}),
    (Point | None, Point(3)),
    (Annotated[list[int], []], [1, 2]),
]


@pytest.mark.parametrize(("model", "state"), MODELS, ids=[str(model) for model, _ in MODELS])
async def test_model_that_was_saved_is_loaded(model: Any, state: Any) -> None:
    loaded: list[Any] = []

    async def handler(ctx: TaskContext) -> None:
        checkpoint = Checkpoint[Any](ctx, model)
        loaded.append(await checkpoint.load())
        if ctx.attempt == 1:
            await checkpoint.save(state)
            raise ConnectionError("half-way")

    async with bench(MemoryGround(), handler) as at:
        await at.run()
    assert loaded == [None, state]


async def test_model_is_loaded_in_a_blocking_handler() -> None:
    def handler(ctx: SyncTaskContext) -> Any:
        checkpoint = SyncCheckpoint(ctx, Point)
        point = checkpoint.load(default=Point(0))
        if checkpoint.resumed_from is None:
            checkpoint.save(Point(point.x + 1))
            checkpoint.pause("wait", SOON)
            return None
        return [point.x, checkpoint.resumed_from]

    async with bench(MemoryGround(), handler) as at:
        assert await at.run() == [1, "wait"]


async def test_pause_of_a_model_is_that_of_the_step() -> None:
    async def handler(ctx: TaskContext) -> Any:
        checkpoint = Checkpoint(ctx, Point)
        if checkpoint.resumed_from is None:
            await checkpoint.save(Point(1))
            await checkpoint.pause("wait", SOON)
            return None
        return await checkpoint.load()

    async with bench(MemoryGround(), handler) as at:
        assert await at.run() == {"x": 1, "tags": []}


BAD: list[tuple[Any, bytes, str]] = [
    (Point, b'{"x":"one"}', r"is no Point: Expected `int`, got `str` - at `\$\.x`"),
    (Point, b"{}", r"is no Point: Object missing required field `x`"),
    (Struct, b"not JSON", r"is no Struct: JSON is malformed"),
    (Strict, b'{"x":-1}', r"is no Strict: Input should be greater than 0 - at `\$\.x`"),
    (list[Point], b'[{"x":1},{}]', r"is no list: Object missing .* - at `\$\[1\]`"),
    (Point | None, b"1", r"is no .*Point \| None: Expected `object \| null`, got `int`"),
]


@pytest.mark.parametrize(("model", "stored", "says"), BAD, ids=[says for _, _, says in BAD])
async def test_state_of_another_model_is_an_error_that_names_the_field(
    model: Any, stored: bytes, says: str
) -> None:
    async def handler(ctx: TaskContext) -> None:
        await Checkpoint(ctx, model).load()

    ground = MemoryGround()
    async with bench(ground, handler) as at:
        await ground.put(at.key, stored)
        with pytest.raises(TaskFailedError, match=says) as failed:
            await at.run()
        assert f"the checkpoint of {at.key} is no" in str(failed.value)
        assert "give new fields a default" in str(failed.value)


async def test_handler_may_begin_anew_where_the_state_is_of_another_model() -> None:
    async def handler(ctx: TaskContext) -> int:
        checkpoint = Checkpoint(ctx, Point)
        try:
            point = await checkpoint.load(default=Point(0))
        except CheckpointDecodeError:
            point = Point(9)
        await checkpoint.save(point)
        return (await checkpoint.load(default=Point(0))).x

    ground = MemoryGround()
    async with bench(ground, handler) as at:
        await ground.put(at.key, b"something else")
        assert await at.run() == 9


async def test_null_is_a_state() -> None:
    async def handler(ctx: TaskContext) -> Any:
        checkpoint = Checkpoint[Any](ctx, int | None)  # type: ignore[arg-type]  # no TypeForm yet
        await checkpoint.save(None)
        return [await checkpoint.load(default="nothing")]

    async with bench(MemoryGround(), handler) as at:
        assert await at.run() == [None]


async def test_what_cannot_be_a_model_is_an_error_at_once() -> None:
    async def handler(ctx: TaskContext) -> None:
        Checkpoint(ctx, type)

    async with bench(MemoryGround(), handler) as at:
        with pytest.raises(TaskFailedError, match="this cannot be the model of a checkpoint") as no:
            await at.run()
    assert no.value.failure_type == "non_retriable"


async def test_view_of_the_other_kind_of_handler_says_which_one_to_take() -> None:
    async def handler(ctx: TaskContext) -> None:
        with pytest.raises(UsageError, match="an async handler takes Checkpoint"):
            SyncCheckpoint(ctx, int)  # type: ignore[arg-type]  # on purpose
        with pytest.raises(UsageError, match="a blocking handler takes SyncCheckpoint"):
            Checkpoint(ctx.sync(), int)  # type: ignore[arg-type]  # on purpose

    async with bench(MemoryGround(), handler) as at:
        await at.run()
