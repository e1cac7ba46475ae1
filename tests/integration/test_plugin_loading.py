"""Installed plugins in a process of their own: what is imported, what is not, and what fails.

Method: distributions as pip leaves them behind, in a folder on the path of a new interpreter, which
prints what it finds. Real: everything; the worker is one of the core, on the in-memory server where
it has to run. Nothing is fake.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plugin_dists import run_python, write_distribution

REPORT = """
import asyncio, json, logging, sys

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
from dagnats_worker import *
from dagnats_worker.testing import MemoryTransport

async def shout(text: str) -> str:
    return text.upper()

def imported():
    return sorted(name for name in sys.modules if name.startswith("acme"))

def report(worker, **more):
    hooks = worker._hooks
    states = {one.name: [one.state, one.reason] for one in hooks.states}
    plugins = [plugin.name for plugin in hooks.plugins]
    print(json.dumps({"plugins": plugins, "states": states, "imported": imported(), **more}))
"""

REGISTERED = """
worker = Worker(MemoryTransport())
worker.handle("shout", shout)
report(worker)
"""

Run = Callable[..., Any]


class Result:
    """What the process printed and logged."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.log = err.splitlines()
        self.found: dict[str, Any] = json.loads(out.splitlines()[-1]) if out.strip() else {}

    def __getitem__(self, key: str) -> Any:
        return self.found[key]

    def warnings(self) -> list[str]:
        return [line for line in self.log if line.startswith("WARNING")]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder on the path of the new interpreter."""
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Run:
    """Runs code after ``REPORT``; it ends with a report, unless it is to fail."""

    def run(code: str = REGISTERED, *, fails: bool = False, **environment: str) -> Result:
        done = run_python(
            REPORT + textwrap.dedent(code), site, cwd=tmp_path, environment=environment
        )
        result = Result(done.returncode, done.stdout, done.stderr)
        assert (result.code != 0) == fails, done.stderr
        return result

    return run


# ------------------------------------------------------------------------- what is looked at


def test_nothing_is_touched_before_the_first_registration(site: Path, run: Run) -> None:
    write_distribution(site, "acme-hours", plugins=["hours"])
    found = run(
        """
        from dagnats_worker import _discovery
        worker, client = Worker("nats://127.0.0.1:1"), Client("nats://127.0.0.1:1")
        before = imported(), _discovery._entries.cache_info().currsize, "stevedore" in sys.modules
        worker.handle("shout", shout)
        report(worker, before=before)
        """
    )
    assert found["before"] == [[], 0, False]
    assert found["imported"] == ["acme_hours"]
    assert found["plugins"] == ["hours"]
    assert found["states"] == {"hours": ["active", ""]}


def test_plugins_in_the_code_are_used_and_nothing_else_is_looked_for(site: Path, run: Run) -> None:
    write_distribution(site, "acme-hours", plugins=["hours"])
    found = run(
        """
        from dagnats_worker import _discovery
        class Mine(Plugin[None]):
            name = "mine"
        worker = Worker(MemoryTransport(), plugins=[Mine()])
        worker.handle("shout", shout)
        report(worker, scans=_discovery._entries.cache_info().misses)
        """,
        DAGNATS_WORKER_PLUGINS="hours",
    )
    assert (found["plugins"], found["imported"], found["scans"]) == (["mine"], [], 0)


def test_only_what_is_selected_and_compatible_is_imported(site: Path, run: Run) -> None:
    (site.parent / "dagnats-worker.toml").write_text("[plugins.off]\nenabled = false")
    for name in ("used", "off", "left"):
        write_distribution(site, f"acme-{name}", plugins=[name])
    write_distribution(site, "acme-old", plugins=["old"], requires=["dagnats-worker~=9.0"])
    write_distribution(site, "acme-next", plugins=["next"], group="dagnats_worker.plugins.v2")
    found = run(DAGNATS_WORKER_DISABLE_PLUGINS="left")
    assert found["imported"] == ["acme_used"]
    assert found["plugins"] == ["used"]
    assert found["states"] == {
        "used": ["active", ""],
        "old": ["incompatible", "requires dagnats-worker~=9.0, this is dagnats-worker 0.1.0"],
        "next": ["incompatible", "speaks plugin API 2, this core speaks 1"],
    }
    assert len(found.warnings()) == 2
    assert any("'off' (acme-off 1.0) is not used: enabled = false" in line for line in found.log)
    assert any("'left' (acme-left 1.0) is not used: named in" in line for line in found.log)
    assert any(
        line.startswith("INFO plugin 'used' (acme-used 1.0) is loaded") for line in found.log
    )


def test_no_plugins_means_none_whatever_the_code_says(site: Path, run: Run) -> None:
    write_distribution(site, "acme-hours", plugins=["hours"])
    found = run(
        """
        from dagnats_worker._config import Overrides, install_overrides
        class Mine(Plugin[None]):
            name = "mine"
        install_overrides(Overrides(no_plugins=True))
        one, other = Worker(MemoryTransport()), Worker(MemoryTransport(), plugins=[Mine()])
        one.handle("shout", shout)
        report(other, one=len(one._hooks.members))
        """,
        DAGNATS_WORKER_PLUGINS="hours",
    )
    assert (found["plugins"], found["one"], found["imported"]) == ([], 0, [])


def test_plugins_are_imported_one_after_the_other_in_order(site: Path, run: Run) -> None:
    code = (
        "import sys\nfrom dagnats_worker import Plugin\nprint('import', __name__, file=sys.stderr)"
    )
    for name in ("alpha", "beta", "gamma"):
        kind = f"\nclass P(Plugin[None]):\n    name = {name!r}\n"
        entry = {name: f"acme_{name}:P"}
        write_distribution(site, f"acme-{name}", plugins=entry, code=code + kind)
    found = run(DAGNATS_WORKER_PLUGINS="gamma,alpha")
    assert [line for line in found.log if line.startswith("import")] == [
        "import acme_gamma",
        "import acme_alpha",
    ]
    assert found["plugins"] == ["gamma", "alpha"]


def test_each_import_is_timed(site: Path, run: Run) -> None:
    code = """
    import time
    from dagnats_worker import Plugin
    time.sleep(0.05)
    class P(Plugin[None]):
        name = "slow"
    """
    write_distribution(site, "acme-slow", plugins={"slow": "acme_slow:P"}, code=code)
    found = run(
        """
        from dagnats_worker import _discovery, _importing
        from dagnats_worker._settings import Sources
        chosen = _discovery.candidates(_discovery.Selection(), Sources())
        (one,) = _importing.load(chosen, Sources())
        print(json.dumps({"import_s": one.import_s}))
        """
    )
    assert 0.05 <= found["import_s"] < 5


def test_help_imports_no_plugin_and_no_nats(site: Path, tmp_path: Path) -> None:
    write_distribution(site, "acme-hours", plugins=["hours"])
    done = run_python(
        """
        import sys
        from dagnats_worker.cli._main import run_command_line
        sys.argv = ["dagnats-worker", "--help"]
        code = run_command_line()
        heavy = ("acme_hours", "nats", "stevedore")
        print(code, [name for name in heavy if name in sys.modules])
        """,
        site,
        cwd=tmp_path,
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_every_worker_and_client_of_a_process_gets_plugins_of_its_own(site: Path, run: Run) -> None:
    write_distribution(site, "acme-hours", plugins=["hours"])
    write_distribution(site, "acme-bad", plugins=["bad"], code="import absent_module")
    found = run(
        """
        from dagnats_worker import _discovery
        workers = [Worker(MemoryTransport()) for _ in range(3)]
        for worker in workers:
            worker.handle("shout", shout)
        made = [worker._hooks.plugins[0] for worker in workers]
        async def with_client():
            async with Client(MemoryTransport()) as client:
                return client._hooks.plugins[0]
        made.append(asyncio.run(with_client()))
        different = len({id(one) for one in made}), len({type(one) for one in made})
        report(worker, different=different, scans=_discovery._entries.cache_info().misses)
        """
    )
    assert found["different"] == [4, 1]
    assert found["scans"] == 1
    assert len(found.warnings()) == 1, "of the same broken plugin it is warned once"


# ------------------------------------------------------------------------- what fails


BROKEN = {
    "import absent_module": "ModuleNotFoundError: No module named 'absent_module'",
    "raise SystemExit(7)": "SystemExit: 7",
    "raise AssertionError('no')": "AssertionError: no",
    "1 / 0": "ZeroDivisionError: division by zero",
    "raise BaseException('odd')": "BaseException: odd",
    "import asyncio; raise asyncio.CancelledError()": "CancelledError: CancelledError",
    "x = (": "SyntaxError: '(' was never closed",
}


def test_plugins_that_cannot_be_imported_are_left_out_with_one_warning_each(
    site: Path, run: Run
) -> None:
    for number, statement in enumerate(BROKEN):
        write_distribution(site, f"acme-bad{number}", plugins=[f"bad{number}"], code=statement)
    for name in ("alpha", "zeta"):
        write_distribution(site, f"acme-{name}", plugins=[name])
    found = run()
    assert found["plugins"] == ["alpha", "zeta"]
    for number, reason in enumerate(BROKEN.values()):
        state, said = found["states"][f"bad{number}"]
        assert state == "failed"
        assert said.startswith(reason)
        start = f"WARNING plugin 'bad{number}' (acme-bad{number} 1.0) cannot be used: {reason}"
        (warning,) = [line for line in found.warnings() if line.startswith(start)]
        assert warning.endswith("; going on without it")
    assert len(found.warnings()) == len(BROKEN)


@pytest.mark.parametrize(
    ("statement", "how"),
    [("import absent_module", "variable"), ("raise SystemExit(7)", "file"), ("1 / 0", "variable")],
)
def test_required_plugin_that_cannot_be_imported_stops_the_worker(
    site: Path, run: Run, statement: str, how: str
) -> None:
    write_distribution(site, "acme-bad", plugins=["bad"], code=statement)
    environment = {"DAGNATS_WORKER_PLUGINS": "bad"} if how == "variable" else {}
    if how == "file":
        (site.parent / "dagnats-worker.toml").write_text("[plugins.bad]\nrequired = true")
    result = run(fails=True, **environment)
    assert result.log[-1].startswith(
        "dagnats_worker.errors.PluginError: plugin 'bad' (acme-bad 1.0) cannot be used: "
    )


def test_interrupt_from_the_keyboard_is_nobodys_fault(site: Path, run: Run) -> None:
    write_distribution(site, "acme-bad", plugins=["bad"], code="raise KeyboardInterrupt")
    result = run(fails=True)
    assert result.log[-1].startswith("KeyboardInterrupt")


UNUSABLE = [
    ("Absent", "", "AttributeError: module 'acme_bad0' has no attribute 'Absent'"),
    ("x", "x = 7", "acme_bad1:x is not a subclass of dagnats_worker.Plugin"),
    ("X", "class X: name = 'bad2'", "acme_bad2:X is not a subclass of dagnats_worker.Plugin"),
    (
        "X",
        "from dagnats_worker import Plugin\nclass X(Plugin[None]): name = 'good'",
        "acme_bad3:X has the name 'good', its entry point is called 'bad3'; make them the same",
    ),
    (
        "X",
        "from dagnats_worker import Plugin\nclass X(Plugin[None]): pass",
        "acme_bad4:X has the name None, its entry point is called 'bad4'; make them the same",
    ),
    (
        "X",
        "from dagnats_worker import Plugin\nclass X(Plugin[None]):\n name = 'bad5'\n"
        " def __init__(self, settings=None): raise SystemExit('bye')",
        "SystemExit: bye",
    ),
]


def test_entry_points_that_are_no_usable_plugins_are_left_out(site: Path, run: Run) -> None:
    for number, (attribute, code, _) in enumerate(UNUSABLE):
        entry = {f"bad{number}": f"acme_bad{number}:{attribute}"}
        write_distribution(site, f"acme-bad{number}", plugins=entry, code=code)
    write_distribution(site, "acme-good", plugins=["good"])
    found = run()
    assert found["plugins"] == ["good"]
    for number, (_, _, reason) in enumerate(UNUSABLE):
        assert found["states"][f"bad{number}"] == ["failed", reason]


MISSPELT = """
from dagnats_worker import Plugin, hookimpl
class P(Plugin[None]):
    name = "bad"
    @hookimpl
    async def pre_handel(self, ctx): ...
