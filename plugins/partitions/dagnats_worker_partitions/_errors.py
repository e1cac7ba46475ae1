"""What can be wrong with a consumer group.

::

    DagnatsError
    └── GroupError                 a group cannot do what was asked of it
        ├── GroupConfigError       a record, or what is to become one, is not valid
        ├── GroupNotFoundError     there is no such group
        ├── GroupExistsError       there is one already, with another configuration
        ├── GroupOverlapError      somebody else takes the same tasks
        └── ServerTooOldError      this server loses messages of a limited group
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from dagnats_worker.errors import DagnatsError, StartError

P = ParamSpec("P")
T = TypeVar("T")


class GroupError(DagnatsError):
    """A consumer group cannot do what was asked of it; the message names the remedy."""


class GroupConfigError(GroupError):
    """The configuration of a group is not valid; the message names what is wrong with it."""


class GroupNotFoundError(GroupError):
    """There is no such group, or no such stream."""


class GroupExistsError(GroupError):
    """The group is there already, and has another configuration."""


class GroupOverlapError(GroupError):
    """A consumer or another group takes the same messages, so each would be handled twice."""


class ServerTooOldError(GroupError):
    """The server would lose messages of a group."""


def or_no_start(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Make each error of an async function one that keeps a worker from starting.

    A plugin that is not required is skipped when it fails, and its task types would be served from
    the shared queue: in no order, and beside the members of their group.
    """

    @wraps(function)
    async def guarded(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return await function(*arguments, **options)
        except StartError:
            raise
        except DagnatsError as error:
            raise StartError(str(error)) from error

    return guarded
