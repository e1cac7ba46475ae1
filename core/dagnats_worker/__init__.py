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
    KeyValueError,
    NonRetryableError,
    PluginError,
    ReleaseTask,
    RetryAfterError,
    RunCancelledError,
    SignalTimeoutError,
    SkipTask,
    StartError,
    TaskFailedError,
    TransportError,
    UsageError,
)
from dagnats_worker.hookspecs import (
    CHECKPOINTS,
    SIGNALS,
    Capability,
    Checkpointable,
    Delivery,
    Entry,
    KeepAlive,
    KeyValue,
    Message,
    Plugin,
    Signaler,
    Slots,
    Source,
    Stats,
    TaskType,
    WorkerFacade,
    hookimpl,
)

__all__ = [
    "CHECKPOINTS",
    "SIGNALS",
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
    "Delivery",
    "EmbeddedServer",
    "EndTask",
    "EngineError",
    "Entry",
    "Failed",
    "HTTPEnvelope",
    "Handler",
    "KeepAlive",
    "KeyValue",
    "KeyValueError",
    "Message",
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
    "SignalTimeoutError",
    "Signaler",
    "SkipTask",
    "Slots",
    "Source",
    "StartError",
    "Stats",
    "StepStatus",
    "SyncTaskContext",
    "TaskContext",
    "TaskFailedError",
    "TaskType",
    "TransportError",
    "TriggerEnvelope",
    "TypedHandler",
    "UsageError",
    "Worker",
    "WorkerConfig",
    "WorkerFacade",
    "hookimpl",
    "provision",
    "typed",
]
