"""What all client connections share: admission, counts, the generation in force, drain."""

from attrs import evolve

from apigw.edge.channel import Channel
from tests.edge.conversation import LIMITS, Conversation, Generation, get


def test_connections_are_counted_in_all_and_by_address_from_accept_to_close() -> None:
    client = Conversation(evolve(LIMITS, max_connections=3, max_connections_per_ip=2))
    site = client.site
    assert site.admits("192.0.2.7")
    second = Channel(site, "192.0.2.7", True)
    site.accepted(second)
    assert not site.admits("192.0.2.7")
    assert site.admits("192.0.2.8")
    third = Channel(site, "192.0.2.8", False)
    site.accepted(third)
    assert not site.admits("192.0.2.9")
    second.handshakeFailed(None)
    second.handshakeFailed(None)
    assert site.admits("192.0.2.7")
    site.closed(third)
    client.settled()
    assert not site._per_ip


def test_in_flight_is_the_number_of_requests_begun_and_not_ended() -> None:
    client = Conversation()
    other = Conversation(site=client.site, leaf=client.leaf)
    client.send(get("/held") + get("/held"))
    other.send(get("/held"))
    assert client.site.in_flight == 2
    client.request.answer(200, (), b"")
    assert client.site.in_flight == 1
    client.wire.leave()
    assert client.site.in_flight == 0
    other.settled()


def test_a_request_keeps_the_configuration_that_it_began_with() -> None:
    client = Conversation()
    before = client.site.generation
    client.send(get("/held/1") + get("/held/2"))
    client.site.swap(Generation(evolve(LIMITS, keepalive_timeout_s=5.0), client.leaf))
    first = client.request
    first.answer(200, (), b"")
    assert first.exchange.snapshot is before.snapshot
    assert client.request.exchange.snapshot is client.site.generation.snapshot
    client.request.answer(200, (), b"")
    client.advance(5.1)
    assert client.ended == "closed"
    client.settled()


def test_a_shorter_keepalive_counts_for_the_connections_that_are_open() -> None:
    """For an idle one from its last answer on, for a busy one from its next."""
    idle = Conversation()
    idle.send(get("/now"))
    busy = Conversation(site=idle.site, leaf=idle.leaf)
    busy.send(get("/held"))
    idle.advance(1)
    idle.site.swap(Generation(evolve(LIMITS, keepalive_timeout_s=5.0), idle.leaf))
    idle.site.swap(Generation(evolve(LIMITS, keepalive_timeout_s=5.0, body_timeout_s=9.0), idle.leaf))
    idle.advance(3.8)
    assert not idle.ended
    busy.request.answer(200, (), b"")
    idle.advance(0.4)
    assert idle.ended == "closed" and not busy.ended
    idle.advance(4.9)
    assert busy.ended == "closed"
    idle.wire.lost()
    busy.settled()


def test_a_drain_without_connections_is_over_at_once_and_admits_nobody() -> None:
    client = Conversation()
    client.wire.leave()
    done: list[None] = []
    client.site.drain().addCallback(done.append)
    assert done == [None]
    assert not client.site.admits("192.0.2.7")


def test_abort_all_ends_what_the_drain_could_not() -> None:
    client = Conversation()
    client.send(get("/held"))
    done: list[None] = []
    client.site.drain().addCallback(done.append)
    client.advance(30)
    assert done == []
    client.site.abort_all()
    assert (client.ended, done) == ("cut", [None])
    assert [ex.status for ex in client.records] == [499]
    client.settled()
