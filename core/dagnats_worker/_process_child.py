"""The child's side of a process handler, and what goes over the pipe between the two processes."""

from __future__ import annotations

import functools
import importlib
import logging
import operator
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from multiprocessing import connection, parent_process
from typing import TYPE_CHECKING

from dagnats_worker._handlers import HandlerSpec, call_sync, inspect_handler
from dagnats_worker._outcome import causes
from dagnats_worker.errors import NonRetryableError, RetryAfterError, TaskError, UsageError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

ChildScope = Callable[[dict[str, str]], AbstractContextManager[None]]

TRACEBACK_CHARACTERS_MAX = 16_384
"""How much of a child's traceback is carried over; its end says the most."""

log = logging.getLogger("dagnats_worker")


class RemoteHandlerError(TaskError):
    """What a process handler raised, where that class itself could not be pickled."""


@dataclass(frozen=True, slots=True)
class Job:
    """One execution: which function, by its name, and its input."""

    module: str
    qualified_name: str
    unwrap_trigger: bool
    input: bytes
    carrier: dict[str, str]


@dataclass(frozen=True, slots=True)
class Returned:
    """The handler returned; its output is JSON already."""

    output: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """One exception of a chain.

    Attributes:
        pickled: Empty where pickle would lose it.
        fallback: What is made of ``text`` then.
        delay: Of a ``RetryAfterError``.
    """

    pickled: bytes
    fallback: type[NonRetryableError | RemoteHandlerError]
    text: str
    delay: timedelta | None


@dataclass(frozen=True, slots=True)
class Raised:
    """The handler raised; the links are the error and its causes, outermost first."""

    links: tuple[Link, ...]
    traceback: str


Reply = Returned | Raised


def serve(jobs: Connection[Reply, Job], scopes: Sequence[ChildScope]) -> None:
    """Run jobs one after the other, until the parent closes the pipe or is gone."""
    _detach()
    threading.Thread(target=_die_with_parent, name="dagnats-worker-parent", daemon=True).start()
    while True:
        try:
            job = jobs.recv()
            jobs.send(run_job(job, scopes))
        except (EOFError, OSError):
            return


def run_job(job: Job, scopes: Sequence[ChildScope]) -> Reply:
    """Run one job; whatever it raises goes into the reply."""
    try:
        spec = _spec(job.module, job.qualified_name, unwrap_trigger=job.unwrap_trigger)
        with ExitStack() as stack:
            for scope in scopes:
                stack.enter_context(_entered(scope, job.carrier))
            return Returned(spec.encode_output(call_sync(spec, None, job.input)))
    except BaseException as error:  # noqa: BLE001 - the parent raises it, whatever it is
        return pack_error(error)


def pack_error(error: BaseException) -> Raised:
    """Make an exception ready for the pipe; pickle itself loses causes and many exceptions."""
    lines = "".join(traceback.format_exception(error))
    return Raised(tuple(map(_link, causes(error))), lines[-TRACEBACK_CHARACTERS_MAX:])


def unpack_error(raised: Raised) -> BaseException:
    """Make the exception again, with its causes, and the child's traceback as a note."""
    errors = [_restored(link) for link in raised.links]
    for error, cause in pairwise(errors):
        error.__cause__ = cause
    errors[0].add_note(f"In the handler's process:\n{raised.traceback}")
    return errors[0]


def _link(error: BaseException) -> Link:
    pickled, text = _pickled(error), str(error)
    if isinstance(error, RetryAfterError):
        return Link(pickled, RemoteHandlerError, text, error.delay)
    if isinstance(error, NonRetryableError):
        return Link(pickled, NonRetryableError, text, None)
    name = type(error).__qualname__
    return Link(pickled, RemoteHandlerError, f"{name}: {text}" if text else name, None)


def _pickled(error: BaseException) -> bytes:
    # An exception is pickled as its class and its args, which many a constructor does not take.
    try:
        pickled = pickle.dumps(error)
        copy = pickle.loads(pickled)  # noqa: S301 - written on the line above
    except Exception:  # noqa: BLE001 - pickling runs code of the user's class
        return b""
    return pickled if type(copy) is type(error) and str(copy) == str(error) else b""


def _restored(link: Link) -> BaseException:
    if link.pickled:
        try:
            error: BaseException = pickle.loads(link.pickled)  # noqa: S301 - our own child wrote it
        except Exception:  # noqa: BLE001 - a class that only the child could import
            log.debug("an exception of a process handler is known by its text only: %s", link.text)
        else:
            return error
    if link.delay is not None:
        return RetryAfterError(link.text, link.delay)
    return link.fallback(link.text)


@functools.cache
def _spec(module: str, qualified_name: str, *, unwrap_trigger: bool) -> HandlerSpec:
    found = importlib.import_module(module)
    try:
        function = operator.attrgetter(qualified_name)(found)
    except AttributeError as error:
        raise UsageError(
            f"process handler {module}.{qualified_name} is not there in a child process: {error}; "
            "define it at the top level of a module that can be imported"
        ) from error
    return inspect_handler(function, executor="process", unwrap_trigger=unwrap_trigger)


@contextmanager
def _entered(scope: ChildScope, carrier: dict[str, str]) -> Iterator[None]:
    """Enter a scope that, as those in the parent, can change nothing about the handler's end."""
    manager = scope(carrier)
    manager.__enter__()
    try:
        yield
    except BaseException as error:
        _leave(manager, error)
        raise
    _leave(manager, None)


def _leave(manager: AbstractContextManager[None], error: BaseException | None) -> None:
    try:
        if error is None:
            manager.__exit__(None, None, None)
        else:
            manager.__exit__(type(error), error, error.__traceback__)
    except Exception:  # a plugin's end changes nothing about the handler's
        log.exception("a child scope failed at its end; the handler's result stands")


def _detach() -> None:
    """Leave what Ctrl-C in a terminal reaches; whether a handler ends is the parent's decision."""
    # A function, because programs that the handler starts would inherit SIG_IGN.
    signal.signal(signal.SIGINT, lambda *_: None)
    if sys.platform != "win32":
        # With a group of its own, the child can be killed together with all that it started.
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
    if sys.platform == "win32":
        os._exit(1)
    os.killpg(0, signal.SIGKILL)
