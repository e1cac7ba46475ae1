"""The pages about plugins say what the code says.

Method: the pages are read, and compared with the specification of the hooks, with the classes, with
the order in which a worker calls the hooks, and with what the settings make of a text. Real: the
worker that runs. Fake: its server, which is in memory.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from docs_pages import DOCS, ROOT, blocks, code, prose, table
from plugin_pages import attribute_lines, hook_lines, member_lines

import dagnats_worker
from dagnats_worker import (
    Completed,
    DelayTask,
    EndTask,
    NonRetryableError,
    Plugin,
    SkipTask,
    TaskContext,
    hookimpl,
    hookspecs,
)
from dagnats_worker._plugin_checks import HOOKS
from dagnats_worker._settings import Sources
from dagnats_worker.hookspecs import WorkerFacade
from dagnats_worker.testing import PluginContract, WorkerHarness

PLUGINS = DOCS / "plugins"
REFERENCE = PLUGINS / "reference.md"
AUTHORS = (
    ROOT / "examples" / "own_plugin",
    ROOT / "tests" / "outside",
    ROOT / "core" / "dagnats_worker" / "cli" / "_scaffold",
)
ATTRIBUTES = (
    "Plugin",
    "TaskType",
    "Stats",
    "PluginState",
    "KeepAlive",
    "Response",
    "Entry",
    "KeptTask",
    "Message",
    "Delivery",
    "Capability",
)
MEMBERS = ("WorkerFacade", "TaskType", "KeyValue", "Source")


def flat(text: str) -> str:
    return " ".join(text.split())


def section(heading: str) -> str:
    """What stands below a heading of the reference, up to the next one."""
    text = REFERENCE.read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, f"the reference has no heading {heading!r}"
    return found[1]


# ------------------------------------------------------------------------- the reference


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_is_described_as_it_is_specified(hook: str) -> None:
    assert flat(section(hook)).startswith(flat(" ".join(hook_lines(hook))))


def test_every_hook_has_a_section_and_there_are_no_others() -> None:
    below = REFERENCE.read_text().partition("\n## Hooks\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", below, re.MULTILINE) == list(HOOKS)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_attribute_is_described(name: str) -> None:
    text = flat(REFERENCE.read_text())
    assert flat(" ".join(attribute_lines(getattr(hookspecs, name)))) in text


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_is_described(name: str) -> None:
    text = flat(REFERENCE.read_text())
    assert flat(" ".join(member_lines(getattr(hookspecs, name)))) in text


def test_what_is_described_is_everything_that_is_published() -> None:
    described = {*ATTRIBUTES, *MEMBERS, "hookimpl"}
    text = prose(REFERENCE)
    others = set(hookspecs.__all__) - described - {"Slots", "WorkerState"}
    assert all(f"`{name}`" in text for name in others), others


def test_import_table_is_right() -> None:
    for cell, place in table_of_imports():
        for name in cell:
            module = place if place.count(".") else "dagnats_worker"
            if module == "dagnats_worker.hookspecs":
                assert name in hookspecs.__all__
            elif module == "dagnats_worker":
                assert name in dagnats_worker.__all__


def table_of_imports() -> list[tuple[list[str], str]]:
    lines = [line for line in REFERENCE.read_text().splitlines() if line.startswith("| ")]
    rows = [line.strip("|").split(" | ") for line in lines[1:8] if "---" not in line]
    return [(code(cell), code(places)[0]) for cell, places in rows]


def test_contract_is_described_with_its_tests_and_its_attributes() -> None:
    rows = [line for line in section("The testing kit").splitlines() if line.startswith("| `")]
    names = [code(row)[0] for row in rows]
    tests = [name for name in names if name.startswith("test_")]
    assert sorted(tests) == sorted(one for one in dir(PluginContract) if one.startswith("test_"))
    annotations = PluginContract.__mro__[-2].__annotations__
    assert [name for name in names if name in annotations] == list(annotations)


def test_fixtures_are_described() -> None:
    from dagnats_worker import pytest_plugin

    tree = ast.parse(Path(pytest_plugin.__file__).read_text())
    fixtures = [
        node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list
    ]
    rows = [line for line in section("The testing kit").splitlines() if line.startswith("| `")]
    assert [code(row)[0] for row in rows if code(row)[0] in fixtures] == fixtures


# ------------------------------------------------------------------------- the life cycle


class Recorder(Plugin[None]):
    name = "recorder"

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker: WorkerFacade) -> AsyncIterator[None]:
        self.called.append("worker_scope")
        try:
            yield
        finally:
            self.called.append("worker_scope")

    @hookimpl
    async def open_source(self) -> None:
        self.called.append("open_source")

    @hookimpl
    @asynccontextmanager
    async def task_scope(self) -> AsyncIterator[None]:
        self.called.append("task_scope")
        try:
            yield
        finally:
            self.called.append("task_scope")

    @hookimpl
    async def pre_handle(self) -> None:
        self.called.append("pre_handle")

    @hookimpl
    async def pre_publish(self) -> None:
        self.called.append("pre_publish")

    @hookimpl
    async def on_error(self) -> None:
        self.called.append("on_error")

    @hookimpl
    @asynccontextmanager
    async def outcome_scope(self) -> AsyncIterator[None]:
        self.called.append("outcome_scope")
        try:
            yield
        finally:
            self.called.append("outcome_scope")

    @hookimpl
    async def on_complete(self) -> None:
        self.called.append("on_complete")


async def test_life_cycle_is_drawn_as_it_is() -> None:
    async def fails(ctx: TaskContext) -> None:
        recorder.called.append("the handler")
        raise NonRetryableError("for good")

    recorder = Recorder()
    async with WorkerHarness({"fails": fails}, plugins=[recorder]) as harness:
        await harness.run("fails", workflow_name="of an engine")
    [drawing] = [block.text for block in blocks(PLUGINS / "lifecycle.md")]
    names = "|".join((*HOOKS, "the handler"))
    drawn = re.findall(rf"─ ({names})\b", drawing)
    assert drawn == recorder.called
    assert "child_scope" in drawing


STARTED = ["task_scope", "pre_handle", "pre_publish"]
PUBLISHED = ["outcome_scope", "pre_publish", "outcome_scope"]


class Ends(Recorder):
    """Ends a task before its handler is run."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    @hookimpl
    async def pre_handle(self) -> None:
        self.called.append("pre_handle")
        raise self.error


