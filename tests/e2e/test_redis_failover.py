"""A daemon over sentinels and over a cluster, under load, while a master dies: no client meets an error."""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apigw.core.cluster_slots import slot_of
from apigw.names import REVOKED_TOKENS
from tests.certificates import self_signed
from tests.e2e.conftest import Launch
from tests.e2e.gateway import Gateway
from tests.e2e.identity import bearer
from tests.e2e.load import Load, median
from tests.e2e.test_apigwctl import ctl
from tests.e2e.test_rate_limits import on_redis
from tests.redis_cluster import ClusterSet, cluster_set
from tests.redis_sentinel import SentinelSet, sentinel_set, wait_for
from tests.servers import RedisServer

pytestmark = pytest.mark.alone

BACK_S = 2.0  # the contract: enforcement is back so soon
_numbers = itertools.count()


@pytest.fixture
def sentinels() -> Iterator[SentinelSet]:
    with sentinel_set(password="s3cret") as servers:
        yield servers


@pytest.fixture
def cluster() -> Iterator[ClusterSet]:
    with cluster_set() as servers:
        yield servers


def over(url: str, **section: Any) -> Callable[[Gateway], None]:
    """The configuration of test_rate_limits.py over another Redis."""

    def change(gateway: Gateway) -> None:
        on_redis(1)(gateway)
        gateway.settings["redis"] = {"url": url, "timeout_ms": 50, **section}

    return change


def launched(launch: Launch, url: str, **section: Any) -> Gateway:
    gateway = launch(over(url, **section))
    gateway.until(lambda: gateway.metric("redis_up") == 1)
    return gateway


def anybody() -> str:
    return f"user{next(_numbers)}"


def enforced(gateway: Gateway, user: Callable[[], str] = anybody) -> bool:
    """Whether somebody new is refused after the five requests of the limit."""
    token = bearer(user())
    with gateway.client() as client:
        statuses = [client.request("GET", "/user/x", [token]).status for _ in range(6)]
    assert set(statuses) <= {200, 429}, statuses
    return statuses == [200] * 5 + [429]


def back_after(gateway: Gateway, new: RedisServer, user: Callable[[], str] = anybody) -> float:
    """Seconds from the promotion of `new` until the first request of somebody who is limited."""
    wait_for(lambda: new.command("ROLE")[0] == b"master", 30)
    promoted_s = time.monotonic()
    while True:
        began_s = time.monotonic()
        if enforced(gateway, user):
            return began_s - promoted_s
        assert began_s - promoted_s < BACK_S, "it is not enforced in time"
        time.sleep(0.02)


def test_the_master_behind_sentinels_is_killed_under_load(launch: Launch, sentinels: SentinelSet) -> None:
    """No request fails meanwhile; the limit is back within 2 s of the promotion; nothing secret is told."""
    gateway = launched(launch, sentinels.url, sentinel_password=sentinels.sentinel_password)
    assert enforced(gateway)
    with Load(gateway.http, clients=2, target="/many/x", pause_s=0.01) as load:
        load.wait_for(20)
        sentinels.servers[0].kill()
        gateway.until(lambda: gateway.metric("redis_up") == 0)
        assert back_after(gateway, sentinels.servers[1]) < BACK_S
        load.wait_for(20)
    assert load.failed() == [] and load.connects_refused == 0
    assert median([one.took_s for one in load.outcomes]) < 0.1
    assert gateway.metric("rate_limit_decisions_total", decision="fail_open") > 0
    gateway.until(lambda: gateway.metric("redis_up") == 1)
    shown = gateway.page("/config").body.decode() + gateway.output.read_text() + str(gateway.status())
    assert "the sentinels name another master" in shown
    assert "s3cret" not in shown and sentinels.sentinel_password not in shown


def test_the_master_behind_sentinels_moves_under_load(launch: Launch, sentinels: SentinelSet) -> None:
    """The old one is alive and becomes a replica; neither it nor the new one makes a request fail."""
    gateway = launched(launch, sentinels.url, sentinel_password=sentinels.sentinel_password)
    with Load(gateway.http, clients=2, target="/many/x", pause_s=0.01) as load:
        load.wait_for(20)
        new = sentinels.fail_over()
        assert back_after(gateway, new) < BACK_S
        load.wait_for(20)
    assert load.failed() == []


