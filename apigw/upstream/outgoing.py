"""A request as a backend gets it (contract section 5): the client's own lines, who it is, and where it came from."""

from apigw.core.headers import request_lines
from apigw.exchange import Exchange


def request_bytes(ex: Exchange, host: str, held: bytes, streaming: bool) -> bytes:
    """Head and the body bytes at hand; `streaming`: more of the body follows, in the client's own framing."""
    client, route, target, identity = ex.request, ex.route, ex.target, ex.identity
    assert route is not None and target is not None and identity is not None
    path = target.wire[route.strip :] or "/"
    if target.query:
        path = f"{path}?{target.query}"
    lines = client.forwarded.get(route.forward_cookies)
    if lines is None:
        connection = client.fields.get(b"connection")
        lines = b"".join(request_lines(client.headers, connection, route.forward_cookies))
        client.forwarded[route.forward_cookies] = lines
    peer = client.peer_ip.encode("ascii")
    proto, host_seen = b"https" if client.secure else b"http", client.authority
    trusted = ex.snapshot.trusted_proxies
    if trusted is not None and trusted.trusts(client.peer_ip):
        fields = client.fields
        chain = fields.get(b"x-forwarded-for")
        if chain:
            peer = chain + b", " + peer
        if fields.get(b"x-forwarded-proto") in (b"http", b"https"):
            proto = fields[b"x-forwarded-proto"]
        host_seen = fields.get(b"x-forwarded-host", host_seen)
    framing = b""
    if streaming:
        if client.chunked:
            framing = b"Transfer-Encoding: chunked\r\n"
            held = b"%x\r\n%b\r\n" % (len(held), held) if held else b""
        else:
            framing = b"Content-Length: %d\r\n" % (client.content_length or 0)
    elif held or client.content_length is not None or client.chunked:
        framing = b"Content-Length: %d\r\n" % len(held)
    return (
        f"{client.method} {path} HTTP/1.1\r\nHost: {host}\r\n".encode("ascii")
        + lines
        + (ex.principal.headers if ex.principal is not None else b"")
        + b"X-Request-ID: %b\r\nX-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\n%b%b\r\n%b"
        % (identity.request_id.encode("ascii"), peer, proto, host_seen, identity.trace_headers, framing, held)
    )
