"""Which counter of a tier a request is counted on.

Note [Whose counter]
  A tier counts per user, API key, address, fingerprint or everybody. A tier per user asked of an API key's
  request counts the key, and the other way round: the caller is known, only otherwise than the tier thought.
  A caller without either (a route without authentication, a grace period) counts by its address.
"""

from typing import TYPE_CHECKING, Final

from apigw.core.client_address import counting_address
from apigw.core.fingerprint import fingerprint
from apigw.core.window import API_KEY, FINGERPRINT, GLOBAL, IP, USER, Demand, key_prefix, safe_identifier
from apigw.exchange import Exchange, Principal

if TYPE_CHECKING:
    from apigw.config.model import Tier

_ADDRESSES_KEPT: Final = 1024  # of a tier: whoever hammers on is found in one step


class Counters:
    """The counters of one tier: its key prefixes, prepared once.

    shadow: the tier counts and refuses nobody. everybody: it has one counter for all.
    """

    __slots__ = (
        "tier", "shadow", "everybody", "_name", "_limit", "_window_s", "_per", "_network",
        "_user", "_api_key", "_ip", "_fingerprint", "_all", "_addresses",
    )  # fmt: skip

    def __init__(self, tier: "Tier") -> None:
        self.tier = tier
        self.shadow = tier.mode == "shadow"
        self.everybody = tier.per == "global"
        self._name = tier.tier
        self._limit = tier.limit
        self._window_s = tier.window_s
        self._per = tier.per
        self._network = tier.fingerprint_network
        self._user = key_prefix(tier.tier, USER)
        self._api_key = key_prefix(tier.tier, API_KEY)
        self._ip = key_prefix(tier.tier, IP)
        self._fingerprint = key_prefix(tier.tier, FINGERPRINT)
        self._addresses: dict[str, Demand] = {}
        self._all = Demand(tier.tier, key_prefix(tier.tier, GLOBAL) + "all}", tier.limit, tier.window_s)

    def demand(self, ex: Exchange, principal: Principal) -> Demand:
        """The counter of this request. See Note [Whose counter]."""
        per = self._per
        if per == "global":
            return self._all
        if per == "fingerprint":
            return self._of(f"{self._fingerprint}{fingerprint(ex.request, ex.client_ip if self._network else None)}}}")
        if per == "client_ip" or (principal.user_id is None and principal.key_hash is None):
            return self.of_address(ex.client_ip)
        if principal.counted_by is self and principal.demand is not None:
            return principal.demand
        if principal.user_id is not None and (per == "user_id" or principal.key_hash is None):
            key = f"{self._user}{safe_identifier(principal.user_id)}}}"
        else:
            key = f"{self._api_key}{safe_identifier(principal.key_hash or '')}}}"
        demand = self._of(key)
        principal.counted_by, principal.demand = self, demand
        return demand

    def of_address(self, client_ip: str) -> Demand:
        """The counter of this address."""
        demand = self._addresses.get(client_ip)
        if demand is None:
            if len(self._addresses) >= _ADDRESSES_KEPT:
                self._addresses.clear()
            address = safe_identifier(counting_address(client_ip))
            demand = self._addresses[client_ip] = self._of(f"{self._ip}{address}}}")
        return demand

    def _of(self, key: str) -> Demand:
        return Demand(self._name, key, self._limit, self._window_s)


class TierCounters:
    """Counters by tier, made when a tier is first seen and again when a reload changed it."""

    __slots__ = ("_by_name",)

    def __init__(self) -> None:
        self._by_name: dict[str, Counters] = {}

    def of(self, tier: "Tier") -> Counters:
        counters = self._by_name.get(tier.tier)
        if counters is None or counters.tier is not tier:
            counters = self._by_name[tier.tier] = Counters(tier)
        return counters
