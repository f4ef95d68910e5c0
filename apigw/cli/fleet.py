"""Several gateways asked at a time, and what they say of each backend side by side: where they agree, and who does not.

Each gateway judges by what it sees; one that cannot reach an instance is as likely the trouble as the instance is.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from attrs import frozen

from apigw.cli.admin import Admin, ask_at
from apigw.cli.refusals import Refused

_AT_A_TIME: Final = 32

Status = dict[str, Any]


@frozen
class Gateway:
    """One that was asked. `name` is its instance_name, with its address where two have the same. `error`: no answer."""

    admin: str
    name: str | None
    status: Status
    error: str | None = None


def asked(admins: Sequence[Admin]) -> list[Gateway]:
    """All of them, each once, at the same time: one that hangs costs its own timeout."""
    each_once = list(dict.fromkeys(admins))
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        answers = list(threads.map(_answer, each_once))
    names = Counter(str(answer.get("instance")) for answer in answers if isinstance(answer, dict))
    return [_gateway(admin, answer, names) for admin, answer in zip(each_once, answers, strict=True)]


def _answer(admin: Admin) -> Status | Refused:
    try:
        return ask_at(admin, "/status")
    except Refused as refused:
        return refused


def _gateway(admin: Admin, answer: Status | Refused, names: Counter[str]) -> Gateway:
    if isinstance(answer, Refused):
        return Gateway(str(admin), None, {}, str(answer))
    name = str(answer.get("instance"))
    return Gateway(str(admin), name if names[name] == 1 else f"{name} at {admin}", answer)


def compared(gateways: Sequence[Gateway]) -> dict[str, dict[str, Any]]:
    """By backend: the gateways by the state of their circuits, those without the backend, and its instances."""
    views = {gateway.name or "": gateway.status.get("backends", {}) for gateway in gateways if gateway.error is None}
    backends = dict.fromkeys(name for view in views.values() for name in view)
    return {name: _backend({at: view.get(name) for at, view in views.items()}) for name in backends}


def _backend(views: dict[str, Status | None]) -> dict[str, Any]:
    circuits: dict[str, list[str]] = {}
    by_instance: dict[str, dict[str, Status]] = {}
    for at, view in views.items():
        if view is None:
            continue
        circuits.setdefault(str((view.get("circuit") or {}).get("state")), []).append(at)
        for one in view.get("instances", ()):
            by_instance.setdefault(str(one.get("instance")), {})[at] = one
    return {
        "circuit": circuits,
        "unknown_to": [at for at, view in views.items() if view is None],
        "instances": [_instance(label, seen, views) for label, seen in by_instance.items()],
    }


def _instance(label: str, seen: dict[str, Status], views: dict[str, Status | None]) -> dict[str, Any]:
    return {
        "instance": label,
        "up": [at for at, one in seen.items() if one.get("up")],
        "out": [
            {"gateway": at, "since_seconds": one.get("since_seconds"), "why": one.get("why")}
            for at, one in seen.items()
            if not one.get("up")
        ],
        "unknown_to": [at for at in views if at not in seen],
    }
