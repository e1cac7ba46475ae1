"""Routes of plugins, and what a supervisor and its processes say of them.

Method: plain objects, no server, no other process. Nothing is fake.
"""

from __future__ import annotations

import functools
import json
from datetime import timedelta
from typing import Any

import click
import pytest

from dagnats_worker import WorkerConfig
from dagnats_worker._config import parse_address
from dagnats_worker._routes import Response, Routes, imported
from dagnats_worker.cli import _reload
from dagnats_worker.cli._children import described_end
from dagnats_worker.cli._link import (
    VARIABLE,
    Place,
    config_heard,
    config_told,
    encoded,
    response_heard,
    response_told,
    taken_place,
)
from dagnats_worker.cli._supervise import Plan, Supervisor
from dagnats_worker.cli._values import format_size, size
from dagnats_worker.errors import PluginError


async def page() -> Response:
    return Response(200, "text/plain", b"")


def merge(bodies: list[bytes]) -> bytes:
    return b"".join(bodies)


class Holder:
    @staticmethod
    def merge(bodies: list[bytes]) -> bytes:
        return bodies[0]

    async def __call__(self) -> Response:
        return await page()


@pytest.mark.parametrize(
    "path", ["", "metrics", "/", "/a b", "/a?b", "/a/", "/a//b", "/ä", None, 7]
)
def test_path_that_cannot_be_one_is_refused(path: Any) -> None:
    with pytest.raises(ValueError, match="a route is a path such as '/metrics', got"):
        Routes().add(path, page, None, "one")


def test_path_belongs_to_one_plugin_and_some_to_the_worker() -> None:
    routes = Routes()
    routes.add("/metrics", page, None, "one")
    with pytest.raises(PluginError, match="'one' and 'two' both add the route /metrics"):
        routes.add("/metrics", page, None, "two")
    for path in ("/livez", "/readyz"):
        with pytest.raises(PluginError, match="the worker's own; plugin 'two' needs another"):
            routes.add(path, page, None, "two")
    routes.forget("one")
    routes.add("/metrics", page, None, "two")
    assert routes.paths == ["/metrics"]


def test_handler_is_async_in_whatever_form() -> None:
    routes = Routes()
    routes.add("/a", functools.partial(page), None, "one")
    routes.add("/b", Holder(), None, "one")
    for handler in (lambda: None, merge, "page", None):
        wrong: Any = handler
        with pytest.raises(TypeError, match="the handler of /c is an async function"):
            routes.add("/c", wrong, None, "one")


def test_merge_is_found_by_its_name_elsewhere() -> None:
    routes = Routes()
    routes.add("/a", page, Holder.merge, "one")
    routes.add("/json", page, json.dumps, "one")  # type: ignore[arg-type]  # any function of a module
    found = routes.get("/json")
    assert found is not None
    assert imported(found.merge) is json.dumps

    def local(bodies: list[bytes]) -> bytes:
        return bodies[0]

    for wrong in (local, lambda bodies: bodies[0], functools.partial(merge)):
        with pytest.raises(ValueError, match="another process can import"):
            routes.add("/b", page, wrong, "one")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_address_is_read(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "expected"),
    [("512MB", 512_000_000), ("1.5GiB", 3 * 2**29), ("64 mib", 2**26), ("9B", 9), ("2kb", 2_000)],
)
def test_size_is_read(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "512", "MB", "-1MB", "1TB", "0MB", "1e3MB", "1,5GB"])
def test_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        size(text)


def test_size_is_shown_in_megabytes() -> None:
    assert format_size(123_400_000) == "123 MB"


# ------------------------------------------------------------------------- the link


def test_place_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(descriptor=7, process=1, processes=3, url=None, shows=True)
    monkeypatch.setenv(VARIABLE, place.variable())
    assert taken_place() == place
    assert taken_place() is None, "what this process starts is nobody's child"


def test_configuration_that_the_supervisor_needs_survives_the_way() -> None:
    config = WorkerConfig(
        health="127.0.0.1:1", crashes_max=9, restart_wait=timedelta(milliseconds=20)
    )
    heard = config_heard(json.loads(encoded(config_told(config))))
    assert heard == config


@pytest.mark.parametrize("body", [b"", b"\x00\xff\n", "ä\n".encode() * 1000])
def test_page_survives_the_way(body: bytes) -> None:
    response = Response(503, "text/plain; charset=utf-8", body)
    line = encoded(response_told(response))
    assert line.count(b"\n") == 1
    assert response_heard(json.loads(line)) == response


def test_end_of_a_process_is_told_in_words() -> None:
    assert described_end(3) == "has ended with code 3"
    assert described_end(-9) == "was ended by SIGKILL"
    assert described_end(-200) == "was ended by signal 200"


@pytest.mark.parametrize(
    ("codes", "signals", "expected"),
    [
        ([0, 0], 1, 0),
        ([0, -15], 1, 0),  # told to stop before it had begun
        ([0, 3], 1, 3),
        ([0, -9], 1, 3),
        ([130, 0], 1, 3),  # cut off, but nobody has forced it
        ([3, 1], 1, 1),
        ([0, 2], 0, 2),
        ([0, 130], 2, 130),
        ([0, 0], 2, 0),
    ],
)
async def test_exit_code_is_that_of_the_worst(
    codes: list[int], signals: int, expected: int
) -> None:
    supervisor = Supervisor(Plan(processes=2))
    supervisor._codes = codes
    supervisor._stop.times = signals
    assert supervisor._exit_code() == expected


def test_without_watchfiles_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reload, "find_spec", lambda _name: None)
    with pytest.raises(click.UsageError, match=r"pip install 'dagnats-worker\[reload\]'"):
        _reload.check_reload()
