"""What is stored under a step's key: the user's state, and the marker of a pause around it.

A state is stored as it is, as Go workers do. A pause is a JSON object with the key
``pause_resume`` at its top, which is what a Go worker looks for; the state that was saved before it
lies beside that key. Nothing here does I/O.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

KIND_HEADER = "Dagnats-Checkpoint"
TURN_HEADER = "Dagnats-Checkpoint-Iteration"
"""In which turn of a loop something was saved. The next turn may begin while the marker of a pause
is still there; it has not paused."""

STATE = "state"
PAUSE = "pause"

NOT_JSON = (ValueError, RecursionError)
"""What reading JSON raises; a text that is not UTF-8 is a ValueError outside of msgspec's tree."""


class _Marker(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    pause_resume: str
    user_state: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    user_state_base64: str | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Saved:
    """What a step has saved.

    Attributes:
        state: The user's; None where nothing was saved.
        pause: The name of the pause that was begun after that; None where none was.
    """

    state: bytes | None = None
    pause: str | None = None

    @property
    def kind(self) -> str:
        """The value of the header that tells a state which looks like a marker from a marker."""
        return STATE if self.pause is None else PAUSE

    def encode(self) -> bytes:
        """The bytes as they are stored."""
        if self.pause is None:
            return self.state or b""
        if self.state is None:
            return msgspec.json.encode(_Marker(self.pause))
        if _is_json(self.state):
            marker = _Marker(self.pause, user_state=msgspec.Raw(self.state))
            encoded = msgspec.json.encode(marker)
            if _marker(encoded) == self:
                return encoded
        text = base64.b64encode(self.state).decode()
        return msgspec.json.encode(_Marker(self.pause, user_state_base64=text))

    @classmethod
    def decode(cls, value: bytes, headers: Mapping[str, str]) -> Saved:
        """Read an entry, whoever wrote it.

        Without our header, an object with the text ``pause_resume`` is a marker where it has
        nothing beside it but what we put there; anything else is a state.
        """
        if headers.get(KIND_HEADER) == STATE:
            return cls(value)
        return _marker(value) or cls(value)


NOTHING = Saved()
"""Nothing was saved, or it was deleted."""


def _marker(value: bytes) -> Saved | None:
    try:
        marker = msgspec.json.decode(value, type=_Marker)
        if not isinstance(marker.user_state, msgspec.UnsetType):
            return Saved(bytes(marker.user_state), marker.pause_resume)
        if not isinstance(marker.user_state_base64, msgspec.UnsetType):
            state = base64.b64decode(marker.user_state_base64, validate=True)
            return Saved(state, marker.pause_resume)
    except (*NOT_JSON, binascii.Error):
        return None
    return Saved(None, marker.pause_resume)


def _is_json(state: bytes) -> bool:
    """Whether a state is JSON to everybody; bytes can be anything."""
    try:
        msgspec.json.decode(state)
    except NOT_JSON:
        return False
    return True
