"""API keys as clients show them, `pk_live_{key_id}_{secret}`, and what is known of one (contract section 7). Pure.

The database has bcrypt(secret); caches are asked by the SHA-256 of the whole key, so that no key stands in Redis.
"""

import re
from collections.abc import Iterable
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, Final

import orjson
from attrs import field, frozen

from apigw.constants import MAX_USER_ID_CHARS
from apigw.core.client_address import client_network
from apigw.errors import Unauthorized
from apigw.exchange import Principal
from apigw.names import AUTH_REASONS

PREFIX: Final = b"pk_live_"
KEY_ID_CHARS: Final = 16  # 80 bits: never guessed, and a name an operator can read aloud
SECRET_CHARS: Final = 43  # 256 bits in base 62; bcrypt takes 72 bytes at most
# Neither part has an underscore, so that a key has one reading only.
_KEY: Final = re.compile(rb"pk_live_([A-Za-z0-9]{1,32})_([A-Za-z0-9]{16,64})")
_PARTNER_ID: Final = re.compile(r"[!-~]{1,%d}" % MAX_USER_ID_CHARS)  # safe in a header, a log line and a Redis key
_CHALLENGE: Final = ((b"WWW-Authenticate", b'Bearer realm="apigw", error="invalid_token"'),)


class Malformed(ValueError):
    """Not an API key at all."""


class Unusable(ValueError):
    """What a store says of a key makes no key: a partner id that no header can carry, a wrong type."""


class InvalidAPIKey(Unauthorized):
    """401 with one message whatever the reason. `reason` is a word of names.AUTH_REASONS, for log and metric.

    key_id: the client's text, letters and digits; not a secret, so the log has it.
    """

    code = "invalid_api_key"
    message = "The API key is not valid."

    def __init__(self, reason: str, key_id: str | None = None) -> None:
        detail = AUTH_REASONS[reason] if key_id is None else f"{AUTH_REASONS[reason]} (key {key_id})"
        super().__init__(reason=reason, detail=detail, headers=_CHALLENGE)


def split(presented: bytes) -> tuple[str, bytes]:
    """(key_id, secret) of a key as it came in X-API-Key. Raises Malformed."""
    match = _KEY.fullmatch(presented)
    if match is None:
        raise Malformed("an API key is pk_live_, an id, _ and a secret")
    return match[1].decode("ascii"), match[2]


def digest(presented: bytes) -> str:
    """The key's name in caches and rate counters: SHA-256 of the whole key, in hex."""
    return sha256(presented).hexdigest()


@frozen
class APIKey:
    """A key whose secret was checked: whose it is and what it may do. Made once, shared by all its requests.

    expires_s: epoch second, None for never. networks: from where it may be used, empty for anywhere.
    principal: partner_id, scopes, tier, key_hash and the identity header, ready for an exchange.
    """

    key_id: str
    partner_id: str
    principal: Principal = field(repr=False)
    expires_s: float | None = None
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    def expired(self, now_s: float) -> bool:
        return self.expires_s is not None and self.expires_s <= now_s

    def allows(self, client_ip: str) -> bool:
        """Whether the key may be used from this address; a malformed one never."""
        if not self.networks:
            return True
        try:
            address = ip_address(client_ip)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self.networks)


def check_partner_id(partner_id: str) -> None:
    """Raises Unusable for one that no header can carry, which no key has."""
    if _PARTNER_ID.fullmatch(partner_id) is None:
        raise Unusable("partner_id is not 1 to %d visible ASCII characters" % MAX_USER_ID_CHARS)


def made(
    key_id: str,
    key_hash: str,
    *,
    partner_id: str,
    tier: str | None = None,
    scopes: Iterable[str] = (),
    expires_s: float | None = None,
    networks: Iterable[str | IPv4Network | IPv6Network] = (),
) -> APIKey:
    """A key as its owner's record says. `key_hash` is digest() of the key. Raises Unusable."""
    check_partner_id(partner_id)
    try:
        known = tuple(client_network(network) for network in networks)
    except ValueError:
        raise Unusable("networks has something that is no network") from None
    principal = Principal(
        partner_id=partner_id,
        scopes=frozenset(scopes),
        tier=tier,
        headers=b"X-Partner-ID: %b\r\n" % partner_id.encode("ascii"),
        key_hash=key_hash,
    )
    return APIKey(key_id, partner_id, principal, expires_s, known)


def to_json(key: APIKey) -> bytes:
    """A checked key as caches keep it (contract section 7): no secret, nothing to make one from."""
    return orjson.dumps(
        {
            "partner_id": key.partner_id,
            "tier": key.principal.tier,
            "scopes": sorted(key.principal.scopes),
            "expires_at": key.expires_s,
            "key_id": key.key_id,
            "networks": [str(network) for network in key.networks],
        }
    )


def from_json(document: bytes, key_id: str, key_hash: str) -> APIKey:
    """The key of to_json(). Raises Unusable for anything that to_json() of this key would not have written."""
    try:
        members = orjson.loads(document)
    except ValueError:
        raise Unusable("not JSON") from None
    if type(members) is not dict or members.get("key_id") != key_id:
        raise Unusable("not the record of this key")
    expires_s, tier = members.get("expires_at"), members.get("tier")
    if expires_s is not None and type(expires_s) not in (int, float):
        raise Unusable("expires_at is no number")
    if tier is not None and type(tier) is not str:
        raise Unusable("tier is no text")
    return made(
        key_id,
        key_hash,
        partner_id=_texts([members.get("partner_id")])[0],
        tier=tier,
        scopes=_texts(members.get("scopes")),
        expires_s=expires_s,
        networks=_texts(members.get("networks")),
    )


def _texts(value: Any) -> list[str]:
    if type(value) is not list or not all(type(item) is str for item in value):
        raise Unusable("not a list of texts")
    return value
