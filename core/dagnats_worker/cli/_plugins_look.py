"""What is installed, and what is wrong with it; never fails, whatever the plugins do.

The worker itself stops at the first thing that is wrong. Here each plugin is looked at by itself,
so that all of it can be told at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dagnats_worker import _discovery
from dagnats_worker._discovery import API_MAJOR, Candidate, Found, Selection
from dagnats_worker._hook_calls import Member
from dagnats_worker._importing import load_one
from dagnats_worker._plugins import Hooks
from dagnats_worker._settings import Sources
from dagnats_worker.errors import DagnatsError, describe


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that keeps a plugin from being used, or a worker from starting.

    Attributes:
        plugin: Whose; empty where it belongs to none.
        stops: No worker starts like this.
    """

    plugin: str
    what: str
    remedy: str
    stops: bool


@dataclass(slots=True)
class Look:
    """What was found.

    Attributes:
        candidates: Every plugin that is installed; those in use first, in the order of their hooks.
        problems: What is wrong with all of them together; of one alone, see its ``reason``.
    """

    sources: Sources
    selection: Selection
    candidates: list[Candidate] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def active(self) -> list[Candidate]:
        return [one for one in self.candidates if one.state == "active"]

    def find(self, name: str) -> list[Candidate]:
        """The plugins with this name, or of the distribution with this name."""
        names = _discovery.resolve(name, [one.found for one in self.candidates])
        return [one for one in self.candidates if one.found.name in names]


def look(options: Sequence[str] = (), *, importing: bool = True) -> Look:
    """Look at everything that is installed.

    Args:
        options: Settings as on the command line of ``run``.
        importing: Import what is selected; without it nothing of any plugin is run.
    """
    found = _configured(options)
    _forget_unknown_names(found)
    found.candidates = [_candidate(one, found) for one in _discovery.installed()]
    found.candidates.sort(key=lambda one: _place(one.found, found))
    _mark_doubles(found)
    found.problems += _missing(found)
    if importing:
        with contextlib.redirect_stdout(sys.stderr):  # what a plugin prints is not our answer
            for candidate in found.candidates:
                _try(candidate, found.sources)
        _put_in_order(found)
    return found


# ---------------------------------------------------------------------- configuration


def _configured(options: Sequence[str]) -> Look:
    selection = Selection.from_environment()
    try:
        sources = Sources(options)
        sources.plugin_names()  # reads the file
    except DagnatsError as error:
        problem = Problem("", describe(error), "correct the configuration", stops=True)
        return Look(Sources((), {}, os.devnull), selection, problems=[problem])
    return Look(sources, selection)


def _forget_unknown_names(found: Look) -> None:
    """Leave the names that nobody has out of the selection, with a problem for each."""
    only, unknown = _resolved(found.selection.only or ())
    for name in unknown:
        what = f"named in {_discovery.ONLY_VARIABLE} and not installed"
        remedy = f"{_discovery.how_to_install(name)}, or leave it out of the variable"
        found.problems.append(Problem(name, what, remedy, stops=True))
    disabled, unknown = _resolved(found.selection.disabled)
    for name in unknown:
        what = f"named in {_discovery.DISABLE_VARIABLE} and not installed"
        found.problems.append(Problem(name, what, "leave it out of the variable", stops=False))
    if found.selection.only is not None:
        found.selection = replace(found.selection, only=only)
    found.selection = replace(found.selection, disabled=disabled)


def _resolved(names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    known = {name: _discovery.resolve(name, _discovery.installed()) for name in names}
    resolved = tuple(one for several in known.values() for one in several)
    return resolved, [name for name, several in known.items() if not several]


def _missing(found: Look) -> list[Problem]:
    try:
        messages = _discovery.missing_required(found.selection, found.sources)
    except DagnatsError as error:
        return [Problem("", describe(error), "correct the setting", stops=True)]
    return [
        Problem("", what, remedy, stops=True)
        for what, _, remedy in (message.rpartition("; ") for message in messages)
    ]


def _place(one: Found, found: Look) -> int:
    order = found.selection.only
    names = list(found.sources.plugin_names()) if order is None else order
    return names.index(one.name) if one.name in names else len(names)


# ---------------------------------------------------------------------- one plugin


def _candidate(one: Found, found: Look) -> Candidate:
    selection = found.selection
    if selection.only is not None:
        selection = replace(selection, only=(one.name,) if one.name in selection.only else ())
    try:
        return _discovery.candidates(selection, found.sources, [one])[0]
    except DagnatsError as error:
        return Candidate(one, "failed", required=True, reason=describe(error), error=error)


def _mark_doubles(found: Look) -> None:
    """Of two with one name nobody can say which is meant, and no worker starts."""
    usable = [
        one
        for one in found.candidates
        if one.state == "selected" and one.found.api_major == API_MAJOR
    ]
    names = [one.found.name for one in usable]
    for candidate in usable:
        name = candidate.found.name
        if names.count(name) > 1:
            same = (one.found for one in usable if one.found.name == name)
            both = " and ".join(f"{other.distribution} {other.version}" for other in same)
            candidate.state, candidate.required = "failed", True
            candidate.reason = f"{both} both bring a plugin {name!r}"


def _try(candidate: Candidate, sources: Sources) -> None:
    if candidate.state != "selected":
        return
    try:
        load_one(candidate, sources)
        if candidate.plugin is not None:
            Hooks([candidate.plugin])
    except DagnatsError as error:
        candidate.state, candidate.reason, candidate.error = "failed", describe(error), error


def _put_in_order(found: Look) -> None:
    """Hooks are called in this order; wishes that contradict each other are a problem."""
    active = found.active
    members = [Member(one.plugin, required=True) for one in active if one.plugin is not None]
    try:
        names = [member.name for member in Hooks(members=members).members]
    except DagnatsError as error:
        remedy = "leave one of them out, or ask its author"
        found.problems.append(Problem("", describe(error), remedy, stops=True))
        return
    active.sort(key=lambda one: names.index(one.found.name))
    found.candidates = active + [one for one in found.candidates if one.state != "active"]
