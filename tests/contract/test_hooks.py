"""The hooks of plugins: what they are called, who is refused, and who comes first.

Method: the specifications are compared with what plugins rely on, and plugins as anybody writes
them are given to a worker that is never started. Nothing is fake. The calls themselves are in
test_hook_calls.py and test_hook_errors.py.
"""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagnats_worker import Outcome, Plugin, PluginError, TaskContext, Worker, hookimpl, hookspecs
from dagnats_worker._plugins import Hooks
from dagnats_worker.hookspecs import PROJECT
from dagnats_worker.testing import MemoryTransport

# ------------------------------------------------------------------------- the specifications

HOOKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "worker_scope": ("async scope", ("worker",)),
    "open_source": ("async", ("worker", "task")),
    "task_scope": ("async scope", ("ctx",)),
    "pre_handle": ("async", ("ctx",)),
    "pre_publish": ("async", ("ctx", "message")),
    "on_error": ("async", ("ctx", "error", "outcome")),
    "outcome_scope": ("async scope", ("ctx", "outcome")),
    "on_complete": ("async", ("ctx", "outcome")),
    "child_scope": ("scope", ("carrier",)),
}
"""What plugins rely on: a change here breaks plugins that exist."""


def specified() -> dict[str, Callable[..., Any]]:
    return {
        name: value
        for name, value in vars(hookspecs).items()
        if inspect.isfunction(value) and hasattr(value, f"{PROJECT}_spec")
    }


def kind_of(spec: Callable[..., Any]) -> str:
    if inspect.iscoroutinefunction(spec):
        return "async"
    returned = str(inspect.signature(spec).return_annotation)
    if returned.startswith("AbstractAsyncContextManager"):
        return "async scope"
    return "scope" if returned.startswith("AbstractContextManager") else "sync"


def test_hooks_are_exactly_these_with_these_arguments() -> None:
    found = {
        name: (kind_of(spec), tuple(inspect.signature(spec).parameters))
        for name, spec in specified().items()
    }
    assert found == HOOKS
    assert list(found) == list(HOOKS), "they stand in the order in which they are called"


@pytest.mark.parametrize("name", HOOKS)
def test_hook_says_when_in_what_order_and_what_an_error_does(name: str) -> None:
    documentation = inspect.getdoc(specified()[name]) or ""
    summary, *_ = documentation.splitlines()
    assert summary.endswith(".")
    headings = re.findall(r"^(\w+): \S", documentation, re.MULTILINE)
    assert headings == ["When", "Order", "Errors"]


@pytest.mark.parametrize("name", HOOKS)
def test_hook_takes_no_options_and_is_fully_annotated(name: str) -> None:
    spec = specified()[name]
    options = getattr(spec, f"{PROJECT}_spec")
    assert not options["firstresult"]
    assert not options["historic"]
    names = {"TaskContext": TaskContext, "Outcome": Outcome}
    hints = get_type_hints(spec, vars(hookspecs) | names)
    assert set(hints) == {*inspect.signature(spec).parameters, "return"}


def test_hook_that_nobody_implements_is_an_empty_tuple() -> None:
    class Silent(Plugin[None]):
        name = "silent"

    for hooks in (Hooks(()), Hooks([Silent()])):
        assert [getattr(hooks, name) for name in HOOKS] == [()] * len(HOOKS)


# ------------------------------------------------------------------------- plugins that are refused


def refused(body: dict[str, Any], **attributes: Any) -> str:
    """What is said of a plugin with these methods when a worker is given it."""
    plugin = type("Wrong", (Plugin,), {"name": "wrong", **body, **attributes})()
    worker = Worker(MemoryTransport(), plugins=[plugin])
    with pytest.raises(PluginError) as caught:
        worker.handle("shout", shout)
    assert "'wrong'" in str(caught.value)
    return str(caught.value)


async def shout(ctx: TaskContext) -> str:
    return "HELLO"


