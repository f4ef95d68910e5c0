"""What the core wants from the world, as Protocols; adapters/ has one library behind each.

A method that may have to wait returns its value when it is at hand and a Deferred of it when not: on the
request path a Deferred costs more than most of the work.
"""

from typing import Any, Callable, Mapping, Protocol, Sequence

from twisted.internet.defer import Deferred

from apigw.core.api_keys import APIKey
from apigw.core.discovery import Entry
from apigw.core.tokens import Keyring
from apigw.core.window import Counted, Demand

WallClock = Callable[[], float]  # epoch seconds; rate windows and token expiry follow it, deadlines never do
DecisionCounter = Callable[[str, str], None]  # (tier, decision): rate_limit_decisions_total


class CounterStore(Protocol):
    """Counters of the rate limits of one deployment (Redis) or of this process (memory)."""

    def take(self, demands: Sequence[Demand], now_s: float) -> "Counted | Deferred[Counted]":
        """Count one request against all of `demands` at once, or against none when one of them is exhausted.

        Raises (or fails with) CounterStoreDown when the store cannot say within its timeout.
        """
        ...


class SettlingStore(CounterStore, Protocol):
    """A CounterStore that is far away, so that its counters may be added to later (core/allowance.py)."""

    def add(self, demand: Demand, count: int, at_s: float) -> None:
        """Add `count` requests, the last of which came at `at_s` (epoch s), or give some back. Never waits; lost while
        down."""
        ...


class KeySource(Protocol):
    """The verification keys of the identity service, cached and refreshed in the background."""

    def current(self) -> Keyring | None:
        """The keys in force, or None when there are none or they are older than their TTL. Never waits."""
        ...

    def refreshed(self) -> "Deferred[Keyring | None] | None":
        """For an unknown kid: waits for the refresh in flight, or starts one if the cool-down allows; else None."""
        ...


class APIKeySource(Protocol):
    """API keys and their owners, cached in front of a database."""

    def find(self, presented: bytes) -> "APIKey | Deferred[APIKey]":
        """The key as it came in X-API-Key, its secret checked. At hand for a key seen lately, else a Deferred.

        Raises (or fails with) InvalidAPIKey, 401, alike and after the same time for a key that is malformed, unknown,
        wrong, expired or revoked; AuthenticationUnavailable, 503, when it cannot be checked in time.
        """
        ...

    def knows(self, presented: bytes) -> bool:
        """Whether this key was good lately, so that asking for it costs no check of its secret."""
        ...


class SharedStore(Protocol):
    """What all gateways of a deployment share besides rate counters: a few commands, and messages. Off the hot path."""

    listening: bool  # the subscriptions are in force now; while False, messages may be missed

    def command(self, key: str, *words: str | bytes | int) -> "Deferred[Any]":
        """One command whose key is `key` (it says which cluster node). Replies as hiredis has them: bytes, int, list.

        Fails with StoreDown within its timeout, at once while the store is down; an error reply is StoreDown too.
        """
        ...

    def publish(self, channel: str, message: bytes) -> "Deferred[Any]":
        """Tell all gateways that listen. Fails with StoreDown."""
        ...

    def listen(self, channel: str, on_message: Callable[[bytes], None], on_listening: Callable[[], None]) -> None:
        """Before start: hear `channel`. `on_listening` is called each time the subscription begins (again): what was
        said before may have been missed, so load anew; commands are answered by then. Exceptions of both are logged."""
        ...


class Registry(Protocol):
    """The instances of one backend, as a registry knows them; asked in the background from start to stop.

    `on_instances`, which it was made with, is called with the first list and with each that differs from the one in
    force, perhaps from inside startService(). Whatever the registry does, the list in force stays until a good answer
    has another one.
    """

    where: str  # for people: "etcd http://10.0.0.5:2379 /services/orders/"
    up: bool | None  # whether the last answer was good; None before the first
    last_error: str | None  # why it is not up
    last_success_epoch_s: float | None
    skipped: Mapping[str, int]  # entries of the last good answer that are no instances, by core.discovery.REASONS

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The list in force."""
        ...

    def startService(self) -> None: ...

    def stopService(self) -> Any: ...


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
