"""Refusals that stand: bounded in number and time, and never a permission."""

from apigw.core.refusals import MAX_STANDING, Refusals
from apigw.exchange import RateVerdict

VERDICT = RateVerdict(5, 0, 60)


def test_the_memory_is_bounded() -> None:
    """An attacker with many credentials makes it forget, not grow."""
    refusals = Refusals()
    for number in range(MAX_STANDING * 3):
        refusals.remember((b"%d" % number, None, "ip", "tier"), 0.0, 1, 60, "tier", VERDICT, None)
    assert len(refusals._standing) <= MAX_STANDING


def test_a_short_window_is_remembered_for_a_fiftieth_of_it() -> None:
    refusals = Refusals()
    key = (None, None, "ip", "tier")
    refusals.remember(key, 100.0, 1, 1, "tier", VERDICT, None)
    assert refusals.of(key, 100.01) is not None
    assert refusals.of(key, 100.03) is None
    assert not refusals.any
