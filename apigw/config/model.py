"""The configuration as frozen records: an instance that exists is valid in itself.

One record a section of the file (apigw.example.yaml), durations in seconds (`timeout_ms` of the file is
`timeout_s` here), defaults here and nowhere else. References between records (a route's tier, its backend)
are checked by `config/validate.py`; text becomes records in `config/parse.py`.
"""

# One network of `trusted_proxies`, as ipaddress gives it.
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from attrs import field, frozen

Network = IPv4Network | IPv6Network

SELF = "self"  # backend_service of a route that the gateway answers itself


@frozen
class GatewaySection:
    """`gateway:`; `instance_name` defaults to the host name."""

    instance_name: str
    workers: int = 1  # 0: one per CPU ("auto")
    state_dir: Path = Path("/var/lib/apigw")
    trusted_proxies: tuple[Network, ...] = ()
    drain_timeout_s: float = 30.0
    max_in_flight: int = 5000


@frozen
class Certificate:
    """A PEM chain and its key, absolute paths. Files are read and matched at validation and again at each build."""

    cert_file: Path
    key_file: Path


@frozen
class TLSSection:
    certificates: tuple[Certificate, ...]
    min_version: str = "TLSv1.2"  # or TLSv1.3


@frozen
class Listener:
    address: str
    port: int
    tls: TLSSection | None = None
    allow_plaintext: bool = False


@frozen
class AdminSection:
    address: str = "127.0.0.1"
    port: int = 9601


@frozen
class Limits:
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    keepalive_timeout_s: float = 75.0
    max_header_bytes: int = 8192
    max_body_bytes: int = 10_485_760
    buffer_body_bytes: int = 65_536
    max_connections: int = 10_000
    max_connections_per_ip: int = 1000


@frozen
class JWTSection:
    """Exactly one of `jwks_url`, `jwks_file` is set."""

    issuer: str
    audience: str
    algorithms: tuple[str, ...] = ("RS256",)
    jwks_url: str | None = None
    jwks_file: Path | None = None
    jwks_cache_ttl_s: float = 3600.0
    jwks_refresh_s: float = 1800.0
    clock_skew_s: float = 30.0
    user_id_claim: str = "sub"
    scopes_claim: str = "scope"


@frozen
class APIKeysSection:
    database_url: str = field(repr=False)  # may hold a password
    cache_ttl_s: float = 300.0
    rotation_overlap_days: int = 7


@frozen
class RedisSection:
    """`url` is what RedisURL.of() (config/redis_url.py) understands.

    ca_file: PEM certificates that TLS trusts instead of the system's. cert_file, key_file: what TLS shows of itself, if
    Redis asks for it. sentinel_user, sentinel_password: what the sentinels want, if they want any.
    """

    url: str = field(repr=False)  # may hold a password
    timeout_s: float = 0.005
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    sentinel_user: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)


@frozen
class Tier:
    """The design's RateLimitPolicy. `per`: user_id, api_key, client_ip, fingerprint, global.

    mode: enforce, or shadow: it counts and refuses nobody. fingerprint_network: the client's network is part of it.
    """

    tier: str
    limit: int
    window_s: int
    per: str
    mode: str = "enforce"
    fingerprint_network: bool = False


@frozen
class RateLimits:
    """`unmatched_tier` counts requests that match no route; defaults to the tier `unauthenticated` where defined.

    `failed_auth_tier` counts wrong credentials; defaults to the unmatched tier.
    """

    store: str = "memory"  # memory | redis
    tiers: tuple[Tier, ...] = ()
    global_tier: str | None = None
    unmatched_tier: str | None = None
    failed_auth_tier: str | None = None


@frozen
class LoadShedding:
    cpu_percent: dict[str, float] = field(factory=lambda: {"P1": 90.0, "P2": 75.0, "P3": 60.0})
    memory_percent: dict[str, float] = field(factory=lambda: {"shed": 80.0, "reject": 95.0})


# Without the section nobody is shed for CPU: a worker that is merely busy refuses only who asks to be ranked.
NOT_FOR_CPU = LoadShedding(cpu_percent={"P1": 100.0, "P2": 100.0, "P3": 100.0})


@frozen
class CircuitBreaker:
    error_rate: float = 0.5
    window_s: float = 30.0
    min_requests: int = 20
    open_s: float = 30.0
    close_after_probes: int = 2
    recovery_steps: tuple[float, ...] = (0.10, 0.25, 0.50, 1.0)
    recovery_s: float = 120.0
    shared: bool = True


@frozen
class Sink:
    """One destination of the access log. `type`: file (path), stdout, kafka (brokers, topic)."""

    type: str
    path: Path | None = None
    brokers: str | None = None
    topic: str | None = None


