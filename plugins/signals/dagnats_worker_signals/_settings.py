"""What can be set."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class SignalsSettings:
    """How signals behave.

    Attributes:
        consume: A signal that a step has received is deleted when the step has ended, so that the
            next wait for that name waits for a new one. Go workers leave signals where they are.
        parked_max: While so many tasks of the fleet are parked, no further one is; it is given
            back, and tried again after a minute.
        sweep_every: How often a worker looks at all parked tasks, whatever it was told meanwhile.
    """

    consume: bool = False
    parked_max: int = 100_000
    sweep_every: timedelta = timedelta(minutes=5)

    def __post_init__(self) -> None:
        if self.parked_max < 1:
            raise ValueError(f"parked_max is 1 or more, got {self.parked_max}")
        if self.sweep_every <= timedelta(0):
            raise ValueError(f"sweep_every is longer than zero, got {self.sweep_every!r}")
