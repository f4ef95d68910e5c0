"""What a client is told when a request failed behind the gateway: contract section 4, with the backend's name.

`reason` is one of names.UPSTREAM_REASONS; it and `detail` are for the log and the metrics only.
"""

from math import ceil

from apigw.errors import GatewayError
from apigw.names import SLOW_CLIENT
from apigw.net.connect import EXHAUSTED, TIMED_OUT
from apigw.upstream.pool import NO_INSTANCE, POOL_FULL

_RETRY_AFTER_S = 1  # where a place in a pool, or a descriptor, may be free the next moment


def bad_gateway(backend: str, reason: str, detail: str) -> GatewayError:
    return GatewayError(
        "The backend did not give a valid answer.",
        status=502,
        code="bad_gateway",
        reason=reason,
        detail=detail,
        extra={"backend": backend},
    )


def upstream_timeout(backend: str, reason: str, detail: str) -> GatewayError:
    return GatewayError(
        "The backend did not answer in time.",
        status=504,
        code="upstream_timeout",
        reason=reason,
        detail=detail,
        extra={"backend": backend},
    )


def no_connection(backend: str, reason: str, detail: str, back_in_s: float) -> GatewayError:
    """Of a pool that could not lend one, by its reason. back_in_s: until an instance may be in rotation again."""
    if reason == NO_INSTANCE:
        return unavailable(backend, reason, detail, max(1, ceil(back_in_s)))
    if reason in (POOL_FULL, EXHAUSTED):
        return unavailable(backend, reason, detail)
    if reason == TIMED_OUT:
        return upstream_timeout(backend, reason, detail)
    return bad_gateway(backend, reason, detail)


def slow_client(detail: str, begun: bool) -> GatewayError:
    """Of a request that gave way to others, see slow_clients.py. `begun`: its answer is, and is cut without a word."""
    code = SLOW_CLIENT if begun else "request_timeout"
    return GatewayError(
        "The request took too long to arrive.", status=408, code=code, reason=SLOW_CLIENT, detail=detail
    )


def unavailable(backend: str, reason: str, detail: str, retry_after_s: int = _RETRY_AFTER_S) -> GatewayError:
    return GatewayError(
        "The backend is not available.",
        status=503,
        code="service_unavailable",
        reason=reason,
        detail=detail,
        retry_after_s=retry_after_s,
        extra={"backend": backend},
    )
