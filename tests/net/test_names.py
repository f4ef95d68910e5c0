"""One question for each name at a time, whoever asks; addresses are no questions."""

from typing import Any

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory, Protocol
from zope.interface import directlyProvides, providedBy
from zope.interface.verify import verifyObject

from apigw.net.names import IHostnameResolver, Names


class Asked:
    """The resolver behind: answers when the test says."""

    def __init__(self) -> None:
        self.questions: list[tuple[Any, str, int]] = []

    def resolveHostName(
        self, receiver: Any, host: str, port: int = 0, types: Any = None, semantics: str = "TCP"
    ) -> None:
        self.questions.append((receiver, host, port))

    def answer(self, number: int, *addresses: str) -> None:
        receiver, _, port = self.questions[number]
        for address in addresses:
            receiver.addressResolved(IPv4Address("TCP", address, port))
        receiver.resolutionComplete()


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
        nameResolver = Names(reactor.nameResolver)

        def __getattr__(self, name: str) -> Any:
            return getattr(reactor, name)

    proxy: Any = Proxy()
    directlyProvides(proxy, providedBy(reactor))
    for host in ("localhost", "127.0.0.1"):
        protocol: Any = await HostnameEndpoint(proxy, host, port).connect(Factory.forProtocol(Protocol))
        protocol.transport.abortConnection()
    await listening.stopListening()
