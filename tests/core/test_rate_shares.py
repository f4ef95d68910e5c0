"""All parts of a cap are the cap; who is asked for more gets more; who is gone gives its part back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.core.rate_shares import FORGOTTEN_S, STALE_S, entry, forgotten, part

NOW = 1_707_264_490.0


def parts(demands: dict[bytes, float], cap_rps: float) -> dict[bytes, float]:
    entries = {name: entry(demand, NOW) for name, demand in demands.items()}
    return {name: part(entries, name, demand, cap_rps, NOW) for name, demand in demands.items()}


@given(st.dictionaries(st.binary(min_size=1, max_size=9), st.floats(0.0, 1e6), min_size=1), st.floats(0.1, 1e6))
def test_all_parts_are_the_cap(demands: dict[bytes, float], cap_rps: float) -> None:
    found = parts(demands, cap_rps)
    rounding = 0.05 * len(demands) / cap_rps  # an entry has one decimal
    assert sum(found.values()) == pytest.approx(1.0, abs=0.01 + rounding * len(demands))
    assert all(0.0 < each <= 1.0 for each in found.values())


def test_alone_it_is_all_of_it() -> None:
    assert part({}, b"a", 0.0, 100.0, NOW) == 1.0
    assert parts({b"a": 500.0}, 100.0) == {b"a": 1.0}


def test_who_is_asked_for_more_gets_more_and_the_quiet_one_keeps_some_room() -> None:
    found = parts({b"a": 900.0, b"b": 100.0, b"c": 0.0}, 1000.0)
    assert found[b"a"] == pytest.approx(950 / 1150)
    assert found[b"b"] == pytest.approx(150 / 1150)
    assert found[b"c"] == pytest.approx(50 / 1150)


def test_demand_below_the_cap_is_met_with_room_to_spare() -> None:
    found = parts({b"a": 60.0, b"b": 10.0}, 100.0)
    assert found[b"a"] * 100 > 75 and found[b"b"] * 100 > 15


def test_who_has_gone_quiet_counts_no_more_and_is_forgotten_later() -> None:
    entries = {
        b"late": entry(100.0, NOW - STALE_S - 1),
        b"ahead": entry(100.0, NOW + STALE_S + 1),
        b"gone": entry(100.0, NOW - FORGOTTEN_S - 1),
        b"nonsense": b"what",
        b"more": b"1 2 3",
        b"nan": b"nan 1",
        b"minus": b"-1 %.0f" % NOW,
        b"long": b"1" * 100 + b" 1",
        b"fresh": entry(100.0, NOW - 1),
    }
    assert part(entries, b"me", 100.0, 100.0, NOW) == pytest.approx(0.5)
    assert sorted(forgotten(entries, NOW)) == [b"gone", b"long", b"minus", b"more", b"nan", b"nonsense"]
