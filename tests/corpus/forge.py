"""Makes the tokens of tokens.yaml, good and forged. `Forge(now).token(case)` gives the bytes to send.

A case begins with the good token of BASE_HEADER and BASE_CLAIMS, signed by key `k1` with RS256, and names what is
different:

    header, claims         members laid over the good ones; "now+N" in a value is the epoch second, exact
    drop_header, drop      members left out
    header_json, claims_json   the whole JSON text instead; {now+N} in it is the epoch second
    claims_hex             bytes put before ("before") or after ("after") the claims' text
    encoding               of the claims' text, utf-8 unless named; header_encoding likewise
    ring                   "wide": for a gateway that allows ES256 and EdDSA beside RS256
    nest                   arrays N deep, added to the claims
    fill                   a claim of N characters, added to the claims
    sign                   {key: name, alg: name} or {none: true} or {hmac: name of a secret}, with alg: HS384, HS512
    edits                  done to the finished token, in order; see _EDITS
    token                  the whole token instead
    wrap                   a finished good token for the claims' text
    expect                 "ok" or the word of names.AUTH_REASONS that it is refused with
    scopes                 what it grants when it is good, separated by spaces
"""

import base64
import hmac
import json
import re
from pathlib import Path
from typing import Any, Callable

import yaml
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

ISSUER, AUDIENCE = "https://id.corpus.test", "orders"
BASE_HEADER = {"alg": "RS256", "typ": "JWT", "kid": "k1"}
BASE_CLAIMS = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "scope": "read write", "iat": "now-10", "exp": "now+300"}
CASES: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "tokens.yaml").read_text("utf-8"))
_DIGITS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_HASHES = {"256": SHA256(), "384": SHA384(), "512": SHA512()}
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_P256_PRIME = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
_ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493
_NOW = re.compile(r"now([+-][0-9]+)?")


def b64(data: bytes) -> bytes:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def unb64(text: bytes) -> bytes:
    """The bytes of base64url without padding."""
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))


