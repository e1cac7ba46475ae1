"""A small HTTP server for a few pages: GET and HEAD, one answer per connection, all of it bounded.

It is for probes and scrapers: what they send fits in one packet, and a connection is worth nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from dagnats_worker._routes import Response
from dagnats_worker.errors import StartError

logger = logging.getLogger("dagnats_worker.health")

HEAD_BYTES_MAX = 16 * 1024
HEAD_WAIT_S = 5.0
ANSWER_WAIT_S = 10.0
SEND_WAIT_S = 10.0
CONNECTIONS_MAX = 64
BACKLOG_MAX = 64
METHODS = ("GET", "HEAD")
REQUEST_LINE_WORDS = 3
JSON_TYPE = "application/json"

Answer = Callable[[str], Awaitable[Response]]


class AddressError(StartError):
    """The address cannot be listened to."""


class _BadRequest(Exception):  # noqa: N818 - an answer rather than an error
    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def json_response(status: int, body: Mapping[str, Any]) -> Response:
    """An answer for people and scripts."""
    return Response(status, JSON_TYPE, json.dumps(body, indent=2).encode() + b"\n")


def not_found(path: str, paths: list[str]) -> Response:
    """The answer for a page that does not exist."""
    return json_response(404, {"error": f"no page {path}; there are {', '.join(paths)}"})


def listen(address: tuple[str, int]) -> socket.socket:
    """Take the port.

    Raises:
        AddressError: It is taken already, or it is not an address of this machine.
    """
    host, port = address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, resolved = found[0]
        return socket.create_server(resolved[:2], family=family, backlog=BACKLOG_MAX)
    except OSError as error:
        raise AddressError(
            f"cannot serve health on {host}:{port}: {error.strerror or error}; give another "
            "HOST:PORT, or port 0 for any that is free"
        ) from error


def url_of(listener: socket.socket) -> str:
    """Where a socket listens, as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class HttpServer:
    """Answers on a socket that listens already.

    Args:
        answer: Called with the path of each request; what it raises is answered with 500.
    """

    def __init__(self, listener: socket.socket, answer: Answer) -> None:
        self._listener = listener
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._connected, sock=self._listener, limit=HEAD_BYTES_MAX
        )

    async def close(self) -> None:
        """Stop listening, and drop who is connected."""
        if self._server is None:
            return
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            method, response = await self._response(reader)
            async with asyncio.timeout(SEND_WAIT_S):
                writer.write(_encoded(response, with_body=method != "HEAD"))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            logger.debug("a client of the health port has gone, or is too slow")
        except Exception:  # one request never ends the server
            logger.exception("answering on the health port")
        finally:
            with contextlib.suppress(OSError):
                writer.transport.abort()

    async def _response(self, reader: asyncio.StreamReader) -> tuple[str, Response]:
        method = ""
        try:
            async with asyncio.timeout(HEAD_WAIT_S):
                method, path = await _request(reader)
        except _BadRequest as bad:
            return method, json_response(bad.status, {"error": str(bad)})
        try:
            async with asyncio.timeout(ANSWER_WAIT_S):
                return method, await self._answer(path)
        except TimeoutError:
            return method, json_response(503, {"error": f"{path} takes too long"})
        except Exception:  # one request never ends the server
            logger.exception("answering %s", path)
            return method, json_response(500, {"error": f"{path} failed; the log says why"})


async def _request(reader: asyncio.StreamReader) -> tuple[str, str]:
    """The method and the path."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        too_large = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        raise _BadRequest(too_large, f"more than {HEAD_BYTES_MAX} bytes of headers") from None
    words = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
    if len(words) != REQUEST_LINE_WORDS or not words[2].startswith("HTTP/1."):
        raise _BadRequest(HTTPStatus.BAD_REQUEST, "this is not HTTP/1.1")
    method, target, _ = words
    if method not in METHODS:
        raise _BadRequest(HTTPStatus.METHOD_NOT_ALLOWED, f"there are {' and '.join(METHODS)} only")
    try:
        return method, urlsplit(target).path
    except ValueError:
        raise _BadRequest(HTTPStatus.BAD_REQUEST, "the path cannot be read") from None


def _encoded(response: Response, *, with_body: bool) -> bytes:
    try:
        phrase = HTTPStatus(response.status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [
        f"HTTP/1.1 {response.status} {phrase}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    if response.status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append(f"Allow: {', '.join(METHODS)}")
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head + response.body if with_body else head
