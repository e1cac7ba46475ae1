"""A handler that can be imported in the child of a process handler."""

from __future__ import annotations

from typing import Any


def echo(value: Any = None) -> Any:
    """Its input."""
    return value
