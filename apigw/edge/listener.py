"""Listening sockets: accept, admit, and hand to a channel over a lean transport."""

import errno
import socket
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

from apigw.config.model import Listener
from apigw.edge.certificates import ServerNames
from apigw.edge.channel import Channel
from apigw.edge.site import Site
from apigw.net.tls import TLSTransport
from apigw.net.transport import TCPTransport

BACKLOG = 1024  # connections that wait while the loop is busy; the kernel caps it at net.core.somaxconn
# Above it the kernel takes no more. Its own bound grows to 4 MiB, and it asks for more only when a third is free: a
# client that takes 40 KB/s then shows no progress for 30 s, and is cut as one that takes nothing.
UNSENT_BYTES = 131_072
_ACCEPTS_PER_TURN = 64  # then the other descriptors get their turn
_FULL_PAUSE_S = 0.2  # out of file descriptors: look again then, not in a tight loop

log = Logger()


@implementer(IReadDescriptor)
class ListeningPort:
    """One listening socket of the configuration. `names` is swapped by a reload that brings new certificates."""

    lean_io = True

    def __init__(
        self, reactor: Any, site: Site, listener: Listener, names: ServerNames | None, sock: socket.socket
    ) -> None:
        self.listener = listener
        self.names = names
        self._reactor = reactor
        self._site = site
        self._socket = sock
        self._fd = sock.fileno()
        self._full_logged = False
        self.refused = 0  # connections over the limits, closed at once

    def start(self) -> None:
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Close the listening socket; connections live on."""
        if self._fd != -1:
            self._reactor.removeReader(self)
            self._fd = -1
            self._socket.close()

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def doRead(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            if self._fd == -1:
                return
            try:
                sock, address = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._accept_failed(error)
                return
            self._full_logged = False
            try:
                self._serve(sock, address)
            except OSError:  # the peer was gone before we looked
                sock.close()

    def _serve(self, sock: socket.socket, address: Any) -> None:
        peer_ip = address[0]
        if peer_ip.startswith("::ffff:"):
            peer_ip = peer_ip[7:]
        if not self._site.admits(peer_ip):
            self.refused += 1
            sock.close()
            return
        sock.setblocking(False)
        secure = self.names is not None
        channel = Channel(self._site, peer_ip, secure)
        peer = (IPv6Address if ":" in peer_ip else IPv4Address)("TCP", peer_ip, address[1])
        deadlines = self._site.deadlines
        transport: TCPTransport
        if self.names is not None:
            transport = TLSTransport(self._reactor, deadlines, sock, peer, channel, self.names.default)
        else:
            transport = TCPTransport(self._reactor, deadlines, sock, peer, channel)
        self._site.accepted(channel)
        transport.start()

    def _accept_failed(self, error: OSError) -> None:
        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            return  # ECONNABORTED and its like: the peer's matter
        if not self._full_logged:
            self._full_logged = True
            log.error("cannot accept connections: {error}", error=error)
        self._reactor.removeReader(self)
        self._reactor.callLater(_FULL_PAUSE_S, self._again)

    def _again(self) -> None:
        if self._fd != -1:
            self._reactor.addReader(self)

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "listener"

    def connectionLost(self, reason: Any) -> None:
        self.stop()

    def abortConnection(self) -> None:
        """The reactor's last resort after an exception in doRead: go on listening."""
        log.error("the listener {where} had an internal error", where=f"{self.listener.address}:{self.listener.port}")


def bind(listener: Listener) -> socket.socket:
    """A bound, listening socket. Raises OSError, which names the address, when it is taken or not ours."""
    family = socket.AF_INET6 if ":" in listener.address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)  # accepted sockets inherit it
        sock.bind((listener.address, listener.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {listener.address}:{listener.port}: {error.strerror}") from error
    return sock
