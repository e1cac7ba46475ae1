"""A plugin of somebody else, installed beside the built core, does one of everything.

Method: ``tests/outside`` is copied into a folder of its own, built, and installed into an
environment that has nothing but the built core; programs and commands are run there, and again
after it was uninstalled. Real: the wheels, pip, the server, the processes. Fake: nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clean_venv import ROOT, CleanVenv, build

from dagnats_worker._embedded import EmbeddedServer

pytestmark = [
    pytest.mark.installs,
    pytest.mark.server,
    pytest.mark.usefixtures("server_installed"),
]

OUTSIDE = ROOT / "tests" / "outside"
DISTRIBUTION = "outside-plugin"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin's own folder."""
    folder = tmp_path_factory.mktemp("somewhere") / "outside"
    shutil.copytree(OUTSIDE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def before(clean_venv: CleanVenv) -> set[str]:
    """What was there before the plugin."""
    return clean_venv.files()


@pytest.fixture(scope="module")
def installed(clean_venv: CleanVenv, before: set[str], folder: Path) -> Iterator[CleanVenv]:
    """The environment with the plugin in it."""
    clean_venv.install(str(build(folder, folder / "dist")))
    yield clean_venv
    clean_venv.uninstall(DISTRIBUTION)


@pytest.fixture(scope="module")
def ran(installed: CleanVenv, folder: Path) -> dict[str, Any]:
    """What the program has printed that runs one task of each type."""
    diary = folder / "diary"
    done = installed.run("python", "app.py", cwd=folder, DAGNATS_WORKER__OUTSIDE__DIARY=str(diary))
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"diary": diary.read_text()}


def test_vetoes_a_task_with_an_outcome(ran: dict[str, Any]) -> None:
    assert ran["vetoed"] == "vetoed"


def test_delays_a_task(ran: dict[str, Any]) -> None:
    assert ran["delayed"] == [2, 1]  # delivered twice, and the delay was no attempt


def test_changes_a_failure_into_a_retry(ran: dict[str, Any]) -> None:
    assert ran["busy"] == 2


def test_adds_a_header_to_every_event(ran: dict[str, Any]) -> None:
    assert len(ran["marked"]) > 8
    assert all(ran["marked"])


def test_holds_a_resource_from_start_to_stop(ran: dict[str, Any]) -> None:
    opened, closed = ran["diary"].splitlines()
    assert opened.startswith("opened by worker-")
    assert closed == "closed after 4"


def test_gives_handlers_a_capability(ran: dict[str, Any]) -> None:
    assert ran["greeted"] == ["hello Ada", "run-greeted.greeted"]


def test_capability_is_known_to_the_type_checker(installed: CleanVenv, folder: Path) -> None:
    installed.run("mypy", "--strict", "outside_plugin", "app.py", "typed.py", cwd=folder)


def test_adds_a_command(installed: CleanVenv, folder: Path, shared_server: EmbeddedServer) -> None:
    helped = installed.run("dagnats-worker", "--help", cwd=folder)
    assert "outside-ping  outside-plugin 3.2.1" in helped.stdout
    done = installed.run("dagnats-worker", "outside-ping", cwd=folder, NATS_URL=shared_server.url)
    assert done.stdout == f"pong from 127.0.0.1:{shared_server.port}\n"


def test_is_listed_with_its_settings(installed: CleanVenv, folder: Path) -> None:
    (folder / "dagnats-worker.toml").write_text('[plugins.outside]\ngreeting = "good day"\n')
    done = installed.run("dagnats-worker", "plugins", "show", "outside", "--json", cwd=folder)
    (folder / "dagnats-worker.toml").unlink()
    found = json.loads(done.stdout)
    assert (found["state"], found["version"]) == ("active", "3.2.1")
    assert found["task_options"] == {"outside": "Literal['', 'veto', 'delay'] = ''"}
    settings = {one["key"]: (one["value"], one["origin"]) for one in found["settings"]}
    assert settings["greeting"] == ("good day", "dagnats-worker.toml [plugins.outside]")


def test_keeps_the_contract(installed: CleanVenv, folder: Path) -> None:
    done = installed.run("dagnats-worker", "plugins", "test", "outside", "--", "-q", cwd=folder)
    assert " passed" in done.stdout


def test_uninstalling_leaves_no_trace(installed: CleanVenv, before: set[str], folder: Path) -> None:
    """The last one: it takes away what the others have used."""
    assert installed.files() > before
    installed.uninstall(DISTRIBUTION)
    assert installed.files() == before
    listed = installed.run("dagnats-worker", "plugins", "list", "--json", cwd=folder)
    assert listed.stdout == "[]\n"
    assert "outside" not in installed.run("dagnats-worker", "--help", cwd=folder).stdout
    code = (
        "from dagnats_worker import Worker\nWorker().handle('t', lambda ctx: None, outside='veto')"
    )
    done = installed.run("python", "-c", code, cwd=folder.parent, code=1)
    assert "no plugin understands the task option 'outside'" in done.stderr
