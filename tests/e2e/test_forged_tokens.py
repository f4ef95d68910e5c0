"""The corpus of forged tokens against the daemon over https: what each costs, says, logs and counts as.

Every token is sent five times on a connection that lives on, to a gateway that counts users in a real Redis.
"""

import json
import socket
import time
import uuid
from collections import Counter
from statistics import median
from typing import Any, Iterator

import pytest

from tests.corpus import forge
from tests.e2e.client import Client, Response
from tests.e2e.gateway import Gateway, protected
from tests.e2e.origin import Origin, Seen
from tests.servers import RedisServer, redis_server

pytestmark = pytest.mark.alone

ROUNDS = 5
MAX_HEADER_BYTES = 65_536
_BOUNDARIES = ("now-29", "now-30", "now+29", "now+31")  # good or bad by one second


class Canary:
    """Listens where only a gateway that believes a token's URLs would call."""

    def __init__(self) -> None:
        self._sock = socket.create_server(("127.0.0.1", 0))
        self._sock.setblocking(False)
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"

    def called(self) -> bool:
        try:
            self._sock.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        self._sock.close()


class Sent:
    """One token of the corpus and what became of it. `reason`: of the log and the metric, None when it is good."""

    def __init__(self, case: dict[str, Any], token: bytes, status: int, reason: str | None) -> None:
        self.case, self.token, self.status, self.reason = case, token, status, reason
        self.replies: list[Response] = []
        self.seen: list[Seen] = []
        self.least_s = 1e9

    def __repr__(self) -> str:
        return f"<{self.case['name']}: {self.status} {self.reason}, got {self.replies}>"

    @property
    def user(self) -> str:
        """Of a good token."""
        return str(json.loads(forge.unb64(self.token.split(b".")[1]))["sub"])


def _expected(case: dict[str, Any], token: bytes) -> tuple[int, str | None]:
    """(status, reason) on the wire, where not every sequence of bytes is a header."""
    if len(token) > MAX_HEADER_BYTES:
        return 431, "headers_too_large"
    if any(octet < 0x20 or octet == 0x7F for octet in token):
        return 400, "bad_request"
    if case["expect"] == "ok":
        return 200, None
    if not token or b" " in token or b"," in token:
        return 401, "bad_authorization"
    return 401, case["expect"]


def _of_ed25519(case: dict[str, Any]) -> bool:
    """core/ verifies EdDSA, the configuration does not allow it yet."""
    header = case.get("header", {})
    return "ring" in case and (header.get("alg") == "EdDSA" or header.get("kid") == "d1")


class Run:
    """One gateway with one allow-list, and all tokens of the corpus that are for it, sent."""

    def __init__(self, gateway: Gateway, origin: Origin, canary: Canary, ring: str | None) -> None:
        self.gateway, self.origin = gateway, origin
        self.forge = forge.Forge(int(time.time()), canary.url)
        self.rss_bytes: list[int] = []
        self.sent: list[Sent] = []
        self._cases = [case for case in forge.CASES if case.get("ring") == ring and not _of_ed25519(case)]
        self._client: Client | None = None

    def send_all(self) -> None:
        for case in self._cases:
            if any(word in str(case) for word in _BOUNDARIES) and time.time() % 1 > 0.7:
                time.sleep(1.0 - time.time() % 1)
            self.forge.now_s = int(time.time())
            token = self.forge.token(case)
            self.sent.append(Sent(case, token, *_expected(case, token)))
            self._send(self.sent[-1])
        self.rss_bytes.append(self.gateway.rss_bytes())
        for _ in range(ROUNDS - 1):
            for sent in self.sent:
                if not any(word in str(sent.case) for word in _BOUNDARIES):
                    self._send(sent)
            self.rss_bytes.append(self.gateway.rss_bytes())
        assert self._client is not None
        self._client.close()

    def _send(self, sent: Sent) -> None:
        tag = uuid.uuid4().hex
        client = self._client or self.gateway.tls_client()
        began_s = time.perf_counter()
        client.send(
            b"GET /api/x HTTP/1.1\r\nHost: gw.test\r\nX-Tag: %b\r\nAuthorization: Bearer %b\r\n\r\n"
            % (tag.encode(), sent.token)
        )
        reply = client.response()
        sent.least_s = min(sent.least_s, time.perf_counter() - began_s)
        sent.replies.append(reply)
        sent.seen += self.origin.tagged(tag)
        if (reply.get("Connection") or "").lower() == "close":
            client.close()
            self._client = None
        else:
            self._client = client

    @property
    def refused(self) -> list[Sent]:
        return [sent for sent in self.sent if sent.status != 200]


@pytest.fixture(scope="module")
def canary() -> Iterator[Canary]:
    canary = Canary()
    yield canary
    canary.close()


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def _furnish(gateway: Gateway, redis: RedisServer, jwks: dict[str, Any], algorithms: list[str]) -> None:
    (gateway.work / "jwks.json").write_text(json.dumps(jwks))
    gateway.settings["auth"]["jwt"].update(issuer=forge.ISSUER, audience=forge.AUDIENCE, algorithms=algorithms)
    gateway.settings["limits"] = {"max_header_bytes": MAX_HEADER_BYTES}
    gateway.settings["redis"] = {"url": redis.url, "timeout_ms": 1000}
    tier = {"tier": "-".join(algorithms), "limit": 1_000_000, "window_seconds": 3600, "per": "user_id"}
    gateway.settings["rate_limits"] = {"store": "redis", "tiers": [tier]}
    gateway.settings["routes"] = [protected("api", "/api/*", rate_limit_tier=tier["tier"])]


