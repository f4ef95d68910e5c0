"""Instances of a Kubernetes service, by a double of its documented API (tests/kubernetes.py says how faithful)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from apigw.adapters import registry_kubernetes
from apigw.adapters.registry_kubernetes import KubernetesRegistry, _Lines
from apigw.config.model import Discovery
from apigw.core.discovery import Entry
from apigw.net.fetch import FetchFailed
from tests.adapters.registry_world import REACTOR, RawServer, answer, watching
from tests.kubernetes import Kubernetes, endpoint
from tests.servers import turns, until

HTTP = ({"name": "http", "port": 8080, "protocol": "TCP"},)
TWO_PORTS = (*HTTP, {"name": "admin", "port": 9090, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"})


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Kubernetes]:
    (tmp_path / "token").write_text("t0ken\n")
    made = Kubernetes(REACTOR, tmp_path)
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.close()))


@pytest.fixture
def wanted(cluster: Kubernetes, tmp_path: Path) -> Discovery:
    return of(cluster, tmp_path)


def of(cluster: Kubernetes, folder: Path, **more: Any) -> Discovery:
    given: dict[str, Any] = {"url": cluster.url, "namespace": "shop", "token_file": folder / "token"}
    return Discovery("kubernetes", "orders", **(given | {"ca_file": cluster.ca_file} | more))


@pytest_twisted.ensureDeferred
async def test_endpoints_come_change_and_go_within_a_moment(cluster: Kubernetes, wanted: Discovery) -> None:
    cluster.put("orders-1", endpoint("10.0.0.1"))
    cluster.put("users-1", endpoint("10.0.9.9"), service="users")
    cluster.put("orders-1", endpoint("10.0.8.8"), namespace="other")
    with watching(KubernetesRegistry, wanted) as watch:
        await watch.until_hosts("10.0.0.1:8080*1")
        await until(lambda: cluster.watches, REACTOR)
        cluster.put("orders-2", endpoint("10.0.0.2"), endpoint("10.0.0.3"))
        assert await watch.until_hosts("10.0.0.1:8080*1", "10.0.0.2:8080*1", "10.0.0.3:8080*1") < 3
        cluster.put("orders-2", endpoint("10.0.0.3"), endpoint("10.0.0.4", ready=False))
        await watch.until_hosts("10.0.0.1:8080*1", "10.0.0.3:8080*1")
        cluster.delete("orders-1")
        await watch.until_hosts("10.0.0.3:8080*1")
        assert cluster.lists == 1 and watch.registry.failures == 0


@pytest_twisted.ensureDeferred
async def test_a_rollout_is_put_in_force_once_in_a_while(cluster: Kubernetes, wanted: Discovery) -> None:
    """A hundred events in a second are a few lists; the last one is in force in the end."""
    cluster.put("orders-1", endpoint("10.0.0.1"))
    with watching(KubernetesRegistry, wanted) as watch:
        await until(lambda: cluster.watches, REACTOR)
        for number in range(2, 102):
            cluster.put("orders-1", endpoint(f"10.0.0.{number}"))
            await turns(REACTOR, 0.01)
        await watch.until_hosts("10.0.0.101:8080*1")
        assert 2 <= len(watch.lists) < 15


@pytest_twisted.ensureDeferred
async def test_news_at_the_very_end_of_a_watch_are_not_lost(cluster: Kubernetes, wanted: Discovery) -> None:
    cluster.put("orders-1", endpoint("10.0.0.1"))
    with watching(KubernetesRegistry, wanted) as watch:
        await until(lambda: cluster.watches, REACTOR)
        cluster.put("orders-1", endpoint("10.0.0.2"))
        cluster.end_watches()
        await watch.until_hosts("10.0.0.2:8080*1")
        assert cluster.lists == 1


@pytest_twisted.ensureDeferred
async def test_a_watch_goes_on_where_the_last_one_ended(cluster: Kubernetes, wanted: Discovery) -> None:
    """From the bookmark, not from the last change of our own slices, and without a list."""
    cluster.put("orders-1", endpoint("10.0.0.1"))
    with watching(KubernetesRegistry, wanted) as watch:
        await until(lambda: cluster.watches, REACTOR)
        cluster.version = 5000
        cluster.bookmark()
        cluster.end_watches()
        cluster.put("orders-2", endpoint("10.0.0.2"))  # while nobody watches
        await watch.until_hosts("10.0.0.1:8080*1", "10.0.0.2:8080*1")
        assert (cluster.lists, cluster.watches_begun) == (1, 2)
        assert cluster.queries[1]["resourceVersion"] == "5001" and cluster.queries[1]["allowWatchBookmarks"] == "true"
        assert watch.registry.failures == 0 and watch.registry.up


@pytest_twisted.ensureDeferred
async def test_that_nobody_is_left_is_believed_when_it_has_lasted(cluster: Kubernetes, tmp_path: Path) -> None:
    """No event says it again: a watch that ends in order does."""
    cluster.put("orders-1", endpoint("10.0.0.1"))
    with watching(KubernetesRegistry, of(cluster, tmp_path, empty_after_s=1.0)) as watch:
        await until(lambda: cluster.watches, REACTOR)
        cluster.put("orders-1")
        await until(lambda: watch.registry.empty_since_s is not None, REACTOR)
        assert watch.hosts == ["10.0.0.1:8080*1"]
        await turns(REACTOR, 1.1)
        cluster.end_watches()
        await watch.until_hosts()
        assert watch.registry.up and cluster.lists == 1


@pytest_twisted.ensureDeferred
async def test_news_that_wait_are_heard_before_it_is_believed_that_nobody_is_left(
    cluster: Kubernetes, tmp_path: Path
) -> None:
    clock = Clock()
    cluster.put("orders-1", endpoint("10.0.0.1"))
    with watching(KubernetesRegistry, of(cluster, tmp_path, empty_after_s=30.0), clock=clock) as watch:
        await until(lambda: cluster.watches, REACTOR)
        registry: Any = watch.registry
        for advance_s in (1.0, 29.9):
            cluster.put("orders-1")
            await until(lambda: registry._telling, REACTOR)
            clock.advance(advance_s)
        cluster.put("orders-1", endpoint("10.0.0.2"))
        await until(lambda: registry._telling, REACTOR)
        clock.advance(0.15)  # 30 s after the first that was empty; the news come 0.3 s after the last that was told
        assert watch.hosts == ["10.0.0.1:8080*1"]
        clock.advance(1.0)
        assert watch.hosts == ["10.0.0.2:8080*1"] and () not in watch.lists


@pytest_twisted.ensureDeferred
async def test_a_watch_that_ends_in_order_does_not_make_an_unusable_answer_good(
    cluster: Kubernetes, wanted: Discovery
) -> None:
    cluster.put("orders-1", endpoint("10.0.0.1"))
    with watching(KubernetesRegistry, wanted) as watch:
        await until(lambda: cluster.watches, REACTOR)
        cluster.put("orders-1", endpoint("10.0.0.1"), ports=TWO_PORTS)
        await watch.until_down()
        for _ in range(2):
            asked = cluster.lists + cluster.watches_begun
            cluster.end_watches()
            await until(lambda: cluster.lists + cluster.watches_begun > asked, REACTOR, 10)
            await turns(REACTOR, 0.1)
            assert watch.registry.up is False and watch.hosts == ["10.0.0.1:8080*1"]
            assert watch.registry.last_error == "no usable instance in the answer: 1 unusable"
        cluster.put("orders-1", endpoint("10.0.0.2"))
        await watch.until_hosts("10.0.0.2:8080*1")


@pytest.mark.parametrize("by_status", [False, True])
@pytest_twisted.ensureDeferred
async def test_what_is_too_old_to_be_watched_is_listed_anew(
    cluster: Kubernetes, wanted: Discovery, by_status: bool
) -> None:
    cluster.gone_by_status = by_status
    cluster.put("orders-1", endpoint("10.0.0.1"))
    with watching(KubernetesRegistry, wanted) as watch:
        await until(lambda: cluster.watches, REACTOR)
        if by_status:
            cluster.oldest = cluster.version + 1
            cluster.end_watches()
            cluster.version += 100
        else:
            cluster.forget()
        cluster.put("orders-1", endpoint("10.0.0.2"))
        await watch.until_hosts("10.0.0.2:8080*1")
        assert cluster.lists == 2 and watch.registry.failures == 0


@pytest_twisted.ensureDeferred
async def test_a_token_is_read_anew_and_a_refused_one_said(
    cluster: Kubernetes, wanted: Discovery, tmp_path: Path
) -> None:
    cluster.put("orders-1", endpoint("10.0.0.1"))
    with watching(KubernetesRegistry, wanted) as watch:
        await watch.until_hosts("10.0.0.1:8080*1")
        await until(lambda: cluster.watches, REACTOR)
        cluster.token = "rotated"
        cluster.end_watches()
        await watch.until_down()
        assert watch.registry.last_error == "status 401: Unauthorized" and watch.hosts == ["10.0.0.1:8080*1"]
        (tmp_path / "token").write_text("rotated")
        await until(lambda: watch.registry.up and cluster.watches, REACTOR, 10)
        (tmp_path / "token").write_text("two words")
        cluster.end_watches()
        await watch.until_down()
        assert watch.registry.last_error == "token_file does not hold one word of printable ASCII"


@pytest_twisted.ensureDeferred
async def test_a_certificate_is_verified(cluster: Kubernetes, tmp_path: Path) -> None:
    """Against ca_file, which is read anew; the token goes to nobody else."""
    cluster.put("orders-1", endpoint("10.0.0.1"))
    (tmp_path / "ca.crt").write_text("no certificate")
    with watching(KubernetesRegistry, of(cluster, tmp_path, ca_file=None)) as watch:
        await watch.until_down()
        assert "certificate verify failed" in str(watch.registry.last_error) and not cluster.lists
    with watching(KubernetesRegistry, of(cluster, tmp_path, ca_file=tmp_path / "ca.crt")) as watch:
        await watch.until_down()
        assert watch.registry.last_error == "the CA file holds no certificate"
        (tmp_path / "ca.crt").write_bytes(cluster.ca_file.read_bytes())
        await watch.until_hosts("10.0.0.1:8080*1")


@pytest_twisted.ensureDeferred
async def test_a_pod_knows_its_cluster(cluster: Kubernetes, tmp_path: Path) -> None:
    """Address from the environment, the rest from the service account's files."""
    (tmp_path / "ca.crt").write_bytes(cluster.ca_file.read_bytes())
    (tmp_path / "namespace").write_text("shop\n")
    environment = {"KUBERNETES_SERVICE_HOST": "localhost", "KUBERNETES_SERVICE_PORT": str(cluster.port)}
    cluster.put("orders-1", endpoint("10.0.0.1"))
    own = Discovery("kubernetes", "orders")
    with watching(KubernetesRegistry, own, in_cluster=tmp_path, environment=environment) as watch:
        await watch.until_hosts("10.0.0.1:8080*1")
        assert watch.registry.where == f"kubernetes {cluster.url} shop/orders"
    with watching(KubernetesRegistry, own, in_cluster=tmp_path, environment={}) as watch:
        await watch.until_down()
        assert "not inside a cluster" in str(watch.registry.last_error)
    (tmp_path / "namespace").unlink()
    with watching(KubernetesRegistry, own, in_cluster=tmp_path, environment=environment) as watch:
        await watch.until_down()
        assert "write it into discovery" in str(watch.registry.last_error)


