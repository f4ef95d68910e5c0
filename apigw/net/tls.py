"""TLS on the server's side of a TCPTransport, by the standard library's ssl on memory BIOs.

OpenSSL sees whole reads and writes whole answers: one recv and one send a request. pyOpenSSL's path through
Twisted costs about 60 us more a request (measured); outbound TLS, which is rare, stays with Twisted.
"""

import ssl
from typing import Any, Iterator

from twisted.internet.error import ConnectionDone, ConnectionLost

from apigw.constants import READ_BYTES, TLS_HANDSHAKE_TIMEOUT_S
from apigw.net.transport import BROKEN, DEAD, OPEN, TCPTransport

_RECORD_BYTES = 16_384  # RFC 8446 5.1: the most plaintext of one record
_CIPHERTEXT_BYTES = 32_768  # one recv; as 1,400 records of one byte it takes 2 ms to decrypt
_RECORDS_AT_ONCE = 16
_MAX_FRUITLESS_RECORDS = 64  # in a row without a byte of data; OpenSSL allows 32 empty ones, but any key updates
_BIO_BYTES = 8_192  # given to OpenSSL at once: a memory BIO never gives back what it once grew to (4/3 of it)


class TLSTransport(TCPTransport):
    """A TCPTransport whose bytes are TLS records. The protocol is connected once the handshake is done.

    protocol.handshakeFailed(reason) is called instead of connectionLost when it never was.
    """

    __slots__ = (
        "_ssl",
        "_incoming",
        "_outgoing",
        "_handshake_deadline",
        "_connected",
        "_paused",
        "_resuming",
        "_eof",
        "_pumping",
        "_held",
        "_record_left",
        "_fruitless",
    )

    def __init__(
        self, reactor: Any, deadlines: Any, sock: Any, peer: Any, protocol: Any, context: ssl.SSLContext
    ) -> None:
        super().__init__(reactor, deadlines, sock, peer, protocol)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._connected = False
        self._paused = False
        self._resuming = False
        self._eof = False
        self._pumping = False
        self._held = b""  # ciphertext that OpenSSL has not been given yet
        self._record_left = 0  # bytes to come of the record that it was given a part of
        self._fruitless = 0
        self._handshake_deadline: Any = None

    def start(self) -> None:
        self._handshake_deadline = self.deadlines.add(TLS_HANDSHAKE_TIMEOUT_S, self._handshake_over)
        super().resumeProducing()

    def _handshake_over(self) -> None:
        self._lose(ConnectionLost("TLS handshake timeout"))

    def doRead(self) -> None:
        try:
            data = self._recv(_CIPHERTEXT_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(ConnectionLost(str(error)))
            return
        if not data:
            self._ended()
            return
        if self.state != OPEN:
            return
        try:
            if self._held or not self._connected or self._pumping or self._paused or not self._one_record(data):
                self._held = self._held + data if self._held else data
                if self._connected or self._handshake():
                    self._pump()
        except ssl.SSLError as error:
            self._flush()  # the alert
            self._send_turn()
            self._lose(ConnectionLost(error.reason or "TLS error"))

    def _one_record(self, data: bytes) -> bool:
        """The usual case in short: a request that came as one whole record. False: nothing was done."""
        size = len(data)
        if self._record_left or not 5 < size <= _BIO_BYTES or 5 + (data[3] << 8) + data[4] != size:
            return False
        self._incoming.write(data)
        self._fruitless += 1
        plaintext = b""
        try:
            plaintext = self._ssl.read(_RECORD_BYTES)
            self._eof = not plaintext  # the peer's close_notify, as OpenSSL has it in Python
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._eof = True
        if plaintext:
            self._fruitless = 0
            self.protocol.dataReceived(plaintext)
        elif self._fruitless > _MAX_FRUITLESS_RECORDS:
            self._lose(ConnectionLost("too many TLS records without data"))
        else:
            self._pump()  # a key update's answer, or the end
        return True

    def _feed(self) -> bool:
        """Give OpenSSL some of the ciphertext that is held: a few whole records, or a part of a large one.

        Record headers are read here (RFC 8446 5.1) since OpenSSL works off all that it has in one call, and
        a key update of 27 bytes costs it 37 us. False when nothing is held, or less than a header.
        """
        held = self._held
        records = 0
        end = self._record_left
        while records < _RECORDS_AT_ONCE and end < _BIO_BYTES and end + 5 <= len(held):
            end += 5 + (held[end + 3] << 8) + held[end + 4]
            records += 1
        if end == len(held) <= _BIO_BYTES:
            fed, self._held = held, b""
        else:
            cut = min(end, _BIO_BYTES)
            fed, self._held = held[:cut], held[cut:]
        self._record_left = end - len(fed)
        self._fruitless += records
        self._incoming.write(fed)
        return bool(fed)

    def _handshake(self) -> bool:
        while self._feed():
            try:
                self._ssl.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
        else:
            self._flush()
            return False
        self._flush()
        self._handshake_deadline.pop(self._handshake_over, None)
        if self.state != OPEN:  # the last flight could not be sent
            return False
        self._connected = True
        self.protocol.makeConnection(self)
        return True

    def _pump(self) -> None:
        """Decrypt while there is ciphertext and the protocol wants more. At most one read's worth is kept."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self.state == OPEN and not self._paused:
                data = self._plaintext()
                if not data:
                    break
                self.protocol.dataReceived(data)
        finally:
            self._pumping = False
        if self._eof and self.state == OPEN:
            self._lose(ConnectionDone())

    def _plaintext(self) -> bytes:
        """What the records at hand hold, as one piece: a flood of tiny records is parsed once, not once each."""
        tls, incoming = self._ssl, self._incoming
        pieces: list[bytes] = []
        size = 0
        try:
            while size < READ_BYTES and not self._eof:
                if not incoming.pending and not tls.pending() and not self._feed():
                    break
                try:
                    data = tls.read(_RECORD_BYTES)
                except ssl.SSLWantReadError:  # half a record, or one without data
                    if self._fruitless > _MAX_FRUITLESS_RECORDS:
                        self._lose(ConnectionLost("too many TLS records without data"))
                        return b""
                    if not self._feed():
                        break
                    continue
                self._fruitless = 0
                if not data:
                    self._eof = True
                pieces.append(data)
                size += len(data)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._eof = True
        if self._outgoing.pending:  # a key update's answer
            self._flush()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data and self.state < BROKEN:
            self._write_raw(data)

    def write(self, data: bytes) -> None:
        if self.state != OPEN or not data:
            return
        try:
            if len(data) <= _RECORD_BYTES:
                self._ssl.write(data)
                self._write_raw(self._outgoing.read())
            else:
                self._write_raw(b"".join(self._records(data)))
        except ssl.SSLError as error:
            self._break(error.reason or "TLS error")

    def _records(self, data: bytes) -> Iterator[bytes]:
        """Record by record, so that the BIO does not grow to the size of an answer."""
        for at in range(0, len(data), _RECORD_BYTES):
            self._ssl.write(data[at : at + _RECORD_BYTES])
            yield self._outgoing.read()

    def pauseProducing(self) -> None:
        self._paused = True
        super().pauseProducing()

    def resumeProducing(self) -> None:
        """What is held is delivered in a turn of its own: no dataReceived() from inside this call."""
        self._paused = False
        super().resumeProducing()
        if self.state == OPEN and self._connected and not self._pumping and not self._resuming:
            if self._held or self._incoming.pending or self._ssl.pending():
                self._resuming = True
                self.reactor.callLater(0, self._resumed)

    def _resumed(self) -> None:
        self._resuming = False
        if self.state != OPEN:
            return
        try:
            self._pump()
        except ssl.SSLError as error:
            self._lose(ConnectionLost(error.reason or "TLS error"))

    def loseConnection(self) -> None:
        if self.state == OPEN:
            self._close_notify()
        super().loseConnection()

    def _close_notify(self) -> None:
        try:
            self._ssl.unwrap()
        except ssl.SSLError:
            pass  # the peer's close_notify is not waited for; ours is in the BIO
        self._flush()

    def _lose(self, reason: Exception) -> None:
        if self.state == DEAD:
            return
        if self._handshake_deadline is not None:
            self._handshake_deadline.pop(self._handshake_over, None)
        if self._connected:
            super()._lose(reason)
        else:
            self.protocol = _Unconnected(self.protocol)
            super()._lose(reason)


class _Unconnected:
    """Stands for a protocol that was never connected."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol

    def connectionLost(self, reason: Any) -> None:
        self._protocol.handshakeFailed(reason)
