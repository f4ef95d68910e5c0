"""The way of a request: the stages in order, each with its number in the contract (section 3)."""

from types import MappingProxyType
from typing import Any, Callable, Mapping

from attrs import Factory, frozen

from apigw.config.snapshot import CompiledRoute, Snapshot
from apigw.core.global_share import GlobalShares
from apigw.core.refusals import Refusals
from apigw.core.revocations import NOTHING_REVOKED, Revocations
from apigw.core.shedding import Shedding
from apigw.core.trace import Randomness
from apigw.core.window import Demand
from apigw.exchange import Exchange
from apigw.net.deadlines import Deadlines
from apigw.pipeline import Stage, compose
from apigw.ports import APIKeySource, CounterStore, KeySource, WallClock
from apigw.stages.address_limit import AddressLimit
from apigw.stages.admission import Admission
from apigw.stages.authentication import Authentication, token_policy
from apigw.stages.body_limit import BodyLimit
from apigw.stages.canonical_path import CanonicalPath
from apigw.stages.cors import Cors
from apigw.stages.failed_authentication import FailedAuthentication
from apigw.stages.identity import RequestIdentity
from apigw.stages.public_health import PublicHealth
from apigw.stages.rate_limit import RateLimit, StandingRefusal
from apigw.stages.routing import Routing
from apigw.stages.scopes import RequiredScopes
from apigw.stages.self_answer import SelfAnswer
from apigw.stages.shadow_limit import ShadowLimit
from apigw.upstream.gate import Gate
from apigw.upstream.leaf import Proxy
from apigw.upstream.pool import Pool


@frozen
class Parts:
    """What stages need of the world; the same objects for all generations of a worker."""

    clock: Any
    deadlines: Deadlines
    wall: WallClock
    randomness: Randomness
    in_flight: Callable[[], int]
    ready: Callable[[], bool]
    on_decision: Callable[[str, str], None]
    shedding: Shedding
    on_shed: Callable[[str], None]
    on_shadow: Callable[[Demand, Exchange], None] = lambda demand, ex: None
    on_replay: Callable[[str, str], None] = lambda backend, reason: None
    shares: GlobalShares = Factory(GlobalShares)
    revocations: Revocations = NOTHING_REVOKED


@frozen
class Generation:
    """One configuration at work. Requests keep the one they began with; a reload makes a new one."""

    snapshot: Snapshot
    root: Any


def stages(
    snapshot: Snapshot,
    parts: Parts,
    keys: KeySource | None,
    counters: CounterStore,
    local: CounterStore,
    api_keys: APIKeySource | None = None,
) -> list[Stage]:
    """From the client down. Stage 1 is edge/channel.py, 10 and 11 the leaf, 12 edge/request.py, 13 the ledger."""
    config = snapshot.config
    refusals = Refusals()
    shadow = ShadowLimit(counters, parts.on_decision, parts.on_shadow)
    addresses = AddressLimit(counters, local, parts.wall, parts.on_decision, shadow.take)
    return [
        RequestIdentity(parts.randomness),  # 2   X-Request-ID, trace context
        CanonicalPath(),  # 3                     400
        PublicHealth(parts.ready),  #             /healthz for the balancer in front
        Routing(snapshot.trie, addresses.unmatched),  # 4   404, 405
        Cors(),  # 5                              preflight: 204
        Admission(parts.in_flight, config.gateway.max_in_flight, parts.shedding, parts.on_shed),  # 6   503 overloaded
        StandingRefusal(refusals, parts.wall, parts.on_decision),  #   429 again, for a moment
        FailedAuthentication(  #                  wrong credentials: 401, and after some of them 429
            Authentication(  # 7                  401, 403, 503
                keys, token_policy(config.jwt), parts.wall, api_keys, parts.revocations
            ),
            addresses.take,
            _nobody_knows if api_keys is None else api_keys.knows,
            parts.wall,
            parts.on_decision,
        ),
        RequiredScopes(),  #                      403 insufficient_scope
        RateLimit(counters, local, parts.wall, parts.on_decision, refusals, shadow.take, parts.shares),  # 8   429, 503
        BodyLimit(),  # 9                         413
        SelfAnswer(),  #                          backend_service: self
    ]


def _nobody_knows(presented: bytes) -> bool:
    """Of API keys where there are none."""
    return False


def concerns(stage: Stage, route: CompiledRoute) -> bool:
    """Whether a stage has anything to do for a route; one that has for none of a snapshot is left out of its chain."""
    judge = getattr(stage, "concerns", None)
    return judge is None or bool(judge(route))


def build(
    snapshot: Snapshot,
    parts: Parts,
    pools: Mapping[str, Pool],
    keys: KeySource | None,
    counters: CounterStore,
    local: CounterStore,
    api_keys: APIKeySource | None = None,
    gates: Mapping[str, Gate] = MappingProxyType({}),
) -> Generation:
    """Raises PipelineError when the stages do not fit together."""
    routes = snapshot.routes.values()
    chain = stages(snapshot, parts, keys, counters, local, api_keys)
    if routes:
        chain = [stage for stage in chain if any(concerns(stage, route) for route in routes)]
    hold_bytes = snapshot.config.limits.buffer_body_bytes
    leaf = Proxy(parts.clock, parts.deadlines, pools, hold_bytes, parts.on_replay, gates)  # 10, 11
    return Generation(snapshot, compose(chain, leaf))
