"""Rules of our own plugins: each is a distribution that a stranger could have written.

Method: the folders of ``plugins/`` are read, and nothing of them is run. Nothing is fake.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

import dagnats_worker

PROJECT = Path(dagnats_worker.__file__).parents[2]
PUBLIC = {
    "dagnats_worker",
    "dagnats_worker.cli",
    "dagnats_worker.errors",
    "dagnats_worker.hookspecs",
    "dagnats_worker.pytest_plugin",
    "dagnats_worker.testing",
}
BUILT_ON = {"singleton": {"dagnats_worker_partitions"}}
"""Which plugin may import which other one."""

MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 40


class Distribution:
    """A folder of ``plugins/``."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.folder = folder
        self.package = f"dagnats_worker_{folder.name}"

    @cached_property
    def project(self) -> dict[str, Any]:
        return tomllib.loads((self.folder / "pyproject.toml").read_text("utf-8"))

    @property
    def modules(self) -> list[Path]:
        return sorted((self.folder / self.package).rglob("*.py"))

    def named(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


DISTRIBUTIONS = [
    Distribution(path.parent) for path in sorted(PROJECT.glob("plugins/*/pyproject.toml"))
]
ROOT_PROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))
each_plugin = pytest.mark.parametrize("plugin", DISTRIBUTIONS, ids=lambda plugin: plugin.name)


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules that are imported anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def may_import(plugin: Distribution, module: str) -> bool:
    """Whether a module is the standard library's, somebody else's, public, or its own."""
    package = module.partition(".")[0]
    if not package.startswith("dagnats_worker"):
        return True
    if package == "dagnats_worker":
        return module in PUBLIC
    return package == plugin.package or module in BUILT_ON.get(plugin.name, set())


@each_plugin
def test_plugin_imports_only_what_is_published(plugin: Distribution) -> None:
    hidden = [
        f"{plugin.named(path)}: {module}"
        for path in plugin.modules
        for module in imported(ast.parse(path.read_text("utf-8")))
        if not may_import(plugin, module)
    ]
    assert hidden == []


@each_plugin
def test_module_has_a_docstring_and_a_size_to_be_read(plugin: Distribution) -> None:
    wrong = []
    for path in plugin.modules:
        text = path.read_text("utf-8")
        tree = ast.parse(text)
        if not ast.get_docstring(tree):
            wrong.append(f"{plugin.named(path)}: no docstring")
        if (lines := len(text.splitlines())) > MODULE_LINES_MAX:
            wrong.append(f"{plugin.named(path)}: {lines} lines")
        wrong += [
            f"{plugin.named(path)}: {node.name} has {length(node)} lines"
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and length(node) > FUNCTION_LINES_MAX
        ]
    assert wrong == []


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines without the docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        first = function.body[0]
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


@each_plugin
def test_distribution_is_complete(plugin: Distribution) -> None:
    needed = ["README.md", "LICENSE", f"{plugin.package}/__init__.py", f"{plugin.package}/py.typed"]
    assert [name for name in needed if not (plugin.folder / name).is_file()] == []
    licence = (PROJECT / "LICENSE").read_text("utf-8")
    assert (plugin.folder / "LICENSE").read_text("utf-8") == licence
    beside = [
        f"docs/plugins/{plugin.name}.md",
        f"examples/plugins/{plugin.name}.py",
        f"tests/plugins/{plugin.name}",
    ]
    assert [name for name in beside if not (PROJECT / name).exists()] == []


@each_plugin
def test_distribution_is_declared_like_the_others(plugin: Distribution) -> None:
    project = plugin.project["project"]
    core = ROOT_PROJECT["project"]
    assert project["name"] == f"dagnats-worker-{plugin.name}"
    assert project["version"] == core["version"]
    assert project["requires-python"] == core["requires-python"]
    series = core["version"].rpartition(".")[0]
    assert f"dagnats-worker~={series}.0" in project["dependencies"]
    assert plugin.name in project["entry-points"]["dagnats_worker.plugins.v1"]
    assert "tool" not in plugin.project or set(plugin.project["tool"]) == {"hatch"}
    extras = core["optional-dependencies"]
    assert extras[plugin.name] == [f"dagnats-worker-{plugin.name}~={series}.0"]


@each_plugin
def test_matrix_has_an_environment_with_the_plugin_alone(plugin: Distribution) -> None:
    matrix = (PROJECT / "tox.ini").read_text("utf-8")
    assert f"-e ./plugins/{plugin.name}" in matrix
    assert re.search(
        rf"^    {plugin.name}: pytest .*tests/plugins/{plugin.name} ", matrix, re.MULTILINE
    )


@each_plugin
def test_readme_has_a_row_for_each_setting_and_each_hook(plugin: Distribution) -> None:
    readme = (plugin.folder / "README.md").read_text("utf-8")
    hooks, settings = declared_by(plugin)
    missing = [name for name in [*hooks, *settings] if f"`{name}`" not in readme]
    assert missing == []


def declared_by(plugin: Distribution) -> tuple[list[str], list[str]]:
    """The hooks that a plugin implements, and the names of its settings."""
    hooks, settings_types, classes = [], set(), {}
    for path in plugin.modules:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and any(
                ast.unparse(one) == "hookimpl" for one in node.decorator_list
            ):
                hooks.append(node.name)
            elif isinstance(node, ast.ClassDef):
                classes[node.name] = node
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "settings_type":
                settings_types.add(ast.unparse(node.value))
            elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "settings_type":
                assert node.value is not None
                settings_types.add(ast.unparse(node.value))
    settings = [
        ast.unparse(field.target)
        for name in settings_types
        for field in classes[name].body
        if isinstance(field, ast.AnnAssign)
    ]
    return hooks, settings
