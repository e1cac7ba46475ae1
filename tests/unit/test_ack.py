"""The verdict on a delivery as the server understands it, and that it is sent once.

Method: verdicts in, frames out; sending is watched on a small fake of a transport.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from execution_support import make_execution
from hypothesis import given
from hypothesis import strategies as st

from dagnats_worker import TransportError
from dagnats_worker._ack import Ack, Drop, Nak, Term, Verdict, frame, settle
from dagnats_worker._inflight import InFlight
from dagnats_worker._transport import Transport

INT64_MAX = 2**63 - 1
SOON = timedelta(seconds=3)


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Ack(), b"+ACK"),
        (Nak(), b"-NAK"),
        (Nak(timedelta(0)), b"-NAK"),
        (Nak(timedelta(seconds=-1)), b"-NAK"),
        (Nak(SOON), b'-NAK {"delay": 3000000000}'),
        (Nak(timedelta(microseconds=1)), b'-NAK {"delay": 1000}'),
        (Term("not JSON"), b"+TERM not JSON"),
        (Term(""), b"+TERM"),
        (Term("two\r\nlines"), b"+TERM two lines"),
    ],
)
def test_verdict_is_a_frame_of_the_server(verdict: Ack | Nak | Term, expected: bytes) -> None:
    assert frame(verdict) == expected


@given(st.timedeltas(min_value=timedelta(microseconds=1)))
def test_delay_is_one_that_the_server_can_count(delay: timedelta) -> None:
    word, body = frame(Nak(delay)).split(b" ", 1)
    assert word == b"-NAK"
    delay_ns = json.loads(body)["delay"]
    assert 0 < delay_ns < INT64_MAX // 2, "the server adds it to the time that it is"
    if delay < timedelta(days=36_500):
        assert delay_ns == delay // timedelta(microseconds=1) * 1000


class Wire:
    """A transport that notes what is sent, and may be gone."""

    def __init__(self, *, is_gone: bool = False) -> None:
        self.sent: list[tuple[str, str, bytes]] = []
        self.is_gone = is_gone

    async def send(self, subject: str, data: bytes) -> None:
        self._note("send", subject, data)

    async def request(self, subject: str, data: bytes) -> bytes:
        self._note("request", subject, data)
        return b""

    def _note(self, how: str, subject: str, data: bytes) -> None:
        self.sent.append((how, subject, data))
        if self.is_gone:
            raise TransportError("the connection is lost")


def held(*, confirm_leases: bool = False) -> InFlight:
    inflight = make_execution().inflight
    inflight.source = cast(
        Any, SimpleNamespace(ack_wait=SOON, confirm_leases=confirm_leases, fenced=False)
    )
    return inflight


async def settled(verdict: Verdict, wire: Wire, inflight: InFlight) -> None:
    await settle(cast(Transport, wire), inflight, verdict)


@pytest.mark.parametrize("verdict", [Ack(), Nak(SOON), Term("not JSON")])
async def test_verdict_is_sent_once_to_where_the_server_wants_it(verdict: Any) -> None:
    wire, inflight = Wire(), held()
    await settled(verdict, wire, inflight)
    assert wire.sent == [("send", inflight.delivery.ack_subject, frame(verdict))]


async def test_newest_delivery_of_a_message_is_the_one_that_is_settled() -> None:
    wire, inflight = Wire(), held()
    inflight.ack_subject = "$JS.ACK.of.the.newer.one"
    await settled(Ack(), wire, inflight)
    assert wire.sent == [("send", "$JS.ACK.of.the.newer.one", b"+ACK")]


def again(inflight: InFlight) -> None:
    inflight.delivery.deliveries = 2


def doubtful(inflight: InFlight) -> None:
    inflight.delivery.doubtful = True


def late(inflight: InFlight) -> None:
    inflight.received_at -= inflight.source.ack_wait.total_seconds() + 1


def fenced(inflight: InFlight) -> None:
    inflight.source = cast(Any, SimpleNamespace(**{**vars(inflight.source), "fenced": True}))


@pytest.mark.parametrize("shared", [again, doubtful, late, fenced])
async def test_source_that_confirms_leases_has_its_acks_confirmed_where_they_may_be_refused(
    shared: Callable[[InFlight], None],
) -> None:
    wire, inflight = Wire(), held(confirm_leases=True)
    shared(inflight)
    await settled(Ack(), wire, inflight)
    assert [how for how, _, _ in wire.sent] == ["request"]


async def test_ack_of_a_message_that_only_we_were_given_is_not_waited_for() -> None:
    wire = Wire()
    await settled(Ack(), wire, held(confirm_leases=True))
    assert [how for how, _, _ in wire.sent] == ["send"]


async def test_ack_of_a_doubtful_message_is_not_waited_for_where_nobody_else_had_begun_it() -> None:
    wire, inflight = Wire(), held(confirm_leases=True)
    doubtful(inflight)
    assert inflight.execution is not None
    inflight.execution.opens_run = True
    await settled(Ack(), wire, inflight)
    assert [how for how, _, _ in wire.sent] == ["send"]


@pytest.mark.parametrize("verdict", [Nak(), Term("no")])
async def test_source_that_confirms_leases_has_all_else_confirmed(verdict: Nak | Term) -> None:
    wire = Wire()
    await settled(verdict, wire, held(confirm_leases=True))
    assert [how for how, _, _ in wire.sent] == ["request"]


async def test_nothing_is_said_of_a_task_that_somebody_else_has(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wire = Wire()
    await settled(Drop("its lease was lost"), wire, held())
    assert wire.sent == []
    assert "its lease was lost" in caplog.text


@pytest.mark.parametrize("confirm_leases", [True, False])
async def test_verdict_that_is_lost_is_no_error_and_the_message_comes_again(
    caplog: pytest.LogCaptureFixture, *, confirm_leases: bool
) -> None:
    await settled(Ack(), Wire(is_gone=True), held(confirm_leases=confirm_leases))
    assert "it will come again" in caplog.text
