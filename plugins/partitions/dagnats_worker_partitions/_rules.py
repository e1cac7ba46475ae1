"""Who has which partition, and which messages are in it: the same answer in every process.

Nobody leads a group. Each member computes the distribution from the record, in Go as in Python, so
these rules are a part of the wire. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dagnats_worker_partitions._config import GroupConfig, Mapping

ALL = ">"
STAR = "*"

FNV_OFFSET = 0x811C9DC5
FNV_PRIME = 0x01000193
FNV_MASK = 0xFFFFFFFF


def owners(members: Iterable[str], partitions: int) -> tuple[str | None, ...]:
    """The owner of each partition; None for all of them where there are no members.

    The first names in sort order are used, as many as there are partitions. Each gets a run of
    neighbours of the same length; what remains goes to the first names, one each.
    """
    names = used_members(members, partitions)
    if not names:
        return (None,) * partitions
    run = partitions // len(names)
    divided = run * len(names)
    return tuple(
        names[number // run] if number < divided else names[number - divided]
        for number in range(partitions)
    )


def used_members(members: Iterable[str], partitions: int) -> tuple[str, ...]:
    """The members that get partitions, in sort order; the rest waits."""
    return tuple(sorted(set(members))[:partitions])


def effective_members(config: GroupConfig) -> tuple[str, ...]:
    """The members of a group that have at least one partition."""
    if config.members:
        return used_members(config.members, config.partitions)
    return tuple(one.member for one in config.mappings if one.partitions)


def assignment(config: GroupConfig) -> tuple[str | None, ...]:
    """The owner of each partition of a group, whether by members or by mappings."""
    return assigned(config.partitions, config.members, config.mappings)


def assigned(
    partitions: int, members: Sequence[str], mappings: Sequence[Mapping]
) -> tuple[str | None, ...]:
    """The same for a group of either kind."""
    if members or not mappings:
        return owners(members, partitions)
    mapped = {number: one.member for one in mappings for number in one.partitions}
    return tuple(mapped.get(number) for number in range(partitions))


def filters_of(config: GroupConfig, member: str) -> list[str]:
    """The filters of a member's consumer, in Go's order; empty where it has no partition."""
    filters = [one.filter for one in config.filters]
    return member_filters(config.partitions, config.members, config.mappings, filters, member)


def member_filters(
    partitions: int,
    members: Sequence[str],
    mappings: Sequence[Mapping],
    filters: Sequence[str],
    member: str,
) -> list[str]:
    """The same for a group of either kind.

    Filters are not used with mappings. Go repeats a mapped partition for each filter, and such a
    consumer is refused by the server; here it stands once.
    """
    if members or not mappings:
        owned = [
            number for number, owner in enumerate(owners(members, partitions)) if owner == member
        ]
        return [f"{number}.{one}" for one in filters or (ALL,) for number in owned]
    return [
        f"{number}.{ALL}" for one in mappings if one.member == member for number in one.partitions
    ]


def transform_destination(filter_: str, wildcards: Sequence[int], partitions: int) -> str:
    """Where the server maps a subject to, so that its partition stands in front of it."""
    parts, stars = [], 0
    for part in filter_.split("."):
        if part == STAR:
            stars += 1
            parts.append(f"{{{{Wildcard({stars})}}}}")
        else:
            parts.append(part)
    arguments = ",".join(str(number) for number in (partitions, *wildcards))
    return ".".join([f"{{{{Partition({arguments})}}}}", *parts])


def transforms(config: GroupConfig) -> list[tuple[str, str]]:
    """Source and destination of each transform of a group's stream."""
    if not config.filters:
        return [(ALL, transform_destination(ALL, (), config.partitions))]
    return [
        (one.filter, transform_destination(one.filter, one.wildcards, config.partitions))
        for one in config.filters
    ]


def partition_of(
    subject: str, partitions: int, filter_: str = ALL, wildcards: Sequence[int] = ()
) -> int:
    """The partition into which the server puts a subject; for tools and tests.

    Without ``wildcards`` the whole subject is hashed, dots included; else the tokens that stand for
    these ``*`` of the filter, with nothing between them.
    """
    hashed = subject
    if wildcards:
        parts = subject.split(".")
        stars = [index for index, part in enumerate(filter_.split(".")) if part == STAR]
        hashed = "".join(parts[stars[position - 1]] for position in wildcards)
    value = FNV_OFFSET
    for byte in hashed.encode():
        value = ((value ^ byte) * FNV_PRIME) & FNV_MASK
    return value % partitions


def overlap(left: str, right: str) -> bool:
    """Whether some subject matches both filters."""
    ours, theirs = left.split("."), right.split(".")
    for one, other in zip(ours, theirs, strict=False):
        if ALL in (one, other):
            return True
        if one != other and STAR not in (one, other):
            return False
    return len(ours) == len(theirs)
