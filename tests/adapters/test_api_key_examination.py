"""The way of an unknown key through Redis, database and bcrypt, with what may happen in between.

The whole service is asked (api_keys.py); the table and Redis are played, bcrypt and the threads are real.
"""

import threading
from collections.abc import Iterator
from typing import Any

import bcrypt
import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, maybeDeferred

from apigw.adapters.api_key_changes import Announcements
from apigw.adapters.api_keys import APIKeys
from apigw.core.api_keys import APIKey, digest, made, to_json
from apigw.errors import GatewayError
from apigw.net.deadlines import Deadlines
from tests.adapters.api_key_world import SECRET, Store, Table, shown
from tests.servers import until

NOW_S = 1_800_000_000.0
reactor: Any = installed_reactor


class House:
    """Gateways on one table and one Redis."""

    def __init__(self) -> None:
        self.table = Table()
        self.store = Store()
        self.now_s = NOW_S
        self.gateways: list[APIKeys] = []

    async def gateway(self, **more: Any) -> APIKeys:
        """One more, in step; ready=False: as it begins."""
        deadlines = Deadlines(reactor)
        store, ready = more.pop("store", self.store), more.pop("ready", True)
        announcements = None if store is None else Announcements(store)
        keys = APIKeys(
            reactor, deadlines, lambda: self.now_s, lambda: self.table, announcements, more.pop("ttl_s", 300.0),
            lambda tier: tier == "gold", lambda: 5000, hold_s=more.pop("hold_s", 0.05),
        )  # fmt: skip
        self.gateways.append(keys)
        keys.startService()
        if ready:
            await until(lambda: keys.changes.in_step if store is not None else keys.changes.heard_s, reactor)
        return keys


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    house.store.answers = house.table.gate = None
    for keys in house.gateways:
        pytest_twisted.blockon(maybeDeferred(keys.stopService))


async def ask(keys: APIKeys, presented: bytes) -> "APIKey | str":
    """The key, or the reason of the refusal."""
    try:
        found = keys.find(presented)
        return await found if isinstance(found, Deferred) else found
    except GatewayError as refusal:
        return refusal.reason


@pytest_twisted.ensureDeferred
async def test_a_key_comes_from_the_database_then_from_memory_and_for_the_others_from_redis(house: House) -> None:
    presented = house.table.put("k1", tier="gold", scopes=("a",), networks=("10.0.0.0/8",))
    first, second = await house.gateway(), await house.gateway()
    found = await ask(first, presented)
    assert isinstance(found, APIKey) and found.principal.key_hash == digest(presented)
    assert first.find(presented) is found
    assert first.hits() == {"memory": 1, "redis": 0, "database": 1}
    again = await ask(second, presented)
    assert isinstance(again, APIKey) and to_json(again) == to_json(found)
    assert second.hits() == {"memory": 0, "redis": 1, "database": 0}
    assert second.checks.rejected == 0 and second.find(presented) is again


@pytest_twisted.ensureDeferred
async def test_unknown_wrong_expired_revoked_are_told_apart_in_the_log_alone(house: House) -> None:
    keys = await house.gateway()
    house.table.put("good")
    expired = house.table.put("expired", expires_s=NOW_S)
    revoked = house.table.put("revoked", revoked_s=NOW_S - 1)
    assert await ask(keys, shown("none")) == "key_unknown"
    assert await ask(keys, shown("good", b"w" * 43)) == "key_wrong"
    assert await ask(keys, expired) == "key_expired"
    assert await ask(keys, revoked) == "key_revoked"
    assert await ask(keys, b"nonsense") == "key_malformed"
    assert len(keys.good) == 0 and house.store.records() == []


@pytest_twisted.ensureDeferred
async def test_unknown_ids_and_wrong_secrets_are_remembered(house: House) -> None:
    """Neither asks the database again; another secret of an unknown id neither."""
    keys = await house.gateway()
    house.table.put("good")
    wrong = shown("good", b"w" * 43)
    for _ in range(3):
        assert await ask(keys, wrong) == "key_wrong"
        assert await ask(keys, shown("none")) == "key_unknown"
        assert await ask(keys, shown("none", b"x" * 43)) == "key_unknown"
    assert house.table.finds.count("none") == 1 and house.table.finds.count("good") == 1


