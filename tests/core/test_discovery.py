"""Whom a registry may name, and when it is believed that there is nobody."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.core.discovery import (
    MAX_CONSIDERED,
    MAX_INSTANCES,
    MAX_WEIGHT,
    REASONS,
    Belief,
    Boundary,
    Entry,
    RawEntry,
    leads_astray,
    scaled,
    sift,
)

OPEN = Boundary(allow_loopback=True, allow_names=True)
A, B = Entry("10.0.0.1", 80), Entry("10.0.0.2", 80)


def verdict(host: object, boundary: Boundary = Boundary(), port: int = 80) -> str:
    """The host as it would be used, or the reason for which it is not."""
    found = sift([RawEntry(host, port)], boundary)
    return found.entries[0].host if found.entries else next(iter(found.skipped))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("192.168.7.9", "192.168.7.9"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("127.0.0.1", "loopback"),
        ("127.8.8.8", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("64:ff9b::7f00:1", "loopback"),
        ("2002:7f00:1::", "loopback"),
        ("169.254.169.254", "forbidden_address"),
        ("::ffff:169.254.169.254", "forbidden_address"),
        ("64:ff9b::a9fe:a9fe", "forbidden_address"),
        ("fe80::1", "forbidden_address"),
        ("fd00:ec2::254", "forbidden_address"),
        ("100.100.100.200", "forbidden_address"),
        ("0.0.0.0", "forbidden_address"),
        ("0.0.0.7", "forbidden_address"),
        ("::", "forbidden_address"),
        ("224.0.0.1", "forbidden_address"),
        ("255.255.255.255", "forbidden_address"),
        ("ff02::1", "forbidden_address"),
        ("2001:db8::1%eth0", "bad_host"),
        ("orders.internal", "a_name"),
        ("", "bad_host"),
        (None, "bad_host"),
        (["10.0.0.1"], "bad_host"),
        ("10.0.0.1:80", "bad_host"),
        ("10.0.0.01", "bad_host"),
        ("[::1]", "bad_host"),
        ("a b", "bad_host"),
        ("a\r\nX: y", "bad_host"),
        ("x" * 300, "bad_host"),
    ],
)
def test_what_a_registry_may_name_as_a_host(given: object, said: str) -> None:
    assert verdict(given) == said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("Orders.Internal.", "orders.internal"),
        ("_sip.orders_1.internal", "_sip.orders_1.internal"),
        ("127.1", "bad_host"),
        ("2130706433", "bad_host"),
        ("0x7f000001", "bad_host"),
        ("0x7f.1", "bad_host"),
        ("a..b", "bad_host"),
        ("-a.b", "bad_host"),
        ("a.b-", "bad_host"),
        ("ä.example", "bad_host"),
        ("169.254.169.254", "forbidden_address"),
    ],
)
def test_what_it_may_name_where_names_and_loopback_are_allowed(given: str, said: str) -> None:
    """What a resolver would read as an IPv4 address is no name: it would go around the rules for addresses."""
    assert verdict(given, OPEN) == said


@pytest.mark.parametrize(
    ("address", "astray"),
    [
        ("169.254.169.254", True),
        ("fe80::1%eth0", True),
        ("::ffff:169.254.169.254", True),
        ("fd00:ec2::254", True),
        ("0.0.0.0", True),
        ("no address", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("2001:db8::1", False),
    ],
)
def test_where_no_name_may_lead(address: str, astray: bool) -> None:
    assert leads_astray(address) is astray


def test_names_of_this_machine_are_loopback() -> None:
    names = Boundary(allow_names=True)
    assert [verdict(name, names) for name in ("localhost", "a.localhost", "db.internal")] == [
        "loopback",
        "loopback",
        "db.internal",
    ]


def test_the_gateways_own_ports_are_no_instances() -> None:
    """Else a registry could publish the admin listener."""
    own = Boundary(allow_loopback=True, own_ports=frozenset({9601}))
    assert verdict("127.0.0.1", own, port=9601) == "own_port"
    assert verdict("::ffff:127.0.0.9", own, port=9601) == "own_port"
    assert verdict("127.0.0.1", own, port=9602) == "127.0.0.1"
    assert verdict("10.0.0.1", own, port=9601) == "10.0.0.1"
    here = Boundary(own_ports=frozenset({9601}), is_own=lambda address: address == "10.0.0.1")
    assert verdict("10.0.0.1", here, port=9601) == verdict("::ffff:10.0.0.1", here, port=9601) == "own_port"
    assert verdict("10.0.0.1", here, port=9602) == "10.0.0.1" and verdict("10.0.0.2", here, port=9601) == "10.0.0.2"


def test_networks_leave_out_what_is_not_in_them() -> None:
    """Names too: nobody knows where they lead."""
    walled = Boundary(
        allow_names=True, networks=(ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8"))
    )
    given = ("10.1.2.3", "10.2.0.1", "fd00::1", "2001:db8::1", "db.internal")
    assert [verdict(host, walled) for host in given] == [
        "10.1.2.3",
        "outside_networks",
        "fd00::1",
        "outside_networks",
        "a_name",
    ]


@pytest.mark.parametrize(
    ("port", "weight", "reason"),
    [
        (0, 1, "bad_port"),
        (65_536, 1, "bad_port"),
        ("80", 1, "bad_port"),
        (True, 1, "bad_port"),
        (80.0, 1, "bad_port"),
        (None, 1, "bad_port"),
        (80, 0, "bad_weight"),
        (80, MAX_WEIGHT + 1, "bad_weight"),
        (80, "1", "bad_weight"),
        (80, -1, "bad_weight"),
        (80, None, "bad_weight"),
    ],
)
def test_an_entry_with_a_bad_number_is_skipped_and_the_others_stay(port: object, weight: object, reason: str) -> None:
    found = sift([RawEntry("10.0.0.9", port, weight), RawEntry("10.0.0.1", 80)], Boundary())
    assert found.entries == (A,) and found.skipped == {reason: 1}


def test_the_order_of_an_answer_and_repeated_entries_mean_nothing() -> None:
    one = sift([RawEntry("10.0.0.2", 80), RawEntry("10.0.0.1", 80), RawEntry("10.0.0.1", 80, 5)], Boundary())
    two = sift([RawEntry("10.0.0.1", 80, 5), RawEntry("10.0.0.2", 80)], Boundary())
    assert one == two and one.entries == (Entry("10.0.0.1", 80, 5), B)


def test_of_too_many_every_gateway_takes_the_same() -> None:
    many = [RawEntry(f"10.{n // 250}.0.{n % 250 + 1}", 80) for n in range(1500)]
    one, two = sift(many, Boundary()), sift(reversed(many), Boundary())
    assert one == two and len(one.entries) == MAX_INSTANCES and one.skipped == {"too_many": 500}


def test_what_is_far_too_much_is_not_even_looked_at() -> None:
    found = sift((RawEntry("10.0.0.1", 80) for _ in range(MAX_CONSIDERED + 7)), Boundary())
    assert found.entries == (A,) and found.skipped == {"too_many": 7}


anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@given(st.lists(st.builds(RawEntry, anything, anything | st.integers(1, 65_535), anything | st.just(1)), max_size=20))
def test_whatever_an_answer_holds_each_entry_is_used_or_counted(answer: list[RawEntry]) -> None:
    found = sift(answer, OPEN)
    assert sum(found.skipped.values()) + len(found.entries) <= len(answer)
    assert set(found.skipped) <= set(REASONS)


@given(st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address) | st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address))
def test_what_is_let_through_is_an_address_like_any_other(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    said = verdict(str(address))
    if said not in REASONS:
        assert ipaddress.ip_address(said) == address
        assert not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified)


@given(st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address))
def test_the_short_way_for_plain_addresses_leads_where_the_long_one_does(address: ipaddress.IPv4Address) -> None:
    everywhere = Boundary(networks=(ipaddress.ip_network("0.0.0.0/0"),))
    assert verdict(str(address)) == verdict(str(address), everywhere)


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ([], []),
        ([0, 0], [1, 1]),
        ([1, 3], [1, 3]),
        ([65_535, 65_535], [1000, 1000]),
        ([60_000, 20_000, 0], [1000, 333, 1]),
    ],
)
def test_large_weights_keep_their_proportions(given: list[int], ours: list[int]) -> None:
    assert scaled(given) == ours


# -- believing


def test_a_list_takes_the_place_of_another_at_once() -> None:
    belief = Belief(300.0)
    assert belief.take((A, B), 0.0) and belief.entries == (A, B)
    assert belief.take((B,), 1.0) and belief.entries == (B,)
    assert not belief.take((B,), 2.0)


def test_nobody_is_believed_only_after_a_while() -> None:
    belief = Belief(300.0, (A,))
    assert not belief.take((), 1000.0) and not belief.take((), 1299.9)
    assert belief.entries == (A,) and belief.empty_since_s == 1000.0
    assert belief.take((), 1300.0) and belief.entries == ()
    assert not belief.take((), 1301.0)


def test_what_is_in_doubt_says_for_how_long_still() -> None:
    belief = Belief(300.0, (A,))
    assert belief.doubted_for_s(10.0) is None
    belief.take((), 10.0)
    assert (belief.doubted_for_s(10.0), belief.doubted_for_s(309.0), belief.doubted_for_s(400.0)) == (300.0, 1.0, 0.0)
    belief.take((B,), 20.0)
    assert belief.doubted_for_s(20.0) is None
    belief.take((), 30.0)
    belief.take((), 330.0)
    assert belief.doubted_for_s(330.0) is None and belief.entries == ()


def test_a_list_in_between_begins_the_while_anew() -> None:
    belief = Belief(300.0, (A,))
    belief.take((), 0.0)
    belief.take((A,), 200.0)
    assert belief.empty_since_s is None
    belief.take((), 250.0)
    assert not belief.take((), 500.0) and belief.entries == (A,)


def test_nobody_can_be_believed_at_once() -> None:
    belief = Belief(0.0, (A,))
    assert belief.take((), 5.0) and belief.entries == ()
