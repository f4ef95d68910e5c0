"""The gateway as a user of aiohttp writes it: aiohttp's server and client on uvloop, redis.asyncio with hiredis, joserfc.

usage: aiohttp_gateway.py SETTINGS
"""

import json
import ssl
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import redis.asyncio
import uvloop
from aiohttp import web
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from multidict import CIMultiDict
from prometheus_client import Counter, Histogram

sys.path.insert(0, str(Path(__file__).resolve().parent))

from settings import RATE_SCRIPT, Settings, rate_keys, settings

REQUESTS = Counter("gateway_requests_total", "Requests", ["route", "method", "status"])
DURATION = Histogram("gateway_request_duration_seconds", "Duration", ["route"])
NOT_FORWARDED = {"authorization", "connection", "host", "x-user-id", "x-user-scopes", "content-length"}
NOT_RETURNED = {"connection", "transfer-encoding", "content-length", "content-encoding"}


class Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code
        super().__init__(code)


class Gateway:
    def __init__(self, options: Settings) -> None:
        self.options = options
        self.keys = KeySet.import_key_set(json.loads(Path(options.jwks_file).read_text()))
        self.claims = jwt.JWTClaimsRegistry(
            leeway=30, iss={"essential": True, "value": options.issuer}, aud={"essential": True, "value": options.audience},
            exp={"essential": True},
        )  # fmt: skip
        self.redis = redis.asyncio.Redis(host="127.0.0.1", port=options.redis_port)
        self.rate = self.redis.register_script(RATE_SCRIPT)
        self.access_log = open(options.access_log, "a")  # noqa: SIM115

    async def run_client(self, app: web.Application) -> Any:
        connector = aiohttp.TCPConnector(limit=100, keepalive_timeout=60)
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as self.client:
            yield

    async def handle(self, request: web.Request) -> web.Response:
        started = time.time()
        facts: dict[str, Any] = {"request_id": request.headers.get("X-Request-ID") or str(uuid.uuid4())}
        try:
            route = self.match(request.path)
            facts["route_id"] = route
            claims = self.authenticate(request)
            facts["user_id"] = claims["sub"]
            await self.limit(route, claims["sub"])
            response = await self.proxy(request, claims, facts)
        except Refused as error:
            response = self.refusal(error.status, error.code, facts)
        except (aiohttp.ClientError, TimeoutError):
            response = self.refusal(502, "bad_gateway", facts)
        response.headers["X-Request-ID"] = facts["request_id"]
        self.record(request, response, facts, started)
        return response

    def match(self, path: str) -> str:
        for route in self.options.limits:
            if path.startswith(f"{self.options.prefix}/{route}/"):
                return route
        raise Refused(404, "route_not_found")

    def authenticate(self, request: web.Request) -> dict[str, Any]:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
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
        if await self.rate(keys=[current, previous], args=[weight, self.options.limits[route], 2 * window_s]) < 0:
            raise Refused(429, "rate_limit_exceeded")

    async def proxy(self, request: web.Request, claims: dict[str, Any], facts: dict[str, Any]) -> web.Response:
        headers = CIMultiDict(
            (name, value) for name, value in request.headers.items() if name.lower() not in NOT_FORWARDED
        )
        headers["X-User-ID"] = claims["sub"]
        headers["X-User-Scopes"] = claims.get("scope", "")
        headers["X-Request-ID"] = facts["request_id"]
        headers["X-Forwarded-For"] = request.remote or ""
        url = self.options.backend + request.path_qs[len(self.options.prefix) :]
        sent = time.time()
        body = await request.read() if request.can_read_body else None
        async with self.client.request(request.method, url, headers=headers, data=body) as response:
            content = await response.read()
            returned = CIMultiDict(
                (name, value) for name, value in response.headers.items() if name.lower() not in NOT_RETURNED
            )
        facts["upstream_latency_ms"] = (time.time() - sent) * 1000
        return web.Response(status=response.status, body=content, headers=returned)

    def refusal(self, status: int, code: str, facts: dict[str, Any]) -> web.Response:
        facts["error_type"] = code
        return web.json_response({"error": code, "request_id": facts["request_id"]}, status=status)

    def record(self, request: web.Request, response: web.Response, facts: dict[str, Any], started: float) -> None:
        elapsed = time.time() - started
        entry = facts | {
            "timestamp": started, "method": request.method, "path": request.path, "status": response.status,
            "client_ip": request.remote, "user_agent": request.headers.get("User-Agent"),
            "total_latency_ms": elapsed * 1000, "response_bytes": response.content_length,
        }  # fmt: skip
        self.access_log.write(json.dumps(entry) + "\n")
        route = facts.get("route_id", "none")
        REQUESTS.labels(route, request.method, str(response.status)).inc()
        DURATION.labels(route).observe(elapsed)


def main() -> None:
    options = settings()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(options.certificate_file, options.key_file)
    gateway = Gateway(options)
    app = web.Application()
    app.cleanup_ctx.append(gateway.run_client)
    app.router.add_route("*", "/{path:.*}", gateway.handle)
    web.run_app(
        app, host="127.0.0.1", port=options.port, ssl_context=context, access_log=None, print=None,
        loop=uvloop.new_event_loop(), backlog=1024,
    )  # fmt: skip


if __name__ == "__main__":
    main()
