"""From the bytes of a head to a ClientRequest: what HTTP asks of a request beyond its grammar.

Note [The same again]
  The next request on a connection mostly differs in its target alone, or in its target and its credential (a token
  or an API key), when a proxy before us multiplexes clients. When the rest of the header block is the same to the
  byte, and so are method and version, what was parsed, checked and framed before holds again. A target or credential
  that is not of the plainest kind goes the long way. What such requests share, nobody changes.
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

_CREDENTIAL = re.compile(rb"\r\n([Aa]uthorization|[Xx]-(?:API-Key|Api-Key|api-key)): ([!-~ ]*)\r\n")
_VISIBLE = bytes(range(0x20, 0x7F))

_NO_HEADERS: list[Header] = []


class HeadReader:
    """Reads the request heads of one connection. See Note [The same again]."""

    __slots__ = ("_before", "_behind", "_name", "_line", "_last")

    def __init__(self) -> None:
        self._before = b""  # the last header block up to its credential, or all of it
        self._behind: bytes | None = None  # and what followed the credential; None without one
        self._name = b""  # of the credential's header
        self._line: tuple[bytes | None, ...] = ()  # method and version of the last head
        self._last: ClientRequest | None = None

    def read(self, data: bytes, peer_ip: str, secure: bool) -> ClientRequest:
        """`data`: a whole head, CRLF CRLF included. Raises MalformedMessage, BadRequest."""
        line_end = data.find(b"\r\n")
        block = data[line_end:]
        match = _PLAIN_LINE.fullmatch(data, 0, line_end)
        if match is not None and match.group(1, 3) == self._line and self._last is not None:
            client = self._again(self._last, block, match.group(2), len(data))
            if client is not None:
                return client
        client = client_request(request_head(data), len(data), peer_ip, secure)
        if match is not None and len(block) <= _REMEMBERED_BYTES:
            self._line, self._last = match.group(1, 3), client
            found = _CREDENTIAL.search(block)
            self._before, self._behind = block, None
            if found is not None:
                self._before, self._behind = block[: found.start(2)], block[found.end(2) :]
                self._name = found[1].lower()
        return client

    def _again(self, last: ClientRequest, block: bytes, target: bytes, head_bytes: int) -> ClientRequest | None:
        if self._behind is None:
            return last.again(target, head_bytes) if block == self._before else None
        end = len(block) - len(self._behind)
        value = block[len(self._before) : end]
        if (
            not value
            or not block.startswith(self._before)
            or not block.endswith(self._behind)
            or value.strip() != value
        ):
            return None
        if value == last.fields[self._name]:
            return last.again(target, head_bytes)
        return None if value.translate(None, _VISIBLE) else last.again(target, head_bytes, self._name, value)


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
