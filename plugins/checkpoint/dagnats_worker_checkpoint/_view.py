"""A checkpoint as a model: what a handler saves and loads is typed, as its input is."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import lru_cache
from typing import Any, Generic, TypeVar, overload

from dagnats_worker import CHECKPOINTS, BaseContext, SyncTaskContext, TaskContext, UsageError
from dagnats_worker.errors import DecodeError
from dagnats_worker.hookspecs import value_decoder
from dagnats_worker_checkpoint._errors import CheckpointDecodeError

T = TypeVar("T")
D = TypeVar("D")
ContextT = TypeVar("ContextT", bound=BaseContext)

MODELS_MAX = 256


class _View(Generic[ContextT, T]):
    """What both views share: the model, and the context of one task."""

    def __init__(self, ctx: ContextT, model: type[T]) -> None:
        self._ctx = ctx
        self._model = model
        self._decode = _decoder(model)

    @property
    def resumed_from(self) -> str | None:
        """The name of the pause after which the step goes on now; None where it has not paused."""
        return self._ctx.use(CHECKPOINTS).resumed_from

    async def _load(self, default: D) -> T | D:
        stored = await self._ctx.use(CHECKPOINTS).load_checkpoint()
        if stored is None:
            return default
        try:
            state: T = self._decode(stored)
        except DecodeError as error:
            name = getattr(self._model, "__name__", str(self._model))
            raise CheckpointDecodeError(
                f"the checkpoint of {self._ctx.task_id} is no {name}: {error}. Where an older "
                "version of the handler has saved it, give new fields a default; load_checkpoint() "
                "returns it as it is, and a checkpoint of the right kind replaces it"
            ) from error
        return state

    def _save(self, state: T) -> Coroutine[Any, Any, None]:
        return self._ctx.use(CHECKPOINTS).checkpoint(state)

    def _pause(self, name: str, duration: timedelta) -> Coroutine[Any, Any, None]:
        return self._ctx.use(CHECKPOINTS).pause(name, duration)


class Checkpoint(_View[TaskContext, T]):
    """The checkpoint of a step as a model, in an async handler.

    Example:
        ```python
        @dataclass
        class Progress:
            done: int = 0

        @worker.task("import")
        async def import_rows(ctx: TaskContext, rows: list[str]) -> int:
            checkpoint = Checkpoint(ctx, Progress)
            progress = await checkpoint.load(default=Progress())
            for row in rows[progress.done :]:
                await store(row)
                progress.done += 1
                await checkpoint.save(progress)
            return progress.done
        ```

    Args:
        ctx: Of the task.
        model: A builtin, a dataclass, a TypedDict, a msgspec.Struct or a pydantic model; ``bytes``
            are saved and loaded as they are.

    Raises:
        UsageError: JSON cannot be read into the model, or the context is that of a blocking
            handler.
    """

    def __init__(self, ctx: TaskContext, model: type[T]) -> None:
        _check(ctx, TaskContext, "a blocking handler takes SyncCheckpoint")
        super().__init__(ctx, model)

    @overload
    async def load(self) -> T | None: ...
    @overload
    async def load(self, default: D) -> T | D: ...
    async def load(self, default: Any = None) -> Any:
        """The state that was saved last, or the default.

        Raises:
            CheckpointDecodeError: It is not of the model; says which field is wrong.
            KeyValueError, StaleAttemptError: As ``ctx.load_checkpoint`` does.
        """
        return await self._load(default)

    async def save(self, state: T) -> None:
        """Save a state; raises as ``ctx.checkpoint`` does."""
        await self._save(state)

    async def pause(self, name: str, duration: timedelta) -> None:
        """Keep the state, and let the step be run again; see ``ctx.pause``."""
        await self._pause(name, duration)


class SyncCheckpoint(_View[SyncTaskContext, T]):
    """The checkpoint of a step as a model, in a blocking handler; see ``Checkpoint``."""

    def __init__(self, ctx: SyncTaskContext, model: type[T]) -> None:
        _check(ctx, SyncTaskContext, "an async handler takes Checkpoint")
        super().__init__(ctx, model)

    @overload
    def load(self) -> T | None: ...
    @overload
    def load(self, default: D) -> T | D: ...
    def load(self, default: Any = None) -> Any:
        """The state that was saved last, or the default; see ``Checkpoint.load``."""
        return self._ctx.run(self._load(default))

    def save(self, state: T) -> None:
        """Save a state; raises as ``ctx.checkpoint`` does."""
        self._ctx.run(self._save(state))

    def pause(self, name: str, duration: timedelta) -> None:
        """Keep the state, and let the step be run again; see ``ctx.pause``."""
        self._ctx.run(self._pause(name, duration))


def _check(ctx: object, wanted: type[BaseContext], otherwise: str) -> None:
    if not isinstance(ctx, wanted):
        raise UsageError(f"ctx is a {wanted.__name__}, got {ctx!r}; {otherwise}")


def _decoder(model: Any) -> Callable[[bytes], Any]:
    try:
        try:
            hash(model)
        except TypeError:  # such as Annotated[list[int], []]
            return value_decoder(model)
        return _cached_decoder(model)
    except TypeError as error:
        raise UsageError(f"this cannot be the model of a checkpoint: {error}") from error


@lru_cache(maxsize=MODELS_MAX)
def _cached_decoder(model: Any) -> Callable[[bytes], Any]:
    """Made once for each model: looking into a model takes far longer than reading one."""
    return value_decoder(model)
