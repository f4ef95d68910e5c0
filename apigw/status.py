"""What /status says and what gauges are read at a scrape: the worker's parts, asked in one place."""

import os
from typing import TYPE_CHECKING, Any, Callable

import apigw

if TYPE_CHECKING:
    from apigw.adapters.api_keys import APIKeys
    from apigw.adapters.redis_cluster import ClusterCounters
    from apigw.adapters.redis_counters import RedisCounters
    from apigw.adapters.redis_deployment import RedisDeployment
    from apigw.adapters.shared_store import RedisSharedStore
    from apigw.core.shedding import Shedding
    from apigw.upstream.member import Member
    from apigw.upstream.pool import Pool
    from apigw.worker import Worker


def status(worker: "Worker") -> dict[str, object]:
    """JSON-ready; for an operator at 2 AM: is it ready, what does it run, which instance is out."""
    readiness = worker.readiness()
    reloader = worker.reloader
    return {
        "instance": worker.config.gateway.instance_name,
        "version": apigw.__version__,
        "pid": os.getpid(),
        "ready": readiness.ok,
        "checks": dict(readiness.checks),
        "config": {
            "version": worker.config.version,
            "routes": len(worker.config.routes),
            "files": [str(path) for path in worker.config.sources],
            "reloads_applied": reloader.applied,
            "reloads_rejected": reloader.rejected,
            "last_reload_error": reloader.last_error,
        },
        "listeners": worker.listeners.labels(),
        "connections": len(worker.site.channels),
        "in_flight": worker.site.in_flight,
        "event_loop_lag_ms": round(worker.lag.lag_s() * 1000, 3),
        "load": _load(worker.shedding),
        "redis": None if worker.redis is None or worker.deployment is None else _redis(worker.redis, worker.deployment),
        "shared_store": None if worker.store is None else _shared_store(worker.store),
        "revocations": _revocations(worker),
        "api_keys": None if worker.api_keys is None else _api_keys(worker.api_keys),
        "backends": {
            name: _backend(worker, pool) | worker.circuits.status(name) for name, pool in worker.backends.pools.items()
        },
    }


def _redis(counters: "RedisCounters | ClusterCounters", deployment: "RedisDeployment") -> dict[str, object]:
    """Rate counters in Redis, and where they are by now."""
    return {
        "up": counters.up,
        "reconnects": counters.reconnects,
        "last_error": counters.last_error,
        **deployment.whereabouts(),
    }


def _shared_store(store: "RedisSharedStore") -> dict[str, object]:
    """What gateways share in Redis besides rate counters."""
    return {
        "up": store.up,
        "listening": store.listening,
        "reconnects": store.reconnects,
        "last_error": store.last_error,
    }


def _revocations(worker: "Worker") -> dict[str, object] | None:
    """Which list of revoked tokens is in force. `complete`: Redis has told all of it since the start."""
    source, file = worker.revocations, worker.kept_revocations
    if source is None:
        return None
    return {
        "entries": source.known.counts(),
        "complete": source.complete,
        "age_seconds": round(source.age_s(), 1),
        "loads": source.loads,
        "not_in_force": {"too_many": source.known.left_out, "unreadable": source.unreadable},
        "messages_misheard": source.misheard,
        "file_error": None if file is None else file.error,
    }


def _api_keys(keys: "APIKeys") -> dict[str, object]:
    return {
        "remembered": len(keys.good),
        "hits": keys.hits(),
        "waiting": keys.cases.waiting,
        "checks": {"running": keys.checks.busy, "queued": keys.checks.queued},
        "turned_away": keys.turned_away(),
        "unconfirmed": keys.examination.unconfirmed,
        "changes_age_seconds": round(keys.changes.age_s(), 1),
        "database_up": keys.changes.database_up,
    }


