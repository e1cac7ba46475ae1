"""From ``MODULE:WORKER`` to a worker, or to one line that says why there is none."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from dagnats_worker._worker import Worker
from dagnats_worker.cli._group import TRACEBACK_VARIABLE
from dagnats_worker.errors import DagnatsError, StartError, describe

WORKER_WANTED = "make one with `worker = Worker()`"


def load_worker(target: str) -> tuple[str, Worker]:
    """Import a worker; the current folder is importable.

    Args:
        target: ``module:worker``, or ``module`` where it has exactly one worker.

    Returns:
        The full ``module:worker``, and the worker.

    Raises:
        StartError: Says what is wrong, and what was probably meant.
    """
    module_name, separator, path = target.partition(":")
    _check_module_name(target, module_name)
    if separator and not path:
        raise StartError(f"{target!r} names no worker after the colon; write {module_name}:worker")
    make_folder_importable()
    module = _import(module_name)
    if not separator:
        path = _only_worker(module_name, module)
    return f"{module_name}:{path}", _worker_at(module_name, module, path)


def make_folder_importable() -> None:
    """Put the current folder first on ``sys.path``, as ``python -m`` does."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _check_module_name(target: str, module_name: str) -> None:
    if module_name.endswith(".py") or "/" in module_name or os.sep in module_name:
        parts = Path(module_name).with_suffix("").parts
        name = ".".join(part for part in parts if part.isidentifier())
        raise StartError(f"{module_name!r} is a file; name its module instead: {name}:worker")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise StartError(f"{target!r} is not MODULE:WORKER; write for example app:worker")


def _import(module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise StartError(_no_module(error.name)) from error
        raise StartError(_does_not_import(module_name, error)) from error
    except DagnatsError as error:
        raise StartError(f"{error}{_place(error)}") from error
    except (Exception, SystemExit) as error:  # a user's module can raise anything
        raise StartError(_does_not_import(module_name, error)) from error


def _no_module(name: str) -> str:
    parent, _, last = name.rpartition(".")
    folders = getattr(sys.modules.get(parent), "__path__", None) if parent else [str(Path.cwd())]
    if folders is None:
        return f"{parent!r} is a module, not a package: there is no {name!r} in it"
    here = sorted({module for folder in folders for module in _modules_in(Path(folder))})
    where = f"in the package {parent!r}" if parent else f"in {Path.cwd()}, nor installed"
    prefix = f"{parent}." if parent else ""
    return f"no module {name!r} {where}{_meant(last, here, prefix)}"


def _modules_in(folder: Path) -> Iterable[str]:
    for path in folder.iterdir() if folder.is_dir() else ():
        is_module = path.suffix == ".py" or (path / "__init__.py").is_file()
        if is_module and path.stem.isidentifier() and not path.stem.startswith("__"):
            yield path.stem


def _does_not_import(module_name: str, error: BaseException) -> str:
    """The real cause, and the line of the user's own code where it happened."""
    if isinstance(error, SyntaxError):
        what = f"{error.msg} ({_short(error.filename or '?')}, line {error.lineno})"
    else:
        what = f"{describe(error)}{_place(error)}"
    return (
        f"cannot import {module_name!r}: {type(error).__name__}: {what}; "
        f"{TRACEBACK_VARIABLE}=1 shows the traceback"
    )


def _place(error: BaseException) -> str:
    """Where it happened: the last line below the current folder, else the last one at all."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first one is ours
    frames = [frame for frame in frames if "importlib" not in frame.filename]
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(Path.cwd())]
    return "".join(f" ({_short(at.filename)}, line {at.lineno})" for at in (own or frames)[-1:])


def _short(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


def _workers_of(module: ModuleType) -> dict[str, Worker]:
    """The workers of a module by their first name, each once."""
    found: dict[str, Worker] = {}
    for name, value in vars(module).items():
        if isinstance(value, Worker) and value not in found.values():
            found[name] = value
    return found


def _only_worker(module_name: str, module: ModuleType) -> str:
    names = list(_workers_of(module))
    if not names:
        raise StartError(f"module {module_name!r} has no Worker; {WORKER_WANTED}")
    if len(names) > 1:
        listed = " or ".join(f"{module_name}:{name}" for name in names)
        raise StartError(f"module {module_name!r} has {len(names)} workers; say which: {listed}")
    return names[0]


def _worker_at(module_name: str, module: ModuleType, path: str) -> Worker:
    value: Any = module
    workers = _workers_of(module)
    for part in path.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as error:
            hint = _meant(path, list(workers), f"{module_name}:") or _meant(
                path, [name for name in vars(module) if not name.startswith("_")]
            )
            raise StartError(
                f"module {module_name!r} has no {path!r}{hint or f'; {WORKER_WANTED}'}"
            ) from error
    if isinstance(value, Worker):
        return value
    kind = type(value).__name__
    others = " or ".join(f"{module_name}:{name}" for name in workers)
    hint = f"there is {others}" if others else WORKER_WANTED
    raise StartError(f"{module_name}:{path} is a {kind}, not a Worker; {hint}")


def _meant(name: str, candidates: list[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, candidates, n=1)
    if close:
        return f"; did you mean {prefix + close[0]!r}?"
    if prefix.endswith(":") and len(candidates) == 1:
        return f"; there is {prefix + candidates[0]!r}"
    return ""