@frozen
class AccessLog:
    sinks: tuple[Sink, ...] = ()
    success_sample_rate: float = 1.0
    sample_above_rps: float = 10_000
    buffer_entries: int = 100_000


@frozen
class Tracing:
    otlp_endpoint: str | None = None
    sample_rate: float = 0.01


@frozen
class Canary:
    enabled: bool = True
    bake_s: float = 120.0
    max_error_rate_increase: float = 0.02
    max_latency_increase: float = 0.5
    min_requests: int = 20


@frozen
class ConfigSection:
    """`config:`; `include` globs are relative to the main file."""

    source: str = "files"  # files | etcd | consul
    include: tuple[str, ...] = ()
    poll_s: float = 10.0
    etcd_endpoints: tuple[str, ...] = ()
    etcd_prefix: str = "/gateway/"
    consul_url: str | None = None
    consul_prefix: str = "gateway/"
    canary: Canary = Canary()
    protected_routes: tuple[str, ...] = ()


@frozen
class Instance:
    """One address of a backend. `label` is its name in logs and metrics."""

    host: str
    port: int
    weight: int = 1

    @property
    def label(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@frozen
class Discovery:
    """Where a backend's instances are asked for. `url` and `endpoints` are those of `config:` unless given here.

    allow_loopback: None leaves it to where the registry is (adapters/registry.py).
    """

    type: str  # dns | consul | etcd | kubernetes
    service: str
    port: int | str | None = None  # dns: of A and AAAA, None asks for SRV; kubernetes: the number or name to use
    nameservers: tuple[str, ...] = ()  # dns: "IP" or "IP:PORT"; none: those of the system
    url: str | None = None  # consul, kubernetes
    endpoints: tuple[str, ...] = ()  # etcd
    prefix: str | None = None  # etcd; None: /services/{service}/
    tag: str | None = None  # consul
    datacenter: str | None = None  # consul
    namespace: str | None = None  # kubernetes; None: the gateway's own
    username: str | None = None  # etcd
    password_file: Path | None = None  # etcd
    token_file: Path | None = None  # consul, kubernetes
    ca_file: Path | None = None
    allow_loopback: bool | None = None
    allow_names: bool = False
    networks: tuple[Network, ...] = ()
    empty_after_s: float = 300.0


@frozen
class Backend:
    """The design's BackendService. Either `instances` or `discovery`."""

    name: str
    instances: tuple[Instance, ...] = ()
    discovery: Discovery | None = None
    owner: str | None = None
    health_check_path: str = "/healthz"
    health_check_interval_s: float = 10.0
    unhealthy_after: int = 3
    healthy_after: int = 2
    max_connections: int = 100
    min_connections: int = 0
    idle_timeout_s: float = 60.0
    max_lifetime_s: float = 300.0
    slow_start_s: float = 20.0
    max_rps: float | None = None
    circuit_breaker: CircuitBreaker | None = None


@frozen
class Route:
    """The design's Route. Times in seconds; None for max_body_bytes means the limit of `limits:`."""

    route_id: str
    pattern: str
    methods: tuple[str, ...]
    backend_service: str
    owner: str | None = None
    strip_prefix: str = ""
    auth_required: bool = True
    auth_type: str = "jwt"  # jwt | api_key | none
    auth_grace_period: bool = False
    required_scopes: tuple[str, ...] = ()
    rate_limit_tier: str | None = None
    rate_limit_fail_mode: str = "open"  # open | closed | local
    timeout_s: float = 10.0
    circuit_breaker: bool = True
    priority: str = "P1"
    cors_allowed_origins: tuple[str, ...] = ()
    deprecated: bool = False
    deprecated_at: int | None = None  # epoch second from which it is deprecated, None: "since before now"
    sunset_date: str | None = None  # ISO date, "2027-06-01"
    max_body_bytes: int | None = None
    forward_cookies: bool = False
    websocket: bool = False


@frozen
class Config:
    """A whole configuration. `version` is a hash of its meaning, `sources` the files it was read from."""

    gateway: GatewaySection
    listeners: tuple[Listener, ...]
    admin: AdminSection
    limits: Limits
    jwt: JWTSection | None
    api_keys: APIKeysSection | None
    redis: RedisSection | None
    rate_limits: RateLimits
    load_shedding: LoadShedding
    circuit_breaker: CircuitBreaker
    access_log: AccessLog
    tracing: Tracing
    config: ConfigSection
    backends: tuple[Backend, ...]
    routes: tuple[Route, ...]
    version: str = ""
    sources: tuple[Path, ...] = ()
