"""TLS on the server's side of a TCPTransport, by the standard library's ssl on memory BIOs.

OpenSSL sees whole reads and writes whole answers: one recv and one send a request. pyOpenSSL's path through
Twisted costs about 60 us more a request (measured); outbound TLS, which is rare, stays with Twisted.
"""

import ssl
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost

from apigw.constants import TLS_HANDSHAKE_TIMEOUT_S
from apigw.net.transport import DEAD, OPEN, TCPTransport

_RECORD_BYTES = 16_384  # RFC 8446 5.1: the most plaintext of one record
_CIPHERTEXT_BYTES = 65_536


class TLSTransport(TCPTransport):
    """A TCPTransport whose bytes are TLS records. The protocol is connected once the handshake is done.

    protocol.handshakeFailed(reason) is called instead of connectionLost when it never was.
    """

    __slots__ = ("_ssl", "_incoming", "_outgoing", "_handshake_deadline", "_connected", "_paused", "_eof", "_pumping")

    def __init__(
        self, reactor: Any, deadlines: Any, sock: Any, peer: Any, protocol: Any, context: ssl.SSLContext
    ) -> None:
        super().__init__(reactor, deadlines, sock, peer, protocol)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._connected = False
        self._paused = False
        self._eof = False
        self._pumping = False
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
        self._incoming.write(data)
        try:
            if self._connected or self._handshake():
                self._pump()
        except ssl.SSLError as error:
            self._flush()  # the alert
            self._lose(ConnectionLost(error.reason or "TLS error"))

    def _handshake(self) -> bool:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        self._flush()
        self._handshake_deadline.pop(self._handshake_over, None)
        self._connected = True
        if self.state == OPEN:
            self.protocol.makeConnection(self)
        return True

    def _pump(self) -> None:
        """Decrypt while there is ciphertext and the protocol wants more. At most one read's worth is kept."""
        if self._pumping:
            return
        self._pumping = True
        tls, incoming = self._ssl, self._incoming
        try:
            while self.state == OPEN and not self._paused:
                if not incoming.pending and not tls.pending():
                    break
                data = tls.read(_RECORD_BYTES)
                if not data:
                    self._eof = True
                    break
                self.protocol.dataReceived(data)
        except ssl.SSLWantReadError:
            if self._outgoing.pending:  # a key update's or a ticket's answer
                self._flush()
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._eof = True
        finally:
            self._pumping = False
        if self._eof and self.state == OPEN:
            self._lose(ConnectionDone())

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data and self.state != DEAD:
            self._write_raw(data)

    def write(self, data: bytes) -> None:
        if self.state == OPEN:
            self._ssl.write(data)
            self._write_raw(self._outgoing.read())

    def pauseProducing(self) -> None:
        self._paused = True
        super().pauseProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        if self.state == OPEN and self._connected and not self._pumping:
            try:
                self._pump()
            except ssl.SSLError as error:
                self._lose(ConnectionLost(error.reason or "TLS error"))
                return
            if self._paused:
                return
        super().resumeProducing()

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