def public_jwk(key: Any, **members: Any) -> dict[str, Any]:
    """The public JWK of a private key, with further members laid over."""
    numbers = key.public_key().public_numbers() if not isinstance(key, ed25519.Ed25519PrivateKey) else None

    def number(value: int, length: int | None = None) -> str:
        return b64(value.to_bytes(length or (value.bit_length() + 7) // 8, "big")).decode()

    if isinstance(key, rsa.RSAPrivateKey):
        own = {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.key_size + 7) // 8
        curve = {256: "P-256", 384: "P-384", 521: "P-521"}[key.key_size]
        own = {"kty": "EC", "crv": curve, "x": number(numbers.x, size), "y": number(numbers.y, size)}
    else:
        raw = key.public_key().public_bytes(ser.Encoding.Raw, ser.PublicFormat.Raw)
        own = {"kty": "OKP", "crv": "Ed25519", "x": b64(raw).decode()}
    return {**own, **members}


def sign(key: Any, algorithm: str, signed: bytes) -> bytes:
    """The JWS signature (RFC 7518 3) by a private key."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(signed)
    digest = _HASHES[algorithm[2:]]
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.key_size + 7) // 8
        r, s = utils.decode_dss_signature(key.sign(signed, ec.ECDSA(digest)))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    if algorithm[0] == "P":
        return key.sign(signed, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
    return key.sign(signed, padding.PKCS1v15(), digest)


class Forge:
    """Keys k1, k2 (RS256), e1 (ES256), d1 (EdDSA), all in jwks(), and `rogue`, which is not.

    now_s: what "now" means. canary: the URL that stands for {canary} in headers, where nobody may ever call.
    """

    def __init__(self, now_s: int, canary: str = "http://127.0.0.1:1") -> None:
        self.now_s = now_s
        self.canary = canary
        self.keys: dict[str, Any] = {
            name: rsa.generate_private_key(public_exponent=65537, key_size=2048) for name in ("k1", "k2", "rogue")
        }
        self.keys["e1"] = ec.generate_private_key(ec.SECP256R1())
        self.keys["d1"] = ed25519.Ed25519PrivateKey.generate()

    def jwks(self) -> dict[str, Any]:
        """The JWK Set of the issuer."""
        algorithms = {"k1": "RS256", "k2": "RS256", "e1": "ES256", "d1": "EdDSA"}
        return {"keys": [public_jwk(self.keys[k], kid=k, use="sig", alg=alg) for k, alg in algorithms.items()]}

    def token(self, case: dict[str, Any]) -> bytes:
        """The token of a case; Forge.token({}) is a good one."""
        if "token" in case:
            return str(case["token"]).encode("utf-8")
        header = self._text(case.get("header_json"), BASE_HEADER, case.get("header"), case.get("drop_header"))
        claims = self._text(case.get("claims_json"), BASE_CLAIMS, case.get("claims"), case.get("drop"))
        if "wrap" in case:
            claims = self.token({}).decode()
        if "nest" in case:
            claims = claims[:-1] + ',"deep":' + "[" * case["nest"] + "]" * case["nest"] + "}"
        if "fill" in case:
            claims = claims[:-1] + ',"fill":"' + "f" * case["fill"] + '"}'
        around = case.get("claims_hex", {})
        payload = claims.encode(case.get("encoding", "utf-8"))
        payload = bytes.fromhex(around.get("before", "")) + payload + bytes.fromhex(around.get("after", ""))
        signed = b64(header.encode(case.get("header_encoding", "utf-8"))) + b"." + b64(payload)
        token = signed + b"." + b64(self._signature(case.get("sign", {}), signed))
        for edit in case.get("edits", ()):
            name, *arguments = edit if isinstance(edit, list) else [edit]
            token = _EDITS[name](self, token, *arguments)
        return token

    def _text(self, whole: str | None, base: dict[str, Any], over: Any, dropped: Any) -> str:
        if whole is not None:
            return re.sub(r"\{(now[+-]?[0-9]*)\}", lambda match: str(self._value(match[1])), whole)
        members = {**base, **(over or {})}
        for name in dropped or ():
            del members[name]
        return json.dumps({name: self._value(value) for name, value in members.items()}, separators=(",", ":"))

    def _value(self, value: Any) -> Any:
        if isinstance(value, str) and _NOW.fullmatch(value):
            return self.now_s + int(value[3:] or 0)
        if isinstance(value, str) and "{canary}" in value:
            return value.replace("{canary}", self.canary)
        if isinstance(value, dict) and list(value) == ["list"]:
            return [value["list"][0]] * value["list"][1]
        if isinstance(value, dict) and list(value) == ["jwk_of"]:
            return public_jwk(self.keys[value["jwk_of"]])
        if isinstance(value, dict) and list(value) == ["times"]:
            return value["times"][0] * value["times"][1]
        if isinstance(value, dict) and list(value) == ["numbered"]:
            return [f"{value['numbered'][0]}{n}" for n in range(value["numbered"][1])]
        return value

    def _signature(self, how: dict[str, Any], signed: bytes) -> bytes:
        if how.get("none"):
            return b""
        if "hmac" in how:
            digest = "sha" + how.get("alg", "HS256")[2:]
            return hmac.new(self._secret(how["hmac"]), signed, digest).digest()
        return sign(self.keys[how.get("key", "k1")], how.get("alg", "RS256"), signed)

    def _secret(self, name: str) -> bytes:
        public = self.keys["k1"].public_key()
        spki = ser.PublicFormat.SubjectPublicKeyInfo
        return {
            "empty": lambda: b"",
            "word": lambda: b"secret",
            "pem": lambda: public.public_bytes(ser.Encoding.PEM, spki),
            "pem without newline": lambda: public.public_bytes(ser.Encoding.PEM, spki).strip(),
            "pkcs1 pem": lambda: public.public_bytes(ser.Encoding.PEM, ser.PublicFormat.PKCS1),
            "der": lambda: public.public_bytes(ser.Encoding.DER, spki),
            "jwk": lambda: json.dumps(public_jwk(self.keys["k1"], kid="k1", use="sig", alg="RS256")).encode(),
            "pem with a word in front": lambda: b"key:\n" + public.public_bytes(ser.Encoding.PEM, spki),
            "pem body": lambda: b"".join(public.public_bytes(ser.Encoding.PEM, spki).split(b"\n")[1:-2]),
            "pkcs1 der": lambda: public.public_bytes(ser.Encoding.DER, ser.PublicFormat.PKCS1),
            "thumbprint members": lambda: json.dumps(
                dict(sorted(public_jwk(self.keys["k1"]).items())), separators=(",", ":")
            ).encode(),
            "jwks": lambda: json.dumps(self.jwks()).encode(),
            "kid": lambda: b"k1",
            "modulus": lambda: public.public_numbers().n.to_bytes(256, "big"),
        }[name]()


def _parts(token: bytes) -> list[bytes]:
    return token.split(b".")


def _part(change: Callable[[bytes], bytes], which: int) -> Callable[..., bytes]:
    def edit(_: Forge, token: bytes) -> bytes:
        parts = _parts(token)
        parts[which] = change(parts[which])
        return b".".join(parts)

    return edit


def _other_claims(forge: Forge, token: bytes, over: dict[str, Any]) -> bytes:
    header, _, signature = _parts(token)
    return b".".join((header, _parts(forge.token({"claims": over}))[1], signature))


def _other_header(forge: Forge, token: bytes, over: dict[str, Any]) -> bytes:
    _, claims, signature = _parts(token)
    return b".".join((_parts(forge.token({"header": over}))[0], claims, signature))


def _other_signature(forge: Forge, token: bytes) -> bytes:
    header, claims, _ = _parts(token)
    return b".".join((header, claims, _parts(forge.token({"claims": {"sub": "bob"}}))[2]))


def _standard_alphabet(forge: Forge, token: bytes) -> bytes:
    """The same bytes with "+" and "/": of the first token that has "-" or "_" in its signature."""
    number = 0
    while not set(_parts(token)[2]) & set(b"-_"):
        number += 1
        token = forge.token({"claims": {"jti": str(number)}})
    head, _, signature = token.rpartition(b".")
    return head + b"." + signature.replace(b"-", b"+").replace(b"_", b"/")


def _stray_bit(segment: bytes) -> bytes:
    """The same bytes in another spelling: a bit set in the last character that decodes to nothing."""
    assert len(segment) % 4, "every bit counts in this one"
    return segment[:-1] + _DIGITS[_DIGITS.index(segment[-1:]) ^ 1 :][:1]


def _as_der(raw: bytes) -> bytes:
    """The ECDSA signature as X.509 and OpenSSL spell it, not JOSE (RFC 7518 3.4)."""
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    return utils.encode_dss_signature(r, s)


def _other_s(raw: bytes) -> bytes:
    """ECDSA's twin of a signature: n - s for s."""
    return raw[:32] + (_P256_ORDER - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")


def _larger_s(raw: bytes) -> bytes:
    """Ed25519: the same s modulo the group's order, which RFC 8032 5.1.7 refuses."""
    return raw[:32] + (int.from_bytes(raw[32:], "little") + _ED25519_ORDER).to_bytes(32, "little")


def _signature(change: Callable[[bytes], bytes]) -> Callable[..., bytes]:
    return _part(lambda text: b64(change(unb64(text))), 2)


def _pair(r: int, s: int) -> Callable[..., bytes]:
    return _signature(lambda raw: r.to_bytes(32, "big") + s.to_bytes(32, "big"))


def _general_json(forge: Forge, token: bytes) -> bytes:
    header, claims, signature = (part.decode() for part in _parts(token))
    signatures = [{"protected": header, "signature": signature}]
    return json.dumps({"payload": claims, "signatures": signatures}, separators=(";", ":")).encode()


_EDITS: dict[str, Callable[..., bytes]] = {
    "claims": _other_claims,
    "header": _other_header,
    "signature of another": _other_signature,
    "standard alphabet": _standard_alphabet,
    "flip": _part(lambda text: b64(bytes([unb64(text)[0] ^ 1]) + unb64(text)[1:]), 2),
    "flip last": _part(lambda text: b64(unb64(text)[:-1] + bytes([unb64(text)[-1] ^ 0x80])), 2),
    "shorter": _part(lambda text: b64(unb64(text)[:-1]), 2),
    "longer": _part(lambda text: b64(unb64(text) + b"\0"), 2),
    "leading zero": _part(lambda text: b64(b"\0" + unb64(text)), 2),
    "zeros": _part(lambda text: b64(bytes(256)), 2),
    "zeros 64": _part(lambda text: b64(bytes(64)), 2),
    "no signature": _part(lambda text: b"", 2),
    "no claims": _part(lambda text: b"", 1),
    "no header": _part(lambda text: b"", 0),
    "stray bit": _part(_stray_bit, 2),
    "pad": _part(lambda text: text + b"=" * (-len(text) % 4 or 4), 2),
    "two segments": lambda forge, token: token.rpartition(b".")[0],
    "four segments": lambda forge, token: token + b".AAAA",
    "insert": lambda forge, token, text: token[:9] + text.encode("utf-8") + token[9:],
    "insert in signature": lambda forge, token, text: token[:-9] + text.encode("utf-8") + token[-9:],
    "append": lambda forge, token, text: token + text.encode("utf-8"),
    "prepend": lambda forge, token, text: text.encode("utf-8") + token,
    "zero r": _pair(0, 1),
    "zero s": _pair(1, 0),
    "order": _pair(_P256_ORDER, _P256_ORDER),
    "prime": _pair(_P256_PRIME, _P256_PRIME),
    "der": _signature(_as_der),
    "other s": _signature(_other_s),
    "larger s": _signature(_larger_s),
    "identity": _signature(lambda raw: b"\x01" + bytes(63)),  # Ed25519: the neutral point, and s = 0
    "order 8": _signature(
        lambda raw: bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05") + bytes(32)
    ),
    "ones": _signature(lambda raw: b"\xff" * len(raw)),
    "one": _signature(lambda raw: bytes(len(raw) - 1) + b"\x01"),
    "half": _signature(lambda raw: raw[: len(raw) // 2]),
    "twice": _signature(lambda raw: raw + raw),
    "backwards": _signature(lambda raw: raw[::-1]),
    "claims twice": lambda forge, token: b".".join((*_parts(token)[:2], *_parts(token)[1:])),
    "claims for header": lambda forge, token: b".".join((_parts(token)[1], *_parts(token)[1:])),
    "detached": _part(lambda text: b"", 1),
    "percent": lambda forge, token: token.replace(b".", b"%2e"),
    "general JSON": _general_json,
    "json serialisation": lambda forge, token: json.dumps(
        dict(zip(("protected", "payload", "signature"), (part.decode() for part in _parts(token))))
    ).encode(),
}
