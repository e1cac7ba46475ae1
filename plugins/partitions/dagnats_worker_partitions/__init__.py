"""Partitioned consumer groups for dagnats-worker, shared with members written in Go.

Beside the plugin, what makes groups and looks at them; each function takes nats-py's client.
"""

from __future__ import annotations

from dagnats_worker_partitions._config import GroupConfig, Mapping, PartitionFilter
from dagnats_worker_partitions._errors import (
    GroupConfigError,
    GroupError,
    GroupExistsError,
    GroupNotFoundError,
    GroupOverlapError,
    ServerTooOldError,
)
from dagnats_worker_partitions._groups import (
    add_members,
    create_group,
    delete_group,
    delete_mappings,
    drop_members,
    list_groups,
    set_mappings,
    step_down,
)
from dagnats_worker_partitions._look import (
    GroupInfo,
    MemberInfo,
    PartitionInfo,
    group_info,
    members_info,
)
from dagnats_worker_partitions._plugin import (
    PartitionsOptions,
    PartitionsPlugin,
    PartitionsSettings,
    open_member,
)
from dagnats_worker_partitions._reap import Findings, find_dead, reap
from dagnats_worker_partitions._record import GroupRecords, Record
from dagnats_worker_partitions._static import (
    StaticConfig,
    active_static_members,
    create_static_group,
    delete_static_group,
    list_static_groups,
    read_static_group,
    step_down_static,
)
from dagnats_worker_partitions._static_member import StaticMessage, consume_static_group

__all__ = [
    "Findings",
    "GroupConfig",
    "GroupConfigError",
    "GroupError",
    "GroupExistsError",
    "GroupInfo",
    "GroupNotFoundError",
    "GroupOverlapError",
    "GroupRecords",
    "Mapping",
    "MemberInfo",
    "PartitionFilter",
    "PartitionInfo",
    "PartitionsOptions",
    "PartitionsPlugin",
    "PartitionsSettings",
    "Record",
    "ServerTooOldError",
    "StaticConfig",
    "StaticMessage",
    "active_static_members",
    "add_members",
    "consume_static_group",
    "create_group",
    "create_static_group",
    "delete_group",
    "delete_mappings",
    "delete_static_group",
    "drop_members",
    "find_dead",
    "group_info",
    "list_groups",
    "list_static_groups",
    "members_info",
    "open_member",
    "read_static_group",
    "reap",
    "set_mappings",
    "step_down",
    "step_down_static",
]
