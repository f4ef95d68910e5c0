"""What a client is told when a request failed behind the gateway: contract section 4, with the backend's name.

`reason` is one of names.UPSTREAM_REASONS; it and `detail` are for the log and the metrics only.
"""

from apigw.errors import GatewayError
from apigw.names import SLOW_CLIENT

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
