"""Refusals that stand: a caller whose limit is exhausted is told so again without asking anybody.

Note [Standing refusals]
  A client that hammers on after a 429 costs a token verification and a question to Redis each time, and
  their answers cannot have changed: a rejected request is not counted, and counts only shrink with time. So
  the same credential from the same address, taken for the same identity, on the same tier, gets the same
  refusal for a moment. One by a tier per fingerprint does not stand: who shares an address may differ there.
  It can only refuse: nothing is let through that was not verified, so this is not the cache of verified
  tokens that the design rejects (part 11). It errs by at most 2% of the tier's window, 0.9 s at the most,
  which is below the shortest Retry-After.
"""

from typing import NamedTuple

from apigw.exchange import Principal, RateVerdict

MAX_STANDING = 1024  # each holds a credential of at most 8 KiB
_SHARE_OF_WINDOW = 0.02
_LONGEST_S = 0.9

# (Authorization, X-API-Key, the client's address, which of these the route asks for, its tier)
Key = tuple[bytes | None, bytes | None, str, str, str]


class Standing:
    """One refusal: whom it met, by which tier, what the headers said, when to come again (epoch seconds)."""

    __slots__ = ("until_s", "retry_at_s", "tier", "verdict", "principal")

    def __init__(
        self, until_s: float, retry_at_s: float, tier: str, verdict: RateVerdict, principal: Principal | None
    ) -> None:
        self.until_s = until_s
        self.retry_at_s = retry_at_s
        self.tier = tier
        self.verdict = verdict
        self.principal = principal


class Refusals:
    """The refusals of one configuration that stand at the moment."""

    def __init__(self) -> None:
        self._standing: dict[Key, Standing] = {}

    @property
    def any(self) -> bool:
        """False when nobody was refused lately: the common case, for the price of a look."""
        return bool(self._standing)

    def remember(
        self, key: Key, now_s: float, wait_s: int, window_s: int, tier: str, verdict: RateVerdict,
        principal: Principal | None,
    ) -> None:  # fmt: skip
        """A request was refused at `now_s` and told to come again in `wait_s`."""
        if len(self._standing) >= MAX_STANDING:
            self._standing.clear()
        until_s = now_s + min(_LONGEST_S, window_s * _SHARE_OF_WINDOW)
        self._standing[key] = Standing(until_s, now_s + wait_s, tier, verdict, principal)

    def of(self, key: Key, now_s: float) -> Standing | None:
        """The refusal that stands for this caller, if any."""
        standing = self._standing.get(key)
        if standing is None:
            return None
        if not 0.0 < standing.until_s - now_s <= _LONGEST_S:  # over, or the clock was set back
            del self._standing[key]
            return None
        return standing


# Note [Exhausted addresses]
#   Whoever guesses credentials from an address whose limit is exhausted needs no new answer either: counts only shrink
#   with time, and `wait_s` is the least whole number of seconds after which a request passes, so before the last of
#   them nothing does. It is at most _LONGEST_EXHAUSTED_S, so that an operator who clears a counter sees it work.
_LONGEST_EXHAUSTED_S = 10.0


class Exhausted(NamedTuple):
    """An address whose wrong credentials are not looked at: until when, and when to come again (epoch seconds)."""

    until_s: float
    retry_at_s: float
    tier: str
    verdict: RateVerdict


class ExhaustedAddresses:
    """Addresses, as counting_address() spells them, that have used up their wrong credentials. Bounded."""

    def __init__(self) -> None:
        self._exhausted: dict[str, Exhausted] = {}

    @property
    def any(self) -> bool:
        """False when nobody guessed lately."""
        return bool(self._exhausted)

    def remember(self, address: str, now_s: float, wait_s: int, window_s: int, tier: str, verdict: RateVerdict) -> None:
        """A wrong credential was refused with 429 at `now_s`, to come again in `wait_s`."""
        if len(self._exhausted) >= MAX_STANDING:
            del self._exhausted[next(iter(self._exhausted))]
        stands_s = max(min(_LONGEST_S, window_s * _SHARE_OF_WINDOW), min(wait_s - 1, _LONGEST_EXHAUSTED_S))
        self._exhausted[address] = Exhausted(now_s + stands_s, now_s + wait_s, tier, verdict)

    def of(self, address: str, now_s: float) -> Exhausted | None:
        found = self._exhausted.get(address)
        if found is None:
            return None
        if not 0.0 < found.until_s - now_s <= _LONGEST_EXHAUSTED_S:  # over, or the clock was set back
            del self._exhausted[address]
            return None
        return found
