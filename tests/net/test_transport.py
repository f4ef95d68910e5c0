"""The TCP transport over real sockets: what is sent, held, dropped, and how connections end."""

import select
import socket
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.error import ConnectionDone, ConnectionLost

from apigw.constants import LINGER_S, READ_BYTES, WRITE_HIGH_WATER_BYTES, WRITE_LOW_WATER_BYTES
from apigw.net.transport import BROKEN, DEAD, FLUSHING, LINGERING, OPEN

from .conftest import drain

run = pytest_twisted.ensureDeferred
SMALL = 4096


@run
async def test_what_a_turn_writes_is_sent_at_its_end_without_a_write_event(net: Any) -> None:
    transport, _, client = net.tcp()
    transport.write(b"ans")
    transport.write(b"wer")
    await net.turns(1)
    assert client.recv(100) == b"answer"
    assert transport.buffered_bytes() == 0


@run
async def test_what_arrives_reaches_the_protocol(net: Any) -> None:
    _, protocol, client = net.tcp()
    client.send(b"request")
    await net.until(lambda: protocol.received == b"request")


@run
async def test_a_slow_reader_gets_every_byte_in_order(net: Any) -> None:
    """Partial sends of pieces large and small, in any mixture."""
    transport, _, client = net.tcp(SMALL)
    expected = bytearray()
    for number in range(300):
        piece = bytes([number % 251]) * (1 + number * 97 % 3000 if number % 10 else 70_000)
        expected += piece
        transport.write(piece)
    assert transport.buffered_bytes() > 0
    taken = bytearray()

    def take() -> bool:
        taken.extend(drain(client))
        return len(taken) >= len(expected)

    await net.until(take)
    assert taken == expected
    assert transport.buffered_bytes() == 0
    assert transport.sent_bytes > 0


@run
async def test_what_the_peer_has_not_taken_is_known_wherever_it_lies(net: Any) -> None:
    """In our own buffer and in the kernel's, until the peer's kernel has it; nothing of a dead connection."""
    transport, _, client = net.tcp(SMALL)
    transport.write(b"a" * 300_000)
    await net.until(lambda: transport.blocked_bytes() > 0)
    assert transport.buffered_bytes() < transport.untaken_bytes() <= 300_000
    taken = bytearray()

    def take() -> bool:
        taken.extend(drain(client))
        return len(taken) == 300_000 and transport.untaken_bytes() == 0

    await net.until(take)
    transport.abortConnection()
    assert transport.untaken_bytes() == 0


@run
async def test_small_pieces_that_wait_are_kept_as_few(net: Any) -> None:
    """A flood of tiny chunks to a slow reader becomes neither as many objects nor as many packets."""
    transport, _, client = net.tcp(SMALL)
    transport.write(b"x" * 1_000_000)
    for _ in range(10_000):
        transport.write(b"tiny\r\n")
    assert len(transport._out) <= 6
    taken = bytearray()

    def take() -> bool:
        taken.extend(drain(client))
        return len(taken) >= 1_060_000

    await net.until(take)
    assert taken.endswith(b"xtiny\r\n" + b"tiny\r\n" * 9_999)


@run
async def test_a_producer_is_paused_above_high_water_and_resumed_below_low_water(net: Any) -> None:
    """What is buffered never exceeds the high water mark by more than one write."""
    transport, _, client = net.tcp(SMALL)
    producer = net.Producer()
    transport.registerProducer(producer, True)
    most = 0
    written = 0
    while producer.told.count("pause") == producer.told.count("resume"):
        transport.write(b"p" * 10_000)
        written += 10_000
        most = max(most, transport.buffered_bytes())
        assert written < 20_000_000
    assert WRITE_HIGH_WATER_BYTES < most <= WRITE_HIGH_WATER_BYTES + 10_000
    assert producer.told == ["pause"]
    taken = 0

    def take() -> bool:
        nonlocal taken
        if producer.told == ["pause"] and transport.buffered_bytes() <= WRITE_LOW_WATER_BYTES:
            pytest.fail("not resumed below low water")
        taken += len(drain(client))
        return len(producer.told) > 1

    await net.until(take)
    assert producer.told == ["pause", "resume"]
    assert transport.buffered_bytes() <= WRITE_LOW_WATER_BYTES


@run
async def test_a_producer_registered_on_a_full_transport_is_paused_at_once(net: Any) -> None:
    transport, _, _ = net.tcp(SMALL)
    transport.write(b"x" * 5_000_000)
    producer = net.Producer()
    transport.registerProducer(producer, True)
    assert producer.told == ["pause"]
    transport.unregisterProducer()
    transport.write(b"x" * 100_000)
    assert producer.told == ["pause"]


