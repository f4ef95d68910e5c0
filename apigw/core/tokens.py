"""JWTs (RFC 7519, RFC 7515) of the one issuer that the configuration names. Pure: keys and time are arguments.

Note [Strictness]
  By hand, since a library's decode and validate cost 77 us where this costs 8 besides the RSA operation, and
  since each library tried accepts something it should not. Never more lenient than RFC 8725:
  - base64url has one spelling: no padding, no "+" or "/", no blanks, no stray bits in the last character;
  - alg is taken from the allow-list and the key (core/keyring.py), the token only says which of them;
  - crit and b64 are refused; jku, x5u, jwk and x5c are never looked at;
  - claims have exactly the JSON type they should have: no "1700000000", no true, no NaN;
  - no member stands twice in an object (RFC 7519 4): of two `sub` another reader might believe the other one;
  - the claims are not looked at before the signature is good.

Note [Verified tokens]
  A client sends one token many times. That these very bytes were signed by a key of this keyring, and what they
  say, does not change, so it is remembered with the keyring and ends with it. What does change is asked for each
  request: the times, and the revocation list (core/revocations.py). So a remembered token is refused at the same
  moment as one that is verified anew, which is what the design wants of it (part 11); docs/decisions/0003.
"""

import json
import re
from binascii import a2b_base64
from typing import Any, Final

import orjson
from attrs import frozen
from cryptography.exceptions import InvalidSignature

from apigw.constants import CLOCK_SKEW_S, MAX_TOKEN_BYTES, MAX_USER_ID_CHARS
from apigw.core.keyring import Keyring, KeysRefused, Verify
from apigw.core.revocations import NOTHING_REVOKED, Revocations
from apigw.core.scopes import TooManyScopes, granted
from apigw.errors import Unauthorized
from apigw.exchange import Principal
from apigw.names import AUTH_REASONS

__all__ = ["InvalidToken", "Keyring", "KeysRefused", "TokenPolicy", "UnknownKey", "verify"]

_CHALLENGE: Final = ((b"WWW-Authenticate", b'Bearer realm="apigw", error="invalid_token"'),)
_USER_ID: Final = re.compile(r"[!-~]{1,%d}" % MAX_USER_ID_CHARS)
_USER_ID_CLAIM: Final = "user_id"  # conventional; see _user_id
_MAX_KID_CHARS: Final = 256
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
_MAX_EPOCH_S: Final = 1e11  # the year 5138; milliseconds instead of seconds are above it, and no date
_NUMBERS: Final = (int, float)  # bool is a type of its own to type()

# base64url to base64; everything else, "+", "/" and "=" too, to a character that a2b_base64 refuses.
_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_STANDARD: Final = bytes(
    octet if octet in _ALPHABET else {0x2D: 0x2B, 0x5F: 0x2F}.get(octet, 0x21) for octet in range(256)
)
_PADDING: Final = (b"", b"", b"==", b"=")
_LAST: Final = (b"", b"", b"AQgw", b"AEIMQUYcgkosw048")  # last characters without stray bits, by length modulo 4


class InvalidToken(Unauthorized):
    """401 with one message whatever the reason. `reason` is a word of names.AUTH_REASONS, for log and metric."""

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(reason=reason, detail=detail or AUTH_REASONS[reason], headers=_CHALLENGE)


class UnknownKey(InvalidToken):
    """No key with this kid: perhaps a new one, so that fresh keys may help. `kid` is the client's text."""

    def __init__(self, kid: str) -> None:
        super().__init__("unknown_key", f"no key with kid {ascii(kid)}")
        self.kid = kid


@frozen
class TokenPolicy:
    """What tokens must say: `auth.jwt` of the configuration. `skew_s` in seconds, applied to exp, nbf and iat."""

    issuer: str
    audience: str
    algorithms: tuple[str, ...] = ("RS256",)
    skew_s: float = CLOCK_SKEW_S
    user_id_claim: str = "sub"
    scopes_claim: str = "scope"


