"""Who calls without credentials while a route's auth_grace_period lets them: counted from access log entries. Pure.

An entry says so by error_type, or, when the request failed in another way afterwards, where error_message begins.
Memory is bounded: beyond MAX_CALLERS different callers, new ones are counted together, by route.
"""

from collections.abc import Iterable
from typing import Any, Final

from apigw.names import IN_GRACE_PERIOD

MAX_CALLERS: Final = 20_000
MAX_ROUTES: Final = 100_000  # names come from configurations, but a log may be anything

Caller = tuple[str, str]  # client_ip, user_agent


class _Seen:
    """How often, and from when to when (texts of the log)."""

    __slots__ = ("count", "first", "last")

    def __init__(self) -> None:
        self.count = 0
        self.first = self.last = ""

    def at(self, timestamp: str) -> None:
        self.count += 1
        if not self.first or timestamp < self.first:
            self.first = timestamp
        if timestamp > self.last:
            self.last = timestamp


class _Route:
    __slots__ = ("requests", "passed", "callers", "others")

    def __init__(self) -> None:
        self.requests = 0
        self.passed = _Seen()
        self.callers: dict[Caller, _Seen] = {}
        self.others = _Seen()


class Callers:
    """Give it entries, then ask for the report. `grace`: routes that have a grace period now; they are in it anyway."""

    def __init__(self, grace: Iterable[str] = (), max_callers: int = MAX_CALLERS) -> None:
        self._grace = set(grace)
        self._routes: dict[str, _Route] = {route: _Route() for route in sorted(self._grace)}
        self._max_callers = max_callers
        self._callers = 0

    def add(self, entry: dict[str, Any]) -> None:
        """Count one entry of the log, whatever it is."""
        name = entry.get("route_id")
        if type(name) is not str:
            return
        route = self._routes.get(name)
        if route is None:
            if len(self._routes) >= MAX_ROUTES:
                return
            route = self._routes[name] = _Route()
        route.requests += 1
        if not _passed(entry):
            return
        timestamp = str(entry["timestamp"])
        route.passed.at(timestamp)
        self._seen(route, (str(entry.get("client_ip") or ""), str(entry.get("user_agent") or ""))).at(timestamp)

    def _seen(self, route: _Route, caller: Caller) -> _Seen:
        seen = route.callers.get(caller)
        if seen is not None:
            return seen
        if self._callers >= self._max_callers:
            return route.others
        self._callers += 1
        seen = route.callers[caller] = _Seen()
        return seen

    def report(self) -> list[dict[str, Any]]:
        """JSON-ready: routes with callers, or in their grace period; who calls most comes first.

        requests: of the route, all of them. share: of these, 0 to 1. others: calls of callers that are not listed.
        """
        named = [(name, route) for name, route in self._routes.items() if route.passed.count or name in self._grace]
        named.sort(key=lambda each: -each[1].passed.count)
        return [
            {
                "route_id": name,
                "grace_period": name in self._grace,
                "requests": route.requests,
                "unauthenticated": route.passed.count,
                "share": route.passed.count / route.requests if route.requests else 0.0,
                "first_seen": route.passed.first or None,
                "last_seen": route.passed.last or None,
                "callers": _callers(route),
                "others": route.others.count,
            }
            for name, route in named
        ]


def _passed(entry: dict[str, Any]) -> bool:
    if entry.get("error_type") == IN_GRACE_PERIOD:
        return True
    message = entry.get("error_message")
    return type(message) is str and message.startswith(IN_GRACE_PERIOD)


def _callers(route: _Route) -> list[dict[str, Any]]:
    ranked = sorted(route.callers.items(), key=lambda each: (-each[1].count, each[0]))
    return [
        {
            "client_ip": client_ip or None,
            "user_agent": user_agent or None,
            "requests": seen.count,
            "share": seen.count / route.requests,
            "first_seen": seen.first,
            "last_seen": seen.last,
        }
        for (client_ip, user_agent), seen in ranked
    ]
