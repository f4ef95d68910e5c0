"""Refusals that stand: bounded in number and time, and never a permission."""

from apigw.core.refusals import MAX_STANDING, ExhaustedAddresses, Refusals
from apigw.exchange import RateVerdict

VERDICT = RateVerdict(5, 0, 60)


def test_the_memory_is_bounded() -> None:
    """An attacker with many credentials makes it forget, not grow."""
    refusals = Refusals()
    for number in range(MAX_STANDING * 3):
        refusals.remember((b"%d" % number, None, "ip", "jwt", "tier"), 0.0, 1, 60, "tier", VERDICT, None)
    assert len(refusals._standing) <= MAX_STANDING


def test_a_short_window_is_remembered_for_a_fiftieth_of_it() -> None:
    refusals = Refusals()
    key = (None, None, "ip", "none", "tier")
    refusals.remember(key, 100.0, 1, 1, "tier", VERDICT, None)
    assert refusals.of(key, 100.01) is not None
    assert refusals.of(key, 100.03) is None
    assert not refusals.any


def test_an_address_stands_exhausted_until_the_second_in_which_a_request_may_pass() -> None:
    """Counts only shrink with time: before the last second of the wait the answer cannot have changed."""
    addresses = ExhaustedAddresses()
    assert not addresses.any
    addresses.remember("ip", 100.0, 5, 60, "tier", VERDICT)
    standing = addresses.of("ip", 103.9)
    assert standing is not None and standing.retry_at_s == 105.0 and standing.tier == "tier"
    assert addresses.of("ip", 104.0) is None and not addresses.any


def test_a_long_wait_is_asked_about_again_every_ten_seconds() -> None:
    """An operator who clears the counter is not waited for by a memory."""
    addresses = ExhaustedAddresses()
    addresses.remember("ip", 100.0, 3600, 86_400, "tier", VERDICT)
    assert addresses.of("ip", 109.9) is not None
    assert addresses.of("ip", 110.0) is None


def test_exhausted_addresses_are_bounded_and_the_oldest_goes_first() -> None:
    addresses = ExhaustedAddresses()
    for number in range(MAX_STANDING + 1):
        addresses.remember(f"ip-{number}", 100.0, 5, 60, "tier", VERDICT)
    assert addresses.of("ip-0", 101.0) is None
    assert addresses.of("ip-1", 101.0) is not None
    assert len(addresses._exhausted) <= MAX_STANDING


def test_a_clock_set_back_forgets_an_exhausted_address() -> None:
    addresses = ExhaustedAddresses()
    addresses.remember("ip", 100.0, 5, 60, "tier", VERDICT)
    assert addresses.of("ip", 50.0) is None
