"""The key source against a real HTTP server of the loopback; time is moved by the test."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from apigw.adapters.jwks import _MAX_WAITING, JWKS
from apigw.config.model import JWTSection
from apigw.core.tokens import UnknownKey, verify
from apigw.stages.authentication import token_policy
from tests.corpus import forge
from tests.servers import until

NOW_S = 1_800_000_000
FORGE = forge.Forge(NOW_S)
K1, K2 = FORGE.jwks()["keys"][:2]
BY_K1 = FORGE.token({})
BY_K2 = FORGE.token({"header": {"kid": "k2"}, "sign": {"key": "k2"}})


class Identity(Resource):
    """The identity service: answers with `document`, or as `behave` says. Counts requests by path."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.document: Any = {"keys": [K1]}
        self.behave: Callable[[Any], Any] | None = None
        self.paths: list[bytes] = []
        self.held: list[Any] = []
        self.lost = 0
        self.port = reactor.listenTCP(0, Site(self), interface="127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port.getHost().port}/jwks.json"

    def render_GET(self, request: Any) -> Any:
        self.paths.append(request.path)
        if self.behave is not None:
            return self.behave(request)
        return self.document if isinstance(self.document, bytes) else json.dumps(self.document).encode()

    def hold(self, request: Any) -> Any:
        """Answer later, or never."""
        self.held.append(request)
        request.notifyFinish().addErrback(self._lost)
        return NOT_DONE_YET

    def _lost(self, _: object) -> None:
        self.lost += 1

    def release(self) -> None:
        for request in self.held:
            request.write(json.dumps(self.document).encode())
            request.finish()
        self.held.clear()

    @property
    def fetches(self) -> int:
        return len(self.paths)


@pytest.fixture
def identity() -> Iterator[Identity]:
    service = Identity()
    yield service
    pytest_twisted.blockon(service.port.stopListening())


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Started:
    """Makes key sources for a test and stops them after it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.made: list[JWKS] = []

    def make(self, **section: Any) -> JWKS:
        whole = JWTSection(issuer=forge.ISSUER, audience=forge.AUDIENCE, **section)
        keys = JWKS(reactor, whole, lambda: NOW_S, clock=self.clock, draw=lambda: 0.0)
        self.made.append(keys)
        return keys

    async def start(self, **section: Any) -> JWKS:
        keys = self.make(**section)
        keys.startService()
        if keys.in_flight:
            await keys.poll_now()
        return keys


@pytest.fixture
def source(clock: Clock) -> Iterator[Started]:
    started = Started(clock)
    yield started
    for keys in started.made:
        if keys.running:
            keys.stopService()
    assert not clock.getDelayedCalls()


async def advance(keys: JWKS, clock: Clock, seconds: float) -> None:
    """Move the clock, half a second at a time, letting each fetch that falls due end (or hang)."""
    for _ in range(int(seconds * 2)):
        clock.advance(0.5)
        if keys.in_flight:
            await keys.poll_now()


async def admitted(keys: JWKS, token: bytes) -> bool:
    """What the stage does: verify, and once more after a refresh when the kid is unknown."""
    policy = token_policy(keys._section)
    ring = keys.current()
    try:
        verify(token, ring, policy, NOW_S)
    except UnknownKey:
        waiting = keys.refreshed()
        if waiting is None:
            return False
        ring = await waiting
        try:
            verify(token, ring, policy, NOW_S)
        except UnknownKey:
            return False
    return True


@pytest_twisted.ensureDeferred
async def test_the_first_fetch_is_made_at_the_start(identity: Identity, source: Started) -> None:
    keys = await source.start(jwks_url=identity.url)
    assert keys.current().kids == {"k1"}
    assert (identity.fetches, keys.refresh_failures, keys.last_success_epoch_s) == (1, 0, NOW_S)
    assert await admitted(keys, BY_K1)


@pytest_twisted.ensureDeferred
async def test_keys_are_refreshed_every_half_hour(identity: Identity, source: Started, clock: Clock) -> None:
    keys = await source.start(jwks_url=identity.url)
    await advance(keys, clock, 1799)
    assert identity.fetches == 1
    await advance(keys, clock, 1801)
    assert identity.fetches == 3


@pytest_twisted.ensureDeferred
async def test_a_rotation_refuses_no_good_token(identity: Identity, source: Started, clock: Clock) -> None:
    """A hundred requests with the new key at once: one fetch, all of them good; the old key until it is withdrawn."""
    keys = await source.start(jwks_url=identity.url)
    identity.document = {"keys": [K1, K2]}
    tokens = [BY_K1, BY_K2] * 50
    outcomes = [Deferred.fromCoroutine(admitted(keys, token)) for token in tokens]
    await until(lambda: not keys.in_flight, reactor)
    clock.advance(0)
    assert [await outcome for outcome in outcomes] == [True] * 100
    assert identity.fetches == 2
    identity.document = {"keys": [K2]}
    await advance(keys, clock, 1800)
    assert await admitted(keys, BY_K2)
    assert not await admitted(keys, BY_K1)


@pytest_twisted.ensureDeferred
async def test_a_flood_of_unknown_kids_causes_one_fetch_in_thirty_seconds(
    identity: Identity, source: Started, clock: Clock
) -> None:
    keys = await source.start(jwks_url=identity.url)
    for second in range(60):
        for number in range(20):
            assert not await admitted(keys, FORGE.token({"header": {"kid": f"x{second}.{number}"}}))
        await advance(keys, clock, 1)
    assert identity.fetches == 1 + 2


@pytest.mark.parametrize("answer", [{"keys": []}, b"<html>", 503])
@pytest_twisted.ensureDeferred
async def test_failed_and_empty_answers_count_for_the_cool_down_too(
    identity: Identity, source: Started, clock: Clock, answer: Any
) -> None:
    """Unknown kids and the retry after a failure together: two fetches in any thirty seconds; old keys stay."""
    keys = await source.start(jwks_url=identity.url)
    identity.document = answer
    identity.behave = fail if answer == 503 else None
    times: list[float] = []
    for _ in range(240):
        before = identity.fetches
        assert not await admitted(keys, BY_K2)
        await advance(keys, clock, 0.5)
        times += [clock.seconds()] * (identity.fetches - before)
    assert all(sum(start <= time < start + 30 for time in times) <= 2 for start in times)
    assert await admitted(keys, BY_K1)
    assert keys.refresh_failures == len(times) > 0


def fail(request: Any) -> bytes:
    request.setResponseCode(503)
    return b'{"keys": []}'


@pytest_twisted.ensureDeferred
async def test_all_requests_wait_for_the_fetch_in_flight(identity: Identity, source: Started, clock: Clock) -> None:
    keys = await source.start(jwks_url=identity.url)
    identity.behave = identity.hold
    waiting = [keys.refreshed() for _ in range(_MAX_WAITING)]
    assert all(one is not None for one in waiting)
    assert keys.refreshed() is None, "bounded"
    waiting[0].addErrback(lambda _: None)
    waiting[0].cancel()
    assert keys.refreshed() is not None, "who gives up makes room"
    await until(lambda: identity.held, reactor)
    identity.document = {"keys": [K1, K2]}
    identity.release()
    await until(lambda: not keys.in_flight, reactor)
    clock.pump([0.0] * (_MAX_WAITING // 50))
    for one in waiting[1:]:
        assert (await one).kids == {"k1", "k2"}
    assert identity.fetches == 2 and keys.waiting == 0


@pytest_twisted.ensureDeferred
async def test_nobody_waits_for_a_hanging_service_longer_than_five_seconds(
    identity: Identity, source: Started, clock: Clock
) -> None:
    keys = await source.start(jwks_url=identity.url)
    identity.behave = identity.hold
    waiting = keys.refreshed()
    await until(lambda: identity.held, reactor)
    clock.advance(4.9)
    assert not waiting.called
    clock.advance(0.2)
    assert (await waiting).kids == {"k1"}, "the old keys stay"
    await until(lambda: identity.lost == 1, reactor)  # and the connection is closed


@pytest_twisted.ensureDeferred
async def test_a_service_that_stops_in_the_middle_of_its_answer_is_given_up(
    identity: Identity, source: Started, clock: Clock
) -> None:
    def half(request: Any) -> Any:
        request.setHeader(b"content-length", b"1000")
        request.write(b'{"keys": [')
        return identity.hold(request)

    identity.behave = half
    keys = source.make(jwks_url=identity.url)
    keys.startService()
    ended = keys.poll_now()
    await until(lambda: identity.held, reactor)
    clock.advance(5.1)
    assert not await ended
    await until(lambda: identity.lost == 1, reactor)
    assert keys.current() is None and keys.refresh_failures == 1


@pytest_twisted.ensureDeferred
async def test_a_service_down_at_the_start_is_asked_with_back_off_until_it_answers(
    identity: Identity, source: Started, clock: Clock
) -> None:
    identity.behave = fail
    keys = await source.start(jwks_url=identity.url)
    times = [0.0]
    for _ in range(260):
        before = identity.fetches
        await advance(keys, clock, 0.5)
        times += [clock.seconds()] * (identity.fetches - before)
        assert keys.current() is None
    assert [later - earlier for earlier, later in zip(times, times[1:])] == [1, 2, 4, 8, 16, 30, 30, 30]
    identity.behave = None
    await advance(keys, clock, 30)
    assert keys.current().kids == {"k1"}
    assert keys.consecutive_failures == 0


@pytest_twisted.ensureDeferred
async def test_nothing_listens_at_the_start_and_then_the_service_comes(source: Started, clock: Clock) -> None:
    closed = Identity()
    port = closed.port.getHost().port
    await closed.port.stopListening()
    keys = await source.start(jwks_url=closed.url)
    assert keys.current() is None and keys.refresh_failures == 1
    listening = reactor.listenTCP(port, Site(closed), interface="127.0.0.1")
    await advance(keys, clock, 1)
    assert keys.current().kids == {"k1"}
    await listening.stopListening()


@pytest_twisted.ensureDeferred
async def test_keys_serve_until_their_ttl_and_are_back_soon_after_the_service(
    identity: Identity, source: Started, clock: Clock
) -> None:
    keys = await source.start(jwks_url=identity.url)
    identity.behave = fail
    await advance(keys, clock, 3599)
    assert await admitted(keys, BY_K1)
    await advance(keys, clock, 1)
    assert keys.current() is None, "3600 s after the last success, however many attempts since"
    await advance(keys, clock, 600)
    identity.behave = None
    await advance(keys, clock, 35)
    assert keys.current().kids == {"k1"}


@pytest_twisted.ensureDeferred
async def test_an_unchanged_document_renews_the_ttl_and_keeps_the_keyring(
    identity: Identity, source: Started, clock: Clock
) -> None:
    keys = await source.start(jwks_url=identity.url)
    ring = keys.current()
    await advance(keys, clock, 5000)
    assert keys.current() is ring


@pytest_twisted.ensureDeferred
async def test_a_ttl_shorter_than_the_interval_leaves_no_gap(identity: Identity, source: Started, clock: Clock) -> None:
    keys = await source.start(jwks_url=identity.url, jwks_cache_ttl_s=60.0)
    for _ in range(200):
        await advance(keys, clock, 1)
        assert keys.current() is not None


@pytest_twisted.ensureDeferred
async def test_a_redirect_is_not_followed(identity: Identity, source: Started) -> None:
    def redirect(request: Any) -> bytes:
        if request.path == b"/jwks.json":
            request.setResponseCode(302)
            request.setHeader(b"location", b"/elsewhere.json")
        return json.dumps({"keys": [K1]}).encode()

    identity.behave = redirect
    keys = await source.start(jwks_url=identity.url)
    assert keys.current() is None and identity.paths == [b"/jwks.json"]


BAD_DOCUMENTS: dict[str, Any] = {
    "an HTML page": b"<!DOCTYPE html><title>Sign in</title>",
    "nothing": b"",
    "JSON of another kind": {"issuer": "https://id.corpus.test"},
    "a list": [K1],
    "no keys": {"keys": []},
    "only symmetric keys": {"keys": [{"kty": "oct", "kid": "k1", "k": "c2VjcmV0"}]},
    "cut": json.dumps({"keys": [K1]}).encode()[:-5],
    "5000 keys": {"keys": [{"kid": str(n)} for n in range(5000)]},
    "5000 real keys": {"keys": [dict(K1, kid=str(n)) for n in range(5000)]},
    "endless": b" " * 300_000,
    "deep": b"[" * 100_000,
    "UTF-16": json.dumps({"keys": [K1]}).encode("utf-16"),
}


@pytest.mark.parametrize("name", BAD_DOCUMENTS)
@pytest_twisted.ensureDeferred
async def test_a_bad_document_is_a_failure_and_the_old_keys_stay(
    identity: Identity, source: Started, clock: Clock, name: str
) -> None:
    keys = await source.start(jwks_url=identity.url)
    identity.document = BAD_DOCUMENTS[name]
    await advance(keys, clock, 1800)
    assert (identity.fetches, keys.refresh_failures) == (2, 1)
    assert await admitted(keys, BY_K1)


@pytest_twisted.ensureDeferred
async def test_one_bad_key_does_not_cost_the_others(identity: Identity, source: Started) -> None:
    identity.document = {"keys": [{"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"}, 7, K1]}
    keys = await source.start(jwks_url=identity.url)
    assert keys.current().kids == {"k1"} and keys.refresh_failures == 0


@pytest_twisted.ensureDeferred
async def test_the_largest_document_that_is_taken_does_not_stall_the_loop(identity: Identity, source: Started) -> None:
    """A hundred keys of 8192 bits, the most there may be: 22 ms, measured by the CPU's clock."""
    moduli = [b"\xff" + os.urandom(1022) + b"\x01" for _ in range(100)]
    jwks = [dict(K1, kid=str(n), n=forge.b64(modulus).decode()) for n, modulus in enumerate(moduli)]
    document = json.dumps({"keys": jwks}).encode()
    keys = source.make(jwks_url=identity.url)
    spent_s = min(_cpu_s(lambda: keys._take(document + b" " * n)) for n in range(3))
    assert len(keys.current().kids) == 100
    assert spent_s < 0.05


def _cpu_s(call: Callable[[], None]) -> float:
    began_s = time.thread_time()
    call()
    return time.thread_time() - began_s


@pytest_twisted.ensureDeferred
async def test_a_key_file_is_read_at_the_start_and_by_the_same_poller(
    tmp_path: Path, source: Started, clock: Clock
) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [K1]}))
    keys = await source.start(jwks_file=file)
    assert keys.current().kids == {"k1"}
    file.write_text(json.dumps({"keys": [K1, K2]}))
    assert await admitted(keys, BY_K2), "an unknown kid has the file read again"
    file.write_text(json.dumps({"keys": [K2]}))
    assert await keys.poll_now(), "as a reload does"
    assert keys.current().kids == {"k2"}
    file.unlink()
    await advance(keys, clock, 1800)
    assert keys.current().kids == {"k2"} and keys.refresh_failures == 1


@pytest.mark.parametrize("content", [None, b"{", b" " * 300_000])
@pytest_twisted.ensureDeferred
async def test_a_key_file_that_is_missing_or_bad_is_a_failure(
    tmp_path: Path, source: Started, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "jwks.json").write_bytes(content)
    keys = await source.start(jwks_file=tmp_path / "jwks.json")
    assert keys.current() is None and keys.refresh_failures == 1


@pytest_twisted.ensureDeferred
async def test_stopping_ends_the_fetch_and_frees_who_waits(identity: Identity, source: Started) -> None:
    keys = await source.start(jwks_url=identity.url)
    identity.behave = identity.hold
    waiting = keys.refreshed()
    await until(lambda: identity.held, reactor)
    keys.stopService()
    assert (await waiting).kids == {"k1"}
    await until(lambda: identity.lost == 1, reactor)
