"""API keys as clients show them: one reading or none."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.core.api_keys import APIKey, Malformed, digest, split
from apigw.exchange import Principal

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


def test_a_key_expires_at_its_second() -> None:
    key = APIKey("id", "partner", Principal(partner_id="partner"), 100.0)
    assert not key.expired(99.9) and key.expired(100.0)
    assert not APIKey("id", "partner", Principal(partner_id="partner")).expired(1e12)
