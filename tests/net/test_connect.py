"""Outgoing connections: one answer each, within the deadline, whatever the network and the name server do."""

import resource
import socket
import threading
from typing import Any, Callable

import pytest
import pytest_twisted
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock

from apigw.net import connect as module
from apigw.net.connect import EXHAUSTED, REFUSED, TIMED_OUT, UNREACHABLE, UNRESOLVED, Connector
from apigw.net.deadlines import Deadlines
from tests.threadless import Threadless

run = pytest_twisted.ensureDeferred


class Wanting:
    def __init__(self) -> None:
        self.done: list[tuple[socket.socket, Any]] = []
        self.failed: list[tuple[str, str]] = []

    def connect_done(self, sock: socket.socket, peer: Any) -> None:
        self.done.append((sock, peer))

    def connect_failed(self, reason: str, detail: str) -> None:
        self.failed.append((reason, detail))

    def told(self) -> bool:
        assert len(self.done) + len(self.failed) < 2
        return bool(self.done or self.failed)


def listening(net: Any, backlog: int = 5) -> tuple[socket.socket, int]:
    sock = net.keep(socket.socket())
    sock.bind(("127.0.0.1", 0))
    sock.listen(backlog)
    return sock, sock.getsockname()[1]


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def full(net: Any) -> int:
    """The port of a listening socket whose backlog is full: the kernel drops further SYNs."""
    sock, port = listening(net, 0)
    for _ in range(8):
        filler = net.keep(socket.socket())
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.1", port))
    return int(port)


def connector(net: Any) -> Connector:
    return Connector(net.reactor, net.deadlines)


@run
async def test_a_connection_is_handed_over_and_carries_data(net: Any) -> None:
    sock, port = listening(net)
    wanting = Wanting()
    made = connector(net)
    made.connect("127.0.0.1", port, 5, wanting)
    assert not wanting.told(), "told from inside connect()"
    await net.until(wanting.told)
    connected, peer = wanting.done[0]
    assert peer == IPv4Address("TCP", "127.0.0.1", port)
    protocol = net.Recorder()
    transport = net.keep(made.transport(connected, peer, protocol))
    transport.start()
    transport.write(b"hello")
    await net.turns(1)
    accepted, _ = sock.accept()
    net.keep(accepted)
    assert accepted.recv(10) == b"hello"


@run
async def test_refused_is_said_so_and_at_once(net: Any) -> None:
    wanting = Wanting()
    connector(net).connect("127.0.0.1", unused_port(), 5, wanting)
    assert not wanting.told()
    await net.until(wanting.told, 1)
    assert wanting.failed[0][0] == REFUSED


@run
async def test_a_host_that_drops_packets_ends_at_the_deadline(net: Any) -> None:
    wanting = Wanting()
    started_s = net.reactor.seconds()
    connector(net).connect("127.0.0.1", full(net), 0.1, wanting)
    await net.until(wanting.told, 2)
    assert wanting.failed[0][0] == TIMED_OUT
    assert 0.1 <= net.reactor.seconds() - started_s < 0.3


@run
async def test_a_deadline_behind_a_made_connection_does_nothing(net: Any) -> None:
    _, port = listening(net)
    clock = Clock()
    wanting = Wanting()
    Connector(net.reactor, Deadlines(clock)).connect("127.0.0.1", port, 1, wanting)
    await net.until(wanting.told)
    clock.advance(5)
    assert len(wanting.done) == 1 and not wanting.failed
    net.keep(wanting.done[0][0])


@run
async def test_an_address_without_a_way_is_unreachable(net: Any) -> None:
    """Multicast has no TCP: the kernel says so in connect() itself, and the answer still comes a turn later."""
    wanting = Wanting()
    connector(net).connect("224.0.0.1", 80, 5, wanting)
    assert not wanting.told()
    await net.until(wanting.told, 1)
    assert wanting.failed[0][0] == UNREACHABLE


@run
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_without_a_descriptor_left_it_is_this_host_that_is_exhausted(net: Any, host: str) -> None:
    """Neither the other side nor the name server is to blame; a moment later it may work."""
    _, port = listening(net)
    made = connector(net)
    wanting = Wanting()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open("/dev/null") as null:
        resource.setrlimit(resource.RLIMIT_NOFILE, (null.fileno(), hard))
        try:
            made.connect(host, port, 5, wanting)
            await net.until(wanting.told)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert wanting.failed[0][0] == EXHAUSTED and "Too many open files" in wanting.failed[0][1]
    again = Wanting()
    made.connect(host, port, 5, again)
    await net.until(again.told)
    net.keep(again.done[0][0])


