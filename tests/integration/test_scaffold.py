"""What ``plugins new`` writes can be installed, passes its own tests, and is typed, as it is.

Method: the command writes a plugin into a folder; it is built, installed beside the built core, and
treated as its author would. Real: the wheels, pip, pytest, mypy, ruff. Fake: nothing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from clean_venv import CleanVenv, build
from cli_support import one_error_line, run_command

NAMES = ("ab", "quiet-hours", "a" * 24, "o1-o2-o3-o4-o5-o6-o7-o88")
NAME = "quiet-hours"
DISTRIBUTION = f"dagnats-worker-{NAME}"


# ------------------------------------------------------------------------- writing it


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_formatted_and_without_fault(name: str, tmp_path: Path) -> None:
    ruff = shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed; the environment `lint` has it")
    run_command("plugins", "new", name, cwd=tmp_path)
    for arguments in (("check",), ("format", "--check")):
        done = subprocess.run(
            [ruff, *arguments, "--no-cache", "."],
            cwd=tmp_path / f"dagnats-worker-{name}",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


def test_it_says_what_it_has_written(tmp_path: Path) -> None:
    done = run_command("plugins", "new", f"dagnats-worker-{NAME}", "--json", cwd=tmp_path)
    answer = json.loads(done.stdout)
    folder = tmp_path / answer["folder"]
    assert folder.name == DISTRIBUTION
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == set(answer["files"])
    assert {"pyproject.toml", "README.md", "tox.ini"} <= written
    assert "dagnats_worker_quiet_hours/py.typed" in written
    assert not [path for path in written if "$" in (folder / path).read_text()]


def test_it_goes_where_it_is_told_to(tmp_path: Path) -> None:
    done = run_command("plugins", "new", NAME, "--dir", "some/where", cwd=tmp_path)
    assert (tmp_path / "some/where/pyproject.toml").is_file()
    assert "now: cd some/where && pip install" in done.stdout


def test_it_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / DISTRIBUTION).mkdir()
    (tmp_path / DISTRIBUTION / "notes.txt").write_text("mine")
    done = run_command("plugins", "new", NAME, cwd=tmp_path)
    assert done.returncode == 1
    assert "is not empty; give another folder with --dir" in one_error_line(done)
    assert [path.name for path in (tmp_path / DISTRIBUTION).iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Quiet", "small letters"),
        ("quiet_hours", "small letters"),
        ("-x", "No such option"),
        ("2fa", "small letters"),
        ("a", "2 to 24"),
        ("a" * 25, "2 to 24"),
        ("checkpoint", "taken by the project itself"),
        ("worker", "taken by the project itself"),
        ("run", "taken by the project itself"),
    ],
)
def test_name_that_cannot_be_one_is_refused(name: str, text: str, tmp_path: Path) -> None:
    done = run_command("plugins", "new", name, cwd=tmp_path)
    assert done.returncode == 2
    assert text in one_error_line(done)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------- using it


@pytest.fixture(scope="module")
def folder(clean_venv: CleanVenv, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command has written."""
    parent = tmp_path_factory.mktemp("new")
    clean_venv.run("dagnats-worker", "plugins", "new", NAME, cwd=parent)
    return parent / DISTRIBUTION


@pytest.fixture(scope="module")
def installed(clean_venv: CleanVenv, folder: Path) -> Iterator[CleanVenv]:
    """The environment with the new plugin in it."""
    clean_venv.install(str(build(folder, folder / "dist")))
    yield clean_venv
    clean_venv.uninstall(DISTRIBUTION)


@pytest.mark.installs
def test_it_passes_its_own_tests(installed: CleanVenv, folder: Path) -> None:
    done = installed.run("pytest", "-q", cwd=folder)
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.installs
def test_it_is_typed(installed: CleanVenv, folder: Path) -> None:
    done = installed.run("mypy", cwd=folder)
    assert "no issues found" in done.stdout


@pytest.mark.installs
def test_it_is_found_and_can_be_configured(installed: CleanVenv, folder: Path) -> None:
    done = installed.run("dagnats-worker", "plugins", "list", "--json", cwd=folder)
    [row] = json.loads(done.stdout)
    assert (row["name"], row["state"], row["distribution"]) == (NAME, "active", DISTRIBUTION)
    done = installed.run("dagnats-worker", "plugins", "doctor", cwd=folder)
    assert "nothing is wrong" in done.stdout
    done = installed.run(
        "dagnats-worker", NAME, cwd=folder, DAGNATS_WORKER__QUIET_HOURS__HEADER="Quiet"
    )
    assert done.stdout == "header  Quiet\n"


@pytest.mark.installs
def test_it_keeps_the_contract_where_it_is_installed(installed: CleanVenv, folder: Path) -> None:
    done = installed.run("dagnats-worker", "plugins", "test", NAME, "--", "-q", cwd=folder)
    assert " passed" in done.stdout
