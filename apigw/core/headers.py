"""Which header lines pass a gateway, in both directions (contract section 5).

A name is judged in its loose form, lower case with "-" for "_" and ".": a backend that reads CGI variables
cannot tell X_User_ID from X-User-ID, so no client may send either.
"""

from typing import Iterable

from apigw.exchange import Header

# RFC 9110 7.6.1: for one connection only. Content-Length and Transfer-Encoding are written anew by each hop.
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"content-length",
    )
)
# What only the gateway may say to a backend.
GATEWAY_ONLY = frozenset(
    (
        b"x-user-id",
        b"x-user-scopes",
        b"x-partner-id",
        b"authorization",
        b"x-api-key",
        b"forwarded",
        b"x-real-ip",
        b"x-request-id",
        b"traceparent",
        b"tracestate",
        b"b3",
        b"host",
        b"expect",
    )
)
_GATEWAY_ONLY_PREFIXES = (b"x-forwarded-", b"x-b3-")
# What only the gateway says to a client.
REPLY_OWN = frozenset(
    (
        b"x-request-id",
        b"x-response-time-ms",
        b"x-ratelimit-limit",
        b"x-ratelimit-remaining",
        b"x-ratelimit-reset",
    )
)
CORS_REPLY = frozenset(
    (
        b"access-control-allow-origin",
        b"access-control-allow-credentials",
        b"access-control-allow-methods",
        b"access-control-allow-headers",
        b"access-control-expose-headers",
        b"access-control-max-age",
    )
)
_REPLY_DROP = HOP_BY_HOP | REPLY_OWN

_MEMO_MAX = 2048  # header names come from clients: remembered up to here, judged anew beyond
_MEMO_NAME_BYTES = 64  # longer ones are judged anew too: 2048 names of 8 KiB would stay for ever
_passes: dict[bytes, bool] = {}


def passes(lower: bytes) -> bool:
    """Whether a client's header of this lower-case name may reach a backend (Cookie is the route's matter)."""
    known = _passes.get(lower)
    if known is None:
        loose = lower.replace(b"_", b"-").replace(b".", b"-")
        known = not (
            loose in HOP_BY_HOP
            or loose in GATEWAY_ONLY
            or loose == b"cookie"
            or loose.startswith(_GATEWAY_ONLY_PREFIXES)
        )
        if len(_passes) < _MEMO_MAX and len(lower) <= _MEMO_NAME_BYTES:
            _passes[lower] = known
    return known


def nominated(connection: bytes | None) -> frozenset[bytes]:
    """The header names that a Connection value nominates, lower case; keep-alive and close are no names."""
    if connection is None:
        return _NONE
    names = _CONNECTIONS.get(connection)
    if names is not None:
        return names
    return frozenset(token.strip(b" \t") for token in connection.lower().split(b",")) - {b"close", b"keep-alive", b""}


_NONE: frozenset[bytes] = frozenset()
_CONNECTIONS = {b"keep-alive": _NONE, b"close": _NONE, b"Keep-Alive": _NONE}


def request_lines(headers: Iterable[Header], connection: bytes | None, cookies: bool) -> list[bytes]:
    """The client's header lines that go on to the backend, each with its CRLF."""
    hop = nominated(connection)
    judge = _passes.get
    lines = []
    for name, lower, value in headers:
        known = judge(lower)
        if known is None:
            known = passes(lower)
        if known or (cookies and lower == b"cookie"):
            if hop and lower in hop:
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
    return lines


def reply_line(header: Header) -> bytes:
    """A backend's header line as it goes on to the client, with its CRLF; nothing for one that never does."""
    name, lower, value = header
    return b"" if lower in _REPLY_DROP else b"%b: %b\r\n" % (name, value)


def reply_lines(headers: Iterable[Header], passing: bytes, connection: bytes | None, own: frozenset[bytes]) -> bytes:
    """A backend's header lines that go on to the client.

    passing: reply_line() of all of them. own: names that the gateway answers for this route.
    """
    hop = nominated(connection)
    if not own and not hop:
        return passing
    return b"".join([reply_line(header) for header in headers if header[1] not in own and header[1] not in hop])
