"""What a registry is asked for, and where the instances that it names may be."""

import socket

from attrs import frozen

from apigw.config.addresses import is_loopback, nameserver_of, split_url
from apigw.config.model import Discovery
from apigw.core.discovery import Boundary


@frozen
class Wanted:
    """What a registry is to be asked for. own_ports: those on which the gateway listens itself."""

    backend: str
    discovery: Discovery
    own_ports: frozenset[int] = frozenset()

    def boundary(self) -> Boundary:
        """Where its instances may be. Unless the configuration says it, only a registry on this machine may name
        addresses of this machine; the system's name server, which speaks for others, does not count as such."""
        given = self.discovery
        loopback = given.allow_loopback
        if loopback is None:
            hosts = _hosts(given)
            loopback = bool(hosts) and all(is_loopback(host) for host in hosts)
        return Boundary(loopback, given.allow_names, given.networks, self.own_ports, _is_this_machines)


def _is_this_machines(address: str) -> bool:
    """Whether an address is one of this host's: the way to it begins there. Nothing is sent. (Whether it can be bound
    says less: hosts that share addresses allow to bind any.) Asked for instances with a port of the gateway's only."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((address, 9))
            return bool(sock.getsockname()[0] == address)
    except OSError:
        return False


def _hosts(discovery: Discovery) -> list[str]:
    """Where the registry is, as far as the configuration names it."""
    urls = [discovery.url] if discovery.url is not None else list(discovery.endpoints)
    parts = [split_url(url) for url in urls]
    servers = [nameserver_of(text) for text in discovery.nameservers]
    return [part.hostname or "" for part in parts if part] + [server[0] for server in servers if server]