@run
async def test_a_producer_that_writes_when_resumed_is_served(net: Any) -> None:
    """resumeProducing() writes from inside doWrite: nothing is lost, doubled or left unsent."""
    transport, _, client = net.tcp(SMALL)

    class Chatty:
        left = 20

        def pauseProducing(self) -> None:
            """Told, and ready to wait."""

        def resumeProducing(self) -> None:
            if self.left:
                self.left -= 1
                transport.write(bytes([self.left]) * 100_000)

    producer = Chatty()
    transport.registerProducer(producer, True)
    transport.write(b"\xff" * 5_000_000)
    taken = bytearray()

    def take() -> bool:
        taken.extend(drain(client))
        return len(taken) >= 7_000_000

    await net.until(take)
    assert bytes(taken[5_000_000:]) == b"".join(bytes([n]) * 100_000 for n in reversed(range(20)))


@run
async def test_a_paused_transport_reads_nothing_until_resumed(net: Any) -> None:
    transport, protocol, client = net.tcp()
    transport.pauseProducing()
    client.send(b"later")
    await net.turns(5)
    assert protocol.received == b""
    transport.resumeProducing()
    await net.until(lambda: protocol.received == b"later")


@run
async def test_pausing_inside_data_received_holds_the_rest_in_the_kernel(net: Any) -> None:
    transport, protocol, client = net.tcp()
    protocol.on_data = lambda data: transport.pauseProducing()
    client.setblocking(True)
    client.sendall(b"x" * 200_000)
    await net.until(lambda: protocol.calls)
    await net.turns(5)
    assert protocol.calls == 1 and len(protocol.received) <= 65_536
    protocol.on_data = lambda data: None
    transport.resumeProducing()
    await net.until(lambda: len(protocol.received) == 200_000)


@run
async def test_writing_inside_data_received_answers(net: Any) -> None:
    transport, protocol, client = net.tcp()
    protocol.on_data = lambda data: transport.write(data.upper())
    client.send(b"abc")
    await net.until(lambda: protocol.received)
    assert client.recv(10) == b"ABC"


# -- ending


@run
async def test_lose_connection_sends_what_waits_then_fin_then_lingers_until_the_peer_closes(net: Any) -> None:
    transport, protocol, client = net.tcp(SMALL)
    transport.write(b"x" * 3_000_000)
    transport.loseConnection()
    assert transport.state == FLUSHING
    taken = 0

    def take() -> bool:
        nonlocal taken
        taken += len(drain(client))
        return taken == 3_000_000

    await net.until(take)
    await net.until(lambda: transport.state == LINGERING)
    assert client.recv(1) == b""  # its FIN, while it still reads
    assert protocol.lost == []
    client.close()
    await net.until(lambda: protocol.lost)
    assert protocol.lost[0].check(ConnectionDone) and transport.state == DEAD


@run
async def test_a_peer_that_never_closes_is_left_after_the_linger(net: Any) -> None:
    transport, protocol, client = net.tcp()
    started_s = net.reactor.seconds()
    transport.loseConnection()
    await net.until(lambda: protocol.lost)
    assert LINGER_S <= net.reactor.seconds() - started_s < LINGER_S + 0.5
    assert transport.fileno() == -1


@run
async def test_nothing_is_delivered_after_lose_connection(net: Any) -> None:
    """A refusal is final: what the peer still sends is read, so that no RST destroys the answer, and dropped."""
    transport, protocol, client = net.tcp()

    def refuse(data: bytes) -> None:
        transport.write(b"400")
        transport.loseConnection()

    protocol.on_data = refuse
    client.send(b"bad request")
    await net.until(lambda: protocol.received)
    for _ in range(5):
        client.send(b"GET /smuggled HTTP/1.1\r\n\r\n")
        await net.turns(2)
    assert protocol.received == b"bad request"
    assert client.recv(10) == b"400" and client.recv(10) == b""
    client.close()
    await net.until(lambda: protocol.lost)
    assert protocol.received == b"bad request"


@run
async def test_nothing_is_delivered_while_the_answer_is_flushed_either(net: Any) -> None:
    transport, protocol, client = net.tcp(SMALL)
    transport.write(b"x" * 3_000_000)
    transport.loseConnection()
    client.send(b"GET /smuggled HTTP/1.1\r\n\r\n")
    await net.turns(5)
    assert transport.state == FLUSHING and protocol.received == b""


