"""Which address is the client's, and what it counts as."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.core.client_address import TrustedProxies, client_network, counting_address, network_of

TRUSTED = TrustedProxies([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])


@pytest.mark.parametrize(
    ("peer", "chain", "client"),
    [
        ("203.0.113.9", b"1.2.3.4", "203.0.113.9"),  # an untrusted peer's word is nothing
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", b"", "10.0.0.1"),
        ("10.0.0.1", b"1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", b"6.6.6.6, 1.2.3.4", "1.2.3.4"),  # what stands left of the client is the client's own writing
        ("10.0.0.1", b"6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
        ("10.0.0.1", b"garbage, 1.2.3.4 ,\t10.0.0.2", "1.2.3.4"),
        ("10.0.0.1", b"10.0.0.3, 10.0.0.2", "10.0.0.3"),  # all trusted: the one that began
        ("10.0.0.1", b"garbage", "10.0.0.1"),
        ("10.0.0.1", b"1.2.3.4, garbage", "10.0.0.1"),
        ("10.0.0.1", b"1.2.3.4, garbage, 10.0.0.2", "10.0.0.1"),
        ("10.0.0.1", b",", "10.0.0.1"),
        ("10.0.0.1", b"1.2.3.4:4711", "1.2.3.4"),
        ("10.0.0.1", b"1.2.3.4:x", "10.0.0.1"),
        ("10.0.0.1", b"[2001:db8::7]:443", "2001:db8::7"),
        ("10.0.0.1", b"[2001:db8::7]", "2001:db8::7"),
        ("10.0.0.1", b"[2001:db8::7", "10.0.0.1"),
        ("10.0.0.1", b"[2001:db8::7]x", "10.0.0.1"),
        ("10.0.0.1", b"[1.2.3.4]", "10.0.0.1"),
        ("10.0.0.1", b"2001:DB8:0::7", "2001:db8::7"),
        ("10.0.0.1", b"fe80::1%eth0", "10.0.0.1"),
        ("10.0.0.1", b"::ffff:1.2.3.4", "1.2.3.4"),
        ("fd00::1", b"2001:db8::7, ::ffff:10.1.1.1", "2001:db8::7"),
        ("::ffff:10.0.0.1", b"1.2.3.4", "1.2.3.4"),
        ("::ffff:203.0.113.9", b"1.2.3.4", "203.0.113.9"),
        ("", b"1.2.3.4", ""),
    ],
)
def test_the_client_is_the_rightmost_address_that_is_no_trusted_proxy(peer: str, chain: bytes, client: str) -> None:
    """And the peer itself whenever the chain cannot be believed or read."""
    assert TRUSTED.client_ip(peer, chain) == client


def test_proxies_may_be_named_as_ipv6_sees_them() -> None:
    """Their addresses are IPv4 whichever way a listener got them."""
    proxies = TrustedProxies([ip_network("::ffff:10.0.0.0/104")])
    for peer in ("10.0.0.1", "::ffff:10.0.0.1"):
        assert proxies.trusts(peer) and proxies.client_ip(peer, b"1.2.3.4, 10.9.9.9") == "1.2.3.4"
    assert not proxies.trusts("11.0.0.1")


@pytest.mark.parametrize(
    ("given", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("192.0.2.1", "192.0.2.1/32"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::ffff:203.0.113.7", "203.0.113.7/32"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("::fffe:0:0/95", "::fffe:0:0/95"),
    ],
)
def test_a_network_of_mapped_addresses_is_its_ipv4_network(given: str, network: str) -> None:
    assert client_network(given) == client_network(ip_network(given)) == ip_network(network)


@pytest.mark.parametrize("given", ["fe80::1%eth0", "fe80::%eth0/64", "::ffff:10.0.0.1/104", "10.0.0.1/8", "office", ""])
def test_what_is_no_network_of_clients(given: str) -> None:
    with pytest.raises(ValueError):
        client_network(given)


@given(st.ip_addresses(v=4), st.integers(0, 32), st.ip_addresses(v=4))
def test_a_mapped_network_has_the_addresses_of_the_ipv4_one(network, prefix, client) -> None:  # type: ignore[no-untyped-def]
    mapped = client_network(f"::ffff:{network}/{96 + prefix}", strict=False)
    assert (client in mapped) is (client in ip_network(f"{network}/{prefix}", strict=False))


def test_without_trusted_proxies_the_peer_is_the_client() -> None:
    """The default; the header is not looked at."""
    assert TrustedProxies().client_ip("10.0.0.1", b"1.2.3.4") == "10.0.0.1"


def test_a_chain_of_trusted_proxies_without_end_says_nothing() -> None:
    """Its cost is bounded too: at most 32 hops are read."""
    assert TRUSTED.client_ip("10.0.0.1", b"1.2.3.4" + b",10.0.0.2" * 31) == "1.2.3.4"
    assert TRUSTED.client_ip("10.0.0.1", b"10.0.0.9" + b",10.0.0.2" * 31) == "10.0.0.9"
    assert TRUSTED.client_ip("10.0.0.1", b"1.2.3.4" + b",10.0.0.2" * 900) == "10.0.0.1"


def test_trust_is_remembered_for_a_bounded_number_of_peers() -> None:
    """Strangers by the thousand do not fill memory, nor does their number change who is trusted."""
    proxies = TrustedProxies([ip_network("10.0.0.0/8")])
    for number in range(5000):
        assert not proxies.trusts(str(ip_address(0xCB000000 + number)))
    assert proxies.trusts("10.1.2.3")
    assert len(proxies._known) <= 1024


@given(st.binary(max_size=200))
def test_the_client_is_always_an_address(chain: bytes) -> None:
    """No bytes of the header make an error or anything but an address."""
    ip_address(TRUSTED.client_ip("10.0.0.1", chain))


strangers = st.ip_addresses(v=4).filter(lambda ip: ip not in ip_network("10.0.0.0/8"))


@given(st.lists(st.ip_addresses(), max_size=5), strangers)
def test_what_the_client_wrote_itself_changes_nothing(written, seen) -> None:  # type: ignore[no-untyped-def]
    """The proxy appends the address it saw; all that came before it is ignored."""
    chain = ", ".join(str(address) for address in [*written, seen]).encode()
    assert TRUSTED.client_ip("10.0.0.1", chain) == str(seen)


@pytest.mark.parametrize(
    ("ip", "counts_as"),
    [
        ("203.0.113.42", "203.0.113.42"),
        ("2001:db8::7", "2001-db8-0-0"),
        ("2001:db8:0:0:ffff::1", "2001-db8-0-0"),
        ("2001:db8:0:1::1", "2001-db8-0-1"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("fe80::1%eth0", "fe80-0-0-0"),
        ("a:b", "unknown"),
        ("", "unknown"),
    ],
)
def test_an_ipv6_client_counts_by_its_64(ip: str, counts_as: str) -> None:
    """One host owns a whole /64; else it had 2^64 limits."""
    assert counting_address(ip) == counts_as


@pytest.mark.parametrize(
    ("ip", "network"),
    [
        ("203.0.113.42", "203.0.113"),
        ("203.0.114.42", "203.0.114"),
        ("2001:db8:1:2::7", "2001-db8-1"),
        ("::ffff:1.2.3.4", "1.2.3"),
        ("a:b", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_network_is_a_24_or_a_48(ip: str, network: str) -> None:
    """What one owner of addresses can easily rotate within."""
    assert network_of(ip) == network