async def returns(ctx: TaskContext) -> None:
    """A handler."""


async def breaks(ctx: TaskContext) -> None:
    raise RuntimeError("busy")


@pytest.mark.parametrize(
    ("recorder", "handler", "called"),
    [
        (Recorder(), returns, [*STARTED, *PUBLISHED, "on_complete", "task_scope"]),
        (Recorder(), breaks, [*STARTED, "on_error", *PUBLISHED, "task_scope"]),
        (
            Ends(EndTask(Completed())),
            returns,
            [*STARTED, *PUBLISHED, "on_complete", "task_scope"],
        ),
        (Ends(DelayTask(timedelta(1))), returns, ["task_scope", "pre_handle", "task_scope"]),
        (Ends(SkipTask("elsewhere")), returns, ["task_scope", "pre_handle", "task_scope"]),
        (Ends(ValueError("broken")), returns, ["task_scope", "pre_handle", "task_scope"]),
    ],
    ids=["returns", "is tried again", "EndTask", "DelayTask", "SkipTask", "fails"],
)
async def test_other_paths_are_as_the_table_says(
    recorder: Recorder, handler: Any, called: list[str]
) -> None:
    async with WorkerHarness({"x": handler}, plugins=[recorder]) as harness:
        await harness.run("x")
        await harness.worker.stop()
    assert recorder.called == ["worker_scope", "open_source", *called, "worker_scope"]


def test_every_hook_is_in_the_life_cycle() -> None:
    text = (PLUGINS / "lifecycle.md").read_text()
    assert all(hook in text for hook in HOOKS)


# ------------------------------------------------------------------------- settings


TYPES: dict[str, tuple[Any, Any]] = {
    "str": (str, "presents"),
    "int": (int, 7),
    "float": (float, 2.5),
    "bool": (bool, True),
    "timedelta": (timedelta, timedelta(seconds=90)),
    "Path": (Path, Path("some/file")),
    'Literal["red", "blue"]': (Literal["red", "blue"], "blue"),
    "tuple[str, ...]": (tuple[str, ...], ("a", "b")),
    "frozenset[int]": (frozenset[int], frozenset({1, 2})),
    "dict[str, int]": (dict[str, int], {"a": 1, "b": 2}),
    "int or None": (int | None, None),
}


def test_values_are_read_as_the_table_says(tmp_path: Path) -> None:
    rows = table(PLUGINS / "settings.md", "Declaring them")
    assert [code(row[0])[0] for row in rows] == list(TYPES)
    for kind, text, *in_file in rows:
        wanted, value = TYPES[code(kind)[0]]
        settings = dataclasses.make_dataclass("Settings", [("one", wanted)], frozen=True)
        given = Sources([f"x.one={code(text)[0]}"], {}, tmp_path / "none.toml")
        (tmp_path / "none.toml").write_text("")
        assert given.plugin("x", settings) == settings(value)
        if in_file and code(in_file[0]):
            file = tmp_path / "dagnats-worker.toml"
            file.write_text(f"[plugins.x]\none = {code(in_file[0])[0]}\n")
            assert Sources((), {}, file).plugin("x", settings) == settings(value)


def test_variables_that_are_named_exist() -> None:
    source = "".join(path.read_text() for path in (ROOT / "core" / "dagnats_worker").rglob("_*.py"))
    for page in PLUGINS.glob("*.md"):
        for name in re.findall(r"DAGNATS_WORKER_[A-Z]+(?:_[A-Z]+)*", page.read_text()):
            assert f'"{name}"' in source, f"{page.name} names {name}"


# ------------------------------------------------------------------------- what authors import


def sources_of_authors() -> list[Path]:
    files = [path for folder in AUTHORS for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if path.suffix in (".py", ".txt")]


def test_plugins_of_others_import_nothing_that_is_not_published() -> None:
    imported = re.compile(r"(?:from|import) (dagnats_worker(?:\.\w+)*)\b(?: import (.*))?")
    seen = set()
    for path in sources_of_authors():
        for module, names in imported.findall(path.read_text()):
            parts = [*module.split("."), *re.findall(r"\w+", names)]
            assert not [part for part in parts if part.startswith("_")], f"{path}: {module}"
            seen.add(module)
    assert {"dagnats_worker", "dagnats_worker.hookspecs", "dagnats_worker.testing"} <= seen


def test_readme_of_the_example_has_a_row_for_each_setting_and_each_hook() -> None:
    import sys

    folder = ROOT / "examples" / "own_plugin"
    sys.path.insert(0, str(folder))
    try:
        from dagnats_worker_idempotency import IdempotencyPlugin, IdempotencySettings
    finally:
        sys.path.remove(str(folder))
    rows = [line for line in (folder / "README.md").read_text().splitlines() if line[:3] == "| `"]
    names = [code(row)[0] for row in rows]
    settings = [one.name for one in dataclasses.fields(IdempotencySettings)]
    assert names[: len(settings)] == settings
    hooks = {name for name in vars(IdempotencyPlugin) if name in HOOKS}
    assert set(names[len(settings) :]) == hooks
