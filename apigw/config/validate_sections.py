"""Sections of the main file and backends: values that contradict each other, or lack what they need."""

import json
from ssl import PROTOCOL_TLS_CLIENT, SSLContext, SSLError

from cryptography.x509 import load_pem_x509_certificates

from apigw.config.addresses import is_loopback, split_url
from apigw.config.model import SELF, Backend, CircuitBreaker, JWTSection, RedisSection
from apigw.config.parse import Draft
from apigw.config.problems import listed, shown
from apigw.config.reading import Unreadable, read_bounded
from apigw.config.redis_url import SENTINEL, RedisURL

MAX_JWKS_BYTES = 1_048_576
MAX_PEM_BYTES = 1_048_576
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384")
_LATER = ("ES512", "EdDSA", "ES256K", "Ed25519", "Ed448")  # asymmetric, so sound, but not verified by this version


def check_sections(draft: Draft, now_s: float) -> None:
    """auth, redis, rate_limits, limits, load_shedding, circuit_breaker, access_log."""
    if draft.config.jwt is not None:
        _check_jwt(draft, draft.config.jwt)
    if draft.config.redis is not None and draft.sound(draft.config.redis, "url"):
        _check_redis(draft, draft.config.redis)
    _check_rate_limits(draft)
    _check_limits(draft)
    _check_shedding(draft)
    _check_breaker(draft, draft.config.circuit_breaker)
    _check_sinks(draft)


def _check_jwt(draft: Draft, jwt: JWTSection) -> None:
    if draft.sound(jwt, "algorithms"):
        for name in jwt.algorithms:
            _check_algorithm(draft, jwt, name)
    if draft.sound(jwt, "jwks_url", "jwks_file") and (jwt.jwks_url is None) == (jwt.jwks_file is None):
        message = (
            "auth.jwt needs jwks_url or jwks_file, to have keys"
            if jwt.jwks_url is None
            else ("auth.jwt has both jwks_url and jwks_file; write one, so that it is clear whose keys count")
        )
        draft.refuse(jwt, "jwks_file", message)
    if jwt.jwks_url is not None and draft.sound(jwt, "jwks_url"):
        parts = split_url(jwt.jwks_url)
        if parts and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            message = "auth.jwt.jwks_url must be https: whoever can answer in its place signs valid tokens"
            draft.refuse(jwt, "jwks_url", f"{message} (http is for loopback only)")
    if jwt.jwks_file is not None and draft.sound(jwt, "jwks_file"):
        _check_jwks_file(draft, jwt)
    if (
        draft.sound(jwt, "jwks_cache_ttl_seconds", "jwks_refresh_seconds")
        and jwt.jwks_refresh_s >= jwt.jwks_cache_ttl_s
    ):
        message = (
            "auth.jwt.jwks_refresh_seconds must be below jwks_cache_ttl_seconds, or keys end before they are renewed"
        )
        draft.refuse(jwt, "jwks_refresh_seconds", message)


def _check_algorithm(draft: Draft, jwt: JWTSection, name: str) -> None:
    if name in ALGORITHMS:
        return
    suggestion = None
    if name.lower() == "none":
        reason = "is refused: a token without a signature proves nothing"
    elif name.upper().startswith("HS"):
        reason = "is refused: an HMAC key that verifies tokens can also make them"
    elif name in _LATER:
        reason = f"is not available in this version; use {listed(ALGORITHMS)}"
    else:
        reason = f"is unknown; use {listed(ALGORITHMS)}"
        suggestion = draft.problems.nearest(name, ALGORITHMS)
    draft.refuse(jwt, "algorithms", f"auth.jwt.algorithms: {shown(name)} {reason}", suggestion)


def _check_jwks_file(draft: Draft, jwt: JWTSection) -> None:
    assert jwt.jwks_file is not None
    try:
        document = json.loads(read_bounded(jwt.jwks_file, MAX_JWKS_BYTES))
        keys = document.get("keys") if isinstance(document, dict) else None
        problem = None if isinstance(keys, list) else 'holds no JWKS: a JSON object with a list "keys"'
    except Unreadable as error:
        problem = str(error)
    except (ValueError, RecursionError):
        problem = "is not valid JSON"
    if problem is not None:
        draft.refuse(jwt, "jwks_file", f"auth.jwt.jwks_file {jwt.jwks_file} {problem}")


def _check_redis(draft: Draft, redis: RedisSection) -> None:
    """The keys that only some URLs have, and the file; messages do not quote the URL, which may hold a password."""
    url = RedisURL.of(redis.url)
    for key in ("ca_file", "cert_file", "key_file"):
        if getattr(redis, key) is not None and not url.tls:
            draft.refuse(redis, key, f"redis.{key} is for TLS; the URL must begin with rediss")
    if url.tls and draft.sound(redis, "ca_file", "cert_file", "key_file"):
        _check_redis_files(draft, redis)
    for key in ("sentinel_user", "sentinel_password"):
        if getattr(redis, key) is not None and url.kind != SENTINEL:
            draft.refuse(redis, key, f"redis.{key} is for redis+sentinel://; the password of Redis is in the URL")
    if redis.sentinel_user is not None and redis.sentinel_password is None:
        draft.refuse(redis, "sentinel_user", "redis.sentinel_user needs redis.sentinel_password")


