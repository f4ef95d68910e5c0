"""One request led through the stages of a configuration, to say what each decides and why. Nothing is sent or counted.

The stages are the gateway's own (gateway.py), in its order, but for those that depend on what else is going on at the
moment: load shedding and rate limits say what they would ask, not what they would be told.
"""

from collections.abc import Callable
from typing import Any, Final

from attrs import field, frozen

from apigw.config.snapshot import Snapshot
from apigw.core.http1 import MalformedMessage, request_head
from apigw.core.paths import split_absolute, valid_authority
from apigw.core.tier_counters import TierCounters
from apigw.core.trace import Randomness
from apigw.errors import Answered, GatewayError
from apigw.exchange import ANONYMOUS, ClientRequest, Exchange
from apigw.stages.authentication import Authentication
from apigw.stages.body_limit import BodyLimit
from apigw.stages.canonical_path import CanonicalPath
from apigw.stages.cors import Cors
from apigw.stages.identity import RequestIdentity
from apigw.stages.public_health import PublicHealth
from apigw.stages.routing import Routing
from apigw.stages.scopes import RequiredScopes
from apigw.stages.self_answer import SelfAnswer

Words = Callable[[Exchange], str]

MALFORMED: Final = "bad_request"


@frozen
class Step:
    """What one stage decides, and why."""

    stage: str
    decision: str


@frozen
class Explanation:
    """The steps up to the one that ends it. status: None when a backend would be asked; error: the code of §4."""

    steps: list[Step] = field(factory=list)
    status: int | None = None
    error: str | None = None
    backend: str | None = None
    target: str | None = None  # as the backend gets it


def client_request(head: bytes, peer_ip: str, secure: bool, max_bytes: int) -> ClientRequest:
    """What the listener makes of a head. Raises GatewayError."""
    if len(head) > max_bytes:
        raise GatewayError(status=431, code="headers_too_large", detail=f"{len(head)} bytes, {max_bytes} at most")
    try:
        found = request_head(head)
    except MalformedMessage as error:
        raise GatewayError(status=400, code=MALFORMED, detail=str(error)) from None
    authority, target = split_absolute(found.target)
    host = found.fields.get(b"host", b"")
    if not valid_authority(host) or (authority is not None and authority.lower() != host.lower()):
        raise GatewayError(status=400, code=MALFORMED, detail="bad Host")
    return ClientRequest(
        found.method,
        target,
        found.headers,
        found.fields,
        content_length=found.content_length,
        chunked=found.chunked,
        authority=host,
        peer_ip=peer_ip,
        secure=secure,
        head_bytes=len(head),
    )


