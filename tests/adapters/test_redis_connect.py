"""A worker reaches a real Redis in clear and over TLS, and hears when it cannot."""

import datetime
import ipaddress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import reactor

from apigw.adapters.redis_connect import connect_to, trust_root_of
from apigw.adapters.redis_counters import RedisCounters
from apigw.adapters.redis_link import RedisAddress
from apigw.config.model import RedisSection
from apigw.core.window import Counted, Demand
from apigw.net.connect import Connector
from apigw.net.deadlines import Deadlines
from tests.servers import free_port, redis_server, turns, until

loop: Any = reactor
DEMAND = Demand("standard", "rate:{standard:user:a}", 10, 60)


def store_at(url: str, trust_root: Any = None) -> RedisCounters:
    connector = Connector(loop, Deadlines(loop))
    connect = connect_to(RedisAddress.of(url), loop, connector, trust_root)
    return RedisCounters(connect, loop, lambda call: loop.callLater(0, call), RedisSection(url=url, timeout_s=0.1))


@pytest_twisted.ensureDeferred
async def test_in_clear_over_a_lean_transport() -> None:
    """Counts, loses it, and is back on a new connection."""
    with redis_server() as server:
        store = store_at(server.url)
        store.startService()
        await until(lambda: store.up, loop)
        assert isinstance(await store.take([DEMAND], 1_707_264_000.0), Counted)
        server.restart()
        await until(lambda: not store.up, loop)
        await until(lambda: store.up, loop, 2.0)
        store.stopService()


@pytest_twisted.ensureDeferred
async def test_a_refused_connection_is_told() -> None:
    """In so many words."""
    connector = Connector(loop, Deadlines(loop))
    connect = connect_to(RedisAddress.of(f"redis://127.0.0.1:{free_port()}"), loop, connector)
    with pytest.raises(ConnectionError, match="refused"):
        await connect(None)  # type: ignore[arg-type]


@pytest_twisted.ensureDeferred
async def test_over_tls_the_servers_certificate_is_verified(tmp_path: Path) -> None:
    """Trusted: it counts. Not trusted: it stays down, and nothing was sent."""
    self_signed(tmp_path)
    port = free_port()
    files = ["--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem", "--tls-ca-cert-file", "cert.pem"]
    paths = [str(tmp_path / word) if word.endswith(".pem") else word for word in files]
    with redis_server("--tls-port", str(port), *paths, "--tls-auth-clients", "no"):
        store = store_at(f"rediss://127.0.0.1:{port}/0", trust_root_of(tmp_path / "cert.pem"))
        store.startService()
        await until(lambda: store.up, loop)
        assert isinstance(await store.take([DEMAND], 1_707_264_000.0), Counted)
        store.stopService()
        stranger = store_at(f"rediss://127.0.0.1:{port}/0")
        stranger.startService()
        await until(lambda: "certificate verify failed" in (stranger.last_error or ""), loop)
        assert not stranger.up
        stranger.stopService()
        await turns(loop, 0.01)


def self_signed(directory: Path) -> None:
    """cert.pem and key.pem for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "redis")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (directory / "cert.pem").write_bytes(pem)
    (directory / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