@pytest.fixture(scope="module", params=[None, "wide"], ids=["RS256", "ES256 too"])
def run(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    origin: Origin,
    redis: RedisServer,
    canary: Canary,
) -> Iterator[Run]:
    gateway = Gateway(tmp_path_factory.mktemp("forged"), origin.port)
    run = Run(gateway, origin, canary, request.param)
    algorithms = ["RS256", "ES256"] if request.param else ["RS256"]
    _furnish(gateway, redis, run.forge.jwks(), algorithms)
    try:
        gateway.start()
        gateway.until(lambda: gateway.metric("redis_up") == 1)
        run.send_all()
        yield run
        gateway.assert_quiet()
        gateway.assert_accounts()
        gateway.stop()
    finally:
        gateway.kill()


def test_each_token_gets_its_answer_and_no_forged_one_reaches_the_backend(run: Run) -> None:
    """Good ones pass with their own user, so that refusing everything is no way to pass."""
    for sent in run.sent:
        assert {reply.status for reply in sent.replies} == {sent.status}, sent
        if sent.status != 200:
            assert sent.seen == [], sent
            continue
        assert len(sent.seen) == len(sent.replies)
        for seen in sent.seen:
            assert seen.all("X-User-ID") == [sent.user] and "authorization" not in seen.names, sent
            if "scopes" in sent.case:
                assert seen.all("X-User-Scopes") == [sent.case["scopes"]], sent
    assert len(run.refused) >= 20 and any(sent.status == 200 for sent in run.sent)


def test_every_401_looks_the_same(run: Run) -> None:
    """One body, one set of headers: which check failed cannot be told, and the token is not repeated."""
    shapes = set()
    for reply in (reply for sent in run.refused for reply in sent.replies if reply.status == 401):
        said = reply.json()
        assert said.pop("request_id") == reply.get("X-Request-ID")
        names = tuple(name for name, _ in reply.headers)
        shapes.add((json.dumps(said), names, reply.get("WWW-Authenticate"), reply.get("Cache-Control")))
    ((said, _, challenge, caching),) = shapes
    assert json.loads(said) == {"error": "invalid_token", "message": "The access token is not valid."}
    assert challenge == 'Bearer realm="apigw", error="invalid_token"' and caching == "no-store"


def test_each_is_logged_once_with_its_reason_and_without_the_token(run: Run) -> None:
    """Reasons exactly, in the log and in the metric; no user is named by what was not verified."""
    replies = [(sent, reply) for sent in run.sent for reply in sent.replies]
    run.gateway.until(lambda: len(run.gateway.entries()) >= len(replies))
    entries = run.gateway.entries()
    by_id = {entry["request_id"]: entry for entry in entries}
    assert len(by_id) == len(entries)
    for sent, reply in replies:
        entry = by_id[reply.get("X-Request-ID")]
        assert entry["status"] == sent.status, sent
        if sent.status == 401:
            assert entry["error_type"] == "invalid_token" and entry["user_id"] is None, sent
            assert entry["error_message"].startswith(f"{sent.reason}: "), (sent, entry)
        elif sent.status != 200:
            assert entry["error_type"] == sent.reason, (sent, entry)
    wanted = Counter(sent.reason for sent in run.refused for _ in sent.replies if sent.status == 401)
    assert {reason: run.gateway.metric("auth_failures_total", reason=str(reason)) for reason in wanted} == wanted
    assert run.gateway.metric("auth_failures_total") == sum(wanted.values())
    logged = run.gateway.access_log.read_bytes() + run.gateway.output.read_bytes()
    for sent in run.sent:
        signature = sent.token.rpartition(b".")[2]
        assert len(signature) < 40 or signature[:40] not in logged, sent
    assert max(map(len, run.gateway.access_log.read_bytes().splitlines())) < 8192


def test_none_counts_as_another_user(run: Run, redis: RedisServer) -> None:
    """The counters in Redis are those of the good tokens' own users, and nobody's is higher than what he asked."""
    tier = "-".join(run.gateway.settings["auth"]["jwt"]["algorithms"])
    counted: Counter[str] = Counter()
    for key in redis.command("KEYS", f"rate:{{{tier}:*"):
        counted[key.decode().rpartition(":")[0]] += int(redis.command("GET", key))
    asked = Counter(sent.user for sent in run.sent for _ in sent.replies if sent.status == 200)
    assert sorted(counted.values()) == sorted(asked.values())
    assert counted[f"rate:{{{tier}:user:alice}}"] == asked["alice"]


def test_no_url_of_a_token_is_ever_called(run: Run, canary: Canary) -> None:
    """jku, x5u, kid, iss: all of them named this listener."""
    assert not canary.called()


def test_memory_and_time_are_bounded(run: Run) -> None:
    """Caches and the allocator have their fill after three rounds; no token is a way to hold the loop."""
    assert run.rss_bytes[-1] - run.rss_bytes[0] < 16 << 20, run.rss_bytes
    assert run.rss_bytes[-1] - run.rss_bytes[2] < 4 << 20, run.rss_bytes
    assert median(sent.least_s for sent in run.sent) < 0.005
    slowest = max((sent for sent in run.sent if sent.status != 431), key=lambda sent: sent.least_s)
    assert slowest.least_s < 0.015, (slowest.case["name"], slowest.least_s)


def test_a_token_beyond_the_header_limit_is_431_by_default(gateway: Gateway) -> None:
    """It never comes to the verification."""
    with gateway.tls_client() as client:
        reply = client.request("GET", "/api/x", [("Authorization", "Bearer " + "a" * 9000)])
    assert (reply.status, reply.json()["error"]) == (431, "headers_too_large")
