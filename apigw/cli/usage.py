"""`apigwctl usage`: what the access log says of who uses the gateway, and of who still calls without credentials."""

from pathlib import Path
from typing import Any, Final

import click

from apigw.cli.callers import Callers
from apigw.cli.log_files import Entry, LogReader, log_files, log_option, since_option
from apigw.cli.refusals import warn
from apigw.cli.settings import Settings
from apigw.cli.show import document, json_option, table

MAX_GROUPS: Final = 100_000  # partners, routes and owners come from the configuration and the database; a log may not
OTHERS: Final = "(others)"
_SUMS: Final = ("requests", "errors", "request_bytes", "response_bytes", "log_bytes")


@click.command()
@click.option("--unauthenticated", is_flag=True, help="Who passes in a grace period, by route and caller.")
@click.option("--by", type=click.Choice(("owner", "route", "partner")), help="Shares of requests, bytes, log volume.")
@since_option
@log_option
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Rows of a table, per route.")
@json_option
@click.pass_obj
def usage(
    settings: Settings,
    unauthenticated: bool,
    by: str | None,
    since_s: float | None,
    given: tuple[Path, ...],
    limit: int,
    as_json: bool,
) -> None:
    """Who uses the gateway, from its access log; rotated files too."""
    if unauthenticated is (by is not None):
        raise click.UsageError("Give one of --unauthenticated and --by")
    reader = LogReader(log_files(settings, given), since_s)
    if by is None:
        _report_callers(settings, reader, limit, as_json)
    else:
        _report_shares(settings, by, reader, limit, as_json)
    reader.tell()


# -- without credentials


def _report_callers(settings: Settings, reader: LogReader, limit: int, as_json: bool) -> None:
    callers = Callers(route.route_id for route in settings.main.routes if route.auth_grace_period)
    for entry, _ in reader:
        callers.add(entry)
    report = callers.report()
    if as_json:
        document({"files": [str(path) for path in reader.files], "unreadable_lines": reader.odd, "routes": report})
        return
    _print_routes(report)
    for route in report:
        if route["callers"]:
            _print_callers(route, limit)
    if any(route["others"] for route in report):
        warn("there are more callers than are kept apart; the calls of the others are in the sums of their routes")


def _print_routes(report: list[dict[str, Any]]) -> None:
    if not report:
        print("no route has a grace period, and nobody was let through without credentials")
        return
    table(
        ("route", "grace period", "without credentials", "of requests", "share", "last seen"),
        [
            (one["route_id"], one["grace_period"], one["unauthenticated"], one["requests"])
            + (_percent(one["share"]), one["last_seen"])
            for one in report
        ],
        right=("without credentials", "of requests", "share"),
    )


def _print_callers(route: dict[str, Any], limit: int) -> None:
    print(f"\n{route['route_id']}")
    table(
        ("client_ip", "user_agent", "requests", "share", "first seen", "last seen"),
        [
            (one["client_ip"], one["user_agent"], one["requests"], _percent(one["share"]))
            + (one["first_seen"], one["last_seen"])
            for one in route["callers"][:limit]
        ],
        right=("requests", "share"),
    )
    if len(route["callers"]) > limit:
        print(f"and {len(route['callers']) - limit} callers more; --limit, or --json for all")


# -- shares


def _report_shares(settings: Settings, by: str, reader: LogReader, limit: int, as_json: bool) -> None:
    owners = {route.route_id: route.owner for route in settings.main.routes}
    groups: dict[str | None, dict[str, int]] = {}
    for entry, line in reader:
        name = _group(entry, by, owners)
        sums = groups.get(name)
        if sums is None:
            name = name if len(groups) < MAX_GROUPS else OTHERS
            sums = groups.setdefault(name, dict.fromkeys(_SUMS, 0))
        _count(sums, entry, line)
    rows = _shares(groups, by)
    if as_json:
        document({"files": [str(path) for path in reader.files], "unreadable_lines": reader.odd, "usage": rows})
        return
    columns = (by, "requests", "share", "errors", "bytes", "bytes share", "log bytes", "log share")
    table(
        columns,
        [
            (one[by], one["requests"], _percent(one["requests_share"]), one["errors"])
            + (one["request_bytes"] + one["response_bytes"], _percent(one["bytes_share"]))
            + (one["log_bytes"], _percent(one["log_share"]))
            for one in rows[:limit]
        ],
        right=columns[1:],
    )
    if len(rows) > limit:
        print(f"and {len(rows) - limit} more; --limit, or --json for all")


def _group(entry: Entry, by: str, owners: dict[str, str | None]) -> str | None:
    """None: no route matched, no partner, or nobody owns the route (any more)."""
    name = entry.get("partner_id") if by == "partner" else entry.get("route_id")
    if type(name) is not str:
        return None
    return owners.get(name) if by == "owner" else name


def _count(sums: dict[str, int], entry: Entry, line: bytes) -> None:
    status = entry.get("status")
    sums["requests"] += 1
    sums["errors"] += type(status) is int and status >= 500
    sums["log_bytes"] += len(line)
    for name in ("request_bytes", "response_bytes"):
        size = entry.get(name)
        sums[name] += size if type(size) is int else 0


def _shares(groups: dict[str | None, dict[str, int]], by: str) -> list[dict[str, Any]]:
    """The largest first."""
    ranked = sorted(groups.items(), key=lambda each: (-each[1]["requests"], each[0] or ""))
    totals = {name: sum(sums[name] for sums in groups.values()) or 1 for name in _SUMS}
    moved = sum(sums["request_bytes"] + sums["response_bytes"] for sums in groups.values()) or 1
    return [
        {
            by: name,
            **sums,
            "requests_share": sums["requests"] / totals["requests"],
            "bytes_share": (sums["request_bytes"] + sums["response_bytes"]) / moved,
            "log_share": sums["log_bytes"] / totals["log_bytes"],
        }
        for name, sums in ranked
    ]


def _percent(share: float) -> str:
    return f"{share:.1%}"
