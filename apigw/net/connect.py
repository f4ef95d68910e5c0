"""Outgoing TCP connections over lean transports, with a deadline; names are resolved off the loop and kept."""

import errno
import ipaddress
import os
import socket
from typing import Any, Protocol, Sequence

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from apigw.core.discovery import leads_astray
from apigw.net.deadlines import Deadlines
from apigw.net.threads import in_thread
from apigw.net.transport import TCPTransport

_RESOLVED_FOR_S = 30.0  # a name's addresses are asked again after that; when that fails the old ones stay
_MAX_NAMES = 4096  # kept; where instances come and go for months, all are forgotten once in a while

# Machine words of a failed connection; log, metrics and docs use them as they stand.
REFUSED, TIMED_OUT, UNREACHABLE, UNRESOLVED = "connection_refused", "connect_timeout", "unreachable", "unresolved"
EXHAUSTED = "gateway_exhausted"

# This host has no descriptor, port, thread or memory left for a connection: that says nothing about the other side.
_EXHAUSTION = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EAGAIN))

Address = tuple[int, Any]  # socket family, sockaddr
_Name = tuple[str, int]  # host and port as configured or discovered


class Wanting(Protocol):
    """Who wants a connection: gets one of both, exactly once, never from inside connect()."""

    def connect_done(self, sock: socket.socket, peer: Any) -> None: ...

    def connect_failed(self, reason: str, detail: str) -> None: ...


@implementer(IWriteDescriptor)
class _Attempt:
    """One connection to be: non-blocking connects until one succeeds."""

    lean_io = True

    def __init__(self, reactor: Any, deadlines: Deadlines, timeout_s: float, wanting: Wanting) -> None:
        self._reactor = reactor
        self._wanting = wanting
        self._socket: socket.socket | None = None
        self._fd = -1
        self._trying = False  # whether the reactor watches it
        self._address: Any = None
        self._untried: list[Address] = []
        self._bucket = deadlines.add(timeout_s, self._over)

    def begin(self, addresses: Sequence[Address]) -> None:
        """Try one after the other ("localhost" may be ::1 first, with nobody there); the deadline holds for all."""
        self._untried = list(addresses)
        self._try_next()

    def _try_next(self) -> None:
        if self._wanting is None:
            return
        family, self._address = self._untried.pop(0)
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        except OSError as error:  # out of descriptors, or a family that this host has not
            self._reactor.callLater(0, self._failed, _word(error.errno), os.strerror(error.errno or 0))
            return
        self._socket = sock
        self._fd = sock.fileno()
        code = sock.connect_ex(self._address)
        if code not in (0, errno.EINPROGRESS):
            self._reactor.callLater(0, self._failed, _word(code), os.strerror(code))
            return
        self._trying = True
        self._reactor.addWriter(self)

    def doWrite(self) -> None:
        sock = self._socket
        if sock is None:
            return
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._failed(_word(code), os.strerror(code))
            return
        try:
            sock.getpeername()
        except OSError:  # the event was of a descriptor closed in this turn, whose number is now ours
            return
        self._trying = False
        self._reactor.removeWriter(self)
        self._fd = -1
        self._socket = None
        self._bucket.pop(self._over, None)
        wanting, self._wanting = self._wanting, None  # type: ignore[assignment]
        host, port = self._address[:2]
        peer = (IPv6Address if ":" in host else IPv4Address)("TCP", host, port)
        wanting.connect_done(sock, peer)

    doRead = doWrite  # EPOLLERR comes without EPOLLOUT

    def _over(self) -> None:
        self._fail(TIMED_OUT, "no answer to the connect in time")

    def _failed(self, reason: str, detail: str) -> None:
        """This address is no good."""
        self._drop()
        if self._untried:
            self._try_next()
        else:
            self._fail(reason, detail)

    def _drop(self) -> None:
        if self._socket is not None:
            if self._trying:
                self._trying = False
                self._reactor.removeWriter(self)
            self._fd = -1
            self._socket.close()
            self._socket = None

    def _fail(self, reason: str, detail: str) -> None:
        if self._wanting is None:
            return
        self._drop()
        self._bucket.pop(self._over, None)
        wanting, self._wanting = self._wanting, None  # type: ignore[assignment]
        wanting.connect_failed(reason, detail)

    def unresolved(self, failure: Failure) -> None:
        number = failure.value.errno if isinstance(failure.value, OSError) else None
        if number in _EXHAUSTION:
            self._fail(EXHAUSTED, failure.getErrorMessage())
        elif _exhausted():  # a resolver that cannot open its files says: no such name
            self._fail(EXHAUSTED, os.strerror(errno.EMFILE))
        else:
            self._fail(UNRESOLVED, failure.getErrorMessage())

    def abortConnection(self) -> None:
        self._fail(UNREACHABLE, "internal error")

    def connectionLost(self, reason: Failure) -> None:
        self._fail(UNREACHABLE, reason.getErrorMessage())

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "connect"


