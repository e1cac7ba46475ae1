"""``dagnats-worker plugins doctor``: what is wrong with the plugins, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import combinations

import click

from dagnats_worker import _discovery
from dagnats_worker._discovery import API_MAJOR, CORE, DISABLE_VARIABLE, Candidate
from dagnats_worker._registry import Registry
from dagnats_worker.cli._group import Command
from dagnats_worker.cli._plugin_commands import commands_by_name, load_command
from dagnats_worker.cli._plugins_list import options_option
from dagnats_worker.cli._plugins_look import Look, Problem, look
from dagnats_worker.cli._screen import counted, tell
from dagnats_worker.errors import DagnatsError, UsageError, describe

EXIT_WARNINGS = 1
EXIT_STOPS = 2


@click.command(cls=Command)
@options_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(options: tuple[str, ...], *, as_json: bool) -> int:
    """Say what is wrong with the plugins, each with what to do about it.

    Everything that is selected is imported; no server is asked.

    \b
    Exit codes:
      0  nothing is wrong
      1  a worker starts, but not with all of it
      2  no worker starts like this
    """
    found = look(options)
    problems = list(all_problems(found))
    code = EXIT_WARNINGS if problems else 0
    if any(problem.stops for problem in problems):
        code = EXIT_STOPS
    if as_json:
        tell(json.dumps({"code": code, "problems": [asdict(one) for one in problems]}))
        return code
    for problem in problems:
        label = "stops  " if problem.stops else "warning"
        color = "red" if problem.stops else "yellow"
        name = f"{problem.plugin}: " if problem.plugin else ""
        tell(f"{click.style(label, fg=color)}  {name}{problem.what}")
        tell(f"         {problem.remedy}")
    tell(_summary(found, problems, code))
    return code


def _summary(found: Look, problems: Sequence[Problem], code: int) -> str:
    if not found.candidates and not problems:
        return "no plugin is installed, and nothing is wrong"
    if not problems:
        return f"{counted(len(found.active), 'plugin')} in use, nothing is wrong"
    end = "no worker starts like this" if code == EXIT_STOPS else "workers start"
    return f"{counted(len(problems), 'problem')}; {end}"


def all_problems(found: Look) -> Iterator[Problem]:
    """Everything that is wrong, what stops a worker first."""
    problems = [
        *found.problems,
        *(_of_candidate(one) for one in found.candidates if one.state in _STATES),
        *_task_options(found),
        *_capabilities(found),
        *_settings_of_nobody(found),
        *_commands(),
    ]
    yield from sorted(problems, key=lambda one: not one.stops)


_STATES = ("incompatible", "failed")


def _of_candidate(candidate: Candidate) -> Problem:
    what = f"{candidate.state}: {' '.join(candidate.reason.split())}"
    return Problem(candidate.found.name, what, _remedy(candidate), stops=candidate.required)


def _remedy(candidate: Candidate) -> str:
    found, error = candidate.found, candidate.error
    if candidate.state == "incompatible":
        if found.api_major > API_MAJOR:
            return f"pip install -U {CORE}, or an older {found.distribution}"
        return f"pip install -U {found.distribution} {CORE}"
    if isinstance(error, UsageError):
        return f"correct the setting; see: dagnats-worker plugins show {found.name}"
    leave_out = f"or leave it out: {DISABLE_VARIABLE}={found.name}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"install what it needs ({error.name.partition('.')[0]}), {leave_out}"
    if error is None:
        return f"pip uninstall one of them, {leave_out}"
    return f"pip install -U {found.distribution}, {leave_out}"


# ---------------------------------------------------------------------- plugins that disagree


def _task_options(found: Look) -> Iterator[Problem]:
    plugins = [one.plugin for one in found.active if one.plugin is not None]
    try:
        Registry(max_tasks=1, processes_max=1).add("doctor", lambda ctx: None, {}, plugins)
    except DagnatsError as error:
        yield Problem("", describe(error), f"use {DISABLE_VARIABLE}", stops=True)
    except (TypeError, ValueError) as error:
        what = f"a plugin's task option has no default: {describe(error)}"
        yield Problem("", what, "give each field of task_options a default", stops=True)


def _capabilities(found: Look) -> Iterator[Problem]:
    for one, other in combinations(found.active, 2):
        assert one.plugin is not None, "it is active"
        assert other.plugin is not None, "it is active"
        for capability in one.plugin.provides:
            if capability in other.plugin.provides:
                yield Problem(
                    other.found.name,
                    f"provides {capability.name!r}, which {one.found.name!r} provides already",
                    f"leave one of them out: {DISABLE_VARIABLE}={other.found.name}",
                    stops=one.required or other.required,
                )


# ---------------------------------------------------------------------- what has no effect


def _settings_of_nobody(found: Look) -> Iterator[Problem]:
    names = {one.found.name for one in found.candidates}
    required = found.sources.required()
    for name in found.sources.plugin_names():
        if name not in names and name not in required:
            what = "the configuration file has settings of it, and it is not installed"
            remedy = f"{_discovery.how_to_install(name)}, or remove its table"
            yield Problem(name, what, remedy, stops=False)
    for given in found.sources.of_nobody([*names, *required]):
        what = f"{given.origin} belongs to no plugin that is installed"
        remedy = "leave it out, or correct its name"
        yield Problem("", what, remedy, stops=False)


# ---------------------------------------------------------------------- commands


def _commands() -> Iterator[Problem]:
    from dagnats_worker.cli._main import SECTIONS  # noqa: PLC0415 - it imports this one lazily

    own = {name for commands in SECTIONS.values() for name in commands}
    for name, found in commands_by_name().items():
        one = found[0]
        whose = " and ".join(f"{each.distribution} {each.version}" for each in found)
        if name in own:
            what = f"the command {name!r} of {whose} is not used; the core has one with that name"
            yield Problem("", what, "ask its author for another name", stops=False)
            continue
        try:
            load_command(found)
        except DagnatsError as error:
            remedy = "pip uninstall one of them" if len(found) > 1 else "pip install -U "
            remedy += "" if len(found) > 1 else one.distribution
            yield Problem("", describe(error), remedy, stops=False)
