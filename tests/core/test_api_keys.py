"""API keys as clients show them: one reading or none."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.core.api_keys import APIKey, InvalidAPIKey, Malformed, Unusable, digest, from_json, made, split, to_json
from apigw.exchange import Principal
from tests.corpus import api_keys as corpus

WORD = st.text("ABCXYZabcxyz0189", min_size=16, max_size=32)


@given(WORD, WORD)
def test_a_key_is_split_into_its_id_and_its_secret(key_id: str, secret: str) -> None:
    assert split(f"pk_live_{key_id}_{secret}".encode()) == (key_id, secret.encode())


@pytest.mark.parametrize(
    "presented",
    [
        b"",
        b"pk_live_",
        b"pk_live_id_short",
        b"pk_test_id_0123456789abcdef",
        b"pk_live__0123456789abcdef",
        b"pk_live_i_d_0123456789abcdef",
        b"pk_live_id_0123456789abcdef\n",
        b"pk_live_id_0123456789abcdef, pk_live_id_0123456789abcdef",
        b"pk_live_id_" + b"a" * 65,
        "pk_live_id_0123456789abcdé".encode(),
        b"PK_LIVE_id_0123456789abcdef",
    ],
)
def test_anything_else_is_no_key(presented: bytes) -> None:
    with pytest.raises(Malformed):
        split(presented)


@pytest.mark.parametrize("presented", [key for _, key in corpus.MALFORMED], ids=[name for name, _ in corpus.MALFORMED])
def test_no_malformed_key_of_the_corpus_has_a_reading(presented: bytes) -> None:
    """So it is never looked up: not in Redis, not in the database, not by bcrypt."""
    with pytest.raises(Malformed):
        split(presented)


def test_every_stranger_of_the_corpus_is_another_key() -> None:
    """In its id or its secret, and in its digest, which is what caches and counters know it by."""
    keys = [corpus.GOOD, *(key for _, key in corpus.STRANGERS)]
    assert len({split(key) for key in keys}) == len({digest(key) for key in keys}) == len(keys)
    assert all(len(secret) <= 72 for _, secret in map(split, keys)), "bcrypt would not look at more"


def test_the_digest_is_of_the_whole_key() -> None:
    """As the contract's apikey:{sha256(key)}."""
    assert digest(b"pk_live_id_0123456789abcdef") != digest(b"pk_live_ie_0123456789abcdef")
    assert len(digest(b"x")) == 64


@pytest.mark.parametrize(
    ("address", "allowed"),
    [("192.0.2.7", True), ("::ffff:192.0.2.7", True), ("198.51.100.1", False), ("2001:db8::1", True), ("junk", False)],
)
def test_a_key_may_be_bound_to_networks(address: str, allowed: bool) -> None:
    networks = (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))
    assert APIKey("id", "partner", Principal(partner_id="partner"), None, networks).allows(address) is allowed
    assert APIKey("id", "partner", Principal(partner_id="partner")).allows(address)


@pytest.mark.parametrize("network", ["::ffff:203.0.113.7", "::ffff:203.0.113.0/120", "::ffff:0:0/96"])
def test_a_network_as_ipv6_sees_it_has_the_clients_of_the_ipv4_one(network: str) -> None:
    """Also of a row that was written with it."""
    key = made("k1", "f" * 64, partner_id="acme", networks=(network,))
    for each in (key, from_json(to_json(key), "k1", "f" * 64)):
        assert each.allows("203.0.113.7") and each.allows("::ffff:203.0.113.7") and not each.allows("2001:db8::1")


def test_a_network_with_a_zone_makes_no_key() -> None:
    with pytest.raises(Unusable, match="no network"):
        made("k1", "f" * 64, partner_id="acme", networks=("fe80::1%eth0",))


def test_a_key_expires_at_its_second() -> None:
    key = APIKey("id", "partner", Principal(partner_id="partner"), 100.0)
    assert not key.expired(99.9) and key.expired(100.0)
    assert not APIKey("id", "partner", Principal(partner_id="partner")).expired(1e12)


KEY = made(
    "k1",
    "f" * 64,
    partner_id="acme",
    tier="gold",
    scopes=("orders:read", "a"),
    expires_s=1_900_000_000,
    networks=("10.0.0.0/8", "2001:db8::/32"),
)


def test_a_key_brings_its_principal_and_its_only_identity_header() -> None:
    """Contract section 5: X-Partner-ID, and neither X-User-ID nor X-User-Scopes."""
    principal = KEY.principal
    assert principal.headers == b"X-Partner-ID: acme\r\n"
    assert (principal.partner_id, principal.user_id, principal.tier) == ("acme", None, "gold")
    assert principal.scopes == {"orders:read", "a"} and principal.key_hash == "f" * 64


@pytest.mark.parametrize("partner_id", ["", "a b", "a\r\nX-User-ID: root", "ä", "x" * 257])
def test_a_partner_that_no_header_can_carry_makes_no_key(partner_id: str) -> None:
    with pytest.raises(Unusable):
        made("k1", "f" * 64, partner_id=partner_id)


def test_a_cached_key_comes_back_as_it_was() -> None:
    again = from_json(to_json(KEY), "k1", "f" * 64)
    assert to_json(again) == to_json(KEY)
    assert again.networks == KEY.networks and again.expires_s == KEY.expires_s
    assert again.principal.headers == KEY.principal.headers


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b"{}",
        to_json(made("other", "f" * 64, partner_id="acme")),
        to_json(KEY).replace(b'"acme"', b'"a\\r\\nb"'),
        to_json(KEY).replace(b'"acme"', b"7"),
        to_json(KEY).replace(b"1900000000", b'"1900000000"'),
        to_json(KEY).replace(b"1900000000", b"true"),
        to_json(KEY).replace(b'"gold"', b"[]"),
        to_json(KEY).replace(b'"a"', b"1"),
        to_json(KEY).replace(b"10.0.0.0/8", b"10.0.0.0/99"),
        b'{"partner_id": "acme", "key_id": "k1"}',
    ],
)
def test_a_cached_record_that_is_not_whole_is_no_key(document: bytes) -> None:
    """Networks that are missing would let a key in from anywhere: nothing is filled in."""
    with pytest.raises(Unusable):
        from_json(document, "k1", "f" * 64)


def test_refusals_look_alike_whatever_the_reason() -> None:
    """Only the log and the metrics know which it was."""
    shown = {
        (error.status, error.code, error.message, error.headers, error.retry_after_s)
        for error in (InvalidAPIKey(f"key_{word}", "k1") for word in ("malformed", "unknown", "wrong", "expired"))
    }
    assert len(shown) == 1
    assert "k1" in (InvalidAPIKey("key_revoked", "k1").detail or "")
