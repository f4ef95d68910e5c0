"""Abuses of limits and identity headers against the daemon and a real Redis: none costs another user anything.

All counters of Redis are read before and after each abuse: what it may move is its own, by exactly what it asked.
"""

import re
import time
import uuid
from collections import Counter
from typing import Any, Iterator

import pytest

from tests.corpus.abuses import ABUSES, IDENTIFIERS, VICTIM_IP, Abuse, request
from tests.e2e.client import Client, Response
from tests.e2e.gateway import Gateway, protected, route
from tests.e2e.identity import bearer, token
from tests.e2e.origin import Origin, Seen
from tests.servers import RedisServer, redis_server

WINDOW_S = 86_400
# Below 100 an address has no allowance (core/allowance.py), so that each wrong credential is seen in Redis at once.
LIMITS = {"user": 10_000, "vip": 10_000, "tiny": 3, "grace": 10_000, "ip": 10_000, "guess": 99}
PER = {"user": "user_id", "vip": "user_id", "tiny": "user_id", "grace": "user_id"}
_ALL = """local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do found[#found + 1] = key found[#found + 1] = redis.call('GET', key) end
return found"""
_KEY = re.compile(r"rate:\{[a-z]+:(user|apikey|ip|fingerprint|global):[A-Za-z0-9._@+-]{1,64}\}:[0-9]+")
_PROBE = "rate:{probe}"
_HOSTILE = re.compile(rb"<(mallory|another|tag|tiny [^>]+)>")


class World:
    """Two gateways on one Redis: `direct` to clients, `proxied` behind the loopback as a trusted proxy."""

    def __init__(self, origin: Origin, redis: RedisServer, direct: Gateway, proxied: Gateway) -> None:
        self.origin, self.redis, self.direct, self.proxied = origin, redis, direct, proxied
        self.answered: list[tuple[Gateway, Abuse, Response]] = []
        self._clients: dict[Gateway, Client] = {}
        self._tokens = {"mallory": token("mallory", "read"), "another": token("mallory", "", jti="2", iat=1)}

    def keys(self) -> dict[str, int]:
        """The counters in Redis: key -> count. Nothing else is there but their spreads, which have the same names."""
        flat = self.redis.command("EVAL", _ALL, 0)
        found = {key.decode(): value for key, value in zip(flat[::2], flat[1::2])}
        spreads = {key.removeprefix("spread") for key in found if key.startswith("spread")}
        counters = {key: int(value or 0) for key, value in found.items() if not key.startswith("spread")}
        assert spreads == {key.removeprefix("rate") for key in counters}
        return {key: count for key, count in counters.items() if key != _PROBE}

    def counters(self) -> Counter[str]:
        """The counters without their windows: `user:user:mallory` -> count."""
        counted: Counter[str] = Counter()
        for key, count in self.keys().items():
            counted[key.removeprefix("rate:{").rpartition("}")[0]] += count
        return counted

    def send(self, gateway: Gateway, data: bytes, answers: int) -> tuple[list[Response], list[Seen]]:
        """The answers to requests that share a tag, and what reached the backend of them. Connections live on."""
        tag = uuid.uuid4().hex
        words = {**self._tokens, "tag": tag}
        data = _HOSTILE.sub(lambda match: self._word(match[1].decode(), words), data)
        client = self._clients.pop(gateway, None) or gateway.client()
        client.send(data)
        method = data.partition(b" ")[0].decode("latin-1")
        replies = [client.response(method) for _ in range(answers)]
        assert client.buffered == b"", "an answer too many"
        if (replies[-1].get("Connection") or "").lower() == "close":
            client.close()
        else:
            self._clients[gateway] = client
        return replies, self.origin.tagged(tag)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def _word(self, name: str, words: dict[str, str]) -> bytes:
        if name.startswith("tiny "):
            _, user, *number = name.split(" ")
            return token(user, "read", jti="".join(number)).encode()
        return words[name].encode()


