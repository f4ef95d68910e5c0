"""Resident memory of the gateway: with 5,000 routes, then with 5,000 idle TLS connections on top."""

import resource
import time

from load import Plan
from measure import Generator
from peers.apigw import Apigw
from world import World

ROUTES = 5000
CONNECTIONS = 5000
ROUTES_TARGET_MIB = 80
CONNECTIONS_TARGET_MIB = 400
SETTLE_S = 3.0  # for what a start leaves to collect
KEEPALIVE_S = 600  # connections outlive the measurement


def raise_file_limit() -> int:
    """As many open files as this user may have, for the gateways started from here too."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def report(world: World) -> dict[str, float]:
    connections = min(CONNECTIONS, raise_file_limit() - 500)
    running = Apigw(extra_routes=ROUTES - 3, keepalive_s=KEEPALIVE_S).start(world)
    try:
        time.sleep(SETTLE_S)
        routes_bytes = running.process.resident_bytes()
        plan = Plan(
            port=running.port, requests=world.requests(running.port), connections=connections,
            addresses=[f"127.0.0.{number}" for number in range(2, 12)],
        )  # fmt: skip
        with Generator("idle", plan, world.folder) as generator:
            seconds = generator.work()["seconds"]
            time.sleep(SETTLE_S)
            connections_bytes = running.process.resident_bytes()
    finally:
        running.process.stop()
    each = (connections_bytes - routes_bytes) / connections / 1024
    print(
        f"\nmemory: {routes_bytes / 2**20:.1f} MiB resident with {ROUTES} routes (target {ROUTES_TARGET_MIB})\n"
        f"memory: {connections_bytes / 2**20:.1f} MiB with {connections} idle TLS connections besides"
        f" (target {CONNECTIONS_TARGET_MIB}), {each:.1f} KiB each; {connections / seconds:.0f} handshakes and requests/s"
    )
    return {
        "routes": ROUTES,
        "routes_mib": routes_bytes / 2**20,
        "connections": connections,
        "connections_mib": connections_bytes / 2**20,
        "connection_kib": each,
    }
