"""API keys through the real daemon: a database in SQLite or PostgreSQL, several gateways, each dependency away."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable

import pytest

from apigw.adapters.api_key_cases import MAX_PER_ID
from apigw.adapters.key_store import KeyStore, NewKey
from apigw.names import API_KEYS_CHANNEL, api_key_digests, api_key_record
from tests.e2e.client import Response
from tests.e2e.conftest import Launch
from tests.e2e.gateway import Gateway, protected
from tests.e2e.identity import bearer
from tests.e2e.origin import Origin
from tests.postgresql import postgresql_server
from tests.servers import RedisServer, redis_server

DAY_S = 86_400.0
Change = Callable[[Gateway], None]


def by_key(route_id: str, pattern: str, **more: Any) -> dict[str, Any]:
    """A route that wants an API key."""
    return protected(route_id, pattern, auth_type="api_key", **more)


def with_keys(url: str, **section: Any) -> Change:
    """A gateway that finds its API keys in this database."""

    def change(gateway: Gateway) -> None:
        gateway.settings["gateway"]["trusted_proxies"] = ["127.0.0.0/8"]
        gateway.settings["auth"]["api_keys"] = {"database_url": url, **section}
        gateway.settings["rate_limits"]["tiers"] = [
            {"tier": "three", "limit": 3, "window_seconds": 3600, "per": "api_key"},
            {"tier": "five", "limit": 5, "window_seconds": 3600, "per": "api_key"},
        ]
        gateway.settings["routes"] += [
            by_key("keyed", "/keyed/*"),
            by_key("scoped", "/scoped/*", required_scopes=["orders:write"]),
            by_key("limited", "/limited/*", rate_limit_tier="five"),
        ]

    return change


class Keys:
    """The database, as an operator sees it. `url` goes into the configuration. bcrypt is cheap here."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.path = folder / "keys.db"
        self.url = url or f"sqlite:///{self.path}"
        self.store = KeyStore(self.url, cost=4)

    def new(self, **more: Any) -> NewKey:
        return self.store.create("acme", **more)

    def hide(self) -> None:
        """The database is gone, until back() is called."""
        self.path.rename(self.path.with_suffix(".hidden"))

    def back(self) -> None:
        self.path.with_suffix(".hidden").rename(self.path)


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    made = Keys(tmp_path)
    yield made
    made.store.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Keys]:
    """In each kind of database."""
    with postgresql_server() if request.param == "postgresql" else nullcontext() as server:
        made = Keys(tmp_path, server and server.database())
        yield made
        made.store.close()


def ask(gateway: Gateway, key: str | NewKey, target: str = "/keyed/x", *headers: tuple[str, str]) -> Response:
    presented = key.presented if isinstance(key, NewKey) else key
    return gateway.ask("GET", target, ("X-API-Key", presented), *headers)


def ask_each(gateway: Gateway, *presented: str | NewKey) -> list[Response]:
    """All of them at the same time: a refusal takes its second."""
    with ThreadPoolExecutor(len(presented)) as pool:
        return list(pool.map(lambda key: ask(gateway, key), presented))


def altered(key: NewKey) -> str:
    """Its id with another secret."""
    return key.presented[:-1] + ("a" if key.presented[-1] != "a" else "b")


def test_a_good_key_is_let_in_and_the_backend_sees_the_partner_and_never_the_key(
    launch: Launch, keys: Keys, origin: Origin
) -> None:
    gateway = launch(with_keys(keys.url))
    key = keys.new(scopes=("orders:read",))
    for tag in ("keys-first", "keys-cached"):
        response = ask(
            gateway,
            key,
            "/keyed/x",
            ("X-Tag", tag),
            ("X-Partner-ID", "evil"),
            ("X_Partner_ID", "e"),
            ("X-User-ID", "u"),
        )
        assert response.status == 200
        (seen,) = origin.tagged(tag)
        assert seen.all("X-Partner-ID") == ["acme"]
        assert (
            not {"x-api-key", "x_api_key", "x_partner_id", "x-user-id", "x-user-scopes", "authorization"} & seen.names
        )
    entry = gateway.entry(response.get("X-Request-ID"))
    assert (entry["partner_id"], entry["user_id"], entry["status"]) == ("acme", None, 200)
    secret = key.presented.rsplit("_", 1)[1]
    assert secret not in gateway.access_log.read_text() + gateway.output.read_text()
    assert gateway.metric("api_key_hits_total", layer="database") == 1
    assert gateway.metric("api_key_hits_total", layer="memory") == 1


