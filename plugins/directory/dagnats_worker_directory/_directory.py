"""The directory: listing a worker, who is listed, and following what changes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from dagnats_worker.hookspecs import KeyValue
from dagnats_worker_directory._bucket import Bucket, KeyValueBucket
from dagnats_worker_directory._entries import Entries
from dagnats_worker_directory._following import Change, Following
from dagnats_worker_directory._registration import WorkerRegistration, now_text

if TYPE_CHECKING:
    from nats.js import JetStreamContext
    from typing_extensions import TypeIs

STALE_AFTER = timedelta(seconds=60)


class Directory:
    """The workers of a fleet, as they list themselves in the bucket ``workers``.

    Example:
        ```python
        directory = Directory.open(client.jetstream())
        for worker in await directory.list():
            print(worker.worker_id, worker.task_types)
        ```
    """

    def __init__(self, bucket: Bucket, *, stale_after: timedelta = STALE_AFTER) -> None:
        if stale_after <= timedelta(0):
            raise ValueError(f"stale_after is longer than zero, got {stale_after!r}")
        self._bucket = bucket
        self._entries = Entries(bucket, stale_after)

    @classmethod
    def open(
        cls, js: JetStreamContext | KeyValue, *, stale_after: timedelta = STALE_AFTER
    ) -> Directory:
        """Make a directory; nothing is sent yet.

        Args:
            js: JetStream of nats-py, or the bucket that ``worker.kv("workers")`` returns.
            stale_after: Who has not written for so long is not listed. The age of an entry is that
                of its message on the server, so the clocks of workers do not matter; that of the
                caller should agree with the server's to within a few seconds.
        """
        return cls(_bucket_of(js), stale_after=stale_after)

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Keys of entries that cannot be read and are left out, each with the reason."""
        return dict(self._entries.unreadable)

    async def register(self, registration: WorkerRegistration) -> None:
        """List a worker, or keep it listed; ``last_seen`` is set to now.

        An entry lasts for as long as the bucket keeps it, a minute, so this is called again and
        again. A worker with the plugin does so by itself.

        Raises:
            KeyValueError: There is no bucket, it cannot be written to, or the id is not a key.
        """
        entry = replace(registration, last_seen=now_text())
        await self._bucket.put(registration.worker_id, entry.encode())

    async def deregister(self, worker_id: str) -> None:
        """Take a worker off the list; one that is not on it is no error.

        Raises:
            KeyValueError: There is no bucket, or it cannot be written to.
        """
        await self._bucket.delete(worker_id)

    async def list(self) -> list[WorkerRegistration]:
        """The workers that are listed now, by their ids.

        Raises:
            KeyValueError: There is no bucket, or it cannot be read.
        """
        found: dict[str, WorkerRegistration] = {}
        for entry in await self._entries.all():
            worker = self._entries.read(entry)
            if worker is not None and self._entries.lasts_s(entry) > 0:
                found[entry.key] = worker
        return [found[key] for key in sorted(found)]

    def watch(self, *, heartbeats: bool = False) -> AsyncGenerator[Change, None]:
        """Everybody who is listed, as ``Joined``, and then what changes.

        It goes on through reconnects, restarts of the server and a bucket that is made anew. What
        it has missed meanwhile it tells afterwards; while there is no server it tells nothing.

        Args:
            heartbeats: Tell also of entries that were written again and say nothing new.

        Raises:
            KeyValueError: At the beginning only: there is no bucket, or it cannot be read.
        """
        return Following(self._entries, heartbeats=heartbeats).changes()


def _bucket_of(js: JetStreamContext | KeyValue) -> Bucket:
    if not _is_jetstream(js):
        return KeyValueBucket(js)
    # Known only with nats-py, which `--help` of the commands can do without.
    from dagnats_worker_directory._jetstream import JetStreamBucket  # noqa: PLC0415 - see above

    return JetStreamBucket(js)


def _is_jetstream(js: JetStreamContext | KeyValue) -> TypeIs[JetStreamContext]:
    return hasattr(js, "key_value")
