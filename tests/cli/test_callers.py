"""Who calls without credentials: counts that add up, in bounded memory."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from apigw.cli.callers import Callers

GRACE = {"error_type": "missing_in_grace_period", "error_message": None}


def entry(second: int = 0, route: str | None = "r", ip: str = "192.0.2.1", agent: str | None = "a", **more: Any) -> Any:
    stamp = f"2026-11-25T10:00:{second:02d}.000Z"
    return {"timestamp": stamp, "route_id": route, "client_ip": ip, "user_agent": agent, **more}


def report(*entries: Any, grace: tuple[str, ...] = (), **options: int) -> list[dict[str, Any]]:
    callers = Callers(grace, **options)
    for one in entries:
        callers.add(one)
    return callers.report()


def test_callers_are_told_apart_by_address_and_agent_with_their_share_of_the_route() -> None:
    (route,) = report(
        entry(5, **GRACE),
        entry(2, **GRACE),
        entry(9, ip="192.0.2.2", **GRACE),
        entry(3, error_type=None, error_message=None),
        entry(4, route="other", error_type=None),
        entry(4, route=None, error_type="route_not_found"),
    )
    assert (route["route_id"], route["requests"], route["unauthenticated"], route["share"]) == ("r", 4, 3, 0.75)
    assert (route["first_seen"], route["last_seen"]) == ("2026-11-25T10:00:02.000Z", "2026-11-25T10:00:09.000Z")
    first, second = route["callers"]
    assert first == {
        "client_ip": "192.0.2.1",
        "user_agent": "a",
        "requests": 2,
        "share": 0.5,
        "first_seen": "2026-11-25T10:00:02.000Z",
        "last_seen": "2026-11-25T10:00:05.000Z",
    }
    assert (second["client_ip"], second["requests"]) == ("192.0.2.2", 1)


def test_one_that_failed_afterwards_in_another_way_was_let_through_too() -> None:
    (route,) = report(
        entry(error_type="connection_refused", error_message="missing_in_grace_period: nobody there"),
        entry(error_type="missing_credentials", error_message="no Authorization header"),
    )
    assert (route["requests"], route["unauthenticated"]) == (2, 1)


def test_a_route_in_its_grace_period_is_in_the_report_when_nobody_needs_that_any_more() -> None:
    quiet, unused = report(entry(route="quiet"), grace=("quiet", "unused"))
    assert (quiet["requests"], quiet["unauthenticated"], quiet["share"], quiet["last_seen"]) == (1, 0, 0.0, None)
    assert (unused["route_id"], unused["grace_period"], unused["requests"], unused["share"]) == ("unused", True, 0, 0.0)


def test_an_entry_without_an_agent_is_a_caller_too() -> None:
    (route,) = report(entry(agent=None, **GRACE))
    assert route["callers"][0]["user_agent"] is None


@given(st.lists(st.tuples(st.sampled_from("rst"), st.integers(0, 30), st.booleans()), max_size=200))
def test_nothing_is_lost_when_there_are_more_callers_than_are_kept(calls: list[tuple[str, int, bool]]) -> None:
    """Sums of a route are exact; callers and others add up to them; no more are kept than may be."""
    entries = [entry(route=route, ip=str(ip), **(GRACE if passed else {})) for route, ip, passed in calls]
    routes = report(*entries, max_callers=10)
    assert sum(len(route["callers"]) for route in routes) <= 10
    for route in routes:
        mine = [passed for name, _, passed in calls if name == route["route_id"]]
        assert (route["requests"], route["unauthenticated"]) == (len(mine), sum(mine))
        assert sum(one["requests"] for one in route["callers"]) + route["others"] == sum(mine)
