"""What importing a plugin does, seen from a fresh interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

BOUND_S = 120.0
KEPT = ("APPDATA", "HOME", "LANG", "LC_ALL", "PATH", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR")
"""Variables that the child has; what this process was told, or the plugin has set, is not there."""

# Runs in the child. Time is that of the processor, so that a busy machine does not count.
SCRIPT = """
import json, sys, time

began = time.process_time()
import dagnats_worker
import dagnats_worker.hookspecs
core_s = time.process_time() - began

import importlib, logging, os, signal, threading

WATCHED = (
    "socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen",
    "os.fork", "os.posix_spawn", "os.system",
)
done = []

def start_thread(self):
    watch("threading.Thread.start", ())
    return really_start_thread(self)

really_start_thread = threading.Thread.start
threading.Thread.start = start_thread

def watch(event, arguments):
    if watching and event in (*WATCHED, "threading.Thread.start"):
        done.append(event)

def state():
    root = logging.getLogger()
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "signal handlers": [repr(signal.getsignal(one)) for one in sorted(signal.valid_signals())],
        "handlers of the root logger": [repr(handler) for handler in root.handlers],
        "level of the root logger": root.level,
        "environment variables": sorted(os.environ.items()),
        "working directory": os.getcwd(),
        "sys.excepthook": repr(sys.excepthook),
    }

for one in signal.valid_signals() - {signal.SIGPIPE}:
    if signal.getsignal(one) is signal.SIG_IGN:  # inherited from who has imported the plugin before
        signal.signal(one, signal.SIG_DFL)

watching = False
sys.addaudithook(watch)
before, modules = state(), set(sys.modules)
watching = True
began = time.process_time()
importlib.import_module(sys.argv[1])
plugin_s = time.process_time() - began
watching = False
after = state()
print(json.dumps({
    "core_s": core_s,
    "plugin_s": plugin_s,
    "done": sorted(set(done)),
    "changed": [name for name in before if before[name] != after[name]],
    "modules": sorted({name.partition(".")[0] for name in set(sys.modules) - modules}),
}))
"""


@dataclass(frozen=True, slots=True)
class Imported:
    """What importing did.

    Attributes:
        core_s: Processor time that importing the core took, in the same process.
        done: What was done beside importing, as CPython names it.
        changed: What of the process is not as it was.
        modules: Top-level packages that were imported on top of the core.
    """

    core_s: float
    plugin_s: float
    done: list[str]
    changed: list[str]
    modules: list[str]


def import_alone(module: str) -> Imported:
    """Import a module in a fresh interpreter, after the core."""
    done = subprocess.run(  # noqa: S603 - this interpreter, on the module that is to be tested
        [sys.executable, "-c", SCRIPT, module],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        env=_environment(),
        check=False,
    )
    assert done.returncode == 0, f"importing {module} in a fresh interpreter fails:\n{done.stderr}"
    report = done.stdout.splitlines()[-1]
    return Imported(**json.loads(report))


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
