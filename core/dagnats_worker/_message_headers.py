"""Headers that plugins have put into a message: what cannot be sent is left out, and told of."""

from __future__ import annotations

import logging
import re
from typing import Any

from dagnats_worker._hook_calls import Implementations
from dagnats_worker._protocol import TRACE_HEADERS

logger = logging.getLogger("dagnats_worker.plugins")

_name = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_breaks = re.compile(r"[\r\n\0]")

_usual_names = frozenset(TRACE_HEADERS)
"""Those that most plugins put in, which need no look at them each time."""


def sendable(headers: Any, implementations: Implementations) -> dict[str, str]:
    """The headers that the server would read as they are meant.

    Args:
        headers: What a message has after ``pre_publish``.
        implementations: Of that hook, for the message.
    """
    if not isinstance(headers, dict):
        _tell(implementations, f"headers is a dict, got {headers!r:.200}")
        return {}
    for name, value in headers.items():
        usual = name in _usual_names and isinstance(value, str)
        if not (_breaks.search(value) is None if usual else _fits(name, value)):
            break
    else:
        return headers
    wrong = [name for name, value in headers.items() if not _fits(name, value)]
    for name in wrong:
        _tell(implementations, f"header {name!r:.200} = {headers[name]!r:.200} cannot be sent")
    return {name: value for name, value in headers.items() if name not in wrong}


def _fits(name: Any, value: Any) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and (name in _usual_names or _name.fullmatch(name) is not None)
        and _breaks.search(value) is None
    )


def _tell(implementations: Implementations, what: str) -> None:
    plugins = " or ".join(repr(one.member.name) for one in implementations)
    logger.error("plugin %s, pre_publish: %s; it is left out", plugins, what)
