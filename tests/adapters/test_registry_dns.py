"""Instances in DNS, asked of a real name server (dnsmasq): addresses, SRV, TTLs, truncation, and what goes wrong."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.protocol import DatagramProtocol
from twisted.names import dns

from apigw.adapters.registry_dns import DNSRegistry, _of_system
from apigw.adapters.wanted_instances import Wanted
from apigw.config.model import Discovery
from apigw.core.discovery import Entry
from tests.adapters.registry_world import REACTOR, watching
from tests.dnsmasq import NameServer, name_server
from tests.servers import free_port, turns, until

SRV = "_http._tcp.orders.test"


@pytest.fixture(scope="module")
def server() -> Iterator[NameServer]:
    with name_server() as server:
        yield server


def of(server: NameServer, service: str = "orders.test", port: int | None = 80, **more: Any) -> Discovery:
    return Discovery("dns", service, port=port, **({"nameservers": (server.address,)} | more))


@pytest_twisted.ensureDeferred
async def test_addresses_of_a_name_and_its_changes_after_their_ttl(server: NameServer) -> None:
    server.restart("host-record=orders.test,10.0.0.1,2", "host-record=orders.test,10.0.0.2,2")
    with watching(DNSRegistry, of(server, "Orders.Test.")) as watch:
        await watch.until_hosts("10.0.0.1:80*1", "10.0.0.2:80*1")
        server.restart("host-record=orders.test,10.0.0.3,2")
        assert 0.5 < await watch.until_hosts("10.0.0.3:80*1")
        assert watch.registry.failures == 0


@pytest_twisted.ensureDeferred
async def test_an_answer_is_asked_for_again_when_its_ttl_is_over_and_not_before(server: NameServer) -> None:
    """A TTL of 0 means once a second; one of an hour five minutes."""
    server.restart("host-record=orders.test,10.0.0.1,3600", "host-record=quick.test,10.0.0.1,0")
    with watching(DNSRegistry, of(server)) as slow, watching(DNSRegistry, of(server, "quick.test")) as quick:
        await slow.until_up()
        await quick.until_up()
        before = len(server.queries)
        assert 290 < slow.registry.good_delay_s() <= 300 and quick.registry.good_delay_s() == 1.0
        await turns(REACTOR, 2.5)
        asked = server.queries[before:]
        assert asked and set(asked) == {"query[A] quick.test"} and len(asked) <= 5


@pytest_twisted.ensureDeferred
async def test_addresses_of_ipv6_count_where_there_are_none_of_ipv4(server: NameServer) -> None:
    server.restart("host-record=six.test,fd00::1", "host-record=both.test,10.0.0.1,fd00::1")
    with watching(DNSRegistry, of(server, "six.test")) as six, watching(DNSRegistry, of(server, "both.test")) as both:
        await six.until_hosts("fd00::1:80*1")
        await both.until_hosts("10.0.0.1:80*1")


@pytest_twisted.ensureDeferred
async def test_an_alias_is_followed_and_its_ttl_counts(server: NameServer) -> None:
    server.restart("host-record=real.test,10.0.0.1,200", "cname=orders.test,real.test,100")
    with watching(DNSRegistry, of(server)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        assert 90 < watch.registry.good_delay_s() <= 100


@pytest_twisted.ensureDeferred
async def test_a_truncated_answer_is_asked_for_by_tcp(server: NameServer) -> None:
    """Sixty addresses do not fit into 512 bytes."""
    hosts = [f"10.0.0.{n}" for n in range(1, 61)]
    server.restart(*(f"host-record=orders.test,{host},30" for host in hosts))
    with watching(DNSRegistry, of(server)) as watch:
        await watch.until_hosts(*(f"{host}:80*1" for host in hosts))


@pytest_twisted.ensureDeferred
async def test_services_of_the_best_priority_with_their_ports_and_weights(server: NameServer) -> None:
    server.restart(
        f"srv-host={SRV},one.test,8001,10,5",
        f"srv-host={SRV},two.test,8002,10,0",
        f"srv-host={SRV},spare.test,8003,20,5",
        "host-record=one.test,10.0.0.1,fd00::1",
        "host-record=two.test,10.0.0.2",
        "host-record=two.test,10.0.0.22",
        "host-record=spare.test,10.0.0.3",
    )
    with watching(DNSRegistry, of(server, SRV, None)) as watch:
        await watch.until_hosts("10.0.0.1:8001*5", "10.0.0.2:8002*1", "10.0.0.22:8002*1")
        server.restart(f"srv-host={SRV},spare.test,8003,20,5", "host-record=spare.test,10.0.0.3")
        await watch.until_hosts("10.0.0.3:8003*5")


@pytest_twisted.ensureDeferred
async def test_a_target_that_has_no_address_now_keeps_those_it_had(server: NameServer) -> None:
    service = (f"srv-host={SRV},one.test,8001,10,1", f"srv-host={SRV},two.test,8002,10,1")
    server.restart(*service, "host-record=one.test,10.0.0.1")
    with watching(DNSRegistry, of(server, SRV, None)) as watch:
        await watch.until_hosts("10.0.0.1:8001*1")
        assert watch.registry.skipped == {"unusable": 1}
        server.restart(*service, "host-record=two.test,10.0.0.2")
        await watch.until_hosts("10.0.0.1:8001*1", "10.0.0.2:8002*1", timeout_s=20)


@pytest_twisted.ensureDeferred
async def test_a_name_that_vanished_keeps_the_list(server: NameServer) -> None:
    """Also after the time after which an empty list is believed: no such name is a failure, not a list."""
    server.restart("host-record=orders.test,10.0.0.1,1")
    with watching(DNSRegistry, of(server, empty_after_s=0.1)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        server.restart()
        await watch.until_down()
        await turns(REACTOR, 1.0)
        assert watch.hosts == ["10.0.0.1:80*1"]
        assert watch.registry.last_error == "orders.test: there is no such name (NXDOMAIN)"


@pytest_twisted.ensureDeferred
async def test_a_name_without_addresses_is_an_empty_list(server: NameServer) -> None:
    server.restart("host-record=orders.test,10.0.0.1,1")
    with watching(DNSRegistry, of(server)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        server.restart("txt-record=orders.test,nothing")
        await until(lambda: watch.registry.empty_since_s is not None, REACTOR, 10)
        assert watch.hosts == ["10.0.0.1:80*1"] and watch.registry.up


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_silent_or_gone_keeps_the_list(server: NameServer) -> None:
    server.restart("host-record=orders.test,10.0.0.1,1")
    with watching(DNSRegistry, of(server)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        server.freeze()
        try:
            await watch.until_down(15)
        finally:
            server.thaw()
        assert f"{server.address}: no answer in time" in str(watch.registry.last_error)
        await watch.until_up(15)
        server.kill()
        await watch.until_down(15)
        server.restart("host-record=orders.test,10.0.0.2,1")
        await watch.until_hosts("10.0.0.2:80*1", timeout_s=20)


@pytest_twisted.ensureDeferred
async def test_another_server_answers_for_one_that_does_not(server: NameServer) -> None:
    server.restart("host-record=orders.test,10.0.0.1,1")
    servers = f"127.0.0.1:{free_port()}", server.address
    with watching(DNSRegistry, of(server, nameservers=servers)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        began_s = REACTOR.seconds()
        asked = len(server.queries)
        await until(lambda: len(server.queries) >= asked + 2, REACTOR, 10)
        assert REACTOR.seconds() - began_s < 5, "it is asked first from now on"


@pytest_twisted.ensureDeferred
async def test_the_rules_for_hosts_hold_for_dns_too(server: NameServer) -> None:
    """Whoever has the zone cannot send requests to a cloud's metadata."""
    server.restart("host-record=orders.test,169.254.169.254", "host-record=orders.test,10.0.0.1")
    with watching(DNSRegistry, of(server)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        assert watch.registry.skipped == {"forbidden_address": 1}


@pytest_twisted.ensureDeferred
async def test_the_systems_name_server_speaks_for_others(server: NameServer, tmp_path: Path) -> None:
    """It is on the loopback on many hosts, so that says nothing; without its port 53 here nothing answers either."""
    (tmp_path / "resolv.conf").write_text("search a.test\nnameserver 127.0.0.1\nnameserver\nnameserver ::1\n")
    assert _of_system(tmp_path / "resolv.conf") == [("127.0.0.1", 53), ("::1", 53)]
    assert _of_system(tmp_path / "none") == [("127.0.0.1", 53)]
    wanted = Discovery("dns", "orders.test", port=80)
    with watching(DNSRegistry, wanted, resolv_conf=tmp_path / "resolv.conf") as watch:
        assert not watch.registry.wanted.boundary().allow_loopback
    assert Wanted("orders", of(server)).boundary().allow_loopback


# -- what is no name server


class _Answering(DatagramProtocol):
    """Answers each query with what `make` makes of it."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def datagramReceived(self, data: bytes, addr: Any) -> None:
        message = dns.Message()
        message.fromStr(data)
        for said in self.make(message):
            assert self.transport is not None
            self.transport.write(said, addr)


def _refusing(code: int) -> Any:
    def make(message: dns.Message) -> list[bytes]:
        message.answer, message.rCode = 1, code
        return [message.toStr()]

    return make


def _other_name(message: dns.Message) -> list[bytes]:
    message.answer = 1
    message.answers = [dns.RRHeader(b"evil.test", dns.A, dns.IN, 60, dns.Record_A("10.6.6.6"))]
    return [message.toStr()]


def _circle(message: dns.Message) -> list[bytes]:
    message.answer = 1
    asked = message.queries[0].name.name
    message.answers = [
        dns.RRHeader(asked, dns.CNAME, dns.IN, 60, dns.Record_CNAME(b"b.test")),
        dns.RRHeader(b"b.test", dns.CNAME, dns.IN, 60, dns.Record_CNAME(asked)),
    ]
    return [message.toStr()]


CASES = {
    "SERVFAIL": (_refusing(dns.ESERVER), "SERVFAIL"),
    "REFUSED": (_refusing(dns.EREFUSED), "REFUSED"),
    "not implemented": (_refusing(dns.ENOTIMP), "DNSNotImplementedError"),
    "an unknown code": (_refusing(13), "DNSUnknownError"),
    "noise": (lambda message: [b"\xff" * 40, b"", b"\x00" * 11], "no answer in time"),
    "another id": (lambda message: [b"\x00\x00" + message.toStr()[2:]], "no answer in time"),
}


@pytest.mark.parametrize("name", CASES)
@pytest_twisted.ensureDeferred
async def test_garbage_is_a_failure_in_one_line_and_the_list_stays(name: str) -> None:
    make, why = CASES[name]
    port = REACTOR.listenUDP(0, _Answering(make), interface="127.0.0.1")
    wanted = Discovery("dns", "orders.test", port=80, nameservers=(f"127.0.0.1:{port.getHost().port}",))
    with watching(DNSRegistry, wanted, known=(Entry("10.0.0.1", 80),)) as watch:
        await watch.until_down(15)
        assert why in str(watch.registry.last_error) and str(watch.registry.last_error).isprintable()
        assert watch.hosts == ["10.0.0.1:80*1"] and watch.lists == []
    await port.stopListening()


@pytest.mark.parametrize("make", [_other_name, _circle])
@pytest_twisted.ensureDeferred
async def test_records_of_another_name_are_nobodys(make: Any) -> None:
    port = REACTOR.listenUDP(0, _Answering(make), interface="127.0.0.1")
    wanted = Discovery("dns", "orders.test", port=80, nameservers=(f"127.0.0.1:{port.getHost().port}",))
    with watching(DNSRegistry, wanted) as watch:
        await watch.until_up()
        assert watch.hosts == []
    await port.stopListening()
