"""``dagnats-worker plugins``, and commands that plugins bring.

Method: the command, with distributions on its path that look installed; its output and its exit
code. Most of it in this process, because there is so much; what depends on the process is run in
one of its own. Real: the command, the metadata, the imports. Fake: nobody has installed the
distributions with pip.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_support import CORE, environment, in_background, one_error_line, run_command
from distributions import distribution, plugin_of
from support import unique

from dagnats_worker import EmbeddedServer
from dagnats_worker._discovery import forget_installed
from dagnats_worker.cli._main import run_command_line

FANCY = """
    from __future__ import annotations

    from contextlib import asynccontextmanager
    from dataclasses import dataclass, field
    from datetime import timedelta

    from dagnats_worker import Capability, Plugin, hookimpl

    KEY: Capability[str] = Capability("gift", install="fancy-plugin")

    @dataclass(frozen=True)
    class Settings:
        bucket: str = "gifts"
        every: timedelta = timedelta(seconds=90)
        names: tuple[str, ...] = ("a", "b")
        secret: str = field(default="hush", repr=False)

    @dataclass(frozen=True)
    class Options:
        wrapped: bool = False

    class Fancy(Plugin[Settings]):
        name = "fancy"
        settings_type = Settings
        task_options = Options
        provides = (KEY,)
        before = ("plain",)

        @hookimpl
        @asynccontextmanager
        async def worker_scope(self, worker):
            yield

        @hookimpl
        async def pre_handle(self, ctx):
            pass
"""

COMMAND = """
    from __future__ import annotations

    import click

    @click.command()
    @click.argument("name")
    @click.option("--fail", is_flag=True)
    def greet(name: str, fail: bool) -> int:
        '''Greet somebody.'''
        if fail:
            raise ValueError("no voice")
        click.echo(f"hello {name}")
        return 7
"""

BROKEN = {
    "raises": "raise ImportError('no such thing')",
    "exits": "import sys; sys.exit(3)",
    "asserts": "assert False, 'never'",
    "has no plugin": "One = 1",
    "has a syntax error": "class One(:",
    "prints": "print('noise on stdout')\nraise RuntimeError('two\\nlines')",
    "is not there": None,
}


SECRET = {"DAGNATS_WORKER__FANCY__SECRET": "s3cr3t"}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder for distributions, which the command sees as installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def run_alone(site: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return run_command(*arguments, cwd=site, PYTHONPATH=f"{CORE}:{site}", **variables)


def run(site: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, as if it were a new one in the folder."""
    stdout, stderr, before = io.StringIO(), io.StringIO(), set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(environment()):
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.chdir(site)
        patch.setattr(sys, "argv", ["dagnats-worker", *arguments])
        patch.setattr(sys, "path", [str(site), *sys.path])
        importlib.invalidate_caches()
        forget_installed()
        try:
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                code = run_command_line()
        finally:
            forget_installed()
            for name in set(sys.modules) - before:
                if (site / f"{name}.py").exists():
                    del sys.modules[name]
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())


def listed(site: Path, *arguments: str, **variables: str) -> dict[str, dict[str, Any]]:
    """What ``plugins list`` says, by name."""
    done = run(site, "plugins", "list", "--json", *arguments, **variables)
    assert done.returncode == 0, done.stderr
    return {one["name"]: one for one in json.loads(done.stdout)}


def fancy(site: Path) -> None:
    distribution(site, "fancy-plugin", plugins={"fancy": "fancy:Fancy"}, modules={"fancy": FANCY})


def plain(site: Path, name: str = "plain", source: str | None = "", **more: Any) -> None:
    modules = {} if source is None else {name: source or plugin_of(name)}
    distribution(site, f"{name}-plugin", plugins={name: f"{name}:One"}, modules=modules, **more)


# ------------------------------------------------------------------------- list


def test_without_a_plugin_the_list_says_how_to_get_one(site: Path) -> None:
    done = run(site, "plugins", "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "no plugin is installed" in done.stdout
    assert "pip install 'dagnats-worker[standard]'" in done.stdout
    assert listed(site) == {}


def test_list_shows_state_version_and_distribution_in_the_order_of_the_hooks(site: Path) -> None:
    plain(site)
    fancy(site)
    done = run(site, "plugins", "list")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "REQUIRED", "IMPORT", "DISTRIBUTION"]
    assert [line.split()[0] for line in lines[1:]] == ["fancy", "plain"]  # fancy says so
    assert lines[1].endswith("fancy-plugin 1.0")
    row = listed(site)["fancy"]
    assert (row["state"], row["required"], row["api"], row["reason"]) == ("active", False, 1, "")
    assert row["import_ms"] > 0


