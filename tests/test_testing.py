"""The fakes that ship with the house keep to what the real ones promise."""

from typing import Any

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost

from apigw.config.model import AccessLog
from apigw.errors import StoreDown
from apigw.ports import SharedStore
from apigw.testing import MemoryConnector, MemoryStore, MemoryTransport, ended_exchange, small_snapshot


class Client:
    """A protocol, and what wants a connection: writes down what it is told."""

    def __init__(self, connector: Any = None) -> None:
        self.connector = connector
        self.transport: Any = None
        self.events: list[Any] = []

    def connect_done(self, sock: Any, peer: Any) -> None:
        transport = self.connector.transport(sock, peer, self)
        transport.start()

    def connect_failed(self, reason: str, detail: str) -> None:
        self.events.append(reason)

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport

    def dataReceived(self, data: bytes) -> None:
        self.events.append(data)

    def connectionLost(self, reason: Any) -> None:
        self.events.append(reason.type)


@pytest.fixture
def client() -> Client:
    client = Client()
    MemoryTransport(client).start()
    return client


def test_an_exchange_has_ended_well_unless_the_test_says_otherwise() -> None:
    ex = ended_exchange()
    assert (ex.status, ex.route, ex.request.method) == (200, ex.snapshot.routes["route-users"], "GET")
    assert ex.started_s < (ex.upstream_started_s or 0) < (ex.upstream_ended_s or 0) < ex.ended_s
    other = ended_exchange(ex.snapshot, method="POST", status=502, error_type="connection_refused")
    assert other.snapshot is ex.snapshot
    assert (other.request.method, other.status, other.error_type) == ("POST", 502, "connection_refused")


def test_a_fact_that_an_exchange_does_not_have_is_a_mistake_of_the_test() -> None:
    with pytest.raises(AttributeError):
        ended_exchange(stauts=502)


def test_a_snapshot_routes_users_and_takes_its_access_log_and_version() -> None:
    made = small_snapshot(AccessLog(buffer_entries=7), "v9")
    assert made.trie.match("/users/me") is made.routes["route-users"]
    assert (made.version, made.config.access_log.buffer_entries) == ("v9", 7)


def test_what_is_written_is_kept_and_what_arrives_is_read_at_once(client: Client) -> None:
    client.transport.write(b"GET /")
    client.transport.arrive(b"200")
    assert (client.transport.written, client.events) == (b"GET /", [b"200"])


def test_a_paused_transport_keeps_what_arrives_and_is_stale(client: Client) -> None:
    client.transport.pauseProducing()
    client.transport.arrive(b"2")
    assert client.events == [] and client.transport.stale()
    client.transport.resumeProducing()
    client.transport.arrive(b"00")
    assert client.events == [b"200"] and not client.transport.stale()


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda transport: transport.end(), ConnectionDone),
        (lambda transport: transport.end(clean=False), ConnectionLost),
        (lambda transport: transport.abortConnection(), ConnectionLost),
    ],
)
def test_a_transport_ends_once_and_is_silent_then(client: Client, end: Any, reason: type) -> None:
    transport = client.transport
    end(transport)
    end(transport)
    transport.write(b"late")
    transport.arrive(b"late")
    assert (client.events, transport.written) == ([reason], b"")


def test_a_connection_is_made_or_fails_when_the_test_says_so_and_only_once() -> None:
    connector = MemoryConnector()
    first, second = Client(connector), Client(connector)
    connector.connect("127.0.0.1", 1, 1.0, first)
    connector.connect("127.0.0.1", 2, 1.0, second)
    assert [attempt.port for attempt in connector.attempts] == [1, 2] and not connector.transports
    made, refused = connector.attempts
    assert made.succeed() is first.transport and first.transport.reading
    refused.fail("connection_refused")
    assert second.events == ["connection_refused"] and connector.attempts == []
    with pytest.raises(ValueError):
        refused.fail("connection_refused")


def test_a_store_in_memory_keeps_values_for_their_time_and_answers_nothing_while_it_is_down() -> None:
    now_s = 100.0
    store = MemoryStore(lambda: now_s)
    as_port: SharedStore = store
    said: list[Any] = []

    def ask(*words: Any) -> Any:
        as_port.command("k", *words).addBoth(said.append)
        return said.pop()

    assert ask("GET", "k") is None
    assert ask("SET", "k", b"v", "PX", 2000) == b"OK"
    assert ask("GET", "k") == b"v"
    now_s = 102.0
    assert ask("GET", "k") is None
    assert ask("FLUSHALL").check(StoreDown)
    as_port.publish("c", b"m").addBoth(said.append)
    assert said.pop() == 0
    store.down = True
    assert ask("GET", "k").check(StoreDown)
    as_port.publish("c", b"m").addBoth(said.append)
    assert said.pop().check(StoreDown)
