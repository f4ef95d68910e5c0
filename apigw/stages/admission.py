"""Stage 6: the ceiling of requests in flight (design part 11: 5,000 an instance). Load shedding joins it here."""

from typing import Callable

from apigw.constants import RETRY_AFTER_OVERLOADED_S
from apigw.errors import GatewayError
from apigw.exchange import Exchange


class Admission:
    """`in_flight()` counts this request too."""

    name = "admission"
    needs = frozenset(("route",))
    gives = None

    def __init__(self, in_flight: Callable[[], int], max_in_flight: int) -> None:
        self._in_flight = in_flight
        self._max_in_flight = max_in_flight

    def enter(self, ex: Exchange) -> None:
        if self._in_flight() > self._max_in_flight:
            raise GatewayError(
                "The gateway is overloaded.",
                status=503,
                code="overloaded",
                retry_after_s=RETRY_AFTER_OVERLOADED_S,
                detail=f"more than {self._max_in_flight} requests in flight",
            )
