"""bcrypt in threads, with real bcrypt at its lowest cost and one that the test holds up."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import bcrypt
import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import CancelledError, maybeDeferred

from apigw.adapters.api_key_check import ChecksBusy, SecretChecks
from tests.servers import turns

reactor: Any = installed_reactor
SECRET = b"s" * 43
QUICK = bcrypt.hashpw(SECRET, bcrypt.gensalt(4))


@pytest.fixture
def checks() -> Iterator[SecretChecks]:
    made = SecretChecks(reactor, threads=1, max_waiting=6)
    made.startService()
    yield made
    pytest_twisted.blockon(maybeDeferred(made.stopService))


def hold(checks: SecretChecks) -> threading.Event:
    """The one thread is busy until the event is set."""
    gate = threading.Event()
    checks.busy += 1
    checks.threads.run(gate.wait, 5).addBoth(checks._done, _Nobody())
    return gate


class _Nobody:
    begun_s = None

    class answer:
        called = True


@pytest_twisted.ensureDeferred
async def test_a_secret_is_that_of_its_hash_or_it_is_not(checks: SecretChecks) -> None:
    assert await checks.check("a", SECRET, QUICK) is True
    assert await checks.check("a", b"t" * 43, QUICK) is False
    assert (checks.busy, checks.queued, checks.rejected) == (0, 0, 0)


@pytest_twisted.ensureDeferred
async def test_a_hash_that_is_none_fails_and_harms_nobody(checks: SecretChecks) -> None:
    with pytest.raises(ValueError):
        await checks.check("a", SECRET, b"no hash")
    assert await checks.check("a", SECRET, QUICK) is True


@pytest_twisted.ensureDeferred
async def test_key_ids_take_turns(checks: SecretChecks) -> None:
    """Four checks of a flooded id wait; that of another id, come last, is the second that is made."""
    gate, order = hold(checks), []
    waiting = [checks.check("flooded", SECRET, QUICK).addCallback(lambda _: order.append("flooded")) for _ in range(4)]
    waiting.append(checks.check("other", SECRET, QUICK).addCallback(lambda _: order.append("other")))
    gate.set()
    for one in waiting:
        await one
    assert order == ["flooded", "other", "flooded", "flooded", "flooded"]


@pytest_twisted.ensureDeferred
async def test_what_waits_is_bounded(checks: SecretChecks) -> None:
    gate = hold(checks)
    waiting = [checks.check(f"k{number}", SECRET, QUICK) for number in range(6)]
    with pytest.raises(ChecksBusy):
        checks.check("one too many", SECRET, QUICK)
    assert (checks.queued, checks.rejected) == (6, 1)
    gate.set()
    assert [await one for one in waiting] == [True] * 6
    assert checks.queued == 0


@pytest_twisted.ensureDeferred
async def test_a_check_that_nobody_waits_for_is_not_made(checks: SecretChecks) -> None:
    gate = hold(checks)
    one, other = checks.check("a", SECRET, QUICK), checks.check("a", SECRET, QUICK)
    heard: list[Any] = []
    one.addBoth(heard.append)
    one.cancel()
    assert heard[0].type is CancelledError and checks.queued == 1
    gate.set()
    assert await other is True
    assert checks.queued == checks.busy == 0


@pytest.mark.alone
@pytest_twisted.ensureDeferred
async def test_the_loop_turns_while_a_check_runs(checks: SecretChecks) -> None:
    """bcrypt lets go of the interpreter: the loop's longest turn is far below one check."""
    slow = bcrypt.hashpw(SECRET, bcrypt.gensalt(10))
    longest_s = []
    for _ in range(5):  # the machine is others', too
        check, turn_s = checks.check("a", SECRET, slow), 0.0
        while not check.called:
            began_s = time.monotonic()
            await turns(reactor)
            turn_s = max(turn_s, time.monotonic() - began_s)
        assert await check is True
        longest_s.append(turn_s)
    assert min(longest_s) < 0.04


@pytest_twisted.ensureDeferred
async def test_at_the_end_what_waits_fails() -> None:
    made = SecretChecks(reactor, threads=1)
    made.startService()
    gate = hold(made)
    heard: list[Any] = []
    made.check("a", SECRET, QUICK).addBoth(heard.append)
    stopped = maybeDeferred(made.stopService)
    assert heard[0].type is CancelledError
    gate.set()
    await stopped


@pytest_twisted.ensureDeferred
async def test_who_needs_no_check_is_told_when_one_would_be_done(checks: SecretChecks) -> None:
    """After the checks that waited before it, and as long after as one takes; it takes no thread and no place."""
    assert checks.idle and checks.turn("unknown").called, "nothing to wait for"
    gate, order = hold(checks), []
    assert not checks.idle
    checks.takes_s = 0.05
    before = checks.check("a", SECRET, QUICK).addCallback(lambda _: order.append("a"))
    turn = checks.turn("unknown").addCallback(lambda _: order.append("unknown"))
    after = checks.check("b", SECRET, QUICK).addCallback(lambda _: order.append("b"))
    assert checks.queued == 2 and not turn.called
    began_s = time.monotonic()
    gate.set()
    for one in (before, after, turn):
        await one
    assert order[0] == "a" and sorted(order) == ["a", "b", "unknown"]
    assert time.monotonic() - began_s < 5 and checks.idle


@pytest_twisted.ensureDeferred
async def test_a_turn_meets_the_bound_of_checks_and_makes_none(checks: SecretChecks) -> None:
    """A flood of unknown ids keeps no check out; where a check would be refused, a turn is."""
    gate = hold(checks)
    turns_of_a_flood = [checks.turn(f"u{number}") for number in range(100)]
    waiting = [checks.check(f"k{number}", SECRET, QUICK) for number in range(6)]
    with pytest.raises(ChecksBusy):
        checks.turn("one too many")
    gate.set()
    checks.takes_s = 0.01
    assert [await one for one in waiting] == [True] * 6
    for one in turns_of_a_flood:
        await one


@pytest_twisted.ensureDeferred
async def test_a_turn_that_is_taken_back_leaves_nothing(checks: SecretChecks) -> None:
    """While it waits, and while its check would run."""
    gate, heard = hold(checks), []
    waits, runs = checks.turn("a"), checks.turn("b")
    for one in (waits, runs):
        one.addBoth(heard.append)
    waits.cancel()
    checks.takes_s = 60.0
    gate.set()
    await checks.check("c", SECRET, QUICK)
    runs.cancel()
    assert [one.type for one in heard] == [CancelledError] * 2
