"""JetStream's API by hand: nats-py lacks priority groups, and fields of some answers.

Everything goes over nats-py's public client: ``worker.nats`` in a plugin, ``connect()`` in a
command, or the user's own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dagnats_worker.errors import TransportError

if TYPE_CHECKING:
    from nats.aio.client import Client as NatsClient

PREFIX = "$JS.API"
REQUEST_TIMEOUT_S = 5.0
PAGE_MAX = 1_000
"""Pages of a listing that are read; a server's page has 256 entries or more."""

STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
CONFIGS_DIFFER = 10058


class ApiError(TransportError):
    """JetStream refused a request.

    Attributes:
        code: Its ``err_code``.
        description: In the server's words.
    """

    def __init__(self, what: str, code: int, description: str) -> None:
        super().__init__(f"{what}: {description} (error {code})")
        self.code = code
        self.description = description


async def request(
    nc: NatsClient, subject: str, data: bytes, headers: dict[str, str] | None = None
) -> bytes:
    """Ask, and wait for the answer.

    Raises:
        TransportError: Nobody answered in time.
    """
    from nats.errors import Error  # noqa: PLC0415 - `--help` of a command needs no nats-py

    task = asyncio.current_task()
    cancels = task.cancelling() if task is not None else 0
    try:
        answer = await nc.request(subject, data, timeout=REQUEST_TIMEOUT_S, headers=headers)
    except (Error, OSError) as error:
        why = str(error) or type(error).__name__
        raise TransportError(
            f"{subject}: no answer from JetStream ({why}); "
            f"is it enabled, and may this user publish to {subject.partition('.')[0]}.>?"
        ) from error
    if task is not None and task.cancelling() > cancels:
        # nats-py uses `wait_for`, and that of Python 3.11 forgets a cancel that meets the answer.
        raise asyncio.CancelledError
    return answer.data


class JetStreamApi:
    """Asks JetStream's API.

    Args:
        nc: A connected nats-py client.
    """

    def __init__(self, nc: NatsClient) -> None:
        self.nc = nc

    async def ask(self, subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One request; ``subject`` without the prefix, as in ``STREAM.INFO.orders``.

        Raises:
            ApiError: The server refused it.
            TransportError: Nobody answered in time.
        """
        data = b"" if body is None else json.dumps(body).encode()
        told: dict[str, Any] = json.loads(await request(self.nc, f"{PREFIX}.{subject}", data))
        if refused := told.get("error"):
            code = refused.get("err_code", 0)
            raise ApiError(subject, code, refused.get("description", "refused"))
        return told

    async def found(
        self, subject: str, *absent: int, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """The same; None where the server answers with one of these codes."""
        try:
            return await self.ask(subject, body)
        except ApiError as error:
            if error.code in absent:
                return None
            raise

    async def stream(self, name: str) -> dict[str, Any] | None:
        """Configuration and state of a stream; None where there is none."""
        return await self.found(f"STREAM.INFO.{name}", STREAM_NOT_FOUND)

    async def consumer(self, stream: str, name: str) -> dict[str, Any] | None:
        """Configuration and state of a consumer; None where there is none, or no such stream."""
        return await self.found(
            f"CONSUMER.INFO.{stream}.{name}", CONSUMER_NOT_FOUND, STREAM_NOT_FOUND
        )

    async def consumers(self, stream: str) -> list[dict[str, Any]]:
        """All consumers of a stream; none where there is no such stream."""
        found: list[dict[str, Any]] = []
        for _ in range(PAGE_MAX):
            page = await self.found(
                f"CONSUMER.LIST.{stream}", STREAM_NOT_FOUND, body={"offset": len(found)}
            )
            if page is None or not page["consumers"]:
                break
            found += page["consumers"]
            if len(found) >= page["total"]:
                break
        return found

    async def subjects(self, stream: str, matching: str) -> dict[str, int]:
        """The subjects of a stream that match, each with its number of messages."""
        found: dict[str, int] = {}
        for _ in range(PAGE_MAX):
            body = {"subjects_filter": matching, "offset": len(found)}
            page = await self.found(f"STREAM.INFO.{stream}", STREAM_NOT_FOUND, body=body)
            subjects = page["state"].get("subjects") if page is not None else None
            if page is None or not subjects:
                break
            found |= subjects
            if len(found) >= page.get("total", 0):
                break
        return found

    async def delete_consumer(self, stream: str, name: str) -> bool:
        """Delete a consumer; false where there was none."""
        answer = await self.found(
            f"CONSUMER.DELETE.{stream}.{name}", CONSUMER_NOT_FOUND, STREAM_NOT_FOUND
        )
        return answer is not None

    async def level(self) -> int:
        """The API level of the server; 0 where it does not say."""
        info = await self.ask("INFO")
        return int(info.get("api", {}).get("level", 0))