def _furnish(gateway: Gateway, redis: RedisServer) -> None:
    gateway.settings["redis"] = {"url": redis.url, "timeout_ms": 1000}
    gateway.settings["rate_limits"] = {
        "store": "redis",
        "unmatched_tier": "guess",
        "failed_auth_tier": "guess",
        "tiers": [
            {"tier": name, "limit": limit, "window_seconds": WINDOW_S, "per": PER.get(name, "client_ip")}
            for name, limit in LIMITS.items()
        ],
    }
    private = [protected(name, f"/{name}/*", rate_limit_tier=name) for name in ("user", "vip", "tiny")]
    grace = protected("grace", "/grace/*", rate_limit_tier="grace", auth_grace_period=True)
    gateway.settings["routes"] = [*private, grace, route("ip", "/ip/*", rate_limit_tier="ip")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, origin: Origin) -> Iterator[World]:
    gateways = [Gateway(tmp_path_factory.mktemp("abused"), origin.port) for _ in range(2)]
    with redis_server() as redis:
        for gateway in gateways:
            _furnish(gateway, redis)
        gateways[1].settings["gateway"]["trusted_proxies"] = ["127.0.0.0/8"]
        world = World(origin, redis, *gateways)
        try:
            for gateway in gateways:
                gateway.start()
                gateway.until(lambda: gateway.metric("redis_up") == 1)
            yield world
            world.close()
            for gateway in gateways:
                gateway.assert_quiet()
                gateway.assert_accounts()
                gateway.stop()
        finally:
            for gateway in gateways:
                gateway.kill()


@pytest.fixture(scope="module")
def victim(world: World) -> Iterator[dict[str, int]]:
    """The victim's remaining counts before all abuses: by user on the one gateway, by address on the other."""
    yield _remaining(world)


def _remaining(world: World) -> dict[str, int]:
    user = world.direct.ask("GET", "/user/x", bearer("victim"))
    address = world.proxied.ask("GET", "/ip/x", ("X-Forwarded-For", VICTIM_IP))
    found = {"user": user, "address": address}
    return {name: int(reply.get("X-RateLimit-Remaining") or -1) for name, reply in found.items()}


def _risen(before: Counter[str], after: Counter[str]) -> dict[str, int]:
    assert not before - after, "a counter was set back"
    return dict(after - before)


def _assert_clean(seen: Seen, user: str | None, scopes: str | None) -> None:
    """The backend sees who was verified, once, and nothing of what was claimed."""
    assert seen.all("X-User-ID") == ([] if user is None else [user]), seen.headers
    assert user is None or scopes is None or seen.all("X-User-Scopes") == [scopes]
    aliases = {name.replace("_", "-").replace(".", "-") for name in seen.names - {"x-user-id", "x-user-scopes"}}
    assert aliases.isdisjoint({"x-user-id", "x-user-scopes", "x-partner-id", "authorization", "x-api-key"}), (
        seen.headers
    )


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    """At least 40 abuses beside the identifiers."""
    names = [abuse.name for abuse in ABUSES]
    assert len(names) == len(set(names)) >= 40
    assert len({sub for sub, _ in IDENTIFIERS}) == len(IDENTIFIERS) >= 40
    kept = [key for _, key in IDENTIFIERS if key is not None]
    assert len(kept) == len(set(kept)), "no two of them share a counter"


@pytest.mark.parametrize("abuse", ABUSES, ids=lambda abuse: abuse.name)
def test_an_abuse_gains_nothing_and_costs_nobody_else(world: World, victim: dict[str, int], abuse: Abuse) -> None:
    """Status, counter and backend as the case says; every other counter in Redis stands as it stood."""
    gateway = world.proxied if abuse.trusted else world.direct
    before = world.counters()
    replies, seen = world.send(gateway, abuse.send, len(abuse.statuses))
    assert tuple(reply.status for reply in replies) == abuse.statuses, replies
    assert _risen(before, world.counters()) == abuse.counts
    assert len(seen) == abuse.statuses.count(200), "what was refused was forwarded, or the other way round"
    for one in seen:
        nobody = one.target.startswith("/ip") or "grace:ip:127.0.0.1" in abuse.counts
        user = None if nobody else (re.search(rb"<tiny (\w+)", abuse.send) or [b"", b"mallory"])[1].decode()
        _assert_clean(one, user, None if b"<another>" in abuse.send else "read")
        assert "victim" not in str(one.headers).lower(), one.headers
        for name, values in abuse.sees.items():
            assert one.all(name) == values
    world.answered += [(gateway, abuse, reply) for reply in replies]


