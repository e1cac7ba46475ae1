"""The directory of a dagnats fleet: workers list themselves, and anybody may look or follow."""

from __future__ import annotations

from dagnats_worker_directory._directory import Directory
from dagnats_worker_directory._following import Change, Joined, Left, Updated
from dagnats_worker_directory._plugin import DirectoryPlugin, DirectorySettings
from dagnats_worker_directory._registration import WorkerRegistration
from dagnats_worker_directory._report import Report

__all__ = [
    "Change",
    "Directory",
    "DirectoryPlugin",
    "DirectorySettings",
    "Joined",
    "Left",
    "Report",
    "Updated",
    "WorkerRegistration",
]
