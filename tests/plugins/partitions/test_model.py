"""A model of groups: whatever members do, and in whichever order, the rules of a group hold.

Method: a state machine (hypothesis) changes a group through the record store, as several workers
and as members in Go do, and compares it with a plain model; members follow the record one small
step at a time. Real: records, distribution, compare-and-set. Fake: the server is the in-memory one,
and a dictionary stands for the consumers of the group's stream; it refuses overlaps as the server
does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dagnats_worker.testing import MemoryServer, MemoryTransport
from dagnats_worker_partitions._config import GroupConfig, Mapping, PartitionFilter, decode_config
from dagnats_worker_partitions._errors import GroupError, GroupNotFoundError
from dagnats_worker_partitions._names import ELASTIC_BUCKET, key
from dagnats_worker_partitions._record import GroupRecords
from dagnats_worker_partitions._rules import assignment, effective_members, filters_of

T = TypeVar("T")

STREAM, GROUP = "TASK_QUEUES", "workers-a"
FILTER = PartitionFilter("task.a.>")
NAMES = ("w1", "w2", "w3", "w10", "W1", "x")

some_names = st.lists(st.sampled_from(NAMES), max_size=3)


class Groups(RuleBasedStateMachine):
    """One group, its record, and the consumers of its members."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        server = MemoryServer()
        server.add_bucket(ELASTIC_BUCKET)
        buckets = [MemoryTransport(server).key_value(ELASTIC_BUCKET) for _ in range(3)]
        self.kv = buckets[0]
        self.stores = [GroupRecords(bucket) for bucket in buckets]
        self.records = self.stores[0]
        self.partitions = 1
        self.exists = False
        self.unknown: dict[str, Any] = {}
        self.members: set[str] = set()
        self.mapped: tuple[Mapping, ...] = ()
        self.consumers: dict[str, list[str]] = {}
        self.alive: set[str] = set()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        try:
            self.check_that_everybody_arrives()
        finally:
            self.loop.close()

    # ------------------------------------------------------------------------- what others do

    @initialize(partitions=st.integers(1, 9))
    def choose(self, partitions: int) -> None:
        self.partitions = partitions

    @precondition(lambda self: not self.exists)
    @rule()
    def create(self) -> None:
        config = GroupConfig(self.partitions, (FILTER,), 1024)
        self.run(self.records.write_new(STREAM, GROUP, config))
        self.exists, self.unknown = True, {}
        self.members, self.mapped = set(), ()

    @precondition(lambda self: self.exists)
    @rule()
    def delete(self) -> None:
        self.run(self.records.delete(STREAM, GROUP))
        self.exists = False
        self.members, self.mapped = set(), ()

    @precondition(lambda self: self.exists)
    @rule(several=st.lists(some_names, min_size=1, max_size=3))
    def add(self, several: list[list[str]]) -> None:
        """Several workers at once, each through its own connection."""
        works = [
            store.add_members(STREAM, GROUP, names)
            for store, names in zip(self.stores, several, strict=False)
        ]
        if self.mapped:
            for one in works:
                with pytest.raises(GroupError):
                    self.run(one)
            return
        self.run(self.all_of(works))
        self.members |= {name for names in several for name in names}

    @rule(several=st.lists(some_names, min_size=1, max_size=3))
    def drop(self, several: list[list[str]]) -> None:
        works = [
            store.drop_members(STREAM, GROUP, names)
            for store, names in zip(self.stores, several, strict=False)
        ]
        if self.mapped:
            for one in works:
                with pytest.raises(GroupError):
                    self.run(one)
            return
        found = self.run(self.all_of(works))
        assert all((one is not None) is self.exists for one in found)
        self.members -= {name for names in several for name in names}

    async def all_of(self, works: list[Coroutine[Any, Any, Any]]) -> list[Any]:
        return await asyncio.gather(*works)

    @precondition(lambda self: not self.exists)
    @rule(names=some_names)
    def add_to_nothing(self, names: list[str]) -> None:
        with pytest.raises(GroupNotFoundError):
            self.run(self.records.add_members(STREAM, GROUP, names))

    @precondition(lambda self: self.exists)
    @rule(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    def map_by_hand(self, names: list[str]) -> None:
        names = names[: self.partitions]
        numbers = range(self.partitions)
        mapped = tuple(
            Mapping(name, tuple(one for one in numbers if one % len(names) == at))
            for at, name in enumerate(names)
        )
        self.run(self.records.set_mappings(STREAM, GROUP, mapped))
        self.members, self.mapped = set(), mapped

    @precondition(lambda self: self.exists)
    @rule()
    def unmap(self) -> None:
        self.run(self.records.delete_mappings(STREAM, GROUP))
        self.mapped = ()

    @precondition(lambda self: self.exists)
    @rule(value=st.sampled_from([None, [], {"a": 1.5}, "\u2028<&>"]))
    def write_as_somebody_newer(self, value: Any) -> None:
        """Somebody writes a field that we do not know."""
        record = self.run(self.records.read(STREAM, GROUP))
        assert record is not None
        self.unknown["later"] = value
        data = json.dumps({**json.loads(record.data), **self.unknown}).encode()
        self.run(self.kv.put(key(STREAM, GROUP), data))

    @precondition(lambda self: self.exists)
    @rule(members=some_names)
    def write_as_a_creator_in_go(self, members: list[str]) -> None:
        """Go creates without looking: whoever was in the list is out."""
        config = {"max_members": self.partitions, "max_buffered_msg": 1024, "members": members}
        filters = [{"filter": FILTER.filter, "partitioning_wildcards": None}]
        data = json.dumps({**config, "partitioning_filters": filters}).encode()
        self.run(self.kv.put(key(STREAM, GROUP), data))
        self.members, self.mapped, self.unknown = set(members), (), {}

    # ------------------------------------------------------------------------ what members do

    @rule(name=st.sampled_from(NAMES))
    def start(self, name: str) -> None:
        self.alive.add(name)

    @rule(name=st.sampled_from(NAMES))
    def crash(self, name: str) -> None:
        """Its name stays in the list; its consumer is gone after a while."""
        self.alive.discard(name)
        self.consumers.pop(name, None)

    @rule(name=st.sampled_from(NAMES))
    def follow(self, name: str) -> None:
        if name in self.alive:
            self.step(name)

    def step(self, name: str) -> None:
        """A member reads the record, and lets go or joins."""
        record = self.run(self.records.read(STREAM, GROUP))
        wanted = filters_of(record.config, name) if record is not None else []
        if self.consumers.get(name) == wanted:
            return
        self.consumers.pop(name, None)
        taken = {partition_of(one) for held in self.consumers.values() for one in held}
        if wanted and not taken & {partition_of(one) for one in wanted}:
            self.consumers[name] = wanted

    # ------------------------------------------------------------------------- what holds

    @invariant()
    def record_says_what_was_asked_for(self) -> None:
        record = self.run(self.records.read(STREAM, GROUP))
        assert (record is not None) is self.exists
        if record is None:
            return
        assert set(record.config.members) == self.members
        assert record.config.mappings == self.mapped
        assert record.config.same_group(GroupConfig(self.partitions, (FILTER,), 1024))
        found = json.loads(record.data)
        assert found["partitioning_filters"][0]["partitioning_wildcards"] is None
        assert {name: found.get(name) for name in self.unknown} == self.unknown
        assert decode_config(record.data) == record.config

    @invariant()
    def each_partition_has_one_owner(self) -> None:
        record = self.run(self.records.read(STREAM, GROUP))
        if record is None:
            return
        owned = assignment(record.config)
        nobody = not self.members and not self.mapped
        assert all((owner is None) is nobody for owner in owned)
        covered = [partition_of(one) for name in NAMES for one in filters_of(record.config, name)]
        assert sorted(covered) == ([] if nobody else list(range(self.partitions)))
        assert set(effective_members(record.config)) == set(owned) - {None}

    @invariant()
    def no_partition_is_read_twice(self) -> None:
        held = [partition_of(one) for filters in self.consumers.values() for one in filters]
        assert len(held) == len(set(held))

    def check_that_everybody_arrives(self) -> None:
        """Once the record rests, two rounds are enough: one to let go, one to join."""
        for _ in range(2):
            for name in sorted(self.alive):
                self.step(name)
        record = self.run(self.records.read(STREAM, GROUP))
        owned = assignment(record.config) if record is not None else ()
        held = {partition_of(one) for filters in self.consumers.values() for one in filters}
        assert held == {number for number, owner in enumerate(owned) if owner in self.alive}


def partition_of(filter_: str) -> int:
    return int(filter_.partition(".")[0])


TestGroups = Groups.TestCase
TestGroups.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
