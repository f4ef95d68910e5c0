"""From the bytes of a head to a ClientRequest: what HTTP asks of a request beyond its grammar.

Note [The same again]
  A client's next request on a connection mostly differs in its target alone. When the header block is the
  same to the byte, and so are method and version, what was parsed, checked and framed before holds again;
  only the target is new, and one that is not of the plainest kind goes the long way. The lists are shared
  between such requests: nobody changes them.
"""

import re

from apigw.core.http1 import Head, request_head
from apigw.core.paths import split_absolute, valid_authority
from apigw.errors import BadRequest
from apigw.exchange import ClientRequest, Header

_REMEMBERED_BYTES = 2048  # a connection keeps no larger header block: 10,000 idle ones keep at most 20 MB
# A request line on which no two parsers can differ.
_PLAIN_LINE = re.compile(
    rb"([A-Z]+) (/[A-Za-z0-9._~!$&'()*+,=:@/-]*(?:\?[A-Za-z0-9._~!$&'()*+,;=:@/?%-]*)?) (HTTP/1\.[01])"
)

_NO_HEADERS: list[Header] = []


class HeadReader:
    """Reads the request heads of one connection. See Note [The same again]."""

    __slots__ = ("_block", "_line", "_last")

    def __init__(self) -> None:
        self._block = b""
        self._line: tuple[bytes | None, ...] = ()  # method and version of the last head
        self._last: ClientRequest | None = None

    def read(self, data: bytes, peer_ip: str, secure: bool) -> ClientRequest:
        """`data`: a whole head, CRLF CRLF included. Raises MalformedMessage, BadRequest."""
        line_end = data.find(b"\r\n")
        block = data[line_end:]
        match = _PLAIN_LINE.fullmatch(data, 0, line_end)
        if match is not None and block == self._block and match.group(1, 3) == self._line and self._last is not None:
            return self._last.again(match.group(2), len(data))
        client = client_request(request_head(data), len(data), peer_ip, secure)
        if match is not None and len(block) <= _REMEMBERED_BYTES:
            self._block, self._line, self._last = block, match.group(1, 3), client
        return client


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
