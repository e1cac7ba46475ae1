"""``/livez``, ``/readyz`` and the pages of plugins: what they say, and what nobody can do to them.

Method: the command in a process of its own, and workers in this one; the port is asked by real
clients and by sockets that send what no client would. Real: all of it, and the server that is
killed. Fake: nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cli_support import run_command
from supervised_support import BOUND_S, Page, Running, fetch, is_frozen, running, write_app
from support import connected, eventually, free_port, unique
from worker_support import configured

from dagnats_worker import Client, Plugin, Worker, WorkerConfig, hookimpl
from dagnats_worker import _health as health_module
from dagnats_worker import _http as http_module
from dagnats_worker._embedded import EmbeddedServer
from dagnats_worker._http import AddressError
from dagnats_worker.hookspecs import Response, WorkerFacade

pytestmark = [pytest.mark.server]

PAGES = """
from contextlib import asynccontextmanager
from dagnats_worker import Plugin, hookimpl
from dagnats_worker.hookspecs import Response

def total(bodies):
    return str(sum(map(int, bodies))).encode()

def broken(bodies):
    raise ZeroDivisionError

class Pages(Plugin[None]):
    name = "pages"

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker):
        async def one():
            return Response(200, "text/plain", b"1")

        async def name():
            return Response(200, "application/json", b'{"pid": %d}' % os.getpid())

        async def fails():
            raise LookupError("secret")

        worker.add_route("/one", one, merge=total)
        worker.add_route("/bad-merge", one, merge=broken)
        worker.add_route("/name", name)
        async def endless():
            return Response(200, "text/plain", bytes(20_000_000))

        worker.add_route("/fails", fails)
        worker.add_route("/endless", endless)
        yield
