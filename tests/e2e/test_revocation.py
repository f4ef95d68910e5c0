"""Revoked tokens through real daemons on one real Redis: how soon, on which of them, and with Redis gone."""

import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from apigw.adapters.redis_link import pack
from apigw.core.revocation_codec import key, member, message
from apigw.core.revocations import Revocation, RevokedToken, RevokedUser
from apigw.names import REVOCATIONS_CHANNEL, REVOKED_TOKENS
from tests.e2e.conftest import Launch
from tests.e2e.gateway import Gateway
from tests.e2e.identity import bearer
from tests.e2e.load import Load, percentile
from tests.e2e.test_apigwctl import ctl
from tests.servers import RedisServer, redis_server

EFFECTIVE_S = 5.0  # contract section 7


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def on_redis(redis: RedisServer) -> Any:
    """A gateway that hears of revocations there. Its rate limits count in memory."""

    def change(gateway: Gateway) -> None:
        gateway.settings["redis"] = {"url": redis.url}

    return change


def listening(launch: Launch, redis: RedisServer) -> Gateway:
    gateway = launch(on_redis(redis))
    gateway.until(lambda: known(gateway)["complete"] and gateway.metric("shared_store_listening") == 1)
    return gateway


def known(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = gateway.status()["revocations"]
    return found


def revoke(redis: RedisServer, *revocations: Revocation, told: bool = True) -> None:
    """As `apigwctl tokens revoke` does it; told=False: its message is lost."""
    for revocation in revocations:
        redis.command("ZADD", key(revocation), "GT", repr(revocation.until_s), member(revocation))
        if told:
            redis.command("PUBLISH", REVOCATIONS_CHANNEL, message(revocation))


def token_revoked(jti: str) -> RevokedToken:
    return RevokedToken(jti, time.time() + 660)


def status(gateway: Gateway, header: tuple[str, str]) -> int:
    return gateway.ask("GET", "/api/x", header).status


def refused(gateway: Gateway, header: tuple[str, str]) -> bool:
    """Whether it is 401, with no word of why for the client and one for the log."""
    response = gateway.ask("GET", "/api/x", header)
    if response.status == 200:
        return False
    assert (response.status, response.json()["error"]) == (401, "invalid_token")
    assert gateway.entry(response.get("X-Request-ID"))["error_message"].startswith("revoked")
    return True


def until_refused(gateways: list[Gateway], header: tuple[str, str], began_s: float) -> float:
    """Seconds from `began_s` until every one of them refuses it."""
    for gateway in gateways:
        while status(gateway, header) == 200:
            assert time.monotonic() - began_s < EFFECTIVE_S, "a revocation that does not count"
    return time.monotonic() - began_s


def test_a_revoked_token_and_a_revoked_user_are_refused_on_all_gateways_at_once(
    launch: Launch, redis: RedisServer, record_property: Any
) -> None:
    """Tokens that were in steady use, so each gateway remembers them as verified; a newer one of the user passes."""
    gateways = [listening(launch, redis) for _ in range(2)]
    now = int(time.time())
    one, other = bearer("ann", jti="t-1"), bearer("ann", jti="t-2")
    old, without_iat, new = bearer("bob", iat=now - 100), bearer("bob", iat=None), bearer("bob", iat=now - 2)
    for gateway in gateways:
        assert [status(gateway, each) for each in (one, other, old, new) for _ in range(3)] == [200] * 12
    began_s = time.monotonic()
    revoke(redis, token_revoked("t-1"))
    token_s = until_refused(gateways, one, began_s)
    began_s = time.monotonic()
    revoke(redis, RevokedUser("bob", now - 50, now + 660))
    user_s = until_refused(gateways, old, began_s)
    assert max(token_s, user_s) < 1.0, "told, not asked for"
    record_property("seconds", (token_s, user_s))
    print(f"refused on both gateways after {token_s * 1000:.1f} and {user_s * 1000:.1f} ms")
    for gateway in gateways:
        assert refused(gateway, one) and refused(gateway, old)
        assert status(gateway, without_iat) == 401
        assert status(gateway, other) == status(gateway, new) == 200
        assert gateway.metric("auth_failures_total", reason="revoked") >= 2
        assert (gateway.metric("revocations", kind="token"), gateway.metric("revocations", kind="user")) == (1, 1)


def test_what_an_operator_revokes_is_refused_on_all_gateways_at_once(launch: Launch, redis: RedisServer) -> None:
    """By the token itself, and all of a user's; whoever logs in again gets in."""
    gateways = [listening(launch, redis) for _ in range(2)]
    now = int(time.time())
    stolen, other = bearer("ann", jti="t-1"), bearer("bob", iat=now - 100)
    for gateway in gateways:
        assert [status(gateway, each) for each in (stolen, other)] == [200, 200]
    ctl(gateways[0], "tokens", "revoke", "-", stdin=stolen[1].removeprefix("Bearer "))
    assert until_refused(gateways, stolen, time.monotonic()) < 1.0
    ctl(gateways[1], "tokens", "revoke", "--user", "bob", "--expires-in", "1h")
    assert until_refused(gateways, other, time.monotonic()) < 1.0
    time.sleep(1.1)  # iat is in whole seconds
    again = bearer("bob", iat=int(time.time()))
    assert [status(gateway, each) for gateway in gateways for each in (bearer("ann", jti="t-2"), again)] == [200] * 4
    listed = ctl(gateways[0], "tokens", "list", "--json").json()
    assert {one.get("jti") or one.get("user_id") for one in listed} == {"t-1", "bob"}


def test_a_revocation_whose_message_is_lost_counts_within_five_seconds(launch: Launch, redis: RedisServer) -> None:
    gateways = [listening(launch, redis) for _ in range(2)]
    header = bearer("ann", jti="t-1")
    assert [status(gateway, header) for gateway in gateways] == [200, 200]
    began_s = time.monotonic()
    revoke(redis, token_revoked("t-1"), told=False)
    until_refused(gateways, header, began_s)


def test_what_is_revoked_stays_so_while_redis_is_down_and_when_it_comes_back_empty(
    launch: Launch, redis: RedisServer
) -> None:
    """Across a reload too. Nobody waits for Redis; afterwards new revocations count again."""
    gateways = [listening(launch, redis) for _ in range(2)]
    revoked, good = bearer("ann", jti="t-1"), bearer("ann", jti="t-2")
    began_s = time.monotonic()
    revoke(redis, token_revoked("t-1"))
    until_refused(gateways, revoked, began_s)
    redis.kill()
    for gateway in gateways:
        gateway.until(lambda: not gateway.status()["shared_store"]["up"])
        gateway.until(lambda: gateway.metric("revocations_age_seconds") > 3, 8.0)
        gateway.reload()
        assert refused(gateway, revoked) and status(gateway, good) == 200
        gateway.until(lambda: gateway.page("/readyz").status == 200)
    redis.start()
    for gateway in gateways:
        gateway.until(lambda: gateway.metric("revocations_age_seconds") < 3 and gateway.status()["shared_store"]["up"])
        assert refused(gateway, revoked) and status(gateway, good) == 200
    began_s = time.monotonic()
    revoke(redis, token_revoked("t-2"))
    until_refused(gateways, good, began_s)


def test_a_frozen_redis_changes_nothing_for_tokens(launch: Launch, redis: RedisServer) -> None:
    gateway = listening(launch, redis)
    revoked, good = bearer("ann", jti="t-1"), bearer("ann", jti="t-2")
    began_s = time.monotonic()
    revoke(redis, token_revoked("t-1"))
    until_refused([gateway], revoked, began_s)
    redis.freeze()
    try:
        began_s = time.monotonic()
        while time.monotonic() - began_s < 3.0:
            assert (status(gateway, revoked), status(gateway, good)) == (401, 200)
        assert not gateway.status()["shared_store"]["listening"]
    finally:
        redis.thaw()
    revoke(redis, token_revoked("t-2"), told=False)
    until_refused([gateway], good, time.monotonic())


def test_a_gateway_that_starts_refuses_what_was_revoked_before(launch: Launch, redis: RedisServer) -> None:
    """From its first request on."""
    revoke(redis, token_revoked("t-1"), told=False)
    gateway = launch(on_redis(redis))
    assert refused(gateway, bearer("ann", jti="t-1")), gateway.output.read_text()


def test_a_restart_while_redis_is_down_refuses_what_the_last_run_knew(launch: Launch, redis: RedisServer) -> None:
    """Killed or ended, by the file in state_dir. Without it the tokens pass, and log and /status say so."""
    gateway = listening(launch, redis)
    revoked = bearer("ann", jti="t-1")
    began_s = time.monotonic()
    revoke(redis, token_revoked("t-1"))
    until_refused([gateway], revoked, began_s)
    kept = gateway.work / "revocations.jsonl"
    gateway.until(kept.exists, 8.0)
    redis.kill()
    gateway.kill()
    gateway.access_log.unlink()  # its metrics are gone, too
    gateway.start()
    assert refused(gateway, revoked) and status(gateway, bearer("ann", jti="t-2")) == 200
    assert known(gateway)["complete"] is False and known(gateway)["entries"] == {"token": 1, "user": 0}
    gateway.stop()
    kept.unlink()
    gateway.access_log.unlink()
    gateway.start()
    assert status(gateway, revoked) == 200, "nobody can know; docs/authentication.rst says so"
    gateway.until(lambda: "what was revoked is not known" in gateway.output.read_text())
    assert known(gateway)["complete"] is False
    gateway.until(lambda: gateway.page("/readyz").status == 200)
    redis.start()
    revoke(redis, token_revoked("t-1"), told=False)
    until_refused([gateway], revoked, time.monotonic())


def test_a_state_dir_that_is_gone_is_named_and_changes_nothing(launch: Launch, redis: RedisServer) -> None:
    gateway = launch(on_redis(redis), start=False)
    gateway.settings["gateway"]["state_dir"] = str(gateway.work / "state")
    (gateway.work / "state").mkdir()
    gateway.start()
    shutil.rmtree(gateway.work / "state")
    revoke(redis, token_revoked("t-1"), told=False)
    until_refused([gateway], bearer("ann", jti="t-1"), time.monotonic())
    gateway.until(lambda: "No such file" in (known(gateway)["file_error"] or ""), 8.0)


def written(names: list[str], until_s: float) -> bytes:
    """One command that puts these tokens on the list. Nobody is told."""
    return pack("ZADD", REVOKED_TOKENS, *(word for name in names for word in (repr(until_s), name)))


def told(names: list[str], until_s: float) -> bytes:
    """One command that tells the gateways of these tokens, in a message each."""
    said = [message(RevokedToken(name, until_s)) for name in names]
    script = "for i = 1, #ARGV do redis.call('PUBLISH', KEYS[1], ARGV[i]) end"
    return pack("EVAL", script, 1, REVOCATIONS_CHANNEL, *said)


@pytest.mark.alone
@pytest.mark.parametrize("how", [written, told])
def test_while_ten_thousand_revocations_arrive_at_once_requests_go_on(
    launch: Launch, redis: RedisServer, how: Callable[[list[str], float], bytes]
) -> None:
    """Both gateways know them all within 5 s, and neither holds its loop for long."""
    gateways = [listening(launch, redis) for _ in range(2)]
    good, last = bearer("ann", jti="good"), bearer("ann", jti="j9999")
    names = [f"j{number}" for number in range(10_000)]
    commands = [how(names[start : start + 1000], time.time() + 660) for start in range(0, 10_000, 1000)]
    lags_s: list[float] = []
    with Load(gateways[0].http, clients=2, headers=lambda: [good], pause_s=0.002) as load:
        load.wait_for(200)
        quiet, began_s = len(load.outcomes), time.monotonic()
        for command in commands:
            redis.packed_command(command)
        while any(gateway.metric("revocations", kind="token") < 10_000 for gateway in gateways):
            lags_s += [gateway.metric("event_loop_lag_seconds") for gateway in gateways]
            assert time.monotonic() - began_s < EFFECTIVE_S
        known_s = time.monotonic() - began_s
        flood = len(load.outcomes)
        load.wait_for(50)
    before_s, during_s = ([one.took_s for one in load.outcomes[span]] for span in (slice(quiet), slice(quiet, flood)))
    p99_ms = [round(1000 * percentile(took_s, 0.99), 1) for took_s in (before_s, during_s)]
    lag_ms = 1000 * max(lags_s, default=0.0)
    print(f"10,000 {how.__name__}: known after {known_s:.2f} s; p99 before, during {p99_ms} ms; lag {lag_ms:.1f} ms")
    assert load.failed() == []
    assert percentile(during_s, 0.95) < max(0.1, 5 * percentile(before_s, 0.95))
    until_refused(gateways, last, time.monotonic())
    assert status(gateways[0], good) == status(gateways[1], good) == 200
