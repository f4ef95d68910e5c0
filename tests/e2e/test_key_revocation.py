"""API keys that were good once, on real daemons: those revoked while Redis could not be told, on gateways that run,
start and reload; and whether one that has ended can be told from one that never was.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from apigw.adapters.api_key_cases import MAX_PER_ID
from apigw.adapters.key_store import NewKey
from apigw.core.api_keys import digest
from apigw.names import api_key_record
from tests.e2e.conftest import Launch
from tests.e2e.gateway import Gateway
from tests.e2e.test_api_keys import Keys, ask, keys, pair, refused_after, with_keys
from tests.e2e.test_apigwctl import ctl
from tests.servers import RedisServer, redis_server

__all__ = ["keys"]

SHOWN = 20  # as soon as the gateway serves, one after the other


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def record(key: NewKey) -> str:
    return api_key_record(digest(key.presented.encode()))


def stop(gateway: Gateway) -> None:
    """It counts anew when it starts, and so does its log."""
    gateway.stop()
    gateway.access_log.unlink()


def statuses(gateway: Gateway, key: NewKey) -> set[int]:
    """Of some requests with it; a refusal takes its second, and then there is no need for more."""
    seen: set[int] = set()
    for _ in range(SHOWN):
        seen.add(ask(gateway, key).status)
        if seen != {200}:
            break
    return seen


def test_a_key_revoked_while_redis_is_frozen_leaves_it_afterwards_and_a_restart_refuses_it(
    launch: Launch, keys: Keys, redis: RedisServer
) -> None:
    """The running gateways learn it from the database and take it out of Redis. Other keys stay there."""
    key, other = keys.new(), keys.new()
    gateways = pair(launch, keys, redis)
    assert [ask(gateway, each).status for gateway in gateways for each in (key, other)] == [200] * 4
    redis.freeze()
    try:
        assert "within 5 seconds" in ctl(gateways[0], "keys", "revoke", key.record.key_id).err
    finally:
        redis.thaw()
    assert refused_after(gateways, key) < 5.5
    gateways[0].until(lambda: not redis.command("EXISTS", record(key)), 5.0)
    assert redis.command("EXISTS", record(other)) == 1
    stop(gateways[1])
    gateways[1].start()
    assert statuses(gateways[1], key) == {401} and statuses(gateways[1], other) == {200}


def test_a_key_revoked_while_no_gateway_ran_is_refused_from_the_first_request_on(
    launch: Launch, keys: Keys, redis: RedisServer
) -> None:
    """Redis has it as good, and nobody was told. What Redis has of a good key spares bcrypt all the same."""
    key, other = keys.new(), keys.new()
    gateways = pair(launch, keys, redis)
    assert [ask(gateways[0], each).status for each in (key, other)] == [200, 200]
    for gateway in gateways:
        stop(gateway)
    keys.store.revoke(key.record.key_id)
    assert redis.command("EXISTS", record(key), record(other)) == 2
    gateway = gateways[0].start()
    assert statuses(gateway, key) == {401} and statuses(gateway, other) == {200}
    assert redis.command("EXISTS", record(key)) == 0
    hits = [gateway.metric("api_key_hits_total", layer=layer) for layer in ("redis", "database")]
    assert hits == [1, 0]


def test_a_reload_lets_no_revoked_key_in_that_redis_has_as_good(launch: Launch, keys: Keys, redis: RedisServer) -> None:
    """The section of API keys changes, so all that was remembered of them is new."""
    key, other = keys.new(), keys.new()
    gateway, _ = pair(launch, keys, redis)
    assert [ask(gateway, each).status for each in (key, other)] == [200, 200]
    document = redis.command("GET", record(key))
    keys.store.revoke(key.record.key_id)
    assert refused_after([gateway], key) < 5.5
    redis.command("SET", record(key), document, "EX", 300)
    gateway.settings["auth"]["api_keys"]["cache_ttl_seconds"] = 301
    gateway.reload()
    assert statuses(gateway, key) == {401} and statuses(gateway, other) == {200}


def test_while_the_database_is_gone_keys_of_redis_go_on_and_are_confirmed_when_it_is_back(
    launch: Launch, keys: Keys, redis: RedisServer
) -> None:
    """A key that was revoked before this gateway ran, too: nobody can tell, until then."""
    key, other = keys.new(), keys.new()
    first, second = pair(launch, keys, redis)
    assert [ask(first, each).status for each in (key, other)] == [200, 200]
    for gateway in (first, second):
        stop(gateway)
    keys.store.revoke(key.record.key_id)
    second.start()
    second.until(lambda: second.metric("api_key_changes_age_seconds") == 0)
    keys.hide()
    second.until(lambda: second.metric("api_key_database_up") == 0, 6.0)
    assert [ask(second, each).status for each in (key, other)] == [200, 200]
    keys.back()
    began_s = time.monotonic()
    second.until(lambda: ask(second, key).status == 401, 6.0)
    assert time.monotonic() - began_s < 6.0 and ask(second, other).status == 200


def behind_guesses(gateway: Gateway, presented: str) -> list[tuple[int, int]]:
    """Status and second of the answers to guesses that take all places of its id, and to this key right after them."""
    pool = ThreadPoolExecutor(MAX_PER_ID + 1)

    def answered(key: str) -> tuple[int, int]:
        began_s = time.monotonic()
        return ask(gateway, key).status, int(time.monotonic() - began_s)

    with pool:
        guesses = [f"{presented[:-6]}{time.time_ns() % 100_000:05d}{number}" for number in range(MAX_PER_ID)]
        answers = []
        for key in (*guesses, presented):
            answers.append(pool.submit(answered, key))
            time.sleep(0.03)
        return [answer.result() for answer in answers]


def test_behind_guesses_of_its_id_a_key_that_has_ended_is_answered_like_one_that_never_was(
    launch: Launch, keys: Keys
) -> None:
    """Expired or revoked, and good here until then; the first time, and when it was refused before."""
    gateway = launch(with_keys(keys.url))
    good, expired, revoked = keys.new(), keys.new(expires_s=time.time() + 4.0), keys.new()
    assert [ask(gateway, key).status for key in (good, expired, revoked)] == [200] * 3
    keys.store.revoke(revoked.record.key_id)
    time.sleep(5.0)  # the wall clock is what ends a key, and the gateway hears of revocations by then
    never = f"pk_live_{'u' * 16}_{'b' * 43}"
    for _ in range(2):
        like_a_guess = behind_guesses(gateway, never)
        assert like_a_guess == [(401, 1)] * MAX_PER_ID + [(503, 1)]
        assert behind_guesses(gateway, expired.presented) == like_a_guess
        assert behind_guesses(gateway, revoked.presented) == like_a_guess
    assert behind_guesses(gateway, good.presented)[-1] == (200, 0)
