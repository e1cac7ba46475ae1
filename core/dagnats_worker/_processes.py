"""A pool of child processes that run handlers, one job at a time each."""

from __future__ import annotations

import asyncio
import atexit
import multiprocessing
import operator
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from typing import TYPE_CHECKING

from dagnats_worker._handlers import HandlerSpec, Typed
from dagnats_worker._process_child import ChildScope, Job, Reply, Returned, serve, unpack_error
from dagnats_worker._signatures import import_path
from dagnats_worker._threads import DaemonThreads
from dagnats_worker.errors import TaskError, UsageError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

SPAWN = multiprocessing.get_context("spawn")

CHILD_NAME = "dagnats-worker-handler"

REAP_WAIT_S = 5.0
"""How long a child that closed its pipe, or was killed, may take to be gone."""

_waiting = threading.Lock()
"""multiprocessing polls all its children whenever it starts one, and of two who wait for one child
at the same time one would not learn its exit code."""


class HandlerCrashError(TaskError):
    """The process of a handler died under it; a retriable failure, and no other task's."""


def importing_main() -> bool:
    """Whether a child process is importing the main module, where no worker must start.

    A spawned child imports the main module again before it does anything else. Main modules whose
    last line starts their worker, without a guard, are common.
    """
    # Also true for children that a handler starts itself; there is no public name for it.
    return getattr(multiprocessing.current_process(), "_inheriting", False)


def registered_name(spec: HandlerSpec) -> tuple[str, str]:
    """Say where a child finds a handler, once its module is imported.

    Raises:
        UsageError: Under that name the module has something else, and the child would run that.
    """
    module, qualified_name = import_path(spec.function)
    try:
        found = operator.attrgetter(qualified_name)(sys.modules[module])
    except (AttributeError, KeyError):
        found = None
    if isinstance(found, Typed):
        found = found.function
    if found is not spec.function:
        raise UsageError(
            f"process handler {spec.name} is looked up by that name in a child process, and the "
            f"name now means {found!r}; register what the module calls so: the registration is "
            "the outermost decorator, and the name is not used twice"
        )
    return module, qualified_name


class ProcessPool:
    """Child processes, spawned and never forked, started when needed and used again.

    Args:
        size: How many at most.
        scopes: What a child enters around each handler; picklable.

    Raises:
        TypeError: A scope cannot be pickled.
    """

    def __init__(self, size: int, scopes: Sequence[ChildScope] = ()) -> None:
        self._scopes = tuple(scopes)
        try:
            pickle.dumps(self._scopes)
        except Exception as error:  # pickling runs code of the scopes' classes
            raise TypeError(f"a child scope cannot be sent to a process: {error}") from error
        self._slots = asyncio.Semaphore(size)
        # One waits for each child, so that the event loop never does.
        self._waiters = DaemonThreads(size, f"{CHILD_NAME}-waiter")
        self._children: set[_Child] = set()
        self._idle: list[_Child] = []
        atexit.register(self._kill_all)

    async def run(self, job: Job) -> bytes:
        """Run one job in a child; when this is cancelled, the child is killed.

        Returns:
            The handler's output, as JSON.

        Raises:
            HandlerCrashError: The child died.
            BaseException: What the handler raised, with the child's traceback as a note.
        """
        async with self._slots:
            child = self._idle.pop() if self._idle else self._new_child()
            call = self._waiters.submit(child.call, job)
            try:
                reply = await asyncio.wrap_future(call)
            except asyncio.CancelledError:
                self._give_up(child, call)
                raise
            except BaseException:
                self._children.discard(child)
                raise
            self._idle.append(child)
        if isinstance(reply, Returned):
            return reply.output
        raise unpack_error(reply)

    def close(self, wait_s: float) -> None:
        """Begin to end all children; a busy one is killed, an idle one may take ``wait_s``."""
        for child in self._children.difference(self._idle):
            child.kill()
        for child in self._idle:
            self._waiters.submit(child.stop, wait_s)
        self._idle.clear()
        self._waiters.close()
        atexit.unregister(self._kill_all)

    def join(self, wait_s: float) -> bool:
        """Wait in a thread for the end of all children of a closed pool; says whether it came."""
        return self._waiters.join(wait_s + REAP_WAIT_S)

    def _new_child(self) -> _Child:
        child = _Child(self._scopes)
        self._children.add(child)
        return child

    def _give_up(self, child: _Child, call: Future[Reply]) -> None:
        if call.cancel():
            self._idle.append(child)
            return
        child.kill()
        # In the waiter's thread, unless the reply came just before.
        call.add_done_callback(lambda _: self._bury(child))

    def _bury(self, child: _Child) -> None:
        child.reap()
        self._children.discard(child)

    def _kill_all(self) -> None:
        # multiprocessing waits for its children at exit, after this.
        for child in list(self._children):
            child.kill()


@dataclass(frozen=True, slots=True)
class _Running:
    """A process that was started, and our end of its pipe."""

    process: SpawnProcess
    jobs: Connection[Job, Reply]

    def has_ended(self, wait_s: float = 0) -> bool:
        return bool(connection.wait([self.process.sentinel], wait_s))


class _Child:
    """One process and its pipe: called from one thread at a time, killed from any.

    Once killed or crashed, it is not used again.
    """

    def __init__(self, scopes: tuple[ChildScope, ...]) -> None:
        self._scopes = scopes
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._killed = False

    def call(self, job: Job) -> Reply:
        """Run a job and wait for its end."""
        if self._running is not None and self._running.has_ended():
            self.reap()
        running = self._running or self._start()
        process_id = running.process.pid
        try:
            running.jobs.send(job)
            return running.jobs.recv()
        except (EOFError, OSError) as error:
            raise HandlerCrashError(
                f"the handler's process {process_id} {_how_it_ended(self.reap())}"
            ) from error

    def stop(self, wait_s: float) -> None:
        """End an idle process the gentle way, or else the other."""
        if self._running is not None:
            self._running.jobs.close()
            self._running.has_ended(wait_s)
            self.kill()
            self.reap()

    def kill(self) -> None:
        """Kill the process and what it started; if it is being started, as soon as it is there."""
        with self._lock:
            self._killed = True
            if self._running is not None:
                _kill_group(self._running.process)

    def reap(self) -> int | None:
        """Wait for a process that has died or was killed, free what it held, give its exit code."""
        running = self._running
        if running is None:
            return None
        if not running.has_ended(REAP_WAIT_S):
            self.kill()
        with self._lock, _waiting:
            running.process.join(REAP_WAIT_S)
            exit_code = running.process.exitcode
            self._running = None
            running.jobs.close()
            if exit_code is not None:
                running.process.close()
        return exit_code

    def _start(self) -> _Running:
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=serve, args=(theirs, self._scopes), name=CHILD_NAME)
        try:
            with _waiting, _interrupt_blocked():
                process.start()
        finally:
            theirs.close()
        running = _Running(process, ours)
        with self._lock:
            self._running = running
            if self._killed:
                _kill_group(process)
        return running


def _kill_group(process: SpawnProcess) -> None:
    if sys.platform != "win32" and process.pid is not None:
        # Fails where it has no group of its own yet, or has just ended.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


@contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Start a process so that Ctrl-C cannot break it before it is ready to ignore that."""
    if sys.platform == "win32":
        yield
        return
    # multiprocessing starts this helper with its first child, and unblocks SIGINT when it does.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is None:
        return "closed its pipe and did not end"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = "an unnamed signal"
    hint = "; out of memory?" if name == "SIGKILL" else ""
    return f"was killed by {name} ({-exit_code}){hint}"