"""


def test_plugin_with_a_misspelt_hook_is_left_out_or_stops_the_worker(site: Path, run: Run) -> None:
    write_distribution(site, "acme-bad", plugins={"bad": "acme_bad:P"}, code=MISSPELT)
    write_distribution(site, "acme-good", plugins=["good"])
    reason = "plugin 'bad': there is no hook 'pre_handel'; did you mean 'pre_handle'?"
    found = run()
    assert found["plugins"] == ["good"]
    assert found["states"]["bad"] == ["failed", f"checking its hooks: {reason}"]
    assert run(fails=True, DAGNATS_WORKER_PLUGINS="bad").log[-1].endswith(reason)


SETTINGS = """
from dataclasses import dataclass
from dagnats_worker import Plugin

@dataclass(frozen=True)
class Settings:
    bucket: str = "default"
    size: int = 1

class P(Plugin[Settings]):
    name = "store"
    settings_type = Settings
"""

SHOWN = """
from dagnats_worker._config import Overrides, install_overrides
install_overrides(Overrides(options=OPTIONS))
worker = Worker(MemoryTransport())
worker.handle("shout", shout)
report(worker, settings=[repr(plugin.settings) for plugin in worker._hooks.plugins])
"""


def test_settings_of_an_installed_plugin_come_from_everywhere(site: Path, run: Run) -> None:
    write_distribution(site, "acme-store", plugins={"store": "acme_store:P"}, code=SETTINGS)
    (site.parent / "dagnats-worker.toml").write_text(
        "[plugins.store]\nbucket = 'file'\nsize = 2\nrequired = true"
    )
    found = run("OPTIONS = ('store.size=4',)" + SHOWN, DAGNATS_WORKER__STORE__SIZE="3")
    assert found["settings"] == ["Settings(bucket='file', size=4)"]


def test_file_that_the_code_names_configures_plugins_too(site: Path, run: Run) -> None:
    write_distribution(site, "acme-store", plugins={"store": "acme_store:P"}, code=SETTINGS)
    (site.parent / "mine.toml").write_text("[plugins.store]\nbucket = 'mine'")
    code = SHOWN.replace(
        "Worker(MemoryTransport())", "Worker(MemoryTransport(), config='mine.toml')"
    )
    assert run("OPTIONS = ()" + code)["settings"] == ["Settings(bucket='mine', size=1)"]


def test_wrong_setting_leaves_an_optional_plugin_out_and_stops_a_required_one(
    site: Path, run: Run
) -> None:
    write_distribution(site, "acme-store", plugins={"store": "acme_store:P"}, code=SETTINGS)
    wrong = {"DAGNATS_WORKER__STORE__BUKCET": "x"}
    reason = (
        "DAGNATS_WORKER__STORE__BUKCET: 'store' has no setting 'bukcet'; did you mean 'bucket'?"
    )
    assert run(**wrong)["states"]["store"] == ["failed", reason]
    assert run(fails=True, DAGNATS_WORKER_PLUGINS="store", **wrong).log[-1].endswith(reason)


def test_wrong_setting_of_the_command_line_always_stops_the_worker(site: Path, run: Run) -> None:
    write_distribution(site, "acme-store", plugins={"store": "acme_store:P"}, code=SETTINGS)
    result = run("OPTIONS = ('store.size=big',)" + SHOWN, fails=True)
    assert result.log[-1].endswith("-o store.size: store.size = 'big' is not a whole number")


def test_plugin_without_settings_is_not_configured(site: Path, run: Run) -> None:
    write_distribution(site, "acme-hours", plugins=["hours"])
    found = run(DAGNATS_WORKER__HOURS__START="7")
    assert found["states"]["hours"] == [
        "failed",
        "DAGNATS_WORKER__HOURS__START: plugin 'hours' has no settings, got 'start'",
    ]


# ------------------------------------------------------------------------- all of it, running

WHOLE = """
from contextlib import asynccontextmanager
from dataclasses import dataclass
from dagnats_worker import Capability, Plugin, hookimpl

