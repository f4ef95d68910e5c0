"""/status and the gauges of a worker that has one of everything."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from prometheus_client.parser import text_string_to_metric_families

from apigw.config.model import (
    APIKeysSection,
    Backend,
    Discovery,
    Instance,
    JWTSection,
    Listener,
    RateLimits,
    RedisSection,
    Route,
    TLSSection,
)
from apigw.core.revocations import RevokedToken
from apigw.edge.admin import _json
from apigw.errors import ConfigurationError
from apigw.names import METRIC_PREFIX, METRICS
from apigw.status import status
from apigw.testing import ended_exchange
from apigw.worker import Worker
from tests.e2e.identity import AUDIENCE, ISSUER, key_set
from tests.edge.authority import certificate
from tests.servers import free_port, until
from tests.workers import NOW_S, REACTOR, House, workers

# A backend whose registry is not there.
FOUND = Backend("found", discovery=Discovery("etcd", "found", endpoints=(f"http://127.0.0.1:{free_port()}",)))


@pytest.fixture
def house() -> Iterator[House]:
    with workers() as house:
        yield house


@pytest.fixture
def furnished(house: House, tmp_path: Path) -> Worker:
    """TLS on two addresses, tokens, API keys, Redis (which is down), a backend of two instances."""
    keys = tmp_path / "keys.json"
    keys.write_bytes(key_set("k1"))
    tls = TLSSection((certificate(tmp_path, "one", "one.test", "two.test"),))
    instances = Instance("127.0.0.1", free_port(), weight=2), Instance("127.0.0.1", free_port())
    return house.start(
        listeners=(Listener("127.0.0.1", house.port, tls), Listener("127.0.0.1", house.other_port, tls)),
        jwt=JWTSection(issuer=ISSUER, audience=AUDIENCE, jwks_file=keys),
        api_keys=APIKeysSection(f"sqlite:///{tmp_path / 'keys.db'}"),
        redis=RedisSection(f"redis://127.0.0.1:{free_port()}"),
        rate_limits=RateLimits(store="redis"),
        backends=(Backend("users", instances, owner="team-users"), FOUND),
        routes=(Route("users", "/users/*", ("GET",), "users"),),
        sources=(Path("/etc/apigw/apigw.yaml"),),
    )


def series(worker: Worker) -> dict[str, dict[tuple[str, ...], float]]:
    """What a scrape gives: {family without prefix: {label values: value}}. A series stands there once."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(b"".join(worker.metrics.parts()).decode()):
        for sample in family.samples:
            samples = found.setdefault(sample.name.removeprefix(METRIC_PREFIX), {})
            labels = tuple(sample.labels.values())
            assert labels not in samples, f"{sample.name}{sample.labels} stands there twice"
            samples[labels] = sample.value
    return found


# -- /status


def test_a_status_is_what_json_can_say(furnished: Worker) -> None:
    """By the standard encoder, which takes no paths, dates or sets."""
    said = json.loads(json.dumps(status(furnished)))
    assert said == json.loads(_json(status(furnished)))
    assert said["config"]["version"] == "v1" and said["config"]["files"] == ["/etc/apigw/apigw.yaml"]
    assert (said["instance"], said["in_flight"], said["connections"]) == ("gateway-1", 0, 0)
    assert all(where.startswith("https://127.0.0.1:") for where in said["listeners"])


def test_a_status_names_who_owns_a_backend_and_which_instance_is_out(furnished: Worker) -> None:
    first, second = furnished.backends.pools["users"].members
    first.up, first.failures, first.why = False, 3, "connection refused"
    backend: Any = status(furnished)["backends"]
    assert backend["users"]["owner"] == "team-users"
    assert backend["users"]["connections"] == {"open": 0, "idle": 0, "busy": 0, "waiting": 0}
    down, up = backend["users"]["instances"]
    assert (down["instance"], down["weight"], down["weight_now"], down["up"]) == (first.label, 2, 0, False)
    assert (down["failures"], down["why"], down["in_flight"]) == (3, "connection refused", 0)
    assert down["since_seconds"] >= 0
    assert (up["instance"], up["weight_now"], up["up"], up["slow"]) == (second.label, 1, True, False)
    assert {*down} == {*up}


@pytest_twisted.ensureDeferred
async def test_a_status_says_where_instances_come_from_and_why_there_are_none(furnished: Worker) -> None:
    await until(lambda: "down: " in str(furnished.discovery.troubles()), REACTOR)
    backends: Any = status(furnished)["backends"]
    found = backends["found"]["discovery"]
    assert (found["up"], found["list"], found["instances"]) == (False, "none", 0) and "refused" in found["last_error"]
    assert backends["users"]["discovery"] is None and backends["found"]["instances"] == []
    checks: Any = status(furnished)["checks"]
    assert checks["registries"]["ok"] is checks["registries"]["required"] is False
    assert "found: etcd http://127.0.0.1:" in checks["registries"]["detail"]
    said = series(furnished)
    assert said["registry_up"] == {(): 0} and said["discovery_up"] == said["discovery_instances"] == {
        ("found", "etcd"): 0
    }


def test_a_status_says_what_readyz_says(furnished: Worker) -> None:
    assert status(furnished)["ready"] is True
    for member in furnished.backends.pools["users"].members:
        member.up = False
    said: Any = status(furnished)
    assert said["ready"] is furnished.readiness().ok is False
    assert said["checks"]["backends"]["ok"] is False