@run
async def test_localhost_is_resolved(net: Any) -> None:
    _, port = listening(net)
    wanting = Wanting()
    connector(net).connect("localhost", port, 5, wanting)
    await net.until(wanting.told)
    net.keep(wanting.done[0][0])


@run
@pytest.mark.parametrize("name", ["name.invalid", "a" * 70 + ".invalid", "empty..label", "\x00"])
async def test_an_unresolvable_name_is_said_so(net: Any, name: str) -> None:
    """Also what is no name at all."""
    wanting = Wanting()
    connector(net).connect(name, 80, 5, wanting)
    await net.until(wanting.told, 10)
    assert wanting.failed[0][0] == UNRESOLVED


@run
async def test_a_name_that_no_thread_could_be_started_for_is_asked_for_again(net: Any) -> None:
    """It says nothing of the other side; and the name must not be waited for ever after."""
    _, port = listening(net)
    made = Connector(Threadless(net.reactor), net.deadlines)
    wanting, again = Wanting(), Wanting()
    made.connect("localhost", port, 5, wanting)
    assert not wanting.told()
    await net.until(wanting.told)
    assert wanting.failed[0][0] == EXHAUSTED and "can't start new thread" in wanting.failed[0][1]
    made.connect("localhost", port, 5, again)
    await net.until(again.told)
    net.keep(again.done[0][0])


class Resolving:
    """The reactor with a name server of the test's own, asked in the reactor's threads as ever."""

    def __init__(self, reactor: Any, answer: Callable[[str, int], list[Any]]) -> None:
        self._reactor = reactor
        self._answer = answer
        self.asked: list[str] = []
        self.now_s: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def seconds(self) -> float:
        return float(self._reactor.seconds()) if self.now_s is None else self.now_s

    def getThreadPool(self) -> "Resolving":
        return self

    def callInThreadWithCallback(self, on_result: Any, function: Any, *args: Any, **kwargs: Any) -> None:
        host, port = function.args[0:2] if hasattr(function, "args") else args[0:2]
        self.asked.append(host)
        self._reactor.getThreadPool().callInThreadWithCallback(on_result, self._answer, host, port)


def found(*addresses: tuple[str, int]) -> list[Any]:
    return [
        (socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))
        for host, port in addresses
    ]


@pytest.mark.parametrize("name", ["0xa9fea9fe", "0", "224.1"])
@run
async def test_a_name_that_leads_to_a_clouds_metadata_or_nowhere_is_not_followed(net: Any, name: str) -> None:
    """The resolver reads these as 169.254.169.254, 0.0.0.0 and 224.0.0.1; a name server could say the same."""
    wanting = Wanting()
    connector(net).connect(name, unused_port(), 5, wanting)
    await net.until(wanting.told)
    assert wanting.failed == [(UNRESOLVED, "the name leads to no address that is connected to")]


@run
async def test_a_name_with_several_addresses_is_tried_through(net: Any) -> None:
    """Nobody listens on the first: the second serves, within one deadline."""
    _, port = listening(net)
    closed = unused_port()
    answer = found(("127.0.0.1", closed), ("224.0.0.1", port), ("127.0.0.1", port))
    reactor = Resolving(net.reactor, lambda host, _: answer)
    wanting = Wanting()
    Connector(reactor, net.deadlines).connect("many.test", port, 5, wanting)
    await net.until(wanting.told)
    net.keep(wanting.done[0][0])


@run
async def test_when_no_address_serves_the_last_failure_is_told_once(net: Any) -> None:
    reactor = Resolving(net.reactor, lambda host, _: found(("224.0.0.1", 80), ("127.0.0.1", unused_port())))
    wanting = Wanting()
    Connector(reactor, net.deadlines).connect("many.test", 80, 5, wanting)
    await net.until(wanting.told)
    await net.turns(3)
    assert wanting.told() and wanting.failed[0][0] == REFUSED


@run
async def test_a_hundred_connections_to_a_name_ask_for_it_once(net: Any) -> None:
    """A dead name server would else fill all threads with one name."""
    _, port = listening(net, 200)
    answering = threading.Event()

    def slowly(host: str, _: int) -> list[Any]:
        answering.wait(5)
        return found(("127.0.0.1", port))

    reactor = Resolving(net.reactor, slowly)
    made = Connector(reactor, net.deadlines)
    wants = [Wanting() for _ in range(100)]
    for wanting in wants:
        made.connect("busy.test", port, 5, wanting)
    answering.set()
    await net.until(lambda: all(wanting.told() for wanting in wants))
    assert reactor.asked == ["busy.test"]
    for wanting in wants:
        wanting.done[0][0].close()


