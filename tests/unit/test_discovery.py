"""Which plugins are found, selected and compatible, before anything of them is imported.

Method: distributions as pip leaves them behind, in a folder that is on ``sys.path`` for one test.
Real: their metadata, and how it is read. Nothing is fake; nothing of them is imported.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from plugin_dists import write_distribution

from dagnats_worker import PluginError, UsageError
from dagnats_worker._discovery import (
    Candidate,
    Selection,
    candidates,
    forget_installed,
    installed,
    missing_required,
    resolve,
)
from dagnats_worker._load import Setup
from dagnats_worker._settings import Sources

CORE_VERSION = version("dagnats-worker")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on ``sys.path``; nothing of it is known before a test asks."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(site)
    for variable in ("DAGNATS_WORKER_PLUGINS", "DAGNATS_WORKER_DISABLE_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    forget_installed()
    before = set(sys.modules)
    yield site
    forget_installed()
    new = {name for name in set(sys.modules) - before if name.startswith("acme")}
    assert not new, "listing, selecting and checking import nothing"


def choose(*options: str, file: str | None = None, **selection: Any) -> dict[str, Candidate]:
    """What becomes of each plugin, by its name."""
    if file is not None:
        Path("dagnats-worker.toml").write_text(file)
    found = candidates(Selection(**selection), Sources(options, {}))
    return {one.found.name: one for one in found}


def states(*options: str, **more: Any) -> dict[str, str]:
    return {name: one.state for name, one in choose(*options, **more).items()}


# ------------------------------------------------------------------------- list


def test_what_is_installed_is_known_from_its_metadata(folder: Path) -> None:
    requires = ["dagnats-worker~=0.1", "numpy>1", "dagnats-worker[x]>=0; extra == 'test'"]
    write_distribution(folder, "acme-hours", "2.3", plugins=["hours"], requires=requires)
    (one,) = installed()
    assert (one.name, one.value, one.api_major) == ("hours", "acme_hours:Plugin0", 1)
    assert (one.distribution, one.version) == ("acme-hours", "2.3")
    assert one.requires == ("dagnats-worker~=0.1",)


def test_metadata_is_read_once_per_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_distribution(folder, "acme-hours", plugins=["hours"])
    asked: list[str] = []
    original = importlib.metadata.MetadataPathFinder.find_distributions

    def counted(context: Any = importlib.metadata.DistributionFinder.Context()) -> Any:  # noqa: B008 - as the original has it
        asked.append(context.name)
        return original(context)

    monkeypatch.setattr(
        importlib.metadata.MetadataPathFinder, "find_distributions", staticmethod(counted)
    )
    for _ in range(3):
        choose()
        missing_required(Selection(), Sources([], {}))
    assert asked.count(None) == 1, "all distributions are asked for once"


def test_distribution_that_is_found_twice_counts_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_distribution(folder, "acme-hours", "1.0", plugins=["hours"])
    write_distribution(tmp_path / "first", "Acme_Hours", "2.0", plugins=["hours"])
    monkeypatch.syspath_prepend(tmp_path / "first")
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    forget_installed()
    assert states() == {"hours": "selected"}
    assert choose()["hours"].found.version == "2.0", "the one that an import finds"


def test_distribution_that_speaks_two_versions_of_the_api_is_used(folder: Path) -> None:
    both = {"dagnats_worker.plugins.v2": {"hours": "acme_new:Plugin"}}
    write_distribution(folder, "acme-hours", plugins=["hours"], more=both)
    assert states() == {"hours": "selected"}
    assert choose()["hours"].found.value == "acme_hours:Plugin0"


# ------------------------------------------------------------------------- select


def three(folder: Path) -> None:
    for name in ("alpha", "beta", "gamma"):
        write_distribution(folder, f"acme-{name}", plugins=[name])


def test_everything_that_is_installed_is_used(folder: Path) -> None:
    three(folder)
    assert states() == dict.fromkeys(("alpha", "beta", "gamma"), "selected")
    assert not any(one.required for one in choose().values())


def test_exactly_those_that_are_named_are_used_and_required(folder: Path) -> None:
    three(folder)
    found = choose(only=("gamma", "acme-alpha"))
    assert [name for name, one in found.items() if one.state == "selected"] == ["gamma", "alpha"]
    assert [one.required for one in found.values()] == [True, True, False]
    assert found["beta"].reason == "not named in DAGNATS_WORKER_PLUGINS"


def test_naming_nobody_uses_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three(folder)
    monkeypatch.setenv("DAGNATS_WORKER_PLUGINS", "")
    found = candidates(Selection.from_environment(), Sources([], {}))
    assert {one.state for one in found} == {"disabled"}


def test_variables_are_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGNATS_WORKER_PLUGINS", " a, b ,,")
    monkeypatch.setenv("DAGNATS_WORKER_DISABLE_PLUGINS", "c")
    assert Selection.from_environment() == Selection(("a", "b"), ("c",))
    assert Selection.from_environment(none=True).none


@pytest.mark.parametrize("name", ["beta", "acme-beta", "Acme_Beta"])
def test_some_are_left_out_by_the_name_of_the_plugin_or_the_distribution(
    folder: Path, name: str
) -> None:
    three(folder)
    assert states(disabled=(name,))["beta"] == "disabled"
    assert choose(disabled=(name,))["beta"].reason == "named in DAGNATS_WORKER_DISABLE_PLUGINS"
    assert states(only=("alpha", "beta"), disabled=(name,))["beta"] == "disabled"


def test_none_is_used(folder: Path) -> None:
    three(folder)
    found = choose(none=True, only=("alpha",))
    assert {one.state for one in found.values()} == {"disabled"}
    assert {one.reason for one in found.values()} == {"--no-plugins"}


def test_file_enables_and_requires(folder: Path) -> None:
    three(folder)
    file = "[plugins.alpha]\nenabled = false\nrequired = true\n[plugins.beta]\nrequired = true"
    found = choose(file=file)
    assert found["alpha"].state == "disabled"
    assert found["alpha"].reason == "enabled = false (dagnats-worker.toml [plugins.alpha])"
    assert not found["alpha"].required
    assert (found["beta"].state, found["beta"].required) == ("selected", True)
    assert (found["gamma"].state, found["gamma"].required) == ("selected", False)


def test_stronger_sources_enable_and_require_too(folder: Path) -> None:
    three(folder)
    file = "[plugins.alpha]\nenabled = false"
    assert states("alpha.enabled=true", file=file)["alpha"] == "selected"
    variable = {"DAGNATS_WORKER__BETA__REQUIRED": "yes"}
    found = candidates(Selection(), Sources([], variable))
    assert [one.found.name for one in found if one.required] == ["beta"]
    assert states(only=("alpha",), file=file)["alpha"] == "selected", "naming it is stronger"


def test_switch_that_is_neither_is_an_error(folder: Path) -> None:
    three(folder)
    with pytest.raises(UsageError, match=r"alpha.enabled = 'maybe' is not true or false"):
        choose(file="[plugins.alpha]\nenabled = 'maybe'")


def test_order_is_that_of_the_configuration_and_then_of_the_names(folder: Path) -> None:
    three(folder)
    write_distribution(folder, "acme-delta", plugins=["delta"])
    assert list(choose()) == ["alpha", "beta", "delta", "gamma"]
    file = "[plugins.gamma]\n[plugins.beta]\nrequired = false"
    assert list(choose(file=file)) == ["gamma", "beta", "alpha", "delta"]
    assert list(choose(file=file, only=("delta", "alpha")))[:2] == ["delta", "alpha"]


def test_distribution_with_two_plugins_means_both(folder: Path) -> None:
    write_distribution(folder, "acme-pair", plugins=["left", "right"])
    assert states(only=("acme-pair",)) == {"left": "selected", "right": "selected"}
    assert states(disabled=("acme-pair",)) == {"left": "disabled", "right": "disabled"}
    assert states(only=("right",)) == {"right": "selected", "left": "disabled"}
    assert resolve("acme-pair", installed()) == ("left", "right")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("alhpa", "did you mean 'alpha'?"),
        ("xyz", "installed are alpha, beta, gamma"),
        ("checkpoint", r"pip install 'dagnats-worker\[checkpoint\]'"),
    ],
)
def test_name_that_nobody_has_is_an_error_with_a_suggestion(
    folder: Path, name: str, hint: str
) -> None:
    three(folder)
    says = f"DAGNATS_WORKER_PLUGINS: plugin '{name}' is not installed; {hint}"
    with pytest.raises(PluginError, match=says):
        choose(only=("alpha", name))


def test_name_where_nothing_is_installed() -> None:
    with pytest.raises(PluginError, match="'alpha' is not installed; no plugin is installed"):
        choose(only=("alpha",))


def test_plugin_that_is_required_and_not_installed_is_told(folder: Path) -> None:
    three(folder)
    file = "[plugins.alhpa]\nrequired = true\n[plugins.alpha]\nrequired = true"
    Path("dagnats-worker.toml").write_text(file)
    (missing,) = missing_required(Selection(), Sources([], {}))
    assert missing.startswith(
        "plugin 'alhpa' is required (dagnats-worker.toml [plugins.alhpa]) and not installed; "
    )
    variable = {"DAGNATS_WORKER__SIGNALS__REQUIRED": "true"}
    assert "pip install 'dagnats-worker[signals]'" in "".join(
        missing_required(Selection(), Sources([], variable))
    )
    for selection in (
        Selection(none=True),
        Selection(only=("alpha",)),
        Selection(None, ("alhpa",)),
    ):
        assert not missing_required(selection, Sources([], {}))
    with pytest.raises(PluginError, match="'alhpa' is required"):
        Setup(None, None).load_hooks()


# ------------------------------------------------------------------------- what is not there


def test_setting_of_the_command_line_for_a_plugin_that_is_not_there_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dagnats_worker import _load
    from dagnats_worker._config import Overrides

    three(folder)
    monkeypatch.setattr(
        _load, "installed_overrides", lambda: Overrides(options=("alhpa.bucket=x",))
    )
    with pytest.raises(UsageError, match=r"-o alhpa.bucket: plugin 'alhpa' is not installed; did"):
        Setup(None, None).load_hooks()
    assert Setup([], None).load_hooks().members == ()


def test_variables_that_speak_of_plugins_that_are_not_there_are_told_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    three(folder)
    monkeypatch.setenv("DAGNATS_WORKER_DISABLE_PLUGINS", "alpha,beta,gamma,bata")
    monkeypatch.setenv("DAGNATS_WORKER__GAMA__BUCKET", "x")
    with caplog.at_level(logging.WARNING):
        assert Setup(None, None).load_hooks().members == ()
    assert (
        "DAGNATS_WORKER_DISABLE_PLUGINS: plugin 'bata' is not installed; did you mean 'beta'?"
        in caplog.messages
    )
    assert (
        "DAGNATS_WORKER__GAMA__BUCKET: plugin 'gama' is not installed; did you mean 'gamma'?"
        in caplog.messages
    )


# ------------------------------------------------------------------------- two with one name


def test_two_distributions_with_one_name_are_an_error_that_names_both(folder: Path) -> None:
    write_distribution(folder, "acme-hours", "1.0", plugins=["hours"])
    write_distribution(folder, "acme-other", "2.0", plugins=["hours"])
    both = "acme-hours 1.0 and acme-other 2.0 both bring a plugin 'hours'; uninstall one of them"
    with pytest.raises(PluginError, match=both):
        choose()
    with pytest.raises(PluginError, match=both):
        choose(only=("hours",))


def test_two_with_one_name_do_no_harm_where_they_are_not_used(folder: Path) -> None:
    write_distribution(folder, "acme-hours", plugins=["hours"])
    write_distribution(folder, "acme-other", plugins=["hours"])
    write_distribution(folder, "acme-alpha", plugins=["alpha"])
    assert states(none=True)["hours"] == "disabled"
    assert states(disabled=("hours",))["hours"] == "disabled"
    assert states(only=("alpha",))["alpha"] == "selected"
    left = candidates(Selection(disabled=("acme-other",)), Sources([], {}))
    used = [one.found.distribution for one in left if one.state == "selected"]
    assert used == ["acme-alpha", "acme-hours"]


def test_another_version_of_the_api_takes_no_name_away(folder: Path) -> None:
    write_distribution(folder, "acme-hours", plugins=["hours"])
    write_distribution(folder, "acme-next", plugins=["hours"], group="dagnats_worker.plugins.v2")
    found = candidates(Selection(), Sources([], {}))
    assert {one.found.distribution: one.state for one in found} == {
        "acme-hours": "selected",
        "acme-next": "incompatible",
    }


# ------------------------------------------------------------------------- check


@pytest.mark.parametrize("major", [2, 10])
def test_another_version_of_the_api_is_reported(folder: Path, major: int) -> None:
    write_distribution(
        folder, "acme-next", plugins=["next"], group=f"dagnats_worker.plugins.v{major}"
    )
    one = choose()["next"]
    assert one.state == "incompatible"
    assert one.reason == f"speaks plugin API {major}, this core speaks 1"


@pytest.mark.parametrize("group", ["dagnats_worker.plugins", "dagnats_worker.plugins.vx", "other"])
def test_other_groups_are_none_of_ours(folder: Path, group: str) -> None:
    write_distribution(folder, "acme-other", plugins=["other"], group=group)
    assert installed() == ()


@pytest.mark.parametrize(
    ("requirement", "fits"),
    [
        ("dagnats-worker~=9.0", False),
        ("dagnats_worker<0.0.1", False),
        ("DagNats.Worker [x] >=99", False),
        ("dagnats-worker", True),
        (f"dagnats-worker>={CORE_VERSION}", True),
        (f"dagnats-worker~={CORE_VERSION}", True),
        ("dagnats-worker>=99; python_version < '3'", True),
        ("dagnats-worker>=99; extra == 'next'", True),
        ("dagnats-worker-extras>=99", True),
        ("not a requirement at all", True),
    ],
)
def test_every_requirement_on_the_core_is_checked(
    folder: Path, requirement: str, *, fits: bool
) -> None:
    requires = ["dagnats-worker>=0.0.1", requirement, "numpy>=99"]
    write_distribution(folder, "acme-hours", plugins=["hours"], requires=requires)
    one = choose()["hours"]
    assert one.state == ("selected" if fits else "incompatible")
    if not fits:
        assert one.reason.lower().startswith("requires dagnats")
        assert one.reason.endswith(f", this is dagnats-worker {CORE_VERSION}")


def test_required_plugin_that_is_incompatible_is_still_required(folder: Path) -> None:
    write_distribution(folder, "acme-hours", plugins=["hours"], requires=["dagnats-worker~=9.0"])
    one = choose(only=("hours",))["hours"]
    assert (one.state, one.required) == ("incompatible", True)
    assert states(disabled=("hours",)) == {"hours": "disabled"}, "not checked where it is not used"