def test_a_master_of_a_cluster_is_killed_under_load(launch: Launch, cluster: ClusterSet) -> None:
    """Users of other slots are limited all the time; those of its slots again within 2 s of the promotion."""
    gateway = launched(launch, cluster.url)

    def user_at(mine: bool) -> Callable[[], str]:
        def user() -> str:
            while True:
                name = anybody()
                if (slot_of(f"rate:{{user:user:{name}}}") < 5462) is mine:
                    return name

        return user

    assert enforced(gateway, user_at(True)) and enforced(gateway, user_at(False))
    with Load(gateway.http, clients=2, target="/many/x", pause_s=0.01) as load:
        load.wait_for(20)
        cluster.masters[0].kill()
        gateway.until(lambda: gateway.metric("redis_up") == 0)
        assert not enforced(gateway, user_at(True)), "fail mode open"
        assert enforced(gateway, user_at(False))
        assert back_after(gateway, cluster.replicas[0], user_at(True)) < BACK_S
        load.wait_for(20)
    assert load.failed() == [] and load.connects_refused == 0
    gateway.until(lambda: gateway.metric("redis_up") == 1)


def test_slots_of_a_cluster_move_under_load(launch: Launch, cluster: ClusterSet) -> None:
    """The slot of a counter goes there and back while it is counted on; it has what was let through."""
    gateway = launched(launch, cluster.url)
    slot = slot_of("rate:{many:ip:127.0.0.1}")
    source = cluster.master_of(slot)
    target = next(master for master in cluster.masters if master is not source)
    with Load(gateway.http, clients=2, target="/many/x", pause_s=0.005) as load:
        load.wait_for(20)
        for one, other in ((source, target), (target, source)) * 3:
            cluster.begin_move(slot, one, other)
            load.wait_for(10)
            while cluster.move_keys(slot, one, other):
                pass
            load.wait_for(10)
            cluster.end_move(slot, one, other)
    assert load.failed() == []
    keys = [key for key in source.command("KEYS", "rate:{many:ip:127.0.0.1}:*")]
    counted = sum(int(source.command("GET", key)) for key in keys)
    unsure = gateway.metric("rate_limit_decisions_total", decision="fail_open")
    assert unsure <= len(load.outcomes) / 50
    assert len(load.outcomes) - unsure <= counted <= len(load.outcomes)


def revoked_everywhere(gateways: list[Gateway], jti: str) -> None:
    """By hand, through the URL that the gateways have; refused on all of them at once."""
    token = bearer("ann", jti=jti)
    for gateway in gateways:
        gateway.until(lambda gateway=gateway: gateway.metric("shared_store_listening") == 1)
        assert gateway.ask("GET", "/api/x", token).status == 200
    ctl(gateways[0], "tokens", "revoke", "-", stdin=token[1].removeprefix("Bearer "))
    for gateway in gateways:
        gateway.until(lambda gateway=gateway: gateway.ask("GET", "/api/x", token).status == 401, 1.5)


def test_revocations_travel_through_a_cluster_before_and_after_a_failover(launch: Launch, cluster: ClusterSet) -> None:
    """Whichever nodes the gateways listen to."""
    gateways = [launched(launch, cluster.url) for _ in range(3)]
    revoked_everywhere(gateways, "before")
    slot = slot_of(REVOKED_TOKENS)
    old = cluster.master_of(slot)
    old.kill()
    replica = cluster.replicas[cluster.masters.index(old)]
    wait_for(lambda: replica.command("ROLE")[0] == b"master", 30)
    for gateway in gateways:
        gateway.until(lambda gateway=gateway: gateway.metric("shared_store_up") == 1)
        assert gateway.ask("GET", "/api/x", bearer("ann", jti="before")).status == 401
    revoked_everywhere(gateways, "after")


def test_revocations_travel_through_the_master_that_sentinels_name(launch: Launch, sentinels: SentinelSet) -> None:
    gateways = [launched(launch, sentinels.url, sentinel_password=sentinels.sentinel_password) for _ in range(2)]
    revoked_everywhere(gateways, "before")
    new = sentinels.fail_over()
    for gateway in gateways:
        gateway.until(lambda gateway=gateway: gateway.status()["redis"]["master"] == f"127.0.0.1:{new.port}")
    revoked_everywhere(gateways, "after")


def test_over_tls_to_a_cluster_with_a_password(launch: Launch, tmp_path: Path) -> None:
    """A file of the configuration's folder is all that is trusted."""
    self_signed(tmp_path)
    with cluster_set(replicas=False, password="s3cret", tls=tmp_path) as cluster:
        gateway = launched(launch, cluster.url, ca_file=str(tmp_path / "cert.pem"))
        assert enforced(gateway)
        shown = gateway.page("/config").json()["redis"]
        assert shown["url"] == cluster.url.replace("s3cret", "***") and shown["ca_file"].endswith("cert.pem")
        assert "s3cret" not in gateway.output.read_text()
