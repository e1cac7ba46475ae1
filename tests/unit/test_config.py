"""What can be configured, and what is refused there.

Method: values in, errors out; the environment is changed for one test at a time. Nothing is fake.
"""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dagnats_worker import Client, Credentials, Worker, WorkerConfig
from dagnats_worker._config import Overrides, install_overrides, installed_overrides

FIELDS = {one.name: one.type for one in dataclasses.fields(WorkerConfig)}
DURATIONS = sorted(name for name, kind in FIELDS.items() if kind == "timedelta")
COUNTS = sorted(name for name, kind in FIELDS.items() if kind == "int")
UNBOUNDED = {"url", "credentials", "confirm_start", "go_ids", "ack_pending_warning", "health"}
"""What is no bound."""


@pytest.fixture
def overrides() -> Iterator[None]:
    """Puts the command line of this process back afterwards."""
    before = installed_overrides()
    yield
    install_overrides(before)


def configured(**changes: Any) -> WorkerConfig:
    return WorkerConfig(**changes)


# Bounds


def test_every_field_is_a_bound_that_is_checked_or_none_at_all() -> None:
    assert set(FIELDS) == {*DURATIONS, *COUNTS, *UNBOUNDED}
    assert "drain_timeout" in DURATIONS
    assert "history_events_max" in COUNTS


@pytest.mark.parametrize("name", DURATIONS)
def test_duration_is_a_timedelta_that_is_longer_than_zero(name: str) -> None:
    for value in (timedelta(0), timedelta(seconds=-1)):
        with pytest.raises(ValueError, match=f"{name} is longer than zero, got "):
            configured(**{name: value})
    for number in (30, 0.5, "30s", None):
        with pytest.raises(TypeError, match=f"{name} is a timedelta, got {number!r}"):
            configured(**{name: number})
    assert getattr(configured(**{name: timedelta(seconds=1)}), name) == timedelta(seconds=1)


@pytest.mark.parametrize("name", COUNTS)
def test_count_is_a_whole_number_and_bounds_something(name: str) -> None:
    lowest = 0 if name == "threads_extra" else 1
    for value in (lowest - 1, 2.0, "2", True, None):
        with pytest.raises(ValueError, match=f"{name} is a whole number of at least {lowest}, got"):
            configured(**{name: value})
    assert getattr(configured(**{name: lowest}), name) == lowest


@pytest.mark.parametrize("share", [0, -0.1, 1.01, 80])
def test_share_is_between_zero_and_one(share: float) -> None:
    with pytest.raises(ValueError, match="ack_pending_warning is a share of 1"):
        configured(ack_pending_warning=share)
    assert configured(ack_pending_warning=1).ack_pending_warning == 1


def test_default_configuration_is_valid_and_can_be_changed_but_not_in_place() -> None:
    config = WorkerConfig()
    changed = dataclasses.replace(config, drain_timeout=timedelta(minutes=2))
    assert changed.drain_timeout == timedelta(minutes=2)
    assert changed.url == config.url
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.drain_timeout = timedelta(minutes=2)  # type: ignore[misc]  # what is tried here


def test_every_field_is_documented() -> None:
    documentation = WorkerConfig.__doc__ or ""
    assert [name for name in FIELDS if f"\n        {name}: " not in documentation] == []


# Where to connect, and as whom


@pytest.mark.parametrize(
    ("url", "variable", "expected"),
    [
        (None, None, "nats://127.0.0.1:4222"),
        (None, "", "nats://127.0.0.1:4222"),
        (None, "nats://env:1", "nats://env:1"),
        ("nats://code:1", "nats://env:1", "nats://code:1"),
    ],
)
def test_code_is_stronger_than_the_environment(
    monkeypatch: pytest.MonkeyPatch, url: str | None, variable: str | None, expected: str
) -> None:
    if variable is None:
        monkeypatch.delenv("NATS_URL", raising=False)
    else:
        monkeypatch.setenv("NATS_URL", variable)
    assert WorkerConfig(url=url).urls == expected


def test_secrets_are_not_shown() -> None:
    credentials = Credentials(
        creds_file=Path("/etc/nats.creds"),
        nkey_seed="SUAM-SEED",
        user="ada",
        password="PASSWORD",  # noqa: S106 - not one
        token="TOKEN",  # noqa: S106 - not one
        tls=ssl.create_default_context(),
    )
    for text in (repr(credentials), str(WorkerConfig(credentials=credentials))):
        assert "ada" in text
        for secret in ("SUAM-SEED", "PASSWORD", "TOKEN"):
            assert secret not in text


# The command line


def test_command_line_is_stronger_than_code_where_it_says_something() -> None:
    config = WorkerConfig(url="nats://code:1", drain_timeout=timedelta(seconds=9))
    assert Overrides().applied_to(config) == config
    strong = Overrides(
        url="nats://line:1", credentials=Credentials(user="ada"), drain_timeout=timedelta(seconds=1)
    )
    changed = strong.applied_to(config)
    assert (changed.url, changed.credentials.user) == ("nats://line:1", "ada")
    assert changed.drain_timeout == timedelta(seconds=1)
    assert changed.publish_timeout == config.publish_timeout


def test_command_line_reaches_workers_and_clients(overrides: None) -> None:
    install_overrides(Overrides(url="nats://line:1", max_tasks=3))
    config = WorkerConfig(url="nats://code:1")
    worker = Worker("nats://argument:1", config=config, max_tasks=9, plugins=[])
    assert (worker.max_tasks, worker.config.url) == (3, "nats://line:1")
    assert Client("nats://argument:1", config=config, plugins=[]).config.url == "nats://line:1"


def test_bad_value_of_the_command_line_is_refused_like_any_other() -> None:
    with pytest.raises(ValueError, match="drain_timeout is longer than zero"):
        Overrides(drain_timeout=timedelta(0)).applied_to(WorkerConfig())