def _word(code: int | None) -> str:
    if code == errno.ECONNREFUSED:
        return REFUSED
    if code in _EXHAUSTION:
        return EXHAUSTED
    return TIMED_OUT if code == errno.ETIMEDOUT else UNREACHABLE


def _exhausted() -> bool:
    """Whether this process has no descriptor left now."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in _EXHAUSTION
    return False


class Connector:
    """connect() for a worker; keeps what names resolved to."""

    def __init__(self, reactor: Any, deadlines: Deadlines) -> None:
        self._reactor = reactor
        self._deadlines = deadlines
        self._resolved: dict[_Name, tuple[float, list[Address]]] = {}
        self._asking: dict[_Name, list[_Attempt]] = {}  # who waits for the answer that is under way

    def connect(self, host: str, port: int, timeout_s: float, wanting: Wanting) -> None:
        """Open a connection to an address or a name; the timeout holds for both steps together.

        Addresses that are no longer fresh serve while they are asked for anew: a slow name server delays nobody.
        """
        attempt = _Attempt(self._reactor, self._deadlines, timeout_s, wanting)
        name = host, port
        known = self._resolved.get(name)
        if known is None:
            literal = _literal(host, port)
            if literal is not None:
                known = self._keep(name, float("inf"), [literal])
        fresh = known is not None and self._reactor.seconds() - known[0] < _RESOLVED_FOR_S
        if not fresh and name not in self._asking:
            self._ask(name)
        if known is not None:
            attempt.begin(known[1])
        else:
            self._asking[name].append(attempt)

    def outdated(self, host: str, port: int) -> None:
        """A name may lead elsewhere by now: the next connect has it asked for, and goes where it led meanwhile."""
        known = self._resolved.get((host, port))
        if known is not None and known[0] != float("inf"):
            self._resolved[host, port] = float("-inf"), known[1]

    def _ask(self, name: _Name) -> None:
        """In a thread, and once at a time a name: a dead name server must not fill the threads with one name."""
        self._asking[name] = []
        resolving = in_thread(self._reactor, socket.getaddrinfo, *name, type=socket.SOCK_STREAM)
        resolving.addCallback(self._found, name)
        resolving.addErrback(self._not_found, name)

    def _found(self, found: list[Any], name: _Name) -> None:
        """Link-local addresses and their like are written as addresses by who means them, not put behind a name."""
        every = dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found)
        addresses = [address for address in every if not leads_astray(address[1][0])]
        if not addresses:
            raise OSError("the name leads to no address that is connected to")
        self._keep(name, self._reactor.seconds(), addresses)
        for attempt in self._asking.pop(name):
            attempt.begin(addresses)

    def _not_found(self, failure: Failure, name: _Name) -> None:
        known = self._resolved.get(name)
        if known is not None:
            self._keep(name, self._reactor.seconds(), known[1])
        for attempt in self._asking.pop(name, []):
            attempt.unresolved(failure)

    def _keep(self, name: _Name, now_s: float, addresses: list[Address]) -> tuple[float, list[Address]]:
        if len(self._resolved) >= _MAX_NAMES:
            self._resolved.clear()
        self._resolved[name] = now_s, addresses
        return now_s, addresses

    def open(self, host: str, port: int, timeout_s: float, protocol: Any) -> "Deferred[Any]":
        """Connect `protocol`; fires with it, or fails with ConnectionError."""
        opened: Deferred[Any] = Deferred()
        self.connect(host, port, timeout_s, _Opening(self, protocol, opened))
        return opened

    def transport(self, sock: socket.socket, peer: Any, protocol: Any) -> TCPTransport:
        """Put a transport on a connected socket; call its start() afterwards."""
        return TCPTransport(self._reactor, self._deadlines, sock, peer, protocol)


class _Opening:
    """Puts a protocol on the connection and fires a Deferred."""

    def __init__(self, connector: Connector, protocol: Any, opened: "Deferred[Any]") -> None:
        self._connector = connector
        self._protocol = protocol
        self._opened = opened

    def connect_done(self, sock: socket.socket, peer: Any) -> None:
        if self._opened.called:  # cancelled meanwhile
            sock.close()
            return
        self._connector.transport(sock, peer, self._protocol).start()
        self._opened.callback(self._protocol)

    def connect_failed(self, reason: str, detail: str) -> None:
        if not self._opened.called:
            self._opened.errback(ConnectionError(f"{reason}: {detail}"))


def _literal(host: str, port: int) -> Address | None:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    return (socket.AF_INET, (host, port)) if version == 4 else (socket.AF_INET6, (host, port, 0, 0))
