"""A JWK Set made ready to verify: which key, for which algorithm, and nothing that a token could talk into more.

Note [Keys]
  A key is used only for what it says it is for: `kty` and `crv` must fit the algorithm, `alg` where present must
  be that algorithm, `use` must be "sig", `key_ops` must have "verify" (RFC 7517 4, RFC 8725 3.1). Symmetric keys
  and keys with private parts have no business in a public document and are skipped, as is every key that is
  malformed, too small or so large that verifying would hold the loop. One bad key never costs the others.
  Two usable keys with one kid: neither is used, since the choice would be the attacker's.
"""

from collections import Counter
from typing import Any, Callable, Final, Sequence

from attrs import frozen
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from joserfc import jwk

from apigw.constants import MAX_JWKS_KEYS

Verify = Callable[[bytes, bytes], None]  # (signature, signed bytes); raises InvalidSignature

_RSA_BITS: Final = range(2048, 8193)  # RFC 7518 3.3: at least 2048; a verification at 8192 is 0.4 ms
_MAX_N_CHARS: Final = 1400  # base64url of 8192 bits, before anything is computed with it
_MAX_E: Final = 2**33  # every key in use has 65537; a large exponent only makes each verification slow
_MAX_KID_CHARS: Final = 256
_PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"})
_HEADERS_KEPT: Final = 64  # an issuer signs with a handful of headers
_VERIFIED_KEPT: Final = 2048  # at most 5 MiB; with more tokens in use at once the oldest are verified again
_VERIFIED_BYTES_KEPT: Final = 1536
_FORGED_KEPT: Final = 512  # a broken client's few tokens, not an attacker's many
_FORGED_BYTES_KEPT: Final = 2048
_HEADER_BYTES_KEPT: Final = 1024


class KeysRefused(Exception):
    """A key document that is not one, or has no usable key; whoever has older keys keeps them."""


class _Unusable(Exception):
    """This key is skipped; the text says why, for the operator."""


@frozen
class _Algorithm:
    """`crv` is None for RSA; `bind` makes the check of one public key."""

    kty: str
    crv: str | None
    bind: Callable[[Any], Verify]


def _pkcs1(digest: HashAlgorithm) -> Callable[[Any], Verify]:
    scheme = padding.PKCS1v15()
    return lambda key: lambda signature, signed: key.verify(signature, signed, scheme, digest)


def _pss(digest: HashAlgorithm) -> Callable[[Any], Verify]:
    scheme = padding.PSS(padding.MGF1(digest), digest.digest_size)  # RFC 7518 3.5: salt as long as the hash
    return lambda key: lambda signature, signed: key.verify(signature, signed, scheme, digest)


def _ecdsa(digest: HashAlgorithm, half_bytes: int) -> Callable[[Any], Verify]:
    scheme = ec.ECDSA(digest)

    def bind(key: Any) -> Verify:
        def check(signature: bytes, signed: bytes) -> None:
            if len(signature) != 2 * half_bytes:  # RFC 7518 3.4: r and s, each of the curve's length
                raise InvalidSignature
            r, s = int.from_bytes(signature[:half_bytes], "big"), int.from_bytes(signature[half_bytes:], "big")
            key.verify(utils.encode_dss_signature(r, s), signed, scheme)

        return check

    return bind


def _eddsa(key: Any) -> Verify:
    verify: Verify = key.verify
    return verify


ALGORITHMS: Final[dict[str, _Algorithm]] = {
    "RS256": _Algorithm("RSA", None, _pkcs1(SHA256())),
    "RS384": _Algorithm("RSA", None, _pkcs1(SHA384())),
    "RS512": _Algorithm("RSA", None, _pkcs1(SHA512())),
    "PS256": _Algorithm("RSA", None, _pss(SHA256())),
    "PS384": _Algorithm("RSA", None, _pss(SHA384())),
    "PS512": _Algorithm("RSA", None, _pss(SHA512())),
    "ES256": _Algorithm("EC", "P-256", _ecdsa(SHA256(), 32)),
    "ES384": _Algorithm("EC", "P-384", _ecdsa(SHA384(), 48)),
    "ES512": _Algorithm("EC", "P-521", _ecdsa(SHA512(), 66)),
    "EdDSA": _Algorithm("OKP", "Ed25519", _eddsa),
}


