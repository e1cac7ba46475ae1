"""A bucket over nats-py's client, for those who have no worker: commands, and users of the library.

Inside a worker ``worker.kv(bucket)`` is the same.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from dagnats_worker.errors import KeyValueError, TransportError
from dagnats_worker.hookspecs import Entry
from dagnats_worker_partitions._api import (
    STREAM_NOT_FOUND,
    ApiError,
    JetStreamApi,
    request,
)

NO_MESSAGE = 10037
WRONG_LAST_SEQUENCE = (10071, 10164)
EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
OPERATION = "KV-Operation"
MARKERS = ("DEL", "PURGE")


class Bucket:
    """A bucket, as the protocol ``RecordBucket`` describes it.

    Args:
        api: The API of the account that has the bucket.
    """

    def __init__(self, api: JetStreamApi, name: str) -> None:
        self.name = name
        self._api = api

    async def get(self, key: str) -> Entry | None:
        entry = await self._newest(key)
        return None if entry is None or entry.deleted else entry

    async def put(self, key: str, value: bytes, *, expected_revision: int | None = None) -> int:
        return await self._put(key, value, {}, expected_revision)

    async def delete(self, key: str, *, expected_revision: int | None = None) -> None:
        await self._put(key, b"", {OPERATION: "DEL"}, expected_revision)

    async def keys(self) -> list[str]:
        subjects = await self._api.subjects(f"KV_{self.name}", self._subject(">"))
        found = [await self.get(one.removeprefix(self._subject(""))) for one in sorted(subjects)]
        return [entry.key for entry in found if entry is not None]

    async def watch(self, key: str) -> AsyncIterator[Entry]:
        bucket = await self._api.nc.jetstream().key_value(self.name)
        watcher = await bucket.watch(key)
        try:
            async for change in watcher:
                if change is None:  # the entries of before are all seen
                    continue
                deleted = change.operation in MARKERS
                yield Entry(
                    change.key, change.value or b"", change.revision or 0, {}, deleted=deleted
                )
        finally:
            await watcher.stop()  # type: ignore[no-untyped-call]  # nats-py
        raise KeyValueError(f"bucket {self.name!r}: the watch of {key!r} ended")

    def _subject(self, key: str) -> str:
        return f"$KV.{self.name}.{key}"

    async def _put(
        self, key: str, value: bytes, headers: Mapping[str, str], expected_revision: int | None
    ) -> int:
        sent = dict(headers)
        if expected_revision == 0 and (newest := await self._newest(key)) and newest.deleted:
            expected_revision = newest.revision  # a deleted key has the revision of its marker
        if expected_revision is not None:
            sent[EXPECTED_SEQUENCE] = str(expected_revision)
        stored = await self._publish(key, value, sent)
        if refused := stored.get("error"):
            conflict = refused.get("err_code") in WRONG_LAST_SEQUENCE
            raise KeyValueError(
                f"bucket {self.name!r}: {key!r}: {refused.get('description')}", conflict=conflict
            )
        return int(stored["seq"])

    async def _publish(self, key: str, value: bytes, headers: dict[str, str]) -> dict[str, Any]:
        try:
            answer = await request(self._api.nc, self._subject(key), value, headers or None)
        except TransportError as error:
            raise KeyValueError(f"bucket {self.name!r}: {key!r} was not stored: {error}") from error
        stored: dict[str, Any] = json.loads(answer)
        return stored

    async def _newest(self, key: str) -> Entry | None:
        subject = f"STREAM.MSG.GET.KV_{self.name}"
        try:
            answer = await self._api.ask(subject, {"last_by_subj": self._subject(key)})
        except ApiError as error:
            if error.code in (NO_MESSAGE, STREAM_NOT_FOUND):
                return None  # nobody has made a group yet
            raise KeyValueError(f"bucket {self.name!r}: {error}") from error
        message = answer["message"]
        headers = _headers(base64.b64decode(message.get("hdrs", "")).decode(errors="replace"))
        return Entry(
            key,
            base64.b64decode(message.get("data", "")),
            int(message["seq"]),
            headers,
            deleted=headers.get(OPERATION) in MARKERS,
        )


def _headers(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.split("\r\n")[1:] if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}