"""
WITH_PAGES = "plugins=[Pages()]"
ANYWHERE = ("--health", "127.0.0.1:0")


async def page(worker: Worker, path: str, method: str = "GET") -> Page:
    assert worker.health.url is not None
    return await asyncio.to_thread(fetch, worker.health.url + path, method)


async def a_task(value: int) -> int:
    return value


@asynccontextmanager
async def served(url: str, **changes: object) -> AsyncIterator[Worker]:
    """A worker in this process that serves its health on any port."""
    worker = Worker(url, plugins=[], config=configured(health="127.0.0.1:0", **changes))
    worker.handle(unique(), a_task)
    async with worker:
        yield worker


def spoken(worker: Worker, data: bytes) -> bytes:
    """What the port answers to bytes."""
    with connection(worker) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def connection(worker: Worker) -> socket.socket:
    assert worker.health.url is not None
    host, port = worker.health.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=BOUND_S)


# ------------------------------------------------------------------------- one worker


async def test_running_worker_is_alive_and_ready_and_says_why(
    shared_server: EmbeddedServer,
) -> None:
    async with served(shared_server.url) as worker:
        live, ready = await page(worker, "/livez"), await page(worker, "/readyz")
        assert (live.status, ready.status) == (200, 200)
        assert live.json["status"] == "alive"
        assert ready.json["status"] == "ready"
        assert ready.json["worker_id"] == worker.worker_id
        assert ready.json["reasons"] == []
        assert list(ready.json["checks"]) == [
            "state",
            "connection",
            "consumers",
            "slots",
            "event_loop",
        ]
        assert ready.headers["Content-Type"] == "application/json"
    assert worker.health.url is None
    assert worker.health.ready().status == 503
    assert "dagnats-worker-health" not in [one.name for one in threading.enumerate()]


async def test_what_is_not_a_page_and_not_a_request_is_answered_so(
    shared_server: EmbeddedServer,
) -> None:
    async with served(shared_server.url) as worker:
        head = await page(worker, "/livez", "HEAD")
        assert (head.status, head.text) == (200, "")
        assert int(head.headers["Content-Length"]) > 0
        assert (await page(worker, "/livez?verbose=1")).status == 200
        missing = await page(worker, "/nope")
        assert (missing.status, "there are /livez, /readyz" in missing.text) == (404, True)
        posted = await page(worker, "/livez", "POST")
        assert (posted.status, posted.headers["Allow"]) == (405, "GET, HEAD")
        for data, status in (
            (b"\x16\x03\x01\x02\x00garbage\r\n\r\n", b"400"),
            (b"GET /livez\r\n\r\n", b"400"),
            (b"GET http://[ HTTP/1.1\r\n\r\n", b"400"),
            (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", b"431"),
        ):
            answer = await asyncio.to_thread(spoken, worker, data)
            assert answer.split(b" ")[1] == status, data[:30]
        assert await asyncio.to_thread(spoken, worker, b"GET /livez HTT") == b""
        assert (await page(worker, "/livez")).status == 200


async def test_slow_and_many_clients_keep_nobody_out_for_long(
    shared_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_module, "HEAD_WAIT_S", 0.5)
    async with served(shared_server.url) as worker:
        clients = [connection(worker) for _ in range(2 * http_module.CONNECTIONS_MAX)]
        try:
            clients[0].sendall(b"GET /li")

            async def answers() -> bool:
                try:
                    return (await page(worker, "/livez")).status == 200
                except OSError:
                    return False

            await eventually(answers, BOUND_S)
        finally:
            for client in clients:
                client.close()


async def test_blocked_loop_is_not_alive_and_the_answer_names_the_task(
    shared_server: EmbeddedServer, tmp_path: Path
) -> None:
    options = (*ANYWHERE, "-o", "worker.live_blocked_max=1s", "-o", "worker.loop_lag_warning=200ms")
    with running(tmp_path, shared_server.url, *options) as run:
        await run.wait_ready()
        async with Client(shared_server.url) as client:
            blocked = await client.submit(f"{run.task_type}-block", 6.0)
            found = await until_status(run, "/livez", 503)
            (reason,) = found.json["reasons"]
            assert f"by the handler of task type '{run.task_type}-block' (run {blocked.run_id}" in (
                reason
            )
            assert (await run.get("/readyz")).status == 503
            await blocked.result()
        assert (await until_status(run, "/livez", 200)).json["reasons"] == []
        assert f"run {blocked.run_id}, step" in run.log
        assert "time.sleep(seconds)" in run.log, "the stack names the line"


async def until_status(run: Running, path: str, status: int) -> Page:
    async def has_status() -> bool:
        return (await run.get(path)).status == status

    await eventually(has_status, BOUND_S)
    return await run.get(path)


async def test_worker_without_its_server_is_alive_and_not_ready(
    nats_server: EmbeddedServer,
) -> None:
    async with served(nats_server.url) as worker:
        nats_server.kill()
        await eventually(lambda: worker.health.ready().status == 503, BOUND_S)
        ready = await page(worker, "/readyz")
        assert "the connection to NATS is lost" in ready.json["reasons"]
        assert (await page(worker, "/livez")).status == 200
        await asyncio.to_thread(nats_server.restart)
        await eventually(lambda: worker.health.ready().status == 200, BOUND_S)


async def test_draining_worker_is_not_ready_and_says_so(
    shared_server: EmbeddedServer, tmp_path: Path
) -> None:
    with running(tmp_path, shared_server.url, *ANYWHERE) as run:
        await run.wait_ready()
        async with Client(shared_server.url) as client:
            slow = await client.submit(f"{run.task_type}-slow", 3.0)
            await run.wait_for("slow runs")
            run.signal()
            await run.wait_for("a second signal forces")
            ready = await run.get("/readyz")
            assert (ready.status, ready.json["reasons"]) == (503, ["the worker is draining"])
            assert (await run.get("/livez")).status == 200
            await slow.result()
        assert await run.exit_code() == 0


async def test_worker_whose_consumer_is_lost_is_not_ready(nats_server: EmbeddedServer) -> None:
    async with served(nats_server.url) as worker, connected(nats_server.url) as client:
        js = client.jetstream()
        await js.delete_stream("TASK_QUEUES")
        await eventually(lambda: worker.health.ready().status == 503, BOUND_S)
        (reason,) = json.loads(worker.health.ready().body)["reasons"]
        assert reason.startswith("consumer workers-")


# ------------------------------------------------------------------------- the address


def test_port_in_use_is_a_clear_error_with_code_2(
    shared_server: EmbeddedServer, tmp_path: Path
) -> None:
    write_app(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for options in ((), ("--processes", "2")):
            done = run_command(
                *("run", "app", "--url", shared_server.url, "--health", address, *options),
                cwd=tmp_path,
            )
            assert done.returncode == 2
            assert f"error: cannot serve health on {address}: Address already in use" in done.stderr
            assert "Traceback" not in done.stderr


async def test_port_in_use_leaves_nothing_behind(shared_server: EmbeddedServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        worker = Worker(shared_server.url, plugins=[], config=configured(health=address))
        worker.handle(unique(), a_task)
        with pytest.raises(AddressError, match="give another HOST:PORT"):
            await worker.start()


@pytest.mark.parametrize("options", [(), ("--processes", "2")])
async def test_address_can_come_from_the_configuration(
    options: tuple[str, ...], shared_server: EmbeddedServer, tmp_path: Path
) -> None:
    port = free_port()
    (tmp_path / "dagnats-worker.toml").write_text(f'[worker]\nhealth = "127.0.0.1:{port}"\n')
    with running(tmp_path, shared_server.url, *options) as run:
        await run.wait_for(f"health on http://127.0.0.1:{port}/livez")
        await until_status(run, "/readyz", 200)
        run.signal()
        assert await run.exit_code() == 0, run.log


@pytest.mark.parametrize("address", ["8080", ":8080", "a:", "::1:80", "[::1]:x", "h:70000", ""])
def test_address_that_cannot_be_one_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="health is HOST:PORT"):
        WorkerConfig(health=address)


# ------------------------------------------------------------------------- pages of plugins


class Pages(Plugin[None]):
    name = "pages"

    @hookimpl
    @asynccontextmanager
    async def worker_scope(self, worker: WorkerFacade) -> AsyncIterator[None]:
        async def fine() -> Response:
            return Response(200, "text/plain", b"fine")

        async def fails() -> Response:
            raise LookupError("secret")

        async def hangs() -> Response:
            await asyncio.sleep(60)
            raise AssertionError("not reached")

        async def nothing() -> None:
            return None

        for handler in (fine, fails, hangs, nothing):
            worker.add_route(f"/{handler.__name__}", handler)  # type: ignore[arg-type]  # one lies
        yield


async def test_page_of_a_plugin_is_served_and_its_failures_stay_its_own(
    shared_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "ROUTE_WAIT_S", 0.2)
    config = configured(health="127.0.0.1:0")
    worker = Worker(shared_server.url, plugins=[Pages()], config=config)
    worker.handle(unique(), a_task)
    async with worker:
        fine = await page(worker, "/fine")
        assert (fine.status, fine.text) == (200, "fine")
        assert fine.headers["Content-Type"] == "text/plain"
        fails = await page(worker, "/fails")
        assert (fails.status, "secret" in fails.text) == (500, False)
        assert (await page(worker, "/hangs")).status == 503
        assert (await page(worker, "/nothing")).status == 500
        assert "/fails, /fine, /hangs" in (await page(worker, "/x")).text


async def test_route_without_a_port_has_no_effect(shared_server: EmbeddedServer) -> None:
    worker = Worker(shared_server.url, plugins=[Pages()], config=configured())
    worker.handle(unique(), a_task)
    async with worker:
        assert worker.health.url is None
        assert (await worker.health.answer("/livez")).status == 200


# ------------------------------------------------------------------------- several processes


async def test_supervisor_merges_the_pages_of_its_processes(
    shared_server: EmbeddedServer, tmp_path: Path
) -> None:
    options = (*ANYWHERE, "--processes", "3")
    with running(tmp_path, shared_server.url, *options, arguments=WITH_PAGES, more=PAGES) as run:
        await run.wait_ready(3)
        one = await run.get("/one")
        assert (one.status, one.text, one.headers["Content-Type"]) == (200, "3", "text/plain")
        names = (await run.get("/name")).json
        assert sorted(found["pid"] for found in names.values()) == sorted(run.pids())
        assert (await run.get("/fails")).status == 500
        endless = await run.get("/endless")
        assert (endless.status, "20000000 bytes" in endless.text) == (500, True)
        bad = await run.get("/bad-merge")
        assert (bad.status, "app:broken failed: ZeroDivisionError" in bad.text) == (500, True)
        assert (await run.get("/nope")).status == 404
        live, ready = await run.get("/livez"), await run.get("/readyz")
        assert (live.status, ready.status) == (200, 200)
        assert list(ready.json["processes"]) == ["0", "1", "2"]


async def test_fleet_is_ready_while_one_process_is_and_alive_while_all_are(
    shared_server: EmbeddedServer, tmp_path: Path
) -> None:
    options = (*ANYWHERE, "--processes", "2", "-o", "worker.live_blocked_max=500ms")
    with running(tmp_path, shared_server.url, *options, arguments=WITH_PAGES, more=PAGES) as run:
        await run.wait_ready(2)
        async with Client(shared_server.url) as client:
            blocked = await client.submit(f"{run.task_type}-block", 8.0)
            live = await until_status(run, "/livez", 503)
            assert "the event loop has been blocked" in live.json["reasons"][0]
            ready = await run.get("/readyz")
            assert (ready.status, ready.json["reasons"]) == (200, [])
            assert (await run.get("/one")).text == "1", "one cannot answer"
            await blocked.result()
        await until_status(run, "/livez", 200)


async def test_process_that_is_frozen_does_not_answer_for_long(
    shared_server: EmbeddedServer, tmp_path: Path
) -> None:
    with running(tmp_path, shared_server.url, *ANYWHERE, "--processes", "2") as run:
        await run.wait_ready(2)
        frozen = run.pids()[0]
        os.kill(frozen, signal.SIGSTOP)
        await eventually(lambda: is_frozen(frozen), BOUND_S)
        began = time.monotonic()
        live = await run.get("/livez")
        assert live.status == 503
        assert "process 0" in live.json["reasons"][0]
        assert "does not answer" in live.json["reasons"][0]
        assert time.monotonic() - began < BOUND_S
        assert (await run.get("/readyz")).status == 200
        os.kill(frozen, signal.SIGCONT)
        await until_status(run, "/livez", 200)
        run.signal()
        assert await run.exit_code() == 0, run.log


async def test_readiness_without_any_process_says_so(
    shared_server: EmbeddedServer, tmp_path: Path
) -> None:
    options = (*ANYWHERE, "--processes", "1", "-o", "worker.restart_wait=20s")
    with running(tmp_path, shared_server.url, *options) as run:
        await until_status(run, "/readyz", 200)
        os.kill(run.pids()[0], signal.SIGKILL)
        await run.wait_for("the next one starts in")
        ready = await run.get("/readyz")
        assert (ready.status, ready.json["reasons"]) == (503, ["no process runs at the moment"])
        assert (await run.get("/livez")).status == 200
        run.signal()
        assert await run.exit_code() == 0, run.log
