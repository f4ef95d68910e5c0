"""What may stand on the command line: durations, moments, networks, scopes, ids of keys, admin listeners.

Each says what it wants.
"""

import re
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import click

from apigw.cli.admin import Admin
from apigw.config.model import AdminSection
from apigw.config.problems import shown
from apigw.core.api_keys import Malformed, split
from apigw.core.client_address import client_network
from apigw.core.scopes import is_scope

_UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"([0-9]{1,9})([smhd])")
_KEY_ID: Final = re.compile(r"[A-Za-z0-9]{1,32}")
MAX_DURATION_S: Final = 100 * 365 * 86_400.0
_LAST_S: Final = 253_402_300_799.0  # 9999-12-31T23:59:59Z, the last second that can be shown as a date


def duration_s(text: str) -> float | None:
    """Seconds of `90d`, `24h`, `15m`, `30s`; None for anything else."""
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    seconds = int(match[1]) * _UNITS_S[match[2]]
    return seconds if seconds <= MAX_DURATION_S else None


def moment_s(text: str) -> float | None:
    """The epoch second of `2027-06-01` (its beginning) or `2027-06-01T08:00:00Z`, UTC where no zone is said.

    None for anything else, and for what is not within 1970 to 9999 in UTC.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    epoch_s = (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    return epoch_s if 0.0 <= epoch_s <= _LAST_S else None


class Duration(click.ParamType[float]):
    """`90d`, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        seconds = duration_s(value)
        if seconds is None:
            self.fail(f"{shown(value)} is no duration such as 90d, 24h, 15m or 30s", param, ctx)
        return seconds


class Moment(click.ParamType[float]):
    """A date, a time, or how long from now (with `past`: how long ago, or "now"), in epoch seconds by `wall`."""

    name = "time"

    def __init__(self, *, past: bool = False) -> None:
        self._sign = -1.0 if past else 1.0
        self._examples = "now, 24h or 2026-12-31T08:00:00Z" if past else "90d, 2027-06-01 or 2027-06-01T08:00:00Z"
        self._past = past

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        now_s = datetime.now(UTC).timestamp()
        if self._past and value == "now":
            return now_s
        seconds = duration_s(value)
        found_s = moment_s(value) if seconds is None else now_s + self._sign * seconds
        if found_s is None:
            self.fail(f"{shown(value)} is no time such as {self._examples}, from 1970 to 9999 in UTC", param, ctx)
        return found_s


class Network(click.ParamType[str]):
    """An address, or a network in CIDR form without host bits, as clients' addresses are compared with it."""

    name = "cidr"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if "%" in value:
            self.fail(f"{shown(value)} has a zone (%...), which is an interface of one machine", param, ctx)
        try:
            return str(client_network(value))
        except ValueError:
            pass
        try:
            meant = client_network(value, strict=False)
        except ValueError:
            self.fail(f"{shown(value)} is no address and no network such as 10.0.0.0/8", param, ctx)
        self.fail(f"{shown(value)} has host bits set; did you mean '{meant}'?", param, ctx)


class Scope(click.ParamType[str]):
    """A scope-token of RFC 6749."""

    name = "scope"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not is_scope(value):
            hint = "; repeat the option for each" if " " in value or "," in value else ""
            self.fail(f"{shown(value)} is no scope (visible ASCII, no blank, quote or backslash){hint}", param, ctx)
        return str(value)


class KeyId(click.ParamType[str]):
    """The id of an API key. A whole key is refused: command lines are seen by others and remembered by shells."""

    name = "key_id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if _KEY_ID.fullmatch(value):
            return str(value)
        try:
            key_id, _ = split(value.encode("utf-8", "replace"))
        except Malformed:
            self.fail("that is no id of an API key: letters and digits, as `keys list` shows it", param, ctx)
        self.fail(f"give the id alone, {key_id}: a whole key does not belong on a command line", param, ctx)


class AdminListener(click.ParamType[Admin]):
    """`http://10.0.0.7:9601`, or without `http://`, or without the port."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Admin:
        if isinstance(value, Admin):
            return value
        try:
            url = urlsplit(value if "://" in value else f"http://{value}")
            host, port = url.hostname, url.port
        except ValueError:  # a port that is none, brackets that do not close
            host = None
        if not host or url.scheme != "http" or url.path.strip("/") or url.query or url.fragment or "@" in url.netloc:
            self.fail(f"{shown(value)} is no admin listener such as http://10.0.0.7:9601", param, ctx)
        return Admin(host, AdminSection().port if port is None else port)