@run
async def test_what_a_name_resolved_to_serves_until_it_is_asked_anew(net: Any) -> None:
    """Fresh for 30 s; then the old addresses serve while the name server thinks, and stay if it fails."""
    _, port = listening(net)
    answers: list[Callable[[], list[Any]]] = [lambda: found(("127.0.0.1", port))]

    def failing() -> list[Any]:
        raise OSError("the name server is down")

    answers.append(failing)
    reactor = Resolving(net.reactor, lambda host, _: answers[len(reactor.asked) - 1]())
    reactor.now_s = 1000.0
    made = Connector(reactor, net.deadlines)

    async def connects() -> None:
        wanting = Wanting()
        made.connect("kept.test", port, 5, wanting)
        await net.until(wanting.told)
        wanting.done[0][0].close()

    await connects()
    reactor.now_s += module._RESOLVED_FOR_S - 1
    await connects()
    assert len(reactor.asked) == 1
    reactor.now_s += 2
    await connects()
    assert len(reactor.asked) == 2
    await net.until(lambda: not made._asking)
    await connects()
    assert len(reactor.asked) == 2


@run
async def test_a_name_that_may_be_outdated_is_asked_for_at_the_next_connect(net: Any) -> None:
    """Where it led serves that one; the one after it goes where it leads now."""
    _, old = listening(net)
    _, new = listening(net)
    ports = [old, new]
    reactor = Resolving(net.reactor, lambda host, _: found(("127.0.0.1", ports[len(reactor.asked) - 1])))
    made = Connector(reactor, net.deadlines)

    async def leads_to() -> int:
        wanting = Wanting()
        made.connect("moved.test", old, 5, wanting)
        await net.until(wanting.told)
        sock, _ = wanting.done[0]
        with sock:
            return int(sock.getpeername()[1])

    made.outdated("moved.test", old)
    assert await leads_to() == await leads_to() == old
    assert len(reactor.asked) == 1
    made.outdated("moved.test", old)
    assert await leads_to() == old
    await net.until(lambda: not made._asking)
    assert await leads_to() == new
    assert len(reactor.asked) == 2
    made.connect("127.0.0.1", old, 5, wanting := Wanting())
    await net.until(wanting.told)
    wanting.done[0][0].close()
    made.outdated("127.0.0.1", old)
    assert made._resolved["127.0.0.1", old][0] == float("inf"), "an address is no name"


@run
async def test_the_deadline_holds_for_resolving_too(net: Any) -> None:
    """And a late answer of the name server opens no connection for nobody."""
    _, port = listening(net)
    answering = threading.Event()

    def slowly(host: str, _: int) -> list[Any]:
        answering.wait(5)
        return found(("127.0.0.1", port))

    made = Connector(Resolving(net.reactor, slowly), net.deadlines)
    wanting = Wanting()
    made.connect("slow.test", port, 0.05, wanting)
    await net.until(wanting.told, 1)
    assert wanting.failed[0][0] == TIMED_OUT
    answering.set()
    await net.until(lambda: not made._asking)
    await net.turns(3)
    assert not wanting.done


@run
async def test_an_event_of_a_descriptor_that_had_our_number_is_no_connection(net: Any) -> None:
    """In one turn a connection dies, its number goes to a new attempt, and the rest of its events come."""
    wanting = Wanting()
    attempt = module._Attempt(net.reactor, net.deadlines, 0.1, wanting)
    attempt.begin([(socket.AF_INET, ("127.0.0.1", full(net)))])
    attempt.doWrite()
    assert not wanting.told()
    await net.until(wanting.told, 2)
    assert wanting.failed[0][0] == TIMED_OUT


@run
async def test_open_connects_a_protocol_or_fails(net: Any) -> None:
    _, port = listening(net)
    protocol = net.Recorder()
    assert await connector(net).open("127.0.0.1", port, 5, protocol) is protocol
    net.keep(protocol.transport)
    with pytest.raises(ConnectionError, match=REFUSED):
        await connector(net).open("127.0.0.1", unused_port(), 5, net.Recorder())


@run
async def test_names_that_come_and_go_for_months_do_not_pile_up(net: Any) -> None:
    made = connector(net)
    for number in range(module._MAX_NAMES + 10):
        made._keep((f"pod-{number}.test", 80), 0.0, [])
    assert len(made._resolved) <= module._MAX_NAMES
