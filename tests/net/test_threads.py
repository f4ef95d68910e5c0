"""Threads of one purpose, with real threads on the tests' reactor."""

import errno
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, maybeDeferred

from apigw.net.threads import Threads, in_thread
from tests.threadless import Threadless


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads(reactor, "test", 1, niceness=7)
    made.startService()
    yield made
    pytest_twisted.blockon(maybeDeferred(made.stopService))


@pytest_twisted.ensureDeferred
async def test_work_is_done_in_a_thread_of_its_name(threads: Threads) -> None:
    assert await threads.run(lambda: threading.current_thread().name) == "test-0"


@pytest_twisted.ensureDeferred
async def test_the_threads_stand_back_and_the_loop_does_not(threads: Threads) -> None:
    """Niceness is set for the thread alone."""
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert await threads.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())) == max(7, before)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


@pytest_twisted.ensureDeferred
async def test_whatever_is_raised_reaches_the_caller_and_the_thread_lives_on(threads: Threads) -> None:
    def fail(error: BaseException) -> None:
        raise error

    for error in (ValueError("no"), SystemExit(3)):
        with pytest.raises(type(error)):
            await threads.run(fail, error)
    assert await threads.run(int, "7") == 7


@pytest_twisted.ensureDeferred
async def test_what_was_taken_back_is_never_begun(threads: Threads) -> None:
    gate, done = threading.Event(), []
    first = threads.run(gate.wait, 5)
    second = threads.run(done.append, "second")
    third = threads.run(done.append, "third")
    second.addErrback(lambda failure: failure.trap(CancelledError) and None)
    second.cancel()
    gate.set()
    await first
    await third
    assert done == ["third"]


class Thing:
    """Something that a weak reference can be made to."""


@pytest_twisted.ensureDeferred
async def test_what_was_taken_back_keeps_nothing_while_the_threads_hang(threads: Threads) -> None:
    gate, thing = threading.Event(), Thing()
    kept = weakref.ref(thing)
    first = threads.run(gate.wait, 5)
    second = threads.run(repr, thing)
    second.addErrback(lambda failure: failure.trap(CancelledError) and None)
    del thing
    second.cancel()
    assert kept() is None
    gate.set()
    await first


@pytest_twisted.ensureDeferred
async def test_an_answer_that_nobody_wants_any_more_is_dropped(threads: Threads) -> None:
    """Taken back while it runs: it ends in its thread, and nobody hears of it."""
    gate, begun = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        gate.wait(5)

    first = threads.run(work)
    heard: list[Any] = []
    first.addBoth(heard.append)
    begun.wait(5)
    first.cancel()
    gate.set()
    assert await threads.run(int, "7") == 7
    assert [failure.type for failure in heard] == [CancelledError]


@pytest_twisted.ensureDeferred
async def test_where_no_thread_can_be_started_the_answer_fails_and_comes_a_turn_later() -> None:
    """Not from inside the call, where nobody has noted yet that he waits for it."""
    threadless = Threadless(reactor)
    answer = in_thread(threadless, int, "7")
    assert not answer.called
    with pytest.raises(OSError, match="can't start new thread") as failed:
        await answer
    assert failed.value.errno == errno.EAGAIN
    assert await in_thread(threadless, int, "7") == 7


@pytest_twisted.ensureDeferred
async def test_stopping_waits_for_what_runs_and_drops_what_waits() -> None:
    made = Threads(reactor, "stop", 1)
    made.startService()
    gate, begun, done = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        gate.wait(5)

    first = made.run(work)
    second = made.run(done.append, "second")
    heard: list[Any] = []
    second.addBoth(heard.append)
    begun.wait(5)
    stopped = made.stopService()
    assert stopped is not None and not stopped.called
    assert heard[0].type is CancelledError
    gate.set()
    await stopped
    await first
    assert done == []
    late: list[Any] = []
    made.run(done.append, "late").addBoth(late.append)
    assert late[0].type is CancelledError and made.stopService() is None
