"""Where handlers run.

Method: real threads and real child processes, watched by their ids; where the interpreter's exit
matters, a real interpreter. Fake: the context, which has just what the executors touch.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import process_handlers as handlers
import pytest
from support import eventually

from dagnats_worker._executors import Executors
from dagnats_worker._handlers import inspect_handler
from dagnats_worker._outcome import failed
from dagnats_worker._process_child import RemoteHandlerError
from dagnats_worker._processes import HandlerCrashError
from dagnats_worker.errors import NonRetryableError, RetryAfterError, UsageError

BOUND_S = 20


class Context:
    def __init__(self, value: Any = None, **carrier: str) -> None:
        self.input = msgspec.json.encode(value)
        self.carrier = carrier
        self.abandoned: Future[Any] | None = None

    def sync(self) -> tuple[str, Context]:
        return "sync", self


@pytest.fixture
async def executors() -> AsyncIterator[Executors]:
    pools = Executors(threads_max=2, processes_max=2)
    yield pools
    await pools.close(1)


async def run(executors: Executors, handler: Callable[..., Any], context: Context, **options: Any):
    async with asyncio.timeout(BOUND_S):
        return await executors.invoke(inspect_handler(handler, **options))(context)


async def in_process(executors: Executors, handler: Callable[..., Any], value: Any = None) -> Any:
    return msgspec.json.decode(await run(executors, handler, Context(value), executor="process"))


def is_gone(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return True
    return False


# ------------------------------------------------------------------------------- on the loop


async def test_async_handler_runs_in_the_awaiting_task(executors: Executors) -> None:
    async def handler(ctx, value):
        return ctx, value, asyncio.current_task()

    context = Context(3)
    task = asyncio.current_task()
    invoke = executors.invoke(inspect_handler(handler))
    assert await invoke(context) == (context, 3, task)


# ------------------------------------------------------------------------------- in threads


async def test_thread_keeps_the_loop_free(executors: Executors) -> None:
    loop_turned = threading.Event()

    def handler(ctx):
        return loop_turned.wait(BOUND_S), threading.current_thread().name

    asyncio.get_running_loop().call_soon(loop_turned.set)
    assert await run(executors, handler, Context()) == (True, "dagnats-worker-1")


async def test_thread_gets_the_sync_context_the_input_and_the_context_variables(
    executors: Executors,
) -> None:
    variable = contextvars.ContextVar[str]("variable")

    def handler(ctx, value):
        seen = variable.get()
        variable.set("changed in the thread")
        return ctx, value, seen

    context = Context({"a": 1})
    variable.set("of the task")
    assert await run(executors, handler, context) == (("sync", context), {"a": 1}, "of the task")
    assert variable.get() == "of the task"


async def test_as_many_threads_run_as_there_are_calls_up_to_the_limit(
    executors: Executors,
) -> None:
    meeting = threading.Barrier(2, timeout=BOUND_S)

    def handler(ctx):
        meeting.wait()
        return threading.current_thread().name

    names = [
        await asyncio.gather(*(run(executors, handler, Context()) for _ in range(6)))
        for _ in range(3)
    ]
    assert set(chain(*names)) == {"dagnats-worker-1", "dagnats-worker-2"}


async def test_one_call_after_the_other_needs_one_thread(executors: Executors) -> None:
    def handler(ctx):
        return threading.current_thread().name

    assert {await run(executors, handler, Context()) for _ in range(200)} == {"dagnats-worker-1"}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_exception_that_ends_programs_ends_one_call_only(
    executors: Executors, error: BaseException
) -> None:
    def handler(ctx, number):
        if number == 0:
            raise error
        return number

    context = Context(0)
    with pytest.raises(type(error)):
        await run(executors, handler, context)
    assert context.abandoned is None
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert await asyncio.gather(*(run(executors, handler, Context(n)) for n in (1, 2, 3))) == [
        1,
        2,
        3,
    ]


async def test_stop_iteration_out_of_a_thread_does_not_hang(executors: Executors) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        await run(executors, lambda ctx: next(iter(())), Context())


async def test_cancelled_thread_is_abandoned_at_once_and_its_end_can_be_seen(
    executors: Executors,
) -> None:
    started, release = threading.Event(), threading.Event()

    def handler(ctx):
        started.set()
        return release.wait(BOUND_S)

    context = Context()
    task = asyncio.create_task(run(executors, handler, context))
    await asyncio.to_thread(started.wait, BOUND_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert executors.abandoned == 1
    assert context.abandoned is not None
    assert not context.abandoned.done()
    # The other thread goes on working meanwhile.
    assert await run(executors, lambda ctx: 5, Context()) == 5
    release.set()
    assert await asyncio.wrap_future(context.abandoned) is True
    assert executors.abandoned == 0


async def test_cancelled_call_that_has_not_started_never_starts(executors: Executors) -> None:
    release, calls = threading.Event(), []

    def block(ctx):
        return release.wait(BOUND_S)

    blockers = [asyncio.create_task(run(executors, block, Context())) for _ in range(2)]
    context = Context()
    waiting = asyncio.create_task(run(executors, lambda ctx: calls.append(1), context))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()
    assert await asyncio.gather(*blockers) == [True, True]
    assert context.abandoned is None
    assert executors.abandoned == 0
    assert await run(executors, lambda ctx: "next", Context()) == "next"
    assert calls == []


async def test_close_waits_no_longer_than_it_may_for_an_abandoned_thread() -> None:
    executors = Executors(threads_max=1, processes_max=1)
    started, release = threading.Event(), threading.Event()

    def handler(ctx):
        started.set()
        return release.wait(BOUND_S)

    task = asyncio.create_task(run(executors, handler, Context()))
    await asyncio.to_thread(started.wait, BOUND_S)
    task.cancel()
    await asyncio.wait([task])
    async with asyncio.timeout(BOUND_S / 2):
        await executors.close(0.05)
    assert executors.abandoned == 1
    release.set()
    await eventually(lambda: executors.abandoned == 0)
    with pytest.raises(RuntimeError, match="closed"):
        await run(executors, handler, Context())


def test_interpreter_exits_although_an_abandoned_thread_still_sleeps() -> None:
    program = """
        import asyncio, threading, time
        from dagnats_worker._executors import Executors
        from dagnats_worker._handlers import inspect_handler

        class Context:
            input = b""
            def sync(self): return self

        async def main():
            executors = Executors(threads_max=1, processes_max=1)
            started = threading.Event()
            invoke = executors.invoke(inspect_handler(lambda ctx: started.set() or time.sleep(600)))
            task = asyncio.create_task(invoke(Context()))
            await asyncio.to_thread(started.wait)
            task.cancel()
            await asyncio.wait([task])
            await executors.close(0.05)
            print("abandoned", executors.abandoned)

        asyncio.run(main())
    """
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        check=True,
        timeout=BOUND_S,
        capture_output=True,
        text=True,
    )
    assert (finished.stdout, finished.stderr) == ("abandoned 1\n", "")


# ------------------------------------------------------------------------------- in processes


async def test_twenty_jobs_share_two_processes(executors: Executors) -> None:
    jobs = [in_process(executors, handlers.process_id_later, 0.01) for _ in range(20)]
    ids = await asyncio.gather(*jobs)
    assert len(set(ids)) == 2
    assert os.getpid() not in ids


async def test_jobs_one_after_the_other_use_one_process_again(executors: Executors) -> None:
    assert len({await in_process(executors, handlers.process_id) for _ in range(5)}) == 1


async def test_input_and_output_are_typed_in_the_child(executors: Executors) -> None:
    assert await in_process(executors, handlers.width, {"width": 4}) == {"width": 8}
    assert await in_process(executors, handlers.number, {"number": 4}) == {"number": 5}
    assert await in_process(executors, handlers.marked, {"width": 4}) == 4
    with pytest.raises(NonRetryableError, match=r"unmarshal input: .* at `\$\.width`"):
        await in_process(executors, handlers.width, {"width": "wide"})
    with pytest.raises(NonRetryableError, match="marshal output: "):
        await in_process(executors, handlers.lock)


async def test_process_keeps_the_loop_free(executors: Executors, tmp_path: Path) -> None:
    awaited = tmp_path / "awaited"
    await in_process(executors, handlers.process_id)
    asyncio.get_running_loop().call_later(0.05, awaited.touch)
    assert await in_process(executors, handlers.file_appears, str(awaited))


async def test_cancelled_process_is_killed_with_what_it_started_and_replaced(
    tmp_path: Path,
) -> None:
    executors = Executors(threads_max=1, processes_max=1)
    marker = tmp_path / "ids"
    first = await in_process(executors, handlers.process_id)
    job = asyncio.create_task(in_process(executors, handlers.announce_and_hang, str(marker)))
    await eventually(marker.exists, BOUND_S)
    child, helper = map(int, marker.read_text().split())
    assert child == first
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    # The one waiter reaps the old child before it starts a new one.
    assert await in_process(executors, handlers.process_id) != child
    assert is_gone(child)
    await eventually(lambda: has_ended(helper), BOUND_S)
    await executors.close(1)


def listed(*fields: str) -> list[list[str]]:
    """All processes, with these fields of each."""
    options = [option for field in fields for option in ("-o", f"{field}=")]
    output = subprocess.run(["ps", "-A", *options], check=True, capture_output=True, text=True)
    return [line.split(None, len(fields) - 1) for line in output.stdout.splitlines()]


def has_ended(process_id: int) -> bool:
    """Gone, or a zombie: an orphan is reaped by whoever adopts it, in a container often nobody."""
    return all(
        status.startswith("Z") for pid, status in listed("pid", "stat") if int(pid) == process_id
    )


async def test_process_cancelled_while_it_starts_is_not_left_behind() -> None:
    executors = Executors(threads_max=1, processes_max=1)
    for turns in (1, 2, 5, 50):
        job = asyncio.create_task(in_process(executors, handlers.process_id_later, 600))
        for _ in range(turns):
            await asyncio.sleep(0)
        job.cancel()
        await asyncio.wait([job])
    assert await in_process(executors, handlers.process_id)
    await executors.close(1)
    assert not [
        (status, command)
        for parent, status, command in listed("ppid", "stat", "args")
        if int(parent) == os.getpid() and ("spawn_main" in command or status.startswith("Z"))
    ]


async def test_process_whose_reply_comes_together_with_the_cancellation_is_reaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executors = Executors(threads_max=1, processes_max=1)
    waiters, calls = executors._processes._waiters, []
    submit = waiters.submit
    monkeypatch.setattr(waiters, "submit", lambda *call: calls.append(submit(*call)) or calls[-1])
    child = await in_process(executors, handlers.process_id)
    job = asyncio.create_task(in_process(executors, handlers.process_id))
    await asyncio.sleep(0)
    calls[1].result(BOUND_S)  # blocks the loop, which so cannot see the reply
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert is_gone(child)
    assert await in_process(executors, handlers.process_id) != child
    await executors.close(1)


async def test_process_stays_when_a_job_is_cancelled_that_it_never_got() -> None:
    executors = Executors(threads_max=1, processes_max=1)
    child = await in_process(executors, handlers.process_id)
    release = threading.Event()
    executors._processes._waiters.submit(release.wait, BOUND_S)
    job = asyncio.create_task(in_process(executors, handlers.process_id))
    await asyncio.sleep(0)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    release.set()
    assert await in_process(executors, handlers.process_id) == child
    await executors.close(1)


@pytest.mark.parametrize(
    ("handler", "value", "message"),
    [
        (handlers.leave, 3, r"process \d+ ended with exit code 3"),
        (handlers.leave, 0, "ended with exit code 0"),
        (handlers.die_by_signal, signal.SIGSEGV, r"was killed by SIGSEGV \(11\)"),
        (handlers.die_by_signal, signal.SIGKILL, r"was killed by SIGKILL \(9\); out of memory"),
    ],
)
async def test_process_that_dies_fails_its_own_job_only(
    executors: Executors, handler: Callable[..., Any], value: int, message: str
) -> None:
    neighbour = asyncio.create_task(in_process(executors, handlers.process_id_later, 0.3))
    with pytest.raises(HandlerCrashError, match=message) as caught:
        await in_process(executors, handler, value)
    assert failed(caught.value).failure_type == "retriable"
    assert await neighbour
    assert await in_process(executors, handlers.process_id)


async def test_process_that_died_while_idle_is_replaced_unnoticed(executors: Executors) -> None:
    first = await in_process(executors, handlers.process_id)
    os.kill(first, signal.SIGKILL)
    (child,) = executors._processes._children
    await eventually(lambda: child._running is not None and child._running.has_ended(), BOUND_S)
    assert await in_process(executors, handlers.process_id) != first
    assert is_gone(first)


async def test_child_ignores_an_interrupt_and_can_start_programs(executors: Executors) -> None:
    assert await in_process(executors, handlers.interrupt_itself) == "still here"
    assert await in_process(executors, handlers.own_child) == "hello\n"


async def test_exception_of_a_process_comes_back_with_its_class_cause_and_traceback(
    executors: Executors,
) -> None:
    async def raised(which: str) -> BaseException:
        with pytest.raises(BaseException) as caught:  # noqa: PT011 - the caller looks at it
            await in_process(executors, handlers.raise_one, which)
        return caught.value

    plain = await raised("value")
    assert repr(plain) == "ValueError('bad value')"
    assert "in raise_one" in plain.__notes__[0]
    permanent = await raised("permanent")
    assert type(permanent) is NonRetryableError
    assert repr(permanent.__cause__) == "KeyError('cause')"
    wrapped = await raised("wrapped permanent")
    assert type(wrapped) is RuntimeError
    assert failed(wrapped).failure_type == "non_retriable"
    assert failed(wrapped).error == "inside"
    delayed = await raised("retry after")
    assert type(delayed) is RetryAfterError
    assert delayed.delay == timedelta(seconds=7)
    assert isinstance(delayed.__cause__, OSError)
    throttled = failed(await raised("throttled"))
    assert (throttled.error, throttled.retry_after) == ("throttled for 9 s", timedelta(seconds=9))
    broken = await raised("pickle breaks")
    assert type(broken) is RemoteHandlerError
    assert str(broken) == "BreaksPickleError: broken (5)"
    lied = await raised("pickle lies")
    assert str(lied) == "FoolsPickleError: code 5"
    assert failed(lied).error == "below"
    left = await raised("exit")
    assert isinstance(left, SystemExit)
    assert left.code == 4
    assert await in_process(executors, handlers.process_id)


async def test_scopes_surround_the_handler_in_order_and_change_nothing_about_its_end(
    tmp_path: Path,
) -> None:
    executors = Executors(
        threads_max=1,
        processes_max=1,
        child_scopes=[handlers.outer_scope, handlers.inner_scope],
    )
    notes = tmp_path / "notes"
    context = Context("value", trace="abc", path=str(notes))
    output = await run(executors, handlers.context, context, executor="process")
    assert output == b'"outer:abc inner"'
    with pytest.raises(ValueError, match="bad value"):
        await run(executors, handlers.raise_one, context, executor="process")
    # The outer one does not write when an exception passes through it.
    assert notes.read_text().splitlines() == ["inner left", "outer left", "inner left"]
    await executors.close(1)


async def test_scope_that_cannot_be_entered_fails_the_job() -> None:
    executors = Executors(threads_max=1, processes_max=1, child_scopes=[handlers.broken_scope])
    with pytest.raises(RuntimeError, match="at the start of a scope"):
        await in_process(executors, handlers.process_id)
    await executors.close(1)


def test_scope_that_cannot_be_pickled_is_refused_when_the_pool_is_made() -> None:
    with pytest.raises(TypeError, match="scope cannot be sent to a process"):
        Executors(threads_max=1, processes_max=1, child_scopes=[lambda carrier: handlers])  # type: ignore[list-item]  # never called


async def test_name_that_means_something_else_is_refused(
    executors: Executors, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = handlers.process_id
    monkeypatch.setattr(handlers, "process_id", handlers.width)
    with pytest.raises(UsageError, match=r"process_id is looked up .* outermost decorator"):
        await in_process(executors, registered)


async def test_close_leaves_no_process_and_no_zombie() -> None:
    executors = Executors(threads_max=1, processes_max=2)
    ids = await asyncio.gather(
        *(in_process(executors, handlers.process_id_later, 0.05) for _ in range(2))
    )
    busy = asyncio.create_task(in_process(executors, handlers.process_id_later, 600))
    await asyncio.sleep(0)
    await executors.close(5)
    assert all(map(is_gone, ids))
    with pytest.raises(HandlerCrashError):
        await busy
    with pytest.raises(RuntimeError, match="closed"):
        await in_process(executors, handlers.process_id)


MAIN = """
    import asyncio, os, signal, sys, time
    from dagnats_worker._executors import Executors
    from dagnats_worker._handlers import inspect_handler
    from dagnats_worker._processes import importing_main

    class Problem(Exception): ...

    def whoami(mode: str) -> list:
        if mode == "raise":
            raise Problem(mode)
        if mode == "kill":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        return [__name__, os.getpid()]

    class Context:
        carrier = {}
        def __init__(self, text): self.input = text

    async def interrupt_everybody():
        while True:
            os.killpg(0, signal.SIGINT)
            await asyncio.sleep(0.002)

    async def main(mode):
        global executors
        executors = Executors(threads_max=1, processes_max=1)
        invoke = executors.invoke(inspect_handler(whoami, executor="process"))
        if mode == "interrupted":
            signal.signal(signal.SIGINT, lambda *_: None)
            task = asyncio.create_task(interrupt_everybody())
        print((await invoke(Context(b'"name"'))).decode(), flush=True)
        try:
            await invoke(Context(b'"raise"'))
        except Problem as error:
            print("Problem", error, flush=True)
        if mode == "killed":
            await invoke(Context(b'"kill"'))
        if mode == "closed":
            await executors.close(5)

    if not importing_main():
        asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("mode", ["closed", "forgotten", "killed", "interrupted"])
async def test_handler_of_the_main_module_runs_and_its_process_ends_with_the_worker(
    tmp_path: Path, mode: str
) -> None:
    script = tmp_path / "main.py"
    script.write_text("from __future__ import annotations\n" + textwrap.dedent(MAIN))
    finished = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(script), mode],
        start_new_session=True,
        check=False,
        timeout=BOUND_S,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == (-signal.SIGKILL if mode == "killed" else 0), finished.stderr
    assert finished.stderr == ""
    first, second = finished.stdout.splitlines()
    name, process_id = msgspec.json.decode(first)
    assert (name, second) == ("__mp_main__", "Problem raise")
    await eventually(lambda: has_ended(process_id), BOUND_S)