def test_what_is_no_good_key_gets_one_and_the_same_answer(launch: Launch, keys: Keys) -> None:
    """Malformed, unknown, wrong, expired and revoked: the same bytes but for the request's id, and no word which."""
    gateway = launch(with_keys(keys.url))
    good, revoked, expired = keys.new(), keys.new(), keys.new(expires_s=time.time() + 0.2)
    keys.store.revoke(revoked.record.key_id)
    time.sleep(0.25)  # the wall clock is what ends a key
    presented = {
        "key_malformed": "pk_test_x",
        "key_unknown": f"pk_live_{'a' * 16}_{'b' * 43}",
        "key_wrong": altered(good),
        "key_expired": expired.presented,
        "key_revoked": revoked.presented,
    }
    answers = ask_each(gateway, *presented.values())
    shapes = set()
    for reason, answer in zip(presented, answers):
        request_id = answer.get("X-Request-ID") or ""
        assert answer.json() == {
            "error": "invalid_api_key", "message": "The API key is not valid.", "request_id": request_id
        }  # fmt: skip
        fields = [(name, value) for name, value in answer.headers if name not in ("X-Response-Time-Ms", "Date")]
        shapes.add(repr((answer.status, fields, answer.body)).replace(request_id, "ID"))
        entry = gateway.entry(request_id)
        assert entry["error_type"] == "invalid_api_key" and gateway.metric("auth_failures_total", reason=reason) == 1
    assert len(shapes) == 1 and "WWW-Authenticate" in next(iter(shapes))
    assert {answer.status for answer in answers} == {401}
    missing = gateway.ask("GET", "/keyed/x")
    assert (missing.status, missing.json()["error"]) == (401, "missing_credentials")
    token_alone = gateway.ask("GET", "/keyed/x", bearer())
    assert (token_alone.status, token_alone.json()["error"]) == (401, "missing_credentials")
    assert ask(gateway, good, "/api/x").status == 401, "a route with tokens takes no key"


def test_a_key_may_do_what_it_says_and_from_where_it_says(launch: Launch, keys: Keys) -> None:
    """Scopes and networks: 403 with the contract's words, for a key just checked and for a remembered one."""
    gateway = launch(with_keys(keys.url))
    reader, writer = keys.new(scopes=("orders:read",)), keys.new(scopes=("orders:read", "orders:write"))
    office = keys.new(networks=("203.0.113.0/24", "2001:db8::/32"))
    for _ in range(2):
        refused = ask(gateway, reader, "/scoped/x")
        assert (refused.status, refused.json()["error"]) == (403, "insufficient_scope")
        assert 'error="insufficient_scope"' in (refused.get("WWW-Authenticate") or "")
        assert ask(gateway, writer, "/scoped/x").status == 200
        for address, status in (
            ("203.0.113.9", 200),
            ("198.51.100.1", 403),
            ("2001:db8::7", 200),
            ("2001:db9::7", 403),
        ):
            answer = ask(gateway, office, "/keyed/x", ("X-Forwarded-For", address))
            assert answer.status == status, address
        away = ask(gateway, office, "/keyed/x", ("X-Forwarded-For", "198.51.100.1"))
        assert away.json()["error"] == "ip_not_allowed"


def test_a_keys_own_tier_comes_before_the_routes(launch: Launch, keys: Keys) -> None:
    """Each key has counters of its own. A tier that is not configured is the route's."""
    gateway = launch(with_keys(keys.url))
    for tier, limit in (("three", 3), (None, 5), ("nowhere", 5)):
        key = keys.new(tier=tier)
        answers = [ask(gateway, key, "/limited/x") for _ in range(limit + 1)]
        assert [answer.status for answer in answers] == [200] * limit + [429]
        assert answers[0].get("X-RateLimit-Limit") == str(limit)
    assert "nowhere" in gateway.output.read_text()