def _load(shedding: "Shedding") -> dict[str, object]:
    """What decides about shedding, in percent, and the share of each priority that is refused, 0 to 1."""
    sample = shedding.sample
    return {
        "state": shedding.state,
        "load_percent": round(shedding.level, 1),
        "cpu_percent": round(sample.cpu_percent, 1),
        "loop_lag_ms": round(sample.lag_s * 1000, 3),
        "memory_percent": round(shedding.memory, 1),
        "because": shedding.because,
        "shed": {priority: round(share, 3) for priority, share in shedding.shares.items()},
    }


def _backend(worker: "Worker", pool: "Pool") -> dict[str, object]:
    now_s = worker.site.clock.seconds()
    return {
        "owner": pool.backend.owner,
        "discovery": worker.discovery.of(pool.backend.name),
        "connections": {"open": pool.open, "idle": pool.idle, "busy": pool.busy, "waiting": pool.waiting},
        "max_connections": pool.backend.max_connections,
        "instances": [_instance(member, pool.backend.slow_start_s, now_s) for member in pool.members],
    }


def _instance(member: "Member", slow_start_s: float, now_s: float) -> dict[str, object]:
    """`since_seconds`: how long `up` is what it is; `why`: the last failure, null when all is well since."""
    well = member.up and not member.failures and not member.refused
    return {
        "instance": member.label,
        "weight": member.instance.weight,
        "weight_now": round(member.weight(now_s, slow_start_s), 3) if member.up else 0,
        "up": member.up,
        "since_seconds": round(now_s - member.since_s, 1),
        "failures": member.failures + member.refused,
        "why": None if well else member.why,
        "slow": member.slow,
        "check_ms": None if member.check_s is None else round(member.check_s * 1000, 1),
        "in_flight": member.in_flight,
    }


def watch(worker: "Worker") -> None:
    """Register every gauge that lives in a part of the worker."""
    metrics = worker.metrics
    metrics.watch("in_flight_requests", lambda: worker.site.in_flight)
    metrics.watch("connections", lambda: len(worker.site.channels))
    metrics.watch("event_loop_lag_seconds", worker.lag.lag_s)
    metrics.watch("load_percent", lambda: worker.shedding.level)
    metrics.watch("memory_percent", lambda: worker.shedding.memory)
    metrics.watch_labelled(
        "shed_share", ("priority",), lambda: [((name,), share) for name, share in worker.shedding.shares.items()]
    )
    metrics.watch("config_last_reload_successful", lambda: 0.0 if worker.reloader.last_ok is False else 1.0)
    metrics.watch_labelled("config_info", ("version",), lambda: [((worker.config.version,), 1.0)])
    _watch_instances(worker)
    metrics.watch_labelled("circuit_state", ("backend",), worker.circuits.states)
    metrics.watch_labelled("circuit_openings_total", ("backend",), worker.circuits.openings)
    metrics.watch_labelled("upstream_connections", ("backend", "state"), lambda: _connections(worker))
    metrics.watch_labelled("slow_clients_total", ("backend",), lambda: _slow_clients(worker))
    metrics.watch_labelled("tls_certificate_expiry_timestamp_seconds", ("host",), lambda: _certificates(worker))
    metrics.watch_labelled(
        "observer_failures_total",
        ("observer",),
        lambda: [((name,), float(n)) for name, n in worker.ledger.failures.items()],
    )
    _watch_api_keys(worker)
    _watch_discovery(worker)
    metrics.watch("redis_up", lambda: None if worker.redis is None else float(worker.redis.up))
    metrics.watch("shared_store_up", lambda: None if worker.store is None else float(worker.store.up))
    metrics.watch("shared_store_listening", lambda: None if worker.store is None else float(worker.store.listening))
    _watch_revocations(worker)
    metrics.watch(
        "jwks_last_success_timestamp_seconds", lambda: None if worker.keys is None else worker.keys.last_success_epoch_s
    )
    metrics.watch("jwks_refresh_failures_total", lambda: None if worker.keys is None else worker.keys.refresh_failures)


def _watch_revocations(worker: "Worker") -> None:
    source = worker.revocations
    if source is not None:
        counts = source.known.counts
        worker.metrics.watch("revocations_age_seconds", source.age_s)
        worker.metrics.watch_labelled(
            "revocations", ("kind",), lambda: [((kind,), float(count)) for kind, count in counts().items()]
        )