@pytest.mark.parametrize("how", BROKEN)
def test_list_works_when_every_plugin_is_broken(site: Path, how: str) -> None:
    for name in ("one", "two"):
        plain(site, name, BROKEN[how])
    found = listed(site)
    assert [found[name]["state"] for name in ("one", "two")] == ["failed", "failed"]
    assert all(one["reason"] for one in found.values())
    done = run_alone(site, "plugins", "list")
    assert done.returncode == 0
    assert "2 problems; see: dagnats-worker plugins doctor" in done.stderr
    assert "Traceback" not in done.stderr


def test_list_without_import_runs_nothing_of_a_plugin(site: Path) -> None:
    plain(site, "one", "open('ran', 'w').close()")
    row = listed(site, "--no-import")["one"]
    assert (row["state"], row["import_ms"]) == ("selected", None)
    assert not (site / "ran").exists()
    listed(site)
    assert (site / "ran").exists()


def test_list_says_why_a_plugin_is_not_used(site: Path) -> None:
    plain(site, "off")
    plain(site, "left_out")
    plain(site, "future", requires=["dagnats-worker>=99"])
    distribution(
        site,
        "next-plugin",
        groups={"dagnats_worker.plugins.v2": {"next": "next:One"}},
        modules={"next": "raise SystemExit"},
    )
    (site / "dagnats-worker.toml").write_text("[plugins.off]\nenabled = false\n")
    found = listed(site, DAGNATS_WORKER_DISABLE_PLUGINS="left_out")
    assert {name: one["state"] for name, one in found.items()} == {
        "future": "incompatible",
        "left_out": "disabled",
        "next": "incompatible",
        "off": "disabled",
    }
    assert "requires dagnats-worker>=99, this is dagnats-worker" in found["future"]["reason"]
    assert "speaks plugin API 2, this core speaks 1" in found["next"]["reason"]
    assert "DAGNATS_WORKER_DISABLE_PLUGINS" in found["left_out"]["reason"]
    assert "enabled = false" in found["off"]["reason"]


def test_list_shows_a_plugin_whose_hook_is_misspelt_as_failed(site: Path) -> None:
    source = FANCY.replace("pre_handle", "pre_handel")
    distribution(site, "fancy-plugin", plugins={"fancy": "fancy:Fancy"}, modules={"fancy": source})
    row = listed(site)["fancy"]
    assert row["state"] == "failed"
    assert "there is no hook 'pre_handel'; did you mean 'pre_handle'?" in row["reason"]


# ------------------------------------------------------------------------- show


def test_show_tells_hooks_settings_options_and_capabilities(site: Path) -> None:
    fancy(site)
    (site / "dagnats-worker.toml").write_text('[plugins.fancy]\nbucket = "presents"\n')
    done = run(
        site,
        *("plugins", "show", "fancy", "--json", "-o", "fancy.names=x,y"),
        DAGNATS_WORKER__FANCY__EVERY="500ms",
    )
    found = json.loads(done.stdout)
    assert found["hooks"] == ["worker_scope", "pre_handle"]
    assert found["before"] == ["plain"]
    assert found["capabilities"] == ["gift"]
    assert found["task_options"] == {"wrapped": "bool = False"}
    assert found["entry_point"] == "fancy:Fancy"
    values = {one["key"]: (one["value"], one["origin"]) for one in found["settings"]}
    assert values == {
        "bucket": ("presents", "dagnats-worker.toml [plugins.fancy]"),
        "every": ("500ms", "DAGNATS_WORKER__FANCY__EVERY"),
        "names": ("x,y", "-o fancy.names"),
        "secret": ("(hidden)", "default"),
    }


def test_show_is_readable_and_hides_secrets(site: Path) -> None:
    fancy(site)
    done = run(site, "plugins", "show", "fancy-plugin", **SECRET)
    assert done.returncode == 0
    assert "worker_scope, pre_handle" in done.stdout
    assert "wrapped: bool = False" in done.stdout
    assert "90s" in done.stdout
    assert "(hidden)" in done.stdout
    assert not {"hush", "s3cr3t"} & set(done.stdout.split())


def test_show_of_a_broken_plugin_says_what_is_wrong_and_where_its_settings_come_from(
    site: Path,
) -> None:
    plain(site, "one", "raise ImportError('no such thing')")
    done = run(site, "plugins", "show", "one", DAGNATS_WORKER__ONE__SIZE="3")
    assert done.returncode == 0
    assert "failed: ImportError: no such thing" in done.stdout
    assert "DAGNATS_WORKER__ONE__SIZE" in done.stdout
    traced = run(site, "plugins", "show", "one", DAGNATS_WORKER_TRACEBACK="1")
    assert "Traceback" in traced.stderr


