"""A durable task worker for NATS JetStream: a small core, extended by plugins."""

from __future__ import annotations

from dagnats_worker._client import Client
from dagnats_worker._config import Credentials, WorkerConfig
from dagnats_worker._context import BaseContext, SyncTaskContext, TaskContext
from dagnats_worker._embedded import EmbeddedServer
from dagnats_worker._envelope import HTTPEnvelope, TriggerEnvelope
from dagnats_worker._handlers import Handler, TypedHandler, typed
from dagnats_worker._open import provision
from dagnats_worker._outcome import Completed, Continued, Failed, Outcome, Paused, Released
from dagnats_worker._retry import Retry
from dagnats_worker._run import Run, RunEvent
from dagnats_worker._status import RunStatus, StepStatus
from dagnats_worker._worker import Worker
from dagnats_worker.errors import (
    CapabilityMissingError,
    ConnectError,
    DagnatsError,
    DelayTask,
    EndTask,
    EngineError,
    NonRetryableError,
    PluginError,
    ReleaseTask,
    RetryAfterError,
    RunCancelledError,
    SkipTask,
    StartError,
    TaskFailedError,
    TransportError,
    UsageError,
)
from dagnats_worker.hookspecs import Capability, Checkpointable, Plugin, Signaler, hookimpl

__all__ = [
    "BaseContext",
    "Capability",
    "CapabilityMissingError",
    "Checkpointable",
    "Client",
    "Completed",
    "ConnectError",
    "Continued",
    "Credentials",
    "DagnatsError",
    "DelayTask",
    "EmbeddedServer",
    "EndTask",
    "EngineError",
    "Failed",
    "HTTPEnvelope",
    "Handler",
    "NonRetryableError",
    "Outcome",
    "Paused",
    "Plugin",
    "PluginError",
    "ReleaseTask",
    "Released",
    "Retry",
    "RetryAfterError",
    "Run",
    "RunCancelledError",
    "RunEvent",
    "RunStatus",
    "Signaler",
    "SkipTask",
    "StartError",
    "StepStatus",
    "SyncTaskContext",
    "TaskContext",
    "TaskFailedError",
    "TransportError",
    "TriggerEnvelope",
    "TypedHandler",
    "UsageError",
    "Worker",
    "WorkerConfig",
    "hookimpl",
    "provision",
    "typed",
]