class Verified:
    """What a token with a good signature says. See Note [Verified tokens]. Times in epoch seconds."""

    __slots__ = ("policy", "valid_from_s", "valid_until_s", "jti", "issued_s", "principal")

    def __init__(self, claims: dict[str, Any], policy: TokenPolicy) -> None:
        self.policy = policy
        self.valid_from_s = max(claims.get("nbf", 0), claims.get("iat", 0)) - policy.skew_s
        self.valid_until_s = claims["exp"] + policy.skew_s  # from then on it is refused
        self.jti = _jti(claims)
        self.issued_s: float | None = claims.get("iat")
        self.principal = _principal(claims, policy)


def verify(
    token: bytes, keyring: Keyring, policy: TokenPolicy, now_s: float, revocations: Revocations = NOTHING_REVOKED
) -> Principal:
    """The caller whose token this is, at epoch second `now_s`. See Note [Strictness].

    Raises InvalidToken, and UnknownKey (a kind of it) when the keyring has no key with the token's kid.
    Nothing else, whatever the bytes: a defect is refused too, with reason "error".
    """
    try:
        verified: Verified | None = keyring.verified.get(token)
        if verified is None or verified.policy is not policy:
            if token in keyring.forged:
                raise InvalidToken("bad_signature")
            if len(token) > MAX_TOKEN_BYTES:
                raise InvalidToken("too_long")
            claims = _signed_claims(token, keyring, policy)
            _check_claims(claims, policy, now_s)
            verified = Verified(claims, policy)
            keyring.remember_verified(token, verified)
        if not verified.valid_from_s <= now_s < verified.valid_until_s:
            raise InvalidToken("expired" if now_s >= verified.valid_until_s else "not_yet_valid")
        principal = verified.principal
        if revocations.any and revocations.refuses(verified.jti, principal.user_id, verified.issued_s):
            raise InvalidToken("revoked")
        return principal
    except InvalidToken:
        raise
    except ValueError:  # base64, JSON
        raise InvalidToken("malformed") from None
    except Exception as error:
        raise InvalidToken("error", f"{type(error).__name__} in the verification of a token") from error


def _signed_claims(token: bytes, keyring: Keyring, policy: TokenPolicy) -> dict[str, Any]:
    """The claims of a token whose signature is good (RFC 7515 5.2)."""
    signed, _, signature = token.rpartition(b".")
    header, _, payload = signed.partition(b".")
    if not payload or b"." in payload:
        raise InvalidToken("malformed")
    known = keyring.remembered(header)
    algorithm, check = _resolved(header, keyring, policy) if known is None else known
    if algorithm not in policy.algorithms:
        raise InvalidToken("wrong_algorithm")
    try:
        check(_decoded(signature), signed)
    except InvalidSignature:
        keyring.remember_forged(token)
        raise InvalidToken("bad_signature") from None
    if known is None:
        keyring.remember(header, algorithm, check)
    return _object(_decoded(payload))


def _resolved(segment: bytes, keyring: Keyring, policy: TokenPolicy) -> tuple[str, Verify]:
    """(alg, how to check the signature) that a header segment asks for."""
    header = _object(_decoded(segment))
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if type(algorithm) is not str or algorithm not in policy.algorithms:
        raise InvalidToken("wrong_algorithm")
    if "crit" in header or "b64" in header:
        raise InvalidToken("bad_header")
    if type(kind) is not str or kind.lower() not in _TYPES:
        raise InvalidToken("wrong_type")
    if "kid" in header and (type(kid) is not str or not 0 < len(kid) <= _MAX_KID_CHARS):
        raise InvalidToken("bad_header")
    check = keyring.check(kid, algorithm)
    if check is not None:
        return algorithm, check
    if kid is None:
        raise InvalidToken("missing_kid")
    if kid in keyring.kids:
        raise InvalidToken("wrong_algorithm")
    raise UnknownKey(kid)


