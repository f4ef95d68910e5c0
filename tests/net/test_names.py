"""One question for each name at a time, whoever asks; addresses are no questions."""

import socket
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import directlyProvides, providedBy
from zope.interface.verify import verifyObject

from apigw.net.names import IHostnameResolver, Names
from tests.servers import until
from tests.threadless import Threadless


class Asked:
    """A reactor whose threads answer when the test says."""

    def __init__(self) -> None:
        self.questions: list[tuple[Any, str, int]] = []

    def getThreadPool(self) -> "Asked":
        return self

    def callInThreadWithCallback(
        self, on_result: Any, function: Any, host: str, port: int, family: int, kind: int
    ) -> None:
        assert function is socket.getaddrinfo and (family, kind) == (socket.AF_UNSPEC, socket.SOCK_STREAM)
        self.questions.append((on_result, host, port))

    def callFromThread(self, function: Any, *arguments: Any) -> None:
        function(*arguments)

    def answer(self, number: int, *addresses: str) -> None:
        on_result, _, port = self.questions[number]
        kind = socket.SOCK_STREAM
        on_result(True, [(socket.AF_INET, kind, 6, "", (address, port)) for address in addresses])

    def fail(self, number: int, error: Exception) -> None:
        self.questions[number][0](False, Failure(error))


class Receiver:
    def __init__(self) -> None:
        self.began: Any = None
        self.addresses: list[Any] = []
        self.complete = 0

    def resolutionBegan(self, resolution: Any) -> None:
        self.began = resolution

    def addressResolved(self, address: Any) -> None:
        self.addresses.append(address)

    def resolutionComplete(self) -> None:
        self.complete += 1


def test_it_is_what_twisted_wants() -> None:
    verifyObject(IHostnameResolver, Names(Asked()))


def test_a_hundred_who_ask_for_a_name_are_one_question() -> None:
    behind = Asked()
    names = Names(behind)
    every = [Receiver() for _ in range(100)]
    for receiver in every:
        names.resolveHostName(receiver, "registry.test", 2379)
    assert len(behind.questions) == 1 and not any(receiver.complete for receiver in every)
    behind.answer(0, "10.0.0.1", "10.0.0.2")
    for receiver in every:
        assert receiver.began.name == "registry.test" and receiver.complete == 1
        assert [address.host for address in receiver.addresses] == ["10.0.0.1", "10.0.0.2"]
    names.resolveHostName(Receiver(), "registry.test", 2379)
    assert len(behind.questions) == 2, "what was answered is asked anew"


def test_other_names_and_ports_are_other_questions() -> None:
    behind = Asked()
    names = Names(behind)
    for host, port in (("a.test", 1), ("b.test", 1), ("a.test", 2)):
        names.resolveHostName(Receiver(), host, port)
    assert len(behind.questions) == 3


def test_an_address_is_its_own_answer() -> None:
    behind = Asked()
    names = Names(behind)
    four, six = Receiver(), Receiver()
    names.resolveHostName(four, "10.0.0.1", 80)
    names.resolveHostName(six, "fd00::1", 80)
    assert four.addresses == [IPv4Address("TCP", "10.0.0.1", 80)] and four.complete == 1
    assert six.addresses == [IPv6Address("TCP", "fd00::1", 80)] and behind.questions == []


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")])
def test_a_name_that_cannot_be_resolved_has_no_address_and_is_asked_for_again(error: Exception) -> None:
    behind = Asked()
    names = Names(behind)
    for number in range(2):
        receiver = Receiver()
        names.resolveHostName(receiver, "nobody.test")
        behind.fail(number, error)
        assert (receiver.addresses, receiver.complete) == ([], 1)


@pytest_twisted.ensureDeferred
async def test_a_name_that_no_thread_could_be_started_for_has_no_address_and_is_asked_for_again() -> None:
    """Twisted's own resolver would never say anything."""
    names = Names(Threadless(reactor))
    every = [Receiver(), Receiver()]
    for receiver in every:
        names.resolveHostName(receiver, "localhost", 80)
    await until(lambda: all(receiver.complete for receiver in every), reactor)
    assert not any(receiver.addresses for receiver in every)
    names.resolveHostName(again := Receiver(), "localhost", 80)
    await until(lambda: again.complete, reactor)
    assert again.addresses


def test_a_name_without_an_address_is_told_so_to_all() -> None:
    behind = Asked()
    names = Names(behind)
    every = [Receiver(), Receiver()]
    for receiver in every:
        names.resolveHostName(receiver, "nobody.test")
    behind.answer(0)
    assert [(receiver.addresses, receiver.complete) for receiver in every] == [([], 1), ([], 1)]


@pytest_twisted.ensureDeferred
async def test_twisteds_endpoints_connect_by_it() -> None:
    """A name by the resolver behind, an address without it."""
    listening: Any = reactor.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
    port = listening.getHost().port

    class Proxy:
        nameResolver = Names(reactor)

        def __getattr__(self, name: str) -> Any:
            return getattr(reactor, name)

    proxy: Any = Proxy()
    directlyProvides(proxy, providedBy(reactor))
    for host in ("localhost", "127.0.0.1"):
        protocol: Any = await HostnameEndpoint(proxy, host, port).connect(Factory.forProtocol(Protocol))
        protocol.transport.abortConnection()
    await listening.stopListening()
