"""Tokens: the corpus of forged ones, and the properties that hold for any bytes."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from apigw.core.keyring import ALGORITHMS, Keyring
from apigw.core.revocations import NOTHING_REVOKED, Revocations, RevokedToken, RevokedUser
from apigw.core.tokens import InvalidToken, TokenPolicy, UnknownKey, _decoded, verify
from apigw.names import AUTH_REASONS
from tests.corpus import forge
from tests.corpus.forge import b64, public_jwk, sign

NOW_S = 1_800_000_000
FORGE = forge.Forge(NOW_S)
KEYRING = Keyring.from_jwks(FORGE.jwks(), ("RS256",))
POLICY = TokenPolicy(issuer=forge.ISSUER, audience=forge.AUDIENCE)
WIDE = ("RS256", "ES256", "EdDSA")
RINGS = {
    None: (KEYRING, POLICY),
    "wide": (Keyring.from_jwks(FORGE.jwks(), WIDE), TokenPolicy(forge.ISSUER, forge.AUDIENCE, WIDE)),
}
GOOD = FORGE.token({})


def outcome(
    token: bytes,
    keyring: Keyring = KEYRING,
    policy: TokenPolicy = POLICY,
    now_s: float = NOW_S,
    revocations: Revocations = NOTHING_REVOKED,
) -> str:
    """ "ok" or the reason of the refusal."""
    try:
        verify(token, keyring, policy, now_s, revocations)
    except InvalidToken as refusal:
        return refusal.reason
    return "ok"


@pytest.mark.parametrize("case", forge.CASES, ids=lambda case: case["name"])
def test_every_token_of_the_corpus_has_the_outcome_it_should(case: dict[str, Any]) -> None:
    """The reason is exact: a forgery refused for a lesser reason than its own would hide a hole."""
    token = FORGE.token(case)
    keyring, policy = RINGS[case.get("ring")]
    assert outcome(token, keyring, policy) == case["expect"]
    assert outcome(token, keyring, policy) == case["expect"], "the same again, with the header remembered"
    if "scopes" in case:
        principal = verify(token, keyring, policy, NOW_S)
        assert principal.scopes == frozenset(case["scopes"].split())
        assert principal.headers.endswith(b"X-User-Scopes: %b\r\n" % case["scopes"].encode())


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    names = [case["name"] for case in forge.CASES]
    assert len(names) == len(set(names))
    assert sum(case["expect"] != "ok" for case in forge.CASES) >= 300


def test_a_good_token_gives_the_user_the_scopes_and_the_headers_of_the_backend() -> None:
    principal = verify(GOOD, KEYRING, POLICY, NOW_S)
    assert (principal.user_id, principal.partner_id) == ("alice", None)
    assert principal.scopes == {"read", "write"}
    assert principal.headers == b"X-User-ID: alice\r\nX-User-Scopes: read write\r\n"


def test_every_refusal_looks_the_same_to_the_client() -> None:
    """Status, code, message and headers tell an attacker nothing; the reason is a word that the operator knows."""
    seen = set()
    for case in forge.CASES:
        try:
            verify(FORGE.token(case), *RINGS[case.get("ring")], NOW_S)
        except InvalidToken as refusal:
            seen.add((refusal.status, refusal.code, refusal.message, refusal.headers, refusal.retry_after_s))
            assert refusal.reason in AUTH_REASONS
            assert not refusal.extra
    assert seen == {
        (
            401,
            "invalid_token",
            "The access token is not valid.",
            ((b"WWW-Authenticate", b'Bearer realm="apigw", error="invalid_token"'),),
            None,
        )
    }


def test_the_operator_finds_every_reason_in_the_docs() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "authentication.rst").read_text("utf-8").splitlines()
    rows = dict(line.split("  ", 1) for line in lines if line.startswith("``") and "  " in line)
    for word, text in AUTH_REASONS.items():
        assert rows[f"``{word}``"].strip() == text


def test_an_unknown_kid_is_told_apart_and_cannot_break_the_log_line() -> None:
    with pytest.raises(UnknownKey) as caught:
        verify(FORGE.token({"header": {"kid": "new\n\u2028"}}), KEYRING, POLICY, NOW_S)
    assert caught.value.kid == "new\n\u2028"
    assert caught.value.detail == r"no key with kid 'new\n\u2028'"


def test_the_configured_claims_are_used() -> None:
    policy = TokenPolicy(forge.ISSUER, forge.AUDIENCE, user_id_claim="user_id", scopes_claim="scp")
    principal = verify(FORGE.token({"claims": {"user_id": "u-1", "scp": ["a", "b"]}}), KEYRING, policy, NOW_S)
    assert (principal.user_id, principal.scopes) == ("u-1", {"a", "b"})
    assert outcome(GOOD, policy=policy) == "bad_user_id", "no falling back to sub"


def test_a_skew_of_zero_is_exact() -> None:
    policy = TokenPolicy(forge.ISSUER, forge.AUDIENCE, skew_s=0.0)
    token = FORGE.token({"claims": {"exp": "now+10", "iat": "now"}})
    assert outcome(token, policy=policy, now_s=NOW_S - 0.1) == "not_yet_valid"
    assert outcome(token, policy=policy, now_s=NOW_S) == "ok"
    assert outcome(token, policy=policy, now_s=NOW_S + 9.9) == "ok"
    assert outcome(token, policy=policy, now_s=NOW_S + 10) == "expired"


def test_a_remembered_header_does_not_outlive_the_allow_list() -> None:
    """A reload that takes RS256 away takes it away from keyrings made before."""
    assert outcome(GOOD) == "ok"
    narrower = TokenPolicy(forge.ISSUER, forge.AUDIENCE, ("ES256",))
    assert outcome(GOOD, policy=narrower) == "wrong_algorithm"


def test_only_headers_of_verified_tokens_are_remembered() -> None:
    """What is not signed cannot fill the memory of headers, however many spellings it has."""
    keyring = Keyring.from_jwks(FORGE.jwks(), ("RS256",))
    for number in range(100):
        assert outcome(FORGE.token({"edits": [["header", {"x": number}]]}), keyring) == "bad_signature"
    assert not keyring._headers
    for number in range(100):
        assert outcome(FORGE.token({"header": {"x": number}}), keyring) == "ok"
    assert 0 < len(keyring._headers) <= 64


def test_a_defect_inside_is_a_refusal_and_not_a_500() -> None:
    class Broken(Keyring):
        def remembered(self, header: bytes) -> Any:
            raise RuntimeError("defect")

    broken = Broken({}, {}, {})
    with pytest.raises(InvalidToken) as caught:
        verify(GOOD, broken, POLICY, NOW_S)
    assert caught.value.reason == "error"
    assert caught.value.detail == "RuntimeError in the verification of a token"


@given(st.binary(max_size=400))
def test_no_bytes_are_a_token(token: bytes) -> None:
    assert outcome(token) not in ("ok", "error")


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_no_byte_of_a_good_token_can_be_changed(at: int, octet: int) -> None:
    """Nor is there a second spelling of it: a good token is good in one form only."""
    changed = GOOD[:at] + bytes([octet]) + GOOD[at + 1 :]
    assert outcome(changed) == "ok" if changed == GOOD else outcome(changed) not in ("ok", "error")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_MEMBERS = ("alg", "typ", "kid", "crit", "b64", "jwk", "exp", "nbf", "iat", "iss", "aud", "sub", "user_id", "scope")


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(_MEMBERS), _JSON, max_size=4))
def test_signed_json_of_any_shape_is_good_or_refused(over: dict[str, Any]) -> None:
    """Well signed and strange: never an exception of ours, and a principal is always fit for a header."""
    header = {**forge.BASE_HEADER, **{k: v for k, v in over.items() if k in _MEMBERS[:6]}}
    claims = {"iss": POLICY.issuer, "aud": POLICY.audience, "sub": "a", "exp": NOW_S + 9}
    claims |= {k: v for k, v in over.items() if k in _MEMBERS[6:]}
    signed = b64(json.dumps(header).encode()) + b"." + b64(json.dumps(claims).encode())
    token = signed + b"." + b64(sign(FORGE.keys["k1"], "RS256", signed))
    try:
        principal = verify(token, KEYRING, POLICY, NOW_S)
    except InvalidToken as refusal:
        assert refusal.reason != "error"
    else:
        assert principal.headers.count(b"\r\n") == 2 and principal.headers.isascii()


@given(st.binary(max_size=64))
def test_base64url_has_one_spelling(data: bytes) -> None:
    text = base64.urlsafe_b64encode(data).rstrip(b"=")
    assert _decoded(text) == data
    for other in (text + b"=", text + b"A=", text + b"\n", b" " + text):
        with pytest.raises(ValueError):
            _decoded(other)


@given(st.binary(max_size=12))
def test_what_decodes_is_what_encodes(text: bytes) -> None:
    try:
        data = _decoded(text)
    except ValueError:
        return
    assert b64(data) == text


_CURVES = {"256": ec.SECP256R1(), "384": ec.SECP384R1(), "512": ec.SECP521R1()}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_algorithm_verifies_what_its_key_signed(algorithm: str) -> None:
    """And no other algorithm of the allow-list does, with the same key document."""
    if algorithm == "EdDSA":
        key: Any = ed25519.Ed25519PrivateKey.generate()
    else:
        key = FORGE.keys["k1"] if algorithm[1] == "S" and algorithm[0] in "RP" else None
        key = key or ec.generate_private_key(_CURVES[algorithm[2:]])
    keyring = Keyring.from_jwks({"keys": [public_jwk(key, kid="k", alg=algorithm)]}, tuple(ALGORITHMS))
    policy = TokenPolicy(forge.ISSUER, forge.AUDIENCE, tuple(ALGORITHMS))
    _, claims, _ = GOOD.split(b".")
    for named in ALGORITHMS:
        signed = b64(json.dumps({"alg": named, "kid": "k"}).encode()) + b"." + claims
        token = signed + b"." + b64(sign(key, algorithm, signed))
        assert outcome(token, keyring, policy) == ("ok" if named == algorithm else "wrong_algorithm")
        if named == algorithm:
            assert outcome(token[:-8] + b"AAAAAAAA", keyring, policy) == "bad_signature"
            assert outcome(signed + b".", keyring, policy) == "bad_signature"


def test_a_token_may_leave_out_its_kid_when_one_key_fits() -> None:
    alone = Keyring.from_jwks({"keys": FORGE.jwks()["keys"][:1]}, ("RS256",))
    assert outcome(FORGE.token({"drop_header": ["kid"]}), alone) == "ok"
    nameless = Keyring.from_jwks({"keys": [public_jwk(FORGE.keys["k1"])]}, ("RS256",))
    assert outcome(FORGE.token({"drop_header": ["kid"]}), nameless) == "ok"
    assert outcome(GOOD, nameless) == "unknown_key", "a key without a kid has no name to be called by"


def test_a_forged_token_is_remembered_as_such_and_only_by_the_keys_that_refused_it() -> None:
    """The memory is bounded, a good token never enters it, and other keys judge anew."""
    keyring = Keyring.from_jwks(FORGE.jwks(), ("RS256",))
    forged = GOOD[:-8] + b"AAAAAAAA"
    assert outcome(forged, keyring) == outcome(forged, keyring) == "bad_signature"
    assert outcome(GOOD, keyring) == "ok"
    assert list(keyring.forged) == [forged]
    for number in range(2000):
        keyring.remember_forged(b"%d" % number)
    assert len(keyring.forged) <= 512
    keyring.remember_forged(b"x" * 4096)
    assert b"x" * 4096 not in keyring.forged
    assert Keyring.from_jwks(FORGE.jwks(), ("RS256",)).forged == {}


def test_a_token_that_was_verified_before_is_judged_anew_by_all_that_can_change() -> None:
    """The times, the policy of the moment, the revocation list, and the keyring itself."""
    keyring = Keyring.from_jwks(FORGE.jwks(), ("RS256",))
    assert outcome(GOOD, keyring) == "ok" and GOOD in keyring.verified
    assert outcome(GOOD, keyring) == "ok"
    assert outcome(GOOD, keyring, now_s=NOW_S + 10_000_000) == "expired"
    assert outcome(GOOD, keyring, now_s=NOW_S - 10_000_000) == "not_yet_valid"
    other = TokenPolicy(issuer="https://other.example", audience=forge.AUDIENCE)
    assert outcome(GOOD, keyring, policy=other) == "wrong_issuer"
    assert outcome(GOOD[:-8] + b"AAAAAAAA", keyring) == "bad_signature"
    without = Keyring.from_jwks({"keys": [{**FORGE.jwks()["keys"][0], "kid": "another"}]}, ("RS256",))
    assert outcome(GOOD, without) == "unknown_key"


@pytest.mark.parametrize("remembered", [False, True], ids=["first seen", "remembered"])
def test_a_revoked_token_is_refused_whether_it_was_verified_before_or_not(remembered: bool) -> None:
    keyring, revocations = Keyring.from_jwks(FORGE.jwks(), ("RS256",)), Revocations()
    token = FORGE.token({"claims": {"jti": "token-1"}})
    if remembered:
        assert outcome(token, keyring, revocations=revocations) == "ok"
    revocations.add([RevokedToken("token-1", NOW_S + 3600.0)])
    assert outcome(token, keyring, revocations=revocations) == "revoked"
    assert outcome(FORGE.token({"claims": {"jti": "token-2"}}), keyring, revocations=revocations) == "ok"


def test_a_users_older_tokens_are_refused_and_the_newer_ones_pass() -> None:
    keyring, revocations = Keyring.from_jwks(FORGE.jwks(), ("RS256",)), Revocations()
    old = FORGE.token({"claims": {"sub": "u-1", "iat": NOW_S - 100}})
    new = FORGE.token({"claims": {"sub": "u-1", "iat": NOW_S - 10}})
    revocations.add([RevokedUser("u-1", NOW_S - 50.0, NOW_S + 3600.0)])
    assert outcome(old, keyring, revocations=revocations) == "revoked"
    assert outcome(new, keyring, revocations=revocations) == "ok"


def test_a_token_whose_jti_is_no_string_is_refused() -> None:
    """It could not be revoked."""
    assert outcome(FORGE.token({"claims": {"jti": 7}}), KEYRING) == "malformed"


def test_the_memory_of_verified_tokens_is_bounded_and_the_oldest_leave() -> None:
    keyring = Keyring.from_jwks(FORGE.jwks(), ("RS256",))
    for number in range(3000):
        keyring.remember_verified(b"%d" % number, object())
    keyring.remember_verified(b"x" * 4096, object())
    assert len(keyring.verified) == 2048 and b"2999" in keyring.verified and b"0" not in keyring.verified
