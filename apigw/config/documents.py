"""The three texts that hold configuration: the main file, an included file, one value of a store."""

from pathlib import Path
from typing import Any

from attrs import frozen

from apigw.config.declarations import BACKEND, CIRCUIT_BREAKER, ROUTE, TIER, TIERS
from apigw.config.fields import Field, Group, Record
from apigw.config.kinds import Many, Name
from apigw.config.model import (
    NOT_FOR_CPU,
    AccessLog,
    AdminSection,
    APIKeysSection,
    Backend,
    CircuitBreaker,
    ConfigSection,
    GatewaySection,
    JWTSection,
    Limits,
    Listener,
    LoadShedding,
    RateLimits,
    RedisSection,
    Route,
    Tier,
    Tracing,
)
from apigw.config.sections import (
    ACCESS_LOG,
    ADMIN,
    AUTH,
    CONFIG,
    GATEWAY,
    LIMITS,
    LISTENER,
    LOAD_SHEDDING,
    RATE_LIMITS,
    REDIS,
    TRACING,
)

_OWNER = Field("owner", Name(), hidden=True)
_BACKENDS = Field("backends", Many(BACKEND, at_most=100_000, same=id, keep=True))
_ROUTES = Field("routes", Many(ROUTE, at_most=100_000, same=id, keep=True))


@frozen
class MainFile:
    """The main file as it stands, before the other files are put to it."""

    listeners: tuple[Listener, ...] | None
    gateway: GatewaySection = GatewaySection("")
    admin: AdminSection = AdminSection()
    limits: Limits = Limits()
    jwt: JWTSection | None = None
    api_keys: APIKeysSection | None = None
    redis: RedisSection | None = None
    rate_limits: RateLimits = RateLimits()
    load_shedding: LoadShedding = NOT_FOR_CPU
    circuit_breaker: CircuitBreaker = CircuitBreaker()
    access_log: AccessLog = AccessLog()
    tracing: Tracing = Tracing()
    config: ConfigSection = ConfigSection()
    backends: tuple[Backend, ...] = ()
    routes: tuple[Route, ...] = ()
    owner: str | None = None


@frozen
class PartFile:
    """An included file: what one owner has."""

    tiers: tuple[Tier, ...] = ()
    backends: tuple[Backend, ...] = ()
    routes: tuple[Route, ...] = ()
    owner: str | None = None


MAIN_FILE = Record(
    MainFile,
    (
        Field("gateway", GATEWAY),
        Field("listeners", Many(LISTENER, at_least=1, same=id, keep=True), required=True),
        Field("admin", ADMIN),
        Field("limits", LIMITS),
        AUTH,
        Field("redis", REDIS),
        Field("rate_limits", RATE_LIMITS),
        Field("load_shedding", LOAD_SHEDDING),
        Field("circuit_breaker", CIRCUIT_BREAKER),
        Field("access_log", ACCESS_LOG),
        Field("tracing", TRACING),
        Field("config", CONFIG),
        _OWNER,
        _BACKENDS,
        _ROUTES,
    ),
    lenient=True,
)
_MAIN_ONLY = "may stand in the main file only"
PART_FILE = Record(
    PartFile,
    (Group("rate_limits", (Field("tiers", TIERS),)), _OWNER, _BACKENDS, _ROUTES),
    lenient=True,
    elsewhere={
        each.key: _MAIN_ONLY
        for each in MAIN_FILE.fields
        if each.key not in ("rate_limits", "owner", "backends", "routes")
    },
)
# One value of a configuration store, by its folder.
SINGLE: dict[str, Record[Any]] = {"routes": ROUTE, "policies": TIER, "backends": BACKEND}


def paths_of(main: MainFile) -> tuple[Path, ...]:
    """The files that the main file names: certificates, keys, a JWKS."""
    tls = [listener.tls for listener in main.listeners or () if listener.tls is not None]
    pairs = [certificate for section in tls for certificate in section.certificates]
    named = [path for pair in pairs for path in (pair.cert_file, pair.key_file)]
    return (*named, *((main.jwt.jwks_file,) if main.jwt and main.jwt.jwks_file else ()))
