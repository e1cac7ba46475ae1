"""Fixtures of a real nats-server: one that all tests share, and one to break."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Generator, Iterator

import pytest
from clean_venv import CleanVenv
from nats.aio.client import Client
from nats.js import JetStreamContext
from support import connected

from dagnats_worker._embedded import EmbeddedServer
from dagnats_worker._jetstream.provision import provision
from dagnats_worker._server_process import find_server
from dagnats_worker.errors import StartError


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A report goes to another process as UTF-8, and some tests log what is not."""
    report = yield
    report.sections = [
        (title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections
    ]
    return report


@pytest.fixture(scope="session")
def server_installed() -> None:
    """Skips where there is no usable nats-server; in CI its absence is a failure."""
    try:
        find_server()
    except StartError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def shared_server(server_installed: None) -> Iterator[EmbeddedServer]:
    """One provisioned server for the whole run: do not stop it, use ``unique()`` names on it."""
    with EmbeddedServer() as server:
        asyncio.run(_provisioned(server.url))
        yield server


@pytest.fixture(scope="session")
def clean_venv(tmp_path_factory: pytest.TempPathFactory) -> CleanVenv:
    """An environment with the built core; what a test installs there it uninstalls."""
    return CleanVenv(tmp_path_factory.mktemp("clean"))


@pytest.fixture
def empty_server(server_installed: None) -> Iterator[EmbeddedServer]:
    """A server of the test's own, without any stream."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
async def nats_server(empty_server: EmbeddedServer) -> EmbeddedServer:
    """A provisioned server of the test's own: kill, pause and restart it as you like."""
    await _provisioned(empty_server.url)
    return empty_server


@pytest.fixture
async def nc(shared_server: EmbeddedServer) -> AsyncIterator[Client]:
    """A client on the shared server."""
    async with connected(shared_server.url) as client:
        yield client


@pytest.fixture
def js(nc: Client) -> JetStreamContext:
    """JetStream on the shared server."""
    return nc.jetstream()


async def _provisioned(url: str) -> None:
    async with connected(url) as client:
        await provision(client.jetstream())
