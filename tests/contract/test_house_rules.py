"""Rules of the house that no linter knows: who imports whom, how large things are, what is named.

Method: the source of the core is parsed, and nothing of it is run. Nothing is fake.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import dagnats_worker

PACKAGE = "dagnats_worker"
CORE = Path(dagnats_worker.__file__).parent
PROJECT = CORE.parents[1]

# ------------------------------------------------------------------------- the rules, as data

LAYERS: dict[str, tuple[str, ...]] = {
    "foundation": (
        "errors",
        "_config",
        "_durations",
        "_key_value",
        "_loop_thread",
        "_naming",
        "_setting_text",
        "_slots",
        "_snapshot",
        "_threads",
        "_transport",
    ),
    "values": (
        "_ack",
        "_counters",
        "_embedded",
        "_envelope",
        "_failures",
        "_go_json",
        "_http",
        "_inflight",
        "_inputs",
        "_json",
        "_kept",
        "_letters",
        "_outcome",
        "_protocol",
        "_redelivery",
        "_retry",
        "_routes",
        "_run",
        "_server_process",
        "_setting_types",
        "_setting_values",
        "_settings",
        "_status",
        "_subjects",
        "_survey",
        "_wire_text",
        "_workflows",
    ),
    "hooks": (
        "hookspecs",
        "_background",
        "_current",
        "_discovery",
        "_facade",
        "_hook_calls",
        "_hook_clock",
        "_hook_scopes",
        "_hook_trace",
        "_message_headers",
        "_importing",
        "_message_headers",
        "_plugin_checks",
        "_plugin_order",
        "_plugin_source",
        "_worker_facade",
    ),
    "nats": ("_jetstream",),
    "tasks": (
        "_child_scopes",
        "_context",
        "_execution",
        "_executors",
        "_handlers",
        "_process_child",
        "_processes",
        "_registry",
        "_signatures",
    ),
    "walk": (
        "_arrival",
        "_cancellation",
        "_dead_letters",
        "_dispatcher",
        "_ending",
        "_events",
        "_health",
        "_intake",
        "_load",
        "_plugins",
        "_run_handler",
        "_serving",
        "_sources",
        "_supervisor",
        "_watchdog",
    ),
    "worker": ("_client", "_open", "_running", "_serve", "_worker"),
    "surface": ("", "__main__", "cli", "pytest_plugin", "testing"),
}
"""Every module or folder of the core, lowest layer first. A module imports from its own layer and
from those above it in this list; a new one has to be put somewhere."""

ONLY_IMPORTERS: dict[str, set[str]] = {
    "click": {"cli"},
    "nats": {"_jetstream"},
    "opentelemetry": set(),
    "packaging": {"_discovery"},
    "pluggy": {"hookspecs", "_plugin_checks", "_plugins"},
    "pydantic": set(),
    "pytest": {"cli", "pytest_plugin", "testing"},
    "rich": {"cli"},
    "stevedore": {"_importing"},
    "tenacity": {"_retry"},
    "uvloop": {"_serve"},
    "watchfiles": {"cli"},
}
"""Which modules and folders may import a distribution at all, inside functions too."""

PURE = {
    "_durations",
    "_failures",
    "_go_json",
    "_json",
    "_naming",
    "_outcome",
    "_protocol",
    "_redelivery",
    "_subjects",
    "_wire_text",
    "_workflows",
}
"""No I/O, no clock, no logging: bytes and values in, values and bytes out."""

WITH_IO = {
    "asyncio",
    "logging",
    "os",
    "random",
    "secrets",
    "socket",
    "subprocess",
    "sys",
    "threading",
}
WITH_IO |= {"time", "pathlib", "uuid"}

MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 40
PUBLIC_NAMES_MAX = 60
DISPATCHER_LINES_MAX = 160

LONG_MODULES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}
"""What may be longer, and how long it is allowed to be; empty is the aim."""

WAITS = {"sleep", "timeout", "timeout_at", "wait", "wait_for"}
QUEUES = {"Queue", "LifoQueue", "PriorityQueue"}
DEMONSTRATION = {"cli._demo_tasks"}
"""Its handlers pretend to work."""


# ------------------------------------------------------------------------- reading the source


@dataclass(frozen=True)
class Import:
    """One imported module.

    Attributes:
        at_start: It is imported when the module is, and not in a function or for the type checker.
    """

    target: str
    line: int
    at_start: bool

    @property
    def distribution(self) -> str:
        return self.target.partition(".")[0]


class Module:
    """One file of the core."""

    def __init__(self, path: Path) -> None:
        self.path = path
        parts = path.relative_to(CORE).with_suffix("").parts
        self.name = ".".join(part for part in parts if part != "__init__")
        self.source = path.read_text("utf-8")
        self.lines = self.source.splitlines()
        self.tree = ast.parse(self.source)

    def __repr__(self) -> str:
        return self.name or PACKAGE

    @property
    def place(self) -> str:
        """The module itself, or the folder that it is in."""
        return self.name.partition(".")[0]

    @cached_property
    def imports(self) -> list[Import]:
        return list(_imports(self.tree.body, at_start=True))

    @cached_property
    def own_imports(self) -> set[str]:
        """Modules of the core that are imported when this one is."""
        found = set()
        for one in self.imports:
            package, _, name = one.target.partition(".")
            if package == PACKAGE and one.at_start:
                found.add(_module_of(name))
        return found - {self.name}

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node

    def calls(self) -> Iterator[tuple[str, ast.Call]]:
        """Each call with the last part of what is called."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                called = node.func
                if isinstance(called, ast.Subscript):
                    called = called.value
                if isinstance(called, ast.Attribute):
                    yield called.attr, node
                elif isinstance(called, ast.Name):
                    yield called.id, node


