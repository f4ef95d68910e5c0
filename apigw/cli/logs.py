"""`apigwctl logs`: entries of the access log that have what is asked for, the oldest first, as they are read."""

import re
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click

from apigw.cli.log_files import Entry, LogReader, log_files, log_option, since_option
from apigw.cli.refusals import nearest, warn
from apigw.cli.settings import Settings
from apigw.cli.show import json_option, plain
from apigw.config.problems import shown

_STATUS: Final = re.compile(r"[1-5](?:xx|[0-9]{2})")


class Status(click.ParamType[str]):
    """`5xx`, `404`, or `none` for a request that ended without an answer."""

    name = "status"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value != "none" and not _STATUS.fullmatch(value):
            self.fail(f"{shown(value)} is no status such as 5xx, 404 or none", param, ctx)
        return str(value)


@click.command()
@click.option("--status", "statuses", multiple=True, type=Status(), help="5xx, 404 or none (no answer); repeat.")
@click.option("--backend", metavar="NAME", help="Requests of this backend.")
@click.option("--route", metavar="ROUTE_ID", help="Requests of this route.")
@click.option("--client", metavar="IP", help="Requests from this address.")
@click.option("--partner", metavar="ID", help="Requests with an API key of this partner.")
@click.option("--user", metavar="ID", help="Requests with a token of this user.")
@click.option("--request-id", metavar="ID", help="The request with this X-Request-ID.")
@since_option
@click.option("--last", type=click.IntRange(1), help="Only so many, the newest.")
@log_option
@json_option
@click.pass_obj
def logs(
    settings: Settings,
    statuses: tuple[str, ...],
    backend: str | None,
    route: str | None,
    client: str | None,
    partner: str | None,
    user: str | None,
    request_id: str | None,
    since_s: float | None,
    last: int | None,
    given: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Find entries in the access log; rotated files too. --json prints them as they are, one a line."""
    _check_names(settings, backend, route)
    asked = {
        "backend_service": backend,
        "route_id": route,
        "client_ip": client,
        "partner_id": partner,
        "user_id": user,
        "request_id": request_id,
    }
    wanted = {name: value for name, value in asked.items() if value is not None}
    reader = LogReader(log_files(settings, given), since_s)
    lines: Iterable[str] = (
        line.decode("utf-8", "replace") if as_json else _line(entry)
        for entry, line in reader
        if _matches(entry, wanted) and (not statuses or any(_has(entry, status) for status in statuses))
    )
    for text in lines if last is None else deque(lines, last):
        sys.stdout.write(text)
    reader.tell()


def _check_names(settings: Settings, backend: str | None, route: str | None) -> None:
    """A name that is not configured may be one of last week: worth a word, no refusal."""
    config = settings.main
    known = {
        "backend": (backend, [each.name for each in config.backends]),
        "route": (route, [each.route_id for each in config.routes]),
    }
    for kind, (name, names) in known.items():
        if name is not None and name not in names and settings.complete:
            warn(f"the configuration has no {kind} {shown(name)}{nearest(name, names)}")


def _matches(entry: Entry, wanted: dict[str, str]) -> bool:
    return all(entry.get(name) == value for name, value in wanted.items())


def _has(entry: Entry, status: str) -> bool:
    found = entry.get("status")
    if type(found) is not int:
        return status == "none"
    return str(found) == status or (status[1:] == "xx" and str(found)[0] == status[0])


def _line(entry: Entry) -> str:
    """For a person: when, what, where it went, how long it took, what went wrong."""
    where = entry.get("backend_instance") or entry.get("backend_service")
    caller = entry.get("user_id") or entry.get("partner_id") or entry.get("client_ip")
    took = entry.get("total_latency_ms")
    words = [
        plain(entry["timestamp"]),
        plain(entry.get("status")),
        plain(entry.get("method")),
        plain(entry.get("path")),
        f"route={plain(entry.get('route_id'))}",
        f"backend={plain(where)}",
        f"caller={plain(caller)}",
        f"{took:.1f}ms" if isinstance(took, (int, float)) else "-",
    ]
    wrong = ": ".join(plain(entry[name]) for name in ("error_type", "error_message") if entry.get(name))
    return " ".join(words) + (f"  {wrong}\n" if wrong else "\n")
