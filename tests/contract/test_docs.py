"""The documentation says what the code says.

Method: the pages are read as text and compared with the files that they show, and with the names,
the defaults and the classes of the code. Nothing is run and nothing is fake; what the programs on
the pages do is checked in ``tests/integration/test_docs_snippets.py``.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from docs_pages import DOCS, PAGES, ROOT, Block, all_blocks, anchors, code, named, prose, table

from dagnats_worker import (
    Credentials,
    Outcome,
    SyncTaskContext,
    TaskContext,
    Worker,
    WorkerConfig,
    errors,
)
from dagnats_worker import _protocol as protocol
from dagnats_worker._registry import CORE_OPTIONS
from dagnats_worker.cli._main import cli

REFERENCE = DOCS / "reference"
CORE = ROOT / "core" / "dagnats_worker"
PLUGIN_COMMANDS = {
    command
    for file in (ROOT / "plugins").glob("*/pyproject.toml")
    for command in tomllib.loads(file.read_text(encoding="utf-8"))["project"]["entry-points"].get(
        "dagnats_worker.commands.v1", ()
    )
}
MARKS = {"title", "excerpt", "output", "run"}
SHOWN_AS_FILES = {"python", "toml", "yaml"}


def of_page(page: Path) -> str:
    return named(page)


# ------------------------------------------------------------------------- code blocks


@pytest.mark.parametrize("block", all_blocks(), ids=lambda block: block.where)
def test_block_of_code_is_the_file_that_it_names(block: Block) -> None:
    assert set(block.attributes) <= MARKS, f"{block.where}: {block.attributes}"
    if block.language in SHOWN_AS_FILES:
        assert {"title", "excerpt"} & set(block.attributes), f"{block.where} names no file"
    if "title" in block.attributes:
        assert block.text == (ROOT / block.attributes["title"]).read_text(encoding="utf-8")
    if "excerpt" in block.attributes:
        file = (ROOT / block.attributes["excerpt"]).read_text(encoding="utf-8")
        assert f"\n{block.text}" in f"\n{file}"


def test_page_says_which_file_it_shows() -> None:
    """The marks are not shown where a page is rendered, so its text has to say it."""
    for block in all_blocks():
        path = block.attributes.get("title") or block.attributes.get("excerpt")
        if path is not None:
            folder = path.rpartition("/")[0]
            assert path in prose(block.page) or f"{folder}/" in prose(block.page), block.where


# ------------------------------------------------------------------------- links and names


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=of_page)
def test_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{named(page)} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{named(page)} links to {target}"


def test_every_page_is_reached_from_the_index() -> None:
    reached, pages = set(), [DOCS / "index.md"]
    while pages:
        page = pages.pop()
        reached.add(page)
        links = re.findall(r"\]\(([^)#\s]+\.md)", prose(page))
        linked = {(page.parent / link).resolve() for link in links}
        pages += [one for one in linked if one in PAGES and one not in reached]
    assert reached == set(PAGES)


def functions_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    return {node.name for node in ast.walk(tree) if isinstance(node, functions)}


@pytest.mark.parametrize("page", PAGES, ids=of_page)
def test_test_that_is_named_exists(page: Path) -> None:
    for path, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", page.read_text(encoding="utf-8")):
        assert name in functions_in(ROOT / path), f"{named(page)} names {path}::{name}"


def test_every_guarantee_names_its_proof() -> None:
    text = (DOCS / "explanation" / "delivery.md").read_text(encoding="utf-8")
    guarantees = text.partition("## What is guaranteed\n")[2].partition("\n## ")[0]
    parts = re.split(r"^\*\*", guarantees, flags=re.MULTILINE)[1:]
    assert len(parts) > 10
    for part in parts:
        assert re.search(r"^- `tests/[\w/]+\.py::test_\w+`", part, flags=re.MULTILINE), part


@pytest.mark.parametrize("page", PAGES, ids=of_page)
def test_file_that_is_named_exists(page: Path) -> None:
    for name in code(prose(page)):
        if re.match(r"(core|docs|examples|tests|\.ci)/[\w./-]+$", name):
            assert (ROOT / name).exists(), f"{named(page)} names {name}"
        elif re.match(r"(_\w+|(_jetstream|cli|testing)/\w+)\.py$", name):
            assert (CORE / name).exists(), f"{named(page)} names {name}"


def commands_of(page: Path) -> Iterator[list[str]]:
    """Every ``dagnats-worker ...`` on a page, in a sentence, at a prompt, or in a configuration."""
    text = page.read_text(encoding="utf-8")
    for line in [*code(prose(page)), *re.findall(r"^\$ (.*)", text, flags=re.MULTILINE)]:
        if line.startswith("dagnats-worker "):
            yield shlex.split(line)[1:]
    for command in re.findall(r"command: \[(.*)\]", text):
        yield [part.strip(' "') for part in command.split(",")][1:]


@pytest.mark.parametrize("page", PAGES, ids=of_page)
def test_command_that_is_named_exists_with_its_options(page: Path) -> None:
    ctx = click.Context(cli)
    for name, *arguments in commands_of(page):
        command = cli.get_command(ctx, name)
        if command is None and name in PLUGIN_COMMANDS:
            continue  # tested where the plugin is installed
        assert command is not None, f"{named(page)}: dagnats-worker {name}"
        known = {option for parameter in command.params for option in parameter.opts}
        used = {argument for argument in arguments if argument.startswith("--")}
        assert used <= known, f"{named(page)}: dagnats-worker {name} {used - known}"


# ------------------------------------------------------------------------- configuration


def shown(value: Any) -> str:
    """A default as the table shows it."""
    if value is None or value == Credentials():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
        if seconds < 1:
            return f"{seconds * 1000:g} ms"
        return f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:g} min"
    if isinstance(value, int) and value % 2**20 == 0:
        return f"{value // 2**20} MiB"
    return f"{value:,}".replace(",", " ")


def test_every_setting_has_a_row_with_its_default() -> None:
    rows = table(REFERENCE / "configuration.md", "Settings")
    config = WorkerConfig()
    expected = [
        [f"`{one.name}`", shown(getattr(config, one.name))] for one in dataclasses.fields(config)
    ]
    assert config.processes_max == os.cpu_count()
    expected = [
        [name, "number of processors" if name == "`processes_max`" else default]
        for name, default in expected
    ]
    assert [row[:2] for row in rows] == expected


def test_every_field_of_the_credentials_has_a_row() -> None:
    rows = table(REFERENCE / "configuration.md", "Credentials")
    names = [name for row in rows for name in code(row[0])]
    assert names == [one.name for one in dataclasses.fields(Credentials)]


def test_every_argument_of_a_worker_has_a_row() -> None:
    rows = table(REFERENCE / "configuration.md", "Arguments of a worker")
    names = [name for row in rows for name in code(row[0])]
    assert names == list(inspect.signature(Worker.__init__).parameters)[1:]


# ------------------------------------------------------------------------- handlers


def test_every_option_of_a_task_type_has_a_row() -> None:
    rows = table(REFERENCE / "handlers.md", "Options")
    assert sorted(code(row[0])[0] for row in rows) == sorted(CORE_OPTIONS)


def test_everything_that_the_context_has_has_a_row() -> None:
    rows = table(REFERENCE / "handlers.md", "The context")
    documented = {name.partition("(")[0] for row in rows for name in code(row[0])}
    public = {
        name
        for context in (TaskContext, SyncTaskContext)
        for name in dir(context)
        if not name.startswith("_")
    }
    assert documented == public - {"run", "sync"}


def test_every_outcome_has_a_row() -> None:
    rows = table(REFERENCE / "handlers.md", "Outcomes")
    documented = [code(row[0])[0].partition("(")[0] for row in rows]
    assert documented == [outcome.__name__ for outcome in get_args(Outcome)]


# ------------------------------------------------------------------------- errors


def test_every_exception_is_in_a_table() -> None:
    text = prose(REFERENCE / "errors.md")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    documented = {name.partition("(")[0] for row in rows for name in code(row.split(" | ")[0])}
    roots = {"DagnatsError", "TaskError"}  # nobody raises these two
    assert set(errors.__all__) - roots <= documented
    assert all(f"`{name}`" in text for name in roots - {"DagnatsError"})


def test_tree_of_exceptions_is_that_of_the_code() -> None:
    (block,) = (one for one in all_blocks() if one.page == REFERENCE / "errors.md")
    parents: list[str] = []
    found = {}
    for line in block.text.splitlines():
        depth = len(re.match(r"[│├└─ ]*", line)[0]) // 4  # type: ignore[index]  # matches anything
        for name in re.findall(r"\w+", line):
            found[name] = parents[depth - 1] if depth else "Exception"
            parents[depth:] = [name]
    expected = {name: getattr(errors, name).__mro__[1].__name__ for name in errors.__all__}
    assert found == expected


# ------------------------------------------------------------------------- events


def test_every_event_that_is_written_has_a_row() -> None:
    rows = table(REFERENCE / "events.md", "Types")
    written = {name: getattr(protocol, name) for name in protocol.__all__ if "STEP_" in name}
    del written["STEP_QUEUED"]  # the engine's
    assert sorted(code(row[0])[0] for row in rows) == sorted(written.values())


def test_every_field_of_an_event_has_a_row() -> None:
    rows = table(REFERENCE / "events.md", "Fields of an event")
    names = [name for row in rows for name in code(row[0])]
    assert names == list(protocol.Event.__struct_fields__)


def test_message_ids_are_those_of_the_code() -> None:
    rows = table(REFERENCE / "events.md", "Message ids")
    numbers = {"<attempt>": "2", "<iteration>": "3", "<nanoseconds>": "4", "<type>": "step.failed"}
    documented = []
    for row in rows:
        message_id = code(row[1])[0].replace("<run>", "R").replace("<step>", "S")
        for name, value in numbers.items():
            message_id = message_id.replace(name, value)
        documented.append(message_id)
    assert documented == [
        protocol.event_id("R", "S", protocol.STEP_STARTED, attempt=2),
        protocol.event_id("R", "S", protocol.STEP_FAILED, attempt=2),
        protocol.event_id("R", "S", protocol.STEP_RELEASED, attempt=2),
        protocol.continue_id("R", "S", 3, 4),
        protocol.go_event_id("R", "", protocol.WORKFLOW_CANCELLED),
        protocol.queued_id("R", "S"),
        protocol.next_iteration_id("R", "S", 3),
    ]


def test_every_header_of_a_dead_letter_has_a_row() -> None:
    rows = table(REFERENCE / "events.md", "Dead letters")
    headers = protocol.dead_letter_headers(
        run_id="R", step_id="S", task_type="t", error="e", attempts=1, deliveries=1, subject="s"
    )
    assert [name for row in rows for name in code(row[0])] == list(headers)


# ------------------------------------------------------------------------- decisions and changes


def test_decisions_are_numbered_and_complete() -> None:
    records = sorted((DOCS / "adr").glob("*.md"))
    numbers = [int(record.name[:4]) for record in records]
    assert numbers[0] == 1
    assert all(after == before + 1 for before, after in pairwise(numbers))
    for record in records:
        text = record.read_text(encoding="utf-8")
        assert text.startswith(f"# {record.name[:4]} "), record.name
        headings = re.findall(r"^## (.*)", text, flags=re.MULTILINE)
        assert headings == ["Context", "Decision", "Alternatives", "Consequences"], record.name


def test_change_fragments_have_a_kind() -> None:
    for fragment in (DOCS / "changes").iterdir():
        if fragment.name != "README.md":
            assert re.fullmatch(r"[\w-]+\.(added|changed|fixed|removed)\.md", fragment.name)