def test_show_of_a_wrong_setting_names_the_setting_and_its_place(site: Path) -> None:
    fancy(site)
    done = run(site, "plugins", "show", "fancy", "-o", "fancy.bukket=x")
    assert done.returncode == 0
    assert "did you mean 'bucket'?" in done.stdout


def test_show_of_what_is_not_installed_says_how_to_get_it(site: Path) -> None:
    fancy(site)
    done = run(site, "plugins", "show", "checkpoint")
    assert done.returncode == 1
    assert "pip install 'dagnats-worker[checkpoint]'" in one_error_line(done)
    assert "did you mean 'fancy'?" in one_error_line(run(site, "plugins", "show", "fanyc"))


# ------------------------------------------------------------------------- doctor


def doctor(site: Path, *arguments: str, **variables: str) -> tuple[int, list[dict[str, Any]]]:
    """Its exit code and the problems that it tells."""
    done = run(site, "plugins", "doctor", "--json", *arguments, **variables)
    answer = json.loads(done.stdout)
    assert answer["code"] == done.returncode
    problems: list[dict[str, Any]] = answer["problems"]
    assert all(problem["remedy"] for problem in problems)
    return done.returncode, problems


def test_doctor_finds_nothing_wrong(site: Path) -> None:
    assert doctor(site) == (0, [])
    fancy(site)
    assert doctor(site) == (0, [])
    assert "1 plugin in use, nothing is wrong" in run(site, "plugins", "doctor").stdout


def test_doctor_warns_of_an_optional_plugin_that_is_broken(site: Path) -> None:
    plain(site, "one", "import not_there")
    code, [problem] = doctor(site)
    assert code == 1
    assert problem["plugin"] == "one"
    assert "ModuleNotFoundError: No module named 'not_there'" in problem["what"]
    assert "not_there" in problem["remedy"]
    assert not problem["stops"]


def test_doctor_says_that_no_worker_starts_with_a_required_plugin_that_is_broken(
    site: Path,
) -> None:
    plain(site, "one", "raise ValueError('x')")
    code, [problem] = doctor(site, DAGNATS_WORKER_PLUGINS="one")
    assert (code, problem["stops"]) == (2, True)
    assert (
        "no worker starts like this"
        in run(site, "plugins", "doctor", DAGNATS_WORKER_PLUGINS="one").stdout
    )


def test_doctor_names_both_distributions_of_one_name(site: Path) -> None:
    plain(site, "one")
    distribution(site, "other", plugins={"one": "one:One"})
    code, problems = doctor(site)
    assert code == 2
    both = "one-plugin 1.0 and other 1.0 both bring a plugin 'one'"
    assert [problem["what"].endswith(both) for problem in problems] == [True, True]


@pytest.mark.parametrize(
    ("variables", "file", "option", "expected"),
    [
        ({"DAGNATS_WORKER_PLUGINS": "checkpoint"}, "", "", (2, "DAGNATS_WORKER_PLUGINS")),
        ({"DAGNATS_WORKER_DISABLE_PLUGINS": "gone"}, "", "", (1, "DAGNATS_WORKER_DISABLE_PLUGINS")),
        ({"DAGNATS_WORKER__GONE__SIZE": "1"}, "", "", (1, "DAGNATS_WORKER__GONE__SIZE")),
        ({}, "[plugins.gone]\nsize = 1\n", "", (1, "configuration file has settings of it")),
        ({}, "[plugins.gone]\nrequired = true\n", "", (2, "'gone' is required")),
        ({}, "[plugin.gone]\nsize = 1\n", "", (2, "there is no table 'plugin'")),
        ({}, "[plugins.gone\n", "", (2, "dagnats-worker.toml")),
        ({}, "", "gone.size=1", (1, "-o gone.size")),
        ({}, "", "fancy.size=1", (1, "has no setting 'size'")),
        ({}, "[plugins.fancy]\nenabled = 3\n", "", (2, "enabled")),
        ({}, "[plugins.fancy]\nrequired = true\nsize = 1\n", "", (2, "has no setting 'size'")),
    ],
)
def test_doctor_tells_what_is_wrong_with_the_configuration(
    site: Path, variables: dict[str, str], file: str, option: str, expected: tuple[int, str]
) -> None:
    fancy(site)
    if file:
        (site / "dagnats-worker.toml").write_text(file)
    code, text = expected
    found, problems = doctor(site, *(("-o", option) if option else ()), **variables)
    assert found == code
    assert any(text in problem["what"] for problem in problems), problems


