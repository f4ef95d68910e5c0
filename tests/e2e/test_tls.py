"""TLS as a client meets it."""

import socket
import ssl
import time
import warnings
from typing import Iterator

import pytest

from tests.e2e.client import Client
from tests.e2e.gateway import Gateway, certificate
from tests.e2e.origin import Origin


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory, origin: Origin) -> Iterator[Gateway]:
    """A gateway with three certificates: gw.test (the default), other.test and *.wild.test."""
    gateway = Gateway(tmp_path_factory.mktemp("tls"), origin.port)
    certificate(gateway.work, "other", "other.test")
    certificate(gateway.work, "wild", "*.wild.test")
    gateway.settings["listeners"][0]["tls"]["certificates"] += [
        {"cert_file": "other.crt", "key_file": "other.key"},
        {"cert_file": "wild.crt", "key_file": "wild.key"},
    ]
    try:
        gateway.start()
        yield gateway
        gateway.assert_quiet()
        gateway.assert_accounts()
        gateway.stop()
    finally:
        gateway.kill()


def _careless() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_old_versions_are_refused(named: Gateway, version: str) -> None:
    """TLS 1.0 and 1.1 end with an alert; 1.2 and 1.3 are spoken."""
    context = _careless()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    with pytest.raises((ssl.SSLError, ConnectionError)):
        Client(named.https, context)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_new_versions_are_spoken_with_forward_secrecy(named: Gateway, version: str) -> None:
    """And an AEAD cipher."""
    context = named.context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    with Client(named.https, context) as client:
        assert client.request("GET", "/pub/x").status == 200
        name = client.sock.cipher()[0]
        assert "GCM" in name or "CHACHA20" in name
        assert version == "TLSv1_3" or name.startswith("ECDHE")


@pytest.mark.parametrize(
    "name, stem", [("gw.test", "tls"), ("other.test", "other"), ("OTHER.test", "other"), ("a.wild.test", "wild")]
)
def test_the_certificate_is_chosen_by_the_name_asked_for(named: Gateway, name: str, stem: str) -> None:
    """Exact, in any case, and by wildcard; a client that trusts only this one verifies it."""
    with Client(named.https, named.context(stem), name=name) as client:
        assert client.request("GET", "/pub/x").status == 200


@pytest.mark.parametrize("name", [None, "unknown.test", "a.b.wild.test", "wild.test"])
def test_without_a_known_name_the_first_certificate_is_served(named: Gateway, name: str | None) -> None:
    """No name, an unknown one, and one that no wildcard is for."""
    default = ssl.PEM_cert_to_DER_cert((named.work / "tls.crt").read_text())
    with Client(named.https, _careless(), name=name) as client:
        assert client.sock.getpeercert(binary_form=True) == default


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("name, stem", [("gw.test", "tls"), ("other.test", "other")])
def test_sessions_are_resumed(named: Gateway, version: str, name: str, stem: str) -> None:
    """Also for a name other than the default, and after a reload that changes no certificate."""
    context = named.context(stem)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    with Client(named.https, context, name=name) as client:
        client.request("GET", "/pub/x")
        session = client.sock.session
        assert not client.sock.session_reused
    with Client(named.https, context, name=name, session=session) as client:
        client.request("GET", "/pub/x")
        assert client.sock.session_reused
        session = client.sock.session
    named.reload()
    with Client(named.https, context, name=name, session=session) as client:
        client.request("GET", "/pub/x")
        assert client.sock.session_reused


def test_alpn_knows_http_1_1_only(named: Gateway) -> None:
    """A client that offers h2 as well gets http/1.1."""
    context = named.context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with Client(named.https, context) as client:
        assert client.sock.selected_alpn_protocol() == "http/1.1"


def test_plaintext_to_the_tls_port_does_no_harm(named: Gateway, origin: Origin) -> None:
    """No request is made of it, the connection ends, others go on; so with TLS to the plain port."""
    seen = len(origin.seen)
    with Client(named.https) as client:
        client.send(b"GET /pub/plain HTTP/1.1\r\nHost: gw.test\r\n\r\n")
        assert b"200" not in client.rest()[:20]
    with pytest.raises((ssl.SSLError, ConnectionError)):
        Client(named.http, named.context(), timeout_s=3)
    assert len(origin.seen) == seen
    with named.tls_client() as client:
        assert client.request("GET", "/pub/x").status == 200


def test_rubbish_in_and_after_a_handshake_ends_the_connection_only(named: Gateway) -> None:
    """Half a hello, noise, and noise inside an established connection."""
    for noise in (b"\x16\x03\x01", b"\x16\x03\x01\x40\x00" + b"\0" * 100, b"\xff" * 1000, b""):
        with socket.create_connection(("127.0.0.1", named.https), 3) as sock:
            sock.sendall(noise)
    client = named.tls_client()
    raw = socket.socket(fileno=client.sock.detach())
    raw.settimeout(3)
    raw.sendall(b"\x17\x03\x03\x00\x20" + b"n" * 32)
    try:
        while raw.recv(4096):
            pass
    except ConnectionError:
        pass
    raw.close()
    named.until(lambda: named.metric("connections") == 0, 2)
    with named.tls_client() as client:
        assert client.request("GET", "/pub/x").status == 200


@pytest.mark.slow
def test_a_handshake_that_takes_for_ever_is_closed_after_ten_seconds(named: Gateway) -> None:
    """However its bytes drip in."""
    with socket.create_connection(("127.0.0.1", named.https), 3) as mute:
        with socket.create_connection(("127.0.0.1", named.https), 3) as dripping:
            began_s = time.monotonic()
            dripping.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
            dripping.settimeout(0.5)
            mute.settimeout(12)
            while True:
                try:
                    assert dripping.recv(100) == b""
                    break
                except TimeoutError:
                    assert time.monotonic() - began_s < 12
                    dripping.sendall(b"\0")
                except ConnectionError:
                    break
            assert 9 < time.monotonic() - began_s < 11.5
            try:
                assert mute.recv(100) == b""
            except ConnectionError:
                pass
            assert time.monotonic() - began_s < 12
