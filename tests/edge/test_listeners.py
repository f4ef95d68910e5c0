"""What a reload opens, keeps and closes; and that a failed one opens nothing."""

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor

from apigw.config.model import Listener, TLSSection
from apigw.edge.listeners import Listeners
from tests.edge.authority import certificate
from tests.edge.test_certificates import shake_hands, subject


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    site: Any = None  # nothing connects through the loop here
    made = Listeners(reactor, site)
    yield made
    made.stop()


def test_a_reload_keeps_what_stays_and_closes_what_goes(listeners: Listeners) -> None:
    first, second, third = (Listener("127.0.0.1", free_port()) for _ in range(3))
    listeners.apply(listeners.prepare([first, second]))
    kept = listeners.ports["127.0.0.1", second.port]
    listeners.apply(listeners.prepare([second, third]))
    assert [listens(one.port) for one in (first, second, third)] == [False, True, True]
    assert listeners.ports["127.0.0.1", second.port] is kept
    assert listeners.labels() == [f"http://127.0.0.1:{one.port}" for one in (second, third)]


def test_an_address_that_is_taken_leaves_nothing_open(listeners: Listeners) -> None:
    """Neither the new sockets that could be bound nor a change of the old ones."""
    old, new = Listener("127.0.0.1", free_port()), Listener("127.0.0.1", free_port())
    listeners.apply(listeners.prepare([old]))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = Listener("127.0.0.1", other.getsockname()[1])
        with pytest.raises(OSError):
            listeners.prepare([new, taken])
    assert not listens(new.port) and listens(old.port)
    assert list(listeners.ports) == [("127.0.0.1", old.port)]


def test_what_was_prepared_and_is_not_wanted_is_closed(listeners: Listeners) -> None:
    new = Listener("127.0.0.1", free_port())
    prepared = listeners.prepare([new])
    assert listens(new.port)
    prepared.discard()
    assert not listens(new.port)


def test_a_reload_reads_the_certificates_again_on_the_socket_that_stays(listeners: Listeners, tmp_path: Path) -> None:
    """The files are the same, what is in them is not."""
    section = TLSSection((certificate(tmp_path, "api", "old.example.com"), certificate(tmp_path, "nameless")))
    listener = Listener("127.0.0.1", free_port(), tls=section)
    listeners.apply(listeners.prepare([listener]))
    port = listeners.ports["127.0.0.1", listener.port]
    assert listeners.labels() == [f"https://127.0.0.1:{listener.port}"]
    certificate(tmp_path, "api", "new.example.com")
    prepared = listeners.prepare([listener])
    assert [host for (host,), _ in listeners.certificate_expiry()] == ["old.example.com", "default"], "not in force yet"
    listeners.apply(prepared)
    assert [host for (host,), _ in listeners.certificate_expiry()] == ["new.example.com", "default"]
    assert all(expires_s > time.time() for _, expires_s in listeners.certificate_expiry())
    assert listeners.ports["127.0.0.1", listener.port] is port


def test_a_certificate_that_cannot_be_read_leaves_nothing_open(listeners: Listeners, tmp_path: Path) -> None:
    """Nor does it touch what is in force."""
    section = TLSSection((certificate(tmp_path, "api", "api.example.com"),))
    listener, new = Listener("127.0.0.1", free_port(), tls=section), Listener("127.0.0.1", free_port())
    listeners.apply(listeners.prepare([listener]))
    section.certificates[0].cert_file.write_text("no certificate")
    with pytest.raises(ssl.SSLError):
        listeners.prepare([new, listener])
    assert not listens(new.port)
    assert [host for (host,), _ in listeners.certificate_expiry()] == ["api.example.com"]


def test_what_was_prepared_and_discarded_is_served_to_nobody(listeners: Listeners, tmp_path: Path) -> None:
    """The first certificate's context lives across reloads: a refused one must not change what it chooses by name."""
    first, second = certificate(tmp_path, "a", "a.example.com"), certificate(tmp_path, "b", "b.example.com")
    port = free_port()
    listeners.apply(listeners.prepare([Listener("127.0.0.1", port, tls=TLSSection((first,)))]))
    names = listeners.ports["127.0.0.1", port].names
    assert names is not None
    prepared = listeners.prepare([Listener("127.0.0.1", port, tls=TLSSection((first, second)))])
    assert subject(shake_hands(names, "b.example.com")[0]) == "a"
    prepared.discard()
    assert subject(shake_hands(names, "b.example.com")[0]) == "a"
    listeners.apply(listeners.prepare([Listener("127.0.0.1", port, tls=TLSSection((first, second)))]))
    names = listeners.ports["127.0.0.1", port].names
    assert names is not None
    assert subject(shake_hands(names, "b.example.com")[0]) == "b"
