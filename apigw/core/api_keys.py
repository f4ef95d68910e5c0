"""API keys as clients show them, `pk_live_{key_id}_{secret}`, and what is known of one (contract section 7). Pure.

The database has bcrypt(secret); caches are asked by the SHA-256 of the whole key, so that no key stands in Redis.
"""

import re
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

from attrs import field, frozen

from apigw.exchange import Principal

PREFIX: Final = b"pk_live_"
KEY_ID_CHARS: Final = 16  # 80 bits: never guessed, and a name an operator can read aloud
SECRET_CHARS: Final = 43  # 256 bits in base 62; bcrypt takes 72 bytes at most
# Neither part has an underscore, so that a key has one reading only.
_KEY: Final = re.compile(rb"pk_live_([A-Za-z0-9]{1,32})_([A-Za-z0-9]{16,64})")


class Malformed(ValueError):
    """Not an API key at all."""


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
