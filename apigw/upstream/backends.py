"""All backends of a worker: a pool and a health check each, kept across reloads by name."""

from typing import Any, Callable, Mapping, Sequence

from attrs import evolve
from twisted.application.service import MultiService

from apigw.config.model import Backend, Instance
from apigw.net.connect import Connector
from apigw.net.deadlines import Deadlines
from apigw.upstream.health import HealthCheck, Probe, Sweeper
from apigw.upstream.pool import Pool


class Backends(MultiService):
    """`pools` has exactly the backends of the configuration in force; requests of older ones keep theirs.

    `draw` gives numbers in [0, 1) (random.random): gateways must neither check nor reconnect in step.
    """

    def __init__(
        self, reactor: Any, deadlines: Deadlines, connector: Connector, probe: Probe, draw: Callable[[], float]
    ) -> None:
        super().__init__()
        self._reactor = reactor
        self._deadlines = deadlines
        self._connector = connector
        self._probe = probe
        self._draw = draw
        self._checks: dict[str, HealthCheck] = {}
        self.pools: Mapping[str, Pool] = {}
        Sweeper(reactor, self._all_pools).setServiceParent(self)
        self._retired: list[Pool] = []

    def configure(self, backends: tuple[Backend, ...]) -> Mapping[str, Pool]:
        """Pools for these backends: known ones updated in place, gone ones retired. Returns the new mapping.

        A backend with discovery keeps the instances it has, also static ones from before, until set_instances().
        """
        pools: dict[str, Pool] = {}
        for backend in backends:
            pool = self.pools.get(backend.name)
            if pool is None:
                pool = self._made(backend)
            else:
                self._update(pool, _with_discovered(backend, pool.backend))
            pools[backend.name] = pool
        for name, pool in self.pools.items():
            if name not in pools:
                check = self._checks.pop(name)
                check.disownServiceParent()
                pool.close()
                self._retired.append(pool)
        self.pools = pools
        return pools

    def set_instances(self, name: str, instances: Sequence[Instance]) -> bool:
        """The instances of a backend as its discovery knows them now; of those with one address the first counts.

        Members that stay keep connections and health, requests on those that go are finished; may be called several
        times a second. False: there is no such backend (any more).
        """
        pool = self.pools.get(name)
        if pool is None:
            return False
        once = {instance.label: instance for instance in reversed(instances)}
        kept = tuple(instance for instance in instances if once.get(instance.label) is instance)
        self._update(pool, evolve(pool.backend, instances=kept))
        return True

    def _made(self, backend: Backend) -> Pool:
        pool = Pool(self._reactor, self._deadlines, self._connector, backend, self._draw)
        check = self._checks[backend.name] = HealthCheck(self._reactor, pool, self._probe, self._draw)
        pool.on_connect_failure = check.live_failure
        pool.back_in_s = check.back_in_s
        check.setServiceParent(self)
        return pool

    def _update(self, pool: Pool, backend: Backend) -> None:
        if pool.backend != backend:
            pool.update(backend)
            self._checks[backend.name].reconfigured()

    def instances(self, name: str) -> tuple[Instance, ...]:
        """Those in force, listed or discovered; none of a backend that is not known."""
        pool = self.pools.get(name)
        return () if pool is None else pool.backend.instances

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


def _with_discovered(backend: Backend, before: Backend) -> Backend:
    """A backend with discovery keeps its instances over a reload, also static ones from before it had discovery and
    those that another registry named, until there is a list. Not those of another service."""
    if backend.discovery is None:
        return backend
    if before.discovery is not None and before.discovery.service != backend.discovery.service:
        return backend
    return evolve(backend, instances=before.instances)
