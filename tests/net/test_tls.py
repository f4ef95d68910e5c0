"""TLS over real sockets against OpenSSL as the client: handshakes, records, closing, and hostile bytes."""

import os
import socket
import ssl
import subprocess
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.error import ConnectionDone, ConnectionLost

from apigw.constants import LINGER_S, READ_BYTES, TLS_HANDSHAKE_TIMEOUT_S
from apigw.net.tls import TLSTransport
from apigw.net.transport import DEAD

from .conftest import client_context, drain

run = pytest_twisted.ensureDeferred
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


class Peer:
    """The client's side: an SSLObject whose bytes the test moves by hand."""

    def __init__(self, net: Any, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> None:
        self.server_socket, self.socket = net.socket_pair()
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost", session=session)
        self.net = net
        self.unsent = b""
        self.received = bytearray()
        self.closed = False

    def move(self) -> None:
        """Send what waits, take in what has come; never blocks."""
        self.unsent += self.outgoing.read()
        if self.unsent:
            try:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
            except (BlockingIOError, ConnectionError):
                pass
        try:
            self.incoming.write(drain(self.socket))
        except ConnectionResetError:
            self.closed = True

    def handshaken(self) -> bool:
        self.move()
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self.move()
        return True

    def read(self) -> None:
        self.move()
        try:
            while True:
                data = self.tls.read(65_536)
                if not data:
                    self.closed = True
                    return
                self.received += data
        except ssl.SSLWantReadError:
            return
        except ssl.SSLZeroReturnError:
            self.closed = True

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self.move()


def start(net: Any, context: ssl.SSLContext, peer: Peer) -> tuple[TLSTransport, Any]:
    protocol = net.Recorder()
    transport = TLSTransport(net.reactor, net.deadlines, peer.server_socket, None, protocol, context)
    net.keep(transport)
    transport.start()
    return transport, protocol


async def connected(
    net: Any, context: ssl.SSLContext, client: ssl.SSLContext | None = None
) -> tuple[TLSTransport, Any, Peer]:
    peer = Peer(net, client or client_context())
    transport, protocol = start(net, context, peer)
    await net.until(peer.handshaken)
    await net.until(lambda: protocol.events == ["made"])
    return transport, protocol, peer


@run
@pytest.mark.parametrize("version", VERSIONS)
async def test_data_passes_both_ways(net: Any, server_context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    transport, protocol, peer = await connected(net, server_context, client_context(version))
    peer.send(b"request")
    await net.until(lambda: protocol.received == b"request")
    transport.write(b"answer")
    transport.write(b"")
    await net.turns(1)
    peer.read()
    assert peer.received == b"answer"
    assert peer.tls.version() == version.name.replace("_", ".")


@run
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_handshake_that_comes_byte_by_byte_is_made(
    net: Any, server_context: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    peer = Peer(net, client_context(version))
    _, protocol = start(net, server_context, peer)
    flights = 0
    while not protocol.events:
        try:
            peer.tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        flight = peer.outgoing.read()
        for octet in flight:
            peer.socket.send(bytes((octet,)))
            await net.turns(1)
        flights += bool(flight)
        await net.turns(2)
        peer.incoming.write(drain(peer.socket))
        assert flights < 5
    assert protocol.events == ["made"]


@run
async def test_the_request_that_comes_with_the_last_handshake_message_is_delivered(
    net: Any, server_context: ssl.SSLContext
) -> None:
    peer = Peer(net, client_context(ssl.TLSVersion.TLSv1_3))
    _, protocol = start(net, server_context, peer)
    while True:
        try:
            peer.tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            peer.move()
            await net.turns(1)
    peer.tls.write(b"early bird")
    peer.move()
    await net.until(lambda: protocol.received == b"early bird")
    assert protocol.events == ["made"]


@run
async def test_a_handshake_that_never_ends_is_ended_at_its_deadline(server_context: ssl.SSLContext, net: Any) -> None:
    """Dribbling bytes of a ClientHello does not move the deadline; the protocol is told by handshakeFailed()."""
    from twisted.internet.task import Clock

    from apigw.net.deadlines import Deadlines

    clock = Clock()
    net.deadlines = Deadlines(clock)
    peer = Peer(net, client_context())
    transport, protocol = start(net, server_context, peer)
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.do_handshake()
    hello = peer.outgoing.read()
    for octet in hello[:50]:
        peer.socket.send(bytes((octet,)))
        await net.turns(1)
        clock.advance(TLS_HANDSHAKE_TIMEOUT_S / 51)
    assert protocol.events == []
    clock.advance(TLS_HANDSHAKE_TIMEOUT_S / 25)
    assert protocol.events == ["handshake failed"] and transport.state == DEAD


GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\0" * 100,
    b"\x16\x03\x01\xff\xff" + b"\x01" * 100,
    b"\x16\x03\x01\x00\x05hello",
    b"\x17\x03\x03\x00\x20" + b"x" * 32,
    b"\x80\x2e\x01\x00\x02" + b"\0" * 60,  # an SSLv2 hello
    os.urandom(5000),
]


@run
@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
async def test_garbage_instead_of_a_client_hello_ends_it(
    net: Any, server_context: ssl.SSLContext, garbage: bytes
) -> None:
    peer = Peer(net, client_context())
    transport, protocol = start(net, server_context, peer)
    peer.socket.send(garbage)
    peer.socket.shutdown(1)
    await net.until(lambda: protocol.events)
    assert protocol.events == ["handshake failed"] and transport.state == DEAD


@run
async def test_a_client_with_nothing_in_common_gets_an_alert(net: Any, server_context: ssl.SSLContext) -> None:
    client = client_context(ssl.TLSVersion.TLSv1_2)
    client.set_ciphers("AES128-SHA")
    peer = Peer(net, client)
    _, protocol = start(net, server_context, peer)
    with pytest.raises(ssl.SSLError, match="(?i)alert"):
        for _ in range(50):
            if peer.handshaken():
                break
            await net.turns(1)
    assert protocol.events == ["handshake failed"]


@run
async def test_a_peer_that_vanishes_in_the_handshake_is_no_connection(net: Any, server_context: ssl.SSLContext) -> None:
    peer = Peer(net, client_context())
    _, protocol = start(net, server_context, peer)
    peer.socket.close()
    await net.until(lambda: protocol.events)
    assert protocol.events == ["handshake failed"]


@run
@pytest.mark.parametrize("version", VERSIONS)
async def test_garbage_after_the_handshake_ends_it_uncleanly(
    net: Any, server_context: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    _, protocol, peer = await connected(net, server_context, client_context(version))
    peer.socket.send(b"\x17\x03\x03\x00\x20" + b"x" * 32)
    await net.until(lambda: protocol.lost)
    assert protocol.lost[0].check(ConnectionLost) and protocol.received == b""


@run
@pytest.mark.parametrize("version", VERSIONS)
async def test_ten_megabytes_pass_both_ways_at_once(
    net: Any, server_context: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    transport, protocol, peer = await connected(net, server_context, client_context(version))
    up, down = os.urandom(10_000_000), os.urandom(10_000_000)
    transport.write(down)
    peer.tls.write(up)

    def moved() -> bool:
        peer.read()
        return len(peer.received) == len(down) and len(protocol.received) == len(up)

    await net.until(moved, 20)
    assert peer.received == down and protocol.received == up


@run
async def test_a_flood_of_tiny_records_is_delivered_as_few_large_pieces(
    net: Any, server_context: ssl.SSLContext
) -> None:
    """Each delivery costs a parse: 3,000 records of one byte must not cost 3,000 of them."""
    _, protocol, peer = await connected(net, server_context)
    for number in range(3000):
        peer.tls.write(bytes((number % 251,)))
    await net.until(lambda: peer.move() or len(protocol.received) == 3000)
    assert protocol.received == bytes(number % 251 for number in range(3000))
    assert protocol.calls < 30


@run
async def test_records_that_come_in_any_pieces_are_put_together(net: Any, server_context: ssl.SSLContext) -> None:
    _, protocol, peer = await connected(net, server_context)
    sent = b"".join(bytes((n,)) * (n * 400 % 17_000) for n in range(100))
    for n in range(100):
        peer.tls.write(bytes((n,)) * (n * 400 % 17_000))
    wire = peer.outgoing.read()
    sizes = [1, 2, 3, 4, 5, 7, 4099, 11, 8192, 1, 5, 16_401, 2]
    at = turn = 0
    while at < len(wire):
        try:
            at += peer.socket.send(wire[at : at + sizes[turn % len(sizes)]])
        except BlockingIOError:
            pass
        turn += 1
        await net.turns(1)
    await net.until(lambda: len(protocol.received) >= len(sent))
    assert protocol.received == sent


_KEY_UPDATE_BYTES = 27  # a record: header 5, message 5, content type 1, tag 16


@run
@pytest.mark.parametrize("at_once", [True, False])
async def test_key_updates_without_data_are_ended_before_they_cost_a_turn(
    net: Any, server_context: ssl.SSLContext, at_once: bool
) -> None:
    """A KeyUpdate that asks for one costs OpenSSL 37 us for 27 bytes; openssl s_client makes them ("K")."""
    peer = Peer(net, client_context())  # its sockets are the relay's
    transport, protocol = start(net, server_context, peer)
    relay = net.keep(socket.socket())
    relay.bind(("127.0.0.1", 0))
    relay.listen(1)
    port = relay.getsockname()[1]
    client = subprocess.Popen(
        ["openssl", "s_client", "-tls1_3", "-connect", f"127.0.0.1:{port}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )
    try:
        relay.settimeout(10)
        inner = net.keep(relay.accept()[0])
        inner.setblocking(False)

        def relayed() -> bool:
            peer.socket.send(drain(inner))
            inner.send(drain(peer.socket))
            return bool(protocol.events)

        await net.until(relayed, 10)
        await net.turns(3)
        relayed()  # its tickets
        flood = b""
        assert client.stdin is not None
        inner.settimeout(5)
        for _ in range(200):
            client.stdin.write(b"K\n")
            flood += inner.recv(65_536)
        if at_once:
            peer.socket.send(flood)
        for start_at in range(0, 0 if at_once else len(flood), _KEY_UPDATE_BYTES):
            if not protocol.lost:
                peer.socket.send(flood[start_at : start_at + _KEY_UPDATE_BYTES])
                await net.turns(1)
        await net.until(lambda: protocol.lost)
        assert "without data" in protocol.lost[0].getErrorMessage()
    finally:
        client.kill()
        client.wait()
        client.stdin.close()  # type: ignore[union-attr]


# -- pausing


@run
async def test_a_pause_inside_data_received_holds_what_is_decrypted_later(
    net: Any, server_context: ssl.SSLContext
) -> None:
    """What was read but not decrypted stays in the transport; resuming delivers it without another read event."""
    transport, protocol, peer = await connected(net, server_context)
    protocol.on_data = lambda data: transport.pauseProducing()
    sent = os.urandom(300_000)
    peer.tls.write(sent)
    await net.until(lambda: peer.move() or protocol.calls == 1)
    await net.turns(5)
    assert protocol.calls == 1 and len(protocol.received) <= 2 * READ_BYTES
    calls = protocol.calls
    while len(protocol.received) < len(sent):
        transport.resumeProducing()
        assert protocol.calls == calls, "delivered from inside resumeProducing()"
        await net.until(lambda: peer.move() or protocol.calls > calls)
        assert protocol.calls == calls + 1
        calls = protocol.calls
    assert protocol.received == sent


@run
async def test_pausing_and_resuming_many_times_in_one_turn_delivers_once(
    net: Any, server_context: ssl.SSLContext
) -> None:
    transport, protocol, peer = await connected(net, server_context)
    transport.pauseProducing()
    peer.send(b"x" * 20_000)
    await net.turns(3)
    assert protocol.received == b""
    for _ in range(5):
        transport.resumeProducing()
        transport.pauseProducing()
    await net.turns(3)
    assert protocol.received == b""
    transport.resumeProducing()
    await net.until(lambda: len(protocol.received) == 20_000)


@run
async def test_resume_inside_data_received_is_not_recursive(net: Any, server_context: ssl.SSLContext) -> None:
    transport, protocol, peer = await connected(net, server_context)
    depth = 0

    def on_data(data: bytes) -> None:
        nonlocal depth
        assert depth == 0
        depth += 1
        transport.pauseProducing()
        transport.resumeProducing()
        depth -= 1

    protocol.on_data = on_data
    peer.tls.write(b"x" * 500_000)
    await net.until(lambda: peer.move() or len(protocol.received) == 500_000)


@run
async def test_a_producer_is_paused_by_ciphertext_that_waits(net: Any, server_context: ssl.SSLContext) -> None:
    transport, _, peer = await connected(net, server_context)
    producer = net.Producer()
    transport.registerProducer(producer, True)
    written = 0
    while not producer.told:
        transport.write(b"x" * 50_000)
        written += 50_000
        assert written < 50_000_000
    await net.until(lambda: peer.read() or len(producer.told) == 2)
    assert producer.told == ["pause", "resume"]


# -- ending


@run
@pytest.mark.parametrize("version", VERSIONS)
async def test_lose_connection_sends_close_notify_behind_the_answer(
    net: Any, server_context: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    transport, protocol, peer = await connected(net, server_context, client_context(version))
    transport.write(b"x" * 2_000_000)
    transport.loseConnection()
    await net.until(lambda: peer.read() or peer.closed)
    assert len(peer.received) == 2_000_000
    peer.socket.close()
    await net.until(lambda: protocol.lost)
    assert protocol.lost[0].check(ConnectionDone)


@run
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_refusal_is_final_whatever_the_client_still_sends(
    net: Any, server_context: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    """Twisted's own TLS delivers data after loseConnection(): a refused request's rest would be dispatched."""
    transport, protocol, peer = await connected(net, server_context, client_context(version))

    def refuse(data: bytes) -> None:
        transport.write(b"400")
        transport.loseConnection()

    protocol.on_data = refuse
    peer.tls.write(b"bad")
    peer.tls.write(b"GET /smuggled-in-the-same-segment")
    peer.move()
    await net.until(lambda: protocol.calls)
    received = bytes(protocol.received)
    assert received.startswith(b"bad")
    for _ in range(3):
        peer.send(b"GET /smuggled-later HTTP/1.1\r\n\r\n")
        await net.turns(2)
    assert protocol.received == received and protocol.calls == 1
    peer.read()
    assert peer.received == b"400" and peer.closed


@run
async def test_lose_connection_with_ciphertext_held_delivers_none_of_it(
    net: Any, server_context: ssl.SSLContext
) -> None:
    transport, protocol, peer = await connected(net, server_context)
    protocol.on_data = lambda data: transport.pauseProducing()
    peer.tls.write(b"x" * 300_000)
    await net.until(lambda: peer.move() or protocol.calls)
    taken = len(protocol.received)
    transport.resumeProducing()
    transport.loseConnection()
    await net.turns(5)
    assert len(protocol.received) == taken
    await net.until(lambda: peer.read() or peer.closed)


@run
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("version", VERSIONS)
async def test_the_peers_close_notify_is_a_clean_end(
    net: Any, server_context: ssl.SSLContext, version: ssl.TLSVersion, together: bool
) -> None:
    """Behind other records or as one of its own; a FIN need not follow."""
    transport, protocol, peer = await connected(net, server_context, client_context(version))
    peer.tls.write(b"last words")
    if not together:
        peer.move()
        await net.until(lambda: protocol.received)
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.unwrap()
    peer.move()
    await net.until(lambda: protocol.lost)
    assert protocol.received == b"last words"
    assert protocol.lost[0].check(ConnectionDone) and transport.state == DEAD


@run
async def test_a_fin_without_close_notify_ends_it_too(net: Any, server_context: ssl.SSLContext) -> None:
    _, protocol, peer = await connected(net, server_context)
    peer.socket.close()
    await net.until(lambda: protocol.lost)
    assert len(protocol.lost) == 1


@run
async def test_a_client_that_stays_after_our_close_notify_is_left_after_the_linger(
    net: Any, server_context: ssl.SSLContext
) -> None:
    transport, protocol, _ = await connected(net, server_context)
    started_s = net.reactor.seconds()
    transport.loseConnection()
    await net.until(lambda: protocol.lost)
    assert LINGER_S <= net.reactor.seconds() - started_s < LINGER_S + 0.5


@run
@pytest.mark.parametrize("ending", ["loseConnection", "abortConnection"])
async def test_ending_inside_make_connection_delivers_nothing(
    net: Any, server_context: ssl.SSLContext, ending: str
) -> None:
    peer = Peer(net, client_context(ssl.TLSVersion.TLSv1_3))
    transport, protocol = start(net, server_context, peer)
    protocol.on_made = getattr(transport, ending)
    await net.until(peer.handshaken)
    try:
        peer.send(b"hello")
        await net.turns(3)
        peer.socket.close()
    except OSError:
        pass  # reset already
    await net.until(lambda: protocol.lost)
    assert protocol.events == ["made", "lost"] and protocol.received == b""


@run
async def test_abort_inside_data_received_delivers_nothing_more(net: Any, server_context: ssl.SSLContext) -> None:
    transport, protocol, peer = await connected(net, server_context)
    protocol.on_data = lambda data: transport.abortConnection()
    peer.tls.write(b"x" * 200_000)
    await net.until(lambda: peer.move() or protocol.lost)
    assert protocol.calls == 1 and protocol.lost[0].check(ConnectionLost)
    transport.write(b"too late")
    transport.loseConnection()
    transport.resumeProducing()
    assert len(protocol.lost) == 1


# -- economy


@run
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_session_is_resumed(net: Any, server_context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    client = client_context(version)
    transport, protocol, peer = await connected(net, server_context, client)
    transport.write(b"x")
    await net.until(lambda: peer.read() or peer.received)
    session = peer.tls.session
    assert session is not None and not peer.tls.session_reused
    again = Peer(net, client, session)
    start(net, server_context, again)
    await net.until(again.handshaken)
    assert again.tls.session_reused


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@run
async def test_an_idle_connection_holds_less_than_64_kib_even_after_large_messages(
    net: Any, server_context: ssl.SSLContext
) -> None:
    """A memory BIO never shrinks: what passed through in one piece would stay for as long as the connection."""
    client = client_context()
    kept = []

    async def grow(count: int) -> None:
        for _ in range(count):
            transport, protocol, peer = await connected(net, server_context, client)
            transport.write(b"x" * 65_536)
            peer.tls.write(b"x" * 65_536)
            peer.received.clear()
            done = 65_536
            await net.until(lambda: peer.read() or (len(protocol.received) == done and len(peer.received) == done))
            protocol.received = bytearray()
            peer.received = bytearray()
            del peer.tls, peer.incoming, peer.outgoing
            kept.append((transport, peer))

    await grow(20)
    before = resident_bytes()
    await grow(60)
    assert (resident_bytes() - before) / 60 < 64 * 1024
