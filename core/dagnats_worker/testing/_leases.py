"""Renewal of leases by the clock of the in-memory server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from dagnats_worker._inflight import Ending, InFlight
from dagnats_worker._protocol import IN_PROGRESS
from dagnats_worker.hookspecs import KeepAlive
from dagnats_worker.testing._clock import Clock, FakeClock, Timer

if TYPE_CHECKING:
    from dagnats_worker.testing._transport import MemoryTransport


class MemoryLeases:
    """Renews each lease when a third of it is over, for as long as its handler may run.

    It renews on the event loop: a handler that blocks the loop blocks this too, which it does not
    on a real server.
    """

    def __init__(self, transport: MemoryTransport, clock: Clock) -> None:
        self._transport = transport
        self._clock = clock
        self._held: dict[int, tuple[InFlight, int]] = {}
        self._timers: dict[int, Timer] = {}
        self._kept_alive: dict[object, Timer] = {}
        self._end_listening: Callable[[], None] | None = None
        if isinstance(clock, FakeClock):
            self._end_listening = clock.listen(self._age)
        self.renewals = 0

    def hold(self, inflight: InFlight) -> None:
        until_ns = self._clock.time_ns() + int(inflight.timeout_s * 1e9)
        self._held[id(inflight)] = (inflight, until_ns)
        self._schedule(inflight)

    def release(self, inflight: InFlight) -> None:
        self._held.pop(id(inflight), None)
        timer = self._timers.pop(id(inflight), None)
        if timer is not None:
            timer.cancel()

    def loop_is_alive(self) -> None:
        pass

    def keep_alive(self, request: KeepAlive, every_s: float) -> Callable[[], None]:
        """Send a request now and then by the clock; returns what ends it."""
        key = object()

        def send() -> None:
            if key not in self._kept_alive:
                return
            self._kept_alive[key] = self._clock.call_later(timedelta(seconds=every_s), send)
            self._send(request)

        self._kept_alive[key] = self._clock.call_later(timedelta(0), send)
        asyncio.get_running_loop().call_soon(send)

        def end() -> None:
            timer = self._kept_alive.pop(key, None)
            if timer is not None:
                timer.cancel()

        return end

    def _send(self, request: KeepAlive) -> None:
        if self._transport.server.faults.frozen:
            return
        answer = None
        reason = "nobody answers there"
        if self._transport.connected:
            try:
                body = request.body()
            except Exception as error:  # noqa: BLE001 - the plugin's own, and told to it
                reason = f"no body, {error!r}"
            else:
                answer = self._transport.ask(request.subject, body, request.headers)
        if answer is None and request.failed is not None:
            request.failed(f"{request.subject}: {reason}")
        elif answer is not None and request.answered is not None:
            request.answered(answer)

    def close(self) -> None:
        """Renew nothing any more."""
        for inflight, _ in list(self._held.values()):
            self.release(inflight)
        for timer in self._kept_alive.values():
            timer.cancel()
        self._kept_alive.clear()
        if self._end_listening is not None:
            self._end_listening()
            self._end_listening = None

    def _schedule(self, inflight: InFlight) -> None:
        every = timedelta(seconds=inflight.renew_every_s)
        timer = self._clock.call_later(every, lambda: self._renew(inflight))
        self._timers[id(inflight)] = timer

    def _renew(self, inflight: InFlight) -> None:
        _, until_ns = self._held[id(inflight)]
        if self._clock.time_ns() > until_ns:
            return
        self._schedule(inflight)
        if self._transport.server.faults.frozen or not self._transport.connected:
            return
        self.renewals += 1
        answered = self._transport.ask(inflight.ack_subject, IN_PROGRESS) is not None
        if inflight.source.confirm_leases and not answered:
            inflight.interrupt(Ending.LEASE_LOST)

    def _age(self, passed: timedelta) -> None:
        """What runs has run for longer by as much as the clock was moved."""
        for inflight, _ in self._held.values():
            inflight.received_at -= passed.total_seconds()
            if inflight.started_at:
                inflight.started_at -= passed.total_seconds()