class Keyring:
    """The verification keys of one key document, bound to the algorithms of the allow-list. Never changes.

    kids: of the usable keys. skipped: (reason, count) of the others, for the operator's log.
    """

    __slots__ = ("verified", "forged", "kids", "skipped", "_checks", "_alone", "_headers")

    def __init__(
        self, checks: dict[tuple[str, str], Verify], alone: dict[str, Verify], skipped: dict[str, int]
    ) -> None:
        self.kids = frozenset(kid for kid, _ in checks)
        self.skipped = tuple(sorted(skipped.items()))
        self._checks = checks
        self._alone = alone
        self.forged: dict[bytes, None] = {}  # tokens whose signature failed
        self.verified: dict[bytes, Any] = {}  # tokens.Verified of tokens whose signature was good
        self._headers: dict[bytes, tuple[str, Verify]] = {}

    @classmethod
    def from_jwks(cls, document: object, algorithms: Sequence[str]) -> "Keyring":
        """The keyring of a parsed JWK Set (RFC 7517 5). See Note [Keys].

        Raises KeysRefused when it is no JWK Set, has more than MAX_JWKS_KEYS keys, or no usable one, and
        ValueError for an algorithm that is not in ALGORITHMS ("none" and HMAC are not).
        """
        unknown = sorted(set(algorithms) - ALGORITHMS.keys())
        if unknown:
            raise ValueError(f"not a signature algorithm with a public key: {', '.join(unknown)}")
        entries = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(entries, list):
            raise KeysRefused("not a JWK Set: no object with a list `keys`")
        if len(entries) > MAX_JWKS_KEYS:
            raise KeysRefused(f"{len(entries)} keys, more than {MAX_JWKS_KEYS}")
        skipped: Counter[str] = Counter()
        usable: list[tuple[str | None, dict[str, Verify]]] = []
        for entry in entries:
            try:
                usable.append(_usable(entry, algorithms))
            except _Unusable as reason:
                skipped[str(reason)] += 1
        kids = Counter(kid for kid, _ in usable if kid is not None)
        kept = [key for key in usable if key[0] is None or kids[key[0]] == 1]
        skipped["kid is not unique"] += len(usable) - len(kept)
        if not kept:
            raise KeysRefused(f"no usable key among {len(entries)}: {_told(+skipped)}")
        return cls(
            {(kid, algorithm): check for kid, checks in kept if kid is not None for algorithm, check in checks.items()},
            _alone([checks for _, checks in kept]),
            +skipped,
        )

    def check(self, kid: str | None, algorithm: str) -> Verify | None:
        """How to verify a token with this kid and alg; without a kid, if exactly one key fits. Else None."""
        return self._alone.get(algorithm) if kid is None else self._checks.get((kid, algorithm))

    def remembered(self, header: bytes) -> tuple[str, Verify] | None:
        """(alg, check) of a header segment that a good token had before."""
        return self._headers.get(header)

    def remember(self, header: bytes, algorithm: str, check: Verify) -> None:
        """Spare the next token with this header segment its parsing. For verified tokens only: bounded by trust."""
        if len(header) > _HEADER_BYTES_KEPT:
            return
        if len(self._headers) >= _HEADERS_KEPT:
            self._headers.clear()
        self._headers[header] = (algorithm, check)

    def remember_verified(self, token: bytes, verified: object) -> None:
        """Spare the token's next request its verification: the bytes and the key stay what they are."""
        if len(token) <= _VERIFIED_BYTES_KEPT:
            if len(self.verified) >= _VERIFIED_KEPT:
                del self.verified[next(iter(self.verified))]
            self.verified[token] = verified

    def remember_forged(self, token: bytes) -> None:
        """A bad signature stays bad for these keys: a client that repeats its token costs no second verification."""
        if len(token) <= _FORGED_BYTES_KEPT:
            if len(self.forged) >= _FORGED_KEPT:
                self.forged.clear()
            self.forged[token] = None


def _usable(entry: object, algorithms: Sequence[str]) -> tuple[str | None, dict[str, Verify]]:
    """(kid, check by algorithm) of one JWK. Raises _Unusable."""
    if not isinstance(entry, dict):
        raise _Unusable("not an object")
    kid = entry.get("kid")
    if kid is not None and not (isinstance(kid, str) and len(kid) <= _MAX_KID_CHARS):
        raise _Unusable("kid is not a short string")
    if not _PRIVATE_MEMBERS.isdisjoint(entry):
        raise _Unusable("private or symmetric")
    if entry.get("use", "sig") != "sig":
        raise _Unusable("use is not sig")
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise _Unusable("key_ops without verify")
    kind, curve, own = entry.get("kty"), entry.get("crv"), entry.get("alg")
    fitting = [
        name
        for name in dict.fromkeys(algorithms)
        if ALGORITHMS[name].kty == kind
        and ALGORITHMS[name].crv == (None if kind == "RSA" else curve)
        and (own is None or own == name)
    ]
    if not fitting:
        raise _Unusable("fits no allowed algorithm")
    key = _public_key(entry)
    return kid, {name: ALGORITHMS[name].bind(key) for name in fitting}


def _public_key(entry: dict[str, Any]) -> Any:
    """The key as cryptography has it, from the public members alone."""
    members: dict[str, Any] = {name: entry[name] for name in ("kty", "crv", "n", "e", "x", "y") if name in entry}
    if any(not isinstance(value, str) or len(value) > _MAX_N_CHARS for value in members.values()):
        raise _Unusable("malformed or too large")
    try:
        key: Any = jwk.import_key(members).public_key
        numbers = key.public_numbers() if members["kty"] == "RSA" else None
    except Exception as error:  # of whatever type the libraries have for it; this key is skipped and counted
        raise _Unusable("malformed or too large") from error
    if numbers is not None and (key.key_size not in _RSA_BITS or numbers.e > _MAX_E or not numbers.n & 1):
        raise _Unusable("RSA size out of bounds")
    return key


def _alone(keys: list[dict[str, Verify]]) -> dict[str, Verify]:
    """The algorithms that exactly one key fits: only for these may a token leave out its kid."""
    counts = Counter(algorithm for checks in keys for algorithm in checks)
    return {name: check for checks in keys for name, check in checks.items() if counts[name] == 1}


def _told(skipped: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items())) or "the list is empty"