@pytest.mark.parametrize(
    ("misspelt", "right"),
    [
        ("prehandle", "pre_handle"),
        ("task_scopes", "task_scope"),
        ("on_completed", "on_complete"),
        ("onerror", "on_error"),
    ],
)
def test_misspelt_hook_is_refused_with_the_right_spelling(misspelt: str, right: str) -> None:
    @hookimpl
    async def hook(self: Any, ctx: TaskContext) -> None: ...

    said = refused({misspelt: hook})
    assert f"there is no hook {misspelt!r}" in said
    assert f"did you mean {right!r}?" in said


def test_hook_that_is_like_none_is_refused_with_the_list() -> None:
    @hookimpl
    async def hook(self: Any) -> None: ...

    said = refused({"xyz": hook})
    for name in HOOKS:
        assert name in said


def test_misspelt_argument_is_refused_with_the_right_spelling() -> None:
    @hookimpl
    async def on_error(self: Any, ctx: TaskContext, outcom: Outcome) -> None: ...

    said = refused({"on_error": on_error})
    assert "on_error" in said
    assert "'outcom'" in said
    assert "did you mean 'outcome'?" in said


def test_argument_of_another_hook_is_refused_with_those_that_there_are() -> None:
    @hookimpl
    async def pre_handle(self: Any, worker: object) -> None: ...

    said = refused({"pre_handle": pre_handle})
    assert "'worker'" in said
    assert "there are ctx" in said


@pytest.mark.parametrize("option", ["wrapper", "hookwrapper"])
def test_wrapper_is_refused(option: str) -> None:
    def pre_handle(self: Any, ctx: TaskContext) -> Iterator[None]:
        yield

    options: dict[str, Any] = {option: True}
    said = refused({"pre_handle": hookimpl(**options)(pre_handle)})
    assert f"{option}=True" in said
    assert "scope" in said


async def a_coroutine(self: Any, ctx: TaskContext) -> None: ...
async def an_async_generator(self: Any, ctx: TaskContext) -> AsyncIterator[None]:
    yield


def a_generator(self: Any, ctx: TaskContext) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    "function",
    [a_coroutine, an_async_generator, a_generator, contextmanager(a_generator)],
    ids=["coroutine", "async generator", "generator", "blocking context manager"],
)
def test_what_is_no_async_context_manager_is_refused_as_a_scope(
    function: Callable[..., Any],
) -> None:
    said = refused({"task_scope": hookimpl(function)})
    assert "task_scope" in said
    assert "@asynccontextmanager below @hookimpl" in said


async def a_child_coroutine(self: Any, carrier: dict[str, str]) -> None: ...
async def an_async_child_generator(self: Any, carrier: dict[str, str]) -> AsyncIterator[None]:
    yield


def a_child_generator(self: Any, carrier: dict[str, str]) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    "function",
    [
        a_child_coroutine,
        an_async_child_generator,
        a_child_generator,
        asynccontextmanager(an_async_child_generator),
    ],
    ids=["coroutine", "async generator", "generator", "async context manager"],
)
def test_what_is_no_context_manager_is_refused_as_a_child_scope(
    function: Callable[..., Any],
) -> None:
    said = refused({"child_scope": hookimpl(function)})
    assert "child_scope" in said
    assert "@contextmanager below @hookimpl" in said


@pytest.mark.parametrize("thing", [object(), "checkpoint", Plugin, None])
def test_what_is_no_plugin_is_refused(thing: Any) -> None:
    worker = Worker(MemoryTransport(), plugins=[thing])
    with pytest.raises(PluginError, match="Plugin subclass"):
        worker.handle("shout", shout)


# ------------------------------------------------------------------------- order


def ordered(*wishes: tuple[str, Sequence[str], Sequence[str]]) -> list[str]:
    """Names of plugins in the order in which they are called; given as name, before, after."""
    plugins = [
        type("Named", (Plugin,), {"name": name, "before": tuple(before), "after": tuple(after)})()
        for name, before, after in wishes
    ]
    return [plugin.name for plugin in Hooks(plugins).plugins]