def _watch_api_keys(worker: "Worker") -> None:
    """The source is another object after a reload that changed its section."""
    metrics = worker.metrics

    def rows(read: "Callable[[APIKeys], dict[str, int]]") -> "Callable[[], list[tuple[tuple[str], float]]]":
        return lambda: [] if worker.api_keys is None else [
            ((label,), float(n)) for label, n in read(worker.api_keys).items()
        ]  # fmt: skip

    def value(read: "Callable[[APIKeys], float]") -> "Callable[[], float | None]":
        return lambda: None if worker.api_keys is None else read(worker.api_keys)

    checks = rows(lambda keys: {"running": keys.checks.busy, "queued": keys.checks.queued})
    metrics.watch_labelled("api_key_hits_total", ("layer",), rows(lambda keys: keys.hits()))
    metrics.watch_labelled("api_key_checks", ("state",), checks)
    metrics.watch("api_key_waiting", value(lambda keys: keys.cases.waiting))
    metrics.watch("api_key_turned_away_total", value(lambda keys: keys.turned_away()))
    metrics.watch("api_key_unconfirmed_total", value(lambda keys: keys.examination.unconfirmed))
    metrics.watch("api_key_database_up", value(lambda keys: float(keys.changes.database_up)))
    metrics.watch("api_key_changes_age_seconds", value(lambda keys: keys.changes.age_s()))


def _watch_instances(worker: "Worker") -> None:
    def rows(read: "Callable[[Member, float], float | None]") -> "Callable[[], list[tuple[tuple[str, str], float]]]":
        return lambda: [
            ((name, member.label), value)
            for name, pool in worker.backends.pools.items()
            for member in pool.members
            if (value := read(member, pool.backend.slow_start_s)) is not None
        ]

    def weight(member: "Member", slow_start_s: float) -> float:
        return member.weight(worker.site.clock.seconds(), slow_start_s) if member.up else 0.0

    reads: "dict[str, Callable[[Member, float], float | None]]" = {
        "backend_instance_up": lambda member, _: float(member.up),
        "backend_instance_weight": weight,
        "backend_instance_failures": lambda member, _: float(member.failures + member.refused),
        "backend_instance_check_seconds": lambda member, _: member.check_s,
        "backend_instance_in_flight": lambda member, _: float(member.in_flight),
    }
    for metric, read in reads.items():
        worker.metrics.watch_labelled(metric, ("backend", "instance"), rows(read))


def _watch_discovery(worker: "Worker") -> None:
    metrics, rows = worker.metrics, worker.discovery.rows
    labels = ("backend", "type")
    metrics.watch("registry_up", worker.discovery.all_up)
    metrics.watch_labelled("discovery_up", labels, lambda: rows(lambda registry: float(bool(registry.up))))
    metrics.watch_labelled("discovery_instances", labels, lambda: rows(lambda registry: len(registry.entries)))
    metrics.watch_labelled("discovery_skipped", labels, lambda: rows(lambda registry: sum(registry.skipped.values())))
    metrics.watch_labelled(
        "discovery_last_success_timestamp_seconds", labels, lambda: rows(lambda registry: registry.last_success_epoch_s)
    )


def _certificates(worker: "Worker") -> list[tuple[tuple[str], float]]:
    """Each host once, whatever number of listeners and certificates serve it: with the first end."""
    ends: dict[tuple[str], float] = {}
    for host, end_s in worker.listeners.certificate_expiry():
        ends[host] = min(end_s, ends.get(host, end_s))
    return list(ends.items())


def _slow_clients(worker: "Worker") -> list[tuple[tuple[str], float]]:
    return [((name,), float(pool.slow_clients.ended)) for name, pool in worker.backends.pools.items()]


def _connections(worker: "Worker") -> list[tuple[tuple[str, str], float]]:
    rows: list[Any] = []
    for name, pool in worker.backends.pools.items():
        rows += [((name, "idle"), float(pool.idle)), ((name, "busy"), float(pool.busy))]
    return rows