GREETING = Capability("greeting", install="acme-whole")

@dataclass(frozen=True)
class Options:
    loudly: bool = False

class P(Plugin[None]):
    name = "whole"
    task_options = Options
    provides = (GREETING,)

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker):
        worker.provide(GREETING, lambda ctx: f"hello {ctx.run_id}")
        print("open", file=__import__("sys").stderr)
        yield
        print("closed", file=__import__("sys").stderr)

    @hookimpl
    async def pre_publish(self, message):
        message.headers["X-Whole"] = "yes"
"""


def test_installed_plugin_works_in_a_worker(site: Path, run: Run) -> None:
    write_distribution(site, "acme-whole", plugins={"whole": "acme_whole:P"}, code=WHOLE)
    found = run(
        """
        from acme_whole import GREETING, P
        from dagnats_worker.testing import MemoryServer
        server = MemoryServer()
        worker = Worker(MemoryTransport(server))

        @worker.task("greet", loudly=True, needs=[GREETING])
        async def greet(ctx: TaskContext) -> str:
            return ctx.use(GREETING) + str(ctx.options(P).loudly)

        async def main():
            async with worker, Client(MemoryTransport(server)) as client:
                run = await client.submit("greet", run_id="r1")
                return await run.result()

        output = asyncio.run(main())
        headers = [one.headers.get("X-Whole") for one in server.messages("WORKFLOW_HISTORY")]
        report(worker, output=output, headers=headers)
        """
    )
    assert found["output"] == "hello r1True"
    assert found["headers"] == ["yes", "yes"]
    assert [line for line in found.log if line in ("open", "closed")] == ["open", "closed"]


def test_option_of_a_plugin_that_is_not_loaded_is_told_with_the_reason(
    site: Path, run: Run
) -> None:
    write_distribution(site, "acme-bad", plugins=["bad"], code="import absent_module")
    result = run(
        """
        worker = Worker(MemoryTransport())
        worker.handle("shout", shout, loudly=True)
        """,
        fails=True,
    )
    assert "no plugin understands the task option 'loudly'" in result.log[-1]
    assert "not loaded: 'bad' (ModuleNotFoundError: No module named" in result.log[-1]
