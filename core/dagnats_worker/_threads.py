"""Daemon threads for calls that may never return."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Call = tuple["Future[Any]", Callable[[], Any]]


class DaemonThreads:
    """A bounded pool of threads, started when needed, that never keeps the interpreter alive.

    That is what ``concurrent.futures`` cannot do: it joins its threads at exit, and a handler that
    hangs would hang the worker with it.

    Args:
        size: How many threads at most. How many calls may wait for one is bounded by the caller.
        name: Threads are called this and a number.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._outstanding = 0
        self._closed = False

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a function called in a thread; to be used from the thread that made the pool.

        Returns:
            Its result. Cancelling works as long as no thread has begun the call.
        """
        if self._closed:
            raise RuntimeError(f"thread pool {self._name} is closed")
        future: Future[T] = Future()
        self._calls.put((future, lambda: function(*args, **kwargs)))
        with self._lock:
            self._outstanding += 1
            busy = self._outstanding > len(self._threads)
        if busy and len(self._threads) < self._size:
            self._start()
        return future

    def close(self) -> None:
        """Take no more calls; each thread ends once what is queued has been called."""
        if not self._closed:
            self._closed = True
            for _ in self._threads:
                self._calls.put(None)

    def join(self, wait_s: float) -> bool:
        """Wait for the threads of a closed pool.

        Returns:
            Whether all of them have ended.
        """
        deadline = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _start(self) -> None:
        name = f"{self._name}-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            self._run(*call)
            # While it is idle a thread holds on to nothing of its last call.
            del call

    def _run(self, future: Future[Any], call: Callable[[], Any]) -> None:
        if not future.set_running_or_notify_cancel():
            self._finished()
            return
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the caller
            self._finished()
            future.set_exception(error)
            # The error's traceback keeps this frame, and the frame would keep the future.
            del future
        else:
            self._finished()
            future.set_result(result)

    def _finished(self) -> None:
        # Before the result is there to be seen: who sees it may submit, and finds this thread free.
        with self._lock:
            self._outstanding -= 1
