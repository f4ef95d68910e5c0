"""How fast a client sends and takes."""

import pytest
from twisted.internet.task import Clock

from apigw.constants import MIN_PROGRESS_BYTES, WRITE_HIGH_WATER_BYTES
from apigw.edge.pace import BACKEND, CHUNKS, AnswersTaken, Pace, WriteWatch
from apigw.net.deadlines import Deadlines
from tests.edge.conversation import Wire


class Protocol:
    """Ends quietly."""

    def connectionLost(self, reason: object) -> None:
        """Nothing depends on it."""


@pytest.fixture
def wire() -> Wire:
    wire = Wire(Protocol(), Clock())
    wire.room = 0
    return wire


def test_the_end_of_one_reason_does_not_lift_another(wire: Wire) -> None:
    pace = Pace(wire)
    pace.hold(BACKEND)
    pace.hold(CHUNKS)
    pace.reasons &= ~CHUNKS
    pace.settle()
    assert (wire.reading, pace.paused) == (False, True)
    pace.reasons &= ~BACKEND
    pace.settle()
    assert (wire.reading, pace.paused) == (True, False)


def test_answers_are_taken_when_little_of_them_waits(wire: Wire) -> None:
    told: list[str] = []
    wire.write(b"a" * (WRITE_HIGH_WATER_BYTES + 1))
    AnswersTaken(wire, lambda: told.append("taken"))
    wire.take(1000)
    assert told == []
    wire.take(WRITE_HIGH_WATER_BYTES)
    assert told == ["taken"]
    assert wire.producer is None


def test_a_client_is_given_up_when_it_takes_too_little_in_its_time(wire: Wire) -> None:
    deadlines = Deadlines(wire.clock)
    given_up: list[float] = []
    watch = WriteWatch(wire, deadlines, 30.0, lambda: given_up.append(wire.clock.seconds()))
    wire.write(b"a" * 5000)
    watch.written()
    wire.clock.advance(20)
    wire.take(MIN_PROGRESS_BYTES)
    watch.written()
    wire.clock.advance(11)
    assert given_up == []
    wire.take(MIN_PROGRESS_BYTES - 1)
    wire.clock.advance(31)
    assert len(given_up) == 1


def test_a_watch_ends_with_nothing_to_send_or_when_stopped(wire: Wire) -> None:
    given_up: list[str] = []
    watch = WriteWatch(wire, Deadlines(wire.clock), 30.0, lambda: given_up.append("first"))
    wire.write(b"a" * 10)
    watch.written()
    wire.take(10)
    wire.clock.advance(31)
    wire.write(b"a" * 10)
    watch.written()
    watch.stop()
    wire.clock.advance(100)
    assert given_up == []