@pytest_twisted.ensureDeferred
async def test_an_api_server_that_goes_away_leaves_the_list_and_is_found_again(
    cluster: Kubernetes, wanted: Discovery, tmp_path: Path
) -> None:
    cluster.put("orders-1", endpoint("10.0.0.1"))
    with watching(KubernetesRegistry, wanted) as watch:
        await until(lambda: cluster.watches, REACTOR)
        await cluster.close()
        await watch.until_down()
        assert watch.hosts == ["10.0.0.1:8080*1"]
        again = Kubernetes(REACTOR, tmp_path, port=cluster.port)
        cluster.ca_file.write_bytes(again.ca_file.read_bytes())
        again.put("orders-7", endpoint("10.0.0.7"))
        await watch.until_hosts("10.0.0.7:8080*1", timeout_s=20)
        await again.close()


@pytest_twisted.ensureDeferred
async def test_a_watch_on_a_server_that_hangs_is_given_up(
    cluster: Kubernetes, wanted: Discovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_kubernetes, "WATCH_S", 0.2)
    monkeypatch.setattr(registry_kubernetes, "ANSWER_S", 1.0)
    cluster.put("orders-1", endpoint("10.0.0.1"))
    with watching(KubernetesRegistry, wanted) as watch:
        await watch.until_hosts("10.0.0.1:8080*1")
        monkeypatch.setattr(cluster, "_end", lambda watch: None)
        await watch.until_down()
        assert watch.registry.last_error == "no answer within 1.2 s" and watch.hosts == ["10.0.0.1:8080*1"]