def test_order_of_the_configuration_stays_where_nobody_wishes() -> None:
    assert ordered(("c", (), ()), ("a", (), ()), ("b", (), ())) == ["c", "a", "b"]


def test_before_and_after_are_obeyed() -> None:
    assert ordered(("a", (), ()), ("b", ("a",), ())) == ["b", "a"]
    assert ordered(("a", (), ("b",)), ("b", (), ())) == ["b", "a"]
    assert ordered(("a", (), ("c",)), ("b", (), ()), ("c", ("b",), ())) == ["c", "a", "b"]


def test_star_is_everybody() -> None:
    assert ordered(("a", (), ()), ("b", (), ()), ("c", ("*",), ())) == ["c", "a", "b"]
    assert ordered(("a", (), ("*",)), ("b", (), ()), ("c", (), ())) == ["b", "c", "a"]


def test_name_is_stronger_than_a_star() -> None:
    assert ordered(("outermost", ("*",), ()), ("mine", ("outermost",), ())) == ["mine", "outermost"]
    assert ordered(("innermost", (), ("*",)), ("mine", (), ("innermost",))) == ["innermost", "mine"]
    assert ordered(("outermost", ("*",), ("mine",)), ("mine", (), ())) == ["mine", "outermost"]


def test_two_stars_leave_each_other_where_they_are() -> None:
    assert ordered(("a", (), ()), ("b", ("*",), ()), ("c", ("*",), ())) == ["b", "c", "a"]
    assert ordered(("a", (), ("*",)), ("b", (), ("*",)), ("c", (), ())) == ["c", "a", "b"]


def test_names_are_stronger_than_a_star_through_a_third_plugin_too() -> None:
    chain = [("outer", ("*",), ()), ("mine", ("outer",), ()), ("third", ("mine",), ())]
    assert ordered(*chain) == ["third", "mine", "outer"]


def test_name_of_a_plugin_that_is_not_there_is_no_error() -> None:
    assert ordered(("a", ("absent",), ("gone",)), ("b", (), ())) == ["a", "b"]
    assert ordered(("a", ("a",), ("a",)), ("b", (), ())) == ["a", "b"]


@pytest.mark.parametrize(
    "wishes",
    [
        [("a", ("b",), ()), ("b", ("a",), ())],
        [("a", (), ("b",)), ("b", (), ("a",))],
        [("a", ("b",), ("b",)), ("b", (), ())],
        [("a", ("b",), ()), ("b", ("c",), ()), ("c", ("a",), ())],
    ],
)
def test_wishes_that_contradict_each_other_are_refused_with_all_names(wishes: Any) -> None:
    with pytest.raises(PluginError, match="contradict") as caught:
        ordered(*wishes)
    for name, _, _ in wishes:
        assert repr(name) in str(caught.value)


def test_two_plugins_with_one_name_are_refused() -> None:
    with pytest.raises(PluginError, match="two plugins are called 'a'"):
        ordered(("a", (), ()), ("b", (), ()), ("a", (), ()))


@given(st.integers(2, 7), st.randoms(use_true_random=False))
def test_names_that_do_not_contradict_are_all_obeyed_whatever_the_stars_say(
    count: int, chance: random.Random
) -> None:
    names = [f"p{number}" for number in range(count)]  # an order that exists
    wishes = []
    for index, name in enumerate(names):
        before = [later for later in names[index + 1 :] if chance.random() < 0.3]
        after = [earlier for earlier in names[:index] if chance.random() < 0.3]
        star = chance.choice([(), (), ("*",)])
        where = chance.choice([before, after])
        where.extend(star)
        wishes.append((name, before, after))
    chance.shuffle(wishes)
    found = ordered(*wishes)
    assert sorted(found) == sorted(names)
    for name, before, after in wishes:
        assert all(found.index(name) < found.index(other) for other in before if other in names)
        assert all(found.index(name) > found.index(other) for other in after if other in names)
