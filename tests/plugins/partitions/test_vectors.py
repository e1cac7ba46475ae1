"""The golden vectors of partitioned groups: names, distribution, records, requests.

Method: the vectors of ``tests/vectors``, which were taken from Go members and from the server, are
compared with what our own functions make. Nothing here does I/O, and nothing is fake.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dagnats_worker_partitions._config import (
    GroupConfig,
    Mapping,
    PartitionFilter,
    decode_config,
    encode_new,
    with_members,
)
from dagnats_worker_partitions._errors import GroupConfigError, GroupError
from dagnats_worker_partitions._names import (
    check_task_type,
    durable,
    group_name,
    group_stream,
    key,
    task_filter,
)
from dagnats_worker_partitions._rules import (
    filters_of,
    partition_of,
    transform_destination,
    transforms,
)
from dagnats_worker_partitions._static import decode_static, encode_static
from dagnats_worker_partitions._streams import bucket_stream, group_stream_config

FOLDER = Path(__file__).parents[2] / "vectors"
VECTORS: dict[str, Any] = json.loads((FOLDER / "partitions.json").read_text("utf-8"))
NAMES: list[dict[str, str]] = json.loads((FOLDER / "consumer_names.json").read_text("utf-8"))
WIRE: list[dict[str, Any]] = json.loads((FOLDER / "wire.json").read_text("utf-8"))
EXAMPLES: dict[str, Any] = VECTORS["wire_examples"]


def mappings_of(found: list[dict[str, Any]] | None) -> tuple[Mapping, ...]:
    return tuple(Mapping(one["member"], tuple(one["partitions"])) for one in found or ())


def test_vectors_are_all_there() -> None:
    counts = {name: len(VECTORS[name]) for name in VECTORS if isinstance(VECTORS[name], list)}
    assert counts == {
        "partition_filters": 68,
        "transform_destinations": 14,
        "subject_partitions": 38,
        "config_validity": 27,
        "config_examples": 6,
    }


@pytest.mark.parametrize("vector", VECTORS["partition_filters"])
def test_member_has_the_filters_that_go_gives_it(vector: dict[str, Any]) -> None:
    config = GroupConfig(
        vector["max_members"],
        filters=(PartitionFilter(vector["filter"]),),
        members=tuple(vector["members"]),
        mappings=mappings_of(vector["mappings"]),
    )
    assert filters_of(config, vector["member"]) == vector["expected_filters"]


@pytest.mark.parametrize("vector", VECTORS["transform_destinations"])
def test_transform_is_the_one_that_go_writes(vector: dict[str, Any]) -> None:
    found = transform_destination(vector["filter"], vector["wildcards"], vector["partitions"])
    assert found == vector["destination"]


@pytest.mark.parametrize("vector", VECTORS["subject_partitions"])
def test_subject_is_in_the_partition_that_the_server_puts_it_into(vector: dict[str, Any]) -> None:
    found = partition_of(
        vector["subject"], vector["partitions"], vector["filter"], vector["wildcards"]
    )
    assert found == vector["partition"]


@pytest.mark.parametrize("vector", VECTORS["config_validity"], ids=lambda one: one["why"])
def test_record_is_valid_where_go_says_so(vector: dict[str, Any]) -> None:
    data = json.dumps(vector["config"]).encode()
    if vector["valid"]:
        decode_config(data)
    else:
        with pytest.raises(GroupConfigError):
            decode_config(data)


@pytest.mark.parametrize("vector", VECTORS["config_examples"], ids=lambda one: one["note"])
def test_record_that_is_read_and_written_has_the_same_json(vector: dict[str, Any]) -> None:
    data: bytes = vector["json"].encode()
    if vector["kind"] == "elastic":
        written = encode_new(decode_config(data))
    else:
        written = encode_static(decode_static(data))
    assert written.replace(b"\\u003e", b">") == data
    stream, group = vector["key"].split(".")
    assert key(stream, group) == vector["key"]


def test_record_of_a_task_type_has_the_bytes_of_the_go_worker() -> None:
    [vector] = [one for one in WIRE if "partitioning_filters" in str(one.get("wire"))]
    expected: bytes = vector["wire"].encode()
    config = decode_config(expected)
    assert encode_new(config) == expected
    assert with_members(with_members(expected, []), config.members) == expected


@pytest.mark.parametrize("vector", NAMES, ids=lambda one: one["task"])
def test_group_of_a_task_type_is_called_as_the_go_worker_calls_it(vector: dict[str, str]) -> None:
    group = vector["group"] or None
    assert group_name(vector["task"], group) == vector["elastic_group"]
    assert task_filter(vector["task"], group) == vector["filter"]
    assert durable(vector["task"], group) == vector["consumer"]


@pytest.mark.parametrize("vector", NAMES, ids=lambda one: one["task"])
def test_name_that_go_would_have_had_to_replace_cannot_be_partitioned(
    vector: dict[str, str],
) -> None:
    if vector["elastic_group"] == vector["consumer"]:
        check_task_type(vector["task"], vector["group"] or None)
    else:
        with pytest.raises(GroupError, match="cannot be partitioned"):
            check_task_type(vector["task"], vector["group"] or None)


def test_group_stream_is_asked_for_with_the_body_of_go() -> None:
    example = EXAMPLES["group_stream_create"]
    config = decode_config(VECTORS["config_examples"][0]["json"].encode())
    name = group_stream("TASK_QUEUES", "workers-email")
    assert example["subject"] == f"$JS.API.STREAM.CREATE.{name}"
    made = group_stream_config("TASK_QUEUES", "workers-email", config, "file", 1)
    assert json.dumps(made) == json.dumps(example["body"])


def test_bucket_is_asked_for_with_the_stream_of_go() -> None:
    made = bucket_stream("elastic-consumer-groups", 1)
    assert json.dumps(made) == json.dumps(EXAMPLES["kv_bucket_stream"])


def test_group_without_filters_takes_the_whole_stream() -> None:
    assert transforms(GroupConfig(3)) == [(">", "{{Partition(3)}}.>")]
    assert filters_of(GroupConfig(2, members=("w1",)), "w1") == ["0.>", "1.>"]


def test_filters_follow_each_other_in_the_order_of_the_record() -> None:
    config = GroupConfig(
        2, filters=(PartitionFilter("b.*"), PartitionFilter("a.*")), members=("w",)
    )
    assert filters_of(config, "w") == ["0.b.*", "1.b.*", "0.a.*", "1.a.*"]


def test_mapped_partition_stands_once_however_many_filters_there_are() -> None:
    filters = (PartitionFilter("b.*"), PartitionFilter("a.*"))
    config = GroupConfig(2, filters=filters, mappings=(Mapping("w", (1, 0)),))
    assert filters_of(config, "w") == ["1.>", "0.>"]