@pytest_twisted.ensureDeferred
async def test_endpoints_that_terminate_serve_while_no_other_does(cluster: Kubernetes, wanted: Discovery) -> None:
    ends = endpoint("10.0.0.1", ready=False, serving=True, terminating=True)
    dead = endpoint("10.0.0.2", ready=False, serving=False, terminating=True)
    cluster.put("orders-1", ends, dead)
    with watching(KubernetesRegistry, wanted) as watch:
        await watch.until_hosts("10.0.0.1:8080*1")
        cluster.put("orders-2", endpoint("10.0.0.3", ready=None))
        await watch.until_hosts("10.0.0.3:8080*1")


@pytest_twisted.ensureDeferred
async def test_the_pods_of_a_dual_stack_service_count_once(cluster: Kubernetes, wanted: Discovery) -> None:
    cluster.put("orders-6", endpoint("fd00::1"), family="IPv6")
    with watching(KubernetesRegistry, wanted) as watch:
        await watch.until_hosts("fd00::1:8080*1")
        cluster.put("orders-4", endpoint("10.0.0.1"))
        await watch.until_hosts("10.0.0.1:8080*1")


@pytest_twisted.ensureDeferred
async def test_the_port_is_that_of_the_configuration_or_the_only_one(cluster: Kubernetes, tmp_path: Path) -> None:
    cluster.put("orders-1", endpoint("10.0.0.1"), ports=TWO_PORTS)
    for port, host in (("admin", "10.0.0.1:9090*1"), (8080, "10.0.0.1:8080*1")):
        with watching(KubernetesRegistry, of(cluster, tmp_path, port=port)) as watch:
            await watch.until_hosts(host)
    for none in (None, "dns", 81):
        with watching(KubernetesRegistry, of(cluster, tmp_path, port=none)) as watch:
            await watch.until_down()
            assert watch.registry.last_error == "no usable instance in the answer: 1 unusable"


