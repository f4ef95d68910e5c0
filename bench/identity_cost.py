"""What a request pays for who it is and how much it may: a token, an API key, no limit, one tier, two tiers in Redis.

Gateways that differ in their global tier alone are up at once; a request's other differences are its route's. All are asked in
turns, so that they share the machine's drift; what is told are differences within a round.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import job
from measure import cpu_run, spread
from peers.apigw import Apigw, route
from peers.base import Running
from redis_count import RedisCount
from world import REPOSITORY, World

TARGET_US = 30.0  # two tiers, beside none
KEYS = 50  # in use, as many as tokens
OVERALL = {"tier": "overall", "limit": job.LIMIT, "window_seconds": job.WINDOW_S, "per": "global"}
ADDRESS = {"tier": "address", "limit": job.LIMIT, "window_seconds": job.WINDOW_S, "per": "client_ip"}
PARTNERS = {"tier": "partners", "limit": job.LIMIT, "window_seconds": job.WINDOW_S, "per": "api_key"}
ROUTES = (  # name, auth_type, tier
    ("open-none", "none", None),
    ("jwt-none", "jwt", None),
    ("key-none", "api_key", None),
    ("jwt-one", "jwt", "standard"),
    ("key-one", "api_key", "partners"),
)
# the global tier of each gateway: none, counted in shares (core/global_share.py), or asked for each request
GATEWAYS: dict[str, dict[str, Any] | None] = {"alone": None, "shared": OVERALL, "asked": ADDRESS}


@dataclass(frozen=True)
class Variant:
    """One kind of request, and the gateway that it is asked of."""

    name: str
    gateway: str
    path: str


VARIANTS = (
    Variant("nobody, no tier", "alone", "/api/v2/open-none/me"),
    Variant("token, no tier", "alone", "/api/v2/jwt-none/me"),
    Variant("API key, no tier", "alone", "/api/v2/key-none/me"),
    Variant("token, one tier", "alone", "/api/v2/jwt-one/me"),
    Variant("API key, one tier", "alone", "/api/v2/key-one/me"),
    Variant("token, two tiers, the second global", "shared", "/api/v2/jwt-one/me"),
    Variant("token, two tiers, both asked", "asked", "/api/v2/jwt-one/me"),
    Variant("API key, two tiers, both asked", "asked", "/api/v2/key-one/me"),
)
# (what, the one, the other): the one's cost less the other's
DIFFERENCES = (
    ("a token's verification", "token, no tier", "nobody, no tier"),
    ("an API key from memory", "API key, no tier", "nobody, no tier"),
    ("an API key instead of a token", "API key, no tier", "token, no tier"),
    ("an API key instead of a token, one tier", "API key, one tier", "token, one tier"),
    ("one tier", "token, one tier", "token, no tier"),
    ("two tiers, the second global", "token, two tiers, the second global", "token, no tier"),
    ("two tiers, both asked", "token, two tiers, both asked", "token, no tier"),
    ("two tiers, both asked, API key", "API key, two tiers, both asked", "API key, no tier"),
)


def _keys(file: Path) -> list[str]:
    """API keys as clients show them, in a new database."""
    sys.path.insert(0, str(REPOSITORY))
    from apigw.adapters.key_store import KeyStore  # found by the line above

    store = KeyStore(f"sqlite:///{file}", cost=4)
    made = [store.create(f"partner-{number}").presented for number in range(KEYS)]
    store.close()
    return made


class Costed(Apigw):
    """The gateway with a route for each kind of request."""

    def __init__(self, name: str, global_tier: dict[str, Any] | None, database: Path) -> None:
        super().__init__(f"apigw-{name}")
        self._global_tier = global_tier
        self._database = database

    def _configuration(self, world: World, folder: Path, port: int) -> dict[str, Any]:
        found = super()._configuration(world, folder, port)
        found["auth"]["api_keys"] = {"database_url": f"sqlite:///{self._database}"}
        if self._global_tier is not None:
            found["rate_limits"]["tiers"].append(self._global_tier)
            found["rate_limits"]["global_tier"] = self._global_tier["tier"]
        found["rate_limits"]["tiers"].append(PARTNERS)
        for name, auth, tier in ROUTES:
            made = route(name, f"/api/v2/{name}/*", tier or "") | {"auth_type": auth, "auth_required": auth != "none"}
            if tier is None:
                del made["rate_limit_tier"]
            found["routes"].append(made)
        return found


def _requests(world: World, variant: Variant, port: int, keys: list[str]) -> list[str]:
    if "key-" in variant.path:
        return [job.request(port, variant.path, None, f"X-API-Key: {key}") for key in keys]
    if "open-" in variant.path:
        return [job.request(port, variant.path, None)]
    return [job.request(port, variant.path, token) for token in world.tokens]


def measured(world: World, runs: int, count: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """(CPU microseconds per request of each variant by round, script calls in Redis per request of each)."""
    folder = world.subfolder("keys")
    keys = _keys(folder / "keys.db")
    started: dict[str, Running] = {}
    samples: dict[str, list[float]] = {variant.name: [] for variant in VARIANTS}
    calls: dict[str, float] = {}
    redis = RedisCount(world.redis_port)
    try:
        for name, tier in GATEWAYS.items():
            started[name] = Costed(name, tier, folder / "keys.db").start(world)
        for _ in range(4 * runs):
            for variant in random.sample(VARIANTS, len(VARIANTS)):
                running = started[variant.gateway]
                before = redis.script_calls()
                run = cpu_run(world, running, count, requests=_requests(world, variant, running.port, keys))
                calls[variant.name] = (redis.script_calls() - before) / run["made"]
                samples[variant.name].append(run["cpu_us"])
    finally:
        redis.close()
        for running in started.values():
            running.process.stop()
    return samples, calls


def report(world: World, runs: int, count: int) -> dict[str, object]:
    samples, calls = measured(world, runs, count)
    print("\nidentity and limits: CPU us a request (min to max), script calls in Redis a request")
    for name, values in samples.items():
        print(f"  {name:38} {median(values):5.0f} ({min(values):.0f}-{max(values):.0f})  {calls[name]:.2f}")
    print("differences: median of rounds (min to max); of the minima")
    differences = {}
    for what, one, other in DIFFERENCES:
        by_round = [a - b for a, b in zip(samples[one], samples[other], strict=True)]
        of_minima = min(samples[one]) - min(samples[other])
        differences[what] = {**spread(by_round), "of_minima": of_minima}
        aim = f"  (target {TARGET_US:.0f})" if what.startswith("two tiers") else ""
        print(
            f"  {what:38} {median(by_round):+5.1f} ({min(by_round):+.0f} to {max(by_round):+.0f}); {of_minima:+.1f}{aim}"
        )
    return {
        "cpu_us": {name: spread(values) for name, values in samples.items()},
        "script_calls": calls,
        "differences_us": differences,
    }
