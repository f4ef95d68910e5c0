"""What the core wants from the world, as Protocols; adapters/ has one library behind each.

A method that may have to wait returns its value when it is at hand and a Deferred of it when not: on the
request path a Deferred costs more than most of the work.
"""

from typing import Any, Callable, Protocol, Sequence

from twisted.internet.defer import Deferred

from apigw.core.tokens import Keyring
from apigw.core.window import Counted, Demand

WallClock = Callable[[], float]  # epoch seconds; rate windows and token expiry follow it, deadlines never do


class CounterStore(Protocol):
    """Counters of the rate limits of one deployment (Redis) or of this process (memory)."""

    def take(self, demands: Sequence[Demand], now_s: float) -> "Counted | Deferred[Counted]":
        """Count one request against all of `demands` at once, or against none when one of them is exhausted.

        Raises (or fails with) CounterStoreDown when the store cannot say within its timeout.
        """
        ...


class KeySource(Protocol):
    """The verification keys of the identity service, cached and refreshed in the background."""

    def current(self) -> Keyring | None:
        """The keys in force, or None when there are none or they are older than their TTL. Never waits."""
        ...

    def refreshed(self) -> "Deferred[Keyring | None] | None":
        """For an unknown kid: waits for the refresh in flight, or starts one if the cool-down allows; else None."""
        ...


class LogSink(Protocol):
    """Takes access log lines without ever waiting; counts what it must drop."""

    name: str

    def start(self) -> None: ...

    def write(self, line: bytes) -> None: ...

    def reopen(self) -> None: ...

    def dropped(self) -> int: ...

    def written(self) -> int: ...

    def errors(self) -> int: ...

    def close(self, timeout_s: float) -> Any: ...
