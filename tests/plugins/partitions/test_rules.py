"""The rules of a group: who has which partition, what a subject's partition is, what overlaps.

Method: properties over made-up groups (hypothesis) beside the vectors, which are in
``test_vectors.py``. Nothing here does I/O, and nothing is fake.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagnats_worker_partitions._config import (
    PARTITIONS_MAX,
    GroupConfig,
    Mapping,
    PartitionFilter,
    check_config,
)
from dagnats_worker_partitions._errors import GroupConfigError, GroupError
from dagnats_worker_partitions._names import check_group, check_member, check_task_type
from dagnats_worker_partitions._rules import (
    assignment,
    effective_members,
    filters_of,
    overlap,
    owners,
    partition_of,
)

names = st.text("abcXYZ019-_é", max_size=4)
members = st.lists(names, max_size=12)
partitions = st.integers(1, 24)
tokens = st.sampled_from(["a", "b", "*"])


@given(members, partitions)
def test_every_partition_has_one_owner_as_soon_as_there_is_a_member(
    listed: list[str], count: int
) -> None:
    found = owners(listed, count)
    assert len(found) == count
    assert set(found) <= (set(listed) or {None})


@given(members, partitions)
def test_no_member_has_two_partitions_more_than_another(listed: list[str], count: int) -> None:
    loads = Counter(owners(listed, count))
    assert max(loads.values()) - min(loads.values()) <= 1


@given(members, partitions, st.randoms())
def test_order_and_repetition_of_the_list_have_no_meaning(
    listed: list[str], count: int, random: object
) -> None:
    shuffled = [*listed, *listed[:3]]
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis hands out a random.Random
    assert owners(shuffled, count) == owners(listed, count)


@given(members, partitions)
def test_filters_of_all_members_cover_each_partition_once(listed: list[str], count: int) -> None:
    config = GroupConfig(count, filters=(PartitionFilter("t.>"),), members=tuple(listed))
    covered = [one for name in sorted(set(listed)) for one in filters_of(config, name)]
    expected = [f"{number}.t.>" for number in range(count)] if listed else []
    assert sorted(covered) == sorted(expected)


@given(members, partitions)
def test_member_has_filters_where_it_is_effective_and_only_there(
    listed: list[str], count: int
) -> None:
    config = GroupConfig(count, members=tuple(listed))
    with_filters = [name for name in sorted(set(listed)) if filters_of(config, name)]
    assert list(effective_members(config)) == with_filters


@given(members, partitions)
def test_newcomer_that_sorts_last_displaces_nobody_where_all_partitions_are_taken(
    listed: list[str], count: int
) -> None:
    if len(set(listed)) >= count:
        assert owners([*listed, "ﷺ"], count) == owners(listed, count)


@given(st.lists(st.text("ab1", min_size=1, max_size=3), min_size=1, max_size=4), partitions)
def test_partition_of_a_subject_is_one_of_the_group(parts: list[str], count: int) -> None:
    assert 0 <= partition_of(".".join(parts), count) < count


@given(parts=st.lists(tokens, min_size=1, max_size=4), open_end=st.booleans())
def test_filter_overlaps_each_subject_that_it_matches(parts: list[str], *, open_end: bool) -> None:
    pattern = ".".join([*parts, ">"] if open_end else parts)
    subject = ".".join(["x" if part == "*" else part for part in parts] + ["y"] * open_end)
    assert overlap(pattern, subject)
    assert overlap(subject, pattern)


@pytest.mark.parametrize(
    ("left", "right", "together"),
    [
        ("task.a.>", "task.a.gpu.>", True),
        ("task.a.>", "task.b.>", False),
        ("task.a.>", "task.a", False),
        ("task.*.x", "task.a.*", True),
        ("task.*", "task.a.x", False),
        (">", "task.a.>", True),
        ("task.a.x", "task.a.y", False),
    ],
)
def test_filters_overlap_where_a_subject_matches_both(
    left: str, right: str, *, together: bool
) -> None:
    assert overlap(left, right) is together
    assert overlap(right, left) is together


def test_partitions_of_a_mapping_belong_to_whom_it_names() -> None:
    config = GroupConfig(3, mappings=(Mapping("b", (2, 0)), Mapping("a", (1,)), Mapping("c", ())))
    assert assignment(config) == ("b", "a", "b")
    assert effective_members(config) == ("b", "a")


def test_group_without_members_has_no_owners() -> None:
    assert assignment(GroupConfig(2)) == (None, None)
    assert effective_members(GroupConfig(2)) == ()


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("count", [0, -1, PARTITIONS_MAX + 1])
def test_number_of_partitions_that_cannot_be_is_named(count: int) -> None:
    with pytest.raises(GroupConfigError, match=f"is {count}; it is between 1 and {PARTITIONS_MAX}"):
        check_config(GroupConfig(count))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (GroupConfig(1, (PartitionFilter("a.b"),)), "filter 'a.b' has no wildcard"),
        (GroupConfig(1, (PartitionFilter("a.*", (2,)),)), "'a.*' has no '\\*' number 2; it has 1"),
        (GroupConfig(1, (PartitionFilter("*.*", (1, 1)),)), "names a '\\*' twice"),
        (GroupConfig(2, mappings=(Mapping("a", (0,)),)), "partition 1 is mapped to nobody"),
        (GroupConfig(1, mappings=(Mapping("a", (0, 1)),)), "partition 1 is mapped; there are 0"),
        (GroupConfig(2, mappings=(Mapping("a", (0, 0)),)), "partition 0 is mapped twice"),
        (GroupConfig(2, mappings=(Mapping("a", (0,)), Mapping("a", (1,)))), "member 'a' is mapped"),
        (GroupConfig(1, members=("b",), mappings=(Mapping("a", (0,)),)), "has both"),
    ],
)
def test_error_names_what_is_wrong_with_a_configuration(config: GroupConfig, says: str) -> None:
    with pytest.raises(GroupConfigError, match=says):
        check_config(config)


@pytest.mark.parametrize(
    ("task_type", "group", "says"),
    [
        ("render.gpu", None, "task type 'render.gpu' cannot be partitioned: .* a dot would end it"),
        ("render", "gpu.fast", "group 'gpu.fast' cannot be partitioned: .* a dot would end it"),
        ("a/b", None, "'/' cannot be in it"),
        ("größe", None, "'ö' cannot be in it"),
    ],
)
def test_task_type_that_cannot_be_partitioned_is_told_why(
    task_type: str, group: str | None, says: str
) -> None:
    with pytest.raises(GroupError, match=says):
        check_task_type(task_type, group)


@pytest.mark.parametrize("member", ["", "a.b", "a b", "a/b", "a\\b", "*", ">"])
def test_member_whose_name_no_consumer_can_have_is_refused(member: str) -> None:
    with pytest.raises(GroupError, match=r"^member "):
        check_member(member)


def test_name_of_a_stream_that_would_be_too_long_is_refused() -> None:
    check_group("S", "g" * 253)
    with pytest.raises(GroupError, match="has 256 characters, the server takes 255"):
        check_group("S", "g" * 254)