def _decoded(segment: bytes) -> bytes:
    """Strict base64url (RFC 7515 2, RFC 4648 3.5). Raises ValueError for every other spelling."""
    rest = len(segment) & 3
    if rest and segment[-1] not in _LAST[rest]:
        raise ValueError("base64url: stray bits or length")
    return a2b_base64(segment.translate(_STANDARD) + _PADDING[rest], strict_mode=True)


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object, by orjson, which is strict about everything but a member that stands twice."""
    found = orjson.loads(data)
    if type(found) is not dict:
        raise InvalidToken("malformed")
    try:
        _UNIQUE.decode(data.decode("utf-8"))
    except RecursionError:
        raise InvalidToken("malformed", "JSON nested too deep") from None
    return found


def _members_once(members: list[tuple[str, Any]]) -> None:
    if len(dict(members)) != len(members):
        raise InvalidToken("malformed", "a member stands twice in a JSON object")


_UNIQUE: Final = json.JSONDecoder(object_pairs_hook=_members_once)  # 3 us a token, when it is first seen


def _check_claims(claims: dict[str, Any], policy: TokenPolicy, now_s: float) -> None:
    """exp, nbf, iat, iss and aud (RFC 7519 4.1)."""
    expires_s = claims.get("exp")
    if type(expires_s) not in _NUMBERS or not 0 <= expires_s <= _MAX_EPOCH_S:  # type: ignore[operator]
        raise InvalidToken("bad_time")
    for name in ("nbf", "iat"):
        begins_s = claims.get(name, 0)
        if type(begins_s) not in _NUMBERS or not 0 <= begins_s <= _MAX_EPOCH_S:
            raise InvalidToken("bad_time")
        _check_times(expires_s, begins_s, policy.skew_s, now_s)  # type: ignore[arg-type]
    if claims.get("iss") != policy.issuer:
        raise InvalidToken("wrong_issuer")
    audience = claims.get("aud")
    if audience != policy.audience and not _among(policy.audience, audience):
        raise InvalidToken("wrong_audience")


def _check_times(expires_s: float, begins_s: float, skew_s: float, now_s: float) -> None:
    if expires_s + skew_s <= now_s:
        raise InvalidToken("expired")
    if begins_s - skew_s > now_s:
        raise InvalidToken("not_yet_valid")


def _among(audience: str, claim: object) -> bool:
    """Whether the claim is a list of strings with `audience` among them."""
    return type(claim) is list and audience in claim and all(type(item) is str for item in claim)


def _jti(claims: dict[str, Any]) -> str | None:
    """The token's own name (RFC 7519 4.1.7); of another type than a string it would slip through the list."""
    jti = claims.get("jti")
    if jti is not None and type(jti) is not str:
        raise InvalidToken("malformed")
    return jti


def _principal(claims: dict[str, Any], policy: TokenPolicy) -> Principal:
    user_id = _user_id(claims, policy.user_id_claim)
    try:
        scopes, text = granted(claims.get(policy.scopes_claim))
    except TooManyScopes:
        raise InvalidToken("bad_scopes") from None
    lines = f"X-User-ID: {user_id}\r\nX-User-Scopes: {text}\r\n".encode("ascii")
    return Principal(user_id=user_id, scopes=scopes, headers=lines)


def _user_id(claims: dict[str, Any], claim: str) -> str:
    """The configured claim: visible ASCII, safe in a header, a log line and a Redis key.

    Backends and other gateways read a claim `user_id` by convention. A token that has one beside the configured
    claim and does not mean the same user by it is refused: two parts of one system would see two users.
    """
    user_id = claims.get(claim)
    if type(user_id) is not str or _USER_ID.fullmatch(user_id) is None:
        raise InvalidToken("bad_user_id")
    if _USER_ID_CLAIM in claims and claims[_USER_ID_CLAIM] != user_id:
        raise InvalidToken("bad_user_id")
    return user_id