def test_without_redis_a_revocation_counts_within_five_seconds(launch: Launch, either: Keys) -> None:
    """On each gateway, while the key is in steady use. A rotated key goes on beside its successor."""
    gateways = [launch(with_keys(either.url)) for _ in range(2)]
    key, rotated = either.new(), either.new()
    for gateway in gateways:
        assert [ask(gateway, each).status for each in (key, rotated)] == [200, 200]
    either.store.revoke(key.record.key_id)
    successor = either.store.rotate(rotated.record.key_id, 7 * DAY_S)
    began_s = time.monotonic()
    for gateway in gateways:
        gateway.until(lambda: ask(gateway, key).status == 401, 6.0)
    assert time.monotonic() - began_s < 6.0, "5 s, and the second that a refusal takes"
    for gateway in gateways:
        assert [ask(gateway, each).status for each in (rotated, successor)] == [200, 200]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def pair(launch: Launch, keys: Keys, redis: RedisServer) -> list[Gateway]:
    """Two gateways that share a database and a Redis, and hear each other."""

    def change(gateway: Gateway) -> None:
        with_keys(keys.url)(gateway)
        gateway.settings["redis"] = {"url": redis.url}

    gateways = [launch(change) for _ in range(2)]
    for gateway in gateways:
        gateway.until(lambda: gateway.metric("shared_store_listening") == 1)
    return gateways


def announce(redis: RedisServer, key: NewKey) -> None:
    """What `apigwctl keys revoke` does in Redis when the database has it."""
    key_id = key.record.key_id
    for digest in redis.command("SMEMBERS", api_key_digests(key_id)):
        redis.command("DEL", api_key_record(digest.decode()))
    redis.command("DEL", api_key_digests(key_id))
    redis.command("PUBLISH", API_KEYS_CHANNEL, f'{{"key_id": "{key_id}"}}')


def refused_after(gateways: list[Gateway], key: NewKey) -> float:
    """Seconds until all of them refuse it, asked at the same time; the second that a refusal is held is taken off."""
    began_s = time.monotonic()
    for gateway in gateways:
        while (answer := ask(gateway, key)).status == 200:
            assert time.monotonic() - began_s < 7.0, "a revocation that does not count"
        assert (answer.status, answer.json()["error"]) == (401, "invalid_api_key")
    return time.monotonic() - began_s - len(gateways)


def test_with_redis_a_key_is_checked_once_and_a_revocation_counts_at_once(
    launch: Launch, keys: Keys, redis: RedisServer
) -> None:
    """On both gateways; what one of them checked the other finds in Redis, where the key is not."""
    key, other = keys.new(), keys.new()  # before the gateways, which would be told of new ones
    first, second = pair(launch, keys, redis)
    assert [ask(first, each).status for each in (key, other)] == [200, 200]
    first.until(lambda: len(redis.command("KEYS", "apikey:*")) == 2)
    assert [ask(second, each).status for each in (key, other)] == [200, 200]
    hits = {layer: second.metric("api_key_hits_total", layer=layer) for layer in ("redis", "database")}
    assert hits == {"redis": 2, "database": 0}
    secret = key.presented.rsplit("_", 1)[1].encode()
    assert all(secret not in redis.command("GET", name) for name in redis.command("KEYS", "apikey:*"))
    keys.store.revoke(key.record.key_id)
    announce(redis, key)
    took_s = refused_after([first, second], key)
    print(f"refused on both gateways after {took_s * 1000:.0f} ms, beside the second that a refusal is held")
    assert took_s < 1.5
    assert [ask(gateway, other).status for gateway in (first, second)] == [200, 200]


def test_with_redis_a_guesser_of_an_id_does_not_keep_its_owner_out(
    launch: Launch, keys: Keys, redis: RedisServer
) -> None:
    """On a gateway that never saw the key, while guesses have all places of its id; another one has checked it."""
    first, second = pair(launch, keys, redis)
    key = keys.new()
    assert ask(first, key).status == 200
    with ThreadPoolExecutor(MAX_PER_ID) as pool:
        guesses = [pool.submit(ask, second, f"pk_live_{key.record.key_id}_{i:043d}") for i in range(MAX_PER_ID)]
        second.until(lambda: second.metric("in_flight_requests") == MAX_PER_ID)
        assert ask(second, key).status == 200
    assert [guess.result().status for guess in guesses] == [401] * MAX_PER_ID


