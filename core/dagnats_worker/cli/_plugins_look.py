"""What is installed, and what is wrong with it; never fails, whatever the plugins do.

The worker itself stops at the first thing that is wrong. Here each plugin is looked at by itself, so
that all of it can be told at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from dagnats_worker import _discovery
from dagnats_worker._discovery import Candidate, Found, Selection
from dagnats_worker._hook_calls import Member
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
        candidates: Every plugin that is installed, in the order of their hooks where all is well.
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
        known = _discovery.resolve(name, [one.found for one in self.candidates])
        return [one for one in self.candidates if one.found.name in known]


def look(options: Sequence[str] = (), *, importing: bool = True) -> Look:
    """Look at everything that is installed.

    Args:
        options: Settings as on the command line of ``run``.
        importing: Import what is selected; without it nothing of any plugin is run.
    """
    found = Look(*_configuration(options))
    if isinstance(found.sources, _Broken):
        found.problems.append(found.sources.problem)
    found.selection = _known_only(found)
    for one in _discovery.installed():
        found.candidates.append(_candidate(one, found))
    found.candidates.sort(key=lambda one: _place(one.found, found.selection))
    found.problems += _missing(found)
    if importing:
        with _stdout_kept_clean():
            for candidate in found.candidates:
                _try(candidate, found.sources)
        _put_in_order(found)
    return found


# ---------------------------------------------------------------------- configuration


class _Broken(Sources):
    """What is left of a configuration that cannot be read."""

    def __init__(self, error: DagnatsError) -> None:
        super().__init__((), {}, os.devnull)
        self.problem = Problem("", describe(error), "correct the configuration", stops=True)


def _configuration(options: Sequence[str]) -> tuple[Sources, Selection]:
    selection = Selection.from_environment()
    try:
        return Sources(options), selection
    except DagnatsError as error:
        return _Broken(error), selection


def _known_only(found: Look) -> Selection:
    """The selection without the names that nobody has, and a problem for each of these."""
    selection = found.selection
    only, unknown = _resolved(selection.only or ())
    for name in unknown:
        found.problems.append(
            Problem(
                name,
                f"named in {_discovery.ONLY_VARIABLE} and not installed",
                f"{_discovery.how_to_install(name)}, or leave it out of the variable",
                stops=True,
            )
        )
    disabled, unknown = _resolved(selection.disabled)
    for name in unknown:
        found.problems.append(
            Problem(
                name,
                f"named in {_discovery.DISABLE_VARIABLE} and not installed",
                "leave it out of the variable",
                stops=False,
            )
        )
    return replace(selection, only=None if selection.only is None else only, disabled=disabled)


def _resolved(names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    known = {name: _discovery.resolve(name, _discovery.installed()) for name in names}
    resolved = tuple(one for names in known.values() for one in names)
    return resolved, [name for name, names in known.items() if not names]


def _missing(found: Look) -> list[Problem]:
    try:
        messages = _discovery.missing_required(found.selection, found.sources)
    except DagnatsError as error:
        return [Problem("", describe(error), "correct the setting", stops=True)]
    return [
        Problem("", what, remedy, stops=True)
        for what, _, remedy in (message.rpartition("; ") for message in messages)
    ]


def _place(one: Found, selection: Selection) -> int:
    only = selection.only or ()
    return only.index(one.name) if one.name in only else len(only)


# ---------------------------------------------------------------------- one plugin


def _candidate(one: Found, found: Look) -> Candidate:
    same = [other for other in _discovery.installed() if other.name == one.name]
    if len(same) > 1:
        both = " and ".join(f"{other.distribution} {other.version}" for other in same)
        candidate = Candidate(one, "failed", required=True)
        candidate.reason = f"{both} both bring a plugin {one.name!r}"
        return candidate
    selection = found.selection
    if selection.only is not None:
        selection = replace(selection, only=(one.name,) if one.name in selection.only else ())
    try:
        return _discovery.candidates(selection, found.sources, [one])[0]
    except DagnatsError as error:
        return Candidate(one, "failed", required=True, reason=describe(error), error=error)


def _try(candidate: Candidate, sources: Sources) -> None:
    if candidate.state == "selected":
        _discovery.load_one(candidate, sources)
    if candidate.plugin is None:
        return
    try:
        Hooks([candidate.plugin])
    except DagnatsError as error:
        candidate.state, candidate.reason, candidate.error = "failed", describe(error), error


def _put_in_order(found: Look) -> None:
    """Hooks are called in this order; two plugins that exclude each other are a problem."""
    active = found.active
    members = [Member(one.plugin, required=True) for one in active if one.plugin is not None]
    try:
        names = [member.name for member in Hooks(members=members).members]
    except DagnatsError as error:
        found.problems.append(
            Problem("", describe(error), "leave one of them out, or change its wishes", stops=True)
        )
        return
    active.sort(key=lambda one: names.index(one.found.name))
    others = [one for one in found.candidates if one.state != "active"]
    found.candidates = active + others


@contextlib.contextmanager
def _stdout_kept_clean() -> Iterator[None]:
    """What a plugin prints while it is imported is not part of our answer."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
