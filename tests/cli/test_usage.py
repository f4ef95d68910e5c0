"""`apigwctl usage` on log files."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from apigw.cli.callers import MAX_CALLERS, Callers
from tests.cli.test_log_files import entry, put
from tests.cli.tool import Tool

GRACE = {"error_type": "missing_in_grace_period"}


@pytest.fixture
def logged(tool: Tool) -> Tool:
    """A tool whose log has a bit of everything."""
    path = tool.main_file.parent / "access.log"
    tool.sections["access_log"] = {"sinks": [{"type": "file", "path": str(path)}]}
    orders = {**tool.sections["routes"][0], "owner": "team-shop", "auth_grace_period": True}
    users = {**orders, "route_id": "users", "pattern": "/users", "owner": "team-accounts", "auth_grace_period": False}
    tool.sections["routes"] = [orders, users]
    caller = {"client_ip": "192.0.2.1", "user_agent": "old-app/1.0"}
    lines = [
        *[entry(n, route_id="orders", response_bytes=100, **caller, **GRACE) for n in range(3)],
        entry(5, route_id="orders", partner_id="acme", response_bytes=300, request_bytes=200, **caller),
        entry(6, route_id="users", user_id="alice", response_bytes=400, status=502, **caller),
        entry(7, route_id="gone", response_bytes=0, **caller),
        entry(8, route_id=None, status=404, **caller),
    ]
    put(path, b"".join(lines))
    return tool


def test_the_report_of_who_calls_without_credentials(logged: Tool) -> None:
    said = logged.run("usage", "--unauthenticated", "--json").json()
    (route,) = said["routes"]
    assert (route["route_id"], route["grace_period"], route["unauthenticated"], route["requests"], route["share"]) == (
        "orders",
        True,
        3,
        4,
        0.75,
    )
    (caller,) = route["callers"]
    assert (caller["client_ip"], caller["user_agent"], caller["requests"]) == ("192.0.2.1", "old-app/1.0", 3)
    table = logged.run("usage", "--unauthenticated").out
    assert "75.0%" in table and "old-app/1.0" in table and "2026-11-25T10:00:02.000Z" in table


def test_a_report_when_nobody_needs_the_grace_period_any_more(logged: Tool) -> None:
    ran = logged.run("usage", "--unauthenticated", "--since", "2026-11-25T10:00:05Z")
    assert ran.out.splitlines()[-1].split() == ["orders", "yes", "0", "1", "0.0%", "-"]
    logged.sections["routes"][0]["auth_grace_period"] = False
    ran = logged.run("usage", "--unauthenticated", "--since", "2026-11-25T10:00:05Z")
    assert "no route has a grace period, and nobody was let through" in ran.out


def shares(tool: Tool, by: str) -> dict[Any, Any]:
    return {one[by]: one for one in tool.run("usage", "--by", by, "--json").json()["usage"]}


def test_shares_by_route_owner_and_partner(logged: Tool) -> None:
    by_route = shares(logged, "route")
    assert {name: one["requests"] for name, one in by_route.items()} == {"orders": 4, "users": 1, "gone": 1, None: 1}
    assert by_route["orders"]["requests_share"] == pytest.approx(4 / 7)
    assert (by_route["orders"]["response_bytes"], by_route["orders"]["request_bytes"]) == (600, 200)
    assert by_route["orders"]["bytes_share"] == pytest.approx(800 / 1200)
    assert by_route["users"]["errors"] == 1
    assert sum(one["log_bytes"] for one in by_route.values()) == len(
        (logged.main_file.parent / "access.log").read_bytes()
    )
    by_owner = shares(logged, "owner")
    assert {name: one["requests"] for name, one in by_owner.items()} == {"team-shop": 4, "team-accounts": 1, None: 2}
    assert {name: one["requests"] for name, one in shares(logged, "partner").items()} == {"acme": 1, None: 6}
    assert "team-shop" in logged.run("usage", "--by", "owner").out


def test_a_long_table_is_cut_and_says_so(logged: Tool, tmp_path: Path) -> None:
    many = put(tmp_path / "many.log", b"".join(entry(1, client_ip=f"10.0.0.{n}", **GRACE) for n in range(60)))
    ran = logged.run("usage", "--unauthenticated", "--log", str(many), "--limit", "10")
    assert "and 50 callers more" in ran.out
    assert (
        len(logged.run("usage", "--unauthenticated", "--log", str(many), "--json").json()["routes"][0]["callers"]) == 60
    )


@pytest.mark.parametrize("words", [(), ("--unauthenticated", "--by", "route")])
def test_one_report_at_a_time(logged: Tool, words: tuple[str, ...]) -> None:
    assert "give one of --unauthenticated and --by" in logged.refused("usage", *words, status=2)


@pytest.mark.parametrize("verb", [("usage", "--by", "route"), ("logs",)])
def test_a_beginning_that_no_date_can_say_is_wrong_usage(logged: Tool, verb: tuple[str, ...]) -> None:
    said = logged.refused(*verb, "--since", "9999-12-31T23:59:59-01:00", status=2)
    assert "is no time such as now, 24h or 2026-12-31T08:00:00Z, from 1970 to 9999 in UTC" in said


def test_what_a_client_sent_steers_no_terminal(logged: Tool, tmp_path: Path) -> None:
    evil = put(tmp_path / "evil.log", entry(1, client_ip="192.0.2.9", user_agent="\x1b]0;x\x07[red]\u202e", **GRACE))
    ran = logged.run("usage", "--unauthenticated", "--log", str(evil))
    assert "\x1b" not in ran.out and "\u202e" not in ran.out and "\\x1b]0;x\\x07[red]\\u202e" in ran.out


def test_memory_is_bounded_whatever_the_log_has() -> None:
    """A million callers would be 400 MB; kept are so many, the others in sums."""
    callers = Callers()
    agent = "x" * 100
    tracemalloc.start()
    for number in range(4 * MAX_CALLERS):
        line = entry(1, client_ip=f"2001:db8::{number:x}", user_agent=f"{agent}{number}", **GRACE)
        callers.add(json.loads(line))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 40_000_000
    (route,) = callers.report()
    assert (len(route["callers"]), route["others"]) == (MAX_CALLERS, 3 * MAX_CALLERS)
