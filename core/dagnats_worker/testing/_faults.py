"""What a test can break in the in-memory server."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from dagnats_worker._naming import filters_overlap
from dagnats_worker._protocol import IN_PROGRESS
from dagnats_worker.errors import PublishError, UsageError
from dagnats_worker.testing._clock import FakeClock

if TYPE_CHECKING:
    from dagnats_worker.testing._server import MemoryServer

EVERYTHING = ">"


@dataclass(slots=True)
class Loss:
    """Acknowledgements that are lost on the way."""

    subject: str
    times: int
    renewals: bool


@dataclass(slots=True)
class FailingPublish:
    """Publishes that fail.

    Attributes:
        stored: The message is stored all the same; only the answer is lost.
        code: The server's error code; 0 for no answer at all.
    """

    subject: str
    times: int
    stored: bool
    code: int

    def error(self, subject: str) -> PublishError:
        """What the publisher is told."""
        text = "refused by a fault" if self.code else "the server did not answer in time"
        return PublishError(f"{subject}: {text}", self.code)


class Faults:
    """Breaks an in-memory server on purpose; found as ``server.faults``.

    Where a fault takes a subject, it is that of the task or of the published message, wildcards
    allowed, and everything when not given.

    Example:
        ```python
        server.faults.lose_acks()                       # the next ack never arrives
        await client.submit("resize", {"width": 1})     # runs, and is not acked
        server.faults.redeliver()                       # its lease ends now, so it comes again
        ```

    Attributes:
        lost: How many acknowledgements and renewals have been lost so far.
        frozen: Time passes, and the workers stand still.
    """

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self._losses: list[Loss] = []
        self._failing: list[FailingPublish] = []
        self._late: list[tuple[str, timedelta]] = []
        self._failing_reads = 0
        self.lost = 0
        self.frozen = False

    # ------------------------------------------------------------------ deliveries

    def redeliver(self, subject: str = EVERYTHING) -> int:
        """End the lease of each unacked message now, so that it is delivered again.

        Returns:
            How many messages that were.
        """
        count = 0
        for consumer in self._server.consumers.values():
            for sequence, pending in list(consumer.pending.items()):
                if filters_overlap(subject, pending.message.subject):
                    consumer.deliver_again(sequence)
                    count += 1
            consumer.serve()
        return count

    def lose_acks(self, times: int = 1, subject: str = EVERYTHING) -> None:
        """Lose the next acks, naks and terms; the messages come again when their leases end."""
        self._losses.append(Loss(subject, times, renewals=False))

    def lose_renewals(self, times: int = 1, subject: str = EVERYTHING) -> None:
        """Lose the next renewals of leases."""
        self._losses.append(Loss(subject, times, renewals=True))

    def delete_consumer(self, stream: str, name: str) -> None:
        """Delete a consumer under its readers; whoever makes it again starts from the beginning.

        Raises:
            KeyError: There is no such consumer.
        """
        self._server.delete_consumer(stream, name)

    def jump(self, duration: timedelta) -> None:
        """Let time pass while every worker stands still, as when a machine was suspended.

        No lease is renewed meanwhile. Compare ``FakeClock.advance``.

        Raises:
            UsageError: The server has no ``FakeClock``.
        """
        clock = self._server.clock
        if not isinstance(clock, FakeClock):
            raise UsageError("only a clock of its own can jump: MemoryServer(clock=FakeClock())")
        self.frozen = True
        try:
            clock.advance(duration)
        finally:
            self.frozen = False

    # ------------------------------------------------------------------ publishing and reading

    def fail_publishes(
        self, times: int = 1, subject: str = EVERYTHING, *, stored: bool = False, code: int = 0
    ) -> None:
        """Let the next publishes fail.

        Args:
            stored: The message is stored, and only the answer is lost.
            code: JetStream's ``err_code``; 0 for no answer in time, which is tried again.
        """
        self._failing.append(FailingPublish(subject, times, stored, code))

    def delay_publishes(self, duration: timedelta, subject: str = EVERYTHING) -> None:
        """Let the answers to publishes come late, by the server's clock, until ``clear``."""
        self._late.append((subject, duration))

    def fail_reads(self, times: int = 1) -> None:
        """Leave the next reads of streams and buckets without an answer."""
        self._failing_reads += times

    def fill(self, stream: str) -> None:
        """Let a stream refuse whatever is to be stored, until ``clear``.

        Raises:
            KeyError: There is no such stream.
        """
        self._server.streams[stream].full = True

    def clear(self) -> None:
        """End every fault that is still there."""
        self._losses.clear()
        self._failing.clear()
        self._late.clear()
        self._failing_reads = 0
        for stream in self._server.streams.values():
            stream.full = False

    # ------------------------------------------------------------------ asked by the server

    def loses(self, subject: str, frame: bytes) -> bool:
        """Whether this acknowledgement is lost; counts it."""
        renewal = frame == IN_PROGRESS
        for loss in self._losses:
            if loss.renewals == renewal and loss.times and filters_overlap(loss.subject, subject):
                loss.times -= 1
                self.lost += 1
                return True
        return False

    def failing_publish(self, subject: str) -> FailingPublish | None:
        """How this publish fails, if it does; counts it."""
        for failing in self._failing:
            if failing.times and filters_overlap(failing.subject, subject):
                failing.times -= 1
                return failing
        return None

    def delay_of(self, subject: str) -> timedelta:
        """How late the answer to this publish comes."""
        delays = [late for own, late in self._late if filters_overlap(own, subject)]
        return max(delays, default=timedelta(0))

    def read_fails(self) -> bool:
        """Whether this read stays without an answer; counts it."""
        if not self._failing_reads:
            return False
        self._failing_reads -= 1
        return True