@pytest_twisted.ensureDeferred
async def test_a_status_says_why_the_last_reload_was_refused(house: House) -> None:
    worker = house.start()
    await house.reload(worker, ConfigurationError(("a.yaml:3: no such backend",)))
    said: Any = status(worker)["config"]
    assert (said["reloads_applied"], said["reloads_rejected"]) == (0, 1)
    assert "a.yaml:3: no such backend" in said["last_reload_error"]
    await house.reload(worker, house.config("v2"))
    said = status(worker)["config"]
    assert (said["version"], said["reloads_applied"], said["last_reload_error"]) == ("v2", 1, None)


def test_the_barest_worker_has_a_status_too(house: House) -> None:
    said = json.loads(json.dumps(status(house.start())))
    assert said["ready"] is True and said["backends"] == {}


def test_a_status_shows_what_api_keys_wait_for(furnished: Worker, house: House) -> None:
    said: Any = status(furnished)["api_keys"]
    assert said["hits"] == {"memory": 0, "redis": 0, "database": 0} and said["waiting"] == 0
    assert said["checks"] == {"running": 0, "queued": 0} and said["turned_away"] == said["unconfirmed"] == 0


@pytest_twisted.ensureDeferred
async def test_a_status_says_whether_gateways_hear_each_other(furnished: Worker) -> None:
    """Here nobody listens where Redis should be."""
    store = furnished.store
    assert store is not None
    await until(lambda: "refused" in (store.last_error or ""), REACTOR)
    counters: Any = status(furnished)["redis"]
    assert "refused" in counters.pop("last_error") and counters == {"up": False, "reconnects": 0}
    said: Any = status(furnished)["shared_store"]
    assert said.pop("last_error") == store.last_error
    assert said == {"up": False, "listening": False, "reconnects": 0}
    assert series(furnished)["shared_store_up"] == series(furnished)["shared_store_listening"] == {(): 0}


@pytest_twisted.ensureDeferred
async def test_a_status_says_which_revocations_are_in_force(furnished: Worker) -> None:
    """Here Redis never said anything: the list is not complete, and grows old."""
    revocations = furnished.revocations
    assert revocations is not None
    revocations.known.add([RevokedToken("a", NOW_S + 600.0)])
    await until(lambda: revocations.age_s() > 0.05, REACTOR)
    said: Any = status(furnished)["revocations"]
    assert said.pop("age_seconds") >= 0.1
    assert said == {
        "entries": {"token": 1, "user": 0},
        "complete": False,
        "loads": 0,
        "not_in_force": {"too_many": 0, "unreadable": 0},
        "messages_misheard": 0,
        "file_error": None,
    }
    assert series(furnished)["revocations"] == {("token",): 1, ("user",): 0}
    assert series(furnished)["revocations_age_seconds"][()] > 0.05


# -- gauges


def test_every_gauge_of_the_dictionary_has_a_sample(furnished: Worker) -> None:
    gauges = {name for name, metric in METRICS.items() if metric.kind == "gauge"}
    furnished.backends.pools["users"].members[0].check_s = 0.002  # as after its first check
    for registry in furnished.discovery:
        registry.last_success_epoch_s = NOW_S  # type: ignore[attr-defined]  # as after its first answer
    assert gauges <= series(furnished).keys()


def test_the_gauges_are_those_of_the_parts(furnished: Worker) -> None:
    first, second = furnished.backends.pools["users"].members
    second.up = False
    said = series(furnished)
    assert said["backend_instance_up"] == {("users", first.label): 1, ("users", second.label): 0}
    assert said["upstream_connections"] == {
        (name, state): 0 for name in ("users", "found") for state in ("idle", "busy")
    }
    assert said["slow_clients_total"] == {("users",): 0, ("found",): 0}
    assert said["config_info"] == {("v1",): 1}
    assert said["redis_up"] == {(): 1 if furnished.redis and furnished.redis.up else 0}
    assert said["jwks_last_success_timestamp_seconds"] == {(): NOW_S}
    assert said["jwks_refresh_failures_total"] == {(): 0}
    assert said["in_flight_requests"] == said["connections"] == {(): 0}


def test_a_name_on_several_listeners_is_one_series_with_the_first_end(furnished: Worker) -> None:
    """Two samples of one series make a scrape invalid."""
    said = series(furnished)["tls_certificate_expiry_timestamp_seconds"]
    assert said.keys() == {("one.test",), ("two.test",)}
    assert said[("one.test",)] == min(
        end for (name,), end in furnished.listeners.certificate_expiry() if name == "one.test"
    )


def test_what_is_not_configured_has_no_series(house: House) -> None:
    said = series(house.start())
    assert said.keys().isdisjoint(
        {
            "redis_up",
            "shared_store_up",
            "shared_store_listening",
            "jwks_last_success_timestamp_seconds",
            "jwks_refresh_failures_total",
            "backend_instance_up",
        }
    )


@pytest_twisted.ensureDeferred
async def test_a_refused_reload_shows_until_one_is_applied(house: House) -> None:
    worker = house.start()
    assert series(worker)["config_last_reload_successful"] == {(): 1}
    await house.reload(worker, ConfigurationError(("no",)))
    assert series(worker)["config_last_reload_successful"] == {(): 0}
    await house.reload(worker, house.config("v2"))
    assert series(worker)["config_last_reload_successful"] == {(): 1}
    assert series(worker)["config_info"] == {("v2",): 1}


def test_an_observer_that_failed_is_counted_by_its_name(house: House) -> None:
    worker = house.start()
    assert "observer_failures_total" not in series(worker)
    worker.ledger.record(ended_exchange(request=None))  # no observer can make anything of it
    worker.ledger.settle()
    assert set(series(worker)["observer_failures_total"].values()) == {1}
