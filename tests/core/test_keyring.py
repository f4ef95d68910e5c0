"""The key document: which keys are used for what, and that one bad key never costs the others."""

from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from apigw.core.keyring import Keyring, KeysRefused
from tests.corpus.forge import Forge, b64, public_jwk

FORGE = Forge(0)


def test_a_key_without_alg_serves_every_allowed_algorithm_of_its_kind() -> None:
    keyring = Keyring.from_jwks({"keys": [public_jwk(FORGE.keys["k1"], kid="k")]}, ("RS256", "PS256", "ES256"))
    assert keyring.check("k", "RS256") and keyring.check("k", "PS256")
    assert keyring.check("k", "ES256") is None and keyring.check("k", "RS384") is None


def _private_jwk() -> dict[str, Any]:
    d = FORGE.keys["k1"].private_numbers().d
    return public_jwk(FORGE.keys["k1"], kid="bad", d=b64(d.to_bytes(256, "big")).decode())


def _off_curve() -> dict[str, Any]:
    return {**public_jwk(FORGE.keys["e1"], kid="bad"), "y": b64(bytes(32)).decode()}


BAD_KEYS: dict[str, Any] = {
    "a string": "key",
    "null": None,
    "empty": {},
    "symmetric": {"kty": "oct", "kid": "bad", "k": "c2VjcmV0"},
    "private": _private_jwk(),
    "for encryption": public_jwk(FORGE.keys["k2"], kid="bad", use="enc"),
    "for other operations": public_jwk(FORGE.keys["k2"], kid="bad", key_ops=["encrypt"]),
    "operations no list": public_jwk(FORGE.keys["k2"], kid="bad", key_ops="verify"),
    "for another algorithm": public_jwk(FORGE.keys["k2"], kid="bad", alg="RS512"),
    "for HMAC": public_jwk(FORGE.keys["k2"], kid="bad", alg="HS256"),
    "alg no string": public_jwk(FORGE.keys["k2"], kid="bad", alg=["RS256"]),
    "kty no string": public_jwk(FORGE.keys["k2"], kid="bad", kty=["RSA"]),
    "kid no string": public_jwk(FORGE.keys["k2"], kid=7),
    "kid endless": public_jwk(FORGE.keys["k2"], kid="k" * 300),
    "modulus missing": {"kty": "RSA", "kid": "bad", "e": "AQAB"},
    "modulus no base64": public_jwk(FORGE.keys["k2"], kid="bad", n="!!!"),
    "modulus a number": public_jwk(FORGE.keys["k2"], kid="bad", n=5),
    "modulus even": public_jwk(FORGE.keys["k2"], kid="bad", n=b64(b"\xff" + bytes(255)).decode()),
    "modulus huge": public_jwk(FORGE.keys["k2"], kid="bad", n="_" * 100_000),
    "exponent one": public_jwk(FORGE.keys["k2"], kid="bad", e="AQ"),
    "exponent zero": public_jwk(FORGE.keys["k2"], kid="bad", e="AA"),
    "exponent slow": public_jwk(FORGE.keys["k2"], kid="bad", e=b64(b"\xff" * 64).decode()),
    "1024 bits": public_jwk(rsa.generate_private_key(public_exponent=65537, key_size=1024), kid="bad"),
    "point off the curve": _off_curve(),
    "wrong curve": public_jwk(ec.generate_private_key(ec.SECP384R1()), kid="bad"),
    "unknown curve": public_jwk(FORGE.keys["e1"], kid="bad", crv="P-1"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", BAD_KEYS)
def test_a_bad_key_is_skipped_and_counted_and_the_good_one_serves(name: str) -> None:
    good = public_jwk(FORGE.keys["k1"], kid="k1")
    keyring = Keyring.from_jwks({"keys": [BAD_KEYS[name], good]}, ("RS256", "ES256"))
    assert keyring.kids == {"k1"}
    assert sum(count for _, count in keyring.skipped) == 1
    with pytest.raises(KeysRefused):
        Keyring.from_jwks({"keys": [BAD_KEYS[name]]}, ("RS256", "ES256"))


def test_two_keys_with_one_kid_are_both_out() -> None:
    keys = [public_jwk(FORGE.keys[name], kid=kid) for name, kid in (("k1", "a"), ("rogue", "a"), ("k2", "b"))]
    keyring = Keyring.from_jwks({"keys": keys}, ("RS256",))
    assert keyring.kids == {"b"} and keyring.skipped == (("kid is not unique", 2),)


@pytest.mark.parametrize("document", [None, [], {}, {"keys": {}}, {"keys": None}, {"keys": []}, "<html>", 5])
def test_what_is_no_key_document_is_refused(document: object) -> None:
    with pytest.raises(KeysRefused):
        Keyring.from_jwks(document, ("RS256",))


def test_more_than_a_hundred_keys_are_refused_before_any_is_imported() -> None:
    with pytest.raises(KeysRefused, match="101 keys"):
        Keyring.from_jwks({"keys": [object()] * 101}, ("RS256",))


@pytest.mark.parametrize("algorithm", ["none", "HS256", "rs256", ""])
def test_an_algorithm_without_a_public_key_cannot_be_allowed(algorithm: str) -> None:
    with pytest.raises(ValueError):
        Keyring.from_jwks(FORGE.jwks(), (algorithm,))


def test_an_ed25519_key_of_the_wrong_length_is_skipped() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    raw = key.public_key().public_bytes(ser.Encoding.Raw, ser.PublicFormat.Raw)
    for x in (b64(raw[:-1]), b64(raw + b"\0"), b""):
        with pytest.raises(KeysRefused):
            Keyring.from_jwks({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x.decode(), "kid": "k"}]}, ("EdDSA",))