@pytest_twisted.ensureDeferred
async def test_a_key_that_is_made_after_somebody_tried_it_works_when_that_is_told(house: House) -> None:
    keys = await house.gateway()
    assert await ask(keys, shown("k1")) == "key_unknown"
    presented = house.table.put("k1")
    house.store.publish("apigw:apikeys", b'{"key_id": "k1"}')
    assert isinstance(await ask(keys, presented), APIKey)


@pytest_twisted.ensureDeferred
async def test_one_check_serves_all_that_show_the_same_key(house: House) -> None:
    keys = await house.gateway()
    house.table.put("k1", secret_hash=bcrypt.hashpw(SECRET, bcrypt.gensalt(8)).decode())
    waiting = [keys.find(shown("k1")) for _ in range(20)]
    assert len({await one for one in waiting if isinstance(one, Deferred)}) == 1
    assert house.table.finds.count("k1") == 2 and keys.hits()["database"] == 1


@pytest_twisted.ensureDeferred
async def test_revocation_is_immediate_for_all_gateways_on_one_redis(house: House) -> None:
    presented = house.table.put("k1")
    gateways = [await house.gateway() for _ in range(2)]
    for keys in gateways:
        assert isinstance(await ask(keys, presented), APIKey)
    house.table.put("k1", revoked_s=NOW_S)
    house.store.revoke("k1")
    for keys in gateways:
        assert await ask(keys, presented) == "key_revoked"
    assert house.store.records() == []


@pytest.mark.parametrize("find", [1, 2])
@pytest_twisted.ensureDeferred
async def test_a_key_revoked_while_it_is_checked_is_not_let_in(house: House, find: int) -> None:
    """Revoked right after the database answered the first question, or the one after the check."""
    presented = house.table.put("k1")
    keys = await house.gateway()
    done = threading.Event()

    def revoke() -> None:
        house.table.put("k1", revoked_s=NOW_S)
        house.store.revoke("k1")
        done.set()

    def at_find(number: int) -> None:  # in the thread: the loop revokes before it hears the old answer
        if number == find:
            reactor.callFromThread(revoke)
            done.wait(5)

    house.table.at_find = at_find
    assert await ask(keys, presented) == "key_revoked"
    assert len(keys.good) == 0 and house.store.records() == []
    assert await ask(keys, presented) == "key_revoked"


@pytest_twisted.ensureDeferred
async def test_a_key_revoked_while_redis_answers_is_not_let_in(house: House) -> None:
    presented = house.table.put("k1")
    first, second = await house.gateway(), await house.gateway()
    assert isinstance(await ask(first, presented), APIKey)
    document = house.store.values[house.store.records()[0]]
    house.store.answers = []
    found = second.find(presented)
    house.table.put("k1", revoked_s=NOW_S)
    house.store.revoke("k1")
    house.store.answers[0].callback(document)
    assert isinstance(found, Deferred)
    with pytest.raises(GatewayError) as refusal:
        await found
    assert refusal.value.reason == "key_revoked" and len(second.good) == 0


@pytest_twisted.ensureDeferred
async def test_a_record_of_redis_that_the_database_disowns_is_forgotten_at_once(house: House) -> None:
    """Such as one that a gateway put there and died before it asked again. It lets nobody in."""
    presented = house.table.put("k1", revoked_s=NOW_S)
    keys = await house.gateway()
    name = digest(presented)
    house.store.values[f"apikey:{name}"] = to_json(made("k1", name, partner_id="acme"))
    assert await ask(keys, presented) == "key_revoked"
    assert house.store.records() == [] and keys.hits()["redis"] == 0


@pytest_twisted.ensureDeferred
async def test_a_key_revoked_while_redis_was_away_is_not_let_in_by_a_gateway_that_starts(house: House) -> None:
    """Its record still stands, and nobody tells a new worker of what was before. Its first poll is not answered yet."""
    presented, other = house.table.put("k1"), house.table.put("k2")
    first = await house.gateway()
    await ask(first, presented)
    await ask(first, other)
    await maybeDeferred(first.stopService)
    house.table.put("k1", revoked_s=NOW_S)
    house.table.gate = threading.Event()
    second = await house.gateway(ready=False)
    told = [maybeDeferred(ask, second, each) for each in (presented, other)]
    assert len(house.store.records()) == 2 and second.changes.database_up and not second.changes.in_step
    house.table.gate.set()
    revoked, good = [await one for one in told]
    assert revoked == "key_revoked" and isinstance(good, APIKey)
    assert second.hits() == {"memory": 0, "redis": 1, "database": 0}, "without bcrypt"


