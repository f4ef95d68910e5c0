"""A worker's reloads and parts, on real sockets: what is refused changes nothing, what is gone leaves nothing."""

import gc
import socket
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import evolve
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.threads import deferToThread

from apigw.adapters.memory_counters import MemoryCounters
from apigw.adapters.redis_counters import RedisCounters
from apigw.config.model import (
    AdminSection,
    APIKeysSection,
    Backend,
    Discovery,
    Instance,
    JWTSection,
    Listener,
    RateLimits,
    RedisSection,
    Route,
    Tier,
)
from apigw.edge.listeners import Prepared
from apigw.errors import ConfigurationError
from apigw.worker import Worker
from tests.e2e.identity import AUDIENCE, ISSUER, KeyServer, key_set, token
from tests.servers import redis_server, turns, until
from tests.workers import NOW_S, REACTOR, House, workers


@pytest.fixture
def house() -> Iterator[House]:
    with workers() as house:
        yield house


@pytest.fixture
def keys() -> Iterator[KeyServer]:
    server = KeyServer("k1")
    yield server
    server.stop()


def _ask(port: int, target: str, *lines: str) -> int:
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        head = [f"GET {target} HTTP/1.1", "Host: a", "Connection: close", *lines]
        sock.sendall("\r\n".join([*head, "", ""]).encode())
        answer = b""
        while data := sock.recv(65_536):
            answer += data
    return int(answer.split()[1])


def ask(port: int, target: str = "/self", *lines: str) -> "Deferred[int]":
    """The status of an answer; fails when nobody listens."""
    return deferToThread(_ask, port, target, *lines)