def _imports(body: Iterable[ast.AST], *, at_start: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_start)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(f"{node.module}.{alias.name}", node.lineno, at_start)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        else:
            inside = at_start and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _imports(ast.iter_child_nodes(node), at_start=inside)


MODULES = {module.name: module for module in map(Module, sorted(CORE.rglob("*.py")))}
RANKS = {place: rank for rank, places in enumerate(LAYERS.values()) for place in places}


def _module_of(name: str) -> str:
    """The module that a dotted name of the core lies in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def broken_by(rule: Callable[[Module], Iterable[object]]) -> dict[str, list[object]]:
    """What breaks a rule, by module; empty where every module keeps it."""
    found = {repr(module): list(rule(module)) for module in MODULES.values()}
    return {name: broken for name, broken in found.items() if broken}


# ------------------------------------------------------------------------- who imports whom


def test_every_module_has_a_layer_and_every_layer_its_modules() -> None:
    places = {module.place for module in MODULES.values()}
    assert places - set(RANKS) == set(), "put new modules into a layer"
    assert set(RANKS) - places == set(), "take modules out that are gone"


def test_imports_go_down() -> None:
    def upwards(module: Module) -> list[str]:
        rank = RANKS.get(module.place, len(LAYERS))
        imported = sorted(module.own_imports)
        return [one for one in imported if RANKS.get(one.partition(".")[0], 0) > rank]

    assert broken_by(upwards) == {}


def test_importing_the_core_does_not_import_nats() -> None:
    def importing(module: Module) -> list[str]:
        if module.place in ("_jetstream", "testing", "cli", "pytest_plugin"):
            return []
        return [one for one in module.own_imports if one.partition(".")[0] == "_jetstream"]

    assert broken_by(importing) == {}


def test_imports_form_no_ring() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a ring: {' -> '.join([*path[path.index(name) :], name])}"
        if name in done:
            return
        for imported in sorted(MODULES[name].own_imports):
            visit(imported, (*path, name))
        done.add(name)

    for name in MODULES:
        visit(name, ())


def test_distributions_are_imported_where_they_belong() -> None:
    def misplaced(module: Module) -> list[Import]:
        return [
            one
            for one in module.imports
            if (allowed := ONLY_IMPORTERS.get(one.distribution)) is not None
            and module.place not in allowed
        ]

    assert broken_by(misplaced) == {}


def test_nothing_else_is_imported_than_what_the_core_depends_on() -> None:
    known = {*sys.stdlib_module_names, *ONLY_IMPORTERS, "msgspec", PACKAGE}

    def foreign(module: Module) -> list[Import]:
        return [one for one in module.imports if one.distribution not in known]

    assert broken_by(foreign) == {}


def test_pure_modules_do_no_io_and_have_no_clock() -> None:
    def impure(module: Module) -> list[str]:
        if module.name not in PURE:
            return []
        imported = {one.distribution for one in module.imports} & WITH_IO
        imported |= module.own_imports - {*PURE, "errors", "_transport"}  # data and protocols
        return sorted(imported | {called for called, _ in module.calls()} & {"open", "print"})

    assert set(MODULES) >= PURE
    assert broken_by(impure) == {}


def test_core_never_names_a_plugin() -> None:
    assert broken_by(lambda module: re.findall(rf"{PACKAGE}_[a-z]\w*", module.source)) == {}


# ------------------------------------------------------------------------- how large things are


def test_modules_are_not_too_long() -> None:
    def excess(module: Module) -> list[str]:
        limit = LONG_MODULES.get(module.name, MODULE_LINES_MAX)
        return [f"{len(module.lines)} lines"] if len(module.lines) > limit else []

    assert broken_by(excess) == {}


def test_functions_are_not_too_long() -> None:
    def excess(module: Module) -> list[str]:
        return [
            f"{function.name}: {_length(function)} lines"
            for function in module.functions()
            if _length(function)
            > LONG_FUNCTIONS.get(f"{module.name}.{function.name}", FUNCTION_LINES_MAX)
        ]

    assert broken_by(excess) == {}


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines without the docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def test_exceptions_are_still_needed() -> None:
    names = {
        f"{module.name}.{function.name}"
        for module in MODULES.values()
        for function in module.functions()
        if _length(function) > FUNCTION_LINES_MAX
    }
    assert set(LONG_FUNCTIONS) <= names
    long = {one.name for one in MODULES.values() if len(one.lines) > MODULE_LINES_MAX}
    assert set(LONG_MODULES) <= long


def test_dispatcher_stays_readable_at_once() -> None:
    assert len(MODULES["_dispatcher"].lines) <= DISPATCHER_LINES_MAX


def test_public_api_stays_small() -> None:
    assert len(dagnats_worker.__all__) <= PUBLIC_NAMES_MAX


# ------------------------------------------------------------------------- words and reasons


def test_every_module_says_what_it_is_for() -> None:
    def silent(module: Module) -> list[str]:
        return [] if ast.get_docstring(module.tree) else ["no docstring"]

    assert broken_by(silent) == {}


def test_annotations_are_not_evaluated_at_import() -> None:
    def evaluated(module: Module) -> list[str]:
        targets = [one.target for one in module.imports]
        return [] if "__future__.annotations" in targets else ["no annotations from __future__"]

    assert broken_by(evaluated) == {}


def test_waits_and_queues_have_a_named_bound() -> None:
    def bare(module: Module) -> list[str]:
        if module.name in DEMONSTRATION:
            return []
        return [
            f"line {call.lineno}: {ast.unparse(call)}"
            for called, call in module.calls()
            if called in WAITS | QUEUES
            for value in [*call.args, *(keyword.value for keyword in call.keywords)]
            if _is_number(value)
        ]

    assert broken_by(bare) == {}, "name the bound, or make it a field of WorkerConfig"


def _is_number(node: ast.expr) -> bool:
    """Zero is none: it bounds nothing, and means the next turn of the loop."""
    return isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value != 0


def test_queues_are_bounded() -> None:
    def unbounded(module: Module) -> list[str]:
        if module.place == "testing":
            return []  # what a test puts in there is bounded by the test
        return [
            f"line {call.lineno}: {ast.unparse(call)}"
            for called, call in module.calls()
            if called in QUEUES and not call.args and not call.keywords
        ]

    assert broken_by(unbounded) == {}


COMMENT = re.compile(r"#\s*(noqa|type: ignore)(.*)$")
NOQA = re.compile(r"^: [A-Z]+\d+(, ?[A-Z]+\d+)* - \S")
IGNORE = re.compile(r"^\[[a-z-]+(, ?[a-z-]+)*\]\s+# \S")


def test_exceptions_from_a_rule_have_a_code_and_a_reason() -> None:
    folders = [CORE, *(PROJECT / name for name in ("plugins", "examples", "tests"))]
    without = []
    for path in [path for folder in folders for path in sorted(folder.rglob("*.py"))]:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            match = COMMENT.search(line)
            if match is None or line.startswith("COMMENT = "):
                continue
            form = NOQA if match[1] == "noqa" else IGNORE
            if not form.match(match[2]):
                without.append(f"{path.relative_to(PROJECT)}:{number}: {match[0]}")
    assert without == []


def test_whoever_catches_everything_says_why_or_raises_it_again() -> None:
    def silent(module: Module) -> list[str]:
        return [
            f"line {node.lineno}"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ExceptHandler)
            and _catches_everything(node)
            and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            and "#" not in module.lines[node.lineno - 1]
        ]

    assert broken_by(silent) == {}


def _catches_everything(handler: ast.ExceptHandler) -> bool:
    caught = "Exception" if handler.type is None else ast.unparse(handler.type)
    return re.search(r"\b(Base)?Exception\b", caught) is not None
