"""Which of two attempts of a step is the newer one.

Each write says which attempt made it, so that an attempt that has lost its lease without knowing
cannot write over what the next one has saved. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagnats_worker import Delivery

WRITER_HEADER = "Dagnats-Checkpoint-Writer"

CLOCKS_DIFFER_BY_NS = 5_000_000_000
"""How far the clocks of the servers that hold two streams may be apart."""


@dataclass(frozen=True, slots=True)
class Writer:
    """An attempt of a step, as the header of its writes names it.

    Attributes:
        stream: The stream of the message that brought the task.
        sequence: Of that message.
        timestamp_ns: When that stream stored it.
        delivery: Which delivery of the message it is, 1 for the first.
        worker_id: Who runs it; for people, and to know one's own writes.
    """

    stream: str
    sequence: int
    timestamp_ns: int
    delivery: int
    worker_id: str

    @classmethod
    def of(cls, delivery: Delivery, worker_id: str) -> Writer:
        """The attempt that a delivery began."""
        return cls(
            delivery.stream,
            delivery.sequence,
            delivery.timestamp_ns,
            delivery.deliveries,
            worker_id,
        )

    @classmethod
    def read(cls, headers: Mapping[str, str]) -> Writer | None:
        """The attempt that wrote an entry; None where it does not say, as a Go worker's."""
        parts = headers.get(WRITER_HEADER, "").split(" ")
        try:
            stream, sequence, timestamp_ns, delivery, worker_id = parts
            return cls(stream, int(sequence), int(timestamp_ns), int(delivery), worker_id)
        except ValueError:
            return None

    def header(self) -> str:
        """The value of the header; neither streams nor worker ids have blanks."""
        return " ".join(
            (
                self.stream,
                str(self.sequence),
                str(self.timestamp_ns),
                str(self.delivery),
                self.worker_id,
            )
        )

    def has_message_of(self, other: Writer) -> bool:
        """Whether both were given the same message."""
        return (self.stream, self.sequence, self.timestamp_ns) == (
            other.stream,
            other.sequence,
            other.timestamp_ns,
        )

    def after(self, earlier: Writer, *, doubtful: bool) -> Writer:
        """This attempt, which begins now, numbered so that it comes after what it has found.

        A server that was killed, and a consumer that was made again, forget how often they have
        delivered a message. So whoever begins with the number of somebody else is the later one,
        and where the source doubts its number, it does not count at all.
        """
        if not self.has_message_of(earlier):
            return self
        if earlier.delivery == self.delivery or (doubtful and earlier.delivery > self.delivery):
            return replace(self, delivery=earlier.delivery + 1)
        return self

    def is_superseded_by(self, other: Writer) -> bool:
        """Whether the other one is newer; what cannot be told is not.

        To refuse the attempt that is the newest would be worse than to let an older one write.
        """
        if other == self:
            return False
        if self.has_message_of(other):
            return other.delivery >= self.delivery
        if other.stream == self.stream:  # by both: a stream that was made anew counts from 1 again
            return other.sequence > self.sequence and other.timestamp_ns >= self.timestamp_ns
        return other.timestamp_ns - self.timestamp_ns > CLOCKS_DIFFER_BY_NS

    def __str__(self) -> str:
        return (
            f"delivery {self.delivery} of message {self.sequence} in {self.stream}, "
            f"by {self.worker_id}"
        )
