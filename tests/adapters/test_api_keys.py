"""The source of API keys as the pipeline sees it: memory, its end, who vouches for it, what happens at the end."""

from collections.abc import Iterator
from typing import Any

import bcrypt
import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred

from apigw.adapters.api_key_cases import MAX_PER_ID
from apigw.adapters.api_keys import UNHEARD_S, APIKeys
from apigw.core.api_keys import APIKey, digest
from apigw.errors import GatewayError
from apigw.names import api_key_record
from tests.adapters.api_key_world import SECRET, shown
from tests.adapters.test_api_key_examination import NOW_S, House, ask
from tests.servers import until

reactor: Any = installed_reactor


class Time:
    """The reactor with a clock that the test may put forward; timers stay the reactor's."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def seconds(self) -> float:
        return float(reactor.seconds()) + self.ahead_s

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    house.table.gate = None
    for keys in house.gateways:
        pytest_twisted.blockon(maybeDeferred(keys.stopService))


def put_forward(keys: Any, seconds: float) -> None:
    """The service's own clock, not that of its pollers."""
    if not isinstance(keys._clock, Time):
        keys._clock = keys.examination._clock = Time()
    keys._clock.ahead_s += seconds


@pytest_twisted.ensureDeferred
async def test_a_remembered_key_is_at_hand_until_its_ttl_ends(house: House) -> None:
    keys = await house.gateway(ttl_s=300.0)
    presented = house.table.put("k1")
    found = await ask(keys, presented)
    put_forward(keys, 299)
    assert keys.find(presented) is found
    put_forward(keys, 2)
    assert isinstance(keys.find(presented), Deferred)


@pytest_twisted.ensureDeferred
async def test_a_remembered_key_is_refused_from_its_own_end_on(house: House) -> None:
    """And held like any other refusal."""
    keys = await house.gateway()
    presented = house.table.put("k1", expires_s=NOW_S + 60)
    assert isinstance(await ask(keys, presented), APIKey)
    house.now_s += 60
    refused = keys.find(presented)
    assert isinstance(refused, Deferred)
    with pytest.raises(GatewayError) as caught:
        await refused
    assert caught.value.reason == "key_expired"


@pytest_twisted.ensureDeferred
async def test_while_redis_tells_of_changes_memory_is_believed_for_all_of_its_time(house: House) -> None:
    keys = await house.gateway()
    presented = house.table.put("k1")
    found = await ask(keys, presented)
    asked = len(house.table.finds)
    put_forward(keys, 200)
    assert keys.find(presented) is found and len(house.table.finds) == asked


@pytest_twisted.ensureDeferred
async def test_a_key_that_nobody_vouches_for_is_asked_for_again(house: House) -> None:
    """Neither Redis nor the poller told anything for five seconds; the database knows of a revocation."""
    keys = await house.gateway(store=None)
    presented, other = house.table.put("k1"), house.table.put("k2")
    await ask(keys, presented)
    await ask(keys, other)
    house.table.put("k1", revoked_s=NOW_S)
    put_forward(keys, UNHEARD_S + 0.1)
    assert await ask(keys, presented) == "key_revoked"
    assert isinstance(await ask(keys, other), APIKey)
    assert isinstance(keys.find(other), APIKey), "and is vouched for again"
    assert keys.examination.unconfirmed == 0


@pytest_twisted.ensureDeferred
async def test_a_good_key_stays_good_until_its_ttl_while_nobody_answers(house: House) -> None:
    keys = await house.gateway(store=None)
    presented = house.table.put("k1")
    await ask(keys, presented)
    house.table.down = True
    put_forward(keys, UNHEARD_S + 0.1)
    assert isinstance(await ask(keys, presented), APIKey)
    assert keys.examination.unconfirmed == 1
    assert isinstance(keys.find(presented), APIKey)
    put_forward(keys, 300)
    assert await ask(keys, presented) == "key_unverifiable"


@pytest_twisted.ensureDeferred
async def test_malformed_and_unknown_keys_never_reach_bcrypt(house: House) -> None:
    keys = await house.gateway()
    await maybeDeferred(keys.checks.stopService)
    assert await ask(keys, b"") == await ask(keys, shown("a") + b", " + shown("b")) == "key_malformed"
    assert await ask(keys, shown("none")) == "key_unknown"


