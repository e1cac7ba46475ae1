"""Reading streams back: the events of a run, and the newest message of many subjects at once."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from nats.aio.msg import Msg

from dagnats_worker._jetstream.replies import Replies
from dagnats_worker._protocol import HEADER_MSG_ID, history_subject, time_text
from dagnats_worker._transport import StoredEvent
from dagnats_worker.errors import TransportError

HISTORY = "WORKFLOW_HISTORY"
BATCH_MAX = 1000
NO_MESSAGE = 10037
STREAM_NOT_FOUND = 10059
NO_RESPONDERS = "503"


class Streams:
    """Reads streams by direct get where the stream allows it, else message by message."""

    def __init__(self, replies: Replies) -> None:
        self._replies = replies
        self._indirect: set[str] = set()

    async def exists(self, stream: str) -> bool:
        answer = await self._replies.api(f"STREAM.INFO.{stream}")
        error = answer.get("error")
        if error and error.get("err_code") != STREAM_NOT_FOUND:
            raise TransportError(f"stream {stream}: {error.get('description')}")
        return not error

    async def history(
        self, run_id: str, *, since_ns: int, after_sequence: int, limit: int
    ) -> list[StoredEvent]:
        """The events of a run since a time or after a sequence, oldest first, at most ``limit``."""
        subject = history_subject(run_id)
        found: list[StoredEvent] = []
        start: dict[str, Any]
        start = {"seq": after_sequence + 1} if after_sequence or not since_ns else {}
        if not start:
            start = {"start_time": time_text(since_ns)}
        while len(found) < limit:
            batch = min(BATCH_MAX, limit - len(found))
            page, more = await self._page(subject, start, batch)
            found += page
            if not page or not more:
                break
            start = {"seq": page[-1].sequence + 1}
        return found

    async def _page(
        self, subject: str, start: dict[str, Any], batch: int
    ) -> tuple[list[StoredEvent], bool]:
        if HISTORY in self._indirect:
            event = await self._one(HISTORY, {"next_by_subj": subject, **start})
            return ([event[1]], True) if event else ([], False)
        messages = await self._direct(HISTORY, {"next_by_subj": subject, "batch": batch, **start})
        if messages is None:
            return await self._page(subject, start, batch)
        events = [
            StoredEvent(
                int(_header(message, "Nats-Sequence")),
                message.data,
                _header(message, HEADER_MSG_ID),
            )
            for message in messages[:-1]
        ]
        return events, int(_header(messages[-1], "Nats-Num-Pending") or 0) > 0

    async def newest(self, stream: str, subjects: Sequence[str]) -> Mapping[str, bytes]:
        """The newest message of each subject that has one."""
        if stream not in self._indirect:
            messages = await self._direct(stream, {"multi_last": list(subjects)})
            if messages is not None:
                return {_header(message, "Nats-Subject"): message.data for message in messages[:-1]}
        found: dict[str, bytes] = {}
        for subject in subjects:
            event = await self._one(stream, {"last_by_subj": subject})
            if event is not None:
                found[event[0]] = event[1].data
        return found

    async def _direct(self, stream: str, body: dict[str, Any]) -> list[Msg] | None:
        """None, and remembered, where the stream does not allow direct gets."""
        messages = await self._replies.request_many(
            f"$JS.API.DIRECT.GET.{stream}", json.dumps(body).encode()
        )
        status = _header(messages[-1], "Status")
        if status == NO_RESPONDERS:
            self._indirect.add(stream)
            return None
        if status not in ("204", "404"):
            reason = _header(messages[-1], "Description")
            raise TransportError(f"reading {stream}: {status} {reason}")
        return messages

    async def _one(self, stream: str, body: dict[str, Any]) -> tuple[str, StoredEvent] | None:
        answer = await self._replies.api(f"STREAM.MSG.GET.{stream}", body)
        error = answer.get("error")
        if error and error.get("err_code") in (NO_MESSAGE, STREAM_NOT_FOUND):
            return None
        if error:
            raise TransportError(f"reading {stream}: {error.get('description')}")
        message = answer["message"]
        headers = base64.b64decode(message.get("hdrs", "")).decode(errors="replace")
        event = StoredEvent(
            int(message["seq"]),
            base64.b64decode(message.get("data", "")),
            _raw_header(headers, HEADER_MSG_ID),
        )
        return str(message["subject"]), event


def _header(message: Msg, name: str) -> str:
    return (message.headers or {}).get(name, "")


def _raw_header(block: str, name: str) -> str:
    prefix = f"{name}:"
    for line in block.split("\r\n"):
        if line.startswith(prefix):
            return line[len(prefix) :].strip()
    return ""