def _check_redis_files(draft: Draft, redis: RedisSection) -> None:
    if redis.ca_file is not None:
        try:
            load_pem_x509_certificates(read_bounded(redis.ca_file, MAX_PEM_BYTES))
        except Unreadable as error:
            draft.refuse(redis, "ca_file", f"redis.ca_file {redis.ca_file} {error}")
        except ValueError:
            draft.refuse(redis, "ca_file", f"redis.ca_file {redis.ca_file} holds no PEM certificates")
    if redis.cert_file is None or redis.key_file is None:
        if redis.cert_file is not redis.key_file:
            key = "cert_file" if redis.key_file is None else "key_file"
            draft.refuse(redis, key, "redis.cert_file and redis.key_file need each other")
        return
    try:
        for path in (redis.cert_file, redis.key_file):
            read_bounded(path, MAX_PEM_BYTES)
        # the empty password: an encrypted key is refused rather than asked for at the terminal
        SSLContext(PROTOCOL_TLS_CLIENT).load_cert_chain(redis.cert_file, redis.key_file, password="")
    except Unreadable as error:
        draft.refuse(redis, "cert_file", f"redis.cert_file or redis.key_file {error}")
    except (SSLError, ValueError):
        message = f"redis.cert_file {redis.cert_file} and redis.key_file {redis.key_file} are no pair in PEM"
        draft.refuse(redis, "cert_file", f"{message}, or the key is encrypted")


def _check_rate_limits(draft: Draft) -> None:
    limits = draft.config.rate_limits
    if limits.store == "redis" and draft.config.redis is None and draft.sound(draft.config, "redis"):
        message = "rate_limits.store redis needs the section redis, which is missing; or use store: memory"
        draft.refuse(limits, "store", message)
    for tier in limits.tiers:
        if not draft.sound(tier, "per"):
            continue
        for key, who in (("unmatched_tier", "unmatched paths have"), ("failed_auth_tier", "a wrong credential has")):
            if tier.tier == getattr(limits, key) and tier.per not in ("client_ip", "global"):
                message = f"rate_limits.{key} {shown(tier.tier)} counts per {tier.per}, which {who} not"
                draft.refuse(limits, key, f"{message}; use a tier per client_ip")
        if tier.fingerprint_network and tier.per != "fingerprint":
            message = f"tier {shown(tier.tier)}: fingerprint_network is for tiers per fingerprint, this one counts"
            draft.refuse(tier, "fingerprint_network", f"{message} per {tier.per}")


def _check_limits(draft: Draft) -> None:
    limits = draft.config.limits
    if draft.sound(limits, "buffer_body_bytes", "max_body_bytes") and limits.buffer_body_bytes > limits.max_body_bytes:
        given = draft.site(limits).lines
        key = "buffer_body_bytes" if "buffer_body_bytes" in given else "max_body_bytes"
        message = (
            f"limits.buffer_body_bytes ({limits.buffer_body_bytes}) is above max_body_bytes ({limits.max_body_bytes})"
        )
        draft.refuse(limits, key, message)


def _check_shedding(draft: Draft) -> None:
    shedding = draft.config.load_shedding
    cpu, memory = shedding.cpu_percent, shedding.memory_percent
    if draft.sound(shedding, "cpu_percent") and not cpu["P1"] >= cpu["P2"] >= cpu["P3"]:
        message = "load_shedding.cpu_percent: P3 is shed first, so P3 must be at most P2, and P2 at most P1"
        draft.refuse(shedding, "cpu_percent", message)
    if draft.sound(shedding, "memory_percent") and memory["shed"] > memory["reject"]:
        message = "load_shedding.memory_percent: shed must be at most reject, it comes first"
        draft.refuse(shedding, "memory_percent", message)


def _check_breaker(draft: Draft, breaker: CircuitBreaker) -> None:
    steps = breaker.recovery_steps
    if draft.sound(breaker, "recovery_steps") and (steps[-1] != 1 or list(steps) != sorted(steps)):
        draft.refuse(breaker, "recovery_steps", "circuit_breaker.recovery_steps must rise and end with 1.0")


def _check_sinks(draft: Draft) -> None:
    for sink in draft.config.access_log.sinks:
        if not draft.sound(sink, "type"):
            continue
        needed = {"file": ("path",), "kafka": ("brokers", "topic")}.get(sink.type, ())
        for key in ("path", "brokers", "topic"):
            given = getattr(sink, key) is not None
            if key in needed and not given and draft.sound(sink, key):
                draft.refuse(sink, "type", f"an access log sink of type {sink.type} needs {key}")
            elif key not in needed and given:
                draft.refuse(sink, key, f"an access log sink of type {sink.type} has no {key}")


def check_backends(draft: Draft, now_s: float) -> None:
    """Each backend by itself: somewhere to send requests, and a pool that can be."""
    for backend in draft.config.backends:
        _check_backend(draft, backend)
        if backend.circuit_breaker is not None:
            _check_breaker(draft, backend.circuit_breaker)


def _check_backend(draft: Draft, backend: Backend) -> None:
    name = f"backend {shown(backend.name)}"
    if backend.name == SELF:
        draft.refuse(backend, "name", "the backend name 'self' is taken: it means the gateway itself")
    if draft.sound(backend, "instances", "discovery"):
        if not backend.instances and backend.discovery is None:
            draft.refuse(backend, "instances", f"{name} has no instance; list at least one")
        elif backend.instances and backend.discovery is not None:
            draft.refuse(backend, "discovery", f"{name} has both instances and discovery; write one")
    if draft.sound(backend, "min_connections", "max_connections"):
        if backend.min_connections > backend.max_connections:
            message = f"{name}: min_connections ({backend.min_connections}) is above max_connections"
            draft.refuse(backend, "min_connections", f"{message} ({backend.max_connections})")