@pytest_twisted.ensureDeferred
async def test_what_the_database_says_was_changed_leaves_redis(house: House) -> None:
    """Whoever revoked it did not reach Redis; and Redis does not answer at once when the gateway hears of it."""
    presented = house.table.put("k1")
    keys = await house.gateway()
    await ask(keys, presented)
    house.table.put("k1", revoked_s=NOW_S)
    house.store.down = True
    await keys._since(1)
    assert len(house.store.records()) == 1
    house.store.down = False
    await keys._since(2)
    assert house.store.records() == []


@pytest_twisted.ensureDeferred
async def test_a_key_believed_while_the_database_was_down_is_confirmed_when_it_is_back(house: House) -> None:
    """It was revoked before this worker began to hear of changes, so nobody tells."""
    presented = house.table.put("k1")
    first = await house.gateway()
    await ask(first, presented)
    await maybeDeferred(first.stopService)
    house.table.put("k1", revoked_s=NOW_S)
    second = await house.gateway()
    house.table.down = True
    assert isinstance(await ask(second, presented), APIKey)
    assert isinstance(second.find(presented), APIKey)
    house.table.down = False
    await second._since(2)
    assert await ask(second, presented) == "key_revoked"


@pytest_twisted.ensureDeferred
async def test_while_the_database_is_known_to_be_down_a_key_of_redis_is_believed_without_asking(house: House) -> None:
    presented = house.table.put("k1")
    first = await house.gateway()
    await ask(first, presented)
    house.table.down = True
    second = await house.gateway(ready=False)
    await until(lambda: not second.changes.database_up, reactor)
    asked = len(house.table.finds)
    assert isinstance(await ask(second, presented), APIKey) and len(house.table.finds) == asked


@pytest_twisted.ensureDeferred
async def test_a_record_that_is_gone_while_the_database_is_asked_in_vain_lets_nobody_in(house: House) -> None:
    """The runbook takes it out of Redis to lock somebody out."""
    presented = house.table.put("k1")
    first, second = await house.gateway(), await house.gateway()
    await ask(first, presented)
    house.table.down, house.store.left_ms = True, -2
    assert await ask(second, presented) == "key_unverifiable" and len(second.good) == 0


@pytest_twisted.ensureDeferred
async def test_a_key_revoked_while_its_record_is_confirmed_is_not_let_in(house: House) -> None:
    """The answer that says so was on its way."""
    presented = house.table.put("k1")
    first, second = await house.gateway(), await house.gateway()
    await ask(first, presented)
    told = threading.Event()

    def change() -> None:
        house.table.put("k1", revoked_s=NOW_S)
        house.store.revoke("k1")
        told.set()

    def at_find(_: int) -> None:
        if not told.is_set():
            reactor.callFromThread(change)
            told.wait(5)

    house.table.at_find = at_find
    assert await ask(second, presented) == "key_revoked"
    assert second.hits()["redis"] == 0 and len(second.good) == 0


@pytest_twisted.ensureDeferred
async def test_what_redis_has_of_a_changed_key_is_not_believed(house: House) -> None:
    presented = house.table.put("k1")
    keys = await house.gateway()
    name = digest(presented)
    house.table.put("k1", revoked_s=NOW_S)
    house.store.revoke("k1")
    house.store.values[f"apikey:{name}"] = to_json(made("k1", name, partner_id="acme"))
    assert await ask(keys, presented) == "key_revoked"


@pytest_twisted.ensureDeferred
async def test_a_changed_tier_counts_as_soon_as_it_is_told(house: House) -> None:
    presented = house.table.put("k1", tier="gold")
    keys = await house.gateway()
    await ask(keys, presented)
    house.table.put("k1", tier="silver")
    house.store.publish("apigw:apikeys", b'{"key_id": "k1"}')
    found = await ask(keys, presented)
    assert isinstance(found, APIKey) and found.principal.tier == "silver"


@pytest_twisted.ensureDeferred
async def test_a_good_key_is_asked_anew_after_its_time_without_bcrypt(house: House) -> None:
    """Its proof stands while the hash does; a flood that fills the checks cannot keep it out."""
    presented = house.table.put("k1")
    keys = await house.gateway(store=None, ttl_s=0.05)
    await ask(keys, presented)
    await until(lambda: isinstance(keys.find(presented), Deferred), reactor)
    await maybeDeferred(keys.checks.stopService)  # no check can be made any more
    assert isinstance(await ask(keys, presented), APIKey)


