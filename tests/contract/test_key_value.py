"""What a plugin may rely on when it writes to buckets, on either server.

Method: the ``Transport`` itself, and what the bucket holds afterwards. Real: the nats-server of the
``server`` variant. Fake: the in-memory server of the other.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from seams import Seam
from support import unique

from dagnats_worker.errors import KeyValueError


async def test_bucket_of_a_plugins_own_is_created_once(seam: Seam) -> None:
    transport = await seam.connect()
    bucket = unique("own")
    await transport.create_key_value(bucket, timedelta(0))
    kept = transport.key_value(bucket)
    await kept.put("key", b"value")
    await transport.create_key_value(bucket, timedelta(hours=1))
    entry = await kept.get("key")
    assert entry is not None
    assert entry.value == b"value"


async def test_key_of_a_bucket_with_a_ttl_goes_by_itself(seam: Seam) -> None:
    transport = await seam.connect()
    bucket = unique("own")
    await transport.create_key_value(bucket, timedelta(milliseconds=200))
    kept = transport.key_value(bucket)
    await kept.put("key", b"value")

    async def gone() -> bool:
        return await kept.get("key") is None

    await seam.eventually(gone, "the key is gone")


async def test_key_that_was_deleted_can_be_created_again_by_one_writer(seam: Seam) -> None:
    transport = await seam.connect()
    bucket, key = transport.key_value("checkpoints"), unique()
    await bucket.put(key, b"first", expected_revision=0)
    await bucket.delete(key)
    await bucket.put(key, b"second", expected_revision=0)
    with pytest.raises(KeyValueError) as refused:
        await bucket.put(key, b"third", expected_revision=0)
    assert refused.value.conflict
    entry = await bucket.get(key)
    assert entry is not None
    assert entry.value == b"second"
