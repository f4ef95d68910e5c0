"""Who waits for a connection of a pool, and a connection on its way to it."""

from typing import Any, NamedTuple, Protocol

from apigw.upstream.connection import UpstreamConnection
from apigw.upstream.member import Member


class Failed(NamedTuple):
    """Why there is no connection: a reason of names.UPSTREAM_REASONS, a sentence for the log, and the instance."""

    reason: str
    detail: str
    instance: str | None


class Waiter(Protocol):
    """A request that wants a connection; gets exactly one of both, perhaps from inside acquire().

    guarded: it obeys the backend's circuit breaker.
    """

    @property
    def guarded(self) -> bool: ...

    @property
    def timeout_s(self) -> float: ...

    def pool_ready(self, connection: UpstreamConnection) -> None: ...

    def pool_failed(self, reason: str, detail: str, instance: str | None) -> None: ...


class OpeningPool(Protocol):
    """The pool, as far as a connection that is being made knows it."""

    def opened(self, opening: "Opening", sock: Any, peer: Any) -> None: ...

    def open_failed(self, opening: "Opening", reason: str, detail: str) -> None: ...


class Opening:
    """A connection on its way to a waiter, or to the idle ones when the waiter is gone."""

    __slots__ = ("pool", "member", "waiter")

    def __init__(self, pool: "OpeningPool", member: Member, waiter: Waiter | None) -> None:
        self.pool = pool
        self.member = member
        self.waiter = waiter

    def connect_done(self, sock: Any, peer: Any) -> None:
        self.pool.opened(self, sock, peer)

    def connect_failed(self, reason: str, detail: str) -> None:
        self.pool.open_failed(self, reason, detail)
