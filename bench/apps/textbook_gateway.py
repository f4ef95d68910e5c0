"""Textbook Twisted: what a capable user of Twisted writes in an afternoon, from the documentation of its parts.

Site and one leaf Resource, treq with a persistent pool, txredisapi, joserfc (authlib.jose's successor), prometheus-client,
a JSON line a request. usage: textbook_gateway.py SETTINGS
"""

import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import treq
import txredisapi
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from prometheus_client import Counter, Histogram
from twisted.internet import reactor, ssl
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

sys.path.insert(0, str(Path(__file__).resolve().parent))

from settings import RATE_SCRIPT, Settings, rate_keys, settings

log = Logger()
REQUESTS = Counter("gateway_requests_total", "Requests", ["route", "method", "status"])
DURATION = Histogram("gateway_request_duration_seconds", "Duration", ["route"])
NOT_FORWARDED = {b"authorization", b"connection", b"host", b"x-user-id", b"x-user-scopes", b"content-length"}
NOT_RETURNED = {b"connection", b"transfer-encoding", b"content-length"}


class Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code
        super().__init__(code)


class Gateway(Resource):
    isLeaf = True

    def __init__(self, options: Settings) -> None:
        super().__init__()
        self.options = options
        self.keys = KeySet.import_key_set(json.loads(Path(options.jwks_file).read_text()))
        self.claims = jwt.JWTClaimsRegistry(
            leeway=30, iss={"essential": True, "value": options.issuer}, aud={"essential": True, "value": options.audience},
            exp={"essential": True},
        )  # fmt: skip
        self.redis = txredisapi.lazyConnectionPool("127.0.0.1", options.redis_port, poolsize=10)
        pool = HTTPConnectionPool(reactor, persistent=True)
        pool.maxPersistentPerHost = 100
        self.client = treq.client.HTTPClient(Agent(reactor, connectTimeout=1, pool=pool))
        self.access_log = open(options.access_log, "a")  # noqa: SIM115

    def render(self, request: Request) -> int:
        d = Deferred.fromCoroutine(self.handle(request))
        d.addErrback(lambda failure: log.failure("request failed", failure))
        return NOT_DONE_YET

    async def handle(self, request: Request) -> None:
        started = time.time()
        facts: dict[str, Any] = {"request_id": request.getHeader("x-request-id") or str(uuid.uuid4())}
        try:
            route = self.match(request.path.decode("ascii"))
            facts["route_id"] = route
            claims = self.authenticate(request)
            facts["user_id"] = claims["sub"]
            await self.limit(route, claims["sub"])
            await self.proxy(request, claims, facts)
        except Refused as error:
            self.answer(request, error.status, error.code, facts)
        except Exception as error:  # noqa: BLE001
            log.failure("no answer from the backend")
            self.answer(request, 502, type(error).__name__, facts)
        self.record(request, facts, started)

    def match(self, path: str) -> str:
        for route in self.options.limits:
            if path.startswith(f"{self.options.prefix}/{route}/"):
                return route
        raise Refused(404, "route_not_found")

    def authenticate(self, request: Request) -> dict[str, Any]:
        scheme, _, token = (request.getHeader("authorization") or "").partition(" ")
        if scheme.lower() != "bearer":
            raise Refused(401, "missing_credentials")
        try:
            decoded = jwt.decode(token, self.keys, algorithms=["RS256"])
            self.claims.validate(decoded.claims)
        except (JoseError, ValueError):
            raise Refused(401, "invalid_token") from None
        return decoded.claims

    async def limit(self, route: str, user_id: str) -> None:
        window_s = self.options.window_s
        current, previous, weight = rate_keys(route, user_id, time.time(), window_s)
        arguments = [weight, self.options.limits[route], 2 * window_s]
        if await self.redis.eval(RATE_SCRIPT, [current, previous], arguments) < 0:
            raise Refused(429, "rate_limit_exceeded")

    async def proxy(self, request: Request, claims: dict[str, Any], facts: dict[str, Any]) -> None:
        headers = Headers()
        for name, values in request.requestHeaders.getAllRawHeaders():
            if name.lower() not in NOT_FORWARDED:
                headers.setRawHeaders(name, values)
        headers.addRawHeader("X-User-ID", claims["sub"])
        headers.addRawHeader("X-User-Scopes", claims.get("scope", ""))
        headers.addRawHeader("X-Request-ID", facts["request_id"])
        headers.addRawHeader("X-Forwarded-For", request.getClientAddress().host)
        url = self.options.backend + request.uri.decode("ascii")[len(self.options.prefix) :]
        sent = time.time()
        response = await self.client.request(
            request.method.decode("ascii"), url, headers=headers, data=request.content, timeout=10
        )
        body = await response.content()
        facts["upstream_latency_ms"] = (time.time() - sent) * 1000
        request.setResponseCode(response.code)
        for name, values in response.headers.getAllRawHeaders():
            if name.lower() not in NOT_RETURNED:
                request.responseHeaders.setRawHeaders(name, values)
        self.finish(request, body, facts)

    def answer(self, request: Request, status: int, code: str, facts: dict[str, Any]) -> None:
        request.setResponseCode(status)
        request.setHeader("Content-Type", "application/json")
        facts["error_type"] = code
        self.finish(request, json.dumps({"error": code, "request_id": facts["request_id"]}).encode(), facts)

    def finish(self, request: Request, body: bytes, facts: dict[str, Any]) -> None:
        facts["response_bytes"] = len(body)
        request.setHeader("X-Request-ID", facts["request_id"])
        request.setHeader("Content-Length", str(len(body)))
        request.write(body)
        request.finish()

    def record(self, request: Request, facts: dict[str, Any], started: float) -> None:
        elapsed = time.time() - started
        method = request.method.decode("ascii")
        entry = facts | {
            "timestamp": started, "method": method, "path": request.path.decode("ascii"), "status": request.code,
            "client_ip": request.getClientAddress().host, "user_agent": request.getHeader("user-agent"),
            "total_latency_ms": elapsed * 1000,
        }  # fmt: skip
        self.access_log.write(json.dumps(entry) + "\n")
        route = facts.get("route_id", "none")
        REQUESTS.labels(route, method, str(request.code)).inc()
        DURATION.labels(route).observe(elapsed)


def main() -> None:
    options = settings()
    context = ssl.DefaultOpenSSLContextFactory(
        options.key_file, options.certificate_file, sslmethod=ssl.SSL.TLS_SERVER_METHOD
    )
    reactor.listenSSL(options.port, Site(Gateway(options), timeout=75), context, interface="127.0.0.1", backlog=1024)
    reactor.run()


if __name__ == "__main__":
    main()
