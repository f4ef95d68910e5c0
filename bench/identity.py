"""Keys, tokens and certificates of a benchmark run: RSA-2048 for JWTs, EC P-256 for TLS, made fresh each time."""

import base64
import datetime
import ipaddress
import json
import time
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

ISSUER = "https://id.bench.test"
AUDIENCE = "api.bench.test"
KEY_ID = "bench-1"
TOKEN_LIFETIME_S = 7200  # longer than any benchmark


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _number(value: int) -> str:
    return _base64url(value.to_bytes((value.bit_length() + 7) // 8, "big"))


class Identity:
    """An identity service without a server. Writes jwks.json, public.pem, tls.crt, tls.key and tls.pem to `folder`."""

    def __init__(self, folder: Path) -> None:
        self._key = rsa.generate_private_key(65537, 2048)
        public = self._key.public_key()
        numbers = public.public_numbers()
        jwk = {"kty": "RSA", "kid": KEY_ID, "use": "sig", "alg": "RS256"}
        self.jwks = json.dumps({"keys": [jwk | {"n": _number(numbers.n), "e": _number(numbers.e)}]})
        self.jwks_file = folder / "jwks.json"
        self.jwks_file.write_text(self.jwks)
        self.public_key_file = folder / "public.pem"
        self.public_key_file.write_bytes(
            public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
        self.certificate_file, self.key_file, self.bundle_file = _certificate(folder)

    def token(self, user_id: str, **claims: Any) -> str:
        """An RS256 token that every peer accepts; `claims` override."""
        now = int(time.time())
        payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": user_id, "scope": "read:profile write:orders"}
        payload |= {"iat": now - 5, "exp": now + TOKEN_LIFETIME_S} | claims
        header = {"alg": "RS256", "typ": "JWT", "kid": KEY_ID}
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (header, payload)).encode()
        return signed.decode() + "." + _base64url(self._key.sign(signed, padding.PKCS1v15(), hashes.SHA256()))

    def forged(self, user_id: str) -> str:
        """A token of the right form whose signature does not fit it."""
        head, _, signature = self.token(user_id).rpartition(".")
        raw = bytearray(base64.urlsafe_b64decode(signature + "=="))
        raw[100] ^= 1
        return head + "." + _base64url(bytes(raw))


def _certificate(folder: Path) -> tuple[Path, Path, Path]:
    """(certificate, key, both in one file as HAProxy wants them)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway.bench.test")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    ).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files = folder / "tls.crt", folder / "tls.key", folder / "tls.pem"
    for path, content in zip(files, (certificate, private, certificate + private), strict=True):
        path.write_bytes(content)
    return files