@pytest_twisted.ensureDeferred
async def test_a_flood_on_one_id_does_not_starve_another(house: House) -> None:
    """1,000 distinct wrong secrets of a real id at once: four are checked, and another id's key comes after two."""
    keys = await house.gateway()
    slow = bcrypt.hashpw(SECRET, bcrypt.gensalt(8)).decode()
    house.table.put("flooded", secret_hash=slow)
    presented = house.table.put("other", secret_hash=slow)
    flood = [maybeDeferred(keys.find, shown("flooded", b"%043d" % number)) for number in range(1000)]
    assert isinstance(await ask(keys, presented), APIKey)
    reasons = []
    for one in flood:
        one.addErrback(lambda failure: reasons.append(failure.value.reason))
        await one
    assert set(reasons) == {"key_wrong", "key_unverifiable"} and reasons.count("key_wrong") <= 5
    assert keys.cases.waiting == keys.checks.queued == 0


def crowd(keys: APIKeys, key_id: str, *presented: bytes) -> "tuple[list[Deferred[Any]], Deferred[list[str]]]":
    """Guesses that take all places of an id, and right after them these keys, asked; and the reasons of them all."""
    guesses = [shown(key_id, b"%043d" % number) for number in range(MAX_PER_ID)]
    asked: list[Deferred[Any]] = [maybeDeferred(keys.find, one) for one in (*guesses, *presented)]
    told = [_told(one) for one in asked]
    return asked[MAX_PER_ID:], gatherResults(told)


def _told(asked: "Deferred[Any]") -> "Deferred[str]":
    told: Deferred[str] = Deferred()
    asked.addCallbacks(lambda _: told.callback("good"), lambda failure: told.callback(failure.value.reason))
    return told


@pytest_twisted.ensureDeferred
async def test_a_guesser_who_takes_all_places_of_an_id_does_not_keep_its_owner_out(house: House) -> None:
    """Another gateway has checked the owner's key, so Redis has it; a guess is not there, and ends as it would."""
    first, second = await house.gateway(), await house.gateway(hold_s=1.0)
    presented = house.table.put("k1")
    await ask(first, presented)
    (guess, owner), told = crowd(second, "k1", shown("k1", b"g" * 43), presented)
    await until(lambda: owner.called, reactor)
    assert not guess.called, "the owner waits for the database alone, and for nobody's time"
    assert await told == ["key_wrong"] * MAX_PER_ID + ["key_unverifiable", "good"]
    assert second.hits()["redis"] == second.turned_away() == 1


@pytest_twisted.ensureDeferred
async def test_whose_id_has_no_place_left_is_let_in_by_nothing_but_a_good_key_in_redis(house: House) -> None:
    """One that has expired gets the 503 that others get; and none that is known to be wrong costs a look."""
    first, second = await house.gateway(), await house.gateway()
    expired, guess = house.table.put("k1", expires_s=NOW_S + 60), shown("k1", b"g" * 43)
    await ask(first, expired)
    assert await ask(second, guess) == "key_wrong"
    await until(lambda: not len(second.cases), reactor)
    house.now_s += 60
    house.store.commands.clear()
    _, told = crowd(second, "k1", guess, expired)
    looks = [words[1] for words in house.store.commands if words[0] == "GET"]
    assert len(looks) == MAX_PER_ID + 1 and looks[-1] == api_key_record(digest(expired))
    assert await told == ["key_expired"] * MAX_PER_ID + ["key_unverifiable"] * 2


