"""The servers that the tests of checkpoints run on."""

from __future__ import annotations

import pytest
from checkpoint_support import Ground, MemoryGround, ServerGround
from nats.js import JetStreamContext

from dagnats_worker import EmbeddedServer


@pytest.fixture(params=["memory", pytest.param("server", marks=pytest.mark.server)])
def ground(request: pytest.FixtureRequest) -> Ground:
    """Either server; the test holds on both."""
    if request.param == "memory":
        return MemoryGround()
    server: EmbeddedServer = request.getfixturevalue("shared_server")
    js: JetStreamContext = request.getfixturevalue("js")
    return ServerGround(server.url, js)