def test_with_redis_a_revocation_whose_message_is_lost_counts_within_five_seconds(
    launch: Launch, keys: Keys, redis: RedisServer
) -> None:
    """Whoever revokes may not reach Redis, and gateways may."""
    gateways = pair(launch, keys, redis)
    key = keys.new()
    assert [ask(gateway, key).status for gateway in gateways] == [200, 200]
    keys.store.revoke(key.record.key_id)
    assert refused_after(gateways, key) < 5.5


def test_when_redis_dies_revocations_count_within_five_seconds_and_keys_go_on(
    launch: Launch, keys: Keys, redis: RedisServer
) -> None:
    """Back and empty, it tells at once again."""
    gateways = pair(launch, keys, redis)
    key, other, third = keys.new(), keys.new(), keys.new()
    assert [ask(gateway, each).status for gateway in gateways for each in (key, other)] == [200] * 4
    redis.kill()
    keys.store.revoke(key.record.key_id)
    assert refused_after(gateways, key) < 5.5
    assert [ask(gateway, each).status for gateway in gateways for each in (other, third)] == [200] * 4
    redis.start()
    for gateway in gateways:
        gateway.until(lambda: gateway.metric("shared_store_listening") == 1)
        gateway.until(lambda: gateway.metric("api_key_changes_age_seconds") == 0)
    keys.store.revoke(other.record.key_id)
    announce(redis, other)
    assert refused_after(gateways, other) < 1.5
    assert [ask(gateway, third).status for gateway in gateways] == [200, 200]


def test_a_rotated_key_ends_with_its_overlap(launch: Launch, keys: Keys) -> None:
    """To the second, though a gateway remembers it as good."""
    gateway = launch(with_keys(keys.url))
    old = keys.new()
    assert ask(gateway, old).status == 200
    successor = keys.store.rotate(old.record.key_id, 2.0)
    began_s = time.monotonic()
    gateway.until(lambda: ask(gateway, old).status == 401, 5.0)
    assert 1.5 < time.monotonic() - began_s < 5.0
    assert ask(gateway, successor).status == 200


def test_while_the_database_is_gone_known_keys_go_on_and_others_are_told_503(launch: Launch, keys: Keys) -> None:
    """Never 200 for a key that nobody checked; all of it is over when the database is back."""
    gateway = launch(with_keys(keys.url))
    known, unknown = keys.new(), keys.new()
    assert ask(gateway, known).status == 200
    keys.hide()
    answers = ask_each(gateway, unknown, altered(known), f"pk_live_{'a' * 16}_{'b' * 43}")
    for answer in answers:
        assert (answer.status, answer.json()["error"]) == (503, "authentication_unavailable")
        assert int(answer.get("Retry-After") or 0) > 0
    end_s = time.monotonic() + 7.0  # beyond the 5 s within which a revocation would have been heard of
    while time.monotonic() < end_s:
        assert ask(gateway, known).status == 200
        time.sleep(0.1)
    assert gateway.metric("api_key_unconfirmed_total") > 0 and gateway.metric("api_key_changes_age_seconds") > 4
    assert gateway.metric("api_key_database_up") == 0
    assert gateway.page("/readyz").status == 200
    keys.back()
    gateway.until(lambda: ask(gateway, unknown).status == 200, 6.0)
    gateway.until(lambda: gateway.metric("api_key_database_up") == 1, 6.0)
    keys.store.revoke(known.record.key_id)
    gateway.until(lambda: ask(gateway, known).status == 401, 6.0)


def test_a_gateway_starts_while_postgresql_is_down_and_finds_it_later(launch: Launch) -> None:
    """503 until then. A database that goes away under it is found again, too."""
    with postgresql_server() as server:
        url = server.database()
        store = KeyStore(url, cost=4)
        key = store.create("acme")
        store.close()
        server.stop()
        gateway = launch(with_keys(url, cache_ttl_seconds=0))
        assert ask(gateway, key).status == 503
        server.start()
        gateway.until(lambda: ask(gateway, key).status == 200, 6.0)
        server.stop()
        assert ask(gateway, altered(key)).status == 503
        server.start()
        gateway.until(lambda: ask(gateway, altered(key)).status == 401, 6.0)
        assert ask(gateway, key).status == 200