@run
async def test_writes_and_pauses_after_lose_connection_are_nothing(net: Any) -> None:
    transport, protocol, client = net.tcp()
    transport.loseConnection()
    transport.loseConnection()
    transport.write(b"too late")
    transport.pauseProducing()
    assert client.recv(10) == b""
    client.close()
    await net.until(lambda: protocol.lost)
    transport.write(b"far too late")
    transport.resumeProducing()
    transport.loseConnection()
    transport.abortConnection()
    assert len(protocol.lost) == 1


@run
async def test_a_paused_transport_still_notices_the_peers_end_while_it_lingers(net: Any) -> None:
    transport, protocol, client = net.tcp()
    transport.pauseProducing()
    transport.loseConnection()
    client.close()
    started_s = net.reactor.seconds()
    await net.until(lambda: protocol.lost)
    assert net.reactor.seconds() - started_s < LINGER_S / 2


@run
async def test_abort_sends_a_reset_and_drops_what_waits(net: Any) -> None:
    transport, protocol, client = net.tcp(SMALL)
    transport.write(b"x" * 3_000_000)
    transport.abortConnection()
    assert protocol.lost[0].check(ConnectionLost)
    with pytest.raises(ConnectionResetError):
        for _ in range(1000):
            if not client.recv(65_536):
                break
    transport.abortConnection()
    assert len(protocol.lost) == 1


@run
async def test_the_peers_fin_ends_an_open_connection_cleanly(net: Any) -> None:
    _, protocol, client = net.tcp()
    client.close()
    await net.until(lambda: protocol.lost)
    assert protocol.lost[0].check(ConnectionDone)


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    client.close()


@run
async def test_the_peers_reset_is_no_clean_end(net: Any) -> None:
    _, protocol, client = net.tcp()
    reset(client)
    await net.until(lambda: protocol.lost)
    assert protocol.lost[0].check(ConnectionLost)


@run
async def test_a_reset_in_the_middle_of_writing_tells_the_protocol_once(net: Any) -> None:
    transport, protocol, client = net.tcp(SMALL)
    transport.write(b"x" * 3_000_000)
    reset(client)
    await net.until(lambda: protocol.lost)
    assert protocol.lost[0].check(ConnectionLost) and len(protocol.lost) == 1
    assert transport.buffered_bytes() == 0


@run
async def test_a_write_that_fails_is_told_later_and_is_no_clean_end(net: Any) -> None:
    """connectionLost() never comes from inside write(); ConnectionDone would make a cut answer look complete."""
    transport, protocol, client = net.tcp()
    transport.pauseProducing()
    reset(client)
    transport.write(b"x")
    transport.write(b"y")
    assert protocol.lost == []
    transport.resumeProducing()
    await net.until(lambda: protocol.lost)
    assert protocol.lost[0].check(ConnectionLost) and len(protocol.lost) == 1


@run
async def test_a_fin_that_waited_behind_a_failed_write_does_not_make_it_a_clean_end(net: Any) -> None:
    """The peer sent its answer and FIN, then reset because of what we wrote: both are found at once."""
    transport, protocol, client = net.tcp()
    transport.pauseProducing()
    client.send(b"half an answer")
    client.close()
    for _ in range(100):
        if transport.state != OPEN:
            break
        transport.write(b"x")  # the first draws a RST, the next fails
        await net.turns(1)
    transport.resumeProducing()
    await net.until(lambda: protocol.lost)
    assert protocol.lost[0].check(ConnectionLost)


@run
@pytest.mark.parametrize("hears", [True, False])
async def test_what_a_peer_said_before_it_took_no_more_is_heard_by_who_wants_it(net: Any, hears: bool) -> None:
    """A backend that refuses an upload answers and closes: what is still on its way to it draws a RST."""
    transport, protocol, client = net.tcp()
    protocol.hears_last_words = hears
    client.send(b"an answer")
    client.close()
    transport.write(b"x")  # draws a RST, before the loop has read
    transport._send_turn()
    await net.until(lambda: select.select([], [transport._socket], [], 0)[1])
    transport.write(b"x")
    transport._send_turn()
    assert transport.state == BROKEN
    await net.until(lambda: protocol.lost)
    assert protocol.lost[0].check(ConnectionLost)
    assert protocol.received == (b"an answer" if hears else b"")


@run
async def test_last_words_are_heard_behind_a_long_write_too(net: Any) -> None:
    transport, protocol, client = net.tcp(SMALL)
    protocol.hears_last_words = True
    transport.write(b"x" * 3_000_000)
    await net.until(transport.blocked_bytes)
    client.send(b"an answer")
    client.close()  # with unread bytes: a RST
    transport.doWrite()
    await net.until(lambda: protocol.lost)
    assert protocol.received == b"an answer" and protocol.lost[0].check(ConnectionLost)