# -- what is no API server


def test_events_arrive_in_pieces_and_news_are_told_once_a_piece() -> None:
    events: list[bytes] = []
    news: list[int] = []

    def take(line: bytes) -> bool:
        events.append(line)
        return line != b"bookmark"

    lines = _Lines(take, lambda: news.append(len(events)))
    for piece in (b"on", b"e\ntwo\nth", b"ree", b"\n\n", b"bookmark\n"):
        lines.take(piece)
    assert events == [b"one", b"two", b"three", b"bookmark"] and news == [2, 3]
    with pytest.raises(FetchFailed, match="without an end"):
        for _ in range(10):
            lines.take(b"x" * 1_000_000)


LIST = b'{"metadata": {"resourceVersion": "7"}, "items": []}'
GARBAGE = {
    "not HTTP": (b"\x00\x01\x02\r\n\r\n", b""),
    "a page": (answer(b"<html>"), b""),
    "no version": (answer(b'{"metadata": {}, "items": []}'), b""),
    "a version that is no text": (answer(b'{"metadata": {"resourceVersion": 7}}'), b""),
    "items without names": (answer(b'{"metadata": {"resourceVersion": "7"}, "items": [{}]}'), b""),
    "an old list": (answer(b"{}", b"410 Gone"), b""),
    "a watch of nonsense": (answer(LIST), answer(b"nonsense\n")),
    "an event without an object": (answer(LIST), answer(b'{"type": "ADDED"}\n')),
    "an event without a version": (answer(LIST), answer(b'{"type": "ADDED", "object": {"metadata": {}}}\n')),
    "an error": (answer(LIST), answer(b'{"type": "ERROR", "object": {"code": 500, "message": "\\u001b[2J"}}\n')),
    "a refused watch": (answer(LIST), answer(b'{"message": "no"}', b"403 Forbidden")),
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest_twisted.ensureDeferred
async def test_garbage_is_a_failure_in_one_line_and_the_list_stays(name: str) -> None:
    def say(wire: Any) -> None:
        wire.transport.write(GARBAGE[name][b"watch=1" in wire.received])
        wire.transport.loseConnection()

    server = RawServer(say)
    wanted = Discovery("kubernetes", "orders", url=server.url, namespace="shop")
    with watching(KubernetesRegistry, wanted, known=(Entry("10.0.0.1", 80),)) as watch:
        await until(lambda: watch.registry.failures, REACTOR, 10)
        assert watch.hosts == ["10.0.0.1:80*1"] and watch.lists == []
        assert watch.registry.last_error and watch.registry.last_error.isprintable()
    await server.close()


@pytest_twisted.ensureDeferred
async def test_a_server_that_finds_everything_too_old_is_not_listed_all_the_time() -> None:
    def say(wire: Any) -> None:
        gone = answer(b'{"type": "ERROR", "object": {"code": 410}}\n')
        wire.transport.write(gone if b"watch=1" in wire.received else answer(LIST))
        wire.transport.loseConnection()

    server = RawServer(say)
    with watching(KubernetesRegistry, Discovery("kubernetes", "orders", url=server.url, namespace="shop")) as watch:
        await turns(REACTOR, 2.0)
        assert 2 <= len(server.connections) <= 8 and watch.hosts == []
    await server.close()
