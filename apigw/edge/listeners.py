"""All listening sockets of a worker: what a reload opens, keeps and closes."""

import socket
from typing import Any, Iterable

from apigw.config.model import Listener
from apigw.edge.certificates import CertificateStore, ServerNames
from apigw.edge.listener import ListeningPort, bind
from apigw.edge.site import Site

Address = tuple[str, int]


class Prepared:
    """New sockets and certificates, not in force yet. discard() closes what was opened."""

    def __init__(self) -> None:
        self.listeners: dict[Address, Listener] = {}
        self.names: dict[Address, ServerNames | None] = {}
        self.sockets: dict[Address, socket.socket] = {}

    def discard(self) -> None:
        for sock in self.sockets.values():
            sock.close()


class Listeners:
    """prepare() may fail and changes nothing; apply() cannot fail."""

    def __init__(self, reactor: Any, site: Site) -> None:
        self._reactor = reactor
        self._site = site
        self._store = CertificateStore()
        self._started = False
        self.ports: dict[Address, ListeningPort] = {}

    def prepare(self, listeners: Iterable[Listener]) -> Prepared:
        """Read certificates and bind new addresses. Raises OSError or ssl.SSLError (which is one)."""
        prepared = Prepared()
        try:
            for listener in listeners:
                address = (listener.address, listener.port)
                prepared.listeners[address] = listener
                prepared.names[address] = (
                    self._store.serve(listener.tls, f"{address[0]}:{address[1]}") if listener.tls else None
                )
                if address not in self.ports:
                    prepared.sockets[address] = bind(listener)
        except Exception:
            prepared.discard()
            raise
        return prepared

    def apply(self, prepared: Prepared) -> None:
        """New connections get the new certificates; old connections live on, whatever happens to their socket."""
        for address in [address for address in self.ports if address not in prepared.listeners]:
            self.ports.pop(address).stop()
        for names in prepared.names.values():
            if names is not None:
                names.take_effect()
        for address, listener in prepared.listeners.items():
            port = self.ports.get(address)
            if port is not None:
                port.listener, port.names = listener, prepared.names[address]
                continue
            port = ListeningPort(
                self._reactor, self._site, listener, prepared.names[address], prepared.sockets[address]
            )
            self.ports[address] = port
            if self._started:
                port.start()
        self._store.keep_only([names for names in prepared.names.values() if names is not None])

    def start(self) -> None:
        self._started = True
        for port in self.ports.values():
            port.start()

    def stop(self) -> None:
        """Accept no more; connections live on."""
        for port in self.ports.values():
            port.stop()

    def labels(self) -> list[str]:
        """What the ports are, for the log and /status."""
        return [
            f"{'https' if port.names is not None else 'http'}://{address}:{number}"
            for (address, number), port in self.ports.items()
        ]

    def certificate_expiry(self) -> list[tuple[tuple[str], float]]:
        """(host, epoch second) of each name of each certificate in force."""
        return [
            ((name,), certified.expires_s)
            for port in self.ports.values()
            if port.names is not None
            for certified in port.names.certified
            for name in certified.names or ("default",)
        ]