def test_doctor_tells_of_plugins_that_exclude_each_other(site: Path) -> None:
    ring = plugin_of("one") + "        before = ('two',)\n"
    plain(site, "one", ring)
    plain(site, "two", ring.replace("'two'", "'one'").replace("'one'", "'two'", 1))
    code, problems = doctor(site)
    assert code == 2
    assert any("contradict" in problem["what"] for problem in problems), problems


def test_doctor_tells_of_one_capability_and_one_task_option_of_two_plugins(site: Path) -> None:
    fancy(site)
    second = """
        from __future__ import annotations

        from dagnats_worker import Plugin
        from fancy import KEY, Options

        class One(Plugin[None]):
            name = "second"
            task_options = Options
            provides = (KEY,)
    """
    plain(site, "second", second)
    code, problems = doctor(site)
    assert code == 2
    texts = [problem["what"] for problem in problems]
    assert any("task option 'wrapped'" in text for text in texts), texts
    assert any("provides 'gift', which 'fancy' provides already" in text for text in texts), texts


# ------------------------------------------------------------------------- test


def test_test_runs_the_contract_of_an_installed_plugin(site: Path) -> None:
    fancy(site)
    done = run_alone(site, "plugins", "test", "fancy", "--", "-q", "-k", "settings or hooks_are")
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
    failing = run_alone(site, "plugins", "test", "fancy", "--", "-q", "-k", "provides")
    assert failing.returncode == 1
    assert "it says that it provides ['gift'], and does not" in failing.stdout


def test_test_takes_the_contract_that_the_distribution_names(site: Path) -> None:
    contract = """
        from __future__ import annotations

        from dagnats_worker.testing import PluginContract

        class Own(PluginContract):
            def test_of_its_own(self):
                assert self.settings.bucket == "presents"
    """
    fancy(site)
    distribution(
        site,
        "contract",
        groups={"dagnats_worker.contracts.v1": {"fancy": "own_contract:Own"}},
        modules={"own_contract": contract},
    )
    done = run_alone(
        site,
        *("plugins", "test", "fancy", "--", "-q", "-k", "of_its_own"),
        DAGNATS_WORKER__FANCY__BUCKET="presents",
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_test_says_that_pytest_is_missing(site: Path) -> None:
    fancy(site)
    (site / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'pytest' else find(name, *more)\n"
    )
    done = run_alone(site, "plugins", "test", "fancy")
    assert done.returncode == 1
    assert "pip install pytest" in one_error_line(done)


def test_test_of_a_plugin_that_is_not_used_says_why(site: Path) -> None:
    plain(site, "one", "raise ImportError('no such thing')")
    assert "is failed: ImportError: no such thing" in one_error_line(
        run(site, "plugins", "test", "one")
    )
    assert "no plugin is in use" in one_error_line(run(site, "plugins", "test"))


# ------------------------------------------------------------------------- commands of plugins


def with_command(site: Path, name: str = "greet", source: str = COMMAND) -> None:
    distribution(
        site, f"{name}-plugin", commands={name: "greets:greet"}, modules={"greets": source}
    )


def imported_by_help(site: Path) -> set[str]:
    """The modules that a process has after it has shown the help."""
    code = (
        "import sys\nfrom dagnats_worker.cli import main\nsys.argv[1:] = ['--help']\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 0\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=f"{CORE}:{site}"),
        check=True,
    )
    return set(done.stderr.splitlines())


def test_help_lists_the_commands_of_plugins_and_imports_neither_them_nor_nats(site: Path) -> None:
    with_command(site)
    fancy(site)
    done = run(site, "--help")
    assert done.returncode == 0
    assert "From plugins:" in done.stdout
    assert "greet    greet-plugin 1.0" in done.stdout
    loaded = imported_by_help(site)
    assert "dagnats_worker.cli._main" in loaded
    assert not {"greets", "fancy", "nats", "stevedore"} & loaded


def test_command_of_a_plugin_is_run_with_its_arguments_and_its_exit_code(site: Path) -> None:
    with_command(site)
    done = run_alone(site, "greet", "Ada")
    assert (done.returncode, done.stdout) == (7, "hello Ada\n")
    assert "Greet somebody." in run(site, "greet", "--help").stdout
    assert "Missing argument 'NAME'" in one_error_line(run(site, "greet"))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("raise ImportError('no\\nsuch thing')", "cannot be imported: ImportError: no such thing"),
        ("import sys; sys.exit(3)", "cannot be imported: SystemExit: 3"),
        ("greet = 3", "greets:greet is a int, not a click.Command"),
        ("", "cannot be imported: AttributeError"),
    ],
)
def test_command_that_is_broken_is_one_line_that_names_its_distribution(
    site: Path, source: str, text: str
) -> None:
    with_command(site, source=source)
    done = run(site, "greet", "Ada")
    assert done.returncode == 1
    line = one_error_line(done)
    assert "the command 'greet' of greet-plugin 1.0" in line
    assert text in line
    assert run(site, "--help").returncode == 0
    code, [problem] = doctor(site)
    assert code == 1
    assert text in problem["what"]