@pytest.mark.parametrize(("sub", "key"), IDENTIFIERS, ids=lambda value: ascii(value)[:40])
def test_a_user_id_stays_in_its_key(world: World, victim: dict[str, int], sub: str, key: str | None) -> None:
    """One counter of its own, whatever it is made of; what no header can carry is refused."""
    before = world.counters()
    sent = request(b"GET /user/x", b"Authorization: Bearer " + token(sub, "read").encode())
    (reply,), seen = world.send(world.direct, sent, 1)
    risen = _risen(before, world.counters())
    if key is None:
        assert reply.status == 401 and seen == [] and risen == {"guess:ip:127.0.0.1": 1}, reply
    else:
        assert reply.status == 200 and risen == {f"user:user:{key}": 1}, (reply, risen)
        assert reply.get("X-RateLimit-Remaining") == str(LIMITS["user"] - 1)
        _assert_clean(seen[0], sub, "read")


@pytest.mark.parametrize("length", [7_000, 10_240, 60_000])
def test_a_user_id_of_many_kilobytes_is_no_header(world: World, victim: dict[str, int], length: int) -> None:
    """Nothing is counted, nothing reaches the backend."""
    before = world.counters()
    sent = request(b"GET /user/x", b"Authorization: Bearer " + token("v" * length).encode())
    (reply,), seen = world.send(world.direct, sent, 1)
    assert (reply.status, seen, _risen(before, world.counters())) == (431, [], {})


def test_many_connections_are_one_user(world: World, victim: dict[str, int]) -> None:
    """A connection of its own for each request changes nothing; over TLS neither."""
    before = world.counters()
    mine = bearer("mallory")
    for _ in range(4):
        assert world.direct.ask("GET", "/user/x", mine).status == 200
        with world.direct.tls_client() as client:
            assert client.request("GET", "/user/x", [mine]).status == 200
    assert _risen(before, world.counters()) == {"user:user:mallory": 8}


def test_an_exhausted_limit_of_one_is_nobody_elses(world: World, victim: dict[str, int]) -> None:
    """While one hammers on past his limit, the users whose ids begin like his have all of theirs."""
    with world.direct.client() as client:
        statuses = [client.request("GET", "/tiny/x", [bearer("hammer")]).status for _ in range(30)]
    assert statuses == [200] * 3 + [429] * 27
    for other in ("Hammer", "hammer.", "hamme", "hammer-2", "hammer:", "{hammer}"):
        reply = world.direct.ask("GET", "/tiny/x", bearer(other))
        assert (reply.status, reply.get("X-RateLimit-Remaining")) == (200, "2"), other


def test_each_is_logged_once_and_names_nobody_else(world: World, victim: dict[str, int]) -> None:
    """The refused ones too; the user of an entry is who was verified."""
    for gateway in (world.direct, world.proxied):
        answered = {reply.get("X-Request-ID"): (abuse, reply) for of, abuse, reply in world.answered if of is gateway}
        gateway.until(lambda: answered.keys() <= {entry["request_id"] for entry in gateway.entries()})
        entries = [entry for entry in gateway.entries() if entry["request_id"] in answered]
        assert len(entries) == len(answered)
        for entry in entries:
            abuse, reply = answered[entry["request_id"]]
            assert entry["status"] == reply.status, abuse
            assert entry["user_id"] in (None, "mallory", *(f"t{n}" for n in range(1, 8))), abuse


def test_after_all_of_it_the_victim_has_what_it_had(world: World, victim: dict[str, int]) -> None:
    """But for the requests of its own that asked."""
    assert _remaining(world) == {name: left - 1 for name, left in victim.items()}


def test_every_key_in_redis_is_of_the_contracts_form(world: World, victim: dict[str, int]) -> None:
    """`rate:{tier:kind:identifier}:window`, of this window, gone after twice its length: nothing broke out."""
    keys: dict[str, Any] = world.keys()
    strange = [key for key in keys if _KEY.fullmatch(key) is None]
    assert strange == [] and len(keys) >= 40
    start_s = int(time.time()) // WINDOW_S * WINDOW_S
    assert all(int(key.rpartition(":")[2]) in (start_s, start_s - WINDOW_S) for key in keys)
    assert all(0 < world.redis.command("TTL", key) <= 2 * WINDOW_S for key in list(keys)[:50])
