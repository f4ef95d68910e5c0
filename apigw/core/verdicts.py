"""From a store's counts to what the client is told: the limit nearest to refusing, or the refusal."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from apigw.core.window import UNKNOWN, Counted, Demand, Judgement, judge
from apigw.errors import GatewayError
from apigw.exchange import RateVerdict

# `decision` of rate_limit_decisions_total
ALLOWED: Final = "allowed"
REJECTED: Final = "rejected"
FAIL_OPEN: Final = "fail_open"
FAIL_CLOSED: Final = "fail_closed"
FAIL_LOCAL: Final = "fail_local"
SHADOW_ALLOWED: Final = "shadow_allowed"
SHADOW_REJECTED: Final = "shadow_rejected"


class Refusal(NamedTuple):
    """Who refused (`by`), what the headers say, and after how many whole seconds, at least 1, a request would pass."""

    by: Demand
    verdict: RateVerdict
    wait_s: int


def nearest(counted: Counted, demands: Sequence[Demand], now_s: float) -> RateVerdict:
    """The verdict of the limit nearest to refusing."""
    limit, remaining, reset_epoch_s, _ = judge(demands[0], counted.counts[0], now_s)
    for position in range(1, len(demands)):
        other = judge(demands[position], counted.counts[position], now_s)
        if other.remaining < remaining:
            limit, remaining, reset_epoch_s, _ = other
    return RateVerdict(limit, remaining, reset_epoch_s)


def refusal(counted: Counted, demands: Sequence[Demand], now_s: float) -> Refusal:
    """Of a request that was not counted: by the limit that keeps the client waiting longest."""
    spreads = counted.spreads or [UNKNOWN] * len(demands)
    asked = zip(demands, counted.counts, spreads, strict=True)
    judgements = [judge(demand, count, now_s, spread) for demand, count, spread in asked]
    worst: Judgement = max(judgements, key=lambda judgement: judgement.retry_after_s)
    verdict = RateVerdict(worst.limit, worst.remaining, worst.reset_epoch_s)
    return Refusal(demands[judgements.index(worst)], verdict, max(1, worst.retry_after_s))


def exceeded(wait_s: int, detail: str | None = None) -> GatewayError:
    """429 with Retry-After in whole seconds. `detail` is for the log."""
    return GatewayError(
        "The rate limit is exceeded; try again later.",
        status=429,
        code="rate_limit_exceeded",
        retry_after_s=wait_s,
        detail=detail,
        extra={"retry_after": wait_s},
    )
