"""How commands show groups: plain columns, which a terminal and a pipe take alike."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import click

from dagnats_worker_partitions._config import GroupConfig
from dagnats_worker_partitions._look import GroupInfo, MemberInfo

GAP = "  "
NOTHING = "-"


def tell(text: str) -> None:
    """Print; styles are left out where ``NO_COLOR`` is set or where there is no terminal."""
    click.echo(text, color=False if os.environ.get("NO_COLOR") else None)


def columns(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: int) -> list[str]:
    """Lines of a table.

    Args:
        numbers: How many columns at the end are aligned to the right.
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(header))]
    first_number = len(header) - numbers
    padded = [
        GAP.join(
            text.rjust(width) if at >= first_number else text.ljust(width)
            for at, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return [click.style(padded[0], bold=True), *padded[1:]]


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in few characters: ``0-3 7``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return " ".join("-".join(str(end) for end in run) for run in runs)


def list_row(info: GroupInfo) -> list[str]:
    """A group in one line."""
    listed = [one for one in info.members if one.listed]
    active = sum(one.active for one in listed)
    unread = ranges([one.number for one in info.partitions if not one.read])
    return [
        info.group,
        info.stream,
        unread or NOTHING,
        str(len(info.partitions)),
        str(len(listed)),
        str(active),
        _filled(info),
    ]


LIST_HEADER = ("GROUP", "STREAM", "UNREAD", "PARTITIONS", "MEMBERS", "ACTIVE", "MESSAGES")
LIST_NUMBERS = 4


def group_lines(info: GroupInfo) -> list[str]:
    """A group with its assignment."""
    listed = [one for one in info.members if one.listed]
    facts = {
        "partitions": f"{len(info.partitions)} of {divided(info.record.config)}",
        "members": f"{len(listed)}, {sum(one.active for one in listed)} of them active",
        "messages": _filled(info),
    }
    width = max(len(name) for name in facts)
    return [
        click.style(f"{info.group} on {info.stream}", bold=True),
        *(f"  {click.style(name.ljust(width), fg='cyan')}  {text}" for name, text in facts.items()),
        "",
        *assignment_lines(info),
        *_notes(info),
    ]


def assignment_lines(info: GroupInfo) -> list[str]:
    """One line for each partition; what is known of a member stands in the first of its lines."""
    members = {one.name: one for one in info.members}
    told: set[str] = set()
    rows = []
    for one in info.partitions:
        row = [str(one.number), one.member or NOTHING, NOTHING, str(one.messages), "", ""]
        if one.member is not None:
            member = members[one.member]
            row[2] = consumer_state(member)
            if one.member not in told:
                row[4:] = [str(member.pending), str(member.ack_pending)]
            told.add(one.member)
        rows.append(row)
    return columns(ASSIGNMENT_HEADER, rows, ASSIGNMENT_NUMBERS)


ASSIGNMENT_HEADER = ("PARTITION", "MEMBER", "CONSUMER", "MESSAGES", "PENDING", "UNACKED")
ASSIGNMENT_NUMBERS = 3


def consumer_state(member: MemberInfo) -> str:
    """``pinned``: a process is served; ``waiting``: none has been yet; ``none``: nobody reads."""
    if not member.active:
        return "none"
    return "pinned" if member.pinned else "waiting"


def divided(config: GroupConfig) -> str:
    """What is divided, and by which key."""
    if not config.filters:
        return "the whole stream, by subject"
    told = []
    for one in config.filters:
        stars = ", ".join(str(number) for number in one.wildcards)
        told.append(f"{one.filter} by {f'* number {stars}' if stars else 'subject'}")
    return "; ".join(told)


def _filled(info: GroupInfo) -> str:
    if info.messages is None:
        return "no stream"
    return f"{info.messages} of {info.limit}" if info.limit else str(info.messages)


def _notes(info: GroupInfo) -> list[str]:
    """What is not as it should be, and what to do about it."""
    at = f" --stream {info.stream}" if info.stream != "TASK_QUEUES" else ""
    notes = []
    if info.messages is None:
        notes.append("its stream is missing: start a worker, which makes it again")
    for member in info.members:
        if member.partitions and not member.active:
            drop = f"dagnats-worker groups drop {info.group} {member.name}{at}"
            numbers = ranges(member.partitions)
            notes.append(f"nobody reads {numbers}: {member.name} is changing, or dead: `{drop}`")
        elif member.listed and not member.partitions:
            notes.append(f"{member.name} has no partition, and takes over where a member leaves")
        elif not member.listed:
            notes.append(f"{member.name} has a consumer, and is no member: it is about to leave")
    if info.limit and info.messages is not None and info.messages >= info.limit:
        notes.append("its stream is full: one partition that nobody reads keeps all others waiting")
    if not any(one.listed for one in info.members):
        notes.append("it has no members: start a worker")
    return ["", *(click.style(note, fg="yellow") for note in notes)] if notes else []


def as_json(info: GroupInfo) -> dict[str, Any]:
    """A group for scripts."""
    config = info.record.config
    return {
        "stream": info.stream,
        "group": info.group,
        "revision": info.record.revision,
        "messages": info.messages,
        "max_buffered_messages": config.max_buffered_messages,
        "max_buffered_bytes": config.max_buffered_bytes,
        "filters": [
            {"filter": one.filter, "wildcards": list(one.wildcards)} for one in config.filters
        ],
        "mapped": bool(config.mappings),
        "partitions": [
            {
                "partition": one.number,
                "member": one.member,
                "read": one.read,
                "messages": one.messages,
            }
            for one in info.partitions
        ],
        "members": [member_json(one) for one in info.members],
    }


def member_json(member: MemberInfo) -> dict[str, Any]:
    """A member for scripts."""
    return {
        "name": member.name,
        "listed": member.listed,
        "partitions": list(member.partitions),
        "active": member.active,
        "pinned": member.pinned or None,
        "pinned_since": member.pinned_since or None,
        "pending": member.pending,
        "ack_pending": member.ack_pending,
    }
