"""From a parsed head to a ClientRequest: what HTTP asks of a request beyond its grammar."""

from apigw.core.http1 import Head
from apigw.core.paths import split_absolute, valid_authority
from apigw.errors import BadRequest
from apigw.exchange import ClientRequest, Header

_NO_HEADERS: list[Header] = []


def client_request(head: Head, head_bytes: int, peer_ip: str, secure: bool) -> ClientRequest:
    """Raises BadRequest for a missing or bad Host, one that differs from the target's, or an unknown expectation."""
    fields = head.fields
    authority, target = split_absolute(head.target)
    host = fields.get(b"host")
    if host is None:
        if not head.http10:
            raise BadRequest(detail="no Host")
    elif not valid_authority(host):
        raise BadRequest(detail="bad Host")
    elif authority is not None and authority.lower() != host.lower():
        raise BadRequest(detail="Host differs from the target's authority")
    expect = fields.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        raise BadRequest(detail="unknown expectation")
    return ClientRequest(
        head.method,
        target,
        head.headers,
        fields,
        content_length=head.content_length,
        chunked=head.chunked,
        http10=head.http10,
        authority=host or authority or b"",
        peer_ip=peer_ip,
        secure=secure,
        head_bytes=head_bytes,
    )


def unparsed(peer_ip: str, secure: bool) -> ClientRequest:
    """Stands for bytes that did not become a request, so that they are counted and logged as one."""
    return ClientRequest("", b"", _NO_HEADERS, {}, peer_ip=peer_ip, secure=secure)
