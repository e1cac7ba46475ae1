"""What a worker says of its health: whether its loop is alive, and whether it takes tasks.

It is asked from another thread than the one of the worker's loop, which may be blocked; so it reads
what others write, and awaits nothing on that loop but the routes of plugins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dagnats_worker._config import WorkerConfig, parse_address
from dagnats_worker._counters import Counters
from dagnats_worker._facade import Facade
from dagnats_worker._http import HttpServer, json_response, listen, not_found, url_of
from dagnats_worker._intake import Intake
from dagnats_worker._loop_thread import LoopThread
from dagnats_worker._routes import RESERVED, Response, Route
from dagnats_worker._transport import Transport
from dagnats_worker._watchdog import Watchdog

logger = logging.getLogger("dagnats_worker.health")

LIVE, READY = RESERVED
ROUTE_WAIT_S = 2.0
OPEN_WAIT_S = 5.0

Check = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """Where the signs of life of a running worker are read."""

    facade: Facade
    transport: Transport
    watchdog: Watchdog
    intakes: Sequence[Intake]
    counters: Counters
    slots_in_use: Callable[[], int]
    abandoned: Callable[[], int]
    loop: asyncio.AbstractEventLoop


class WorkerHealth:
    """The health of one worker; may be asked from any thread, at any time.

    Attributes:
        url: Where it is served; None where it is not.
    """

    def __init__(self, worker_id: str, config: WorkerConfig) -> None:
        self._worker_id = worker_id
        self._config = config
        self._vitals: Vitals | None = None
        self._thread: LoopThread | None = None
        self._server: HttpServer | None = None
        self.url: str | None = None

    def attach(self, vitals: Vitals) -> None:
        """From now on there is something to look at."""
        self._vitals = vitals

    # ------------------------------------------------------------------ what it says

    def live(self) -> Response:
        """Whether the event loop is alive; status 200 or 503, and JSON that says why."""
        return self._page("alive", {"event_loop": self._event_loop()})

    def ready(self) -> Response:
        """Whether the worker takes tasks; status 200 or 503, and JSON that says why not."""
        vitals = self._vitals
        checks = {"state": self._state()}
        if vitals is not None:
            checks["connection"] = _connection(vitals)
            checks["consumers"] = _consumers(vitals)
            checks["slots"] = _slots(vitals)
        checks["event_loop"] = self._event_loop()
        return self._page("ready", checks)

    def tasks_ended(self) -> int:
        """How many handlers have come to an end."""
        if self._vitals is None:
            return 0
        counters = self._vitals.counters
        return counters.completed + counters.failed + counters.retried

    @property
    def state(self) -> str:
        """What the worker is doing."""
        return self._vitals.facade.state if self._vitals is not None else "starting"

    def route(self, path: str) -> Route | None:
        """The route that a plugin has added for a path."""
        return self._vitals.facade.routes.get(path) if self._vitals is not None else None

    async def answer(self, path: str) -> Response:
        """The answer for a path, from another loop than the worker's."""
        if path == LIVE:
            return self.live()
        if path == READY:
            return self.ready()
        route = self.route(path)
        if route is None or self._vitals is None:
            others = self._vitals.facade.routes.paths if self._vitals is not None else []
            return not_found(path, [*RESERVED, *others])
        return await _ask(route, self._vitals.loop)

    def _page(self, word: str, checks: dict[str, Check]) -> Response:
        reasons = [check["reason"] for check in checks.values() if not check["ok"]]
        body = {
            "status": f"not {word}" if reasons else word,
            "worker_id": self._worker_id,
            "state": self.state,
            "reasons": reasons,
            "checks": checks,
        }
        return json_response(503 if reasons else 200, body)

    def _state(self) -> Check:
        return _check(self.state == "running", f"the worker is {self.state}", value=self.state)

    def _event_loop(self) -> Check:
        limit_s = self._config.live_blocked_max.total_seconds()
        watchdog = self._vitals.watchdog if self._vitals is not None else None
        blocked_s = round(watchdog.blocked_s, 1) if watchdog is not None else 0.0
        culprit = watchdog.culprit if watchdog is not None else ""
        reason = f"the event loop has been blocked for {blocked_s:g} s"
        reason += f" by {culprit}" if culprit else ""
        return _check(blocked_s <= limit_s, reason, blocked_s=blocked_s, limit_s=limit_s)

    # ------------------------------------------------------------------ serving it

    def open(self) -> None:
        """Serve it where the configuration says.

        Raises:
            AddressError: The port is taken.
        """
        if self._config.health is None:
            return
        listener = listen(parse_address(self._config.health))
        self._thread = LoopThread("dagnats-worker-health")
        self._server = HttpServer(listener, self.answer)
        self._thread.begin(self._server.start()).result(OPEN_WAIT_S)
        self.url = url_of(listener)
        logger.info("health on %s%s and %s", self.url, LIVE, READY)

    def close(self) -> None:
        """Serve it no longer; does nothing where it is not served."""
        server, self._server, self.url = self._server, None, None
        thread, self._thread = self._thread, None
        if server is not None and thread is not None:
            thread.begin(server.close()).result(OPEN_WAIT_S)
            thread.close()


def _check(ok: bool, reason: str, **details: Any) -> Check:  # noqa: FBT001 - what a check is made of
    return {"ok": ok, **({} if ok else {"reason": reason}), **details}


def _connection(vitals: Vitals) -> Check:
    return _check(vitals.transport.connected, "the connection to NATS is lost")


def _consumers(vitals: Vitals) -> Check:
    """Without its sticky tasks a worker still takes all the others."""
    intakes = list(vitals.intakes)
    lost = [one.trouble for one in intakes if one.trouble and not one.is_extra]
    sticky = [one.trouble for one in intakes if one.trouble and one.is_extra]
    return _check(not lost, "; ".join(lost), number=len(intakes), lost=lost, lost_sticky=sticky)


def _slots(vitals: Vitals) -> Check:
    """Handlers that run are a good sign; threads that nobody waits for any more are none."""
    abandoned, at_most = vitals.abandoned(), vitals.facade.max_tasks
    return _check(
        abandoned < at_most,
        f"every slot is taken by a handler that has outlived its timeout ({abandoned} threads)",
        in_use=vitals.slots_in_use(),
        at_most=at_most,
        abandoned=abandoned,
    )


async def _ask(route: Route, loop: asyncio.AbstractEventLoop) -> Response:
    """Run the handler of a plugin's route on the worker's loop, for a while."""
    if loop.is_closed():
        return json_response(503, {"error": "the worker has stopped"})
    asked = asyncio.run_coroutine_threadsafe(route.handler(), loop)
    try:
        async with asyncio.timeout(ROUTE_WAIT_S):
            response = await asyncio.wrap_future(asked)
        if not isinstance(response, Response):
            raise TypeError(f"it returned {response!r}, which is not a Response")
    except TimeoutError:
        return json_response(503, {"error": f"{route.path} has taken more than {ROUTE_WAIT_S:g} s"})
    except Exception as error:  # a plugin's page may fail in any way
        logger.exception("plugin %r, route %s", route.owner, route.path)
        return json_response(500, {"error": f"{route.path}: {type(error).__name__}"})
    return response
