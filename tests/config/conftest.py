"""A configuration that is valid, and what the loader says of changes to it."""

from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from apigw.config.files import load
from apigw.config.model import Config
from apigw.errors import ConfigurationError

NOW_S = 1_780_315_200.0  # 2026-06-01T12:00:00Z


def minimal() -> dict[str, Any]:
    """One listener, one backend, one public route."""
    return {
        "listeners": [{"address": "127.0.0.1", "port": 8080}],
        "backends": [{"name": "b", "instances": [{"host": "127.0.0.1", "port": 9001}]}],
        "routes": [
            {"route_id": "r", "pattern": "/r/*", "methods": ["GET"], "backend_service": "b", "auth_type": "none"}
        ],
    }


@pytest.fixture
def now_s() -> float:
    return NOW_S


@pytest.fixture
def document() -> dict[str, Any]:
    return minimal()


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[[Any], Config]:
    """Loads a document, or a text, as the main file apigw.yaml in tmp_path."""

    def loaded(content: Any) -> Config:
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        (tmp_path / "apigw.yaml").write_text(text)
        return load(tmp_path / "apigw.yaml", hostname="host", now_s=NOW_S)

    return loaded


@pytest.fixture
def refused(loaded: Callable[[Any], Config], tmp_path: Path) -> Callable[[Any], list[str]]:
    """What is wrong with a document, as text without the folder; empty when nothing is."""

    def refused(content: Any) -> list[str]:
        try:
            loaded(content)
        except ConfigurationError as error:
            return [str(problem).replace(f"{tmp_path}/", "") for problem in error.problems]
        return []

    return refused


@pytest.fixture
def certificate_pair(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Writes NAME.crt and NAME.key, valid at NOW_S unless told otherwise, and gives their paths."""
    return partial(write_pair, tmp_path)


def write_pair(
    folder: Path, name: str, *, from_s: float = NOW_S - 86_400, until_s: float = NOW_S + 86_400, key: Any = None
) -> tuple[Path, Path]:
    """A self-signed certificate for localhost and its key, as PEM files."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    begin, end = (datetime.fromtimestamp(epoch_s, timezone.utc) for epoch_s in (from_s, until_s))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    cert_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    cert_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return cert_file, key_file