@pytest.mark.parametrize("end", ["remembered", "forgotten", "revoked", "revoked and not told"])
@pytest_twisted.ensureDeferred
async def test_a_key_that_was_good_here_and_is_no_more_is_refused_as_a_guess_is(house: House, end: str) -> None:
    """Behind guesses of its id, whether or not these have found out; an owner whose key is good gets in."""
    keys = await house.gateway()
    presented = house.table.put("k1", expires_s=NOW_S + 60)
    await ask(keys, presented)
    if end == "forgotten":
        keys.good.clear()
    if end.startswith("revoked"):
        house.table.put("k1", revoked_s=NOW_S)
    if end == "revoked":
        house.store.revoke("k1")
    elif end == "revoked and not told":
        keys.good.clear()
    else:
        house.now_s += 60
    for number in range(2):  # at the same moment, and when the guesses of before are known
        _, told = crowd(keys, "k1", shown("k1", b"g%042d" % number), presented)
        reasons = await told
        assert reasons[MAX_PER_ID:] == ["key_unverifiable"] * 2, reasons
        await until(lambda: not len(keys.cases), reactor)
    assert not keys.knows(presented)


@pytest.mark.parametrize("remembered", [True, False])
@pytest_twisted.ensureDeferred
async def test_who_has_a_good_key_that_was_seen_here_gets_in_past_guesses_of_its_id(
    house: House, remembered: bool
) -> None:
    """And no guess makes it forgotten."""
    keys = await house.gateway(store=None)
    presented = house.table.put("k1", expires_s=NOW_S + 60)
    await ask(keys, presented)
    for _ in range(2):
        if not remembered:
            keys.good.clear()
        _, told = crowd(keys, "k1", shown("k1", b"g" * 43), presented)
        assert (await told)[-1] == "good"
        await until(lambda: not len(keys.cases), reactor)
    assert keys.knows(presented)


@pytest_twisted.ensureDeferred
async def test_a_remembered_key_that_has_ended_waits_for_its_turn_among_the_checks(house: House) -> None:
    """As one does that this worker never saw: neither is told before the check that is ahead is done."""
    keys = await house.gateway()
    slow = bcrypt.hashpw(SECRET, bcrypt.gensalt(10)).decode()
    house.table.put("other", secret_hash=slow)
    ended = house.table.put("k1", expires_s=NOW_S + 60), house.table.put("k2", expires_s=NOW_S)
    await ask(keys, ended[0])
    house.now_s += 60
    ahead = [maybeDeferred(ask, keys, shown("other", b"%043d" % number)) for number in range(MAX_PER_ID)]
    await until(lambda: keys.checks.busy == keys.checks.size, reactor)
    taken: list[str] = []
    turn = keys.checks.turn

    def taking(key_id: str) -> Any:
        taken.append(key_id)
        return turn(key_id)

    keys.checks.turn = taking  # type: ignore[method-assign]
    assert [await one for one in [maybeDeferred(ask, keys, each) for each in ended]] == ["key_expired"] * 2
    assert sorted(taken) == ["k1", "k2"]
    assert [await one for one in ahead] == ["key_wrong"] * MAX_PER_ID


@pytest_twisted.ensureDeferred
async def test_a_remembered_key_that_has_ended_is_503_while_the_database_is_down_like_any_other(house: House) -> None:
    keys = await house.gateway()
    presented = house.table.put("k1", expires_s=NOW_S + 60)
    await ask(keys, presented)
    house.now_s += 60
    house.table.down = True
    assert await ask(keys, presented) == await ask(keys, shown("k1", b"g" * 43)) == "key_unverifiable"
    house.table.down = False
    house.table.put("k1", expires_s=NOW_S + 120)
    assert isinstance(await ask(keys, presented), APIKey), "its end was put off"


@pytest_twisted.ensureDeferred
async def test_a_tier_that_is_not_configured_is_told_once(house: House) -> None:
    keys = await house.gateway()
    for number in range(3):
        await ask(keys, house.table.put(f"k{number}", tier="platinum"))
    await ask(keys, house.table.put("golden", tier="gold"))
    assert keys._tiers_told == {"platinum"}


@pytest_twisted.ensureDeferred
async def test_at_the_end_what_is_looked_into_is_503(house: House) -> None:
    import threading

    keys = await house.gateway()
    presented = house.table.put("k1")
    house.table.gate = threading.Event()
    looking = keys.find(presented)
    stopped = maybeDeferred(keys.stopService)
    house.table.gate.set()
    await stopped
    assert isinstance(looking, Deferred)
    with pytest.raises(GatewayError) as caught:
        await looking
    assert caught.value.status == 503
