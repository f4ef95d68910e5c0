"""Redis in the shape that its URL says: one server, the master that sentinels name, or a cluster."""

from collections.abc import Callable
from typing import Any

from twisted.application.service import MultiService

from apigw.adapters.redis_cluster import ClusterCounters
from apigw.adapters.redis_cluster_lines import AnyWay, ClusterLines
from apigw.adapters.redis_cluster_map import ClusterMap
from apigw.adapters.redis_connect import RedisAccess, StraightWay, Way
from apigw.adapters.redis_counters import RedisCounters
from apigw.adapters.redis_sentinel import Sentinels
from apigw.adapters.shared_store import RedisSharedStore
from apigw.config.model import RedisSection
from apigw.config.redis_url import CLUSTER, SENTINEL
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
        self._cluster: ClusterMap | None = None
        if self._access.url.kind == CLUSTER:
            self._cluster = ClusterMap(self._access, reactor)
            self._cluster.setServiceParent(self)
        self._counting: ClusterCounters | None = None

    def _way(self) -> Way:
        if self._sentinels is not None:
            return self._sentinels.way()
        if self._cluster is not None:
            return AnyWay(self._cluster)
        return StraightWay(self._access.to(self._access.url.hosts[0]))

    def whereabouts(self) -> dict[str, object]:
        """For /status: the master by its sentinels, the nodes of a cluster."""
        if self._sentinels is not None:
            current = self._sentinels.current
            return {"master": None if current is None else f"{current[0]}:{current[1]}"}
        if self._counting is not None:
            return {"nodes": self._counting.nodes()}
        return {}

    def counters(self) -> "RedisCounters | ClusterCounters":
        """Of rate limits; once."""
        if self._cluster is not None:
            return self._cluster_counters(self._cluster)
        way = self._way()
        counters = RedisCounters(
            way.connect, self._reactor, self._reactor.after_turn, self._section, on_batch=self._on_batch
        )
        way.renew = counters.renew
        counters.setServiceParent(self)
        return counters

    def _cluster_counters(self, cluster: ClusterMap) -> ClusterCounters:
        counters = ClusterCounters(cluster, self._reactor, self._reactor.after_turn, self._section, self._on_batch)
        counters.setServiceParent(self)
        self._counting = counters
        return counters

    def shared_store(self) -> RedisSharedStore:
        """Of what gateways share besides; once."""
        lines = None if self._cluster is None else ClusterLines(self._cluster, self._reactor)
        store = RedisSharedStore(self._way, self._reactor, self._access.opening, commands=lines)
        store.setServiceParent(self)
        return store
