"""Signals of the process become calls in the loop, and the reactor's own start does not take them back."""

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred

from apigw.supervisor import signals

HUP, USR1, TERM = signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (HUP, USR1, TERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class StartingReactor:
    """A reactor before it runs: keeps what it is asked to call."""

    def __init__(self) -> None:
        self.when_running: list[Callable[[], None]] = []
        self.from_thread: list[Callable[[], None]] = []

    def callWhenRunning(self, call: Callable[[], None]) -> None:
        self.when_running.append(call)

    def callFromThread(self, call: Callable[[], None]) -> None:
        self.from_thread.append(call)


@pytest_twisted.ensureDeferred
async def test_each_signal_makes_its_own_call_in_the_loop() -> None:
    hung_up: Deferred[None] = Deferred()
    reopened: Deferred[None] = Deferred()
    reactor: Any = installed_reactor
    signals.install(reactor, {HUP: lambda: hung_up.callback(None), USR1: lambda: reopened.callback(None)})
    os.kill(os.getpid(), USR1)
    await reopened.addTimeout(5, reactor)
    assert not hung_up.called
    os.kill(os.getpid(), HUP)
    await hung_up.addTimeout(5, reactor)


def test_a_signal_before_the_loop_runs_waits_for_it_and_does_not_kill() -> None:
    reactor, calls = StartingReactor(), []
    signals.install(reactor, {HUP: lambda: calls.append("reload")})
    signal.raise_signal(HUP)
    signal.raise_signal(HUP)
    assert calls == []
    for call in reactor.from_thread:
        call()
    assert calls == ["reload", "reload"]


def test_what_the_reactor_takes_when_it_starts_is_taken_back() -> None:
    """Else SIGTERM would stop the reactor without a drain."""
    reactor = StartingReactor()
    signals.install(reactor, {TERM: lambda: None})
    ours = signal.getsignal(TERM)
    signal.signal(TERM, signal.SIG_IGN)  # the reactor's start
    for call in reactor.when_running:
        call()
    assert callable(signal.getsignal(TERM)) and signal.getsignal(TERM) is not ours
    signal.raise_signal(TERM)
    assert len(reactor.from_thread) == 1
