"""What a Python worker says of itself in the metadata of its entry: names and texts only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OWN_NAMES = frozenset({"state", "load", "groups", "core", "python", "started_at", "loop_blocked_s"})
PLUGIN = "plugin."
DIGITS_MAX = 18


def is_reserved(name: str) -> bool:
    """Whether a name of the metadata is one that the plugin itself uses."""
    return name in OWN_NAMES or name.startswith(PLUGIN)


@dataclass(frozen=True, slots=True)
class Report:
    """The state of a worker, and the versions that it runs; what is not known is empty or None.

    Attributes:
        state: ``running`` or ``draining``.
        slots_in_use: How many handlers ran when the entry was written.
        slots: How many may run at once.
        groups: The groups that it serves.
        core: Version of ``dagnats-worker``.
        python: Version of Python.
        plugins: Version by plugin; a plugin that is not active has its state behind it.
        started_at: When the worker was started, as RFC 3339.
        loop_blocked_s: For so long something had blocked the event loop; 0 where nothing had.
        more: What whoever runs the worker wants to be known.
    """

    state: str = ""
    slots_in_use: int | None = None
    slots: int | None = None
    groups: tuple[str, ...] = ()
    core: str = ""
    python: str = ""
    plugins: Mapping[str, str] = field(default_factory=dict)
    started_at: str = ""
    loop_blocked_s: int = 0
    more: Mapping[str, str] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """As it stands in an entry."""
        load = "" if self.slots_in_use is None else f"{self.slots_in_use}/{self.slots}"
        own = {
            "state": self.state,
            "load": load,
            "groups": ",".join(self.groups),
            "core": self.core,
            "python": self.python,
            "started_at": self.started_at,
            "loop_blocked_s": str(self.loop_blocked_s) if self.loop_blocked_s else "",
        }
        plugins = {f"{PLUGIN}{name}": version for name, version in self.plugins.items()}
        return {**self.more, **{name: text for name, text in own.items() if text}, **plugins}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Report:
        """Read it; what cannot be read is left out, because anybody may write metadata."""
        in_use, _, slots = metadata.get("load", "").partition("/")
        return cls(
            state=metadata.get("state", ""),
            slots_in_use=_count(in_use),
            slots=_count(slots),
            groups=tuple(filter(None, metadata.get("groups", "").split(","))),
            core=metadata.get("core", ""),
            python=metadata.get("python", ""),
            plugins={
                name.removeprefix(PLUGIN): version
                for name, version in metadata.items()
                if name.startswith(PLUGIN)
            },
            started_at=metadata.get("started_at", ""),
            loop_blocked_s=_count(metadata.get("loop_blocked_s", "")) or 0,
            more={name: text for name, text in metadata.items() if not is_reserved(name)},
        )


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX else None
