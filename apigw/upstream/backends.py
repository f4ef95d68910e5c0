"""All backends of a worker: a pool and a health check each, kept across reloads by name."""

from typing import Any, Mapping

from twisted.application.service import MultiService

from apigw.config.model import Backend
from apigw.net.connect import Connector
from apigw.net.deadlines import Deadlines
from apigw.upstream.health import HealthCheck, Probe, Sweeper
from apigw.upstream.pool import Pool


class Backends(MultiService):
    """`pools` has exactly the backends of the configuration in force; requests of older ones keep theirs."""

    def __init__(self, reactor: Any, deadlines: Deadlines, probe: Probe) -> None:
        super().__init__()
        self._reactor = reactor
        self._deadlines = deadlines
        self._connector = Connector(reactor, deadlines)
        self._probe = probe
        self._checks: dict[str, HealthCheck] = {}
        self.pools: Mapping[str, Pool] = {}
        Sweeper(reactor, self._all_pools).setServiceParent(self)
        self._retired: list[Pool] = []

    def configure(self, backends: tuple[Backend, ...]) -> Mapping[str, Pool]:
        """Pools for these backends: known ones updated in place, gone ones retired. Returns the new mapping."""
        pools: dict[str, Pool] = {}
        for backend in backends:
            pool = self.pools.get(backend.name)
            if pool is None:
                pool = Pool(self._reactor, self._deadlines, self._connector, backend)
                check = self._checks[backend.name] = HealthCheck(self._reactor, pool, self._probe)
                pool.on_connect_failure = check.live_failure
                check.setServiceParent(self)
            elif pool.backend != backend:
                pool.update(backend)
                self._checks[backend.name].reconfigured()
            pools[backend.name] = pool
        for name, pool in self.pools.items():
            if name not in pools:
                check = self._checks.pop(name)
                check.disownServiceParent()
                pool.close()
                self._retired.append(pool)
        self.pools = pools
        return pools

    def _all_pools(self) -> list[Pool]:
        self._retired = [pool for pool in self._retired if pool.open]
        return [*self.pools.values(), *self._retired]

    def close(self) -> None:
        """The end of the process: no connection stays."""
        for pool in self._all_pools():
            pool.close()

    def healthy(self) -> int:
        """How many backends have an instance that is up."""
        return sum(any(member.up for member in pool.members) for pool in self.pools.values())