def test_command_that_fails_while_it_runs_is_one_line_too(site: Path) -> None:
    with_command(site)
    line = one_error_line(run(site, "greet", "Ada", "--fail"))
    assert "the command 'greet' of greet-plugin 1.0 failed: ValueError: no voice" in line
    traced = run(site, "greet", "Ada", "--fail", DAGNATS_WORKER_TRACEBACK="1")
    assert "Traceback" in traced.stderr


def test_command_of_two_distributions_is_an_error_that_names_both(site: Path) -> None:
    with_command(site)
    distribution(site, "other", commands={"greet": "greets:greet"})
    done = run(site, "greet", "Ada")
    assert done.returncode == 1
    assert "greet-plugin 1.0 and other 1.0 both bring a command 'greet'" in one_error_line(done)
    assert "greet-plugin 1.0 and other 1.0; uninstall one" in run(site, "--help").stdout
    assert doctor(site)[0] == 1


def test_command_of_the_core_wins_with_a_warning(site: Path) -> None:
    with_command(site, "plugins")
    done = run(site, "plugins", "list", "--json")
    assert (done.returncode, done.stdout) == (0, "[]\n")
    assert "warning: the command 'plugins' of plugins-plugin 1.0 is not used" in done.stderr
    assert "hidden by the command above" in run(site, "--help").stdout
    assert doctor(site)[0] == 1


def test_command_that_is_misspelt_may_be_one_of_a_plugin(site: Path) -> None:
    with_command(site)
    assert "no command 'gret'; did you mean 'greet'?" in one_error_line(run(site, "gret"))


# ------------------------------------------------------------------------- run

TELLS = """
    from __future__ import annotations

    import sys
    from contextlib import asynccontextmanager
    from dataclasses import dataclass

    from dagnats_worker import Plugin, hookimpl

    @dataclass(frozen=True)
    class Settings:
        word: str = "nothing"
        times: int = 1

    class One(Plugin[Settings]):
        name = "tells"
        settings_type = Settings

        @hookimpl
        @asynccontextmanager
        async def worker_scope(self, worker):
            print(f"tells {self.settings.word * self.settings.times}", file=sys.stderr, flush=True)
            yield
"""
APP = """
from dagnats_worker import Worker

worker = Worker()
worker.task("{task_type}")(lambda ctx: None)
"""


@pytest.mark.server
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("-o", "tells.word=ho", "-o", "tells.times=3"), ["tells hohoho"]),
        (("--no-plugins",), []),
        ((), ["tells nothing"]),
    ],
)
def test_run_gives_its_options_to_plugins_or_leaves_them_all_out(
    site: Path, shared_server: EmbeddedServer, arguments: tuple[str, ...], told: list[str]
) -> None:
    plain(site, "tells", TELLS)
    task_type, server = unique("cli"), ("--url", shared_server.url)
    (site / "app.py").write_text(APP.format(task_type=task_type))
    command = ("run", "app:worker", *server, *arguments)
    with in_background(*command, folder=site, PYTHONPATH=f"{CORE}:{site}") as worker:
        done = run_alone(site, "submit", task_type, "--wait", *server)
        assert done.stdout == "null\n"
    assert [line for line in worker.stderr.splitlines() if line.startswith("tells")] == told


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("tels.word=ho", "did you mean 'tells'?"),
        ("tells.wrod=ho", "did you mean 'word'?"),
        ("tells.times=ho", "is not a whole number"),
        ("tells", "write it as plugin.key=value"),
    ],
)
def test_run_refuses_an_option_that_cannot_be_right(site: Path, option: str, text: str) -> None:
    plain(site, "tells", TELLS)
    (site / "app.py").write_text(APP.format(task_type="t"))
    done = run_alone(site, "run", "app:worker", "-o", option)
    assert done.returncode != 0
    assert text in one_error_line(done)
