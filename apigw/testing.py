"""What tests need of the house, shipped with it: exchanges that have ended, by keyword."""

from typing import Any

from apigw.config.model import (
    AccessLog,
    AdminSection,
    Backend,
    CircuitBreaker,
    Config,
    ConfigSection,
    GatewaySection,
    Instance,
    Limits,
    LoadShedding,
    RateLimits,
    Route,
    Tracing,
)
from apigw.config.snapshot import Snapshot
from apigw.exchange import ClientRequest, Exchange, Identity, Principal, RateVerdict, Target


def small_snapshot(access_log: AccessLog = AccessLog(), version: str = "v1") -> Snapshot:
    """One backend `users` and one route `route-users` on /users/*."""
    config = Config(
        gateway=GatewaySection(instance_name="gateway-1"),
        listeners=(),
        admin=AdminSection(),
        limits=Limits(),
        jwt=None,
        api_keys=None,
        redis=None,
        rate_limits=RateLimits(),
        load_shedding=LoadShedding(),
        circuit_breaker=CircuitBreaker(),
        access_log=access_log,
        tracing=Tracing(),
        config=ConfigSection(),
        backends=(Backend("users", (Instance("127.0.0.1", 9001),)),),
        routes=(Route("route-users", "/users/*", ("GET", "POST"), "users"),),
        version=version,
    )
    return Snapshot(config, lambda: 1738852200.0)


def ended_exchange(snapshot: Snapshot | None = None, *, method: str = "GET", **facts: Any) -> Exchange:
    """A proxied 200 to GET /users/me that took 42 ms, 38 of them upstream; `facts` override its slots."""
    fields = {b"user-agent": b"MyApp/2.1 iOS/17.2", b"host": b"api.example.com"}
    request = ClientRequest(method, b"/users/me?page=2", [], fields, peer_ip="203.0.113.42")
    snapshot = snapshot or small_snapshot()
    ex = Exchange(snapshot, request, 100.0, 1738852200.042)
    ex.identity = Identity("req-abc123", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", None, True, b"")
    ex.target = Target("/users/me", "page=2", "/users/me")
    ex.route = snapshot.routes["route-users"]
    ex.principal = Principal(user_id="user_789")
    ex.verdict = RateVerdict(100, 53, 1738852260)
    ex.status = 200
    ex.upstream_started_s, ex.upstream_ended_s = 100.002, 100.040
    ex.instance = "127.0.0.1:9001"
    ex.request_bytes, ex.response_bytes = 256, 1024
    ex.ended_s = 100.042
    for name, value in facts.items():
        setattr(ex, name, value)
    return ex