@pytest.mark.parametrize("end", [{"revoked_s": NOW_S}, {"expires_s": NOW_S}])
@pytest_twisted.ensureDeferred
async def test_a_key_that_was_good_once_and_is_refused_now_is_not_let_past_bounds(
    house: House, end: dict[str, float]
) -> None:
    """Nobody may use a key of old to fill the places of requests."""
    presented = house.table.put("k1")
    keys = await house.gateway()
    await ask(keys, presented)
    assert keys.knows(presented)
    house.table.put("k1", **end)
    house.store.revoke("k1")
    assert await ask(keys, presented) in ("key_revoked", "key_expired")
    assert not keys.knows(presented)


@pytest_twisted.ensureDeferred
async def test_a_new_secret_of_an_id_is_checked_anew(house: House) -> None:
    presented = house.table.put("k1")
    keys = await house.gateway()
    await ask(keys, presented)
    house.table.put("k1", secret_hash=bcrypt.hashpw(b"n" * 43, bcrypt.gensalt(4)).decode())
    house.store.revoke("k1")
    assert await ask(keys, presented) == "key_wrong"
    assert isinstance(await ask(keys, shown("k1", b"n" * 43)), APIKey)


@pytest_twisted.ensureDeferred
async def test_an_unknown_key_is_503_while_the_database_is_down_and_a_known_one_is_not(house: House) -> None:
    presented, other = house.table.put("k1"), house.table.put("k2")
    first, second = await house.gateway(), await house.gateway()
    await ask(first, presented)
    house.table.down = True
    assert await ask(first, other) == "key_unverifiable"
    assert isinstance(first.find(presented), APIKey)
    assert isinstance(await ask(second, presented), APIKey), "Redis has it"


@pytest_twisted.ensureDeferred
async def test_a_known_key_can_be_locked_out_by_a_message_while_the_database_is_down(house: House) -> None:
    """The runbook says so: forgotten by all, and not believed when Redis still has it."""
    presented = house.table.put("k1")
    gateways = [await house.gateway() for _ in range(2)]
    for keys in gateways:
        assert isinstance(await ask(keys, presented), APIKey)
    house.table.down = True
    house.store.publish("apigw:apikeys", b'{"key_id":"k1"}')
    assert [await ask(keys, presented) for keys in gateways] == ["key_unverifiable"] * 2


@pytest_twisted.ensureDeferred
async def test_a_key_of_redis_that_the_database_cannot_confirm_is_good_no_longer_than_there(house: House) -> None:
    """Else each worker that reads it in its last second would begin a TTL of its own, and nobody could revoke it."""
    presented = house.table.put("k1")
    first, second = await house.gateway(), await house.gateway()
    await ask(first, presented)
    house.table.down, house.store.left_ms = True, 100
    assert isinstance(await ask(second, presented), APIKey)
    (good,) = second.good.by_presented.values()
    await until(lambda: good.until_s < reactor.seconds() + 0.1, reactor)
    house.store.values.clear()
    await until(lambda: isinstance(second.find(presented), Deferred), reactor)
    assert await ask(second, presented) == "key_unverifiable"
    assert isinstance(first.find(presented), APIKey), "it asked the database itself"


@pytest_twisted.ensureDeferred
async def test_a_key_of_redis_that_the_database_confirms_has_its_whole_time(house: House) -> None:
    presented = house.table.put("k1")
    first, second = await house.gateway(), await house.gateway()
    await ask(first, presented)
    house.store.left_ms = 1
    asked = len(house.table.finds)
    assert isinstance(await ask(second, presented), APIKey)
    assert len(house.table.finds) == asked + 1
    (good,) = second.good.by_presented.values()
    assert good.until_s > reactor.seconds() + 290.0


@pytest_twisted.ensureDeferred
async def test_a_record_that_makes_no_key_is_503_and_logged(house: House) -> None:
    keys = await house.gateway()
    assert await ask(keys, house.table.put("k1", partner_id="two words")) == "key_unverifiable"
    assert await ask(keys, house.table.put("k2", secret_hash="no hash")) == "key_unverifiable"
