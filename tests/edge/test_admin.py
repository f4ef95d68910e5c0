"""The admin pages over loopback: what each answers, and the listener's bounds."""

import json
import socket
from functools import partial
from typing import Any, Iterator, Mapping

import pytest
import pytest_twisted
from twisted.internet import defer, endpoints, protocol, reactor
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock, TaskStopped

from apigw.edge import admin
from apigw.edge.admin import AdminService, Readiness, judge_readiness, make_admin_site


class Pages:
    """What the composer gives the site; tests change it."""

    def __init__(self) -> None:
        self.readiness = Readiness(True, {"configuration": {"ok": True}})
        self.broken: set[str] = set()
        self.parts: Iterator[bytes] = iter([b"apigw_redis_up 1\n", b"apigw_up 1\n"])

    def ready(self) -> Readiness:
        return self._unless_broken("ready", self.readiness)

    def metrics(self) -> Iterator[bytes]:
        yield from self.parts
        self._unless_broken("metrics", None)

    def status(self) -> Mapping[str, object]:
        return self._unless_broken("status", {"workers": 1, "backends": {"users": {1, 2}.__class__.__name__}})

    def config(self) -> Mapping[str, object]:
        return self._unless_broken("config", {"redis": {"url": "redis://:***@127.0.0.1/0"}})

    def _unless_broken(self, name: str, value: Any) -> Any:
        if name in self.broken:
            raise RuntimeError("secret detail")
        return value


@pytest.fixture
def pages() -> Pages:
    return Pages()


@pytest.fixture
def service(pages: Pages) -> Iterator[AdminService]:
    site = make_admin_site(
        reactor, ready=pages.ready, metrics=pages.metrics, status=pages.status, config=pages.config
    )  # fmt: skip
    service = AdminService(reactor, "127.0.0.1", 0, site)
    service.startService()
    yield service
    pytest_twisted.blockon(defer.maybeDeferred(service.stopService))


class Talk(protocol.Protocol):
    """Sends bytes, keeps what comes until the connection ends."""

    def __init__(self, send: bytes) -> None:
        self._send = send
        self.got = b""
        self.ended: defer.Deferred[bytes] = defer.Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self._send)

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def connectionLost(self, reason: Any = None) -> None:
        self.ended.callback(self.got)


async def connected(service: AdminService, send: bytes = b"") -> Talk:
    endpoint = endpoints.TCP4ClientEndpoint(reactor, "127.0.0.1", service.listening_port())
    return await endpoints.connectProtocol(endpoint, Talk(send))


