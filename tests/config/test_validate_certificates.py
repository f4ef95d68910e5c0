"""Certificates: readable, a pair, valid now."""

from pathlib import Path
from typing import Any, Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

Pair = Callable[..., tuple[Path, Path]]
Refused = Callable[[Any], list[str]]


@pytest.fixture
def of_pair(refused: Refused, document: dict[str, Any]) -> Callable[[Path, Path], list[str]]:
    """The problems of a listener with this certificate and key."""

    def of_pair(cert: Path, key: Path) -> list[str]:
        tls = {"certificates": [{"cert_file": cert.name, "key_file": key.name}]}
        document["listeners"] = [{"address": "127.0.0.1", "port": 8443, "tls": tls}]
        return [problem.partition(": ")[2].replace(f"{cert.parent}/", "") for problem in refused(document)]

    return of_pair


@pytest.mark.parametrize("key", [None, rsa.generate_private_key(65537, 2048)], ids=["ec", "rsa"])
def test_a_valid_pair_is_accepted(of_pair: Callable[..., list[str]], certificate_pair: Pair, key: Any) -> None:
    assert of_pair(*certificate_pair("a", key=key)) == []


def test_an_expired_certificate_is_named_with_its_date(
    of_pair: Callable[..., list[str]], certificate_pair: Pair, now_s: float
) -> None:
    assert of_pair(*certificate_pair("a", until_s=now_s - 3600)) == ["cert_file a.crt expired on 2026-06-01"]
    early = certificate_pair("a", from_s=now_s + 3600)
    assert of_pair(*early) == ["cert_file a.crt is not valid before 2026-06-01"]


def test_a_key_of_another_certificate_is_refused(of_pair: Callable[..., list[str]], certificate_pair: Pair) -> None:
    cert, _ = certificate_pair("a")
    _, key = certificate_pair("b")
    assert of_pair(cert, key) == ["key_file b.key does not match the certificate in a.crt"]


def test_files_that_are_no_pem_or_are_swapped_are_refused(
    of_pair: Callable[..., list[str]], certificate_pair: Pair
) -> None:
    cert, key = certificate_pair("a")
    assert of_pair(key, cert) == ["cert_file a.key is not a PEM certificate", "key_file a.crt is not a PEM private key"]
    cert.write_bytes(b"\xff" * 100)
    key.unlink()
    assert of_pair(cert, key) == ["cert_file a.crt is not a PEM certificate", "key_file a.key does not exist"]


def test_an_encrypted_key_is_refused(of_pair: Callable[..., list[str]], certificate_pair: Pair) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    cert, key = certificate_pair("a", key=private)
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    assert of_pair(cert, key)[0].startswith("key_file a.key is encrypted")


def test_what_openssl_would_refuse_at_start_is_refused_here(
    of_pair: Callable[..., list[str]], certificate_pair: Pair
) -> None:
    short = rsa.generate_private_key(65537, 1024)
    assert of_pair(*certificate_pair("a", key=short)) == ["cert_file a.crt is refused by OpenSSL: ee key too small"]
    assert of_pair(*certificate_pair("a", key=ed25519.Ed25519PrivateKey.generate())) == []


def test_an_expired_certificate_of_the_chain_is_named_by_its_number(
    of_pair: Callable[..., list[str]], certificate_pair: Pair, now_s: float
) -> None:
    cert, key = certificate_pair("a")
    old, _ = certificate_pair("old", until_s=now_s - 1)
    cert.write_bytes(cert.read_bytes() + old.read_bytes())
    assert of_pair(cert, key) == ["cert_file a.crt expired on 2026-06-01 (certificate 2 of the chain)"]
