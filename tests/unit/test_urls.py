"""What can be the URL of a server.

Method: a table of texts. Real: the check, before anything is connected. Fake: nothing.
"""

from __future__ import annotations

import pytest

from dagnats_worker import ConnectError, WorkerConfig
from dagnats_worker._jetstream.transport import urls_of


@pytest.mark.parametrize(
    "text",
    [
        "nats://127.0.0.1:4222",
        "tls://user:pass@host:4222",
        "ws://host/path",
        "wss://host:443",
        "host:4222",
        "host",
        "nats://[::1]:4222",
    ],
)
def test_url_of_a_server_is_taken_as_it_is(text: str) -> None:
    assert urls_of(f" {text} ,", WorkerConfig()) == [text]


@pytest.mark.parametrize("text", ["foo bar", "http://host:4222", "nats://", "nats:// host", "/a"])
def test_anything_else_is_refused_before_it_is_tried(text: str) -> None:
    with pytest.raises(ConnectError, match="is not the URL of a server; write for example nats://"):
        urls_of(text, WorkerConfig())


def test_secrets_of_a_wrong_url_are_not_told() -> None:
    with pytest.raises(ConnectError) as caught:
        urls_of("http://ada:secret@host", WorkerConfig())
    assert "secret" not in str(caught.value)