async def asked(service: AdminService, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """(status, headers in lower case, body) of one request; the connection ends with the answer."""
    talk = await connected(service, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = (await talk.ended.addTimeout(5, reactor)).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), headers, body


@pytest_twisted.ensureDeferred
async def test_healthz_says_that_the_process_is_alive(service: AdminService) -> None:
    status, headers, body = await asked(service, "/healthz")
    assert (status, body) == (200, b"alive\n")
    assert headers["connection"] == "close"
    assert headers["server"] == "apigw"
    assert headers["cache-control"] == "no-store"


@pytest_twisted.ensureDeferred
async def test_readyz_is_200_or_503_and_names_its_checks(service: AdminService, pages: Pages) -> None:
    status, headers, body = await asked(service, "/readyz")
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert json.loads(body) == {"ready": True, "checks": {"configuration": {"ok": True}}}
    pages.readiness = Readiness(False, {"draining": {"ok": False}})
    status, _, body = await asked(service, "/readyz?x=1")
    assert status == 503
    assert json.loads(body) == {"ready": False, "checks": {"draining": {"ok": False}}}


@pytest_twisted.ensureDeferred
async def test_metrics_status_and_config_are_shown(service: AdminService) -> None:
    status, headers, body = await asked(service, "/metrics")
    assert (status, body) == (200, b"apigw_redis_up 1\napigw_up 1\n")
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    for path, key in (("/status", "workers"), ("/config", "redis")):
        status, headers, body = await asked(service, path)
        assert (status, headers["content-type"]) == (200, "application/json")
        assert key in json.loads(body)


@pytest.mark.parametrize("path", ["/", "/healthz/", "/healthz/x", "/nope", "/config.json", "//healthz", "/%00"])
@pytest_twisted.ensureDeferred
async def test_other_paths_are_404_in_the_contracts_json(service: AdminService, path: str) -> None:
    status, _, body = await asked(service, path)
    assert status == 404
    answer = json.loads(body)
    assert answer["error"] == "route_not_found"
    assert set(answer) == {"error", "message", "request_id"}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
@pytest_twisted.ensureDeferred
async def test_other_methods_are_405_with_allow(service: AdminService, method: str) -> None:
    status, headers, body = await asked(service, "/config", method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert json.loads(body)["error"] == "method_not_allowed"


@pytest_twisted.ensureDeferred
async def test_head_has_the_length_and_no_body(service: AdminService) -> None:
    status, headers, body = await asked(service, "/healthz", "HEAD")
    assert (status, headers["content-length"], body) == (200, "6", b"")


@pytest.mark.parametrize("page", ["ready", "metrics", "status", "config"])
@pytest_twisted.ensureDeferred
async def test_a_page_that_cannot_be_made_is_500_without_detail_and_the_others_still_answer(
    service: AdminService, pages: Pages, page: str
) -> None:
    pages.broken.add(page)
    status, _, body = await asked(service, {"ready": "/readyz"}.get(page, f"/{page}"))
    assert status == 500
    assert json.loads(body)["error"] == "internal_error"
    assert b"secret" not in body
    assert (await asked(service, "/healthz"))[0] == 200


@pytest_twisted.ensureDeferred
async def test_others_run_while_a_long_page_is_made(service: AdminService, pages: Pages) -> None:
    """Its parts end when somebody else was served meanwhile."""
    served: list[bool] = []

    def parts() -> Iterator[bytes]:
        for number in range(1_000_000):
            if served:
                return
            yield b"%d\n" % number

    pages.parts = parts()
    metrics = defer.ensureDeferred(asked(service, "/metrics"))
    assert (await asked(service, "/healthz"))[0] == 200
    served.append(True)
    status, _, body = await metrics
    lines = body.splitlines()
    assert status == 200 and lines == [b"%d" % number for number in range(len(lines))]
    assert 1 <= len(lines) < 1_000_000


def test_long_pages_that_are_made_at_once_share_a_turn() -> None:
    """Else a hundred scrapes would hold the loop up a hundred times as long as one."""
    clock = Clock()
    turns = admin._turns(clock)
    made: list[int] = []

    def parts(page: int) -> Iterator[bytes]:
        while True:
            clock.rightNow += admin._TURN_S * 0.4
            made.append(page)
            yield b""

    pages = [admin._in_parts(turns, b"", partial(parts, page)) for page in range(100)]
    for turn in (1, 2):
        (call,) = clock.getDelayedCalls()
        run = call.func  # once; the clock would go on for as long as calls without delay come
        call.cancel()
        run()
        assert len(made) == 3 * turn, "what began within the time, of all pages together"
    assert len(set(made)) == 6, "each gets its turn"
    for page in pages:
        page.addErrback(lambda failure: failure.trap(TaskStopped))
        page.cancel()
    assert clock.getDelayedCalls() == [] and len(made) == 6


@pytest_twisted.ensureDeferred
async def test_a_long_page_whose_client_has_gone_is_made_no_further(service: AdminService, pages: Pages) -> None:
    begun: defer.Deferred[None] = defer.Deferred()
    ended: defer.Deferred[None] = defer.Deferred()

    def parts() -> Iterator[bytes]:
        begun.callback(None)
        try:
            while True:
                yield b"more\n"
        finally:
            ended.callback(None)

    pages.parts = parts()
    talk = await connected(service, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
    await begun
    assert talk.transport is not None
    talk.transport.abortConnection()  # type: ignore[attr-defined]
    pages.parts = iter(())
    await ended
    assert (await asked(service, "/metrics"))[2] == b""


@pytest_twisted.ensureDeferred
async def test_a_connection_is_cut_when_it_sends_too_much(service: AdminService) -> None:
    head = b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"
    talk = await connected(service, head + b"x" * 70_000)
    assert b"200" not in await talk.ended.addTimeout(5, reactor)


@pytest_twisted.ensureDeferred
async def test_a_connection_ends_in_time_however_it_trickles(
    service: AdminService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "CONNECTION_S", 0.2)
    talk = await connected(service, b"GET /healthz HTT")
    assert await talk.ended.addTimeout(3, reactor) == b""


@pytest_twisted.ensureDeferred
async def test_connections_above_the_bound_are_closed_and_the_bound_frees_itself(
    service: AdminService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "MAX_CONNECTIONS", 3)
    held = [await connected(service) for _ in range(3)]
    assert await (await connected(service, b"GET /healthz HTTP/1.1\r\n\r\n")).ended.addTimeout(3, reactor) == b""
    for talk in held:
        assert talk.transport is not None
        talk.transport.loseConnection()
        await talk.ended
    for _ in range(10):
        assert (await asked(service, "/healthz"))[0] == 200


def test_a_taken_port_stops_the_start(service: AdminService, pages: Pages) -> None:
    site = make_admin_site(
        reactor, ready=pages.ready, metrics=pages.metrics, status=pages.status, config=pages.config
    )  # fmt: skip
    second = AdminService(reactor, "127.0.0.1", service.listening_port(), site)
    with pytest.raises(CannotListenError):
        second.startService()
    assert not second.running
    assert second.stopService() is None


@pytest_twisted.ensureDeferred
async def test_stopping_frees_the_port_and_drops_open_connections(pages: Pages) -> None:
    site = make_admin_site(
        reactor, ready=pages.ready, metrics=pages.metrics, status=pages.status, config=pages.config
    )  # fmt: skip
    service = AdminService(reactor, "127.0.0.1", 0, site)
    service.startService()
    port = service.listening_port()
    talk = await connected(service)
    await asked(service, "/healthz")
    await defer.maybeDeferred(service.stopService)
    await talk.ended.addTimeout(3, reactor)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    with pytest.raises(RuntimeError):
        service.listening_port()


_GOOD: dict[str, Any] = {
    "config_version": "v1",
    "backends": 2,
    "healthy_backends": 1,
    "draining": False,
    "loop_lag_s": 0.001,
    "keys_usable": True,
    "redis_up": True,
    "store_up": True,
}


@pytest.mark.parametrize(
    ("change", "ok"),
    [
        ({}, True),
        ({"config_version": None}, False),
        ({"healthy_backends": 0}, False),
        ({"backends": 0, "healthy_backends": 0}, True),  # all routes answered by the gateway itself
        ({"draining": True}, False),
        ({"loop_lag_s": 0.06}, False),
        ({"keys_usable": False, "keys_seen": True}, True),  # out of date: named, but shared by all instances
        ({"keys_usable": False, "keys_seen": False}, False),  # never had one: another instance may
        ({"redis_up": False}, True),
        ({"store_up": False}, True),
        ({"keys_usable": None, "redis_up": None, "store_up": None}, True),
    ],
)
def test_readiness_is_decided_by_what_is_this_instances_own(change: dict[str, Any], ok: bool) -> None:
    readiness = judge_readiness(**{**_GOOD, **change})
    assert readiness.ok is ok
    checks = json.loads(readiness.body())["checks"]
    wanted = {"configuration", "backends", "draining", "loop"}
    optional = {"keys_usable": "keys", "redis_up": "redis", "store_up": "shared_store"}
    assert set(checks) == wanted | {check for name, check in optional.items() if change.get(name, True) is not None}
    assert ok == all(check["ok"] for check in checks.values() if check["required"])
    for name, expected in optional.items():
        if change.get(name) is False:
            assert checks[expected]["ok"] is False


def test_a_registry_that_is_down_is_named_and_decides_nothing() -> None:
    """Instances that are known serve without it; when none is, it says why there is no healthy backend."""
    down = {"orders": "etcd http://10.0.0.5:2379 /services/orders/: down: refused; no instance is known"}
    readiness = judge_readiness(**{**_GOOD, "registries": down})
    assert readiness.ok and readiness.checks["registries"] == {
        "ok": False,
        "detail": f"orders: {down['orders']}",
        "required": False,
    }
    assert not judge_readiness(**{**_GOOD, "registries": down, "healthy_backends": 0}).ok
    assert judge_readiness(**{**_GOOD, "registries": {}}).checks["registries"]["detail"] == "all up"  # type: ignore[index]
    many = {f"backend-{n}": "down" for n in range(1000)}
    assert len(judge_readiness(**{**_GOOD, "registries": many}).body()) < 2000


def test_a_readiness_does_not_change() -> None:
    readiness = Readiness(True, {})
    with pytest.raises(AttributeError):
        readiness.ok = False  # type: ignore[misc]
