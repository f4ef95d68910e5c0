"""Instances in Consul, by a double of its documented API (tests/consul.py says how faithful)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from apigw.adapters import registry_consul
from apigw.adapters.registry_consul import ConsulRegistry
from apigw.config.model import Discovery
from apigw.core.discovery import Entry
from tests.adapters.registry_world import REACTOR, Flood, RawServer, answer, watching
from tests.consul import Consul
from tests.servers import turns, until


@pytest.fixture
def consul() -> Iterator[Consul]:
    made = Consul(REACTOR)
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.close()))


def at(url: str, **more: Any) -> Discovery:
    return Discovery("consul", "orders", url=url, **more)


@pytest_twisted.ensureDeferred
async def test_instances_come_change_and_go_within_a_moment(consul: Consul) -> None:
    consul.register("orders", "1", "10.0.0.1", 80)
    with watching(ConsulRegistry, at(consul.url)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        await until(lambda: consul.held, REACTOR)
        consul.register("orders", "2", "10.0.0.2", 81, weight=5)
        assert await watch.until_hosts("10.0.0.1:80*1", "10.0.0.2:81*5") < 3
        consul.register("orders", "1", "10.0.0.1", 80, passing=False)
        await watch.until_hosts("10.0.0.2:81*5")
        consul.deregister("orders", "2")
        await until(lambda: watch.registry.empty_since_s is not None, REACTOR)
        assert watch.hosts == ["10.0.0.2:81*5"] and watch.registry.up


@pytest_twisted.ensureDeferred
async def test_what_is_asked(consul: Consul, tmp_path: Path) -> None:
    """Tag, datacenter and token; then with the index of the last answer, held."""
    (tmp_path / "token").write_text("s3cret\n")
    consul.token = "s3cret"
    consul.register("a b/c", "1", "10.0.0.1", 80, tags=("blue",))
    consul.register("a b/c", "2", "10.0.0.2", 80, tags=("green",))
    wanted = Discovery(
        "consul", "a b/c", url=consul.url + "/", tag="blue", datacenter="dc1", token_file=tmp_path / "token"
    )
    with watching(ConsulRegistry, wanted) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        await until(lambda: consul.held, REACTOR)
        first = {"service": "a b/c", "passing": "1", "tag": "blue", "dc": "dc1"}
        assert consul.queries == [first, first | {"index": str(consul.index), "wait": "30s"}]
        consul.token = "rotated"
        (tmp_path / "token").write_text("rotated")
        consul.changed()
        await until(lambda: len(consul.queries) == 3, REACTOR)
        assert watch.registry.failures == 0


@pytest_twisted.ensureDeferred
async def test_an_address_of_its_own_comes_before_that_of_its_node(consul: Consul) -> None:
    consul.register("orders", "1", "", 80, node_address="10.1.1.1", weight=None)
    consul.register("orders", "2", "10.0.0.2", 80, node_address="10.1.1.1", weight=2)
    with watching(ConsulRegistry, at(consul.url)) as watch:
        await watch.until_hosts("10.1.1.1:80*1", "10.0.0.2:80*2")


@pytest_twisted.ensureDeferred
async def test_an_index_that_goes_backwards_is_forgotten(consul: Consul) -> None:
    """Else every query would be held until the index had grown again, and changes would go unheard."""
    consul.register("orders", "1", "10.0.0.1", 80)
    consul.index = 1000
    with watching(ConsulRegistry, at(consul.url)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        await until(lambda: consul.held, REACTOR)
        consul.restore(5)
        await until(lambda: consul.queries[-1].get("index") == "5", REACTOR, 15)
        assert "index" not in consul.queries[2]
        consul.register("orders", "2", "10.0.0.2", 80)
        await watch.until_hosts("10.0.0.1:80*1", "10.0.0.2:80*1")


@pytest_twisted.ensureDeferred
async def test_an_index_of_nought_or_none_is_never_gone_by(consul: Consul) -> None:
    for index, without in ((0, False), (7, True)):
        consul.index, consul.without_index = index, without
        consul.queries.clear()
        consul._services.clear()
        consul._services["orders"] = {}
        with watching(ConsulRegistry, at(consul.url)) as watch:
            await watch.until_up()
            await turns(REACTOR, 1.0)
            assert consul.queries == [{"service": "orders", "passing": "1"}], "and it is not asked all the time"


@pytest_twisted.ensureDeferred
async def test_changes_of_other_services_are_no_changes(consul: Consul) -> None:
    consul.register("orders", "1", "10.0.0.1", 80)
    with watching(ConsulRegistry, at(consul.url)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        for number in range(20):
            consul.register("users", str(number), "10.0.1.1", 80)
            await turns(REACTOR, 0.05)
        assert len(watch.lists) == 1 and len(consul.queries) < 10, "heard at a bounded rate"


@pytest_twisted.ensureDeferred
async def test_an_empty_list_is_believed_when_it_has_lasted(consul: Consul) -> None:
    """Though it is the same answer again and again."""
    consul.register("orders", "1", "10.0.0.1", 80)
    with watching(ConsulRegistry, at(consul.url, empty_after_s=1.0)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        consul.deregister("orders", "1")
        await until(lambda: watch.registry.empty_since_s is not None, REACTOR)
        consul.changed()
        await turns(REACTOR, 0.6)
        assert watch.hosts == ["10.0.0.1:80*1"]
        await turns(REACTOR, 0.6)
        consul.changed()
        await watch.until_hosts()


@pytest_twisted.ensureDeferred
async def test_a_held_query_that_ends_without_news_is_no_failure(
    consul: Consul, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_consul, "WAIT_S", 1)
    consul.register("orders", "1", "10.0.0.1", 80)
    with watching(ConsulRegistry, at(consul.url)) as watch:
        await until(lambda: len(consul.queries) >= 4, REACTOR, 15)
        assert watch.registry.failures == 0 and len(watch.lists) == 1


@pytest_twisted.ensureDeferred
async def test_a_consul_that_goes_away_leaves_the_list_and_is_found_again(consul: Consul) -> None:
    consul.register("orders", "1", "10.0.0.1", 80)
    with watching(ConsulRegistry, at(consul.url)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        await consul.close()
        await watch.until_down()
        assert watch.hosts == ["10.0.0.1:80*1"]
        again = Consul(REACTOR, consul.port)
        again.register("orders", "2", "10.0.0.2", 80)
        await watch.until_hosts("10.0.0.2:80*1", timeout_s=20)
        await again.close()


@pytest_twisted.ensureDeferred
async def test_without_a_leader_or_a_permission_it_is_down_and_says_so(consul: Consul) -> None:
    consul.leaderless = True
    with watching(ConsulRegistry, at(consul.url)) as watch:
        await watch.until_down()
        assert watch.registry.last_error == "status 500: No cluster leader"
        consul.leaderless, consul.token = False, "s3cret"
        await until(lambda: watch.registry.last_error == "status 403: Permission denied", REACTOR)


@pytest_twisted.ensureDeferred
async def test_a_consul_that_hangs_counts_as_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_consul, "ANSWER_S", 0.3)
    server = RawServer(lambda wire: None)
    with watching(ConsulRegistry, at(server.url), known=(Entry("10.0.0.1", 80),)) as watch:
        await watch.until_down()
        assert watch.hosts == ["10.0.0.1:80*1"] and watch.registry.last_error == "no answer within 0.3 s"
    await server.close()


GARBAGE = {
    "not HTTP": b"\x00\x01\x02\r\n\r\n",
    "a page": answer(b"<html>"),
    "an object": answer(b"{}"),
    "words of another kind": answer(b"[1, {}, null]"),
    "an error": answer(b"\x1b[2J\r\nfake: log line", b"500 Oops"),
    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[",
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest_twisted.ensureDeferred
async def test_garbage_is_a_failure_in_one_line_and_the_list_stays(name: str) -> None:
    def say(wire: Any) -> None:
        wire.transport.write(GARBAGE[name])
        wire.transport.loseConnection()

    server = RawServer(say)
    with watching(ConsulRegistry, at(server.url), known=(Entry("10.0.0.1", 80),)) as watch:
        await watch.until_down()
        assert watch.hosts == ["10.0.0.1:80*1"] and watch.lists == []
        assert watch.registry.last_error and watch.registry.last_error.isprintable()
    await server.close()


@pytest_twisted.ensureDeferred
async def test_a_hundred_megabytes_are_not_held() -> None:
    flood = Flood(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n", b"x" * 500_000)
    server = RawServer(flood.say)
    with watching(ConsulRegistry, at(server.url)) as watch:
        await watch.until_down()
        assert "too large" in str(watch.registry.last_error) and flood.sent_bytes < 30_000_000
    await server.close()


@pytest_twisted.ensureDeferred
async def test_of_ten_thousand_instances_the_first_thousand_serve() -> None:
    entries = [
        {
            "Node": {"Address": ""},
            "Service": {"Address": f"10.{n // 65_025}.{n // 255 % 255}.{n % 255 + 1}", "Port": 80},
        }
        for n in range(10_000)
    ]
    server = RawServer(
        lambda wire: wire.transport.write(answer(orjson.dumps(entries), b"200 OK", b"X-Consul-Index: 9"))
    )
    with watching(ConsulRegistry, at(server.url)) as watch:
        await watch.until_up()
        assert len(watch.hosts) == 1000 and watch.registry.skipped == {"too_many": 9000}
    await server.close()


@pytest_twisted.ensureDeferred
async def test_bad_weights_and_large_ones(consul: Consul) -> None:
    consul.register("orders", "1", "10.0.0.1", 80, weight=50_000)
    consul.register("orders", "2", "10.0.0.2", 80, weight=25_000)
    consul.register("orders", "3", "10.0.0.3", 80, weight="9")  # type: ignore[arg-type]
    with watching(ConsulRegistry, at(consul.url)) as watch:
        await watch.until_hosts("10.0.0.1:80*1000", "10.0.0.2:80*500")
        assert watch.registry.skipped == {"unusable": 1}
