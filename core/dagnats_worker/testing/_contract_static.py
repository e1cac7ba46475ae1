"""The tests of a contract that run no worker: what a plugin says of itself, and its import."""

from __future__ import annotations

import dataclasses
from importlib import util
from typing import Any

from dagnats_worker import _discovery
from dagnats_worker._context import TaskContext
from dagnats_worker._plugins import Hooks
from dagnats_worker._worker import Worker
from dagnats_worker.errors import DagnatsError
from dagnats_worker.testing import _contract_settings as written
from dagnats_worker.testing._contract_base import ContractBase, skip
from dagnats_worker.testing._contract_import import Imported, import_alone

NETWORK_MODULES = frozenset({"aiohttp", "grpc", "httpx", "nats", "requests", "urllib3"})
IMPORTS_MAX = 3


class Declares(ContractBase):
    """What a plugin says of itself."""

    def test_its_name_is_that_of_its_entry_point(self) -> None:
        name = getattr(self.plugin_type, "name", None)
        assert isinstance(name, str), f"{self.plugin_type.__name__} has no name"
        package = self.plugin_type.__module__.partition(".")[0]
        brought = [
            one
            for one in _discovery.installed()
            if one.value.replace(":", ".").partition(".")[0] == package
        ]
        if not brought:
            skip(f"no distribution that is installed brings a plugin of the package {package!r}")
        names = [one.name for one in brought]
        assert name in names, f"the plugin is called {name!r}, its entry point is called {names}"

    def test_its_hooks_are_those_of_the_specification(self) -> None:
        Hooks([self.make()])  # raises, with what is wrong

    def test_its_settings_are_a_frozen_dataclass(self) -> None:
        settings_type = self.plugin_type.settings_type
        if settings_type is None:
            return
        _check_frozen("settings_type", settings_type)
        lacking = _without_default(settings_type)
        assert not lacking or self.settings is not None, (
            f"the settings {lacking} have no default, so that it fails wherever it is installed "
            "and not configured; give them defaults, or give this contract settings"
        )

    def test_each_of_its_settings_can_be_given_from_outside(self) -> None:
        plugin = self.make()
        if plugin.settings is None:
            return
        values = dict(written.fields_of(plugin.settings))
        for read in (written.read_as_option, written.read_as_variable, written.read_as_toml):
            form = read.__name__.removeprefix("read_as_")
            try:
                found = read(plugin.name, type(plugin.settings), values)
            except DagnatsError as error:
                raise AssertionError(
                    f"settings cannot be given as {form}: {error}. Where it is only that value, "
                    "give this contract settings with another one"
                ) from error
            for key, value in values.items():
                back = written.field_of(found, key)
                assert back == value, f"{key} = {value!r}, given as {form}, is read as {back!r}"

    def test_its_task_options_are_a_frozen_dataclass_with_defaults(self) -> None:
        declared = self.plugin_type.task_options
        if declared is None:
            return
        _check_frozen("task_options", declared)
        lacking = _without_default(declared)
        assert not lacking, (
            f"the task options {lacking} have no default, so that every task type would have to "
            "give them"
        )
        worker = Worker(plugins=[self.make()])
        worker.handle("contract", _passes, **self.task_options)


class Imports(ContractBase):
    """What importing a plugin does."""

    def test_importing_it_does_nothing_else(self) -> None:
        found = self._imported()
        text = "; do it in worker_scope"
        assert not found.done, f"importing it does {', '.join(found.done)}{text}"
        assert not found.changed, f"importing it changes {', '.join(found.changed)}{text}"
        unwanted = NETWORK_MODULES.intersection(found.modules) - set(self.may_import)
        assert not unwanted, (
            f"importing it imports {', '.join(sorted(unwanted))}, for every command and without a "
            "worker; import it where it is used, or name it in may_import"
        )

    def test_importing_it_is_quick(self) -> None:
        shares = []
        for _ in range(IMPORTS_MAX):  # the first one may have to compile it
            found = self._imported()
            shares.append(found.plugin_s / found.core_s)
            if shares[-1] <= self.import_times_max:
                return
        assert min(shares) <= self.import_times_max, (
            f"importing it takes {min(shares):.1f} times as long as importing the core, which is "
            f"more than import_times_max = {self.import_times_max}; import late what takes so long"
        )

    def _imported(self) -> Imported:
        module = self.plugin_type.__module__
        if module == "__main__" or util.find_spec(module.partition(".")[0]) is None:
            skip(f"the plugin's module {module!r} cannot be imported by its name")
        return import_alone(module)


async def _passes(ctx: TaskContext) -> None:
    """A handler."""


def _check_frozen(what: str, declared: type[Any]) -> None:
    is_dataclass = dataclasses.is_dataclass(declared)
    assert is_dataclass, f"{what}: {declared.__name__} is not a dataclass"
    parameters = declared.__dataclass_params__
    assert parameters.frozen, f"{what}: {declared.__name__} is not frozen; @dataclass(frozen=True)"


def _without_default(declared: type[Any]) -> list[str]:
    return [
        one.name
        for one in dataclasses.fields(declared)
        if one.init
        and one.default is dataclasses.MISSING
        and one.default_factory is dataclasses.MISSING
    ]
