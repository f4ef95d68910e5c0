"""The gateway of this repository, as its daemon, from a configuration file."""

from pathlib import Path
from typing import Any

import job
import yaml
from identity import AUDIENCE, ISSUER
from processes import Process, free_port
from world import REPOSITORY, World

from peers.base import Missing, Running


def tiers() -> list[dict[str, Any]]:
    per_user = {"window_seconds": job.WINDOW_S, "per": "user_id"}
    per_address = {"window_seconds": job.WINDOW_S, "per": "client_ip"}
    return [
        {"tier": "standard", "limit": job.LIMIT, **per_user},
        {"tier": "limited", "limit": job.LIMITED, **per_user},
        {"tier": "unauthenticated", "limit": job.LIMIT, **per_address},
        {"tier": "exhausted", "limit": 1, "window_seconds": 3600, "per": "global"},
    ]


def route(route_id: str, pattern: str, tier: str = "standard") -> dict[str, Any]:
    return {
        "route_id": route_id, "pattern": pattern, "methods": ["GET", "POST"], "backend_service": "backend",
        "strip_prefix": job.PREFIX, "auth_required": True, "auth_type": "jwt", "rate_limit_tier": tier,
        "rate_limit_fail_mode": "open", "timeout_ms": 10_000, "priority": "P0",
    }  # fmt: skip


def extra_pattern(number: int) -> str:
    """Patterns of a large table: some hundred owners, several services each."""
    return f"/api/v2/team{number % 97}/service{number}/*"


class Apigw:
    """`extra_routes` are added to the three of the job; `keepalive_s` is for idle connections."""

    notes = ""
    uses_redis = True

    def __init__(self, name: str = "apigw", extra_routes: int = 0, keepalive_s: int = 75) -> None:
        self.name = name
        self._extra_routes = extra_routes
        self._keepalive_s = keepalive_s

    def start(self, world: World) -> Running:
        twistd = REPOSITORY / ".venv/bin/twistd"
        if not (REPOSITORY / "twisted/plugins/apigw_plugin.py").exists() or not twistd.exists():
            raise Missing("make run builds .venv and the gateway")
        folder = world.subfolder(self.name)
        (folder / "state").mkdir()
        port = free_port()
        configuration = self._configuration(world, folder, port)
        file = folder / "apigw.yaml"
        file.write_text(yaml.dump(configuration, Dumper=yaml.CSafeDumper, sort_keys=False))
        command = [str(twistd), "-n", "--pidfile=", "apigw", "--config", str(file)]
        process = Process(self.name, command, folder / "output.log", cwd=REPOSITORY)
        process.wait_for_port(port)
        return Running(process, port, folder / "access.log")

    def _configuration(self, world: World, folder: Path, port: int) -> dict[str, Any]:
        certificate = {"cert_file": str(world.identity.certificate_file), "key_file": str(world.identity.key_file)}
        routes = [
            route("users", "/api/v2/users/*"),
            route("limited", "/api/v2/limited/*", "limited"),
            route("exhausted", "/api/v2/exhausted/*", "exhausted"),
        ]
        routes += [route(f"extra-{n}", extra_pattern(n)) for n in range(self._extra_routes)]
        instance = {"host": "127.0.0.1", "port": world.backend_port, "weight": 1}
        return {
            "gateway": {"instance_name": "bench", "workers": 1, "state_dir": str(folder / "state")},
            "listeners": [{"address": "127.0.0.1", "port": port, "tls": {"certificates": [certificate]}}],
            "admin": {"address": "127.0.0.1", "port": free_port()},
            "limits": {"max_connections_per_ip": 10_000, "keepalive_timeout_seconds": self._keepalive_s},
            "auth": {"jwt": {"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": str(world.identity.jwks_file)}},
            "redis": {"url": f"redis://127.0.0.1:{world.redis_port}/0", "timeout_ms": 50},
            "rate_limits": {"store": "redis", "tiers": tiers()},  # one limit a user, as with every peer
            "access_log": {"sinks": [{"type": "file", "path": str(folder / "access.log")}]},
            "backends": [{"name": "backend", "owner": "bench", "min_connections": 10, "instances": [instance]}],
            "routes": routes,
        }