def listening(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def jwt(url: str) -> JWTSection:
    return JWTSection(issuer=ISSUER, audience=AUDIENCE, jwks_url=url)


# -- its parts


@pytest_twisted.ensureDeferred
async def test_it_counts_in_redis_only_where_the_limits_say_so(house: House) -> None:
    with redis_server() as server:
        redis = RedisSection(server.url, timeout_s=1.0)
        tiers = (Tier("each", 1, 3600, "client_ip"),)
        limits = RateLimits(store="redis", tiers=tiers, global_tier="each")
        shared = house.start(redis=redis, rate_limits=limits)
        assert isinstance(shared.redis, RedisCounters) and shared.redis.running
        await until(lambda: shared.redis is not None and shared.redis.up, REACTOR)
        assert [await ask(house.port), await ask(house.port)] == [200, 429]
        assert any(b"each" in key for key in server.command("KEYS", "rate:*"))
        assert len(shared.local_counters) == 0
        await shared.stopService()


@pytest.mark.parametrize("store", ["memory", "redis"])
@pytest_twisted.ensureDeferred
async def test_without_redis_it_counts_in_its_own_memory(house: House, store: str) -> None:
    """The section alone is not enough, and neither is the store without the section."""
    redis = RedisSection("redis://127.0.0.1:1") if store == "memory" else None
    limits = RateLimits(store=store, tiers=(Tier("each", 1, 3600, "client_ip"),), global_tier="each")
    worker = house.start(redis=redis, rate_limits=limits)
    assert worker.redis is None and isinstance(worker.local_counters, MemoryCounters)
    assert [await ask(house.port), await ask(house.port)] == [200, 429]
    assert worker.readiness().checks.keys().isdisjoint({"redis"})


def test_without_tokens_there_is_no_key_source_and_readiness_does_not_ask_for_one(house: House) -> None:
    worker = house.start()
    assert worker.keys is None
    assert worker.readiness().ok and "keys" not in worker.readiness().checks


def test_a_taken_address_is_an_error_before_anything_starts(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = house.config(listeners=(Listener("127.0.0.1", port),))
        with pytest.raises(OSError, match="in use"):
            Worker(house.process, Path("apigw.yaml"), config, house.load, lambda: NOW_S)


def test_a_taken_admin_port_ends_the_process(house: House) -> None:
    """A gateway that nobody can watch must not run."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as ended:
        house.start(admin=AdminSection(port=taken.getsockname()[1]))
    assert ended.value.code == 1


# -- reload


@pytest_twisted.ensureDeferred
async def test_a_reload_brings_routes_backends_and_listeners_at_once(house: House) -> None:
    worker = house.start()
    backends = (Backend("new", (Instance("127.0.0.1", 1),)),)
    routes = (Route("new", "/new", ("GET",), "self", auth_required=False, auth_type="none"),)
    listeners = (Listener("127.0.0.1", house.other_port),)
    assert await house.reload(worker, house.config("v2", backends=backends, routes=routes, listeners=listeners))
    assert worker.config.version == worker.site.generation.snapshot.version == "v2"
    assert set(worker.backends.pools) == {"new"}
    assert not listening(house.port)
    assert [await ask(house.other_port, path) for path in ("/new", "/self")] == [200, 404]


@pytest_twisted.ensureDeferred
async def test_a_refused_reload_keeps_everything(house: House) -> None:
    """Whichever step refuses: reading, what needs a restart, a taken address, no keys."""
    worker = house.start(backends=(Backend("old", (Instance("127.0.0.1", 1),)),))
    generation, pools, keys = worker.site.generation, dict(worker.backends.pools), worker.keys
    more: dict[str, Any] = {"backends": (), "routes": ()}
    mine, new = Listener("127.0.0.1", house.port), Listener("127.0.0.1", house.other_port)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = Listener("127.0.0.1", taken.getsockname()[1])
        for refused in (
            ConfigurationError(("a.yaml:3: unknown key",)),
            OSError("the disk is gone"),
            house.config("v2", admin=AdminSection(port=9), listeners=(new,), **more),
            house.config("v2", listeners=(mine, new, busy), **more),
            house.config("v2", jwt=jwt("http://127.0.0.1:1/keys"), listeners=(new,), **more),
        ):
            assert not await house.reload(worker, refused)
            assert worker.reloader.last_error
            assert worker.config.version == "v1"
            assert worker.site.generation is generation
            assert worker.keys is keys
            assert dict(worker.backends.pools) == pools
            assert worker.listeners.labels() == [f"http://127.0.0.1:{house.port}"]
            assert not listening(house.other_port)
            assert await ask(house.port) == 200


@pytest.mark.parametrize("step", ["_new_sources", "_generation"])
@pytest_twisted.ensureDeferred
async def test_a_defect_in_a_reload_leaves_no_socket_open(
    house: House, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    worker = house.start()
    prepared: list[Prepared] = []
    prepare = worker.listeners.prepare

    def kept(listeners: Any) -> Prepared:
        prepared.append(prepare(listeners))
        return prepared[-1]

    def broken(*_: object) -> Any:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(worker.listeners, "prepare", kept)
    monkeypatch.setattr(worker, step, broken)
    listeners = (Listener("127.0.0.1", house.port), Listener("127.0.0.1", house.other_port))
    assert not await house.reload(worker, house.config("v2", listeners=listeners))
    assert [sock.fileno() for each in prepared for sock in each.sockets.values()] == [-1]


@pytest_twisted.ensureDeferred
async def test_saved_lists_that_cannot_be_looked_at_stop_neither_a_start_nor_a_reload(
    house: House, tmp_path: Path
) -> None:
    """What a reload brings is then in force as a whole. (The folder's name is too long: root may look everywhere.)"""
    gateway = evolve(house.config().gateway, state_dir=tmp_path / ("x" * 300))
    discovery = Discovery("etcd", "orders", endpoints=("http://127.0.0.1:1",))
    first = Backend("first", discovery=discovery)
    worker = house.start(gateway=gateway, backends=(first,))
    second = Backend("second", discovery=discovery)
    assert await house.reload(worker, house.config("v2", gateway=gateway, backends=(first, second)))
    assert worker.config.version == worker.site.generation.snapshot.version == "v2"
    assert set(worker.backends.pools) == set(worker.circuits.gates) == {"first", "second"}


@pytest_twisted.ensureDeferred
async def test_an_old_configuration_goes_with_its_last_request(house: House) -> None:
    """By counting references alone: what was frozen at a reload, no collector looks at again."""
    worker = house.start()
    gone = weakref.ref(worker.site.generation.snapshot)
    gc.disable()
    try:
        assert await ask(house.port) == 200
        assert await house.reload(worker, house.config("v2"))
        await turns(REACTOR)
        assert gone() is None
    finally:
        gc.enable()


# -- the key source


def protected() -> Route:
    return Route("who", "/who", ("GET",), "self")


def bearer(kid: str = "k1") -> str:
    return f"Authorization: Bearer {token(kid=kid, iat=NOW_S - 5, exp=NOW_S + 60)}"


@pytest_twisted.ensureDeferred
async def test_a_new_key_source_without_keys_is_refused_and_the_old_keys_serve(house: House, keys: KeyServer) -> None:
    worker = house.start(jwt=jwt(keys.url), routes=(protected(),))
    old = worker.keys
    assert old is not None
    await until(old.current, REACTOR)
    keys.document = b"<html>"
    for wrong in ("http://127.0.0.1:1/keys", keys.url + "?html"):
        assert not await house.reload(worker, house.config("v2", jwt=jwt(wrong), routes=(protected(),)))
        assert "auth.jwt" in str(worker.reloader.last_error)
        assert worker.keys is old and old.running
        assert [child for child in worker.services if isinstance(child, type(old))] == [old]
        assert await ask(house.port, "/who", bearer()) == 200


@pytest_twisted.ensureDeferred
async def test_a_new_key_source_with_keys_takes_the_place_of_the_old_one(house: House, keys: KeyServer) -> None:
    worker = house.start(jwt=jwt(keys.url), routes=(protected(),))
    old = worker.keys
    assert old is not None
    await until(old.current, REACTOR)
    with ExitStack() as stack:
        other = KeyServer("k2")
        stack.callback(other.stop)
        assert await house.reload(worker, house.config("v2", jwt=jwt(other.url), routes=(protected(),)))
    assert worker.keys is not old and not old.running
    assert [await ask(house.port, "/who", bearer(kid)) for kid in ("k1", "k2")] == [401, 200]


@pytest_twisted.ensureDeferred
async def test_a_reload_asks_for_the_keys_again(house: House, keys: KeyServer) -> None:
    """SIGHUP after a rotation brings the new keys, though the configuration is the same."""
    worker = house.start(jwt=jwt(keys.url), routes=(protected(),))
    await until(lambda: worker.keys is not None and worker.keys.current(), REACTOR)
    before = keys.fetches
    assert await house.reload(worker, house.config("v2", jwt=jwt(keys.url), routes=(protected(),)))
    await until(lambda: keys.fetches == before + 1, REACTOR)
    assert await ask(house.port, "/who", bearer()) == 200


@pytest_twisted.ensureDeferred
async def test_the_last_jwt_section_takes_its_key_source_with_it(house: House, keys: KeyServer) -> None:
    worker = house.start(jwt=jwt(keys.url))
    old = worker.keys
    assert old is not None
    await until(old.current, REACTOR)
    assert await house.reload(worker, house.config("v2"))
    assert worker.keys is None and not old.running


# -- what gateways share


@pytest_twisted.ensureDeferred
async def test_a_worker_with_redis_shares_what_is_known_of_api_keys(house: House, tmp_path: Path) -> None:
    """Wherever the rate limits count. The store is the process's: a source that a reload makes hears by it as well."""
    section = APIKeysSection(f"sqlite:///{tmp_path / 'keys.db'}")
    with redis_server() as server:
        worker = house.start(redis=RedisSection(server.url), api_keys=section)
        store = worker.store
        assert store is not None and store.running and worker.redis is None
        assert worker.announcements is not None and worker.announcements.store is store
        await until(lambda: store.up and worker.api_keys is not None and worker.api_keys.changes.in_step, REACTOR)
        other = house.config("v2", redis=RedisSection(server.url), api_keys=evolve(section, cache_ttl_s=60.0))
        old = worker.api_keys
        assert await house.reload(worker, other)
        assert worker.api_keys is not old and worker.store is store
        await until(lambda: worker.api_keys is not None and worker.api_keys.changes.in_step, REACTOR)


@pytest_twisted.ensureDeferred
async def test_a_worker_knows_what_is_revoked_before_it_accepts(house: House, keys: KeyServer, tmp_path: Path) -> None:
    """It accepts after a second if Redis does not say; what it knows outlives reloads."""
    with redis_server() as server:
        server.command("ZADD", "revoked:users", NOW_S + 600, f"{NOW_S}:alice")
        section = RedisSection(server.url)
        gateway = evolve(house.config().gateway, state_dir=tmp_path)
        worker = house.start(gateway=gateway, redis=section, jwt=jwt(keys.url), routes=(protected(),))
        revocations = worker.revocations
        assert revocations is not None and not revocations.complete
        await until(lambda: worker.keys is not None and worker.keys.current(), REACTOR)
        assert await ask(house.port, "/who", bearer()) == 401
        assert revocations.complete
        assert await house.reload(
            worker, house.config("v2", gateway=gateway, redis=section, jwt=jwt(keys.url), routes=(protected(),))
        )
        assert worker.revocations is revocations
        assert await ask(house.port, "/who", bearer()) == 401


@pytest_twisted.ensureDeferred
async def test_a_worker_that_is_stopped_before_it_accepts_never_does(house: House, keys: KeyServer) -> None:
    with redis_server() as server:
        server.freeze()
        worker = house.start(redis=RedisSection(server.url), jwt=jwt(keys.url), routes=(protected(),))
        await maybeDeferred(worker.stopService)
        await turns(REACTOR, 1.2)
        assert not listening(house.port)


def test_a_worker_without_redis_shares_nothing(house: House) -> None:
    worker = house.start()
    assert worker.store is None and worker.announcements is None and worker.revocations is None


# -- drain


@pytest_twisted.ensureDeferred
async def test_an_idle_worker_drains_at_once_and_is_not_ready_meanwhile(house: House) -> None:
    worker = house.start()
    worker.drain()
    assert not listening(house.port) and not worker.readiness().ok
    await until(lambda: house.process.stopped == 1, REACTOR)


@pytest_twisted.ensureDeferred
async def test_a_reload_during_a_drain_opens_nothing(house: House) -> None:
    worker = house.start()
    worker.drain()
    await house.reload(worker, house.config("v2", listeners=(Listener("127.0.0.1", house.other_port),)))
    assert worker.config.version == "v1" and not listening(house.other_port)


@pytest_twisted.ensureDeferred
async def test_a_drain_that_begins_while_a_reload_waits_for_keys_wins(house: House) -> None:
    """Nothing listens again, however the wait for the new keys ends."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        worker = house.start()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/keys"
        house.now = house.config("v2", jwt=jwt(url), listeners=(Listener("127.0.0.1", house.other_port),))
        worker.reloader.reload()
        service, _ = await deferToThread(silent.accept)
        with service:
            worker.drain()
            document = key_set("k1")
            service.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(document), document))
            await until(lambda: worker.reloader.last_ok is not None, REACTOR)
    assert worker.config.version == "v1" and worker.keys is None
    assert not listening(house.other_port)
