"""Redis in the shape that its URL says: one server, or the master that sentinels name."""

from collections.abc import Callable
from typing import Any

from twisted.application.service import MultiService

from apigw.adapters.redis_connect import RedisAccess, StraightWay, Way
from apigw.adapters.redis_counters import RedisCounters
from apigw.adapters.redis_sentinel import Sentinels
from apigw.adapters.shared_store import RedisSharedStore
from apigw.config.model import RedisSection
from apigw.config.redis_url import SENTINEL
from apigw.net.connect import Connector


class RedisDeployment(MultiService):
    """What a worker has of its Redis. Starts and stops all that it made. Raises OSError for the file of the CA.

    on_batch: called with the round trip in seconds and the number of checks of each write.
    """

    def __init__(
        self, section: RedisSection, reactor: Any, connector: Connector, on_batch: Callable[[float, int], None]
    ) -> None:
        super().__init__()
        self._section = section
        self._reactor = reactor
        self._on_batch = on_batch
        self._access = RedisAccess(section, reactor, connector)
        self._sentinels: Sentinels | None = None
        if self._access.url.kind == SENTINEL:
            self._sentinels = Sentinels(self._access, reactor)
            self._sentinels.setServiceParent(self)

    def _way(self) -> Way:
        if self._sentinels is not None:
            return self._sentinels.way()
        return StraightWay(self._access.to(self._access.url.hosts[0]))

    def counters(self) -> RedisCounters:
        """Of rate limits; once."""
        way = self._way()
        counters = RedisCounters(
            way.connect, self._reactor, self._reactor.after_turn, self._section, on_batch=self._on_batch
        )
        way.renew = counters.renew
        counters.setServiceParent(self)
        return counters

    def shared_store(self) -> RedisSharedStore:
        """Of what gateways share besides; once."""
        store = RedisSharedStore(self._way, self._reactor, self._access.opening)
        store.setServiceParent(self)
        return store