class Explainer:
    """A configuration, ready to explain requests. place(route) is its FILE:LINE; wall gives epoch seconds."""

    def __init__(
        self, snapshot: Snapshot, authentication: Authentication, place: Callable[[object], str], wall_s: float
    ) -> None:
        self._snapshot = snapshot
        self._place = place
        self._wall_s = wall_s
        self._counters = TierCounters()
        self._stages: tuple[tuple[Any, Words], ...] = (
            (RequestIdentity(Randomness()), _identity),
            (CanonicalPath(), _path),
            (PublicHealth(lambda: True), lambda ex: "not /healthz, which the listener answers itself"),
            (Routing(snapshot.trie, lambda ex: None), self._route),
            (Cors(), _cors),
            (_Stateful("admission"), self._admission),
            (authentication, _principal),
            (RequiredScopes(), _scopes),
            (_Stateful("rate_limit"), self._rate_limit),
            (BodyLimit(), _body),
            (SelfAnswer(), lambda ex: "no, a backend answers"),
        )

    def explain(self, head: bytes, peer_ip: str, secure: bool) -> Explanation:
        """Of a whole request head, CRLF CRLF included."""
        steps: list[Step] = []
        try:
            request = client_request(head, peer_ip, secure, self._snapshot.config.limits.max_header_bytes)
        except GatewayError as refusal:
            return _refused(steps, "parser", refusal)
        ex = Exchange(self._snapshot, request, 0.0, self._wall_s)
        if self._snapshot.trusted_proxies is not None:
            ex.client_ip = self._snapshot.trusted_proxies.client_ip(peer_ip, request.fields.get(b"x-forwarded-for"))
        steps.append(Step("parser", f"HTTP/1.1, {len(head)} bytes, from {ex.client_ip}"))
        for stage, words in self._stages:
            try:
                part = stage.enter(ex)
            except Answered as answer:
                steps.append(Step(stage.name, f"answers {answer.status} itself"))
                return Explanation(steps, status=answer.status)
            except GatewayError as refusal:
                return _refused(steps, stage.name, refusal)
            if stage.gives is not None:
                setattr(ex, stage.gives, part)
            steps.append(Step(stage.name, words(ex)))
        return self._proxied(ex, steps)

    def _proxied(self, ex: Exchange, steps: list[Step]) -> Explanation:
        route, target = ex.route, ex.target
        assert route is not None and target is not None
        path = target.wire[route.strip :] or "/"
        sent = f"{path}?{target.query}" if target.query else path
        headers = (ex.principal or ANONYMOUS).headers.decode("ascii").strip().replace("\r\n", ", ")
        also = f", with {headers}" if headers else ""
        steps.append(
            Step("proxy", f"{ex.request.method} {path} to backend {route.backend}, {route.timeout_s:g} s at most{also}")
        )
        return Explanation(steps, backend=route.backend, target=sent)

    # -- what stages say that need more than the exchange

    def _route(self, ex: Exchange) -> str:
        assert ex.route is not None
        route = ex.route.route
        owner = f", owner {route.owner}" if route.owner else ""
        return f"{route.route_id}: {route.pattern} ({self._place(route)}{owner})"

    def _admission(self, ex: Exchange) -> str:
        assert ex.route is not None
        priority = ex.route.priority
        above = self._snapshot.config.load_shedding.cpu_percent.get(priority)
        if above is None or above >= 100.0:
            return f"{priority}: not shed for load"
        return f"{priority}: shed above {above:g} % load, which depends on the moment"

    def _rate_limit(self, ex: Exchange) -> str:
        """Whose counters; see Note [Whose counter] of core/tier_counters.py."""
        snapshot, route, principal = self._snapshot, ex.route, ex.principal or ANONYMOUS
        assert route is not None
        own = snapshot.tiers.get(principal.tier) if principal.tier is not None else None
        tier = own or route.tier
        said = []
        for each, whose in ((tier, "the key's own tier" if own else "tier"), (snapshot.global_tier, "global tier")):
            if each is None or (each is tier and whose == "global tier"):
                continue
            demand = self._counters.of(each).demand(ex, principal)
            shadow = ", in shadow mode" if each.mode == "shadow" else ""
            said.append(f"{whose} {each.tier}: {each.limit} in {each.window_s} s on {demand.key}{shadow}")
        return "; ".join(said) or "no tier"


class _Stateful:
    """Stands for a stage that decides by what else is going on."""

    gives = None

    def __init__(self, name: str) -> None:
        self.name = name

    def enter(self, ex: Exchange) -> None:
        """It is only described."""


def _refused(steps: list[Step], stage: str, refusal: GatewayError) -> Explanation:
    detail = refusal.detail or refusal.message
    reason = "" if refusal.reason == refusal.code else f"{refusal.reason}: "
    also = "".join(f"; {name.decode()}: {value.decode()}" for name, value in refusal.headers if name == b"Allow")
    steps.append(Step(stage, f"refused with {refusal.status} {refusal.code}: {reason}{detail}{also}"))
    return Explanation(steps, status=refusal.status, error=refusal.code)


def _identity(ex: Exchange) -> str:
    assert ex.identity is not None
    kept = ex.request.fields.get(b"x-request-id") == ex.identity.request_id.encode()
    return "the client's X-Request-ID" if kept else "an X-Request-ID made here"


def _path(ex: Exchange) -> str:
    assert ex.target is not None
    asked = ex.request.target.partition(b"?")[0].decode("latin-1")
    return ex.target.path if asked == ex.target.path else f"{ex.target.path}, for {asked}"


def _cors(ex: Exchange) -> str:
    assert ex.route is not None
    origin = ex.request.fields.get(b"origin")
    if not ex.route.cors_origins:
        return "the route names no origins"
    if origin is None:
        return "no Origin"
    allowed = "allowed" if origin in ex.route.cors_origins else "not allowed: a browser will not show the answer"
    return f"{origin.decode('latin-1')} is {allowed}"


def _principal(ex: Exchange) -> str:
    principal = ex.principal or ANONYMOUS
    scopes = f", scopes: {' '.join(sorted(principal.scopes)) or 'none'}"
    if principal.user_id is not None:
        return f"user {principal.user_id}{scopes}"
    if principal.partner_id is not None:
        return f"partner {principal.partner_id}{scopes}"
    return "nobody, let through by auth_grace_period" if ex.auth_failure else "the route asks for none"


def _scopes(ex: Exchange) -> str:
    assert ex.route is not None
    return f"has {' '.join(sorted(ex.route.required_scopes))}" if ex.route.required_scopes else "none required"


def _body(ex: Exchange) -> str:
    assert ex.route is not None
    length = 0 if ex.request.content_length is None else ex.request.content_length
    announced = "chunked, counted as it comes" if ex.request.chunked else f"{length} bytes announced"
    return f"{announced}, {ex.route.max_body_bytes} allowed"
