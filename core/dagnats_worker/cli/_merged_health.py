"""The health of several processes as one: what the supervisor answers on the port that it owns."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

from dagnats_worker._config import parse_address
from dagnats_worker._health import LIVE, READY
from dagnats_worker._http import JSON_TYPE, HttpServer, json_response, listen, url_of
from dagnats_worker._routes import Response, imported
from dagnats_worker._threads import DaemonThreads
from dagnats_worker.cli._children import ANSWER_WAIT_S, Answer, Child

logger = logging.getLogger("dagnats_worker.health")

MERGES_MAX = 4
HTTP_OK = 200
HTTP_NOT_FOUND = 404

Answers = list[tuple[Child, Answer | None]]


class MergedHealth(AbstractAsyncContextManager[None]):
    """Serves ``/livez``, ``/readyz`` and the routes of plugins for all processes.

    Args:
        children: The processes that there are now.
        stopping: Whether the supervisor is about to end.
    """

    def __init__(
        self, children: Callable[[], Sequence[Child]], stopping: Callable[[], bool]
    ) -> None:
        self._children = children
        self._stopping = stopping
        self._server: HttpServer | None = None
        self._threads = DaemonThreads(MERGES_MAX, "dagnats-worker-merge")

    async def open(self, address: str | None) -> None:
        """Serve it there; does nothing without an address, and where it is served already.

        Raises:
            AddressError: The port is taken.
        """
        if address is None or self._server is not None:
            return
        listener = listen(parse_address(address))
        self._server = HttpServer(listener, self.answer)
        await self._server.start()
        logger.info("health on %s%s and %s", url_of(listener), LIVE, READY)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._server is not None:
            await self._server.close()
        self._threads.close()

    async def answer(self, path: str) -> Response:
        """Ask every process, and make one answer of theirs."""
        children = self._children()
        answers = list(
            zip(children, await asyncio.gather(*(one.ask(path) for one in children)), strict=True)
        )
        if path == LIVE:
            return _live(answers)
        if path == READY:
            return self._ready(answers)
        return await _merged(path, answers, self._threads)

    def _ready(self, answers: Answers) -> Response:
        """One process that takes tasks is enough, so that nothing is lost by replacing another."""
        reasons = list(_reasons(answers)) or ["no process runs at the moment"]
        if self._stopping():
            return _page("ready", ["the supervisor is stopping"], answers)
        ready = any(answer is not None and _is_ok(answer) for _, answer in answers)
        return _page("ready", [] if ready else reasons, answers)


def _live(answers: Answers) -> Response:
    """A process that has ended is started again, so it does not count; one that hangs does."""
    return _page("alive", list(_reasons(answers)), answers)


def _page(word: str, reasons: list[str], answers: Answers) -> Response:
    processes = {
        str(child.number): _json_of(answer.response) if answer is not None else _silent(child)
        for child, answer in answers
    }
    status = f"not {word}" if reasons else word
    body = {"status": status, "reasons": reasons, "processes": processes}
    return json_response(503 if reasons else HTTP_OK, body)


def _reasons(answers: Answers) -> Iterable[str]:
    for child, answer in answers:
        if answer is None:
            yield f"{child} does not answer within {ANSWER_WAIT_S:g} s"
        elif not _is_ok(answer):
            said = _json_of(answer.response)
            reasons = said.get("reasons") if isinstance(said, dict) else None
            for reason in reasons or ["it does not say why"]:
                yield f"{child}: {reason}"


def _silent(child: Child) -> dict[str, Any]:
    return {"worker_id": child.worker_id, "reasons": ["it does not answer"]}


async def _merged(path: str, answers: Answers, threads: DaemonThreads) -> Response:
    """The page of a plugin: of those processes that have it."""
    answered = [(child, answer) for child, answer in answers if answer is not None]
    good = [(child, answer) for child, answer in answered if _is_ok(answer)]
    if good and (merge := good[0][1].merge):
        return await _merge(path, merge, [answer.response for _, answer in good], threads)
    if good:
        return json_response(
            HTTP_OK, {child.worker_id: _json_of(answer.response) for child, answer in good}
        )
    if answered:
        # One that has no such page, while it starts, says less than one whose page has failed.
        failed = [one for _, one in answered if one.response.status != HTTP_NOT_FOUND]
        return (failed or [answered[0][1]])[0].response
    return json_response(503, {"error": "no process answers"})


async def _merge(
    path: str, name: str, responses: list[Response], threads: DaemonThreads
) -> Response:
    """Call the plugin's function in a thread: it may take long, and may do anything."""

    def merge() -> bytes:
        return imported(name)([one.body for one in responses])

    try:
        body = await asyncio.wrap_future(threads.submit(merge))
        return Response(HTTP_OK, responses[0].content_type, bytes(body))
    except (Exception, SystemExit) as error:  # a plugin's module can raise anything
        logger.exception("merging the answers of %s with %s", path, name)
        return json_response(500, {"error": f"{path}: {name} failed: {type(error).__name__}"})


def _is_ok(answer: Answer) -> bool:
    return answer.response.status == HTTP_OK


def _json_of(response: Response) -> Any:
    """What a page says, for a page that is made of several."""
    text = response.body.decode("utf-8", errors="replace")
    if response.content_type.partition(";")[0].strip() == JSON_TYPE:
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
