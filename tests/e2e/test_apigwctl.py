"""apigwctl beside the real daemon, on one configuration file."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import frozen

from tests.e2e.conftest import Launch
from tests.e2e.gateway import CHECKOUT, Gateway, backend, protected, quiet_port, route
from tests.e2e.identity import bearer, token
from tests.e2e.test_api_keys import ask, with_keys
from tests.redis_cluster import ClusterSet, cluster_set
from tests.redis_sentinel import SentinelSet, sentinel_set
from tests.servers import redis_server


@frozen
class Ran:
    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def ctl(gateway: Gateway, *words: str, stdin: str = "", status: int = 0) -> Ran:
    """`apigwctl --config FILE WORDS`, in a process of its own, which must end with this status."""
    done = subprocess.run(
        [sys.executable, "-m", "apigw.cli.main", "--config", str(gateway.main_file), *words],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


def test_a_key_made_is_let_in_rotated_lives_on_and_revoked_is_refused_within_five_seconds(launch: Launch) -> None:
    def change(gateway: Gateway) -> None:
        with_keys(f"sqlite:///{gateway.work}/keys.db")(gateway)

    gateway = launch(change)
    made = ctl(gateway, "keys", "create", "--partner", "acme", "--tier", "three", "--json").json()
    assert ask(gateway, made["key"], "/limited/x").get("X-RateLimit-Limit") == "3"
    successor = ctl(gateway, "keys", "rotate", made["key_id"], "--json").json()
    assert [ask(gateway, key).status for key in (made["key"], successor["key"])] == [200, 200]
    ctl(gateway, "keys", "revoke", made["key_id"])
    began_s = time.monotonic()
    gateway.until(lambda: ask(gateway, made["key"]).status == 401, 6.0)
    assert time.monotonic() - began_s < 6.0, "5 s, and the second that a refusal takes"
    assert ask(gateway, successor["key"]).status == 200
    shown = gateway.access_log.read_text() + gateway.output.read_text()
    assert all(key["key"].rsplit("_", 1)[1] not in shown for key in (made, successor))


def test_with_redis_a_revoked_key_is_refused_at_once_on_every_gateway(launch: Launch) -> None:
    """Without the second that a refusal takes, within a fraction of one; with Redis gone, within five seconds."""
    with redis_server() as redis:

        def change(gateway: Gateway) -> None:
            with_keys(database)(gateway)
            gateway.settings["redis"] = {"url": redis.url, "timeout_ms": 200}

        database = f"sqlite:///{launch(start=False).work}/keys.db"
        gateways = [launch(change) for _ in range(2)]
        for gateway in gateways:
            gateway.until(lambda: gateway.metric("shared_store_listening") == 1)
        first, second = [
            ctl(gateways[0], "keys", "create", "--partner", "acme", "--json").json() for _ in ("first", "second")
        ]
        for gateway in gateways:
            assert [ask(gateway, key["key"]).status for key in (first, second)] == [200, 200]
        assert ctl(gateways[0], "keys", "revoke", first["key_id"]).err == ""
        began_s = time.monotonic()
        assert [ask(gateway, first["key"]).status for gateway in gateways] == [401, 401]
        assert time.monotonic() - began_s < 5.0, "a refusal takes a second"
        redis.kill()
        said = ctl(gateways[0], "keys", "revoke", second["key_id"]).err
        assert "Redis does not answer" in said and "within 5 seconds" in said
        for gateway in gateways:
            gateway.until(lambda: ask(gateway, second["key"]).status == 401, 6.0)


def test_a_key_ends_with_the_overlap_that_was_asked_for(launch: Launch) -> None:
    def change(gateway: Gateway) -> None:
        with_keys(f"sqlite:///{gateway.work}/keys.db")(gateway)

    gateway = launch(change)
    made = ctl(gateway, "keys", "create", "--partner", "acme", "--json").json()
    successor = ctl(gateway, "keys", "rotate", made["key_id"], "--overlap", "3s", "--json").json()
    assert ask(gateway, successor["key"]).status == 200
    gateway.until(lambda: ask(gateway, made["key"]).status == 401, 10.0)
    assert ask(gateway, successor["key"]).status == 200


def test_who_still_calls_without_credentials_is_told_by_route_and_caller(launch: Launch) -> None:
    """From a log that the daemon wrote; one that failed afterwards counts too, one that was refused does not."""

    def change(gateway: Gateway) -> None:
        gateway.settings["backends"] += [backend("dead", quiet_port(), unhealthy_after=1000)]
        gateway.settings["routes"] += [
            protected("grace", "/grace/*", auth_grace_period=True, required_scopes=["read"]),
            protected("broken", "/broken/*", backend_service="dead", auth_grace_period=True),
            protected("unused", "/unused/*", auth_grace_period=True),
        ]

    gateway = launch(change)
    old, new = ("User-Agent", "old-app/1.0"), ("User-Agent", "new-app/2.0")
    assert [gateway.ask("GET", "/grace/x", old).status for _ in range(3)] == [200] * 3
    assert gateway.ask("GET", "/grace/x", new, bearer()).status == 200
    assert gateway.ask("GET", "/grace/x", old, ("Authorization", "Bearer wrong")).status == 401
    last = gateway.ask("GET", "/broken/x", old)
    assert last.status == 502
    gateway.entry(last.get("X-Request-ID"))
    gateway.access_log.rename(gateway.work / "access.log.1")
    gateway.signal(signal.SIGUSR1)
    gateway.until(gateway.access_log.exists)
    gateway.entry(gateway.ask("GET", "/grace/x", new).get("X-Request-ID"))

    said = ctl(gateway, "usage", "--unauthenticated", "--json").json()["routes"]
    found = {one["route_id"]: one for one in said}
    assert found.keys() == {"grace", "broken", "unused"}
    assert (found["grace"]["unauthenticated"], found["grace"]["requests"], found["grace"]["others"]) == (4, 6, 0)
    callers = [(one["user_agent"], one["client_ip"], one["requests"]) for one in found["grace"]["callers"]]
    assert callers == [("old-app/1.0", "127.0.0.1", 3), ("new-app/2.0", "127.0.0.1", 1)]
    assert (found["broken"]["unauthenticated"], found["broken"]["requests"]) == (1, 1)
    assert found["unused"]["share"] == 0.0
    for name, count in (("grace", 4), ("broken", 1), ("unused", 0)):
        assert gateway.metric("auth_grace_total", route=name) == count
    assert "old-app/1.0" in ctl(gateway, "usage", "--unauthenticated").out
    by_route = {
        one["route"]: one["requests"] for one in ctl(gateway, "usage", "--by", "route", "--json").json()["usage"]
    }
    assert by_route == {"grace": 6, "broken": 1}
    assert json.loads(ctl(gateway, "logs", "--status", "5xx", "--json").out)["route_id"] == "broken"


def test_a_change_is_checked_reloaded_and_the_gateway_drained_by_hand(launch: Launch) -> None:
    gateway = launch()
    gateway.settings["routes"].append(route("late", "/late/*"))
    gateway.write()
    ctl(gateway, "check")
    ctl(gateway, "reload")
    assert "/late/*" in ctl(gateway, "routes").out
    gateway.settings["routes"].append(route("late", "/late/*"))
    gateway.write()
    assert "route_id 'late' stands twice" in ctl(gateway, "check", status=1).err
    assert "stays in force" in ctl(gateway, "reload", status=1).err
    assert ctl(gateway, "status", "--json").json()["ready"] is True
    assert "origin" in ctl(gateway, "backends").out
    gateway.settings["routes"].pop()
    gateway.write()
    assert "has ended" in ctl(gateway, "drain").out
    assert gateway.wait(1) == 0
    assert "no gateway answers" in ctl(gateway, "status", status=1).err


def test_a_token_revoked_by_hand_is_refused_on_every_gateway_and_a_user_until_the_next_token(launch: Launch) -> None:
    with redis_server() as redis:

        def change(gateway: Gateway) -> None:
            gateway.settings["redis"] = {"url": redis.url}

        gateways = [launch(change) for _ in range(2)]
        for gateway in gateways:
            gateway.until(lambda: gateway.metric("shared_store_listening") == 1)
        now_s = int(time.time())
        one, other, bobs = token(jti="one"), token(jti="other"), token("bob", iat=now_s - 5)
        newer = ("Authorization", f"Bearer {token('bob', iat=now_s + 20)}")

        def statuses(*tokens: str) -> list[int]:
            headers = [("Authorization", f"Bearer {each}") for each in tokens]
            return [gateway.ask("GET", "/api/x", header).status for header in headers for gateway in gateways]

        assert statuses(one, other, bobs) == [200] * 6
        said = ctl(gateways[0], "tokens", "revoke", "-", "--json", stdin=one)
        assert said.json()["heard_by"] == 2 and said.err == ""
        gateways[0].until(lambda: statuses(one) == [401, 401])
        assert statuses(other) == [200, 200]
        ctl(gateways[0], "tokens", "revoke", "--user", "bob", "--expires-in", "1h")
        gateways[0].until(lambda: statuses(bobs) == [401, 401])
        assert [gateway.ask("GET", "/api/x", newer).status for gateway in gateways] == [200, 200]
        listed = ctl(gateways[0], "tokens", "list", "--json").json()
        assert [entry.get("jti") or entry["user_id"] for entry in listed] == ["one", "bob"]
        redis.kill()
        assert "Redis does not answer" in ctl(gateways[0], "tokens", "revoke", "-", stdin=other, status=1).err
        assert statuses(one, bobs) == [401] * 4


@pytest.fixture(params=[sentinel_set, cluster_set])
def several(request: pytest.FixtureRequest) -> Iterator[SentinelSet | ClusterSet]:
    """A Redis that is several servers, with a password."""
    with request.param(password="s3cret") as servers:
        yield servers


def test_sentinels_and_clusters_are_told_of_keys_and_tokens_too(
    launch: Launch, several: SentinelSet | ClusterSet
) -> None:
    """What apigwctl writes where the URL leads, gateways hear of at once; a checked key is gone from it."""

    def change(gateway: Gateway) -> None:
        with_keys(f"sqlite:///{gateway.work}/keys.db")(gateway)
        gateway.settings["redis"] = {"url": several.url, "timeout_ms": 500}
        if isinstance(several, SentinelSet):
            gateway.settings["redis"]["sentinel_password"] = several.sentinel_password

    gateway = launch(change)
    gateway.until(lambda: gateway.metric("shared_store_listening") == 1, 20)
    made = ctl(gateway, "keys", "create", "--partner", "acme", "--json").json()
    assert ask(gateway, made["key"]).status == 200
    ran = ctl(gateway, "keys", "revoke", made["key_id"])
    assert ran.err == ""
    assert ask(gateway, made["key"]).status == 401
    text = token(jti="many")
    header = ("Authorization", f"Bearer {text}")
    assert gateway.ask("GET", "/api/x", header).status == 200
    ran = ctl(gateway, "tokens", "revoke", "-", "--json", stdin=text)
    assert "s3cret" not in ran.out + ran.err
    gateway.until(lambda: gateway.ask("GET", "/api/x", header).status == 401)
    assert [one["jti"] for one in ctl(gateway, "tokens", "list", "--json").json()] == ["many"]
