"""Around stage 7: wrong credentials count against the client's address, so guessing is slow.

    authentication says            the address    answer
    the principal                  any            goes on: nothing is counted, nobody is asked
    no credential                  any            401; there is nothing to guess by asking without
    expired, not yet valid         any            401, and not counted: the issuer's signature is good
    wrong                          has requests   401, counted on the failed_auth_tier
    wrong                          exhausted      429 with Retry-After instead of 401
    (not asked)                    exhausted      429 for an API key that this worker does not know as good

Note [Guessing]
  Good callers behind the address of one who guesses are not refused: what is verified here is verified first, and the
  counter is asked only after a failure. The exception is an API key, whose check takes bcrypt 0.3 s: while an address
  stands exhausted, a key that this worker has not seen good lately is not checked. A token's check takes 0.03 ms.
  A client whose token has expired must learn to fetch a new one, from its 401, also behind a busy address.
  When the counters are down, this worker's own stand in for them (stages/address_limit.py).
"""

from collections.abc import Callable
from math import ceil
from typing import Any, Final, Protocol

from apigw.core.client_address import counting_address
from apigw.core.refusals import ExhaustedAddresses
from apigw.core.verdicts import REJECTED, Refusal, exceeded
from apigw.errors import GatewayError, Unauthorized, or_raised
from apigw.exchange import Exchange, Principal
from apigw.ports import DecisionCounter, WallClock

_NO_GUESS: Final = frozenset({"missing_credentials", "expired", "not_yet_valid"})


class Authenticating(Protocol):
    """stages/authentication.py: the principal or a Deferred of it; raises (or fails with) GatewayError."""

    needs: frozenset[str]
    gives: str | None

    def enter(self, ex: Exchange) -> Any: ...


class FailedAuthentication:
    """`authentication`, and what its failures cost.

    count: AddressLimit.take. known_key: whether an API key, as it came, is remembered as good here.
    """

    name = "authentication"

    def __init__(
        self,
        authentication: Authenticating,
        count: Callable[[Exchange, Any], Any],
        known_key: Callable[[bytes], bool],
        wall: WallClock,
        on_decision: DecisionCounter,
    ) -> None:
        self.needs = authentication.needs
        self.gives = authentication.gives
        self._authenticate = authentication.enter
        self._count = count
        self._known_key = known_key
        self._wall = wall
        self._on_decision = on_decision
        self._exhausted = ExhaustedAddresses()

    def enter(self, ex: Exchange) -> Any:
        """The principal or a Deferred of it. Raises (or fails with) what authentication does, or 429."""
        if self._exhausted.any and self._is_unknown_key(ex):
            or_raised(self._standing(ex, "not checked"))
        try:
            principal = self._authenticate(ex)
        except Unauthorized as wrong:
            return or_raised(self._refusal(wrong, ex))
        if isinstance(principal, Principal):
            return principal
        return principal.addErrback(self._failed, ex)

    def _is_unknown_key(self, ex: Exchange) -> bool:
        route = ex.route
        if route is None or not route.auth_required or route.auth_type != "api_key":
            return False
        presented = ex.request.fields.get(b"x-api-key")
        return presented is not None and not self._known_key(presented)

    def _failed(self, failure: Any, ex: Exchange) -> Any:
        if not isinstance(failure.value, Unauthorized):
            return failure  # not trap(): raised here, the frame that holds it would be a cycle
        return self._refusal(failure.value, ex)

    def _refusal(self, wrong: Unauthorized, ex: Exchange) -> Any:
        """`wrong` or a 429, or a Deferred of either."""
        tier = ex.snapshot.failed_auth_tier
        if tier is None or wrong.reason in _NO_GUESS:
            return wrong
        standing = self._standing(ex, wrong.reason)
        if standing is not None:
            return standing
        refused = self._count(ex, tier)
        if refused is None or isinstance(refused, Refusal):
            return self._counted(refused, wrong, ex)
        wrong.__traceback__ = None  # else its frames live until the counter has answered
        return refused.addCallback(self._counted, wrong, ex)

    def _counted(self, refused: Refusal | None, wrong: Unauthorized, ex: Exchange) -> GatewayError:
        if refused is None:
            return wrong
        by, verdict, wait_s = refused
        address = counting_address(ex.client_ip)
        self._exhausted.remember(address, self._wall(), wait_s, by.window_s, by.tier, verdict)
        return _too_many(wait_s, wrong.reason)

    def _standing(self, ex: Exchange, reason: str) -> GatewayError | None:
        """The 429 that stands for this address, if one does."""
        if not self._exhausted.any:
            return None
        now_s = self._wall()
        standing = self._exhausted.of(counting_address(ex.client_ip), now_s)
        if standing is None:
            return None
        self._on_decision(standing.tier, REJECTED)
        ex.rate_limited = True
        ex.verdict = standing.verdict
        return _too_many(max(1, ceil(standing.retry_at_s - now_s)), reason)


def _too_many(wait_s: int, reason: str) -> GatewayError:
    return exceeded(wait_s, f"too many wrong credentials from this address; this one: {reason}")
