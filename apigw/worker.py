"""One process that serves: its parts, the configuration in force, reload and drain.

start    bind -> counters, keys, health, log -> revocations -> accept      a failed bind ends the process
reload   read, validate, compile (thread) -> bind new sockets -> swap -> close old ones
drain    stop accepting -> answer what is in flight -> close pools, Redis -> flush the log -> exit 0
"""

import random
import secrets
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.logger import Logger
from twisted.python.failure import Failure

import apigw
from apigw import gateway
from apigw.adapters.access_log import AccessLog
from apigw.adapters.api_key_cases import refusal_deadlines
from apigw.adapters.api_key_changes import Announcements
from apigw.adapters.api_key_database import open_table
from apigw.adapters.api_keys import APIKeys
from apigw.adapters.discovery import Discovery
from apigw.adapters.health_probe import HealthProbe
from apigw.adapters.jwks import JWKS
from apigw.adapters.log_sinks import open_sinks
from apigw.adapters.memory_counters import MemoryCounters, Pruning
from apigw.adapters.metrics import Metrics, watch_access_log
from apigw.adapters.redis_deployment import RedisDeployment
from apigw.adapters.revocation_file import RevocationFile
from apigw.adapters.revocation_list import RevocationList
from apigw.adapters.saved_instances import SavedInstances
from apigw.adapters.shadow_log import ShadowLog
from apigw.adapters.share_settlement import ShareSettlement
from apigw.config import files
from apigw.config.model import Config
from apigw.config.redact import redacted
from apigw.config.restart import refuse_restart_only
from apigw.config.snapshot import Snapshot
from apigw.core.revocations import NOTHING_REVOKED
from apigw.core.shedding import Shedding
from apigw.core.trace import Randomness
from apigw.edge.admin import AdminService, Readiness, judge_readiness, make_admin_site
from apigw.edge.ledger import Ledger
from apigw.edge.listeners import Listeners
from apigw.edge.site import Site
from apigw.errors import ConfigurationError, StoreDown
from apigw.net.connect import Connector
from apigw.net.deadlines import Deadlines
from apigw.net.memory import keep_out_of_sight, settle_memory, trim_memory, trim_soon
from apigw.ports import WallClock
from apigw.status import status, watch
from apigw.supervisor import signals
from apigw.supervisor.lag import LoopLag
from apigw.supervisor.load import LoadWatch
from apigw.supervisor.memory import MemoryUsage
from apigw.supervisor.reload import FileWatch, Reloader
from apigw.supervisor.trim import Trimming
from apigw.upstream import gate
from apigw.upstream.backends import Backends
from apigw.upstream.circuits import Circuits
from apigw.upstream.shared_circuits import SharedCircuits
from apigw.upstream.shared_rates import SharedRates

log = Logger()

_OLD_SOURCE_S = 10.0  # after a reload: what API keys of requests that began before it may still need
_FIRST_LOAD_S = 2.0  # a gateway that starts while Redis is down waits so long for what was revoked
_LOG_FLUSH_S = 5.0  # the access log's last chance at the end of the process


