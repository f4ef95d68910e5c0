"""Cross-origin requests (the Fetch standard, "CORS protocol"). Origins are compared exactly; never "*"."""

_PREFLIGHT_MAX_AGE_S = 600  # browsers keep a preflight's answer this long; Chrome caps at 7200


def is_preflight(method: str, fields: dict[bytes, bytes]) -> bool:
    """OPTIONS with both Origin and Access-Control-Request-Method."""
    return method == "OPTIONS" and b"origin" in fields and b"access-control-request-method" in fields


def reply_lines(origin: bytes | None, allowed: frozenset[bytes]) -> bytes:
    """Header lines of every answer of a route that names origins."""
    if origin is not None and origin in allowed:
        return (
            b"Access-Control-Allow-Origin: %b\r\nAccess-Control-Allow-Credentials: true\r\n"
            b"Access-Control-Expose-Headers: X-Request-ID, X-RateLimit-Limit, X-RateLimit-Remaining, "
            b"X-RateLimit-Reset, Retry-After\r\nVary: Origin\r\n" % origin
        )
    return b"Vary: Origin\r\n"


def preflight_headers(
    fields: dict[bytes, bytes], allowed: frozenset[bytes], methods: bytes
) -> list[tuple[bytes, bytes]]:
    """Additional headers of a preflight's 204; none when the origin is not allowed: the browser then refuses."""
    if fields.get(b"origin") not in allowed:
        return []
    headers = [
        (b"Access-Control-Allow-Methods", methods),
        (b"Access-Control-Max-Age", b"%d" % _PREFLIGHT_MAX_AGE_S),
    ]
    wanted = fields.get(b"access-control-request-headers")
    if wanted:
        headers.append((b"Access-Control-Allow-Headers", wanted))
    return headers
