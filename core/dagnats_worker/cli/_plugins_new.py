"""``dagnats-worker plugins new``: a complete distribution to begin with."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template

import click

from dagnats_worker._discovery import CORE, OWN_PLUGINS
from dagnats_worker._setting_values import PLUGINS, WORKER, variable_of
from dagnats_worker.cli._group import Command
from dagnats_worker.cli._main import SECTIONS
from dagnats_worker.cli._screen import tell
from dagnats_worker.errors import UsageError

TEMPLATES = files("dagnats_worker.cli") / "_scaffold"
FILES = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    "tox.ini": "tox.ini.txt",
    ".gitignore": "gitignore.txt",
    "$package/__init__.py": "package.txt",
    "$package/_plugin.py": "plugin.txt",
    "$package/_command.py": "command.txt",
    "$package/py.typed": "",
    "tests/test_contract.py": "test_contract.txt",
    "tests/test_plugin.py": "test_plugin.txt",
}
"""What is written, and the template that it is made from; empty for an empty file."""

NAME_CHARACTERS_MAX = 24
"""What is written is formatted; longer names would break its lines."""

_name = re.compile(r"[a-z][a-z0-9]+(-[a-z0-9]+)*")


@click.command(cls=Command)
@click.argument("name")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where to write it; dagnats-worker-NAME in the current folder when not given.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def new(name: str, folder: Path | None, *, as_json: bool) -> None:
    """Begin a plugin: a distribution that installs, with tests that pass.

    NAME is what settings and commands will call it: small letters, digits and dashes.
    """
    name = name.removeprefix(f"{CORE}-")
    check_name(name)
    folder = folder or Path(f"{CORE}-{name}")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; give another folder with --dir")
    written = write(name, folder)
    if as_json:
        tell(json.dumps({"folder": str(folder), "files": written}))
        return
    for file in written:
        tell(f"wrote  {folder / file}")
    tell(f"\nnow: cd {folder} && pip install -e . pytest pytest-asyncio && pytest")


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a plugin.

    Raises:
        click.UsageError: Says what can.
    """
    if not _name.fullmatch(name) or len(name) > NAME_CHARACTERS_MAX:
        raise click.UsageError(
            f"{name!r} is not the name of a plugin: 2 to {NAME_CHARACTERS_MAX} small letters and "
            "digits, with dashes between them"
        )
    commands = {command for section in SECTIONS.values() for command in section}
    if name in {*OWN_PLUGINS, *commands, WORKER, PLUGINS}:
        raise click.UsageError(f"{name!r} is taken by the project itself; choose another name")


def write(name: str, folder: Path) -> list[str]:
    """Write every file below a folder; returns their names, in this order."""
    values = _values(name)
    written = []
    for target, template in FILES.items():
        path = Template(target).substitute(values)
        text = ""
        if template:
            text = Template((TEMPLATES / template).read_text("utf-8")).substitute(values)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
        written.append(path)
    return written


def _values(name: str) -> dict[str, str]:
    words = name.split("-")
    major, minor, *_ = version(CORE).split(".")
    class_name = "".join(word.capitalize() for word in words)
    constant = "_".join(words).upper()
    classes = sorted((f"{class_name}Plugin", f"{class_name}Settings", "Label"))
    tested = [one for one in classes if one != "Label"]
    return {
        "name": name,
        "distribution": f"{CORE}-{name}",
        "package": f"{CORE}-{name}".replace("-", "_"),
        "class_name": class_name,
        "constant": constant,
        "function": "_".join(words),
        "header": "-".join(word.capitalize() for word in ("x", *words)),
        "variable": variable_of(name, ""),
        "requirement": f"~={major}.{minor}.0",
        "imported": "\n".join(f"    {one}," for one in (constant, *classes)),
        "exported": "\n".join(f'    "{one}",' for one in (constant, *classes)),
        "tested": "\n".join(f"    {one}," for one in (constant, *tested)),
    }
