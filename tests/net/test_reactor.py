"""The lean reactor: turns, clock, and what an exception of one connection does to the others."""

import os
import socket
import time
from typing import Any

import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import globalLogPublisher

from apigw.net.reactor import LeanReactor


def test_the_tests_run_on_the_daemons_reactor() -> None:
    assert isinstance(installed_reactor, LeanReactor)


def test_its_clock_is_monotonic() -> None:
    """A wall clock that steps back must stop no timer."""
    reactor: Any = installed_reactor
    assert abs(reactor.seconds() - time.monotonic()) < 0.1


@pytest_twisted.ensureDeferred
async def test_after_turn_runs_once_behind_everything_else_of_the_turn() -> None:
    reactor: Any = installed_reactor
    order: list[str] = []
    done: Deferred[None] = Deferred()

    def first() -> None:
        reactor.after_turn(lambda: order.append("end"))
        order.append("first")

    reactor.callLater(0, first)
    reactor.callLater(0, order.append, "second")
    reactor.callLater(0.01, done.callback, None)
    await done
    assert order == ["first", "second", "end"]


@pytest_twisted.ensureDeferred
async def test_what_is_asked_for_at_the_end_of_a_turn_runs_soon_without_any_event() -> None:
    """An after_turn call that asks for another one is not kept waiting for the next event."""
    reactor: Any = installed_reactor
    done: Deferred[None] = Deferred()
    started_s = reactor.seconds()
    reactor.callLater(0, reactor.after_turn, lambda: reactor.after_turn(lambda: done.callback(None)))
    await done
    assert reactor.seconds() - started_s < 0.2


@pytest_twisted.ensureDeferred
async def test_a_raising_after_turn_call_is_logged_and_hurts_no_other() -> None:
    reactor: Any = installed_reactor
    logged: list[Any] = []
    done: Deferred[None] = Deferred()

    def raising() -> None:
        raise ValueError("on purpose")

    globalLogPublisher.addObserver(logged.append)
    try:
        reactor.after_turn(raising)
        reactor.after_turn(lambda: done.callback(None))
        await done
    finally:
        globalLogPublisher.removeObserver(logged.append)
    assert [event for event in logged if "log_failure" in event]


class Descriptor:
    """A lean descriptor over one end of a pair."""

    lean_io = True

    def __init__(self, sock: socket.socket, raising: bool, abort_raises: bool = False) -> None:
        self.sock, self.raising, self.abort_raises = sock, raising, abort_raises
        self.aborted = False
        self.reads = 0

    def fileno(self) -> int:
        return self.sock.fileno()

    def logPrefix(self) -> str:
        return "-"

    def doRead(self) -> None:
        self.reads += 1
        if self.raising:
            raise ValueError("on purpose")
        self.sock.recv(10)

    doWrite = doRead

    def abortConnection(self) -> None:
        self.aborted = True
        reactor: Any = installed_reactor
        reactor.removeReader(self)
        if self.abort_raises:
            raise ValueError("on purpose, while ending")

    def connectionLost(self, reason: Any) -> None:
        self.aborted = True


@pytest_twisted.ensureDeferred
async def test_a_descriptor_whose_event_raises_is_ended_and_the_others_go_on(net: Any) -> None:
    """Even one that raises again while it is ended keeps the events of the same turn from nobody."""
    pairs = [socket.socketpair() for _ in range(3)]
    bad = Descriptor(pairs[0][0], raising=True)
    worse = Descriptor(pairs[1][0], raising=True, abort_raises=True)
    good = Descriptor(pairs[2][0], raising=False)
    for descriptor in (bad, worse, good):
        descriptor.sock.setblocking(False)
        net.reactor.addReader(descriptor)
    for _, other in pairs:
        other.send(b"x")
    try:
        await net.until(lambda: good.reads and bad.aborted and worse.aborted)
        assert (bad.reads, worse.reads, good.reads) == (1, 1, 1)
    finally:
        net.reactor.removeReader(good)
        for ends in pairs:
            for end in ends:
                end.close()


@pytest_twisted.ensureDeferred
async def test_stock_transports_work_as_ever() -> None:
    """Twisted's own endpoints, with a log context around each event, live beside the lean ones."""
    reactor: Any = installed_reactor
    echoed: Deferred[bytes] = Deferred()

    class Echo(Protocol):
        def dataReceived(self, data: bytes) -> None:
            assert self.transport is not None
            self.transport.write(data)

    class Asking(Protocol):
        def connectionMade(self) -> None:
            assert self.transport is not None
            self.transport.write(b"hello")

        def dataReceived(self, data: bytes) -> None:
            assert self.transport is not None
            self.transport.loseConnection()
            echoed.callback(data)

    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Factory.forProtocol(Echo))
    await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port), Asking())
    assert await echoed == b"hello"
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_call_from_another_thread_wakes_the_loop() -> None:
    reactor: Any = installed_reactor
    done: Deferred[int] = Deferred()
    reactor.callInThread(lambda: reactor.callFromThread(done.callback, os.getpid()))
    assert await done == os.getpid()


def test_after_sends_runs_behind_every_after_turn_call_of_the_turn() -> None:
    """Also behind those that were asked for later."""
    order: list[str] = []
    lean = LeanReactor()
    lean.after_sends(lambda: order.append("entries"))
    lean.after_turn(lambda: order.append("first"))
    lean.after_turn(lambda: order.append("second"))
    lean.doPoll(0)
    assert order == ["first", "second", "entries"]


class Source:
    """A deadline source with one deadline, which may be taken back."""

    def __init__(self) -> None:
        self.due_s: float | None = None
        self.ran = 0

    def next_due_s(self) -> float | None:
        return self.due_s

    def run_due(self) -> None:
        if self.due_s is not None and self.due_s <= time.monotonic():
            self.due_s = None
            self.ran += 1


def test_a_deadline_ends_the_wait_and_one_taken_back_does_not() -> None:
    """Without any timer of the reactor; a far timeout is cut to the deadline, none is cut for none."""
    lean = LeanReactor()
    source = Source()
    lean.watch_deadlines(source)
    source.due_s = time.monotonic() + 0.02
    began_s = time.monotonic()
    lean.doPoll(5.0)
    assert source.ran == 1 and 0.015 < time.monotonic() - began_s < 2.0
    assert lean._until_deadline(None) is None
    assert lean._until_deadline(3.0) == 3.0
    source.due_s = time.monotonic() - 1.0
    assert lean._until_deadline(None) == 0.0