class Worker(MultiService):
    """The composition of one gateway process. Its children start in the order of __init__, after the listeners.

    `load` reads the configuration; it and the compilation run in a thread when reloading.
    Raises OSError when an address cannot be bound or a certificate cannot be read.
    """

    def __init__(
        self, reactor: Any, main_file: Path, config: Config, load: Callable[[Path], Config], wall: WallClock
    ) -> None:
        super().__init__()
        self._reactor = reactor
        self._main_file = main_file
        self._load = load
        self._wall = wall
        self._stopping = False
        self._opening: Deferred[None] | None = None
        self.config = config
        self.deadlines, self._refusals = Deadlines(reactor), refusal_deadlines(reactor)
        self.metrics = Metrics(apigw.__version__)
        self.access_log = AccessLog(open_sinks(config.access_log), apigw.__version__, random.random)
        self.ledger = Ledger([gate.record, self.access_log.record, self.metrics.record], reactor.after_sends)
        self.local_counters = MemoryCounters()
        self.connector = Connector(reactor, self.deadlines)
        self.deployment = deployment = self._redis_deployment(config)  # None: no Redis
        counts = config.rate_limits.store == "redis"
        self.redis = deployment.counters() if deployment and counts else None  # None: rate limits count in this process
        self.store = deployment.shared_store() if deployment else None  # who listens to it says so before it starts
        self.announcements = None if self.store is None else Announcements(self.store)  # of changed API keys
        self.revocations = RevocationList.of(reactor, self.store, wall)  # None: no Redis, so no JWT is ever revoked
        self.kept_revocations = RevocationFile.of(reactor, config.gateway.state_dir, self.revocations)
        self.keys = self._key_source(config)  # None: no route wants a JWT
        self.api_keys = self._api_key_source(config)  # None: no route wants an API key
        self.lag = LoopLag(reactor)
        self.shedding = Shedding(config.load_shedding.cpu_percent, config.load_shedding.memory_percent)
        probe = HealthProbe(self.deadlines, self.connector)
        self.backends = Backends(reactor, self.deadlines, self.connector, probe, random.random)
        self.discovery = self._discovery(config)
        self.circuits = Circuits(reactor, lambda: self.backends.pools)
        self._parts = self._stage_parts()
        first = self._generation(Snapshot(config), self.keys, self.api_keys)
        self.site = Site(reactor, self.deadlines, wall, first, self.ledger.record)
        self.listeners = Listeners(reactor, self.site)
        self.listeners.apply(self.listeners.prepare(config.listeners))
        self.reloader = Reloader(reactor, self._prepare, self._apply)
        children = (
            self.lag,
            LoadWatch(reactor, self.shedding, time.thread_time, MemoryUsage().percent, trim_memory),
            Trimming(reactor, lambda: len(self.site.channels), trim_memory),
            Pruning(reactor, self.local_counters, wall),
            deployment,  # and with it self.redis and self.store
            self.kept_revocations,
            self.revocations,
            self.keys,
            self.api_keys,
            self.backends,
            self.circuits,
            self.discovery,
            *self._among_gateways(config),
            FileWatch(reactor, config.config.poll_s, self._fingerprint, self.reloader.reload),
            self._admin(config),
        )
        for child in children:
            if child is not None:
                child.setServiceParent(self)
        watch_access_log(self.metrics, self.access_log.sinks, lambda: self.access_log.sampled_out)
        watch(self)

    def _among_gateways(self, config: Config) -> list[Service]:
        """What this worker does together with the others; nothing without Redis."""
        found: list[Service] = []
        if self.redis is not None:
            found.append(ShareSettlement(self._reactor, self._parts.shares, self.redis, self._wall))
        if self.store is not None:
            with_whom = self._reactor, self.store, self.circuits, self._wall
            me = f"{config.gateway.instance_name}/{secrets.token_hex(4)}"  # workers of one host share the first part
            found += SharedCircuits(*with_whom, me), SharedRates(*with_whom, me)
        return found

    def _admin(self, config: Config) -> AdminService:
        pages = make_admin_site(
            self._reactor,
            ready=self.readiness,
            metrics=self.metrics.parts,
            status=partial(status, self),
            config=lambda: redacted(self.config),
        )
        return AdminService(self._reactor, config.admin.address, config.admin.port, pages)

    def _stage_parts(self) -> gateway.Parts:
        return gateway.Parts(
            clock=self._reactor,
            deadlines=self.deadlines,
            wall=self._wall,
            randomness=Randomness(),
            in_flight=lambda: self.site.in_flight,
            ready=lambda: self.readiness().ok,
            on_decision=self.metrics.rate_limit_decided,
            on_shadow=ShadowLog(self._reactor).refused,
            on_replay=self.metrics.upstream_failed,
            shedding=self.shedding,
            on_shed=self.metrics.shed,
            revocations=NOTHING_REVOKED if self.revocations is None else self.revocations.known,
        )

    def _redis_deployment(self, config: Config) -> RedisDeployment | None:
        if config.redis is None:
            return None
        return RedisDeployment(config.redis, self._reactor, self.connector, self.metrics.redis_answered)

    def _key_source(self, config: Config) -> JWKS | None:
        return None if config.jwt is None else JWKS(self._reactor, config.jwt, self._wall)

    def _api_key_source(self, config: Config) -> APIKeys | None:
        section = config.api_keys
        if section is None:
            return None
        return APIKeys(
            self._reactor,
            self._refusals,
            self._wall,
            partial(open_table, section.database_url),
            self.announcements,
            section.cache_ttl_s,
            lambda name: any(tier.tier == name for tier in self.config.rate_limits.tiers),
            lambda: self.config.gateway.max_in_flight,
        )

    def _discovery(self, config: Config) -> Discovery:
        saved = SavedInstances(self._reactor, config.gateway.state_dir, self._wall)
        backends = self.backends
        return Discovery(self._reactor, saved, self._wall, backends.set_instances, backends.instances)

    def _generation(self, snapshot: Snapshot, keys: JWKS | None, api_keys: APIKeys | None) -> gateway.Generation:
        pools = self.backends.configure(snapshot.config.backends)
        gates = self.circuits.configure(snapshot.config)
        self.discovery.configure(snapshot.config)
        counters = self.redis or self.local_counters
        return gateway.build(snapshot, self._parts, pools, keys, counters, self.local_counters, api_keys, gates)

    # -- start

    def privilegedStartService(self) -> None:
        signals.install(
            self._reactor,
            {
                signal.SIGHUP: self.reloader.reload,
                signal.SIGUSR1: self.access_log.reopen,
                signal.SIGTERM: self.drain,
                signal.SIGINT: self.drain,
            },
        )
        super().privilegedStartService()

    def startService(self) -> None:
        self.access_log.start()
        try:
            super().startService()
        except CannotListenError as error:  # the admin's port; the public ones are bound already
            log.critical("apigw cannot start: {error}", error=error)
            raise SystemExit(1) from None
        if self.revocations is None or self.keys is None:
            self._open(None)
        else:
            self._opening = self.revocations.first_load(_FIRST_LOAD_S).addCallback(self._open)

    def _open(self, _: None) -> None:
        """What was revoked is known, or it takes too long: accept connections."""
        if self._stopping:
            return
        self.listeners.start()
        settle_memory()
        log.info(
            "serving {routes} routes, configuration {version}, on {where}",
            routes=len(self.config.routes),
            version=self.config.version,
            where=", ".join(self.listeners.labels()),
        )

    # -- reload

    def _fingerprint(self) -> object:
        return files.fingerprint(self._main_file, self.config)

    def _prepare(self) -> Snapshot:
        return Snapshot(self._load(self._main_file))

    def _apply(self, snapshot: Snapshot) -> "Deferred[None]":
        return Deferred.fromCoroutine(self._swap(snapshot))

    async def _swap(self, snapshot: Snapshot) -> None:
        """All checks that can fail come first; what follows them cannot."""
        config = snapshot.config
        if self._stopping:
            return
        refuse_restart_only(self.config, config)
        prepared = self.listeners.prepare(config.listeners)
        try:
            keys, api_keys = await self._new_sources(config)
            if self._stopping:  # SIGTERM came while it waited: nothing opens again
                prepared.discard()
                return
            generation = self._generation(snapshot, keys, api_keys)
        except BaseException:
            prepared.discard()
            raise
        self.site.swap(generation)
        self.listeners.apply(prepared)
        if keys is not self.keys:
            if self.keys is not None:
                self.keys.disownServiceParent()
            self.keys = keys
        elif keys is not None:
            keys.poll_now()
        old, self.api_keys = self.api_keys, api_keys
        if old is not None and old is not api_keys:
            self.deadlines.add(_OLD_SOURCE_S, old.disownServiceParent)
        self.shedding.configure(config.load_shedding.cpu_percent, config.load_shedding.memory_percent)
        self.config = config
        log.info("configuration {version} is in force", version=config.version)
        keep_out_of_sight()
        trim_soon(self._reactor)

    async def _new_sources(self, config: Config) -> tuple[JWKS | None, APIKeys | None]:
        """What verifies credentials: as it is where its section is, else new and started. Raises ConfigurationError."""
        keys, api_keys = self.keys, self.api_keys
        if config.jwt != self.config.jwt:
            keys = await self._new_keys(config)
        if config.api_keys != self.config.api_keys:
            try:
                api_keys = await self._new_api_keys(config)
            except BaseException:
                if keys is not None and keys is not self.keys:
                    keys.disownServiceParent()
                raise
        return keys, api_keys

    async def _new_api_keys(self, config: Config) -> APIKeys | None:
        api_keys = self._api_key_source(config)
        if api_keys is None:
            return None
        api_keys.setServiceParent(self)
        try:
            await api_keys.database.since(None)
        except StoreDown as down:
            api_keys.disownServiceParent()
            raise ConfigurationError((f"auth.api_keys: {down}; the old section stays in use",)) from None
        return api_keys

    async def _new_keys(self, config: Config) -> JWKS | None:
        """A started key source with keys. Raises ConfigurationError when it has none: tokens would be refused."""
        keys = self._key_source(config)
        if keys is None:
            return None
        keys.setServiceParent(self)
        if keys.current() is None and not await keys.poll_now():
            keys.disownServiceParent()
            raise ConfigurationError(("auth.jwt: its key set cannot be read; the old one stays in use",))
        return keys

    # -- drain

    def drain(self) -> None:
        """SIGTERM: answer what is in flight, then end; a second one ends at once."""
        if self._stopping:
            self.site.abort_all()
            return
        self._stopping = True
        log.info("draining: {n} requests in flight", n=self.site.in_flight)
        self.listeners.stop()
        drained = self.site.drain()
        drained.addTimeout(self.config.gateway.drain_timeout_s, self._reactor)
        drained.addErrback(self._drain_over)
        drained.addBoth(lambda _: self._end())

    def _drain_over(self, failure: Failure) -> None:
        failure.trap(TimeoutError)
        log.warn("drain timeout: {n} requests are cut", n=self.site.in_flight)
        self.site.abort_all()

    def _end(self) -> None:
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            pass  # a second signal was quicker

    async def _stop(self) -> None:
        self._stopping = True
        if self._opening is not None:
            self._opening.cancel()
        await super().stopService()
        self.listeners.stop()
        self.site.abort_all()
        self.backends.close()
        self.ledger.settle()
        self.access_log.close(_LOG_FLUSH_S)

    def stopService(self) -> "Deferred[None]":
        return Deferred.fromCoroutine(self._stop())

    # -- what the operator sees

    def readiness(self) -> Readiness:
        """The checks of /readyz and of the public /healthz."""
        keys = self.keys
        return judge_readiness(
            config_version=self.config.version,
            backends=len(self.backends.pools),
            healthy_backends=self.backends.healthy(),
            draining=self._stopping,
            loop_lag_s=self.lag.lag_s(),
            keys_usable=None if keys is None else keys.current() is not None,
            keys_seen=None if keys is None else keys.last_success is not None,
            redis_up=None if self.redis is None else self.redis.up,
            registries=self.discovery.troubles(),
            store_up=None if self.store is None else self.store.up and self.store.listening,
        )
