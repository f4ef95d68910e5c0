"""Stage 6: what an overloaded worker does not take on. Before authentication, so that to refuse costs little.

in flight   more than gateway.max_in_flight: everybody (design part 11: 5,000 an instance); P1, P2 and P3 leave a
            hundredth, a tenth and a fifth of it to those before them, so that a slow backend of theirs, or refused
            credentials that are held for a second, do not fill it up. P1 is the default: it has all of a small one
shedding    core/shedding.py: by the route's priority while CPU, loop lag or memory are too high
"""

from itertools import cycle
from typing import Callable

from apigw.constants import OVERLOADED_RETRIES_S
from apigw.core.shedding import Shedding
from apigw.errors import GatewayError
from apigw.exchange import Exchange
from apigw.names import SHED

_MESSAGE = "The gateway is overloaded."


class Admission:
    """`in_flight()` counts this request too. on_shed(priority) is told of each refusal."""

    name = "admission"
    needs = frozenset(("route",))
    gives = None

    def __init__(
        self, in_flight: Callable[[], int], max_in_flight: int, shedding: Shedding, on_shed: Callable[[str], None]
    ) -> None:
        self._in_flight = in_flight
        self._max_in_flight = max_in_flight
        twentieth = max_in_flight // 20
        self._ceilings = {
            "P1": max_in_flight - max_in_flight // 100,
            "P2": max_in_flight - 2 * twentieth,
            "P3": max_in_flight - 4 * twentieth,
        }
        self._least = self._ceilings["P3"]  # up to here nobody's priority matters
        self._shedding = shedding
        self._on_shed = on_shed
        self._waits_s = cycle(OVERLOADED_RETRIES_S)  # in turn: those refused together do not come again together

    def enter(self, ex: Exchange) -> None:
        if self._in_flight() > self._least:
            self._check_in_flight(ex)
        if self._shedding.active:
            self._check_load(ex)

    def _check_in_flight(self, ex: Exchange) -> None:
        ceiling = self._ceilings.get(_priority(ex), self._max_in_flight)
        if self._in_flight() > ceiling:
            self._refuse(ex, f"{_priority(ex)}, more than {ceiling} requests in flight")

    def _check_load(self, ex: Exchange) -> None:
        priority = _priority(ex)
        if self._shedding.refuses(priority):
            self._refuse(ex, f"{priority}, {self._shedding.because}")

    def _refuse(self, ex: Exchange, detail: str) -> None:
        self._on_shed(_priority(ex))
        raise GatewayError(
            _MESSAGE,
            status=503,
            code="overloaded",
            retry_after_s=next(self._waits_s),
            detail=detail,
            reason=SHED,
        )


def _priority(ex: Exchange) -> str:
    assert ex.route is not None  # the runner has put it there: needs
    return ex.route.priority