@run
async def test_abort_inside_make_connection_ends_it_before_it_reads(net: Any) -> None:
    from apigw.net.transport import TCPTransport

    server, client = net.socket_pair()
    client.send(b"early")
    protocol = net.Recorder()
    transport = TCPTransport(net.reactor, net.deadlines, server, None, protocol)
    protocol.on_made = transport.abortConnection
    transport.start()
    await net.turns(3)
    assert protocol.events == ["made", "lost"] and protocol.received == b""


@run
async def test_lose_connection_inside_make_connection_delivers_nothing(net: Any) -> None:
    from apigw.net.transport import TCPTransport

    server, client = net.socket_pair()
    client.send(b"early")
    protocol = net.Recorder()
    transport = TCPTransport(net.reactor, net.deadlines, server, None, protocol)
    protocol.on_made = transport.loseConnection
    transport.start()
    assert client.recv(10) == b""
    client.close()
    await net.until(lambda: protocol.lost)
    assert protocol.received == b""


@run
async def test_a_protocol_that_raises_loses_its_connection_and_no_other(net: Any) -> None:
    bad, bad_protocol, bad_client = net.tcp()
    _, good_protocol, good_client = net.tcp()

    def raising(data: bytes) -> None:
        raise ValueError("on purpose")

    bad_protocol.on_data = raising
    bad_client.send(b"x")
    good_client.send(b"y")
    await net.until(lambda: bad_protocol.lost and good_protocol.received)
    assert bad.state == DEAD


# -- facts


@run
async def test_stale_sees_a_closed_peer_and_unread_bytes_and_nothing_else(net: Any) -> None:
    transport, _, client = net.tcp()
    transport.pauseProducing()
    assert not transport.stale()
    client.send(b"unasked")
    await net.until(transport.stale)
    transport, protocol, client = net.tcp()
    transport.pauseProducing()
    client.close()
    await net.until(transport.stale)
    assert protocol.lost == []  # it only looks
    transport, _, client = net.tcp()
    transport.pauseProducing()
    reset(client)
    await net.until(transport.stale)
    transport.abortConnection()
    assert transport.stale()


@run
async def test_stale_of_a_connection_that_is_read_sees_what_came_before_the_turn(net: Any) -> None:
    """What arrived while others were waited for is in the poll of the turn that asks; nobody looks at the socket."""
    idle, protocol, client = net.tcp()
    _, waker, other = net.tcp()
    other.send(b"a turn that knows of nothing on the first")
    await net.until(lambda: waker.received)
    idle.stale()
    seen: list[bool] = []
    waker.on_data = lambda data: seen.append(idle.stale())
    other.send(b"quiet")
    await net.until(lambda: seen)
    assert seen == [False]
    order: list[str] = []
    protocol.on_data = lambda data: order.append("read")
    waker.on_data = lambda data: order.append("stale" if idle.stale() else "fresh")
    client.send(b"unasked")
    other.send(b"now")  # both are in one poll, in whatever order
    await net.until(lambda: len(order) == 2)
    assert order in (["stale", "read"], ["read", "fresh"])


@run
async def test_stale_looks_again_after_a_read_that_may_have_left_bytes(net: Any) -> None:
    transport, protocol, client = net.tcp()
    seen: list[bool] = []
    protocol.on_data = lambda data: seen.append(transport.stale())
    client.setblocking(True)
    client.sendall(b"x" * READ_BYTES + b"more")
    await net.until(lambda: len(protocol.received) == READ_BYTES + 4)
    assert seen[0] and not seen[-1]


@run
async def test_it_is_an_itransport_in_the_small_things(net: Any) -> None:
    transport, _, client = net.tcp()
    transport.writeSequence([b"a", b"b", b""])
    transport.write(b"")
    await net.turns(1)
    assert client.recv(10) == b"ab"
    assert transport.getHost() == client.getpeername() and transport.getPeer() == client.getsockname()
    assert transport.getTcpNoDelay()
    transport.setTcpKeepAlive(True)
    assert transport.getTcpKeepAlive()
    transport.loseWriteConnection()
    assert client.recv(1) == b""


@run
async def test_a_silent_peer_is_asked_by_the_kernel_as_often_as_told(net: Any) -> None:
    """Not after two hours, which is what SO_KEEPALIVE alone means."""
    transport, _, _ = net.tcp()
    transport.keep_alive(30.0)
    sock = transport._socket
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [30, 3, 3]
