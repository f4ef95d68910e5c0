"""The demo's secrets, made at its first start and kept for the next: a certificate, the identity service's key, and an
API key of a partner."""

import datetime
import ipaddress
import os
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from apigw.adapters.key_store import KeyStore
from apigw.core.api_keys import Malformed, split

VALID_DAYS = 365
RENEW_DAYS = 7  # a demo left alone for a year is not to stop at an expired certificate
RSA_BITS = 2048


def ensure(folder: Path) -> None:
    """Make what is missing in `folder`: tls.crt, tls.key (localhost, 127.0.0.1, ::1) and identity.key. Mode 0600."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    now = datetime.datetime.now(datetime.UTC)
    if not _is_current(folder / "tls.crt", folder / "tls.key", now):
        key, certificate = self_signed(now)
        _write(folder / "tls.key", _pem(key))
        _write(folder / "tls.crt", certificate.public_bytes(Encoding.PEM))
    if not (folder / "identity.key").exists():
        _write(folder / "identity.key", _pem(rsa.generate_private_key(65537, RSA_BITS)))


def partner_key(folder: Path, database_url: str, partner: str, scopes: tuple[str, ...]) -> str:
    """A partner's API key that the database of the gateway knows: that of the last start, or a new one."""
    kept = folder / "partner.key"
    store = KeyStore(database_url)
    try:
        presented = kept.read_text() if kept.exists() else ""
        try:
            record = store.find(split(presented.encode())[0])
        except Malformed:
            record = None
        if record is None or record.state(time.time()) != "active":
            presented = store.create(partner, scopes=scopes).presented
            _write(kept, presented.encode())
    finally:
        store.close()
    return presented


def self_signed(now: datetime.datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A key and a certificate for this machine's loopback names that is its own authority (curl --cacert)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    loopback = [ipaddress.ip_address(address) for address in ("127.0.0.1", "::1")]
    names = [x509.DNSName("localhost"), *map(x509.IPAddress, loopback)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )
    return key, builder.sign(key, hashes.SHA256())


def _is_current(certificate: Path, key: Path, now: datetime.datetime) -> bool:
    if not (certificate.exists() and key.exists()):
        return False
    end = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    return end > now + datetime.timedelta(days=RENEW_DAYS)


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: a start that was interrupted leaves no half key."""
    draft = path.with_suffix(path.suffix + ".new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    draft.replace(path)
