"""Decoding JSON as leniently as Go does, without paying for it where nothing needs it."""

from __future__ import annotations

import re
from typing import Annotated, Generic, TypeVar

import msgspec

from dagnats_worker.errors import DecodeError

T = TypeVar("T", bound=msgspec.Struct)
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

# One escape sequence at a time, so that the backslash of \\ never begins another. A surrogate pair
# is one sequence; group 1 is half of a pair.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_read_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_write = msgspec.json.Encoder().encode


class GoDecoder(Generic[T]):
    """Reads what Go writes at full speed, and what that refuses once more, as Go would.

    Go skips unknown keys, matches keys in any case, lets null stand for the zero value, and takes
    half a surrogate pair for U+FFFD. The struct forbids unknown fields, so that a key in another
    case is noticed.

    Args:
        message: What to decode.
        what: What a message is called in errors.
        raw: The field that keeps null, because it is JSON itself.
        zero: Required text fields that may be missing, and are empty then.
    """

    def __init__(
        self, message: type[T], what: str, *, raw: str = "", zero: tuple[str, ...] = ()
    ) -> None:
        self._strict = msgspec.json.Decoder(message).decode
        self._fields = frozenset(message.__struct_fields__)
        self._what = what
        self._raw = raw
        self._zero = {name: msgspec.Raw(b'""') for name in zero}

    def decode(self, data: bytes) -> T:
        """Read one message.

        Raises:
            DecodeError: Not JSON, not UTF-8, or a field of another type; the text names it.
        """
        try:
            message = self._strict(data)
            if not data.isascii():
                data.decode()  # msgspec does not look inside the strings that it skips
        except (ValueError, RecursionError):
            return self._lenient(data)
        return message

    def _lenient(self, data: bytes) -> T:
        members = dict(self._zero)
        try:
            data.decode()
            for key, value in _read_members(_ESCAPE.sub(_whole, data)).items():
                name = key.casefold()
                if name in self._fields and (name == self._raw or bytes(value) != b"null"):
                    members[name] = value
            return self._strict(_write(members))
        except (ValueError, RecursionError) as error:
            raise DecodeError(f"{self._what}: {error}") from error


def _whole(escape: re.Match[bytes]) -> bytes:
    return b"\\ufffd" if escape.group(1) else escape.group()
