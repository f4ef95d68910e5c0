"""Counters of tiers, prepared once; whose counter a request counts on is in tests/stages/test_rate_limit.py."""

from attrs import evolve

from apigw.config.model import Tier
from apigw.core.fingerprint import fingerprint
from apigw.core.tier_counters import Counters, TierCounters
from apigw.core.window import Demand
from apigw.exchange import Principal
from apigw.testing import ended_exchange

STANDARD = Tier("standard", 5, 60, "user_id")
BOTS = Tier("bots", 5, 60, "fingerprint")


def test_a_demand_has_the_tiers_rule() -> None:
    demand = Counters(STANDARD).demand(ended_exchange(), Principal(user_id="alice"))
    assert demand == Demand("standard", "rate:{standard:user:alice}", 5, 60)


def test_an_address_counts_by_itself_and_an_ipv6_by_its_64() -> None:
    counters = Counters(STANDARD)
    assert counters.of_address("203.0.113.42").key == "rate:{standard:ip:203.0.113.42}"
    assert counters.of_address("2001:db8::7").key == "rate:{standard:ip:2001-db8-0-0}"


def test_addresses_without_end_are_counted_and_not_all_remembered() -> None:
    counters = Counters(STANDARD)
    for number in range(3000):
        address = f"10.0.{number // 250}.{number % 250}"
        assert counters.of_address(address).key == f"rate:{{standard:ip:{address}}}"
        assert counters.of_address(address) is counters.of_address(address)
    assert len(counters._addresses) <= 1024


def test_a_fingerprint_knows_the_network_only_where_the_tier_says_so() -> None:
    ex = ended_exchange()
    ex.client_ip = "203.0.113.42"
    anywhere, here = fingerprint(ex.request), fingerprint(ex.request, "203.0.113.42")
    assert Counters(BOTS).demand(ex, Principal()).key == f"rate:{{bots:fingerprint:{anywhere}}}"
    local = Counters(evolve(BOTS, fingerprint_network=True))
    assert local.demand(ex, Principal()).key == f"rate:{{bots:fingerprint:{here}}}"


def test_a_caller_counts_on_the_counter_of_the_tier_that_asks_whatever_was_asked_before() -> None:
    """What a principal remembers is of one tier, in one configuration."""
    other = Tier("other", 7, 10, "user_id")
    alice, ex = Principal(user_id="alice"), ended_exchange()
    first, second, changed = Counters(STANDARD), Counters(other), Counters(evolve(STANDARD, limit=9))
    for counters, tier, limit in [(first, "standard", 5), (second, "other", 7), (first, "standard", 5)] * 2:
        demand = counters.demand(ex, alice)
        assert (demand.tier, demand.limit, demand.key) == (tier, limit, f"rate:{{{tier}:user:alice}}")
    assert changed.demand(ex, alice).limit == 9
    assert first.demand(ex, Principal(user_id="bob")).key == "rate:{standard:user:bob}"


def test_only_shadow_is_a_shadow() -> None:
    assert not Counters(STANDARD).shadow
    assert Counters(evolve(STANDARD, mode="shadow")).shadow


def test_a_tiers_counters_are_made_once_and_anew_after_a_reload_changed_it() -> None:
    """The key stays, so nothing is forgotten."""
    known = TierCounters()
    assert known.of(STANDARD) is known.of(STANDARD)
    changed = evolve(STANDARD, limit=7)
    assert known.of(changed).of_address("1.1.1.1") == Demand("standard", "rate:{standard:ip:1.1.1.1}", 7, 60)
